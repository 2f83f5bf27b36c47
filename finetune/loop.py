"""The one training loop, for every stage: what differs is the data and the objective.

A step's micro-batches are a pure function of (step, model), and an objective returns a *sum*;
the loop divides by the count of the whole step, so accumulation changes nothing but memory.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from finetune.checkpoint import load_checkpoint, save_checkpoint
from finetune.model import Precision, best_precision, peak_flops, training_flops_per_token
from pipeline.core import storage
from pipeline.core.config import Section, operational
from pipeline.core.progress import Progress

B = TypeVar("B")
# What keys mean that every stage has and most give a default of their own.
PEAK = "peak, after the warm-up"
WARM_UP = "steps of linear warm-up"
INTERVAL = "steps; what a kill can cost"
DECAY = "AdamW, of matrices only"
# What depends on the machine goes to a file of its own: metrics.jsonl is part of a result's hash.
TIMED = frozenset({"tokens_per_s", "mfu", "memory_gb"})


class LoopConfig(Section):
    """The loop's part of a stage's section."""

    learning_rate: float = Field(1e-3, gt=0, description=PEAK)
    warmup_steps: int = Field(10, ge=0, description=WARM_UP)
    final_lr_fraction: float = Field(
        0.1, ge=0, le=1, description="of the peak, at the last step (cosine)"
    )
    weight_decay: float = Field(0.1, ge=0, description=DECAY)
    grad_clip: float = Field(1.0, gt=0, description="norm")
    beta2: float = Field(0.95, gt=0, lt=1, description="AdamW")
    seed: int = Field(0, description="of the order of batches and of sampling")
    checkpoint_every: int = operational(100, ge=1, description=INTERVAL)
    device: Literal["auto", "cpu", "cuda"] = operational(
        "auto", description="auto: a GPU if there is one"
    )


@dataclasses.dataclass(frozen=True)
class Loss:
    """`total` is summed over the micro-batch; `metrics` are sums over the same count."""

    total: Tensor
    metrics: dict[str, float] = dataclasses.field(default_factory=dict[str, float])


@dataclasses.dataclass(frozen=True)
class Step(Generic[B]):
    """One optimizer step: its micro-batches, the count they are divided by (supervised tokens,
    prompts or pairs), and its tokens, for the rate. `metrics` are logged as they are."""

    micro_batches: Sequence[B]
    count: float
    num_tokens: int
    metrics: dict[str, float] = dataclasses.field(default_factory=dict[str, float])


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """One dict a step: step, loss, learning_rate, grad_norm, tokens_per_s and the stage's own."""

    metrics: list[dict[str, float]]
    resumed_at: int


class NotFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite; the step's batches lie beside the metrics."""


def train(
    label: str,
    model: nn.Module,
    objective: Callable[[nn.Module, Any], Loss],
    step_of: Callable[[int, nn.Module], Step[Any]],
    num_steps: int,
    row_length: int,
    config: LoopConfig,
    folder: Path,
    evaluate: Callable[[int, nn.Module], dict[str, float]] | None = None,
) -> TrainResult:
    """Train `model` in place for `num_steps`; goes on from `folder`/checkpoint.pt if it is there.

    `evaluate(steps_done, model)` is called after each step and before the first; what it returns
    joins the step's metrics. On a CPU a resumed run is bit-identical to an undisturbed one.
    Raises NotFiniteError, with the batch saved, as soon as a number stops being one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    precision = precision_of(config)
    model.to(precision.device)
    optimizer = new_optimizer(model, config)
    done = load_checkpoint(folder / "checkpoint.pt", model, optimizer)
    log = _MetricsLog(folder / "metrics.jsonl", done)
    peak = peak_flops(precision.device)
    flops_per_token = training_flops_per_token(model, row_length)
    with Progress(label, total=num_steps, unit="steps") as progress:
        progress.skip(done)
        if done == 0 and evaluate is not None:
            log.append({"step": 0, **evaluate(0, model)})
        for step_index in range(done, num_steps):
            started = time.perf_counter()
            step = step_of(step_index, model)
            rate = learning_rate(step_index, num_steps, config)
            values = _step(model, optimizer, objective, step, rate, config, precision, folder)
            per_s = step.num_tokens / (time.perf_counter() - started)
            values = {"step": step_index + 1, **values, **step.metrics, "tokens_per_s": per_s}
            if peak is not None:
                values["mfu"] = per_s * flops_per_token / peak
                values["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
            if evaluate is not None:
                values |= evaluate(step_index + 1, model)
            log.append(values)
            progress.advance(1, _note(values))
            if (step_index + 1) % config.checkpoint_every == 0 or step_index + 1 == num_steps:
                save_checkpoint(folder / "checkpoint.pt", model, optimizer, step_index + 1)
    return TrainResult(log.rows, done)


def new_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW; matrices decay, gains and biases do not."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(0.9, config.beta2), eps=1e-8, fused=True
    )


def learning_rate(step: int, num_steps: int, config: LoopConfig) -> float:
    """Linear warm-up, then a cosine down to `final_lr_fraction` of the peak at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = max(1, num_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / span))
    floor = config.final_lr_fraction
    return config.learning_rate * (floor + (1 - floor) * cosine)


def precision_of(config: LoopConfig) -> Precision:
    """Where a stage computes, and how."""
    return best_precision(None if config.device == "auto" else torch.device(config.device))


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Callable[[nn.Module, Any], Loss],
    step: Step[Any],
    rate: float,
    config: LoopConfig,
    precision: Precision,
    folder: Path,
) -> dict[str, float]:
    assert step.count > 0, "a step without a supervised token teaches nothing"
    model.train()
    total = 0.0
    sums: dict[str, float] = {}
    for micro_batch in step.micro_batches:
        with precision.autocast():
            loss = objective(model, micro_batch)
        (loss.total / step.count).backward()
        total += float(loss.total.detach())
        for name, value in loss.metrics.items():
            sums[name] = sums.get(name, 0.0) + value
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip))
    if not (math.isfinite(total) and math.isfinite(norm)):
        torch.save(step, folder / "not-finite.pt")
        raise NotFiniteError(
            f"loss {total / step.count}, gradient norm {norm}; the batch is in"
            f" {folder / 'not-finite.pt'}; lower the learning rate or look at it"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    means = {name: value / step.count for name, value in sums.items()}
    return {"loss": total / step.count, "learning_rate": rate, "grad_norm": norm, **means}


def _note(values: dict[str, float]) -> str:
    shown = [f"loss {values['loss']:.3f}"]
    if "reward" in values:
        shown.append(f"reward {values['reward']:.3f}")
    shown.append(f"{values['tokens_per_s']:,.0f} tok/s")
    if "mfu" in values:
        shown.append(f"MFU {values['mfu']:.1%}")
    return " · ".join(shown)


class _MetricsLog:
    """metrics.jsonl, cut back on resume to what the checkpoint knows; rates.jsonl beside it."""

    def __init__(self, path: Path, steps_done: int) -> None:
        self.path = path
        self.rows = _cut_back(path, steps_done)
        _cut_back(path.with_name("rates.jsonl"), steps_done)

    def append(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        for path, timed in ((self.path, False), (self.path.with_name("rates.jsonl"), True)):
            part = {k: v for k, v in row.items() if k == "step" or (k in TIMED) == timed}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(part) + "\n")


def _cut_back(path: Path, steps_done: int) -> list[dict[str, float]]:
    """Leave in the file the rows of the steps done, and return them."""
    rows: list[dict[str, float]] = []
    if path.exists() and steps_done > 0:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = _row_or_none(line)
            if row is not None and row["step"] <= steps_done:
                rows.append(row)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    storage.write_bytes(str(path), lines.encode())
    return rows


def _row_or_none(line: str) -> dict[str, float] | None:
    try:
        return json.loads(line)
    except ValueError:  # the kill tore the last line
        return None
