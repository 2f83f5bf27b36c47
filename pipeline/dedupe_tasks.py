"""The map tasks of dedupe, pure in their files, and the files that stand between its steps."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import xxhash

from pipeline.core import storage
from pipeline.core.manifest import Counts, ShardResult
from pipeline.core.records import Document, read_table, with_version, write_table
from pipeline.quality import SIGNALS, SIGNALS_VERSION
from pipeline.repeated_lines import line_keys, lines_to_remove, without_lines
from pipeline.text.normalise import normalise
from pipeline.text.signatures import Hashes, Signer, jaccard

# The kinds of files between the steps; a kind's files are {kind}-NNNNN.parquet.
TEXTS, LINES, SURVIVORS, REPEATED = "texts", "lines", "survivors", "repeated"
SIGNATURES, PAIRS, EDGES = "signatures", "pairs", "edges"
PAIR = ("left_shard", "left_row", "right_shard", "right_row")
_VERSION = 1
_PAIR_FIELDS = [pa.field(name, pa.int64(), nullable=False) for name in PAIR]
_ROW = pa.field("row", pa.int32(), nullable=False)
_TEXT_FIELDS = [
    _ROW,
    pa.field("doc_id", pa.string(), nullable=False),
    pa.field("words", pa.int32(), nullable=False),
    pa.field("digest", pa.string(), nullable=False),
]
_SCHEMAS = {
    TEXTS: pa.schema([*_TEXT_FIELDS, pa.field("payload", pa.string(), nullable=False)]),
    LINES: pa.schema([pa.field("key", pa.uint64(), nullable=False), _ROW]),
    SURVIVORS: pa.schema([_ROW]),
    REPEATED: pa.schema(
        [
            pa.field("key", pa.uint64(), nullable=False),
            pa.field("first", pa.string(), nullable=False),
        ]
    ),
    SIGNATURES: pa.schema(
        [
            *_TEXT_FIELDS,
            pa.field("removed_lines", pa.list_(pa.int32()), nullable=False),
            pa.field("bands", pa.list_(pa.uint64()), nullable=False),
        ]
    ),
    PAIRS: pa.schema(_PAIR_FIELDS),
    EDGES: pa.schema([*_PAIR_FIELDS, pa.field("similarity", pa.float64(), nullable=False)]),
}


@dataclasses.dataclass(frozen=True)
class DedupeTask:
    """One shard of documents with its signals; `folder` is the stage's output."""

    shard: int
    docs_url: str
    signals_url: str
    folder: str
    line_min_chars: int
    signer: Signer


@dataclasses.dataclass(frozen=True)
class VerifyTask:
    """One file of candidate pairs, over all shards."""

    index: int
    shards: tuple[DedupeTask, ...]
    threshold: float


def write_internal(folder: str, kind: str, columns: Mapping[str, Any], index: int = 0) -> None:
    schema = with_version(_SCHEMAS[kind], f"dedupe-{kind}", _VERSION)
    write_table(pa.table(dict(columns), schema=schema), _internal(folder, kind, index))


def read_internal(folder: str, kind: str, index: int = 0) -> pa.Table:
    return read_table(_internal(folder, kind, index), f"dedupe-{kind}", _VERSION)


def _internal(folder: str, kind: str, index: int) -> str:
    return storage.join(folder, f"{kind}-{index:05d}.parquet")


def read_ids(task: DedupeTask) -> list[str]:
    """The doc_id of each row of the shard, kept or not."""
    signals = read_table(task.signals_url, SIGNALS, SIGNALS_VERSION)
    return signals["doc_id"].to_pylist()


def hash_file(task: DedupeTask) -> ShardResult:
    """Digests of the kept documents, and the keys of their lines once for each document."""
    documents, signals = _inputs(task)
    texts: list[dict[str, Any]] = []
    keys: list[int] = []
    owners: list[int] = []
    kept = zip(documents.to_pylist(), signals.to_pylist(), strict=True)
    for row, (document, signal) in enumerate(kept):
        assert document["doc_id"] == signal["doc_id"], (task.docs_url, row)
        if not signal["judged"] or signal["drop_reason"] is not None:
            continue
        texts.append(
            _text_row(row, document["doc_id"], document["text"])
            | {"payload": document["payload_sha256"]}
        )
        found = set(line_keys(document["text"], document["url"], task.line_min_chars).values())
        keys += sorted(found)
        owners += [row] * len(found)
    write_internal(task.folder, TEXTS, _columns(TEXTS, texts), task.shard)
    write_internal(task.folder, LINES, {"key": keys, "row": owners}, task.shard)
    return ShardResult((), Counts(len(texts), len(texts)))


def sign_file(task: DedupeTask) -> ShardResult:
    """Signatures of the survivors' texts without the lines that another document keeps."""
    documents, _ = _inputs(task)
    repeated = read_internal(task.folder, REPEATED)
    first = dict(zip(repeated["key"].to_pylist(), repeated["first"].to_pylist(), strict=True))
    survivors = read_internal(task.folder, SURVIVORS, task.shard)["row"]
    signed: list[dict[str, Any]] = []
    texts: list[str] = []
    num_chars = 0
    survived = documents.take(survivors).to_pylist()
    for row, document in zip(survivors.to_pylist(), survived, strict=True):
        text, identity = document["text"], document["doc_id"]
        keys = line_keys(text, document["url"], task.line_min_chars) if first else {}
        removed = lines_to_remove(keys, first, identity)
        left = without_lines(text, removed)
        texts.append(left)
        signed.append(_text_row(row, identity, left) | {"removed_lines": removed})
        num_chars += len(text) - len(left)
    for row, bands in zip(signed, task.signer.sign(texts).keys.tolist(), strict=True):
        row["bands"] = bands if row["digest"] else []
    num_lines = sum(len(row["removed_lines"]) for row in signed)
    write_internal(task.folder, SIGNATURES, _columns(SIGNATURES, signed), task.shard)
    facts = {"removed_lines": num_lines, "removed_chars": num_chars}
    return ShardResult((), Counts(len(signed), len(signed)), facts)


def verify_pairs(task: VerifyTask) -> ShardResult:
    """Exact Jaccard similarity of each candidate pair's shingles; those at the threshold stay."""
    folder = task.shards[0].folder
    pairs = read_internal(folder, PAIRS, task.index)
    columns = [column.to_pylist() for column in pairs.columns]
    left = list(zip(columns[0], columns[1], strict=True))
    right = list(zip(columns[2], columns[3], strict=True))
    sets: dict[tuple[int, int], Hashes] = {}
    for shard in task.shards:
        rows = sorted({row for number, row in {*left, *right} if number == shard.shard})
        found = shard.signer.shingle_sets(list(_left_texts(shard, rows)))
        for index, row in enumerate(rows):
            sets[shard.shard, row] = found.of(index)
    edges: list[tuple[int, int, int, int, float]] = []
    for a, b in zip(left, right, strict=True):
        similarity = jaccard(sets[a], sets[b])
        if similarity >= task.threshold:
            edges.append((*a, *b, similarity))
    names = _SCHEMAS[EDGES].names
    found = {name: [edge[i] for edge in edges] for i, name in enumerate(names)}
    write_internal(folder, EDGES, found, task.index)
    below = len(left) - len(edges)
    return ShardResult((), Counts(len(left), len(edges), {"below-threshold": below}))


def _left_texts(task: DedupeTask, rows: list[int]) -> Iterable[str]:
    """The texts of these rows as they were signed. Reads the shard's text column whole."""
    if not rows:
        return
    signatures = read_internal(task.folder, SIGNATURES, task.shard)
    removed = dict(
        zip(signatures["row"].to_pylist(), signatures["removed_lines"].to_pylist(), strict=True)
    )
    texts = read_table(task.docs_url, Document.NAME, Document.VERSION)["text"].take(pa.array(rows))
    for row, text in zip(rows, texts.to_pylist(), strict=True):
        yield without_lines(text, removed[row])


def _inputs(task: DedupeTask) -> tuple[pa.Table, pa.Table]:
    documents = read_table(task.docs_url, Document.NAME, Document.VERSION)
    signals = read_table(task.signals_url, SIGNALS, SIGNALS_VERSION)
    return (
        documents.select(["doc_id", "url", "text", "payload_sha256"]),
        signals.select(["doc_id", "judged", "drop_reason"]),
    )


def _text_row(row: int, identity: str, text: str) -> dict[str, Any]:
    plain = normalise(text)
    digest = xxhash.xxh3_128_hexdigest(plain.encode()) if plain else ""
    return {"row": row, "doc_id": identity, "words": len(plain.split()), "digest": digest}


def _columns(kind: str, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in _SCHEMAS[kind].names}
