"""The one training loop, for every stage: what differs is the data and the objective.

An objective returns a *sum* over its micro-batch; the loop divides by the count of the whole
update, over all micro-batches and workers, so accumulation changes nothing but memory.
"""

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from finetune import distributed
from finetune.checkpoint import (
    State,
    load_checkpoint,
    random_state,
    restore_random,
    save_checkpoint,
)
from finetune.metrics import TIMED, MetricsLog, curves
from finetune.model import Precision, best_precision, body_of, peak_flops, training_flops
from pipeline.core.config import Section, operational
from pipeline.core.errors import UserError
from pipeline.core.progress import Progress

B = TypeVar("B")
# What keys mean that every stage has and most give a default of their own.
PEAK = "peak, after the warm-up"
WARM_UP = "steps of linear warm-up; at most half of all"
_DRAWN = 8  # steps and more have a curve
INTERVAL = "steps; what a kill can cost"
DECAY = "AdamW, of matrices only"


class LoopConfig(Section):
    """The loop's part of a stage's section."""

    learning_rate: float = Field(1e-3, gt=0, description=PEAK)
    warmup_steps: int = Field(10, ge=0, description=WARM_UP)
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="how the rate falls after the warm-up"
    )
    final_lr_fraction: float = Field(
        0.1, ge=0, le=1, description="of the peak, at the last step (not of constant)"
    )
    weight_decay: float = Field(0.1, ge=0, description=DECAY)
    grad_clip: float = Field(1.0, gt=0, description="norm over all parameters")
    beta2: float = Field(0.95, gt=0, lt=1, description="AdamW")
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="adamw8bit keeps its state in 8 bits (torchao)"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the order of batches and of sampling")
    checkpoint_every: int = operational(100, ge=1, description=INTERVAL)
    recompute: bool = operational(
        False, description="activations twice instead of kept: a third more work, far less memory"
    )
    compile: Literal["auto", "on", "off"] = operational(
        "auto", description="torch.compile of each block; auto: on a GPU"
    )
    precision: Literal["auto", "bf16", "fp32"] = operational(
        "auto", description="of the multiplications; auto: bf16 where the hardware has it"
    )
    device: Literal["auto", "cpu", "cuda"] = operational(
        "auto", description="auto: a GPU if there is one"
    )
    processes: int = operational(
        1, ge=1, description="that train together, a GPU each (FSDP2); Ray's if run.backend is ray"
    )


@dataclasses.dataclass(frozen=True)
class Loss:
    """`total` is summed over the micro-batch; `metrics` are sums over the same count."""

    total: Tensor
    metrics: Mapping[str, Tensor] = dataclasses.field(default_factory=dict[str, Tensor])


@dataclasses.dataclass(frozen=True)
class Update(Generic[B]):
    """What one optimizer update sees: its micro-batches, and the count that their sums are
    divided by (supervised tokens, prompts or pairs)."""

    micro_batches: Sequence[B]
    count: float


@dataclasses.dataclass(frozen=True)
class Step(Generic[B]):
    """One step: its updates (one, but for PPO), its tokens and its attended pairs of tokens, for
    the rates. `metrics` are logged as they are."""

    updates: Sequence[Update[B]]
    num_tokens: int
    num_attended: int = 0
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])


class Source(Protocol):
    """Where steps come from: a function of the step, the model and its own state, which a
    checkpoint holds, so that a resumed run goes on with the very same data."""

    def step_of(self, step: int, model: nn.Module, /) -> Step[Any]: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Steps:
    """A source that is a function of (step, model) alone."""

    step_of: Callable[[int, nn.Module], Step[Any]]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        assert not state, "a source without a state has nothing to restore"


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """One dict a step: step, loss, learning_rate, grad_norm, tokens_per_s and the stage's own."""

    metrics: list[dict[str, float]]
    resumed_at: int


class NotFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite; the step's batches lie beside the metrics."""


Objective = Callable[[nn.Module, Any], Loss]
Evaluate = Callable[[int, nn.Module], Mapping[str, float]]


def train(
    label: str,
    model: nn.Module,
    objective: Objective,
    source: Source,
    num_steps: int,
    config: LoopConfig,
    folder: Path,
    evaluate: Evaluate | None = None,
) -> TrainResult:
    """Train `model` in place for `num_steps`; goes on from `folder`'s checkpoint if there is one.

    `evaluate(steps_done, model)` is called after each step and before the first; what it returns
    joins the step's metrics. On a CPU a resumed run is bit-identical to an undisturbed one.
    Raises NotFiniteError, with the batch saved, as soon as a number stops being one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    precision = precision_of(config)
    torch.manual_seed(config.seed)
    shell = _prepare(model, config, precision)
    optimizer = new_optimizer(model, config)
    done = _resume(folder, shell, optimizer, source)
    log = MetricsLog(folder, done, write=distributed.is_main())
    peak = peak_flops(precision.device)
    with Progress(label, total=num_steps, unit="steps") as progress, log:
        progress.skip(done)
        if done and distributed.is_main():
            print(f"{label}: goes on after step {done:,} of {num_steps:,}", file=sys.stderr)
        if done == 0 and evaluate is not None:
            log.append({"step": 0, **shell(lambda: evaluate(0, model))})
        for index in range(done, num_steps):
            started = time.perf_counter()
            step: Step[Any] = shell(lambda index=index: source.step_of(index, model))
            waited = time.perf_counter() - started
            rate = learning_rate(index, num_steps, config)
            found = _step(shell, optimizer, objective, step, rate, config, precision, folder)
            took = time.perf_counter() - started
            values = {"step": index + 1, **found, **step.metrics}
            values |= _rates(model, step, took, waited, peak)
            if evaluate is not None:
                values |= shell(lambda index=index: evaluate(index + 1, model))
            log.append(values)
            progress.advance(1, _note(values))
            if (index + 1) % config.checkpoint_every == 0 or index + 1 == num_steps:
                _save(folder, index + 1, shell, optimizer, source)
    if distributed.is_main() and num_steps >= _DRAWN and (lines := curves(log.rows)):
        print("\n".join(lines), file=sys.stderr)
    return TrainResult(log.rows, done)


def new_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW of what is not frozen; matrices decay, gains and biases do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (0.9, config.beta2)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=1e-8, fused=True)
    try:
        # An extra: for models that fill a GPU.
        from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("optimizer = 'adamw8bit' needs torchao; pip install torchao") from None
    return cast(Any, AdamW8bit)(groups, lr=config.learning_rate, betas=betas, eps=1e-8)


def learning_rate(step: int, num_steps: int, config: LoopConfig) -> float:
    """Linear warm-up, of at most half of the steps; then down to `final_lr_fraction` of the peak
    at the last step."""
    warm = min(config.warmup_steps, num_steps // 2)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    gone = (step - warm) / max(1, num_steps - 1 - warm)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * gone)), "linear": 1 - gone, "constant": 1.0}
    floor = config.final_lr_fraction
    return config.learning_rate * (floor + (1 - floor) * left[config.schedule])


def precision_of(config: LoopConfig) -> Precision:
    """Where a stage computes, and how."""
    found = best_precision(distributed.device(config.device))
    if config.precision == "auto":
        return found
    wanted = {"bf16": torch.bfloat16, "fp32": None}[config.precision]
    return dataclasses.replace(found, autocast_dtype=wanted)


def _prepare(model: nn.Module, config: LoopConfig, precision: Precision) -> "distributed.Shell":
    model.to(precision.device)
    parts = [part for part in (model, *model.children()) if hasattr(part, "base_model_prefix")]
    for part in parts[:1] if hasattr(model, "base_model_prefix") else parts:
        if config.recompute:
            cast(Any, part).gradient_checkpointing_enable({"use_reentrant": False})
        if config.compile == "on" or (config.compile == "auto" and precision.device.type == "cuda"):
            for block in distributed.blocks_of(body_of(part)):
                block.compile()
    return distributed.shell(model, precision)


def _resume(
    folder: Path, shell: "distributed.Shell", optimizer: torch.optim.Optimizer, source: Source
) -> int:
    state = load_checkpoint(folder)
    if state is None:
        return 0
    try:
        distributed.load_state(shell, optimizer, state.model, state.optimizer)
    except (RuntimeError, KeyError, ValueError, AttributeError, TypeError) as error:
        why = str(error).partition("\n")[0][:200]
        raise UserError(
            f"the checkpoint in {folder} is of another model ({why}); delete its checkpoint-* and"
            " rerun: the stage begins anew"
        ) from error
    source.restore(state.source)
    restore_random(state.generators)
    return state.step


def _save(
    folder: Path,
    step: int,
    shell: "distributed.Shell",
    optimizer: torch.optim.Optimizer,
    source: Source,
) -> None:
    weights, moments = distributed.whole_state(shell, optimizer)
    if distributed.is_main():
        save_checkpoint(folder, State(step, weights, moments, source.state(), random_state()))
    distributed.barrier()


def _step(
    shell: "distributed.Shell",
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    step: Step[Any],
    rate: float,
    config: LoopConfig,
    precision: Precision,
    folder: Path,
) -> dict[str, float]:
    """The updates of one step; returns their means."""
    shell.model.train()
    for group in optimizer.param_groups:
        group["lr"] = rate
    rows = [_update(shell, optimizer, objective, u, config, precision) for u in step.updates]
    norm = max(row["grad_norm"] for row in rows)
    if not all(math.isfinite(value) for row in rows for value in row.values()):
        torch.save(step, folder / "not-finite.pt")
        raise NotFiniteError(
            f"loss {rows[-1]['loss']}, gradient norm {norm}; the batch is in"
            f" {folder / 'not-finite.pt'}; lower the learning rate or look at it"
        )
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return {**means, "grad_norm": norm, "learning_rate": rate}


def _update(
    shell: "distributed.Shell",
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    update: Update[Any],
    config: LoopConfig,
    precision: Precision,
) -> dict[str, float]:
    assert update.count > 0, "an update without a supervised token teaches nothing"
    sums: dict[str, Tensor] = {}
    for micro_batch in distributed.share_of(update.micro_batches):
        with precision.autocast():
            total, metrics = shell(lambda m=micro_batch: _parts(objective(shell.model, m)))
        # FSDP means over the workers what we want summed.
        (total * (distributed.size() / update.count)).backward()
        for name, value in {"loss": total.detach(), **metrics}.items():
            sums[name] = sums[name] + value if name in sums else value
    norm = distributed.clip_gradients(shell.model, config.grad_clip)
    values = distributed.summed(torch.stack([v.float() for v in sums.values()])).tolist()
    means = {name: v / update.count for name, v in zip(sums, values, strict=True)}
    means["grad_norm"] = norm
    if all(map(math.isfinite, means.values())):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return means


def _parts(loss: Loss) -> tuple[Tensor, dict[str, Tensor]]:
    return loss.total, dict(loss.metrics)


def _rates(
    model: nn.Module, step: Step[Any], took: float, waited: float, peak: float | None
) -> dict[str, float]:
    """What the machine did; these names are TIMED."""
    values = {"tokens_per_s": step.num_tokens / took, "data_share": waited / took}
    if peak is not None:
        flops = training_flops(model, step.num_tokens, step.num_attended)
        values["mfu"] = flops / took / peak / distributed.size()
        values["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    else:
        values["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    assert TIMED.issuperset(values)
    return values


def _note(values: Mapping[str, float]) -> str:
    shown = [f"loss {values['loss']:.3f}"]
    if "reward" in values:
        shown.append(f"reward {values['reward']:.3f}")
    shown.append(f"{values['tokens_per_s']:,.0f} tok/s")
    if "mfu" in values:
        shown.append(f"MFU {values['mfu']:.1%}")
    return " · ".join(shown)
