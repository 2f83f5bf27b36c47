"""What RL learns from: answers sampled from the policy, tokens in, tokens out, and their rewards.

A reward belongs to an answer's last token, the end of turn if it came (trl#3750). The sampler's
log-probs are checked against the trainer's: where they differ the ratio corrects for a bug.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from finetune.chat import encode_prompt
from finetune.engines import Engine, TorchEngine
from finetune.generate import Completion, Sampling, generate
from finetune.labels import asked_prompts, conversations
from finetune.model import Precision, end_scores, label_log_probs, load_reward_model, place
from finetune.packing import IGNORE, Segment, TokenBatch, lay_segments, pad_right
from finetune.registry import Registry
from finetune.tokenizer import PAD, TURN_END, token_id
from finetune.verifiable import CHECKS
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest

REWARDS = "heldout-rewards.json"
MOST_GAP = 0.5  # nats a token, on average; bf16 against fp32 is some hundredths
_ROWS_AT_ONCE = 128


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt as tokens up to the opened answer, and the right answer if there is one."""

    prompt_id: str
    ids: tuple[int, ...]
    reference: str = ""


class Judge(Protocol):
    def rewards(self, questions: Sequence[Question], completions: Sequence[Completion]) -> Tensor:
        """One number an answer, on the CPU. [S]"""
        ...


@dataclasses.dataclass(frozen=True)
class ModelJudge:
    """A reward model's score at the end of each answer, less a penalty for one that was cut off."""

    model: nn.Module
    pad_id: int
    unfinished_penalty: float

    @torch.no_grad()
    def rewards(self, questions: Sequence[Question], completions: Sequence[Completion]) -> Tensor:
        self.model.eval()
        device = next(self.model.parameters()).device
        pairs = zip(questions, completions, strict=True)
        segments = [rollout_segment(q.ids, c.ids) for q, c in pairs]
        scores = end_scores(self.model, lay_segments(segments, self.pad_id).to(device))
        cut_off = torch.tensor([not c.finished for c in completions])
        return scores.cpu() - self.unfinished_penalty * cut_off


@dataclasses.dataclass(frozen=True)
class CheckJudge:
    """1 for an answer that a program finds right, 0 for another; one that was cut off is wrong."""

    tokenizer: Tokenizer
    check: str

    def rewards(self, questions: Sequence[Question], completions: Sequence[Completion]) -> Tensor:
        right = CHECKS[self.check]
        return torch.tensor(
            [
                float(c.finished and right(self.tokenizer.decode(list(c.ids[:-1])), q.reference))
                for q, c in zip(questions, completions, strict=True)
            ]
        )


def model_judge(
    registry: Registry, reward_id: str, tokenizer: Tokenizer, penalty: float, device: torch.device
) -> ModelJudge:
    model = load_reward_model(registry.verified(reward_id))
    return ModelJudge(place(model, device), token_id(tokenizer, PAD), penalty)


def questions_of(
    tokenizer: Tokenizer, labels: Manifest, *, heldout: bool, with_reference: bool
) -> list[Question]:
    """The ranked prompts; or, with the answers that a program compares with, the demonstrations."""
    if not with_reference:
        ranked = asked_prompts(labels, heldout=heldout)
        return [Question(r.prompt_id, tuple(encode_prompt(tokenizer, r.prompt))) for r in ranked]
    return [
        Question(c.prompt_id, tuple(encode_prompt(tokenizer, c.messages[:-1])), c.messages[-1].text)
        for c in conversations(labels, heldout=heldout)
    ]


def with_room(questions: Sequence[Question], context: int) -> tuple[list[Question], dict[str, int]]:
    """The questions after which an answer's token has room in the context, and how many have none.
    Raises UserError if that is all of them."""
    kept = [question for question in questions if len(question.ids) < context]
    if not kept:
        raise UserError(
            f"all {len(questions)} prompts fill the model's {context:,} tokens; ask shorter ones"
        )
    lost = len(questions) - len(kept)
    return kept, {"no-room-for-an-answer": lost} if lost else {}


@dataclasses.dataclass(frozen=True)
class Rollout:
    """S sampled answers, one a row. `mask_ST` marks the positions that chose a sampled token,
    `sampler_ST` are the sampler's own log-probs of it, `reference_ST` the reference's."""

    tokens: TokenBatch
    mask_ST: Tensor
    sampler_ST: Tensor
    reference_ST: Tensor
    rewards_S: Tensor
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How answers are drawn and measured."""

    judge: Judge
    reference: nn.Module
    max_new_tokens: int
    temperature: float
    tokenizer: Tokenizer
    seed: int
    engine: Engine | None = None  # None: the policy itself, in this process

    def roll(
        self, policy: nn.Module, questions: Sequence[Question], step: int, precision: Precision
    ) -> Rollout:
        device = next(policy.parameters()).device
        policy.eval()
        engine = self.engine or TorchEngine(policy, precision)
        engine.load_weights(policy)
        seed = self.seed * 1_000_003 + step
        completions = engine.generate([q.ids for q in questions], self.sampling, seed)
        with precision.autocast():
            rewards = self.judge.rewards(questions, completions)
        pairs = zip(questions, completions, strict=True)
        segments = [rollout_segment(q.ids, c.ids) for q, c in pairs]
        batch = pad_right(segments, token_id(self.tokenizer, PAD)).to(device)
        mask = batch.labels_BT != IGNORE
        drawn = torch.tensor([value for c in completions for value in c.log_probs]).to(device)
        found = torch.zeros_like(mask, dtype=torch.float32).masked_scatter(mask, drawn)
        with torch.no_grad(), precision.autocast():  # as the objective will see them
            reference = label_log_probs(self.reference, batch, self.temperature)
        metrics = {
            "reward": float(rewards.mean()),
            "kl": float((found - reference * mask).sum() / len(questions)),
            "finished": sum(c.finished for c in completions) / len(completions),
            "answer_tokens": float(mask.sum()) / len(questions),
        }
        return Rollout(batch, mask, found, reference, rewards.to(device), metrics)

    @property
    def sampling(self) -> Sampling:
        end = token_id(self.tokenizer, TURN_END)
        return Sampling(self.max_new_tokens, self.temperature, stop_ids=(end,))


def sampler_gap(log_probs_ST: Tensor, sampler_ST: Tensor, mask_ST: Tensor) -> Tensor:
    """The sum over sampled tokens of how far the sampler's log-probs are from the trainer's.
    Raises UserError if they are of another model."""
    gap = ((log_probs_ST - sampler_ST).abs() * mask_ST).sum()
    mean = float(gap / mask_ST.sum())
    if mean > MOST_GAP:
        raise UserError(
            f"the sampler's log-probs differ from the trainer's by {mean:.2f} nats a token: it"
            " samples from another model; check the engine and its settings"
        )
    return gap


def rollout_segment(prompt: Sequence[int], answer: Sequence[int]) -> Segment:
    """The prompt and the sampled tokens behind it, these supervised."""
    supervised = (*(False for _ in prompt), *(True for _ in answer))
    return Segment((*prompt, *answer), supervised)


def heldout_rewards(
    sampler: Sampler, questions: Sequence[Question], policy: nn.Module, best_of: int, name: str
) -> list[dict[str, Any]]:
    """Per held-out prompt: the mean reward of `best_of` answers of the reference ("sft") and of the
    policy (`name`), the best of the reference's, and ln p(policy) - ln p(reference) of the
    policy's answers, which estimates the KL."""
    device = next(sampler.reference.parameters()).device
    policy.to(device).eval()
    pad_id = token_id(sampler.tokenizer, PAD)
    rows: list[dict[str, Any]] = []
    at_once = max(1, _ROWS_AT_ONCE // best_of)
    for at in range(0, len(questions), at_once):
        several = [q for q in questions[at : at + at_once] for _ in range(best_of)]
        before, after = (
            generate(model, [q.ids for q in several], sampler.sampling, at)
            for model in (sampler.reference, policy)
        )
        rewards = [sampler.judge.rewards(several, c).view(-1, best_of) for c in (before, after)]
        segments = [rollout_segment(q.ids, c.ids) for q, c in zip(several, after, strict=True)]
        batch = lay_segments(segments, pad_id).to(device)
        with torch.no_grad():
            gap = batch.sums(
                label_log_probs(policy, batch.tokens, sampler.temperature)
                - label_log_probs(sampler.reference, batch.tokens, sampler.temperature)
            )
        kl = gap.view(-1, best_of).mean(dim=1).tolist()
        rows += [
            {
                "sft": float(rewards[0][i].mean()),
                "best_of_n": float(rewards[0][i].max()),
                name: float(rewards[1][i].mean()),
                "kl": kl[i],
                "prompt_id": questions[at + i].prompt_id,
            }
            for i in range(len(kl))
        ]
    return rows
