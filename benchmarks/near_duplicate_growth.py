"""How each step of dedupe grows with the documents, as a table of processor seconds."""

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
