"""The facts of the stages as plain rows, for a terminal's table and for the page of the report."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from eval.compression import MODEL, UNIFORM, XZ, XZ_PRIMED, ZLIB, ZSTD, ZSTD_PRIMED

_NOTES = {
    MODEL: "each document alone; its parameters hold what it learnt from the training text",
    ZLIB: "each document alone, no container",
    XZ: "each document alone, no container",
    ZSTD: "each document alone, no container",
    XZ_PRIMED: "has read the training text and the other held-out documents",
    ZSTD_PRIMED: "has the training text as its dictionary",
    UNIFORM: "knows nothing",
}

_GATE_HEADER = (
    "test",
    "champion",
    "challenger",
    "difference",
    "interval",
    "must be",
    "detectable",
    "holds",
)

Row = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text; each row is as long as the header."""

    header: Row
    rows: tuple[Row, ...]


def compression_rows(facts: Mapping[str, Any]) -> Table:
    """Compressors from the best to the worst; the model's row says how many bytes it carries."""
    weight = _megabytes(facts["parameter_bytes_16bit"])
    rows = [
        (name, f"{bits:.3f}", _NOTES[name] + f" ({weight} at 16 bit)" * (name == MODEL))
        for name, bits in sorted(facts["bits_per_byte"].items(), key=lambda entry: entry[1])
    ]
    return Table(("compressor", "bits per byte", "note"), tuple(rows))


def summary_rows(facts: Mapping[str, Any]) -> Table:
    """One row a task and metric of an "evaluate" output."""
    rows = [
        (
            entry["task"],
            entry["metric"],
            f"{entry['mean']:.4f}",
            _between(entry["low"], entry["high"]),
            str(entry["num_items"]),
        )
        for entry in facts["summary"]
    ]
    return Table(("task", "metric", "mean", "95% interval", "items"), tuple(rows))


def redteam_rows(facts: Mapping[str, Any]) -> Table:
    """One row a transform of an "evaluate" output: good / bad / unclear, canary and benign."""
    rows = [
        (
            entry["transform"],
            *(
                str(entry[f"{kind}_{grade}"])
                for kind in ("canary", "benign")
                for grade in ("good", "bad", "unclear")
            ),
        )
        for entry in facts["redteam"]
    ]
    header = ("transform", "canary good", "bad", "unclear", "benign good", "bad", "unclear")
    return Table(header, tuple(rows))


def gate_rows(facts: Mapping[str, Any]) -> Table:
    """One row a test of a "gate" output, then the win rate, which decides nothing."""
    rows = [_test_row(outcome) for outcome in facts["tests"]]
    benign = facts.get("benign_bad", {})
    if benign.get("challenger") is not None:
        old, new = benign["champion"], benign["challenger"]
        name = "red team: BAD rate, benign controls (refused without need)"
        rows.append(
            (name, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}", "", "", "", "shown only")
        )
    shown = facts["win_rate"]
    if shown.get("win_rate") is not None:
        interval = _between(shown["low"], shown["high"])
        rate = f"{shown['win_rate']:.4f}"
        rows.append(("reward model: win rate", "", "", rate, interval, "", "", "shown only"))
    return Table(_GATE_HEADER, tuple(rows))


def _test_row(outcome: Mapping[str, Any]) -> Row:
    test, found = outcome["test"], outcome["interval"]
    wanted = f"{'<' if test['below'] else '>'} {test['limit']:g}"
    if found is None:
        return (test["name"], "", "", "", "", wanted, "", "too few items")
    return (
        test["name"],
        f"{outcome['champion']:.4f}",
        f"{outcome['challenger']:.4f}",
        f"{found['mean']:+.4f}",
        _between(found["low"], found["high"]),
        wanted,
        f"{outcome['minimum_detectable_effect']:.4f}",
        "yes" if outcome["holds"] else "no",
    )


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
