"""The small worlds of `learning.py`: sums to add, reviews to write, judges with a known taste."""

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.chat import encode_answer, encode_prompt
from finetune.data import batches_of
from finetune.generate import Completion, Sampling, generate
from finetune.loop import LoopConfig, train
from finetune.model import ModelConfig, new_model, reward_model_from
from finetune.packing import Segment, pack_best_fit
from finetune.ppo import ActorCritic, PpoConfig, PpoSource, ppo_objective
from finetune.pretrain import next_token_objective
from finetune.reward import AnswerSet, RewardConfig, ranking_objective
from finetune.reward import _source as reward_source
from finetune.rollouts import Question, Sampler, rollout_segment
from finetune.tokenizer import PAD, TURN_END, TokenizerConfig, token_id, train_bpe
from pipeline.core.records import Message

SHAPE = ModelConfig(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=176, max_length=64)
FAST: dict[str, Any] = {"device": "cpu", "precision": "fp32", "checkpoint_every": 10**6}
GOOD = ["good", "great", "fine", "lovely", "bright", "warm", "happy", "kind"]
BAD = ["bad", "poor", "dull", "cold", "sad", "mean", "dark", "weak"]
PLAIN = ["the", "film", "was", "and", "story", "felt", "a", "bit", "very", "cast"]
ANSWER_TOKENS = 16
Rows = list[dict[str, float]]


class WordJudge:
    """Scores by words: good ones less bad ones, or (`gold`) good ones that were not said yet, less a
    half for each word said again."""

    def __init__(self, tokenizer: Any, *, gold: bool) -> None:
        self.tokenizer, self.gold = tokenizer, gold

    def rewards(self, questions: Sequence[Question], completions: Sequence[Completion]) -> Tensor:
        return torch.tensor([self._score(self._words(c)) for c in completions])

    def _words(self, completion: Completion) -> list[str]:
        ids = completion.ids[:-1] if completion.finished else completion.ids
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).split()

    def _score(self, words: Sequence[str]) -> float:
        bad = sum(word in BAD for word in words)
        if not self.gold:
            return float(sum(word in GOOD for word in words) - bad)
        return len(set(words) & set(GOOD)) - bad - 0.5 * (len(words) - len(set(words)))


def new_tokenizer(texts: Sequence[str], size: int = 320) -> Any:
    return train_bpe(iter(texts), TokenizerConfig(vocab_size=size))


def question_of(tokenizer: Any, text: str, reference: str = "") -> Question:
    return Question(text, tuple(encode_prompt(tokenizer, [Message.of("user", text)])), reference)


def reviewer(seed: int) -> tuple[Any, Any, list[Question]]:
    """A small model that writes reviews of eight words, as often kind as not; its tokenizer, and
    what it is asked."""
    draw = np.random.default_rng(seed)

    def word() -> str:
        kind = PLAIN if draw.random() < 0.6 else GOOD if draw.random() < 0.5 else BAD
        return str(draw.choice(kind))

    def review() -> str:
        return " ".join(word() for _ in range(8))

    asked = [f"review {n}" for n in range(50)]
    tokenizer = new_tokenizer([review() for _ in range(2000)] + asked, 400)
    questions = [question_of(tokenizer, text) for text in asked]
    model = new_model(SHAPE, tokenizer, seed)
    taught(model, [answered(q, tokenizer, review()) for q in questions * 30], 250, seed)
    return model, tokenizer, questions


def answered(question: Question, tokenizer: Any, answer: str) -> Segment:
    return rollout_segment(question.ids, encode_answer(tokenizer, answer))


def trained(label: str, model: Any, objective: Any, source: Any, steps: int, config: LoopConfig,
            evaluate: Callable[[int, Any], dict[str, float]] | None = None) -> Rows:  # fmt: skip
    """`model` is trained in place, in a folder that nobody sees."""
    with tempfile.TemporaryDirectory() as folder:
        return train(label, model, objective, source, steps, config, Path(folder), evaluate).metrics


def taught(model: Any, segments: Sequence[Segment], steps: int, seed: int) -> None:
    rows, _ = pack_best_fit(segments, SHAPE.max_length, 2)
    config = LoopConfig(learning_rate=3e-3, weight_decay=0.0, seed=seed, **FAST)
    trained("sft", model, next_token_objective, batches_of(rows, 32, 32, seed), steps, config)


def answers_of(model: nn.Module, tokenizer: Any, questions: Sequence[Question], length: int,
               seed: int) -> list[Completion]:  # fmt: skip
    stop = (token_id(tokenizer, TURN_END),)
    return generate(model.eval(), [q.ids for q in questions], Sampling(length, stop_ids=stop), seed)


def measured(model: Any, tokenizer: Any, questions: Sequence[Question], judge: Any) -> float:
    """The mean reward of four answers to each."""
    several = [q for q in questions for _ in range(4)]
    answers = answers_of(model, tokenizer, several, ANSWER_TOKENS, 7)
    return float(judge.rewards(several, answers).mean())


def copy_of(model: Any) -> Any:
    twin = type(model)._from_config(model.config, attn_implementation="flywheel")
    twin.load_state_dict(model.state_dict())
    return twin


def scorer(model: Any) -> Any:
    """The model's body under a fresh score head."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return reward_model_from(folder)


def preferred(model: Any, tokenizer: Any, questions: Sequence[Question], gold: WordJudge,
              seed: int) -> list[tuple[Segment, Segment]]:  # fmt: skip
    """Eight pairs of sampled answers to each question, the better one by gold first; no ties."""
    several = [q for q in questions for _ in range(16)]
    answers = answers_of(model, tokenizer, several, ANSWER_TOKENS, seed + 1)
    scores = gold.rewards(several, answers).tolist()
    segments = [rollout_segment(q.ids, c.ids) for q, c in zip(several, answers, strict=True)]
    return [
        (segments[a], segments[b]) if scores[a] > scores[b] else (segments[b], segments[a])
        for a, b in zip(range(0, len(several), 2), range(1, len(several), 2), strict=True)
        if scores[a] != scores[b]
    ]


def reward_model(
    model: Any, pairs: Sequence[tuple[Segment, Segment]], pad_id: int, seed: int
) -> Any:
    """Taught by the pairs, twice each."""
    sets = [AnswerSet(str(n), pair, (((0, 1),),), (0.0,), (1, 1)) for n, pair in enumerate(pairs)]
    config = RewardConfig(
        learning_rate=1e-3, batch_prompts=16, micro_batch_prompts=16, seed=seed, **FAST
    )
    found = scorer(model)
    objective = functools.partial(ranking_objective, pad_id=pad_id)
    source = reward_source(sets, config)
    trained("reward", found, objective, source, 2 * len(sets) // 16, config)
    return found.eval()


def ppo(model: Any, tokenizer: Any, questions: Sequence[Question], judge: Any, config: PpoConfig,
        evaluate: Callable[[int, Any], dict[str, float]] | None = None) -> tuple[Any, Rows]:  # fmt: skip
    """A copy of the model, trained against the judge; `evaluate` is given the policy."""
    reference = copy_of(model).eval()
    sampler = Sampler(judge, reference, config.max_new_tokens, 1.0, tokenizer, config.seed)
    both = ActorCritic(copy_of(model), scorer(model))
    objective = functools.partial(ppo_objective, config=config)
    source = PpoSource(sampler, questions, config)
    watch = None if evaluate is None else (lambda step, both: evaluate(step, both.policy))
    rows = trained("ppo", both, objective, source, config.steps, config, watch)
    return both.policy, rows


def pad_of(tokenizer: Any) -> int:
    return token_id(tokenizer, PAD)
