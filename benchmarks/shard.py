"""Join, global shuffle and Parquet shards against Hugging Face datasets and polars, one core each.

    .venv/bin/python benchmarks/shard.py [--docs 100000] [--rounds 3] [--ours-only] [--no-row]

Generated documents (generated_documents.py), as many shards on both sides, zstd. Ours also joins
two sidecars, checks every digest and keeps the order at any number of workers; redaction, which the
peers have not, is off in the row and timed beside it. Peers run in an environment of their own.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import pyarrow as pa
import pyarrow.parquet as pq
from generated_documents import plan
from near_duplicates import documents_of, make_data, watched
from peers import environment
from rows import Row, record, row

from pipeline.core.config import RunConfig
from pipeline.core.manifest import StageOutput, describe_file, read_manifest
from pipeline.core.remote import InlineRuntime
from pipeline.dedupe import SCHEMA as DEDUPE_SCHEMA
from pipeline.shard import ShardConfig, run_shard

SCRIPT = "shard.py"
DATASETS, POLARS = "5.2.0", "2.1.0"
HERE = Path(__file__).resolve().parent
SEED = 1
ROWS = 20_000  # in an output shard, on both sides
REDACTED = "ours, with redaction"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3, help="of each side, in turn")
    parser.add_argument("--ours-only", action="store_true", help="no peers, so no row")
    parser.add_argument("--no-row", action="store_true", help="leave docs/benchmarks.json alone")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.side:
        return run_side(*options.side)
    with tempfile.TemporaryDirectory(prefix="shard-") as name:
        found = compare(options, Path(name))
    for r in found:
        print(f"{r.what}: {r.ours} against {r.peer} {r.theirs} {r.unit} (ratio {r.ratio})")
    if found and not options.no_row:
        record(found)
    return 0


def compare(options: argparse.Namespace, folder: Path) -> list[Row]:
    data = folder / "data"
    megabytes = prepare(data, options.docs)
    commands = {
        "ours": [sys.executable, __file__, "--side", str(data), "plain"],
        REDACTED: [sys.executable, __file__, "--side", str(data), "redact"],
    }
    if not options.ours_only:
        commands |= peer_commands(data)
    seconds: dict[str, list[float]] = {side: [] for side in commands}
    for turn in range(options.rounds):
        for side, command in commands.items():
            work = folder / "work"
            took, cpu_s, peak_mb = watched([*command, str(work)])
            check(work, options.docs)
            shutil.rmtree(work)
            seconds[side].append(took)
            print(
                f"round {turn + 1} of {options.rounds}, {side}: {megabytes / took:.1f} MB/s of text"
                f" ({took:.1f} s, processor {cpu_s:.1f} s, peak {peak_mb:,.0f} MB)",
                flush=True,
            )
    speeds = {side: megabytes / statistics.median(found) for side, found in seconds.items()}
    unit = f"MB of text/s, {options.docs:,} documents ({megabytes:,.0f} MB), 1 core"
    peers = {"datasets": DATASETS, "polars (all in memory)": POLARS}
    return [
        row("shard", SCRIPT, (name, version), speeds["ours"], speeds[name], unit)
        for name, version in peers.items()
        if name in speeds
    ]


def prepare(data: Path, num_docs: int) -> float:
    """The manifests that extract, quality and dedupe would leave, and the peers' input: the same
    files without the column of signals, whose type they lack. MB of text."""
    make_data(data, plan(num_docs, SEED))
    docs = read_manifest((data / "extract.url").read_text())
    output = StageOutput.of(str(data / "data"), "dedupe", 1, {"of": "generated"}, {})
    (data / "plain").mkdir()
    entries, num_bytes = [], 0
    for number, url in enumerate(documents_of(data)):
        table = pq.read_table(url)
        num_bytes += sum(len(text.as_buffer()) for text in table["text"])
        name = f"dedupe-{number:05d}.parquet"
        Path(output.path(name)).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(nothing_removed(table["doc_id"]), output.path(name))
        entries.append(describe_file(output.path(name), name, len(table)))
        plain = table.drop_columns(["signals"]).replace_schema_metadata(None)
        pq.write_table(plain, data / "plain" / f"{number:05d}.parquet", compression="zstd")
    manifest = output.commit(entries, docs.counts, started=0.0)
    (data / "dedupe.url").write_text(manifest.url)
    return num_bytes / 1e6


def nothing_removed(ids: pa.ChunkedArray) -> pa.Table:
    columns = {
        "doc_id": ids,
        "judged": pa.array([True] * len(ids)),
        "cluster": ids,
        "removed_lines": pa.array([[]] * len(ids), pa.list_(pa.int32())),
    }
    none = {
        field.name: pa.nulls(len(ids), field.type)
        for field in DEDUPE_SCHEMA
        if field.name not in columns
    }
    everything = columns | none
    return pa.table({n: everything[n] for n in DEDUPE_SCHEMA.names}, schema=DEDUPE_SCHEMA)


def peer_commands(data: Path) -> dict[str, list[str]]:
    packages = (f"datasets=={DATASETS}", f"polars=={POLARS}")
    python = environment(f"shard-{DATASETS}-{POLARS}", packages)
    script, source = str(HERE / "shard_peers.py"), str(data / "plain")
    return {
        "datasets": [python, script, "datasets", source, str(ROWS)],
        "polars (all in memory)": [python, script, "polars", source, str(ROWS)],
    }


def run_side(folder: str, mode: str, work: str) -> int:
    """Ours, on one core; the shards' folder is named in `work`/shards."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    urls = [
        (Path(folder) / f"{stage}.url").read_text() for stage in ("extract", "quality", "dedupe")
    ]
    docs, quality, dedupe = map(read_manifest, urls)
    config = ShardConfig(
        seed=SEED, heldout_fraction=0, max_rows_per_shard=ROWS, redact=mode == "redact"
    )
    manifest = run_shard(config, docs, quality, dedupe, RunConfig(root=work), InlineRuntime())
    files = [manifest.file_url(e.name) for e in manifest.files if e.name.startswith("train")]
    (Path(work) / "shards.json").write_text(json.dumps(files))
    return 0


def check(work: Path, num_docs: int) -> None:
    """All documents are there once, in another order than before."""
    ids: list[str] = []
    for file in json.loads((work / "shards.json").read_text()):
        ids += pq.read_table(file, columns=["doc_id"])["doc_id"].to_pylist()
    assert len(set(ids)) == len(ids) == num_docs, (len(set(ids)), len(ids), num_docs)
    number = [int(one[16:], 16) for one in ids]
    assert number != sorted(number)


if __name__ == "__main__":
    raise SystemExit(main())
