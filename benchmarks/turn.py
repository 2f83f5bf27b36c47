"""What a finished `flywheel demo` is worth: its figures against their rivals.

    .venv/bin/python benchmarks/turn.py [--config FILE] [section.key=value ...]

Trains nothing: reads the manifests of the run.
"""

import argparse
import json
import platform
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import zstandard
from rows import Row, record, row

from finetune.reward import PAIRS
from infra import settings
from infra.base import finished_base
from infra.cli import DEMO_CONFIG
from infra.weekly import finished_week

SCRIPT = "turn.py"
_VERSIONS = {
    "zlib": zlib.ZLIB_RUNTIME_VERSION,
    "xz": f"liblzma of Python {platform.python_version()}",
    "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
    "uniform": "-",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=DEMO_CONFIG)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    config = settings.load(parser.parse_args(argv))
    base, week = finished_base(config), finished_week(config)
    rows = [*compression(base.compression.facts), *labels(week)]
    record(rows)
    for r in rows:
        print(f"{r.what}: {r.ours} against {r.peer} {r.theirs} {r.unit} (ratio {r.ratio})")
    return 0


def compression(facts: dict[str, dict[str, float]]) -> list[Row]:
    values = facts["bits_per_byte"]
    return [
        row(
            "pretrain",
            SCRIPT,
            (name, _VERSIONS.get(name.split()[0], "-")),
            values["model"],
            theirs,
            "bits per byte",
            less_is_better=True,
        )
        for name, theirs in values.items()
        if name != "model"
    ]


def labels(week: object) -> list[Row]:
    pairs = _json(week.reward, PAIRS)
    model, length = (_mean(p[k] for p in pairs) for k in ("model", "length"))
    return [
        row("reward", SCRIPT, ("length alone", "-"), model, length, "share of pairs right"),
    ]  # rewards have no zero, so RLHF's has no ratio: the report shows its difference


def _json(manifest: object, name: str) -> list[dict[str, float]]:
    return json.loads(Path(manifest.file_url(name)).read_text())


def _mean(values: object) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


if __name__ == "__main__":
    sys.exit(main())
