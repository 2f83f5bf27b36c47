"""Direct preference optimisation: the policy learns from ranked pairs without a reward model."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn

from finetune.labels import RankedPrompt, answer_segment, ranked_prompts
from finetune.loop import DECAY, PEAK, LoopConfig, Loss, Step, train
from finetune.losses import dpo_sum
from finetune.model import label_log_probs, load_language_model
from finetune.packing import Segment, pad_right
from finetune.pretrain import shuffled_epochs
from finetune.registry import Registry
from finetune.tokenizer import PAD, load_tokenizer, token_id
from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file

VERSION = 1


class DpoConfig(LoopConfig):
    """[dpo]"""

    learning_rate: float = Field(2e-4, gt=0, description=PEAK)
    weight_decay: float = Field(0.0, ge=0, description=DECAY)
    beta: float = Field(0.1, gt=0, description="strength of the tie to the SFT model")
    epochs: float = Field(1.0, gt=0, description="passes over the pairs")
    batch_pairs: int = Field(16, ge=1, description="pairs of one optimizer step")
    max_length: int = Field(256, ge=32, description="tokens of prompt and answer")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse answer, and what the reference gives each: ln p of the
    whole answer."""

    prompt_id: str
    chosen: Segment
    rejected: Segment
    reference_chosen: float
    reference_rejected: float


def run_dpo(config: DpoConfig, sft_id: str, labels: Manifest, run: RunConfig) -> Manifest:
    """Train from the SFT model, which is also the reference; `facts` has model_id and the mean
    margin of held-out pairs (0 before, by definition)."""
    parents = {"labels": labels, "sft": sft_id}
    output = StageOutput.of(run.root, "dpo", VERSION, config.identity(), parents)
    registry = Registry(run.root)
    if done := output.finished():
        return registry.with_model(done)
    started = time.time()
    folder = storage.local_path(output.url)
    tokenizer = load_tokenizer(registry.verified(sft_id))
    pad_id = token_id(tokenizer, PAD)
    with output.lock():
        reference = load_language_model(registry.verified(sft_id))
        ranked = ranked_prompts(labels, heldout=False)
        found, num_pairs = make_pairs(tokenizer, reference, ranked, config.max_length, pad_id)
        if not found:
            raise UserError(f"no pair fits dpo.max_length = {config.max_length}; rank more answers")
        held_out, _ = make_pairs(
            tokenizer, reference, ranked_prompts(labels, heldout=True), config.max_length, pad_id
        )
        model = load_language_model(registry.verified(sft_id))
        num_steps = max(1, round(config.epochs * len(found) / config.batch_pairs))
        result = train(
            "dpo",
            model,
            lambda m, pairs: _objective(m, pairs, config.beta, pad_id),
            _steps(found, config.batch_pairs, config.seed),
            num_steps,
            config.max_length,
            config,
            folder,
            _evaluation(held_out, pad_id, num_steps),
        )
        lineage = {"kind": "dpo", "parents": output.parents, "config": config.identity()}
        model_id = registry.publish(model.cpu(), tokenizer, lineage)
    facts = {
        "model_id": model_id,
        "heldout_prompts": [pair.prompt_id for pair in held_out],
        "heldout_margins": [round(m, 5) for m in margins(model, held_out, pad_id)],
    }
    files = [describe_file(output.path("metrics.jsonl"), "metrics.jsonl", len(result.metrics))]
    dropped = {"too-long": num_pairs - len(found)} if len(found) < num_pairs else {}
    manifest = output.commit(
        files, Counts(num_pairs, len(found), dropped), started=started, facts=facts
    )
    (storage.local_path(output.url) / "checkpoint.pt").unlink(missing_ok=True)
    return manifest


def make_pairs(
    tokenizer: Tokenizer,
    reference: nn.Module,
    ranked: Sequence[RankedPrompt],
    max_length: int,
    pad_id: int,
) -> tuple[list[Pair], int]:
    """The pairs most labelers agree on, with the reference's log-probs.

    Returns (pairs no longer than max_length, number of all pairs).
    """
    reference.eval()
    pairs: list[Pair] = []
    total = 0
    for prompt in ranked:
        agreed = prompt.majority_pairs()
        total += len(agreed)
        segments = [answer_segment(tokenizer, prompt.prompt, answer) for answer in prompt.answers]
        if not agreed or max(len(segment.ids) for segment in segments) > max_length:
            continue
        with torch.no_grad():
            sums = label_log_probs(reference, pad_right(segments, pad_id)).sum(dim=1).tolist()
        pairs += [
            Pair(prompt.prompt_id, segments[a], segments[b], sums[a], sums[b]) for a, b in agreed
        ]
    return pairs, total


def _margins(
    model: nn.Module, pairs: Sequence[Pair], beta: float, pad_id: int
) -> tuple[Tensor, Tensor]:
    """(sum of losses, margins in nats)"""
    device = next(model.parameters()).device
    batch = pad_right([p.chosen for p in pairs] + [p.rejected for p in pairs], pad_id)
    sums = label_log_probs(model, batch.to(device)).sum(dim=1)
    chosen, rejected = sums[: len(pairs)], sums[len(pairs) :]
    reference = torch.tensor(
        [[p.reference_chosen, p.reference_rejected] for p in pairs], device=device
    )
    return dpo_sum(chosen, rejected, reference[:, 0], reference[:, 1], beta)


def _objective(model: nn.Module, pairs: Sequence[Pair], beta: float, pad_id: int) -> Loss:
    total, values = _margins(model, pairs, beta, pad_id)
    metrics = {
        "margin": float(values.detach().sum()),
        "accuracy": float((values.detach() > 0).sum()),
    }
    return Loss(total, metrics)


@torch.no_grad()
def margins(model: nn.Module, pairs: Sequence[Pair], pad_id: int) -> list[float]:
    """How much more than the reference the model prefers each chosen answer, in nats."""
    model.eval()
    values: list[float] = []
    for at in range(0, len(pairs), 16):
        values += _margins(model, pairs[at : at + 16], 1.0, pad_id)[1].tolist()
    return values


def _steps(
    pairs: Sequence[Pair], batch_pairs: int, seed: int
) -> Callable[[int, nn.Module], Step[Sequence[Pair]]]:
    def step_of(step: int, _model: nn.Module) -> Step[Sequence[Pair]]:
        index = shuffled_epochs(len(pairs), step * batch_pairs, batch_pairs, seed)
        chosen = [pairs[i] for i in index]
        num_tokens = sum(len(p.chosen.ids) + len(p.rejected.ids) for p in chosen)
        return Step([chosen], len(chosen), num_tokens)

    return step_of


def _evaluation(
    held_out: Sequence[Pair], pad_id: int, num_steps: int
) -> Callable[[int, nn.Module], dict[str, float]]:
    every = max(1, num_steps // 4)

    def evaluate(steps_done: int, model: nn.Module) -> dict[str, float]:
        if (steps_done % every and steps_done != num_steps) or not held_out:
            return {}
        values = margins(model, held_out, pad_id)
        return {"heldout_margin": sum(values) / len(values)}

    return evaluate
