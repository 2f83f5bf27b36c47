"""Records of labelers made up for the tests of hygiene: a language of its own, answers, rankings."""

import datetime as dt
import itertools
import random

from pipeline.core.identity import prompt_id
from pipeline.core.records import Comparison, Conversation, Message, RankedResponse

WHEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
# What a language has: a few frequent words, and many rare ones.
VOCABULARY = [f"{a}{b}{c}" for a, b, c in itertools.product("bdklmnprst", "aeiou", "bdglmnrst")]


def conversation(identity, prompt, answer, labeler="p1", source="test") -> Conversation:
    turns = [("user", prompt)] if isinstance(prompt, str) else prompt
    messages = tuple(Message.of(role, text) for role, text in [*turns, ("assistant", answer)])
    name = prompt_id(messages[:-1])
    return Conversation(identity, name, messages, source, "human", labeler, 1, WHEN)


def comparison(identity, prompt, answers, ranks, labeler="p1", order=None) -> Comparison:
    turns = [("user", prompt)] if isinstance(prompt, str) else prompt
    messages = tuple(Message.of(role, text) for role, text in turns)
    responses = tuple(
        RankedResponse(f"{prompt_id(messages)}-{k}", "m", text, rank)
        for k, (text, rank) in enumerate(zip(answers, ranks, strict=True))
    )
    shown = tuple(order or range(len(answers)))
    name = prompt_id(messages)
    return Comparison(identity, name, messages, responses, shown, False, None, labeler, 1, WHEN)


def sentence(draw: random.Random, length: int) -> str:
    return " ".join(VOCABULARY[min(int(draw.expovariate(1 / 60)), 449)] for _ in range(length))


def clean(number: int, seed: int = 0) -> list[Conversation]:
    draw = random.Random(seed)
    return [
        conversation(f"c{i:05}", sentence(draw, draw.randint(6, 25)), sentence(draw, 20))
        for i in range(number)
    ]


def with_prompt(record: Conversation, text: str, answer: str) -> Conversation:
    return conversation(record.conversation_id, text, answer, record.labeler)


def kinds(findings) -> list[str]:
    return [finding.kind for finding in findings]


def rankings(seed: int, accuracy: dict[str, float], number: int, each: int) -> list[Comparison]:
    """`each` of the labelers rank two answers, and are right as often as they are accurate."""
    draw, found = random.Random(seed), []
    for i in range(number):
        for who in draw.sample(sorted(accuracy), each):
            right = draw.random() < accuracy[who]
            ranks, order = ([1, 2] if right else [2, 1]), draw.choice([[0, 1], [1, 0]])
            texts = [f"the good answer {i}", f"the poor answer {i}"]
            found.append(comparison(f"k{i}{who}", f"question {i}", texts, ranks, who, order))
    return found
