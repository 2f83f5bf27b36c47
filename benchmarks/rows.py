"""One row a figure in docs/benchmarks.json, and docs/benchmarks.md made from them."""

import dataclasses
import datetime as dt
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.commit import code_commit

DOCS = Path(__file__).resolve().parents[1] / "docs"
_HEAD = """\
# Benchmarks

Made by `benchmarks/rows.py` from `benchmarks.json`; each row by the script named in it, which
anyone can run. Ratio over 1: ours is better. A figure that missed its mark stands here like the
others.

"""


@dataclasses.dataclass(frozen=True)
class Row:
    """`ours` and `theirs` in `unit`; `ratio` over 1 = ours is better."""

    what: str
    script: str
    peer: str
    peer_version: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    machine: str
    date: str
    commit: str


def row(
    what: str,
    script: str,
    peer: tuple[str, str],
    ours: float,
    theirs: float,
    unit: str,
    *,
    less_is_better: bool = False,
    machine: str | None = None,
) -> Row:
    """A row dated today. `peer` is (name, version)."""
    ratio = theirs / ours if less_is_better else ours / theirs
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return Row(
        what, script, *peer, round(ours, 4), round(theirs, 4), unit, round(ratio, 3),
        machine or this_machine(), today, code_commit(),
    )  # fmt: skip


def this_machine() -> str:
    return f"{os.cpu_count()} cores {platform.machine()}"


def record(rows: Sequence[Row]) -> None:
    """Replace older rows of the same script and machine, and write the page anew."""
    path = DOCS / "benchmarks.json"
    known = json.loads(path.read_text()) if path.exists() else []
    mine = {(r.script, r.machine) for r in rows}
    kept = [entry for entry in known if (entry["script"], entry["machine"]) not in mine]
    entries = kept + [dataclasses.asdict(r) for r in rows]
    path.write_text(json.dumps(entries, indent=1) + "\n")
    _write_page()


def record_table(name: str, title: str, text: str) -> None:
    """Keep a script's table (Markdown) as docs/tables/NAME.md; the page shows it below the rows."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    path = DOCS / "tables" / f"{name}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"## {title}\n\n{this_machine()}, {today}, {code_commit()}\n\n{text.strip()}\n")
    _write_page()


def _write_page() -> None:
    rows = json.loads((DOCS / "benchmarks.json").read_text())
    tables = [path.read_text() for path in sorted((DOCS / "tables").glob("*.md"))]
    (DOCS / "benchmarks.md").write_text("\n".join([_HEAD + _table(rows), *tables]))


def _table(entries: Sequence[dict[str, object]]) -> str:
    names = [field.name for field in dataclasses.fields(Row)]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(str(entry[name]) for name in names) + " |" for entry in entries]
    return "\n".join(lines) + "\n"
