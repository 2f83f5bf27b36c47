"""How good and how fast the judging is: languages, personal data, classifier, rules, steps.

    .venv/bin/python benchmarks/quality.py [--only PART …] [--pages 300] [--rounds 3] [--no-row]

The peers run in environments of their own, on the same texts. Speeds are of one core.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import quality_labels
import quality_language
import quality_pii
import quality_steps
from rows import Row, record, record_table

Part = Callable[[], tuple[list[Row], list[tuple[str, str, str]]]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=300, help="of WCXB, for the speeds")
    parser.add_argument("--rounds", type=int, default=3, help="of each speed")
    parser.add_argument("--only", nargs="*", default=[], help="some of the parts; none recorded")
    parser.add_argument("--no-row", action="store_true", help="print, and leave docs/ alone")
    options = parser.parse_args(argv)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    parts = _parts(options)
    if unknown := set(options.only) - set(parts):
        parser.error(f"--only {' '.join(sorted(unknown))}: the parts are {', '.join(parts)}")
    rows: list[Row] = []
    tables: list[tuple[str, str, str]] = []
    for name, part in parts.items():
        if options.only and name not in options.only:
            continue
        started = time.monotonic()
        more_rows, more_tables = part()
        rows += more_rows
        tables += more_tables
        for _, title, text in more_tables:
            print(f"\n## {title}\n\n{text}")
        for r in more_rows:
            print(f"{r.what}: {r.ours} against {r.peer} {r.theirs} {r.unit} (ratio {r.ratio})")
        print(f"({name}: {time.monotonic() - started:.0f} s)", flush=True)
    if not options.no_row and not options.only:
        record(rows)
        for name, title, text in tables:
            record_table(name, title, text)
    return 0


def _parts(options: argparse.Namespace) -> dict[str, Part]:
    return {
        "language": quality_language.compare,
        "pii": quality_pii.compare,
        "classifier": quality_labels.compare_classifier,
        "decontamination": quality_labels.compare_decontamination,
        "steps": lambda: quality_steps.compare_steps(options.pages, options.rounds),
        "rules": lambda: quality_steps.compare_rules(options.pages, options.rounds),
    }


if __name__ == "__main__":
    sys.exit(main())
