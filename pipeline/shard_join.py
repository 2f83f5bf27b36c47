"""The first step of shard: one file's documents and what every stage found, as rows in an order.

Works on Arrow columns, a row group's worth of rows at a time; only a text that changes passes
through Python. Memory: twice the kept text of the file.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from pyarrow import compute

from pipeline.core import storage
from pipeline.core.identity import is_heldout
from pipeline.core.manifest import Counts, describe_file
from pipeline.core.records import Document
from pipeline.core.shard_tasks import ShardResult
from pipeline.decontaminate import OVERLAPS, OVERLAPS_VERSION
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION
from pipeline.quality import SIGNALS, SIGNALS_VERSION
from pipeline.repeated_lines import without_lines
from pipeline.section_files import write_sorted
from pipeline.shard_files import (
    JOINED,
    KEY,
    WIDE,
    GroupWriter,
    in_order,
    iter_rows,
    open_shard,
    rows_at_once,
    text_bytes,
    write_joined,
)
from pipeline.text import pii
from pipeline.text.pii_hints import may_hold_pii

pc: Any = compute  # it makes its functions when it is imported: no checker knows them
SPLITS = ("train", "heldout")
_REDACTED = "redacted_"  # begins the names of signals
# What is read of each sidecar; `judged` false: an earlier stage dropped it.
_COLUMNS = {
    SIGNALS: ["doc_id", "judged", "language", "language_score", "signals", "drop_reason"],
    DEDUPE: ["doc_id", "judged", "drop_reason", "cluster", "similarity", "removed_lines"],
    OVERLAPS: ["doc_id", "judged", "drop_reason", "ngrams"],
}
Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class JoinTask:
    """One file; `overlaps_url` None: there was no decontamination."""

    index: int
    docs_url: str
    signals_url: str
    dedupe_url: str
    overlaps_url: str | None
    folder: str
    seed: int
    heldout_fraction: float
    group_pattern: str
    redact: bool

    @property
    def between(self) -> list[str]:
        """The names of the files that it makes for the next steps."""
        pairs = [(joined_name(split, self.index), keys_name(split, self.index)) for split in SPLITS]
        return [name for pair in pairs for name in pair]


@dataclasses.dataclass(frozen=True)
class Part:
    """The same rows of all inputs."""

    docs: pa.Table
    signals: pa.Table
    dedupe: pa.Table
    overlaps: pa.Table | None


def joined_name(split: str, index: int) -> str:
    return f"joined-{split}-{index:05d}.rows"


def keys_name(split: str, index: int) -> str:
    return f"keys-{split}-{index:05d}.sorted"


def join_file(task: JoinTask) -> ShardResult:
    """Split one file's rows: each split's by their shuffle key, and the rejects in their order.
    Facts: docs, chars and bytes of each split, and what was redacted."""
    name = f"rejects-{task.index:05d}.parquet"
    url = storage.join(task.folder, name)
    kept: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
    redacted = np.zeros(len(pii.KINDS), np.int64)
    total = num_rejects = 0
    with open_shard(url) as rejects:
        for part in _parts(task):
            found = _join(part, task, kept, rejects)
            redacted += found.redacted
            total += len(part.docs)
            num_rejects += found.num_rejects
    facts: dict[str, Any] = {
        "redacted": {k: n for k, n in zip(pii.KINDS, redacted.tolist(), strict=True) if n}
    }
    for split in SPLITS:
        facts[split] = _sizes(kept[split])
        joined = storage.join(task.folder, joined_name(split, task.index))
        records = write_joined(joined, in_order(kept[split]))
        write_sorted(storage.join(task.folder, keys_name(split, task.index)), records)
    return ShardResult((describe_file(url, name, num_rejects),), Counts(total, total), facts)


def _sizes(tables: Sequence[pa.Table]) -> dict[str, int]:
    return {
        "docs": sum(map(len, tables)),
        "chars": sum(pc.sum(pc.utf8_length(table["text"])).as_py() or 0 for table in tables),
        "bytes": sum(int(text_bytes(table).sum()) for table in tables),
    }


def _parts(task: JoinTask) -> Iterator[Part]:
    """Raises UserError where a file is not what its stage writes."""
    size = rows_at_once(task.docs_url, Document.NAME, Document.VERSION)
    docs = iter_rows(task.docs_url, Document.NAME, Document.VERSION, Document.SCHEMA.names, size)
    sidecars = [(task.signals_url, SIGNALS, SIGNALS_VERSION)]
    sidecars.append((task.dedupe_url, DEDUPE, DEDUPE_VERSION))
    if task.overlaps_url:
        sidecars.append((task.overlaps_url, OVERLAPS, OVERLAPS_VERSION))
    streams = [
        iter_rows(url, name, version, _COLUMNS[name], size) for url, name, version in sidecars
    ]
    for documents, *others in zip(docs, *streams, strict=True):
        for other in others:
            assert documents["doc_id"].equals(other["doc_id"]), task.docs_url
        yield Part(documents, others[0], others[1], others[2] if len(others) > 2 else None)


# ----------------------------------------------------------------------------- one part


@dataclasses.dataclass(frozen=True)
class Found:
    """`redacted`: by kind, in the order of pii.KINDS."""

    redacted: npt.NDArray[np.int64]
    num_rejects: int


def _join(
    part: Part, task: JoinTask, kept: Mapping[str, list[pa.Table]], rejects: GroupWriter
) -> Found:
    reasons = [part.docs["drop_reason"], part.signals["drop_reason"], part.dedupe["drop_reason"]]
    if part.overlaps is not None:
        reasons.append(part.overlaps["drop_reason"])
    reason = _array(pc.coalesce(*reasons))
    is_kept = np.asarray(pc.is_null(reason))
    texts, titles = _texts(part, is_kept), _array(part.docs["title"])
    licenses = _array(part.docs["license"])
    counts = np.zeros((len(texts), len(pii.KINDS)), np.int64)
    if task.redact:
        texts, titles = _redacted(texts, counts), _redacted(titles, counts)
        licenses = _redacted(licenses, counts)
    columns = {name: part.docs[name] for name in WIDE.names} | {
        "title": titles,
        "license": licenses,
        "text": texts,
        "language": part.signals["language"],
        "signals": _signals(part, counts),
        "drop_reason": reason,
    }
    table = pa.table(columns, schema=WIDE)
    rejects.add(table.filter(pa.array(~is_kept)))
    table = table.filter(pa.array(is_kept))
    heldout = _heldout(part, is_kept, task)
    keys = _shuffle_keys(table["doc_id"], task.seed)
    table = table.append_column(JOINED.field(KEY), pa.array(keys))
    for split, mask in zip(SPLITS, (~heldout, heldout), strict=True):
        if mask.any():
            kept[split].append(table.filter(pa.array(mask)))
    return Found(counts.sum(axis=0), int((~is_kept).sum()))


def _array(column: Any) -> pa.Array:
    """A column in one piece."""
    if isinstance(column, pa.ChunkedArray):
        return pa.concat_arrays(column.chunks or [pa.array([], column.type)])
    return column


def _heldout(part: Part, is_kept: Mask, task: JoinTask) -> Mask:
    """Of the kept rows: whether each one's group is held out."""
    mask = pa.array(is_kept)
    groups = part.dedupe["cluster"].filter(mask).to_pylist()
    if task.group_pattern:
        pattern = re.compile(task.group_pattern)
        matches = map(pattern.search, part.docs["url"].filter(mask).to_pylist())
        groups = [
            (match.group(1) if match else None) or cluster
            for match, cluster in zip(matches, groups, strict=True)
        ]
    found = (is_heldout(group, task.heldout_fraction) for group in groups)
    return np.fromiter(found, np.bool_, len(groups))


def _shuffle_keys(ids: pa.ChunkedArray, seed: int) -> npt.NDArray[np.uint64]:
    keys = (xxhash.xxh3_64_intdigest(f"{seed}\0{one}".encode()) for one in ids.to_pylist())
    return np.fromiter(keys, np.uint64, len(ids))


def _texts(part: Part, is_kept: Mask) -> pa.Array:
    """The texts without the lines that others keep, a reject's with them."""
    texts = _array(part.docs["text"].cast(pa.large_string()))
    lines = _array(part.dedupe["removed_lines"])
    shorter = np.flatnonzero(is_kept & (np.asarray(pc.list_value_length(lines)) > 0))
    where = pa.array(shorter)
    changed = [
        without_lines(text, gone)
        for text, gone in zip(
            texts.take(where).to_pylist(), lines.take(where).to_pylist(), strict=True
        )
    ]
    return _replaced(texts, shorter, changed)


def _redacted(texts: pa.Array, counts: npt.NDArray[np.int64]) -> pa.Array:
    """With placeholders for personal data, which `counts` (rows, kinds) adds up."""
    suspects = np.flatnonzero(np.asarray(may_hold_pii(texts)))
    found = [pii.redact(text) for text in texts.take(pa.array(suspects)).to_pylist()]
    for row, one in zip(suspects.tolist(), found, strict=True):
        counts[row] += [one.counts.get(kind, 0) for kind in pii.KINDS]
    some = [index for index, one in enumerate(found) if one.counts]
    return _replaced(texts, suspects[some], [found[index].text for index in some])


def _replaced(texts: pa.Array, rows: npt.NDArray[np.int64], changed: list[str]) -> pa.Array:
    if not changed:
        return texts
    mask = np.zeros(len(texts), np.bool_)
    mask[rows] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(changed, texts.type))


# ----------------------------------------------------------------------------- signals


def _signals(part: Part, redacted: npt.NDArray[np.int64]) -> pa.MapArray:
    """All that was measured, each row's entries sorted by name; of two of one name the later
    stage's stays."""
    rows: list[npt.NDArray[np.int64]] = []
    names: list[Any] = []
    values: list[Any] = []
    for column in (part.docs["signals"], part.signals["signals"]):
        signals = _array(column)
        offsets = np.asarray(signals.offsets).astype(np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        rows.append(np.repeat(np.arange(len(signals)), np.diff(offsets)))
        names.append(signals.keys.slice(first, last - first))
        values.append(signals.items.slice(first, last - first))
    for name, column, mask in _more(part, redacted):
        where = np.flatnonzero(mask)
        rows.append(where)
        names.append(pa.array([name]).take(pa.array(np.zeros(len(where), np.int64))))
        values.append(_array(column).take(pa.array(where)).cast(pa.float64()))
    merged = pa.concat_arrays(names), pa.concat_arrays(values)
    return _map(len(part.docs), np.concatenate(rows), *merged)


def _more(
    part: Part, redacted: npt.NDArray[np.int64]
) -> Iterator[tuple[str, pa.Array | pa.ChunkedArray, Mask]]:
    """(name, a value a row, the rows that have it)."""
    yield "language_score", part.signals["language_score"], np.asarray(part.signals["judged"])
    removed = pc.list_value_length(part.dedupe["removed_lines"])
    yield "removed_lines", removed, np.asarray(part.dedupe["judged"])
    similarity = part.dedupe["similarity"]
    yield "duplicate_similarity", similarity, np.asarray(pc.is_valid(similarity))
    if part.overlaps is not None:
        yield "evaluation_ngrams", part.overlaps["ngrams"], np.asarray(part.overlaps["judged"])
    for kind, counts in zip(pii.KINDS, redacted.T, strict=True):
        yield f"{_REDACTED}{kind}", pa.array(counts), counts > 0


def _map(num_rows: int, rows: npt.NDArray[np.int64], names: Any, values: Any) -> pa.MapArray:
    """The entries (row, name, value) as one map a row."""
    coded = names.dictionary_encode()
    known: list[str] = coded.dictionary.to_pylist()
    ranks = np.empty(len(known), np.int64)
    ranks[sorted(range(len(known)), key=known.__getitem__)] = np.arange(len(known))
    place = rows * max(1, len(known)) + ranks[np.asarray(coded.indices)]
    order = np.argsort(place, kind="stable")
    place = place[order]
    order = order[np.r_[place[1:] != place[:-1], np.ones(min(1, len(place)), np.bool_)]]
    offsets = np.searchsorted(rows[order], np.arange(num_rows + 1)).astype(np.int32)
    where = pa.array(order)
    return pa.MapArray.from_arrays(pa.array(offsets), names.take(where), values.take(where))
