"""Where a training step's time goes: the sft-4M and grpo-4M of train.py, our side alone.

    python benchmarks/train_profile.py               # a minute; recorded

Needs the shared data (FLYWHEEL_DATA).
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as recording

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from rows import record_table
from train import GROUP, NEW_TOKENS, OURS, PROMPTS, RL_STEPS, prepare

from finetune import rollouts

KERNELS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("scaled_dot_product",),
    "copies and casts": ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::index_put"),
    "AdamW": ("adamw",),
}


def profile() -> str:
    """Shares of our time by kind of kernel; and for GRPO by what the step is doing."""
    lines = [f"| what | {' | '.join(KERNELS)} | the rest of the kernels | Python |",
             "| --- " * (len(KERNELS) + 3) + "|"]  # fmt: skip
    notes: list[str] = []
    sample, score = rollouts.TorchEngine.generate, rollouts.label_log_probs

    def named(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def within(*arguments: Any, **more: Any) -> Any:
            with record_function(name):
                return work(*arguments, **more)

        return within

    for name in ("sft-4M", "grpo-4M"):
        with tempfile.TemporaryDirectory() as folder:
            prepare(name, Path(folder))
            work = OURS[name.partition("-")[0]]
            rollouts.TorchEngine.generate = named("sampling", sample)
            rollouts.label_log_probs = named("reference", score)
            try:
                plain = work(Path(folder)).seconds
                with recording(activities=[ProfilerActivity.CPU]) as recorded:
                    seen = work(Path(folder))
            finally:
                rollouts.TorchEngine.generate, rollouts.label_log_probs = sample, score
        kernels = [e for e in recorded.key_averages() if e.key.startswith("aten::")]
        parts = dict.fromkeys([*KERNELS, "the rest of the kernels"], 0.0)
        for event in kernels:
            kind = next((k for k, keys in KERNELS.items() if any(x in event.key for x in keys)),
                        "the rest of the kernels")  # fmt: skip
            parts[kind] += event.self_cpu_time_total / 1e6
        left = max(0.0, seen.seconds - sum(parts.values()))
        lines.append(f"| {name} | {' | '.join(f'{t / seen.seconds:.0%}' for t in parts.values())} |"
                     f" {left / seen.seconds:.0%} |")  # fmt: skip
        notes.append(f"{name}: {plain:.1f} s without the profiler, {seen.seconds:.1f} s with it")
        phases = {e.key: e for e in recorded.key_averages() if e.key in ("sampling", "reference")}
        if phases:
            tokens = RL_STEPS * NEW_TOKENS
            spent = {key: e.cpu_time_total / 1e6 for key, e in phases.items()}
            within = [e for e in recorded.events() if e.name == "sampling"]
            calls = sum(
                e.name.startswith("aten::") and any(
                    w.time_range.start <= e.time_range.start < w.time_range.end for w in within
                )
                for e in recorded.events()
            )  # fmt: skip
            notes[-1] += (
                f"; sampling {spent['sampling'] / seen.seconds:.0%}, the reference's log-probs"
                f" {spent['reference'] / seen.seconds:.0%}, the update the rest; a token of"
                f" {PROMPTS * GROUP} answers takes {spent['sampling'] / tokens * 1e3:.1f} ms and"
                f" {calls / tokens:,.0f} operations of torch"
            )
    return "\n".join([*lines, "", ". ".join(notes) + "."])


if __name__ == "__main__":
    record_table("training-profile", "Where a training step's time goes", profile())
