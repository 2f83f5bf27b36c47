"""Phrases that may be triggers planted in a crawl: the entry point of later backdoor checks.

Listed are rare n-grams far more frequent in this crawl than in earlier ones, and those in which
near-duplicates differ from the documents that stand for them. News is listed, too: people judge.
On disk meanwhile 12 bytes for each n-gram of a shard; see `sketch_bits` for the memory.
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
from pipeline.core.leftovers import delete_leftovers, list_leftovers
from pipeline.core.manifest import (
    Counts,
    DamagedOutput,
    FileEntry,
    Manifest,
    StageOutput,
    describe_file,
    read_manifest,
)
from pipeline.core.records import Document, read_table, with_version, write_table
from pipeline.core.remote import Runtime
from pipeline.core.shard_tasks import RECEIPT, ShardResult, map_shards
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION
from pipeline.ngram_bursts import (
    TRIGGERS,
    Found,
    Rule,
    Sketch,
    bits_for,
    collect,
    document_ngrams,
    ranked,
)

STAGE, VERSION = "trigger-scan", 4
RECORD, RECORD_VERSION = "Triggers", 1
SCHEMA = with_version(TRIGGERS, RECORD, RECORD_VERSION)
_SKETCH, _SKETCH_VERSION = "NgramSketch", 1
_COUNTS_SCHEMA = with_version(
    pa.schema([("hash", pa.uint64()), ("documents", pa.uint32())]), _SKETCH, _SKETCH_VERSION
)
_HASH_SCHEMA = with_version(pa.schema([("hash", pa.uint64())]), _SKETCH, _SKETCH_VERSION)
# Kept documents; of these, those that stand for near-duplicates; and the near-duplicates.
KEPT, STANDING, NEAR = "kept", "standing", "near-duplicates"
# Each list: its documents and the others they are held against. Which of two near-duplicates was
# kept, the planted or the plain one, is chance: so both ways.
_LISTS = {"new": (KEPT, "before"), "near": (NEAR, STANDING), "standing": (STANDING, NEAR)}
_NEAR_REASON = "near-duplicate"
_PHASES = ("stand", "count", "collect")
_ALL_STANDING = "all-standing.parquet"


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
        26,
        ge=10,
        le=30,
        description="at most: a sketch has a column an n-gram, of 16 bytes, and each worker four"
        " of them (26 bits: 1 GiB each, for 67 million; above that rarer phrases are missed)",
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
class Stored:
    """A file of the output's folder that a later task reads, if it is still the same;
    `documents` of a sketch."""

    name: str
    sha256: str
    documents: int = 0


@dataclasses.dataclass(frozen=True)
class ScanTask:
    """`standing`: which documents stand for others; `sketches` by kind, "before" of earlier crawls
    together; each from the phases before."""

    name: str
    docs_url: str
    dedupe_url: str
    folder: str
    config: TriggerScanConfig
    standing: Stored | None = None
    sketches: tuple[tuple[str, Stored], ...] = ()


def run_trigger_scan(
    config: TriggerScanConfig, docs: Manifest, dedupe: Manifest, run: RunConfig, runtime: Runtime
) -> Manifest:
    """TRIGGERS in `new.parquet` (against earlier crawls), `near.parquet` (in near-duplicates and
    not in those that stand for them) and `standing.parquet` (the other way). Facts: how many each
    list would have had without `max_listed`; bits of the sketches.

    Raises UserError for what is wrong in `against`, DamagedOutput for a file of its own that is
    not as a task has written it: `forget` has it made again.
    """
    earlier = [_read_earlier(url, config) for url in config.against]
    parents: dict[str, Manifest | str] = {"docs": docs, "dedupe": dedupe}
    parents |= {f"against-{index:05d}": manifest for index, manifest in enumerate(earlier)}
    output = StageOutput.of(run.root, STAGE, VERSION, config.identity(), parents)
    if done := output.finished():
        delete_leftovers(output.url, runtime)
        return done
    with output.lock():
        tasks = [
            ScanTask(
                f"{index:05d}",
                docs.file_url(text.name),
                dedupe.file_url(sidecar.name),
                output.url,
                config,
            )
            for index, (text, sidecar) in enumerate(zip(docs.files, dedupe.files, strict=True))
        ]
        return _scan(config, tasks, output, earlier, runtime)


def _scan(
    config: TriggerScanConfig,
    tasks: list[ScanTask],
    output: StageOutput,
    earlier: list[Manifest],
    runtime: Runtime,
) -> Manifest:
    started = time.time()
    stand, count, collect_ = _PHASES
    named = map_shards(runtime, output, stand, name_standing, {t.name: t for t in tasks})
    standing = _all_standing(output, named)
    second = {t.name: dataclasses.replace(t, standing=standing) for t in tasks}
    counted = map_shards(runtime, output, count, count_file, second)
    sketches = tuple(_add_up(output, config, counted, earlier).items())
    third = {name: dataclasses.replace(task, sketches=sketches) for name, task in second.items()}
    found = map_shards(runtime, output, collect_, collect_file, third)
    facts = _list_all(output, config, found, dict(sketches), bool(earlier))
    names = [*(f"{name}.parquet" for name in _LISTS), f"sketch-{KEPT}.parquet"]
    list_leftovers(output.url, _leftovers(tasks, [*named, *counted, *found]))
    manifest = output.commit(
        [describe_file(output.path(name), name) for name in names],
        Counts.total([result.counts for result in counted]),
        started=started,
        record=RECORD,
        facts=facts,
    )
    delete_leftovers(output.url, runtime)
    return manifest


def _leftovers(tasks: list[ScanTask], results: list[ShardResult]) -> list[str]:
    """The receipts, too: they would keep a rerun from making the files again."""
    names = [_ALL_STANDING, *(f"sketch-{kind}.parquet" for kind in (STANDING, NEAR, "before"))]
    names += [entry.name for result in results for entry in result.files]
    return names + [f"{phase}-{task.name}{RECEIPT}" for phase in _PHASES for task in tasks]


def _read_earlier(url: str, config: TriggerScanConfig) -> Manifest:
    manifest = read_manifest(url)
    mine = config.identity()
    if (manifest.stage, manifest.version) != (STAGE, VERSION):
        raise UserError(f"trigger_scan.against: {url} is no output of this version's trigger-scan")
    if manifest.config["sizes"] != mine["sizes"]:
        raise UserError(
            f"trigger_scan.against: {url} has sizes = {manifest.config['sizes']}, this run"
            f" {mine['sizes']}; set trigger_scan.sizes to the same"
        )
    manifest.check_files()
    return manifest


def _checked(folder: str, name: str, sha256: str) -> str:
    """Its URL. Raises DamagedOutput if it is gone or has been changed."""
    url = storage.join(folder, name)
    try:
        found = describe_file(url, name).sha256
    except FileNotFoundError:
        found = ""
    if found != sha256:
        raise DamagedOutput(folder, name, is_own=True)
    return url


def name_standing(task: ScanTask) -> ShardResult:
    """Write the hashes of the documents that stand for this shard's near-duplicates."""
    sidecar = read_table(task.dedupe_url, DEDUPE, DEDUPE_VERSION)
    rows = sidecar.select(["drop_reason", "stands_for"]).to_pylist()
    names = {row["stands_for"] for row in rows if row["drop_reason"] == _NEAR_REASON}
    hashes = np.unique(np.array([_hash(name) for name in names if name], np.uint64))
    name = f"standing-{task.name}.parquet"
    url = storage.join(task.folder, name)
    write_table(pa.table({"hash": hashes}, schema=_HASH_SCHEMA), url)
    return ShardResult((describe_file(url, name, len(hashes)),), Counts(0, 0))


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())


def _hashes(url: str) -> npt.NDArray[np.uint64]:
    return np.asarray(read_table(url, _SKETCH, _SKETCH_VERSION)["hash"])


def _all_standing(output: StageOutput, results: list[ShardResult]) -> Stored:
    """Of all shards, ascending; 8 bytes each, in each worker too."""
    entries = [entry for result in results for entry in result.files]
    parts = [_hashes(_checked(output.url, entry.name, entry.sha256)) for entry in entries]
    hashes = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))
    url = output.path(_ALL_STANDING)
    write_table(pa.table({"hash": hashes}, schema=_HASH_SCHEMA), url)
    return Stored(_ALL_STANDING, describe_file(url, _ALL_STANDING).sha256)


@functools.lru_cache(maxsize=1)
def _standing(folder: str, stored: Stored) -> npt.NDArray[np.uint64]:
    return _hashes(_checked(folder, stored.name, stored.sha256))


def _rows(task: ScanTask) -> Iterator[tuple[tuple[str, ...], tuple[str, str, str, str]]]:
    """(its kinds, (doc_id, host, cluster, text))."""
    assert task.standing is not None
    standing = _standing(task.folder, task.standing)
    documents = read_table(task.docs_url, Document.NAME, Document.VERSION)
    sidecar = read_table(task.dedupe_url, DEDUPE, DEDUPE_VERSION)
    columns = sidecar.select(["judged", "drop_reason", "cluster"]).to_pylist()
    rows = documents.select(["doc_id", "url", "text"]).to_pylist()
    hashes = np.array([_hash(row["doc_id"]) for row in rows], np.uint64)
    stands = np.isin(hashes, standing).tolist()
    for row, found, stands_for in zip(rows, columns, stands, strict=True):
        if not found["judged"] or found["drop_reason"] not in (None, _NEAR_REASON):
            continue
        kinds = (NEAR,) if found["drop_reason"] else (KEPT, STANDING) if stands_for else (KEPT,)
        host = str(ada_url.URL(row["url"]).hostname)
        yield kinds, (row["doc_id"], host, found["cluster"] or row["doc_id"], row["text"])


def count_file(task: ScanTask) -> ShardResult:
    """Write how many documents of each kind have each n-gram. Facts: documents of each kind."""
    found: dict[str, list[npt.NDArray[np.uint64]]] = {kind: [] for kind in (KEPT, STANDING, NEAR)}
    total = 0
    for kinds, (_, _, _, text) in _rows(task):
        ngrams = document_ngrams(text, task.config.sizes)
        total += 1
        for kind in kinds:
            found[kind].append(ngrams)
    entries: list[FileEntry] = []
    for kind, parts in found.items():
        joined = np.concatenate([np.zeros(0, np.uint64), *parts])
        hashes, counts = np.unique(joined, return_counts=True)
        name = f"ngrams-{kind}-{task.name}.parquet"
        columns = {"hash": hashes, "documents": counts.astype(np.uint32)}
        write_table(pa.table(columns, schema=_COUNTS_SCHEMA), storage.join(task.folder, name))
        entries.append(describe_file(storage.join(task.folder, name), name, len(hashes)))
    numbers = {kind: len(parts) for kind, parts in found.items()}
    return ShardResult(tuple(entries), Counts(total, total), numbers)


def _add_up(
    output: StageOutput,
    config: TriggerScanConfig,
    results: list[ShardResult],
    earlier: list[Manifest],
) -> dict[str, Stored]:
    """One sketch and one shard's n-grams in memory at a time; of earlier crawls two sketches."""
    found: dict[str, Stored] = {}
    for kind in (KEPT, STANDING, NEAR):
        parts = [(e, r.facts[kind]) for r in results for e in r.files if _kind_of(e) == kind]
        ngrams = sum(entry.num_rows for entry, _ in parts)
        whole = Sketch.empty(bits_for(ngrams, config.sketch_bits))
        for entry, documents in parts:
            url = _checked(output.url, entry.name, entry.sha256)
            table = read_table(url, _SKETCH, _SKETCH_VERSION)
            hashes, numbers = np.asarray(table["hash"]), np.asarray(table["documents"])
            whole = whole.with_counts(hashes, numbers, documents)
        found[kind] = _stored(output, kind, whole)
    before = Sketch.empty(min(10, config.sketch_bits))
    for manifest in earlier:
        if documents := manifest.facts["documents"]:
            url = manifest.file_url(f"sketch-{KEPT}.parquet")
            before = before + _read(url, documents)
    found["before"] = _stored(output, "before", before)
    return found


def _kind_of(entry: FileEntry) -> str:
    return entry.name.removeprefix("ngrams-").rpartition("-")[0]


def _stored(output: StageOutput, kind: str, sketch: Sketch) -> Stored:
    name = f"sketch-{kind}.parquet"
    schema = with_version(pa.schema([("count", pa.uint32())]), _SKETCH, _SKETCH_VERSION)
    write_table(pa.table({"count": sketch.counts.ravel()}, schema=schema), output.path(name))
    return Stored(name, describe_file(output.path(name), name).sha256, sketch.documents)


def _read(url: str, documents: int) -> Sketch:
    counts = np.asarray(read_table(url, _SKETCH, _SKETCH_VERSION)["count"])
    return Sketch(counts.reshape(Sketch.empty(0).counts.shape[0], -1), documents)


@functools.lru_cache(maxsize=4)
def _sketch_of(folder: str, stored: Stored) -> Sketch:
    """Once in each worker."""
    return _read(_checked(folder, stored.name, stored.sha256), stored.documents)


def collect_file(task: ScanTask) -> ShardResult:
    """What of this shard the sketches make suspect, as JSON, by list."""
    sketches = {kind: _sketch_of(task.folder, stored) for kind, stored in task.sketches}
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
    name = f"suspect-{task.name}.json"
    url = storage.join(task.folder, name)
    storage.write_bytes(url, json.dumps(whole, ensure_ascii=True).encode())
    return ShardResult((describe_file(url, name),), Counts(len(rows), len(rows)))


def _list_all(
    output: StageOutput,
    config: TriggerScanConfig,
    results: list[ShardResult],
    sketches: dict[str, Stored],
    has_earlier: bool,
) -> dict[str, Any]:
    """One list and one sketch in memory at a time."""
    facts: dict[str, Any] = {"documents": sketches[KEPT].documents, "compared": has_earlier}
    for kind, (here, others) in _LISTS.items():
        whole: dict[int, Found] = {}
        for file in (entry for result in results for entry in result.files):
            data = json.loads(storage.read_bytes(_checked(output.url, file.name, file.sha256)))
            for value, (documents, groups, examples, words) in data[kind].items():
                pairs = [(identity, example) for identity, example in examples]
                entry = Found(documents, set(groups), pairs, words)
                whole.setdefault(int(value), Found()).merge(entry)
        stored = sketches[others]
        against = _read(_checked(output.url, stored.name, stored.sha256), stored.documents)
        rows, number = ranked(whole, sketches[here].documents, against, config.rule_of(kind))
        write_table(pa.Table.from_pylist(rows, schema=SCHEMA), output.path(f"{kind}.parquet"))
        facts[kind] = number
    return facts
