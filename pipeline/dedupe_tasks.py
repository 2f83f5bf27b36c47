"""The tasks of dedupe that take one shard of documents: hash, sign, write the sidecar.

Pure in their files. A shard's text is in memory once, and beside it some 30 bytes a line.
"""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from pyarrow import compute

from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, describe_file
from pipeline.core.records import Document, read_columns, with_version, write_table
from pipeline.core.shard_tasks import ShardResult
from pipeline.dedupe_files import (
    BANDS,
    DECISIONS,
    EXACT,
    LEFT,
    LINES,
    REMOVED,
    TEXTS,
    Layout,
    Place,
    file_url,
    format_ids,
    packed_order,
    parse_ids,
    read_gone,
    write_records,
)
from pipeline.dedupe_urls import superseded_rows, write_urls
from pipeline.normal_forms import normal_forms
from pipeline.quality import SIGNALS, SIGNALS_VERSION
from pipeline.repeated_lines import forms_with_lines, without_lines
from pipeline.section_files import Records, read_range
from pipeline.text.signatures import Signer

DEDUPE = "Dedupe"
DEDUPE_VERSION = 2
SCHEMA = with_version(
    pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("judged", pa.bool_(), nullable=False),  # false: an earlier stage dropped it
            pa.field("drop_reason", pa.string()),
            pa.field("cluster", pa.string()),  # the first document by the keep rule of all linked
            # Of a removed one: the document that stays; of an older capture the latest of its URL,
            # which may be removed itself, for being like another.
            pa.field("stands_for", pa.string()),
            pa.field("stands_in", pa.string()),  # the earlier dedupe output (its key) that has it
            pa.field("similarity", pa.float64()),  # null for an older capture: not compared
            pa.field("removed_lines", pa.list_(pa.int32()), nullable=False),
        ]
    ),
    DEDUPE,
    DEDUPE_VERSION,
)
pc: Any = compute  # it makes its functions when it is imported: no checker knows them
REASONS = (None, "exact-duplicate", "near-duplicate", "empty-after-lines", "older-capture")
LINKED, EXACT_COPY, NEAR_COPY, BLANK, SUPERSEDED = range(5)


@dataclasses.dataclass(frozen=True)
class DedupeTask:
    """One shard of documents with its signals; `folder` is the stage's output, `line_min_chars` 0:
    lines are left alone."""

    shard: int
    docs_url: str
    signals_url: str
    folder: str
    line_min_chars: int
    signer: Signer
    num_ranges: int = 0  # files that the steps by key range have left
    corpora: tuple[str, ...] = ()  # keys of earlier outputs, by the numbers in the decisions
    num_decided: int = 0  # files of decisions by handle; 0: this shard has one of its own
    num_superseded: int = 0  # files of captures that a later one of the same URL supersedes

    def url(self, kind: str) -> str:
        return file_url(self.folder, kind, self.shard)


def list_urls(task: DedupeTask) -> ShardResult:
    """The kept documents' URLs."""
    return write_urls(task.url("urls"), task.shard, task.docs_url, _kept(task)[1])


def hash_file(task: DedupeTask) -> ShardResult:
    """Digests of the kept documents' texts and payloads, and the keys of their lines. Facts: rows
    in all, and bytes of lines."""
    ids, rows = _kept(task)
    rows = np.setdiff1d(rows, _superseded(task)["key"].astype(np.int64), assume_unique=True)
    columns = ["doc_id", "url", "text", "payload_sha256"]
    documents = read_columns(task.docs_url, Document.NAME, Document.VERSION, columns)
    assert (parse_ids(documents["doc_id"]) == ids).all(), task.docs_url
    num_rows, ids = len(ids), ids[rows]
    documents = documents.take(pa.array(rows))
    texts = _array(documents["text"])
    _check_texts(texts, task.docs_url)
    if task.line_min_chars:
        forms = forms_with_lines(texts, documents["url"].to_pylist(), task.line_min_chars)
    else:
        forms = normal_forms(texts)
    write_records(task.url("texts"), TEXTS, rows, ids[:, 0], ids[:, 1], forms.words)
    payloads = _digests(documents["payload_sha256"].to_pylist())
    exact = np.concatenate([forms.digests, payloads])
    write_records(task.url("exact"), EXACT, exact[:, 0], exact[:, 1], np.tile(rows, 2))
    lines = (ids[forms.line_text, 0], rows[forms.line_text], forms.line_place)
    write_records(task.url("lines"), LINES, forms.line_key, *lines)
    facts = {"rows": num_rows, "lines": len(forms.line_key)}
    return ShardResult((), Counts(len(rows), len(rows)), facts)


def _check_texts(texts: pa.Array, url: str) -> None:
    """Raises UserError: Parquet's readers take any bytes for text."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{url} holds text that is not UTF-8 ({error}); run the stage that makes it again"
        ) from None


def _kept(task: DedupeTask) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """(the doc_id of each row, the rows that no earlier stage has dropped)."""
    columns = ["doc_id", "judged", "drop_reason"]
    signals = read_columns(task.signals_url, SIGNALS, SIGNALS_VERSION, columns)
    kept = pc.and_(signals["judged"], pc.is_null(signals["drop_reason"]))
    return parse_ids(signals["doc_id"]), np.flatnonzero(np.asarray(kept))


def _superseded(task: DedupeTask) -> Records:
    return superseded_rows(task.folder, task.shard, task.num_superseded)


def _digests(strings: list[str]) -> npt.NDArray[np.uint64]:
    """(n, 2): xxh3_128 of each."""
    whole = b"".join(xxhash.xxh3_128_digest(string.encode()) for string in strings)
    return np.frombuffer(whole, ">u8").astype(np.uint64).reshape(-1, 2)


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.cast(pa.large_string()).chunks or [pa.array([], "string")])


def sign_file(task: DedupeTask) -> ShardResult:
    """Signatures of the documents that are no copies, without the lines that others keep."""
    place = Layout.read(task.folder).own[task.shard]
    records = read_range(task.url("texts"), TEXTS)
    gone = read_gone(task.folder, "gone-copies", place)
    records = records[~gone[records["key"].astype(np.int64)]]
    rows = records["key"].astype(np.int64)
    removed = _removed_lines(task, place)
    write_records(task.url("removed"), REMOVED, removed["key"], removed["line_32"])
    texts, num_chars = texts_without_lines(task.docs_url, rows, removed)
    forms = normal_forms(texts)
    signed = task.signer.sign(texts)
    # What the keep rule and the memory of a chunk count: in Chinese each character is a word.
    words = np.where(forms.words > 0, np.maximum(signed.words, 1), 0)
    write_records(task.url("left"), LEFT, rows, records["id_high"], records["id_low"], words)
    some = np.flatnonzero(words)  # of what is not blank: its digests and band keys
    left = rows[some]
    digests = forms.digests[some]
    write_records(task.url("left-exact"), EXACT, digests[:, 0], digests[:, 1], left)
    keys = signed.keys[some]
    order = packed_order(words[some], records["id_high"][some])
    bands = keys.shape[1]
    columns = (np.repeat(order, bands), np.repeat(left, bands))
    write_records(task.url("bands"), BANDS, keys.reshape(-1), *columns)
    facts = {
        "removed_lines": len(removed),
        "removed_chars": num_chars,
        "blank": int((words == 0).sum()),
    }
    return ShardResult((), Counts(len(rows), len(rows)), facts)


def _removed_lines(task: DedupeTask, place: Place) -> Records:
    """(row, line) of the lines that the ranges of keys have found repeated, sorted."""
    parts = [np.zeros(0, REMOVED)]
    for index in range(task.num_ranges):
        url = file_url(task.folder, "removals", index)
        parts.append(read_range(url, REMOVED, place.base, place.end))
    found = np.concatenate(parts)
    found["key"] -= np.uint64(place.base)
    return found[np.lexsort((found["line_32"], found["key"]))]


def texts_without_lines(
    docs_url: str, rows: npt.NDArray[np.int64], removed: Records
) -> tuple[pa.Array, int]:
    """The texts of these ascending rows as they are signed, and how many characters they have
    lost; `removed`: (row, line), sorted."""
    table = read_columns(docs_url, Document.NAME, Document.VERSION, ["text"])
    texts = _array(table.take(pa.array(rows))["text"])
    starts, ends = _runs(removed, rows)
    shorter = np.flatnonzero(ends > starts)
    if not len(shorter):
        return texts, 0
    lost = 0
    changed: list[str] = []
    for index, text in zip(shorter, texts.take(pa.array(shorter)).to_pylist(), strict=True):
        lines = removed["line_32"][starts[index] : ends[index]].tolist()
        changed.append(without_lines(text, lines))
        lost += len(text) - len(changed[-1])
    mask = np.zeros(len(texts), np.bool_)
    mask[shorter] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(changed, texts.type)), lost


def _runs(
    removed: Records, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each row's lines begin and end in `removed`."""
    keys, wanted = np.ascontiguousarray(removed["key"]), rows.astype(np.uint64)
    return np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")


def write_sidecar(task: DedupeTask) -> ShardResult:
    """`dedupe-NNNNN.parquet`: a row for each document, by what was decided."""
    ids, rows = _kept(task)
    table, reasons = _sidecar(task, ids, rows)
    name = f"dedupe-{task.shard:05d}.parquet"
    url = f"{task.folder}/{name}"
    write_table(table, url)
    found = Counter(name for name in map(REASONS.__getitem__, reasons.tolist()) if name)
    dropped = dict(sorted(found.items()))
    counts = Counts(len(rows), len(rows) - found.total(), dropped)
    return ShardResult((describe_file(url, name, len(ids)),), counts)


def _sidecar(
    task: DedupeTask, ids: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]
) -> tuple[pa.Table, npt.NDArray[np.uint8]]:
    decided = _decided(task)
    where = decided["key"].astype(np.int64)
    judged = np.zeros(len(ids), np.bool_)
    judged[rows] = True
    reasons = np.zeros(len(ids), np.uint8)
    left = read_range(task.url("left"), LEFT)
    reasons[left["key"][left["words_32"] == 0].astype(np.int64)] = BLANK
    reasons[where] = np.where(decided["reason"] == LINKED, reasons[where], decided["reason"])
    superseded = _superseded(task)
    older = superseded["key"].astype(np.int64)
    reasons[older] = SUPERSEDED
    cluster = ids.copy()
    cluster[where] = np.stack([decided["cluster_high"], decided["cluster_low"]], axis=1)
    stands, corpus = np.zeros_like(ids), np.full(len(ids), -1)
    stands[where] = np.stack([decided["stands_high"], decided["stands_low"]], axis=1)
    stands[older] = np.stack([superseded["id_high"], superseded["id_low"]], axis=1)
    corpus[where] = decided["corpus"]
    similarity = np.full(len(ids), np.nan)
    similarity[where] = decided["similarity"]
    not_alike = np.isnan(similarity)
    stays = not_alike & (reasons != SUPERSEDED)
    columns = {
        "doc_id": format_ids(ids[:, 0], ids[:, 1]),
        "judged": judged,
        "drop_reason": pa.array([REASONS[reason] for reason in reasons.tolist()], pa.string()),
        "cluster": _masked(format_ids(cluster[:, 0], cluster[:, 1]), ~judged),
        "stands_for": _masked(format_ids(stands[:, 0], stands[:, 1]), stays),
        "stands_in": pa.array(
            [task.corpora[number] if number >= 0 else None for number in corpus.tolist()],
            pa.string(),
        ),
        "similarity": pa.array(similarity, mask=not_alike),
        "removed_lines": _lists(read_range(task.url("removed"), REMOVED), len(ids)),
    }
    return pa.table(columns, schema=SCHEMA), reasons


def _decided(task: DedupeTask) -> Records:
    """By row."""
    if not task.num_decided:
        return read_range(task.url("decisions"), DECISIONS)
    place = Layout.read(task.folder).own[task.shard]
    parts = [
        read_range(file_url(task.folder, "decided", index), DECISIONS, place.base, place.end)
        for index in range(task.num_decided)
    ]
    found = np.concatenate(parts)
    found["key"] -= np.uint64(place.base)
    return found


def _masked(strings: pa.Array, nulls: npt.NDArray[np.bool_]) -> pa.Array:
    return pc.if_else(pa.array(~nulls), strings, pa.scalar(None, pa.string()))


def _lists(removed: Records, num_rows: int) -> Any:
    removed = removed[np.lexsort((removed["line_32"], removed["key"]))]
    offsets = np.searchsorted(removed["key"], np.arange(num_rows + 1, dtype=np.uint64))
    values = pa.array(removed["line_32"].astype(np.int32))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
