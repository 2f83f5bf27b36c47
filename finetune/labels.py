"""The label snapshot as training data: what people wrote and ranked, split by prompt."""

import dataclasses
from collections.abc import Sequence

from tokenizers import Tokenizer

from finetune.chat import encode_answer, encode_chat, encode_prompt
from finetune.packing import Segment
from pipeline.core.errors import UserError
from pipeline.core.identity import HELDOUT_FRACTION, is_heldout, split_id
from pipeline.core.manifest import Manifest
from pipeline.core.records import DEGREE_MARGINS, Comparison, Conversation, Message, read_records


@dataclasses.dataclass(frozen=True)
class RankedPrompt:
    """One prompt, its K answers, and each labeler's ranks in the order of the answers. `margins`:
    how much better each labeler found the better one of two (0 where they did not say)."""

    prompt_id: str
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    rankings: tuple[tuple[int, ...], ...]
    margins: tuple[float, ...]

    def pairs(self, labeler: int) -> list[tuple[int, int]]:
        """(better, worse) indices as one labeler ranked them. A tie is no pair, and neither are
        two answers of the same text."""
        ranks, size = self.rankings[labeler], range(len(self.answers))
        return [
            (a, b)
            for a in size
            for b in size
            if ranks[a] < ranks[b] and self.answers[a] != self.answers[b]
        ]

    def majority_pairs(self) -> list[tuple[int, int]]:
        """(better, worse) indices where more labelers say so than say the opposite."""
        size = range(len(self.answers))
        return [
            (a, b)
            for a in size
            for b in size
            if sum((ranks[a] < ranks[b]) - (ranks[a] > ranks[b]) for ranks in self.rankings) > 0
        ]


def asked_prompts(labels: Manifest, *, heldout: bool) -> list[RankedPrompt]:
    """The ranked prompts of one side of the split, each once, however many answer sets it has."""
    found = ranked_prompts(labels, heldout=heldout)
    return list({ranked.prompt_id: ranked for ranked in reversed(found)}.values())[::-1]


def conversations(labels: Manifest, *, heldout: bool) -> list[Conversation]:
    """The demonstrations of one side of the split, by id. Raises UserError if there are none."""
    found = read_records(labels.file_url("conversations.parquet"), Conversation)
    chosen = [c for c in found if is_heldout(split_id(c.messages), HELDOUT_FRACTION) == heldout]
    if not chosen:
        raise UserError(
            f"no {'held-out' if heldout else 'training'} demonstrations among {len(found)} in"
            f" {labels.url}; write or import more answers"
        )
    return chosen


def ranked_prompts(labels: Manifest, *, heldout: bool) -> list[RankedPrompt]:
    """The comparisons of one side of the split, one entry a prompt and answer set, in order of
    prompt. Raises UserError if there are none."""
    found = read_records(labels.file_url("comparisons.parquet"), Comparison)
    groups: dict[tuple[str, tuple[str, ...]], list[Comparison]] = {}
    for comparison in found:
        if comparison.not_rankable:
            continue
        ids = tuple(sorted(r.response_id for r in comparison.responses))
        groups.setdefault((comparison.prompt_id, ids), []).append(comparison)
    ranked = [
        _ranked(groups[key])
        for key in sorted(groups)
        if is_heldout(split_id(groups[key][0].prompt), HELDOUT_FRACTION) == heldout
    ]
    if not ranked:
        raise UserError(
            f"no {'held-out' if heldout else 'training'} rankings among {len(found)} in"
            f" {labels.url}; rank or import more answers"
        )
    return ranked


def chat_segment(tokenizer: Tokenizer, messages: Sequence[Message]) -> Segment:
    """A conversation with its last turn supervised, the one that a person wrote: earlier answers
    may be a model's own, as in a conversation that a user rejected. Raises UserError if the last
    turn is not the assistant's (an all-zero mask would train on nothing, transformers#34172)."""
    if not messages or messages[-1].role != "assistant":
        raise UserError("a demonstration must end with the assistant's turn; answer or delete it")
    before = len(encode_prompt(tokenizer, messages[:-1]))
    ids = encode_chat(tokenizer, messages).ids
    return Segment(ids, tuple(index >= before for index in range(len(ids))))


def answer_segment(tokenizer: Tokenizer, prompt: Sequence[Message], answer: str) -> Segment:
    """A prompt and one answer to it, the answer and its end supervised."""
    before = encode_prompt(tokenizer, prompt)
    after = encode_answer(tokenizer, answer)
    return Segment((*before, *after), (*(False for _ in before), *(True for _ in after)))


def _ranked(comparisons: Sequence[Comparison]) -> RankedPrompt:
    group = sorted(comparisons, key=lambda comparison: comparison.comparison_id)
    answers = sorted(group[0].responses, key=lambda response: response.response_id)
    rankings = [
        tuple(r.rank for r in sorted(c.responses, key=lambda response: response.response_id))
        for c in group
    ]
    return RankedPrompt(
        group[0].prompt_id,
        group[0].prompt,
        tuple(response.text for response in answers),
        tuple(rankings),
        tuple(DEGREE_MARGINS.get(c.degree or "", 0.0) for c in group),
    )
