"""What near_duplicates.py found, as tables: quality by side, and how each step of ours grows."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Growth:
    """One run: `phases` are the processor seconds of each step's tasks (Manifest.run)."""

    docs: int
    seconds: float
    cpu_s: float
    peak_mb: float
    phases: Mapping[str, float]

    def row(self, name: str) -> float:
        fixed = {
            "all, seconds": self.seconds,
            "all, processor seconds": self.cpu_s,
            "driver and start": self.cpu_s - sum(self.phases.values()),
            "largest process, MB": self.peak_mb,
        }
        return fixed[name] if name in fixed else self.phases.get(name, 0.0)


def growth_table(runs: Sequence[Growth]) -> str:
    """Markdown: a column a run, and between two runs how much more the larger took than by its
    documents alone (1 = linear)."""
    steps = [name for name in runs[-1].phases if any(run.phases.get(name, 0) for run in runs)]
    names = ["all, seconds", "all, processor seconds", "driver and start", *steps]
    pairs = list(itertools.pairwise(runs))
    head = ["documents", *(f"{run.docs:,}" for run in runs)]
    head += [f"{b.docs:,} against {a.docs:,}, each" for a, b in pairs]
    lines = [head, ["---"] * len(head)]
    for name in [*names, "largest process, MB"]:
        values = [run.row(name) for run in runs]
        factors = [
            f"{b.row(name) / a.row(name) * a.docs / b.docs:.2f}" if a.row(name) > 0 else "-"
            for a, b in pairs
        ]
        lines.append([name, *(f"{value:,.1f}" for value in values), *factors])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclasses.dataclass(frozen=True)
class Quality:
    """Each a share and of how many; `verified`: removals compared with what stands for them."""

    side: str
    uniform: tuple[float, int]  # planted pairs found, uniform on [0.8, 1]
    at_least: tuple[float, int]  # at 0.8
    planted: tuple[float, int]  # removed documents that have a planted like
    verified: str

    @property
    def line(self) -> str:
        return (
            f"{self.side}: recall {self.uniform[0]:.4f} of {self.uniform[1]:,} pairs uniform on"
            f" [0.8, 1]; {self.at_least[0]:.4f} of {self.at_least[1]:,} at 0.8; {self.planted[0]:.4f}"
            f" of {self.planted[1]:,} removed documents have a planted like; by sets of strings"
            f" 0.8 or more: {self.verified}"
        )


def quality_table(
    qualities: Sequence[Quality], speeds: Mapping[str, float], peaks_mb: Mapping[str, float]
) -> str:
    lines = [
        ["side", "documents/s", "largest process, MB", "recall, uniform on [0.8, 1]",
         "recall at 0.8", "removed", "removed with a planted like", "removals that are 0.8 alike"],
    ]  # fmt: skip
    lines.append(["---"] * len(lines[0]))
    lines += [
        [
            one.side,
            f"{speeds[one.side]:,.0f}",
            f"{peaks_mb[one.side]:,.0f}",
            f"{one.uniform[0]:.4f} of {one.uniform[1]:,}",
            f"{one.at_least[0]:.4f} of {one.at_least[1]:,}",
            f"{one.planted[1]:,}",
            f"{one.planted[0]:.4f}",
            one.verified,
        ]
        for one in qualities
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
