"""Phrases that may be triggers planted in a crawl: the entry point of later backdoor checks.

Listed are rare n-grams far more frequent in this crawl than in earlier ones, and those in which
near-duplicates differ from the documents that stand for them. News is listed, too: people judge.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Iterator
from typing import Any

import ada_url
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from pydantic import Field

from pipeline.core import storage
from pipeline.core.config import RunConfig, Section, operational
from pipeline.core.errors import UserError
from pipeline.core.manifest import (
    Counts,
    Manifest,
    ShardResult,
    StageOutput,
    describe_file,
    map_shards,
    read_manifest,
)
from pipeline.core.records import Document, read_table, with_version, write_table
from pipeline.core.remote import Runtime
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION
from pipeline.ngram_bursts import (
    TRIGGERS,
    Found,
    Rule,
    Sketch,
    collect,
    document_ngrams,
    ranked,
)

STAGE, VERSION = "trigger-scan", 1
RECORD, RECORD_VERSION = "Triggers", 1
SCHEMA = with_version(TRIGGERS, RECORD, RECORD_VERSION)
_SKETCH, _SKETCH_VERSION = "NgramSketch", 1
# Kept documents; of these, those that stand for near-duplicates; and the near-duplicates.
KEPT, STANDING, NEAR = "kept", "standing", "near-duplicates"
# Each list: its documents and the others they are held against. Which of two near-duplicates was
# kept, the planted or the plain one, is chance: so both ways.
_LISTS = {"new": (KEPT, "before"), "near": (NEAR, STANDING), "standing": (STANDING, NEAR)}
_NEAR_REASON = "near-duplicate"
_SKETCHED = ("sizes", "sketch_bits")  # what two sketches must share to be compared


class TriggerScanConfig(Section):
    enabled: bool = operational(False, description="whether flywheel corpus does this step")
    against: list[str] = operational(
        [], description="earlier trigger-scan outputs: what is usual; none: near-duplicates only"
    )
    sizes: list[int] = Field([1, 3], min_length=1, description="words in an n-gram")
    min_documents: int = Field(5, ge=1, description="with the n-gram, in this crawl")
    min_groups: int = Field(3, ge=1, description="hosts, or clusters of near-duplicates, it is in")
    max_share: float = Field(0.05, gt=0, le=1, description="of the documents: more is no secret")
    min_ratio: float = Field(20.0, gt=1, description="times as frequent as is usual")
    min_score: float = Field(
        25.0, ge=0, description="log-likelihood ratio: less may be chance, among so many n-grams"
    )
    max_listed: int = Field(1000, ge=1, description="of each list")
    sketch_bits: int = Field(
        22, ge=10, le=30, description="2^bits x 16 bytes in each worker, twice"
    )

    @property
    def rule(self) -> Rule:
        return Rule(
            tuple(self.sizes),
            self.min_documents,
            self.min_groups,
            self.max_share,
            self.min_ratio,
            self.min_score,
            self.max_listed,
        )

    def rule_of(self, name: str) -> Rule:
        """A phrase may be in all near-duplicates, and is then all the more suspect."""
        return self.rule if name == "new" else dataclasses.replace(self.rule, max_share=1.0)


@dataclasses.dataclass(frozen=True)
class ScanTask:
    """`sketches` are (kind, URL, sha256, documents), "before" of earlier crawls together; empty in
    the first pass, which makes them. `num_shards`: files that name who stands for others."""

    name: str
    docs_url: str
    dedupe_url: str
    folder: str
    config: TriggerScanConfig
    num_shards: int
    sketches: tuple[tuple[str, str, str, int], ...] = ()


def run_trigger_scan(
    config: TriggerScanConfig, docs: Manifest, dedupe: Manifest, run: RunConfig, runtime: Runtime
) -> Manifest:
    """TRIGGERS in `new.parquet` (against earlier crawls), `near.parquet` (in near-duplicates and
    not in those that stand for them) and `standing.parquet` (the other way). Facts: how many each
    list would have had without `max_listed`.

    Raises UserError for what is wrong in `against`.
    """
    earlier = [_read_earlier(url, config) for url in config.against]
    parents: dict[str, Manifest | str] = {"docs": docs, "dedupe": dedupe}
    parents |= {f"against-{index:05d}": manifest for index, manifest in enumerate(earlier)}
    output = StageOutput.of(run.root, STAGE, VERSION, config.identity(), parents)
    if done := output.finished():
        return done
    started = time.time()
    tasks = {
        f"{index:05d}": ScanTask(
            f"{index:05d}",
            docs.file_url(text.name),
            dedupe.file_url(sidecar.name),
            output.url,
            config,
            len(docs.files),
        )
        for index, (text, sidecar) in enumerate(zip(docs.files, dedupe.files, strict=True))
    }
    with output.lock():
        map_shards(runtime, output, "stand", name_standing, tasks)
        results = map_shards(runtime, output, "sketch", sketch_file, tasks)
        sketches = _add_up(output, config, list(tasks), results, earlier)
        second = {
            name: dataclasses.replace(task, sketches=sketches) for name, task in tasks.items()
        }
        map_shards(runtime, output, "collect", collect_file, second)
        total = Counts.total([result.counts for result in results])
        facts = _list_all(output, config, list(tasks), sketches, bool(earlier))
        names = [*(f"{name}.parquet" for name in _LISTS), f"sketch-{KEPT}.parquet"]
        entries = [describe_file(output.path(name), name) for name in names]
        return output.commit(entries, total, started=started, record=RECORD, facts=facts)


def _read_earlier(url: str, config: TriggerScanConfig) -> Manifest:
    manifest = read_manifest(url)
    mine = config.identity()
    if (manifest.stage, manifest.version) != (STAGE, VERSION):
        raise UserError(f"trigger_scan.against: {url} is no output of this version's trigger-scan")
    for name in _SKETCHED:
        if manifest.config[name] != mine[name]:
            raise UserError(
                f"trigger_scan.against: {url} has {name} = {manifest.config[name]}, this run"
                f" {mine[name]}; set trigger_scan.{name} to the same"
            )
    manifest.check_files()
    return manifest


def name_standing(task: ScanTask) -> ShardResult:
    """Write the hashes of the documents that stand for this shard's near-duplicates."""
    sidecar = read_table(task.dedupe_url, DEDUPE, DEDUPE_VERSION)
    rows = sidecar.select(["drop_reason", "stands_for"]).to_pylist()
    names = {row["stands_for"] for row in rows if row["drop_reason"] == _NEAR_REASON}
    hashes = np.unique(np.array([_hash(name) for name in names if name], np.uint64))
    schema = with_version(pa.schema([("hash", pa.uint64())]), _SKETCH, _SKETCH_VERSION)
    write_table(pa.table({"hash": hashes}, schema=schema), _standing_url(task.folder, task.name))
    return ShardResult((), Counts(0, 0))


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())


def _standing_url(folder: str, name: str) -> str:
    return storage.join(folder, f"standing-{name}.parquet")


@functools.lru_cache(maxsize=1)
def _standing(folder: str, num_shards: int) -> npt.NDArray[np.uint64]:
    """Ascending; 8 bytes each, once in each worker."""
    urls = [_standing_url(folder, f"{index:05d}") for index in range(num_shards)]
    parts = [np.asarray(read_table(url, _SKETCH, _SKETCH_VERSION)["hash"]) for url in urls]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))


def _rows(task: ScanTask) -> Iterator[tuple[tuple[str, ...], tuple[str, str, str, str]]]:
    """(its kinds, (doc_id, host, cluster, text))."""
    standing = _standing(task.folder, task.num_shards)
    documents = read_table(task.docs_url, Document.NAME, Document.VERSION)
    sidecar = read_table(task.dedupe_url, DEDUPE, DEDUPE_VERSION)
    columns = sidecar.select(["judged", "drop_reason", "cluster"]).to_pylist()
    rows = documents.select(["doc_id", "url", "text"]).to_pylist()
    for row, found in zip(rows, columns, strict=True):
        if not found["judged"] or found["drop_reason"] not in (None, _NEAR_REASON):
            continue
        kinds: tuple[str, ...] = (NEAR,) if found["drop_reason"] else (KEPT,)
        if kinds == (KEPT,) and np.isin(np.uint64(_hash(row["doc_id"])), standing):
            kinds = (KEPT, STANDING)
        host = str(ada_url.URL(row["url"]).hostname)
        yield kinds, (row["doc_id"], host, found["cluster"] or row["doc_id"], row["text"])


def sketch_file(task: ScanTask) -> ShardResult:
    """Facts: documents in each sketch."""
    bits, sizes = task.config.sketch_bits, task.config.sizes
    sketches = {kind: Sketch.empty(bits) for kind in (KEPT, STANDING, NEAR)}
    total = 0
    for kinds, (_, _, _, text) in _rows(task):
        ngrams = document_ngrams(text, sizes)
        total += 1
        for kind in kinds:
            sketches[kind] = sketches[kind].with_documents([ngrams])
    for kind, sketch in sketches.items():
        _write(storage.join(task.folder, f"sketch-{kind}-{task.name}.parquet"), sketch)
    numbers = {kind: sketch.documents for kind, sketch in sketches.items()}
    return ShardResult((), Counts(total, total), numbers)


def _write(url: str, sketch: Sketch) -> None:
    schema = with_version(pa.schema([("count", pa.uint32())]), _SKETCH, _SKETCH_VERSION)
    write_table(pa.table({"count": sketch.counts.ravel()}, schema=schema), url)


def _read(url: str, documents: int) -> Sketch:
    counts = np.asarray(read_table(url, _SKETCH, _SKETCH_VERSION)["count"])
    return Sketch(counts.reshape(Sketch.empty(0).counts.shape[0], -1), documents)


def _add_up(
    output: StageOutput,
    config: TriggerScanConfig,
    names: list[str],
    results: list[ShardResult],
    earlier: list[Manifest],
) -> tuple[tuple[str, str, str, int], ...]:
    """Two sketches in memory at a time."""
    found: list[tuple[str, str, str, int]] = []
    for kind in (KEPT, STANDING, NEAR):
        whole = Sketch.empty(config.sketch_bits)
        for name, result in zip(names, results, strict=True):
            part = output.path(f"sketch-{kind}-{name}.parquet")
            whole += _read(part, result.facts[kind])
        found.append(_stored(output, kind, whole))
    before = Sketch.empty(config.sketch_bits)
    for manifest in earlier:
        before += _read(manifest.file_url("sketch-kept.parquet"), manifest.facts["documents"])
    found.append(_stored(output, "before", before))
    return tuple(found)


def _stored(output: StageOutput, kind: str, sketch: Sketch) -> tuple[str, str, str, int]:
    url = output.path(f"sketch-{kind}.parquet")
    _write(url, sketch)
    return kind, url, describe_file(url, kind).sha256, sketch.documents


@functools.lru_cache(maxsize=4)
def _sketch_of(url: str, digest: str, documents: int) -> Sketch:
    """Once in each worker."""
    if describe_file(url, "sketch").sha256 != digest:
        raise UserError(f"{url} has been changed or damaged; run again: it is made anew")
    return _read(url, documents)


def collect_file(task: ScanTask) -> ShardResult:
    """What of this shard the sketches make suspect, as JSON, by list."""
    sketches = {kind: _sketch_of(*sketch) for kind, *sketch in task.sketches}
    rows = list(_rows(task))
    found: dict[str, dict[int, Found]] = {}
    for name, (kind, others) in _LISTS.items():
        documents = (
            (identity, host if kind == KEPT else cluster, text)
            for kinds, (identity, host, cluster, text) in rows
            if kind in kinds
        )
        is_empty = not sketches[others].documents
        rule = task.config.rule_of(name)
        found[name] = {} if is_empty else collect(documents, sketches[kind], sketches[others], rule)
    whole = {
        name: {
            str(value): [e.documents, sorted(e.groups), e.examples, e.words]
            for value, e in sorted(entries.items())
        }
        for name, entries in found.items()
    }
    storage.write_bytes(
        storage.join(task.folder, f"suspect-{task.name}.json"),
        json.dumps(whole, ensure_ascii=True).encode(),
    )
    return ShardResult((), Counts(len(rows), len(rows)))


def _list_all(
    output: StageOutput,
    config: TriggerScanConfig,
    names: list[str],
    sketches: tuple[tuple[str, str, str, int], ...],
    has_earlier: bool,
) -> dict[str, Any]:
    stored = {kind: (url, documents) for kind, url, _, documents in sketches}
    facts: dict[str, Any] = {"documents": stored[KEPT][1], "compared": has_earlier}
    for kind, (here, others) in _LISTS.items():
        whole: dict[int, Found] = {}
        for name in names:
            data = json.loads(storage.read_bytes(output.path(f"suspect-{name}.json")))
            for value, (documents, groups, examples, words) in data[kind].items():
                pairs = [(identity, example) for identity, example in examples]
                entry = Found(documents, set(groups), pairs, words)
                whole.setdefault(int(value), Found()).merge(entry)
        rows, number = ranked(whole, stored[here][1], _read(*stored[others]), config.rule_of(kind))
        write_table(pa.Table.from_pylist(rows, schema=SCHEMA), output.path(f"{kind}.parquet"))
        facts[kind] = number
    return facts
