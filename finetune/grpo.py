"""RLHF without a value head: each answer is judged against the others to the same prompt.

Group-relative policy optimisation with one update per rollout: the ratio is 1, there is nothing to
clip, and the policy is asked for its log-probs once. A KL term to the SFT model, and a bound: past
it a step only pulls back. The reward is a reward model's, or a program's that checks the answer.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from finetune.data import shuffled_epochs
from finetune.distributed import gathered
from finetune.loop import Loss, Step, Steps, Update, precision_of, train
from finetune.losses import group_advantages, grpo_sum, kl_estimate
from finetune.model import label_log_probs
from finetune.packing import TokenBatch
from finetune.rl import RlConfig, result, setting
from finetune.rollouts import Question, Sampler, sampler_gap
from finetune.stage import Trained, run_stage
from pipeline.core.config import RunConfig
from pipeline.core.manifest import Manifest

VERSION = 3


class GrpoConfig(RlConfig):
    """[grpo]"""

    group_size: int = Field(8, ge=2, description="answers sampled for each prompt")
    micro_batch_answers: int = Field(64, ge=1, description="answers on the device at once")
    reward: Literal["model", "arithmetic", "exact", "format"] = Field(
        "model", description="who judges: the reward model, or a comparison with the ideal answer"
    )
    beta: float = Field(0.05, ge=0, description="weight of the KL term, per token")
    max_kl: float = Field(20.0, gt=0, description="nats per answer; past it a step pulls back")


@dataclasses.dataclass(frozen=True)
class GroupBatch:
    """Sampled answers, a row each, ready for the objective."""

    tokens: TokenBatch
    mask_ST: Tensor
    sampler_ST: Tensor
    reference_ST: Tensor
    advantages_S1: Tensor

    def rows(self, index: Sequence[int]) -> "GroupBatch":
        where = torch.tensor(index)
        parts = (self.mask_ST, self.sampler_ST, self.reference_ST, self.advantages_S1)
        return GroupBatch(self.tokens.rows(index), *(part[where] for part in parts))


def run_grpo(
    config: GrpoConfig,
    sft_id: str,
    reward_id: str,
    labels: Manifest,
    run: RunConfig,
    hygiene: Manifest | None = None,
) -> Manifest:
    """Train from the SFT model on the training prompts; `facts` has model_id and, on held-out
    prompts, the mean reward of SFT, of its best of n and of the result, and the KL."""

    def fit(folder: Path) -> Trained:
        made = setting(config, sft_id, reward_id, labels, run, config.reward)
        model = made.start()
        objective = functools.partial(group_objective, config=config)
        steps = source(made.sampler, made.questions, config)
        train("grpo", model, objective, steps, config.steps, config, folder)
        return result(made, gathered(model), "grpo", config.best_of, folder)

    again = functools.partial(run_grpo, config, sft_id, reward_id, labels, run, hygiene)
    parents: dict[str, Manifest | str] = {"labels": labels, "reward": reward_id, "sft": sft_id}
    parents |= {"hygiene": hygiene} if hygiene else {}
    return run_stage("grpo", VERSION, config, config.identity(), parents, run, fit, again)


def source(sampler: Sampler, questions: Sequence[Question], config: GrpoConfig) -> Steps:
    """Step n's prompts, answers and rewards: a function of (seed, n, model)."""

    def step_of(step: int, model: nn.Module) -> Step[GroupBatch]:
        index = shuffled_epochs(
            len(questions), step * config.batch_prompts, config.batch_prompts, config.seed
        )
        several = [questions[i] for i in index for _ in range(config.group_size)]
        rollout = sampler.roll(model, several, step, precision_of(config))
        advantages = group_advantages(rollout.rewards_S.view(-1, config.group_size))
        if rollout.metrics["kl"] > config.max_kl:
            advantages = torch.zeros_like(advantages)
        batch = GroupBatch(
            rollout.tokens, rollout.mask_ST, rollout.sampler_ST, rollout.reference_ST,
            advantages.view(-1, 1),
        )  # fmt: skip
        rows = range(len(several))
        size = config.micro_batch_answers
        micro = (
            [batch]
            if len(rows) <= size
            else [batch.rows(rows[at : at + size]) for at in range(0, len(rows), size)]
        )
        count = float(rollout.mask_ST.sum())
        tokens = rollout.tokens
        return Step(
            [Update(micro, count)], tokens.ids_BT.numel(), tokens.num_attended, rollout.metrics
        )

    return Steps(step_of)


def group_objective(model: nn.Module, batch: GroupBatch, config: GrpoConfig) -> Loss:
    """Less the gain, and the KL term, summed over the sampled tokens. Raises UserError if they were
    sampled from another model."""
    log_probs = label_log_probs(model, batch.tokens, config.temperature)
    mask = batch.mask_ST.float()
    total = grpo_sum(log_probs, batch.reference_ST, batch.advantages_S1, mask, config.beta)
    found = log_probs.detach()
    metrics: dict[str, Any] = {
        "kl_per_token": (kl_estimate(found, batch.reference_ST) * mask).sum(),
        "sampler_gap": sampler_gap(found, batch.sampler_ST, mask),
    }
    return Loss(total, metrics)
