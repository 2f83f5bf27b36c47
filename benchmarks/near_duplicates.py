"""The whole near-duplicate stage against datatrove's local pipeline and text-dedup's MinHash.

    .venv/bin/python benchmarks/near_duplicates.py [--docs 100000] [--growth] [--ours-only] [--no-row]

Generated documents (generated_documents.py); two processes each; the same threshold (0.8), bands
(14 x 8) and 5-grams. Peers run in environments of their own that this makes. `--growth`: ours alone
at a tenth, at all and at ten times as many. Recall is of planted pairs; precision by sets.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from generated_documents import Plan, Writer, plan
from near_duplicate_tables import Growth, Quality, growth_table, quality_table
from peers import DATATROVE, TEXT_DEDUP, datatrove_python, text_dedup_python
from rows import Row, record, record_table, row

from pipeline.core.config import RunConfig
from pipeline.core.manifest import Counts, StageOutput, describe_file, read_manifest
from pipeline.core.records import Document, read_table, schema_of, write_table
from pipeline.core.remote import open_runtime
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION, DedupeConfig, run_dedupe
from pipeline.quality import SCHEMA as SIGNALS_SCHEMA
from pipeline.text.ngrams import jaccard, shingles

SCRIPT = "near_duplicates.py"
HERE = Path(__file__).resolve().parent
SHARD = 20_000  # documents, some 54 MB of text
WORKERS = 2
SEED = 1
_CHECKED = 2000  # removals whose similarity is computed anew


@dataclasses.dataclass(frozen=True)
class Result:
    """`cluster[i]`: documents with equal numbers were found alike; `removed[i]`."""

    seconds: float
    cpu_s: float
    peak_mb: float
    cluster: np.ndarray
    removed: np.ndarray
    phases: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])  # cpu_s


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=int, default=100_000, help="for both sides")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of ours; peers run in the first ones"
    )
    parser.add_argument("--peer-rounds", type=int, default=1, help="datatrove takes long")
    parser.add_argument(
        "--growth", action="store_true", help="ours at docs / 10, docs and docs x 10, no peers"
    )
    parser.add_argument("--ours-only", action="store_true", help="no peers, so no row")
    parser.add_argument("--no-row", action="store_true", help="leave docs/benchmarks.json alone")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.side:
        return run_side(options.side)
    with tempfile.TemporaryDirectory(prefix="near-duplicates-") as name:
        found: list[Row] = []
        if options.growth:
            table = show_growth(options.docs, Path(name))
            if not options.no_row:
                record_table("near-duplicates-growth", "How near-duplicates grow", table)
        else:
            found = compare(options, Path(name))
    for r in found:
        print(f"{r.what}: {r.ours} against {r.peer} {r.theirs} {r.unit} (ratio {r.ratio})")
    if found and not options.no_row:
        record(found)
    return 0


def compare(options: argparse.Namespace, folder: Path) -> list[Row]:
    planned = plan(options.docs, SEED)
    data = folder / f"{options.docs}"
    make_data(data, planned)
    sides: dict[str, Callable[[Path], Result]] = {"ours": ours}
    if not options.ours_only:
        sides |= available_peers()
        write_jsonl(data)
    results: dict[str, list[Result]] = {side: [] for side in sides}
    for turn in range(options.rounds):
        for side, function in sides.items():
            if side != "ours" and turn >= options.peer_rounds:
                continue
            result = function(data)
            results[side].append(result)
            print(
                f"round {turn + 1} of {options.rounds}, {side}: {len(planned):,} documents in"
                f" {result.seconds:.1f} s ({len(planned) / result.seconds:,.0f} a second), processor"
                f" time {result.cpu_s:.1f} s, largest process {result.peak_mb:,.0f} MB"
                f" (load {os.getloadavg()[0]:.1f})",
                flush=True,
            )
    qualities = [quality_of(side, planned, results[side][-1], data) for side in sides]
    versions = {"datatrove": DATATROVE, "text-dedup": TEXT_DEDUP}
    speeds = {
        side: len(planned) / statistics.median(result.seconds for result in found)
        for side, found in results.items()
    }
    table = quality_table(
        qualities, speeds, {side: max(r.peak_mb for r in found) for side, found in results.items()}
    )
    print(table)
    if not (options.ours_only or options.no_row):
        record_table("near-duplicates", "Near-duplicates: recall, precision, memory", table)
    unit = f"documents/s, {options.docs:,} of a median of 300 words, {WORKERS} processes"
    return [
        row("near-duplicates", SCRIPT, (side, versions[side]), speeds["ours"], speeds[side], unit)
        for side in sides
        if side != "ours"
    ]


def available_peers() -> dict[str, Callable[[Path], Result]]:
    found: dict[str, Callable[[Path], Result]] = {}
    for name, make in (("datatrove", datatrove_python), ("text-dedup", text_dedup_python)):
        try:
            python = make()
        except subprocess.CalledProcessError as error:
            print(f"without {name}: its environment cannot be made ({error})", file=sys.stderr)
            continue
        found[name] = peer(name, python)
    return found


# ----------------------------------------------------------------------------------- data


def make_data(folder: Path, planned: Plan) -> None:
    """The manifests that extract and quality would leave, in `folder`/data."""
    started = time.time()
    starts = range(0, len(planned), SHARD)
    folder.mkdir(parents=True)
    with concurrent.futures.ProcessPoolExecutor(
        WORKERS, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        jobs = [pool.submit(make_shard, str(folder), planned, start) for start in starts]
        entries = [job.result() for job in jobs]
    counts = Counts(len(planned), len(planned))
    outputs = stage_outputs(str(folder))
    for output, found in zip(outputs, zip(*entries, strict=True), strict=True):
        manifest = output.commit(list(found), counts, started=0.0)
        (folder / f"{output.stage}.url").write_text(manifest.url)
    num_bytes = sum(entry.num_bytes for pair in entries for entry in pair[:1])
    print(
        f"{len(planned):,} documents, {planned.words.mean():.0f} words on average, {num_bytes / 1e6:,.0f}"
        f" MB of Parquet, made in {time.time() - started:.0f} s",
        flush=True,
    )


def stage_outputs(folder: str) -> tuple[StageOutput, StageOutput]:
    root = f"{folder}/data"
    return (
        StageOutput.of(root, "extract", 1, {"of": "generated"}, {}),
        StageOutput.of(root, "quality", 1, {"of": "generated"}, {}),
    )


def make_shard(folder: str, planned: Plan, start: int) -> tuple[Any, Any]:
    numbers = range(start, min(start + SHARD, len(planned)))
    ids = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}{number:016x}" for number in numbers]
    texts = list(Writer(planned).texts(numbers.start, numbers.stop))
    none = [""] * len(numbers)
    signals = pa.array([[]] * len(numbers), pa.map_(pa.string(), pa.float64()))
    columns: dict[str, Any] = {
        "doc_id": ids,
        "url": [f"http://host{number % 1000}.test/{number}" for number in numbers],
        "text": texts,
        "payload_sha256": [identity * 2 for identity in ids],
        "fetched_at": pa.array([0] * len(numbers), pa.timestamp("us", tz="UTC")),
        "warc_offset": [0] * len(numbers),
        "http_status": [200] * len(numbers),
        "signals": signals,
        "drop_reason": pa.nulls(len(numbers), pa.string()),
        "judged": np.ones(len(numbers), np.bool_),
        "language_score": np.ones(len(numbers)),
    }
    entries = []
    docs, quality = stage_outputs(folder)
    for output, schema, kind in (
        (docs, schema_of(Document), "docs"),
        (quality, SIGNALS_SCHEMA, "signals"),
    ):
        name = f"{kind}-{start // SHARD:05d}.parquet"
        table = pa.table({c: columns.get(c, none) for c in schema.names}, schema=schema)
        write_table(table, output.path(name))
        entries.append(describe_file(output.path(name), name, len(numbers)))
    return entries[0], entries[1]


def documents_of(data: Path) -> list[str]:
    """The files of documents, in order."""
    docs = read_manifest((data / "extract.url").read_text())
    return [docs.file_url(entry.name) for entry in docs.files]


def write_jsonl(data: Path) -> None:
    """What the peers read: a file for each process, the documents in order."""
    folder = data / "jsonl"
    folder.mkdir()
    urls = documents_of(data)
    total = sum(pq.read_metadata(url).num_rows for url in urls)
    number = 0
    files = [(folder / f"{part:05d}.jsonl").open("w") for part in range(WORKERS)]
    for url in urls:
        for text in read_table(url, Document.NAME, Document.VERSION)["text"].to_pylist():
            line = json.dumps({"text": text, "id": str(number)}, ensure_ascii=False)
            files[number * WORKERS // total].write(line + "\n")
            number += 1
    for file in files:
        file.close()


# ----------------------------------------------------------------------------------- sides


def watched(command: Sequence[str]) -> tuple[float, float, float]:
    """(seconds, processor seconds, MB of its largest process) of a command and what it starts, as
    seen twenty times a second: a process that is gone between two looks is counted to the first."""
    started = time.perf_counter()
    child = subprocess.Popen(command, env=environment())
    spent: dict[int, float] = {}
    peak = 0

    def look() -> None:
        nonlocal peak
        process = psutil.Process(child.pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                spent[one.pid] = times.user + times.system
                # What it shares (the interpreter's files) counts, too.
                peak = max(peak, one.memory_info().rss)

    while child.poll() is None:
        with contextlib.suppress(psutil.Error):
            look()
        time.sleep(0.05)
    seconds = time.perf_counter() - started
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")
    return seconds, sum(spent.values()), peak / 1e6


def environment() -> dict[str, str]:
    """For all sides: modules are compiled once, not by each process."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def ours(data: Path) -> Result:
    shutil.rmtree(data / "data" / "dedupe", ignore_errors=True)
    seconds, cpu_s, peak = watched([sys.executable, str(HERE / SCRIPT), "--side", str(data)])
    manifest = read_manifest((data / "dedupe.url").read_text())
    columns = ["doc_id", "cluster", "drop_reason"]
    tables = [
        read_table(manifest.file_url(entry.name), DEDUPE, DEDUPE_VERSION).select(columns)
        for entry in manifest.files
    ]
    table = pa.concat_tables(tables)
    places = {identity: index for index, identity in enumerate(table["doc_id"].to_pylist())}
    cluster = np.array([places[name] for name in table["cluster"].to_pylist()])
    removed = ~np.asarray(table["drop_reason"].is_null())
    return Result(seconds, cpu_s, peak, cluster, removed, manifest.run["phases"])


def run_side(folder: str) -> int:
    """Our side, as a process of its own."""
    data = Path(folder)
    run = RunConfig(root=str(data / "data"), backend="local", workers=WORKERS)
    docs, quality = (read_manifest((data / f"{s}.url").read_text()) for s in ("extract", "quality"))
    with open_runtime(run) as runtime:
        # Peers remove no lines, so ours is to do without, too.
        manifest = run_dedupe(DedupeConfig(line_min_docs=0), docs, quality, run, runtime)
    (data / "dedupe.url").write_text(manifest.url)
    return 0


def peer(name: str, python: str) -> Callable[[Path], Result]:
    def side(data: Path) -> Result:
        work = data / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        script = HERE / "near_duplicate_peers.py"
        command = [python, str(script), name, str(data / "jsonl"), str(work), str(WORKERS)]
        seconds, cpu_s, peak = watched(command)
        found = json.loads((work / "clusters.json").read_text())
        number = sum(1 for path in sorted((data / "jsonl").iterdir()) for _ in path.open())
        cluster, removed = np.arange(number), np.zeros(number, np.bool_)
        for members in found:  # the first of each is kept
            cluster[members] = members[0]
            removed[members[1:]] = True
        return Result(seconds, cpu_s, peak, cluster, removed)

    return side


# ----------------------------------------------------------------------------------- truth


def quality_of(side: str, planned: Plan, result: Result, data: Path) -> Quality:
    """Recall of planted pairs, by their similarity; precision of what was removed."""
    base, copy = planned.pairs.T
    together = result.cluster[base] == result.cluster[copy]
    similarity = planned.similarity[copy]
    at_least = similarity < 0.81
    rng = np.random.default_rng(SEED)
    # One pair in five is planted at 0.8; the even share of them is what a uniform draw has.
    uniform = ~at_least | (rng.random(len(copy)) < 0.05 / max(at_least.mean(), 1e-9))
    right = np.bincount(planned.base, minlength=len(planned))[planned.base] > 1
    removed = np.flatnonzero(result.removed)
    found = Quality(
        side,
        (float(together[uniform].mean()), int(uniform.sum())),
        (float(together[at_least].mean()), int(at_least.sum())),
        (float(right[removed].mean()), len(removed)),
        verified(data) if side == "ours" else "not looked at",
    )
    print(found.line, flush=True)
    return found


def verified(data: Path) -> str:
    """Each of 2,000 removals is compared with what stands for it by Python's sets of strings."""
    manifest = read_manifest((data / "dedupe.url").read_text())
    tables = [
        read_table(manifest.file_url(entry.name), DEDUPE, DEDUPE_VERSION)
        for entry in manifest.files
    ]
    table = pa.concat_tables(tables)
    removed = np.flatnonzero(~np.asarray(table["stands_for"].is_null()))
    rng = np.random.default_rng(SEED)
    chosen = rng.choice(removed, min(_CHECKED, len(removed)), replace=False)
    ids = {name: place for place, name in enumerate(table["doc_id"].to_pylist())}
    chosen_rows = table.take(pa.array(chosen)).to_pylist()
    wanted = {*chosen.tolist(), *(ids[row["stands_for"]] for row in chosen_rows)}
    texts = texts_of(data, sorted(wanted))
    good = exact = 0
    for place, found in zip(chosen.tolist(), chosen_rows, strict=True):
        sets = (shingles(texts[index], 5) for index in (place, ids[found["stands_for"]]))
        similarity = jaccard(*sets)
        good += similarity >= 0.8
        exact += similarity == found["similarity"]
    return f"{good:,} of {len(chosen):,}, {exact:,} as similar as is said"


def texts_of(data: Path, numbers: Sequence[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for shard, url in enumerate(documents_of(data)):
        mine = [number for number in numbers if number // SHARD == shard]
        if mine:
            texts = read_table(url, Document.NAME, Document.VERSION)["text"]
            rows = pa.array([number % SHARD for number in mine])
            found |= dict(zip(mine, texts.take(rows).to_pylist(), strict=True))
    return found


def show_growth(number: int, folder: Path) -> str:
    """Ours at a tenth, at all and at ten times as many documents: the table."""
    runs: list[Growth] = []
    for docs in (number // 10, number, number * 10):
        data = folder / f"growth-{docs}"
        planned = plan(docs, SEED)
        make_data(data, planned)
        result = ours(data)
        runs.append(Growth(docs, result.seconds, result.cpu_s, result.peak_mb, result.phases))
        found = quality_of("ours", planned, result, data)
        shutil.rmtree(data)
    table = f"{growth_table(runs)}\n\nOf {number * 10:,} documents, {found.line}"
    print(table, flush=True)
    return table


if __name__ == "__main__":
    sys.exit(main())
