"""RLHF: the policy answers, the reward model judges, the policy moves towards what it likes.

Group-relative policy optimisation with one update per rollout, so the ratio is 1 and nothing is
clipped; a KL term to the SFT model, and a bound: past it a step only pulls back.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn

from finetune.chat import encode_prompt
from finetune.generate import Completion, Sampling, generate
from finetune.labels import RankedPrompt, ranked_prompts
from finetune.loop import (
    DECAY,
    INTERVAL,
    PEAK,
    WARM_UP,
    LoopConfig,
    Loss,
    Step,
    precision_of,
    train,
)
from finetune.losses import group_advantages, grpo_sum, kl_estimate
from finetune.model import end_scores, label_log_probs, load_language_model, load_reward_model
from finetune.packing import IGNORE, Segment, TokenBatch, pad_right
from finetune.pretrain import shuffled_epochs
from finetune.registry import Registry
from finetune.tokenizer import PAD, TURN_END, load_tokenizer, token_id
from pipeline.core import storage
from pipeline.core.config import RunConfig, operational
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file

VERSION = 1
REWARDS = "heldout-rewards.json"
_ROWS_AT_ONCE = 128


class GrpoConfig(LoopConfig):
    """[grpo]"""

    learning_rate: float = Field(2e-4, gt=0, description=PEAK)
    warmup_steps: int = Field(2, ge=0, description=WARM_UP)
    weight_decay: float = Field(0.0, ge=0, description=DECAY)
    checkpoint_every: int = operational(5, ge=1, description=INTERVAL)
    steps: int = Field(24, ge=1, description="optimizer steps")
    batch_prompts: int = Field(8, ge=1, description="prompts of one step")
    group_size: int = Field(8, ge=2, description="answers sampled for each prompt")
    max_new_tokens: int = Field(64, ge=1, description="of a sampled answer")
    beta: float = Field(0.05, ge=0, description="weight of the KL term, per token")
    max_kl: float = Field(20.0, gt=0, description="nats per answer; past it a step pulls back")
    clip: float = Field(0.2, gt=0, lt=1, description="of the probability ratio, to either side")
    unfinished_penalty: float = Field(1.0, ge=0, description="off the reward of a cut-off answer")
    best_of: int = Field(8, ge=2, description="best-of-n of the SFT model, shown beside")


@dataclasses.dataclass(frozen=True)
class Rollout:
    """N sampled answers, ready for the objective; `labels_BT` marks the sampled tokens."""

    batch: TokenBatch
    advantages_B: Tensor
    sampler_log_probs_BT: Tensor
    reference_log_probs_BT: Tensor


@dataclasses.dataclass(frozen=True)
class Judge:
    """The reward model and how it reads an answer."""

    model: nn.Module
    pad_id: int
    unfinished_penalty: float

    @torch.no_grad()
    def rewards(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Completion]
    ) -> Tensor:
        """The score at each answer's last token, which is its end of turn if it has one. [B]"""
        self.model.eval()
        segments = [_segment(p, c) for p, c in zip(prompts, completions, strict=True)]
        lengths = torch.tensor([len(segment.ids) for segment in segments])
        device = next(self.model.parameters()).device
        batch = pad_right(segments, self.pad_id).to(device)
        scores = end_scores(self.model, batch, lengths.to(device)).float().cpu()
        cut_off = torch.tensor([not c.finished for c in completions])
        return scores - self.unfinished_penalty * cut_off


def run_grpo(
    config: GrpoConfig, sft_id: str, reward_id: str, labels: Manifest, run: RunConfig
) -> Manifest:
    """Train from the SFT model on the training prompts; `facts` has model_id and, on held-out
    prompts, the mean reward of SFT, of its best of n and of the result, and the KL."""
    parents = {"labels": labels, "reward": reward_id, "sft": sft_id}
    output = StageOutput.of(run.root, "grpo", VERSION, config.identity(), parents)
    registry = Registry(run.root)
    if done := output.finished():
        return registry.with_model(done)
    started = time.time()
    tokenizer = load_tokenizer(registry.verified(sft_id))
    prompts = _prompts(tokenizer, ranked_prompts(labels, heldout=False))
    folder = storage.local_path(output.url)
    with output.lock():
        reference = load_language_model(registry.verified(sft_id)).eval()
        judge = Judge(
            load_reward_model(registry.verified(reward_id)),
            token_id(tokenizer, PAD),
            config.unfinished_penalty,
        )
        model = load_language_model(registry.verified(sft_id))
        rollouts = Rollouts(config, prompts, judge, reference, tokenizer)
        result = train(
            "grpo",
            model,
            lambda m, rollout: _objective(m, rollout, config),
            rollouts.step_of,
            config.steps,
            max(len(prompt) for prompt in prompts) + config.max_new_tokens,
            config,
            folder,
        )
        lineage = {"kind": "grpo", "parents": output.parents, "config": config.identity()}
        model_id = registry.publish(model.cpu(), tokenizer, lineage)
        ranked = ranked_prompts(labels, heldout=True)
        held_out = _prompts(tokenizer, ranked)
        rewards = heldout_rewards(config, held_out, judge, model, reference, tokenizer)
        for row, entry in zip(rewards, ranked, strict=True):
            row["prompt_id"] = entry.prompt_id
        storage.write_bytes(output.path(REWARDS), json.dumps(rewards).encode())
    files = [
        describe_file(output.path("metrics.jsonl"), "metrics.jsonl", len(result.metrics)),
        describe_file(output.path(REWARDS), REWARDS, len(held_out)),
    ]
    counts = Counts(len(prompts), len(prompts))
    manifest = output.commit(files, counts, started=started, facts={"model_id": model_id})
    (storage.local_path(output.url) / "checkpoint.pt").unlink(missing_ok=True)
    return manifest


class Rollouts:
    """Step n's prompts, answers and rewards: a function of (seed, n, model)."""

    def __init__(
        self,
        config: GrpoConfig,
        prompts: Sequence[Sequence[int]],
        judge: Judge,
        reference: nn.Module,
        tokenizer: Tokenizer,
    ) -> None:
        self.config, self.prompts, self.judge, self.reference = config, prompts, judge, reference
        self.sampling = Sampling(config.max_new_tokens, stop_ids=(token_id(tokenizer, TURN_END),))

    def step_of(self, step: int, model: nn.Module) -> Step[Rollout]:
        config = self.config
        device = next(model.parameters()).device
        self.reference.to(device)
        self.judge.model.to(device)
        index = shuffled_epochs(
            len(self.prompts), step * config.batch_prompts, config.batch_prompts, config.seed
        )
        prompts = [self.prompts[i] for i in index for _ in range(config.group_size)]
        model.eval()
        completions = generate(model, prompts, self.sampling, config.seed * 1_000_003 + step)
        rewards = self.judge.rewards(prompts, completions)
        segments = [_segment(p, c) for p, c in zip(prompts, completions, strict=True)]
        batch = pad_right(segments, self.judge.pad_id).to(device)
        sampled = batch.labels_BT != IGNORE
        with torch.no_grad(), precision_of(config).autocast():  # as the objective will see them
            sampler = label_log_probs(model, batch)
            reference = label_log_probs(self.reference, batch)
        kl = float(((sampler - reference) * sampled).sum() / len(prompts))
        advantages = group_advantages(rewards.view(-1, config.group_size)).flatten().to(device)
        if kl > config.max_kl:
            advantages = torch.zeros_like(advantages)
        metrics = {
            "reward": float(rewards.mean()),
            "kl": kl,
            "finished": sum(c.finished for c in completions) / len(completions),
            "answer_tokens": float(sampled.sum()) / len(prompts),
            "sampler_gap": _sampler_gap(sampler, sampled, completions),
        }
        rollout = Rollout(batch, advantages, sampler, reference)
        return Step([rollout], float(sampled.sum()), batch.ids_BT.numel(), metrics)


def _objective(model: nn.Module, rollout: Rollout, config: GrpoConfig) -> Loss:
    log_probs = label_log_probs(model, rollout.batch)
    mask = (rollout.batch.labels_BT != IGNORE).float()
    total = grpo_sum(
        log_probs,
        rollout.sampler_log_probs_BT,
        rollout.reference_log_probs_BT,
        rollout.advantages_B,
        mask,
        config.clip,
        config.beta,
    )
    k3 = kl_estimate(log_probs.detach(), rollout.reference_log_probs_BT) * mask
    return Loss(total, {"kl_per_token": float(k3.sum())})


def heldout_rewards(
    config: GrpoConfig,
    prompts: Sequence[Sequence[int]],
    judge: Judge,
    model: nn.Module,
    reference: nn.Module,
    tokenizer: Tokenizer,
) -> list[dict[str, Any]]:
    """Per held-out prompt: the mean reward of `best_of` answers of SFT and of the result, the best
    of SFT's, and ln p(result) - ln p(SFT) of the result's answers, which estimates the KL."""
    device = precision_of(config).device
    for network in (model, reference, judge.model):
        network.to(device).eval()
    sampling = Sampling(config.max_new_tokens, stop_ids=(token_id(tokenizer, TURN_END),))
    rows: list[dict[str, Any]] = []
    at_once = max(1, _ROWS_AT_ONCE // config.best_of)
    for at in range(0, len(prompts), at_once):
        several = [p for p in prompts[at : at + at_once] for _ in range(config.best_of)]
        before, after = (generate(network, several, sampling, at) for network in (reference, model))
        rewards_before = judge.rewards(several, before).view(-1, config.best_of)
        rewards_after = judge.rewards(several, after).view(-1, config.best_of)
        segments = [_segment(p, c) for p, c in zip(several, after, strict=True)]
        batch = pad_right(segments, judge.pad_id).to(device)
        with torch.no_grad():
            gap = label_log_probs(model, batch) - label_log_probs(reference, batch)
        kl = gap.sum(dim=1).view(-1, config.best_of).mean(dim=1)
        rows += [
            {
                "sft": float(rewards_before[i].mean()),
                "best_of_n": float(rewards_before[i].max()),
                "grpo": float(rewards_after[i].mean()),
                "kl": float(kl[i]),
            }
            for i in range(len(kl))
        ]
    return rows


def _prompts(tokenizer: Tokenizer, ranked: Sequence[RankedPrompt]) -> list[list[int]]:
    return [encode_prompt(tokenizer, entry.prompt) for entry in ranked]


def _segment(prompt: Sequence[int], completion: Completion) -> Segment:
    supervised = (*(False for _ in prompt), *(True for _ in completion.ids))
    return Segment((*prompt, *completion.ids), supervised)


def _sampler_gap(
    log_probs_BT: Tensor, sampled_BT: Tensor, completions: Sequence[Completion]
) -> float:
    """The largest difference between the sampler's and the trainer's ln p of a token: what the
    ratio would wrongly correct for if the two disagreed."""
    trainer = log_probs_BT[sampled_BT].float().cpu()
    sampler = torch.tensor([value for c in completions for value in c.log_probs])
    return float((trainer - sampler).abs().max())
