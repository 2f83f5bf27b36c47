"""Documents and their sidecars joined once: shuffled Parquet shards for training, and the rejects.

Steps: join each file (rows sorted by their place in the shuffle) -> cut the shuffle into shards ->
write each. The driver holds 8 bytes a document. No group of documents crosses the splits.
"""

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field, field_validator

from pipeline.core import storage
from pipeline.core.config import RunConfig, Section
from pipeline.core.errors import UserError
from pipeline.core.identity import is_heldout
from pipeline.core.manifest import (
    Counts,
    FileEntry,
    Manifest,
    ShardResult,
    StageOutput,
    describe_file,
    map_shards,
)
from pipeline.core.records import Document, read_table, schema_of, with_version, write_table
from pipeline.core.remote import Runtime
from pipeline.decontaminate import OVERLAPS, OVERLAPS_VERSION
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION
from pipeline.quality import SIGNALS, SIGNALS_VERSION
from pipeline.repeated_lines import without_lines
from pipeline.text import pii

VERSION = 2
SPLITS = ("train", "heldout")
_JOINED = "shard-joined"
_KEY = "shuffle_key"
_PII = "redacted_"  # begins the names of signals
_KEY_FIELD = pa.field(_KEY, pa.uint64(), nullable=False)


class ShardConfig(Section):
    seed: int = Field(1, description="of the shuffle")
    heldout_fraction: float = Field(
        0.05, ge=0, lt=1, description="of the groups (see group_pattern)"
    )
    group_pattern: str = Field(
        "",
        description="a regular expression on the URL: its first group names what is held out as a"
        " whole; where it is empty or does not match, the duplicate cluster is",
    )
    max_rows_per_shard: int = Field(50_000, ge=1, description="documents in one Parquet file")
    redact: bool = Field(
        True, description="put <EMAIL>, <IP>, <IBAN>, <CARD>, <PHONE> in place of personal data"
    )

    @field_validator("group_pattern")
    @classmethod
    def _has_a_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if pattern and not groups:
            raise ValueError("needs a group, as in https?://([^/]+)/")
        return pattern


@dataclasses.dataclass(frozen=True)
class JoinTask:
    index: int
    docs_url: str
    signals_url: str
    dedupe_url: str
    overlaps_url: str | None
    folder: str
    config: ShardConfig


@dataclasses.dataclass(frozen=True)
class WriteTask:
    """One output shard: the rows of `split` whose key is in [low, high]."""

    name: str
    split: str
    low: int
    high: int
    joined: tuple[str, ...]
    folder: str


@dataclasses.dataclass(frozen=True)
class Joined:
    """One input row with all that the stages found about it; `split` None is a reject."""

    document: dict[str, Any]
    split: str | None
    key: int


def run_shard(
    config: ShardConfig,
    docs: Manifest,
    quality: Manifest,
    dedupe: Manifest,
    run: RunConfig,
    runtime: Runtime,
    overlaps: Manifest | None = None,
) -> Manifest:
    """`train-`, `heldout-` and `rejects-NNNNN.parquet`, all Document records with their signals.

    Each split's rows are in one global order by hash(seed, doc_id). Counts are over all stages
    from extract on; `facts` has each split's docs, chars and UTF-8 bytes, the drop funnel, and how
    much personal data was redacted, rejects included. `overlaps` is run_decontaminate's.
    Raises UserError if there is nothing to train on.
    """
    stages = [docs, quality, dedupe, *([overlaps] if overlaps else [])]
    parents = {"docs": docs, "quality": quality, "dedupe": dedupe}
    parents |= {"overlaps": overlaps} if overlaps else {}
    output = StageOutput.of(run.root, "shard", VERSION, config.identity(), parents)
    if done := output.finished():
        return done
    started = time.time()
    funnel: list[tuple[str, str, int]] = [
        (manifest.stage, reason, number)
        for manifest in stages
        for losses in (manifest.counts.quarantined, manifest.counts.dropped)
        for reason, number in sorted(losses.items())
    ]
    tasks = {f"{task.index:05d}": task for task in _join_tasks(config, stages, output)}
    with output.lock():
        joined = map_shards(runtime, output, "join", join_file, tasks)
        sizes = {split: _total([result.facts[split] for result in joined]) for split in SPLITS}
        if not sizes["train"]["docs"]:
            raise UserError(_nothing_left(docs.counts.rows_in, sizes["heldout"]["docs"], funnel))
        writes = _write_tasks(config, output, len(tasks))
        written = map_shards(runtime, output, "write", write_shard, writes)
        return output.commit(
            [entry for result in (*joined, *written) for entry in result.files],
            _counts(stages, sum(size["docs"] for size in sizes.values())),
            started=started,
            record=Document.NAME,
            facts={**sizes, "funnel": funnel, "redacted": _redacted(joined)},
        )


def _total(sizes: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {unit: sum(size[unit] for size in sizes) for unit in ("docs", "chars", "bytes")}


def _counts(stages: Sequence[Manifest], rows_out: int) -> Counts:
    """From what the first stage read to what is left, with the losses of all stages."""
    dropped: Counter[str] = Counter()
    quarantined: Counter[str] = Counter()
    for stage in stages:
        dropped.update(stage.counts.dropped)
        quarantined.update(stage.counts.quarantined)
    return Counts(
        stages[0].counts.rows_in,
        rows_out,
        dict(sorted(dropped.items())),
        dict(sorted(quarantined.items())),
    )


def _nothing_left(rows_in: int, heldout: int, funnel: Iterable[tuple[str, str, int]]) -> str:
    losses = ", ".join(f"{stage} {reason} {number}" for stage, reason, number in funnel)
    return (
        f"no document is left to train on: of {rows_in} in, {heldout} held out,"
        f" dropped: {losses or 'none'}; give more input, or loosen the rule that drops most"
    )


def _redacted(joined: Sequence[ShardResult]) -> dict[str, int]:
    counts = Counter(dict.fromkeys(pii.KINDS, 0))
    for result in joined:
        counts.update(result.facts["redacted"])
    return dict(counts)


def _join_tasks(
    config: ShardConfig, stages: Sequence[Manifest], output: StageOutput
) -> Iterable[JoinTask]:
    """`stages` are docs, quality, dedupe and, if there was that step, overlaps: file by file."""
    for index, entries in enumerate(zip(*(stage.files for stage in stages), strict=True)):
        urls = [stage.file_url(entry.name) for stage, entry in zip(stages, entries, strict=True)]
        overlaps_url = urls[3] if len(urls) > 3 else None
        yield JoinTask(index, urls[0], urls[1], urls[2], overlaps_url, output.url, config)


def join_file(task: JoinTask) -> ShardResult:
    """Split one file's rows: each split's by their shuffle key, and the rejects in their order."""
    rows: dict[str | None, list[Joined]] = {name: [] for name in (*SPLITS, None)}
    for row in _joined_rows(task):
        rows[row.split].append(row)
    facts: dict[str, Any] = {
        "redacted": _kinds_of(whole for part in rows.values() for whole in part)
    }
    for split in SPLITS:
        rows[split].sort(key=lambda row: (row.key, row.document["doc_id"]))
        texts = [row.document["text"] for row in rows[split]]
        facts[split] = {
            "docs": len(texts),
            "chars": sum(map(len, texts)),
            "bytes": sum(len(text.encode()) for text in texts),
        }
        schema = with_version(Document.SCHEMA.append(_KEY_FIELD), _JOINED, VERSION)
        dicts = [row.document | {_KEY: row.key} for row in rows[split]]
        table = pa.Table.from_pylist(dicts, schema=schema)
        write_table(table, storage.join(task.folder, _joined_name(split, task.index)))
    rejects = [row.document for row in rows[None]]
    name = f"rejects-{task.index:05d}.parquet"
    url = storage.join(task.folder, name)
    write_table(pa.Table.from_pylist(rejects, schema=schema_of(Document)), url)
    total = sum(map(len, rows.values()))
    return ShardResult((describe_file(url, name, len(rejects)),), Counts(total, total), facts)


def _kinds_of(rows: Iterable[Joined]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in rows:
        signals = dict(row.document["signals"])
        counts.update({kind: int(signals.get(_PII + kind, 0)) for kind in pii.KINDS})
    return dict(counts)


def _joined_name(split: str, index: int) -> str:
    return f"joined-{split}-{index:05d}.parquet"


def _joined_rows(task: JoinTask) -> Iterable[Joined]:
    config = task.config
    pattern = re.compile(config.group_pattern) if config.group_pattern else None
    for document, signal, duplicate, overlap in _sidecars(task):
        identity = document["doc_id"]
        assert identity == signal["doc_id"] == duplicate["doc_id"], task.docs_url
        reason = document["drop_reason"] or signal["drop_reason"] or duplicate["drop_reason"]
        if overlap is not None:
            assert identity == overlap["doc_id"], task.docs_url
            reason = reason or overlap["drop_reason"]
        text = document["text"]
        if not reason:
            text = without_lines(text, duplicate["removed_lines"])
        found = pii.redact(text) if config.redact else pii.Redacted(text, {})
        whole = document | {
            "text": found.text,
            "language": signal["language"],
            "signals": _merged_signals(signal, duplicate, overlap, found),
            "drop_reason": reason,
        }
        if reason:
            yield Joined(whole, None, 0)
            continue
        match = pattern.search(document["url"]) if pattern else None
        group = (match.group(1) if match else None) or duplicate["cluster"]
        split = "heldout" if is_heldout(group, config.heldout_fraction) else "train"
        key = xxhash.xxh3_64_intdigest(f"{config.seed}\0{identity}".encode())
        yield Joined(whole, split, key)


def _sidecars(task: JoinTask) -> Iterable[tuple[Any, ...]]:
    """(document, signals, duplicate, overlap or None) of each row."""
    documents = read_table(task.docs_url, Document.NAME, Document.VERSION).to_pylist()
    signals = read_table(task.signals_url, SIGNALS, SIGNALS_VERSION).to_pylist()
    duplicates = read_table(task.dedupe_url, DEDUPE, DEDUPE_VERSION).to_pylist()
    overlaps: list[Any] = [None] * len(documents)
    if task.overlaps_url:
        overlaps = read_table(task.overlaps_url, OVERLAPS, OVERLAPS_VERSION).to_pylist()
    return zip(documents, signals, duplicates, overlaps, strict=True)


def _merged_signals(
    signal: Mapping[str, Any],
    duplicate: Mapping[str, Any],
    overlap: Mapping[str, Any] | None,
    found: pii.Redacted,
) -> list[tuple[str, float]]:
    merged = dict(signal["signals"])
    if signal["judged"]:
        merged["language_score"] = signal["language_score"]
    if duplicate["judged"]:
        merged["removed_lines"] = float(len(duplicate["removed_lines"]))
    if duplicate["similarity"] is not None:
        merged["duplicate_similarity"] = duplicate["similarity"]
    if overlap is not None and overlap["judged"]:
        merged["evaluation_ngrams"] = float(overlap["ngrams"])
    merged |= {f"{_PII}{kind}": float(number) for kind, number in found.counts.items()}
    return sorted(merged.items())


def _write_tasks(config: ShardConfig, output: StageOutput, num_joined: int) -> dict[str, WriteTask]:
    """Cut each split's keys, in order, into shards of `max_rows_per_shard`; equal keys (the same
    doc_id) stay together."""
    tasks: dict[str, WriteTask] = {}
    for split in SPLITS:
        urls = tuple(output.path(_joined_name(split, index)) for index in range(num_joined))
        columns = [read_table(url, _JOINED, VERSION).column(_KEY).to_numpy() for url in urls]
        keys = np.unique(np.concatenate([np.zeros(0, np.uint64), *columns]))
        for index, start in enumerate(range(0, len(keys), config.max_rows_per_shard)):
            part = keys[start : start + config.max_rows_per_shard]
            name = f"{split}-{index:05d}.parquet"
            tasks[name] = WriteTask(name, split, int(part[0]), int(part[-1]), urls, output.url)
    return tasks


def write_shard(task: WriteTask) -> ShardResult:
    """Gather one shard's rows from every joined file."""
    parts: list[pa.Table] = []
    for url in task.joined:
        table = read_table(url, _JOINED, VERSION)
        keys = table.column(_KEY).to_numpy()
        low = int(np.searchsorted(keys, np.uint64(task.low), "left"))
        high = int(np.searchsorted(keys, np.uint64(task.high), "right"))
        parts.append(table.slice(low, high - low))
    whole = pa.concat_tables(parts).sort_by([(_KEY, "ascending"), ("doc_id", "ascending")])
    whole = whole.drop_columns([_KEY]).replace_schema_metadata(schema_of(Document).metadata)
    url = storage.join(task.folder, task.name)
    write_table(whole.combine_chunks(), url)
    entry: FileEntry = describe_file(url, task.name, len(whole))
    return ShardResult((entry,), Counts(len(whole), len(whole)))
