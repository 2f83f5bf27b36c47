"""What GRPO and PPO share: keys, the sampler with its questions, what is measured at the end."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pydantic import Field
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from finetune.kv_cache import context_length
from finetune.loop import DECAY, INTERVAL, PEAK, WARM_UP, LoopConfig, precision_of
from finetune.model import load_language_model, place
from finetune.registry import Registry
from finetune.rollouts import (
    REWARDS,
    CheckJudge,
    Question,
    Sampler,
    heldout_rewards,
    model_judge,
    questions_of,
    with_room,
)
from finetune.stage import Trained
from finetune.tokenizer import load_tokenizer
from pipeline.core import storage
from pipeline.core.config import RunConfig, operational
from pipeline.core.manifest import Counts, Manifest


class RlConfig(LoopConfig):
    """What every stage that samples adds to its section."""

    learning_rate: float = Field(2e-4, gt=0, description=PEAK)
    warmup_steps: int = Field(2, ge=0, description=WARM_UP)
    weight_decay: float = Field(0.0, ge=0, description=DECAY)
    checkpoint_every: int = operational(5, ge=1, description=INTERVAL)
    steps: int = Field(24, ge=1, description="rollouts, with their updates")
    batch_prompts: int = Field(8, ge=1, description="prompts of one step")
    max_new_tokens: int = Field(64, ge=1, description="of a sampled answer")
    temperature: float = Field(1.0, gt=0, description="of sampling, and of the log-probs learnt by")
    unfinished_penalty: float = Field(1.0, ge=0, description="off the reward of a cut-off answer")
    best_of: int = Field(8, ge=2, description="best-of-n of the SFT model, shown beside")
    processes: int = operational(
        1, ge=1, le=1, description="one: answers end apart, and sharded weights are read together"
    )


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where a policy starts, who judges it, and what it is asked: in training, and held out."""

    checkpoint: Path
    tokenizer: Tokenizer
    sampler: Sampler
    questions: list[Question]
    held_out: list[Question]
    counts: Counts

    def start(self) -> PreTrainedModel:
        return load_language_model(self.checkpoint)


def setting(
    config: RlConfig,
    sft_id: str,
    reward_id: str,
    labels: Manifest,
    run: RunConfig,
    check: str = "model",
) -> Setting:
    """`check` is the program that judges, or "model" for the reward model."""
    registry, device = Registry(run.root), precision_of(config).device
    checkpoint = registry.verified(sft_id)
    tokenizer = load_tokenizer(checkpoint)
    asked, asked_later = (
        questions_of(tokenizer, labels, heldout=h, with_reference=check != "model")
        for h in (False, True)
    )
    judge = (
        model_judge(registry, reward_id, tokenizer, config.unfinished_penalty, device)
        if check == "model"
        else CheckJudge(tokenizer, check)
    )
    reference = place(load_language_model(checkpoint), device).eval()
    context = context_length(reference.config)
    questions, dropped = with_room(asked, context)
    held_out, _ = with_room(asked_later, context)
    sampler = Sampler(
        judge, reference, config.max_new_tokens, config.temperature, tokenizer, config.seed
    )
    counts = Counts(len(asked), len(questions), dropped)
    return Setting(checkpoint, tokenizer, sampler, questions, held_out, counts)


def result(
    made: Setting, policy: PreTrainedModel, name: str, best_of: int, folder: Path, **facts: Any
) -> Trained:
    """The policy with its rewards on the held-out prompts, beside those of where it started."""
    rewards = heldout_rewards(made.sampler, made.held_out, policy, best_of, name)
    storage.write_bytes(str(folder / REWARDS), json.dumps(rewards).encode())
    said = {"sft": "reward of SFT", "best_of_n": f"of its best of {best_of}", name: f"of {name}"}
    said["kl"] = "KL to SFT, nats an answer"
    measured = {
        f"held out: {what}": sum(row[key] for row in rewards) / len(rewards)
        for key, what in said.items()
        if rewards
    }
    files = {REWARDS: len(rewards)}
    return Trained(policy, made.tokenizer, made.counts, facts, measured, files)
