"""The whole corpus, from WET and HTML to shards, over 10 GB of text: processor hours a terabyte.

    .venv/bin/python benchmarks/soak.py [--gb 10] [--workers 2] [--folder FOLDER] [--no-row]

Text: the sentences of 151 books in random order (soak_data.py), and the books, PEPs and the Rust
book as they are. HTML: the 1,497 pages of WCXB, by the cascade. Beside it stand the costs that
datatrove (signatures alone, huggingface/datatrove#298) and data-juicer publish for a terabyte.
Needs four times the disk.
"""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import pyarrow.parquet as pq
from extract_pages import wcxb
from rows import Row, record, record_table, row
from soak_data import (
    SoakTask,
    sentences,
    write_evaluation_set,
    write_generated,
    write_pages,
    write_real,
)

from infra.corpus import Corpus, run_corpus
from pipeline.core.config import Config
from pipeline.core.manifest import Manifest

SCRIPT = "soak.py"
FILE_BYTES = 200_000_000
PAGES_PER_FILE = 250
_HEAD = (
    "stage",
    "rows in",
    "rows out",
    "processor s",
    "processor h a TB",
    "MB/s a core",
    "peak MB",
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One stage: what it took for `num_bytes` of text (of HTML, in extract's second line)."""

    stage: str
    manifest: Manifest
    num_bytes: int

    @property
    def hours_per_tb(self) -> float:
        return self.manifest.run["cpu_seconds"] / 3600 / (self.num_bytes / 1e12)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=10, help="of generated text")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="for the files; by default a temporary one")
    parser.add_argument("--no-row", action="store_true", help="leave docs/benchmarks.json alone")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=options.folder) as name:
        num_docs, num_bytes = make_text(name, options.gb, options.workers)
        started, before = time.time(), driver_seconds()
        corpus = run_corpus(config_of(name, "text", options.workers))
        seconds, driver_s = time.time() - started, driver_seconds() - before
        assert corpus.extract.counts.rows_in == num_docs
        html_bytes = make_html(name)
        html = run_corpus(config_of(name, "html", options.workers))
        lines = lines_of(corpus, num_bytes)
        text = table(lines, html_lines(html, html_bytes), seconds, driver_s, num_bytes)
    print(text)
    if not options.no_row:
        record(rows(lines, driver_s, num_bytes))
        record_table("soak", "The whole corpus: processor hours a terabyte", text)
    return 0


def make_text(folder: str, gigabytes: float, workers: int) -> tuple[int, int]:
    """(documents, bytes of text)"""
    Path(folder, "text").mkdir()
    sentences(Path(folder, "text", "sentences.txt"))
    write_evaluation_set(f"{folder}/mmlu.parquet")
    number = max(1, round(gigabytes * 1e9 / FILE_BYTES))
    size = round(gigabytes * 1e9 / number)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        tasks = [SoakTask(f"{folder}/text", index, size, seed=1) for index in range(number)]
        found = [*pool.map(write_generated, tasks), write_real(f"{folder}/text")]
    docs, num_bytes = sum(one[1] for one in found), sum(one[2] for one in found)
    print(f"{docs:,} documents, {num_bytes / 1e9:.2f} GB of text in {number + 1} files", flush=True)
    return docs, num_bytes


def make_html(folder: str) -> int:
    Path(folder, "html").mkdir()
    pages = [page.payload for page in wcxb()]
    for index, at in enumerate(range(0, len(pages), PAGES_PER_FILE)):
        write_pages(f"{folder}/html", pages[at : at + PAGES_PER_FILE], f"pages-{index}")
    return sum(map(len, pages))


def config_of(folder: str, kind: str, workers: int) -> Config:
    sections = {
        "run": {"root": f"{folder}/data-{kind}", "backend": "local", "workers": workers},
        "ingest": {"warcs": [f"{folder}/{kind}/*.gz"]},
        "decontaminate": {"against": [f"{folder}/mmlu.parquet"]},
        "quality": {"rules": ["gopher", "c4", "fineweb"]},
    }
    return Config(sections, "the soak")


def driver_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def lines_of(corpus: Corpus, num_bytes: int) -> list[Line]:
    stages = [corpus.extract, corpus.quality, corpus.dedupe, corpus.overlaps, corpus.shard]
    names = ("extract (WET)", "quality", "dedupe", "decontaminate", "shard")
    return [Line(name, one, num_bytes) for name, one in zip(names, stages, strict=True) if one]


def html_lines(corpus: Corpus, html_bytes: int) -> list[Line]:
    """What extraction costs for a terabyte of HTML, and of the text in it."""
    docs = [pq.read_table(corpus.extract.file_url(one.name)) for one in corpus.extract.files]
    text = sum(len(t.encode()) for table in docs for t in table["text"].to_pylist())
    return [
        Line("extract (HTML), of HTML", corpus.extract, html_bytes),
        Line("extract (HTML), of its text", corpus.extract, text),
    ]


def table(
    lines: Sequence[Line], html: Sequence[Line], seconds: float, driver_s: float, num_bytes: int
) -> str:
    found = ["| " + " | ".join(_HEAD) + " |", "|" + " --- |" * len(_HEAD)]
    for line in [*lines, *html]:
        run, counts = line.manifest.run, line.manifest.counts
        cells = (
            line.stage,
            f"{counts.rows_in:,}",
            f"{counts.rows_out:,}",
            f"{run['cpu_seconds']:,.0f}",
            f"{line.hours_per_tb:,.1f}",
            f"{line.num_bytes / 1e6 / run['cpu_seconds']:,.1f}",
            f"{run['peak_mb']:,.0f}",
        )
        found.append("| " + " | ".join(cells) + " |")
    total = sum(line.hours_per_tb for line in lines) + driver_s / 3600 / (num_bytes / 1e12)
    found.append(
        f"\n{num_bytes / 1e9:.2f} GB of text in {seconds / 60:.1f} minutes; the driver took"
        f" {driver_s:,.0f} processor seconds of its own; all together {total:,.0f} processor hours"
        " a terabyte of text from WET on."
    )
    return "\n".join(found)


def rows(lines: Sequence[Line], driver_s: float, num_bytes: int) -> list[Row]:
    by_stage = {line.stage: line.hours_per_tb for line in lines}
    unit = f"processor hours a TB of text, {num_bytes / 1e9:.1f} GB soaked"
    all_stages = sum(by_stage.values()) + driver_s / 3600 / (num_bytes / 1e12)
    return [
        row("near-duplicates", SCRIPT, ("datatrove, signatures alone, as published", "#298"),
            by_stage["dedupe"], 305, f"{unit}; ours: all of dedupe", less_is_better=True),
        row("corpus", SCRIPT, ("data-juicer, as published", "docs/Distributed.md"),
            all_stages, 640, f"{unit}; ours: all stages from WET on", less_is_better=True),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
