"""Main text of HTML pages: pipeline.html_text against trafilatura and resiliparse, on WCXB.

    .venv/bin/python benchmarks/extract.py [--pages 300] [--rounds 3] [--folds FOLDER] [--no-row]

Quality: the benchmark's own metric, the F1 of lower-cased `\\w+` word counts, mean over its
development pages; each page is judged by weights trained on pages of other hosts. Speed: bytes in,
text out, processor time of one core, the engines in turn. `sure` draws the cascade's curve.
"""

import argparse
import functools
import importlib.metadata
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import trafilatura
from resiliparse.extract.html2text import extract_plain_text
from rows import Row, record, row

from pipeline.hidden_text import find_hidden
from pipeline.html_text import SURE, decode_html, extract_html
from pipeline.main_content import Model, bundled_model, main_content
from pipeline.page_tree import parse_page
from pipeline.page_types import PAGE_TYPES

SCRIPT = "extract.py"
ROOT = Path(__file__).resolve().parents[1]
FOLDS = 4
SURES = (0.0, 0.9, SURE, 2.0)
Engine = Callable[[bytes, Model], str]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=300, help="for the speed")
    parser.add_argument("--rounds", type=int, default=3, help="of all engines, in turn")
    parser.add_argument("--folds", type=Path, default=ROOT / "data/extract-folds")
    parser.add_argument("--no-row", action="store_true", help="leave docs/benchmarks.json alone")
    arguments = parser.parse_args(argv)
    models = fold_models(arguments.folds)
    with tempfile.TemporaryDirectory() as folder:
        pages = read_pages(folder)
        quality = {name: scores(engine, pages, models) for name, engine in ENGINES.items()}
        speed = speeds(pages, arguments.pages, arguments.rounds)
    print(table(quality, speed, pages))
    if not arguments.no_row:
        record(rows(quality, speed))
    return 0


# ------------------------------------------------------------------------------------ engines


def by_trafilatura(payload: bytes, model: Model) -> str:
    return trafilatura.extract(decode_html(payload, None), include_comments=False) or ""


def by_resiliparse(payload: bytes, model: Model) -> str:
    return extract_plain_text(decode_html(payload, None), main_content=True)


def by_ours(payload: bytes, model: Model, sure: float) -> str:
    tree = parse_page(decode_html(payload, None))
    return main_content(tree, find_hidden(tree).mask, model, sure=sure).text


def by_trafilatura_of_what_is_seen(payload: bytes, model: Model) -> str:
    return extract_html(payload, None, "balanced", "trafilatura").text


ENGINES: dict[str, Engine] = {
    "trafilatura": by_trafilatura,
    "resiliparse": by_resiliparse,
    "ours: trafilatura, hidden text out": by_trafilatura_of_what_is_seen,
    **{f"ours: sure {sure}": functools.partial(by_ours, sure=sure) for sure in SURES},
}
FAST, CASCADE = "ours: sure 0.0", f"ours: sure {SURE}"


# -------------------------------------------------------------------------------------- pages


@functools.cache
def read_pages(folder: str) -> list[tuple[str, str, Counter[str], bytes]]:
    """(host, type, words of the gold text, HTML) of each page that has a gold text."""
    import json
    import tarfile

    data = ROOT / os.environ.get("FLYWHEEL_DATA", "../shared/data")
    with tarfile.open(data / "html/wcxb.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    pages = []
    for path in sorted(Path(folder).glob("**/ground-truth/*.json")):
        truth = json.loads(path.read_text("utf-8"))
        gold = truth["ground_truth"].get("main_content")
        if gold is not None:
            host = urllib.parse.urlsplit(truth.get("url", "")).hostname or path.stem
            kind = truth["_internal"]["page_type"]["primary"]
            html = (path.parents[1] / "html" / f"{path.stem}.html").read_bytes()
            pages.append((host, kind, words(gold), html))
    return pages


def fold_models(folder: Path) -> list[Model]:
    """The models of the cross-validation, trained in an environment of their own if need be."""
    if not (folder / f"fold-{FOLDS - 1}.npz").exists():
        script = Path(__file__).with_name("train_extract.py")
        command = ["uv", "run", "--with", "lightgbm==4.7.0", "python", str(script)]
        options = ["--folds", str(FOLDS), "--out", str(folder), "--only-folds"]
        subprocess.run([*command, *options], check=True, cwd=ROOT)
    models = []
    for fold in range(FOLDS):
        with np.load(folder / f"fold-{fold}.npz") as arrays:
            models.append(Model.of_arrays(arrays))
    return models


def words(text: str) -> Counter[str]:
    import re

    return Counter(re.findall(r"\w+", text.lower()))


# ------------------------------------------------------------------------------------- figures


def scores(engine: Engine, pages: Sequence, models: Sequence[Model]) -> list[float]:
    """F1 of each page; `fold_of` is train_extract.py's."""
    found = []
    for host, _, gold, html in pages:
        model = models[zlib.crc32(host.encode()) % FOLDS]
        got = words(engine(html, model))
        shared = sum((got & gold).values())
        found.append(2 * shared / (got.total() + gold.total()) if shared else 0.0)
    return found


def speeds(pages: Sequence, number: int, rounds: int) -> dict[str, float]:
    """Pages per processor second: the median of the rounds."""
    chosen = random.Random(1).sample(list(pages), min(number, len(pages)))
    model = bundled_model()
    seen: dict[str, list[float]] = {name: [] for name in ENGINES}
    for _ in range(rounds):
        for name, engine in ENGINES.items():
            started = time.process_time()
            for _, _, _, html in chosen:
                engine(html, model)
            seen[name].append(len(chosen) / (time.process_time() - started))
    return {name: statistics.median(values) for name, values in seen.items()}


def table(quality: dict[str, list[float]], speed: dict[str, float], pages: Sequence) -> str:
    lines = ["| engine | pages/s | F1 | " + " | ".join(PAGE_TYPES) + " |"]
    lines.append("|" + " --- |" * (3 + len(PAGE_TYPES)))
    for name, values in quality.items():
        by_type = [
            statistics.mean(v for v, page in zip(values, pages, strict=True) if page[1] == kind)
            for kind in PAGE_TYPES
        ]
        cells = [name, f"{speed[name]:.0f}", f"{statistics.mean(values):.4f}"]
        lines.append("| " + " | ".join([*cells, *(f"{v:.3f}" for v in by_type)]) + " |")
    return "\n".join(lines)


def rows(quality: dict[str, list[float]], speed: dict[str, float]) -> list[Row]:
    """Speed and quality of both engines of ours against both peers."""
    found = []
    for ours, label in ((FAST, "fast"), (CASCADE, "cascade")):
        for name in ("trafilatura", "resiliparse"):
            peer = (f"{name} against engine {label}", importlib.metadata.version(name))
            unit = "pages per processor second"
            found.append(row("extract", SCRIPT, peer, speed[ours], speed[name], unit))
            both = statistics.mean(quality[ours]), statistics.mean(quality[name])
            found.append(row("extract-f1", SCRIPT, peer, *both, "mean word F1, cross-validated"))
    return found


if __name__ == "__main__":
    sys.exit(main())
