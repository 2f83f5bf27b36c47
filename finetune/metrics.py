"""A run's figures, a line a step: metrics.jsonl, what the machine did apart from them, and
TensorBoard's events where it is installed."""

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from pipeline.core import storage

# What depends on the machine goes to a file of its own: metrics.jsonl is part of a result's hash.
TIMED = frozenset({"tokens_per_s", "data_share", "mfu", "memory_gb"})
CURVES = ("loss", "reward", "kl", "margin", "accuracy")  # and what is measured on held-out data
_BLOCKS = "▁▂▃▄▅▆▇█"
METRICS, RATES, EVENTS = "metrics.jsonl", "rates.jsonl", "tensorboard"


class MetricsLog:
    """Both files, cut back on resume to what the checkpoint knows. `write` False only keeps the
    rows (a worker that is not the first)."""

    def __init__(self, folder: Path, steps_done: int, *, write: bool = True) -> None:
        self.folder, self.write = folder, write
        self.rows = read_rows(folder / METRICS, steps_done)
        if write:
            for name in (METRICS, RATES):
                _cut_back(folder / name, steps_done)
        self._events = _event_writer(folder / EVENTS, steps_done) if write else None

    def append(self, row: Mapping[str, float]) -> None:
        self.rows.append(dict(row))
        if not self.write:
            return
        for name, timed in ((METRICS, False), (RATES, True)):
            part = {k: v for k, v in row.items() if k == "step" or (k in TIMED) == timed}
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(part) + "\n")
        if self._events is not None:
            for key, value in row.items():
                self._events.add_scalar(key, value, int(row["step"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._events is not None:
            self._events.close()


def curves(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """The curves of a run, a line each, as somebody sees them in a terminal: the first and the last
    value, and between them each part's mean."""
    seen = {key for row in rows for key in row}
    names = [key for key in CURVES if key in seen]
    names += sorted(key for key in seen if key.startswith("heldout"))
    wide = max(map(len, names), default=0)
    lines: list[str] = []
    for name in names:
        values = [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]
        if len(values) > 1:
            lines.append(f"{name:<{wide}} {values[0]:10.4g} {_blocks(values)} {values[-1]:.4g}")
    return lines


def _blocks(values: Sequence[float], width: int = 48) -> str:
    edges = sorted({round(i * len(values) / width) for i in range(width + 1)})
    means = [statistics.mean(values[low:high]) for low, high in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(_BLOCKS[round((m - low) / ((high - low) or 1.0) * 7)] for m in means)


def read_rows(path: Path, last_step: float = math.inf) -> list[dict[str, float]]:
    """The rows up to this step; what a kill tore is left out."""
    if not path.exists() or last_step == 0:
        return []
    rows = (
        _row_or_none(line)
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    )
    return [row for row in rows if row is not None and row["step"] <= last_step]


def _cut_back(path: Path, steps_done: int) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in read_rows(path, steps_done))
    storage.write_bytes(str(path), lines.encode())


def _row_or_none(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # the kill tore the last line
        return None
    is_row = isinstance(row, dict) and isinstance(cast(dict[str, Any], row).get("step"), int)
    return cast(dict[str, float], row) if is_row else None


def _event_writer(folder: Path, steps_done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # an extra
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=steps_done + 1)
