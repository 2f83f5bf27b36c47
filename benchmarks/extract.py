"""Main text of HTML pages: pipeline.html_text against trafilatura and resiliparse.

    .venv/bin/python benchmarks/extract.py [--pages 300] [--rounds 3] [--only PART] [--no-row]

Parts: wcxb (word F1 by page type, and pages a second: the curve), articles (the article
extraction benchmark's shingles), mixed (a crawl of which a third is not wanted). Each page is
judged by weights trained on other hosts. Speed: bytes in, text out, processor time, in turn.
"""

import argparse
import functools
import importlib.metadata
import itertools
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import extract_articles
import extract_mixed
import numpy as np
import trafilatura
from extract_pages import FOLDS, ROOT, GoldPage, articles, fold_of, wcxb, words_of
from resiliparse.extract.html2text import extract_plain_text
from rows import Row, record, record_table, row

from pipeline.hidden_text import find_hidden
from pipeline.html_text import SURE, decode_html, extract_html
from pipeline.main_content import Model, bundled_model, main_content
from pipeline.page_tree import parse_page
from pipeline.page_types import PAGE_TYPES

SCRIPT = "extract.py"
PARTS = ("wcxb", "articles", "mixed")
SURES = (0.0, 0.8, 0.9, SURE, 2.0)
UNIT = "pages per processor second"
Engine = Callable[[bytes, Model], str]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=300, help="for the speed")
    parser.add_argument("--rounds", type=int, default=3, help="of all engines, in turn")
    parser.add_argument("--judged", type=int, help="so many pages for the quality; default: all")
    parser.add_argument("--only", choices=PARTS, action="append", help="leave the others out")
    parser.add_argument("--folds", type=Path, default=ROOT / "data/extract-folds")
    parser.add_argument("--no-row", action="store_true", help="leave docs/ alone")
    arguments = parser.parse_args(argv)
    parts = arguments.only or PARTS
    models = fold_models(arguments.folds)
    tables: list[str] = []
    rows: list[Row] = []
    for part in parts:
        made, table = RUN[part](models, arguments)
        rows += made
        tables.append(table)
        print(table, flush=True)
    if not arguments.no_row and set(parts) == set(PARTS):
        record(rows)
        record_table("extract", "Main text of HTML pages", "\n\n".join(tables))
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


FAST, CASCADE = "ours: fast (sure 0)", f"ours: cascade (sure {SURE})"
_NAMES = {0.0: FAST, SURE: CASCADE}
PEERS: dict[str, Engine] = {"trafilatura": by_trafilatura, "resiliparse": by_resiliparse}
ENGINES: dict[str, Engine] = {
    **PEERS,
    "ours: trafilatura, hidden text out": by_trafilatura_of_what_is_seen,
    **{
        _NAMES.get(sure, f"ours: sure {sure}"): functools.partial(by_ours, sure=sure)
        for sure in SURES
    },
}


def fold_models(folder: Path) -> list[Model]:
    """The models of the cross-validation, trained with LightGBM in an overlay of this environment
    if need be (some ten minutes)."""
    if not (folder / f"fold-{FOLDS - 1}.npz").exists():
        script = Path(__file__).with_name("train_extract.py")
        uv = Path(sys.executable).parent / "uv"
        command = [uv, "run", "--no-sync", "--with", "lightgbm==4.7.0", "python", script]
        options = ["--folds", str(FOLDS), "--out", folder, "--only-folds"]
        subprocess.run([*command, *options], check=True, cwd=ROOT)
    models = []
    for fold in range(FOLDS):
        with np.load(folder / f"fold-{fold}.npz") as arrays:
            models.append(Model.of_arrays(arrays))
    return models


# --------------------------------------------------------------------------------------- wcxb


def run_wcxb(models: Sequence[Model], arguments: argparse.Namespace) -> tuple[list[Row], str]:
    pages = sample(list(wcxb()), arguments.judged)
    quality = {name: scores(engine, pages, models) for name, engine in ENGINES.items()}
    speed = speeds(pages, arguments.pages, arguments.rounds)
    return wcxb_rows(quality, speed), "\n\n".join(
        [
            (
                f"WCXB, {len(pages)} pages: mean word F1 (cross-validated), and {UNIT} of"
                f" {min(arguments.pages, len(pages))} of them. `sure`: where the first judgement"
                " promises less, the second is asked."
            ),
            f1_table(quality, speed, pages),
            f"The same engines, {UNIT} by page type:",
            speed_table(speed),
        ]
    )


def sample(pages: Sequence[GoldPage], number: int | None) -> list[GoldPage]:
    """So many of them, always the same; all for None."""
    number = len(pages) if number is None else min(number, len(pages))
    return random.Random(1).sample(list(pages), number) if number < len(pages) else list(pages)


def scores(engine: Engine, pages: Sequence[GoldPage], models: Sequence[Model]) -> list[float]:
    """F1 of lower-cased word counts of each page: the benchmark's own metric."""
    found = []
    for page in pages:
        gold = Counter(words_of(page.gold))
        got = Counter(words_of(engine(page.payload, models[fold_of(page.host)])))
        shared = (got & gold).total()
        found.append(2 * shared / (got.total() + gold.total()) if shared else 0.0)
    return found


def speeds(pages: Sequence[GoldPage], number: int, rounds: int) -> dict[str, dict[str, float]]:
    """Pages per processor second, of all ("") and of each type: the median of the rounds."""
    chosen = sample(pages, number)
    number_of = Counter(page.kind for page in chosen) + Counter({"": len(chosen)})
    model = bundled_model()
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in ENGINES}
    for _ in range(rounds):
        for name, engine in ENGINES.items():
            spent: Counter[str] = Counter()
            for page in chosen:
                started = time.process_time()
                engine(page.payload, model)
                spent[page.kind] += time.process_time() - started
            spent[""] = sum(spent.values())
            seen[name].append({kind: number_of[kind] / spent[kind] for kind in number_of})
    return {
        name: {kind: statistics.median(one[kind] for one in found) for kind in number_of}
        for name, found in seen.items()
    }


def f1_table(
    quality: dict[str, list[float]],
    speed: dict[str, dict[str, float]],
    pages: Sequence[GoldPage],
) -> str:
    lines = ["| engine | pages/s | F1 | " + " | ".join(PAGE_TYPES) + " |"]
    lines.append("|" + " --- |" * (3 + len(PAGE_TYPES)))
    for name, values in quality.items():
        cells = [name, f"{speed[name]['']:.0f}", f"{statistics.mean(values):.4f}"]
        for kind in PAGE_TYPES:
            of_kind = [v for v, page in zip(values, pages, strict=True) if page.kind == kind]
            cells.append(f"{statistics.mean(of_kind):.3f}" if of_kind else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed_table(speed: dict[str, dict[str, float]]) -> str:
    lines = ["| engine | " + " | ".join(PAGE_TYPES) + " |"]
    lines.append("|" + " --- |" * (1 + len(PAGE_TYPES)))
    for name, found in speed.items():
        cells = [f"{found[kind]:.0f}" if kind in found else "-" for kind in PAGE_TYPES]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def wcxb_rows(quality: dict[str, list[float]], speed: dict[str, dict[str, float]]) -> list[Row]:
    """Speed and quality of both engines of ours against both peers."""
    found = []
    for (ours, label), name in itertools.product(((FAST, "fast"), (CASCADE, "cascade")), PEERS):
        peer = peer_of(name, label)
        found.append(row("extract", SCRIPT, peer, speed[ours][""], speed[name][""], UNIT))
        both = statistics.mean(quality[ours]), statistics.mean(quality[name])
        found.append(row("extract-f1", SCRIPT, peer, *both, "mean word F1, cross-validated"))
    return found


def peer_of(name: str, label: str) -> tuple[str, str]:
    return f"{name} against engine {label}", importlib.metadata.version(name)


# ---------------------------------------------------------------------------- the other parts


def run_articles(models: Sequence[Model], arguments: argparse.Namespace) -> tuple[list[Row], str]:
    """All weights were trained on WCXB; a host that stands in both is judged by its fold."""
    pages = sample(list(articles()), arguments.judged)
    found = {
        name: extract_articles.evaluate(
            [(page.gold, ENGINES[name](page.payload, models[fold_of(page.host)])) for page in pages]
        )
        for name in (*PEERS, FAST, CASCADE)
    }
    rows = [
        row(
            "extract-f1", SCRIPT, peer_of(name, f"{label}, articles"), found[ours].f1,
            found[name].f1, "F1 of shingles, article extraction benchmark",
        )
        for ours, label in ((FAST, "fast"), (CASCADE, "cascade"))
        for name in PEERS
    ]  # fmt: skip
    return rows, extract_articles.table(found, len(pages))


def run_mixed(models: Sequence[Model], arguments: argparse.Namespace) -> tuple[list[Row], str]:
    crawl = extract_mixed.mixed_crawl(arguments.judged)
    found = extract_mixed.measure(crawl, arguments.rounds)
    peer = (
        "trafilatura on everything, a third unwanted",
        importlib.metadata.version("trafilatura"),
    )
    rows = [row("extract", SCRIPT, peer, found.ours, found.theirs, UNIT)]
    return rows, extract_mixed.table(crawl, found)


RUN = {"wcxb": run_wcxb, "articles": run_articles, "mixed": run_mixed}


if __name__ == "__main__":
    sys.exit(main())
