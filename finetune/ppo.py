"""RLHF as InstructGPT did it: proximal policy optimisation with a value model.

The reward model's score lands on an answer's last token, a penalty for leaving the SFT model on
every token; its weight follows a target (Ziegler et al. 2019). Advantages by GAE, whitened over
the sampled tokens. The value model starts from the reward model (Ouyang et al. 2022, appendix C).
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from finetune.data import shuffled_epochs
from finetune.distributed import gathered
from finetune.loop import Loss, Step, Update, precision_of, train
from finetune.losses import (
    AdaptiveKl,
    RunningMoments,
    clipped_gain,
    clipped_value_sum,
    generalised_advantages,
    whiten,
)
from finetune.model import label_log_probs, load_reward_model, token_scores
from finetune.packing import TokenBatch
from finetune.registry import Registry
from finetune.rl import RlConfig, result, setting
from finetune.rollouts import Question, Rollout, Sampler, sampler_gap
from finetune.stage import Trained, run_stage
from pipeline.core.config import RunConfig
from pipeline.core.manifest import Manifest

VERSION = 2


class PpoConfig(RlConfig):
    """[ppo]"""

    batch_prompts: int = Field(32, ge=1, description="prompts of one rollout, an answer each")
    updates: int = Field(4, ge=1, description="minibatches of a rollout")
    epochs: int = Field(2, ge=1, description="passes over a rollout")
    clip: float = Field(0.2, gt=0, lt=1, description="of the probability ratio, to either side")
    value_clip: float = Field(0.2, gt=0, description="how far a value may move in one rollout")
    value_weight: float = Field(0.5, gt=0, description="of the value loss")
    gamma: float = Field(1.0, gt=0, le=1, description="discount a token")
    lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda")
    kl_weight: float = Field(0.1, ge=0, description="of the penalty, at the start")
    kl_target: float = Field(4.0, gt=0, description="nats an answer that the weight steers to")
    kl_horizon: float = Field(1000.0, ge=0, description="answers; how slowly; 0: never")


class ActorCritic(nn.Module):
    """The policy, and a model of the same kind that foretells the reward at every token."""

    def __init__(self, policy: nn.Module, value: nn.Module) -> None:
        super().__init__()
        self.policy, self.value = policy, value
        self.config: Any = getattr(policy, "config", None)


@dataclasses.dataclass(frozen=True)
class PpoBatch:
    """Sampled answers, a row each, with what was known when they were sampled. [S, T]"""

    tokens: TokenBatch
    mask: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def run_ppo(
    config: PpoConfig,
    sft_id: str,
    reward_id: str,
    labels: Manifest,
    run: RunConfig,
    hygiene: Manifest | None = None,
) -> Manifest:
    """Train from the SFT model on the training prompts; `facts` has model_id, and the file of
    held-out rewards is as GRPO's."""

    def fit(folder: Path) -> Trained:
        made = setting(config, sft_id, reward_id, labels, run)
        value = load_reward_model(Registry(run.root).verified(reward_id))
        model = ActorCritic(made.start(), value)
        objective = functools.partial(ppo_objective, config=config)
        rollouts = PpoSource(made.sampler, made.questions, config)
        train("ppo", model, objective, rollouts, config.steps, config, folder)
        policy, weight = gathered(model.policy), rollouts.kl.weight
        return result(made, policy, "ppo", config.best_of, folder, kl_weight=weight)

    again = functools.partial(run_ppo, config, sft_id, reward_id, labels, run, hygiene)
    parents: dict[str, Manifest | str] = {"labels": labels, "reward": reward_id, "sft": sft_id}
    parents |= {"hygiene": hygiene} if hygiene else {}
    return run_stage("ppo", VERSION, config, config.identity(), parents, run, fit, again)


class PpoSource:
    """A step is a rollout and all its updates. Its state: the penalty's weight and the rewards'
    running scale."""

    def __init__(self, sampler: Sampler, questions: Sequence[Question], config: PpoConfig) -> None:
        self.sampler, self.questions, self.config = sampler, questions, config
        self.kl = AdaptiveKl(config.kl_weight, config.kl_target, config.kl_horizon)
        self.rewards = RunningMoments()

    def state(self) -> dict[str, Any]:
        return {"kl_weight": self.kl.weight, "rewards": dataclasses.asdict(self.rewards)}

    def restore(self, state: dict[str, Any]) -> None:
        self.kl = dataclasses.replace(self.kl, weight=state["kl_weight"])
        self.rewards = RunningMoments(**state["rewards"])

    def step_of(self, step: int, model: nn.Module) -> Step[PpoBatch]:
        assert isinstance(model, ActorCritic)
        config = self.config
        size = config.batch_prompts
        index = shuffled_epochs(len(self.questions), step * size, size, config.seed)
        asked = [self.questions[i] for i in index]
        rollout = self.sampler.roll(model.policy, asked, step, precision_of(config))
        mask = rollout.mask_ST
        with torch.no_grad(), precision_of(config).autocast():
            log_probs = label_log_probs(model.policy, rollout.tokens, config.temperature)
        gap = sampler_gap(log_probs, rollout.sampler_ST, mask) / mask.sum()
        penalties = (log_probs - rollout.reference_ST) * mask
        kl = float(penalties.sum()) / size
        self.rewards = self.rewards.after(rollout.rewards_S.cpu())
        minibatches = self._minibatches(model, rollout, penalties, step)
        metrics = {**rollout.metrics, "kl": kl, "kl_weight": self.kl.weight}
        metrics["sampler_gap"] = float(gap)
        self.kl = self.kl.after(kl, size)
        updates = [Update([batch], float(batch.mask.sum())) for batch in minibatches]
        tokens = rollout.tokens
        return Step(
            updates * config.epochs,
            tokens.ids_BT.numel() * config.epochs,
            tokens.num_attended * config.epochs,
            metrics,
        )

    @torch.no_grad()
    def _minibatches(
        self, model: ActorCritic, rollout: Rollout, penalties_ST: Tensor, step: int
    ) -> list[PpoBatch]:
        config, mask = self.config, rollout.mask_ST
        model.eval()
        with precision_of(config).autocast():
            values = token_scores(model.value, rollout.tokens) * mask
        scores = self.rewards.standardised(rollout.rewards_S)
        rewards = per_token_rewards(scores, penalties_ST, mask, self.kl.weight)
        advantages, returns = generalised_advantages(
            rewards, values, mask, config.gamma, config.lam
        )
        advantages = whiten(advantages, mask)
        order = np.random.default_rng([config.seed, step]).permutation(len(mask))
        parts: list[PpoBatch] = []
        for rows in np.array_split(order, min(config.updates, len(order))):
            where = torch.as_tensor(rows, device=mask.device)
            tokens = rollout.tokens.rows(rows)
            with precision_of(config).autocast():  # in the very batch that will be trained on
                log_probs = label_log_probs(model.policy, tokens, config.temperature)
            several = (x[where] for x in (values, advantages, returns))
            parts.append(PpoBatch(tokens, mask[where], log_probs, *several))
        return parts


def per_token_rewards(
    scores_S: Tensor, penalties_ST: Tensor, mask_ST: Tensor, weight: float
) -> Tensor:
    """-weight * (ln p - ln p_reference) at each sampled token, and the score at the last one, which
    is the end of turn where it came. [S, T]"""
    last = mask_ST.shape[1] - 1 - mask_ST.flip(1).int().argmax(dim=1)
    rewards = -weight * penalties_ST * mask_ST
    return rewards.scatter_add(1, last[:, None], scores_S[:, None].to(rewards.dtype))


def ppo_objective(model: nn.Module, batch: PpoBatch, config: PpoConfig) -> Loss:
    """The clipped gain and the clipped value loss, summed over the sampled tokens."""
    assert isinstance(model, ActorCritic)
    log_probs = label_log_probs(model.policy, batch.tokens, config.temperature)
    values = token_scores(model.value, batch.tokens)
    mask = batch.mask.float()
    gain, clipped = clipped_gain(log_probs, batch.log_probs, batch.advantages, config.clip)
    value_loss = clipped_value_sum(values, batch.values, batch.returns, mask, config.value_clip)
    difference = (log_probs - batch.log_probs).detach()
    metrics = {
        "value_loss": value_loss.detach(),
        "ratio": (difference.exp() * mask).sum(),
        "clipped": (clipped * mask).sum(),
        "moved_kl": ((difference.exp() - 1 - difference) * mask).sum(),
    }
    return Loss(config.value_weight * value_loss - (gain * mask).sum(), metrics)
