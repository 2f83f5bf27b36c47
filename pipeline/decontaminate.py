"""Which documents hold items of evaluation sets, by shared 13-grams: a sidecar of the documents.

What it cannot see: other words for the same. Of lm-sys's rephrased items it finds 0 of 485 in
English, 0 of 503 in Chinese, 2 of 147 HumanEval solutions in other Python, 7 of 157 in C; of the
669 items as they are, all.
"""

import dataclasses
import functools
import hashlib
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.core import storage
from pipeline.core.config import RunConfig, Section, operational
from pipeline.core.errors import UserError
from pipeline.core.identity import sha256_text
from pipeline.core.manifest import Counts, DamagedOutput, Manifest, StageOutput, describe_file
from pipeline.core.records import Document, read_table, with_version, write_table
from pipeline.core.remote import Runtime
from pipeline.core.shard_tasks import ShardResult, map_shards
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION
from pipeline.evaluation_ngrams import EvaluationNgrams, Hit, build, find_hits, read_items
from pipeline.text.disguises import undisguised
from pipeline.text.pii import redact
from pipeline.text.word_hashes import VERSION as HASHES_VERSION
from pipeline.text.word_hashes import word_hashes, word_places

STAGE, VERSION = "decontaminate", 3
CONTAMINATED = "contaminated"
OVERLAPS, OVERLAPS_VERSION = "Overlaps", 1
_MAX_HITS = 20  # kept of one document; all are counted
_HIT = pa.struct(
    [
        pa.field("set", pa.string(), nullable=False),
        pa.field("item", pa.int64(), nullable=False),  # its row in the set's file
        pa.field("words", pa.int32(), nullable=False),
        pa.field("start", pa.int64()),  # characters of the extracted text; null: they are unknown
        pa.field("end", pa.int64()),
        pa.field("span", pa.string(), nullable=False),
    ]
)
SCHEMA = with_version(
    pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("judged", pa.bool_(), nullable=False),  # false: an earlier stage dropped it
            pa.field("drop_reason", pa.string()),
            pa.field("ngrams", pa.int64(), nullable=False),
            pa.field("hits", pa.list_(_HIT), nullable=False),
        ]
    ),
    OVERLAPS,
    OVERLAPS_VERSION,
)
_INDEX, _INDEX_VERSION = "EvaluationNgrams", 1
_INDEX_FILES = ("ngrams.parquet", "items.parquet")
_INDEX_SCHEMA = with_version(
    pa.schema([pa.field("hash", pa.uint64()), pa.field("item", pa.uint32())]),
    _INDEX,
    _INDEX_VERSION,
)
_NAMES_SCHEMA = with_version(
    pa.schema([pa.field("set", pa.string()), pa.field("row", pa.int64())]), _INDEX, _INDEX_VERSION
)


class DecontaminateConfig(Section):
    against: list[str] = operational(
        [], description="evaluation sets: Parquet files; none: no step"
    )
    columns: list[str] = Field([], description="their columns to look at; empty: all with text")
    ngram_words: int = Field(13, ge=1, description="words in a row that are no accident")
    min_item_words: int = Field(
        8, ge=1, description="a shorter text of an item is looked for as a whole; below this not"
    )
    min_ngrams: int = Field(1, ge=1, description="n-grams in common that drop a document")


@dataclasses.dataclass(frozen=True)
class DecontaminateTask:
    docs_url: str
    dedupe_url: str
    output_url: str
    output_name: str
    folder: str
    digests: tuple[str, ...]
    sizes: tuple[int, ...]
    min_ngrams: int


def run_decontaminate(
    config: DecontaminateConfig, docs: Manifest, dedupe: Manifest, run: RunConfig, runtime: Runtime
) -> Manifest:
    """`overlaps-NNNNN.parquet` beside each `docs-NNNNN.parquet`: row for row. Facts: items and
    n-grams looked for, items too short to be, documents that each set was found in.

    Every worker holds the n-grams, 12 bytes each. Raises UserError for a set that cannot be read.
    """
    if not config.against:
        raise UserError("decontaminate.against is empty; name the evaluation sets' Parquet files")
    digests = digests_of(config)
    parents: dict[str, Manifest | str] = {
        "docs": docs,
        "dedupe": dedupe,
        "against": sha256_text("\n".join([*digests, str(HASHES_VERSION)])),
    }
    output = StageOutput.of(run.root, STAGE, VERSION, config.identity(), parents)
    if done := output.finished():
        return done
    started = time.time()
    with output.lock():
        items = list(read_items(config.against, config.columns))
        index = build(items, config.ngram_words, config.min_item_words)
        digests = _write_index(output, index)
        tasks = _tasks(config, docs, dedupe, output, digests, index)
        results = map_shards(runtime, output, "scan", scan_file, tasks)
        found: Counter[str] = Counter()
        for result in results:
            found.update(result.facts)
        return output.commit(
            [entry for result in results for entry in result.files],
            Counts.total([result.counts for result in results]),
            started=started,
            record=OVERLAPS,
            facts=_facts(index, found),
        )


def _facts(index: EvaluationNgrams, found: Counter[str]) -> dict[str, Any]:
    return {
        "items": len(index.names),
        "items_too_short": index.too_short,
        "ngrams": len(np.unique(index.hashes)),
        "documents_by_set": dict(sorted(found.items())),
    }


def _tasks(
    config: DecontaminateConfig,
    docs: Manifest,
    dedupe: Manifest,
    output: StageOutput,
    digests: tuple[str, ...],
    index: EvaluationNgrams,
) -> dict[str, DecontaminateTask]:
    tasks: dict[str, DecontaminateTask] = {}
    for text, sidecar in zip(docs.files, dedupe.files, strict=True):
        name = text.name.replace("docs-", "overlaps-")
        tasks[name] = DecontaminateTask(
            docs.file_url(text.name),
            dedupe.file_url(sidecar.name),
            output.path(name),
            name,
            output.url,
            digests,
            index.sizes,
            config.min_ngrams,
        )
    return tasks


def digests_of(config: DecontaminateConfig) -> list[str]:
    """Of the evaluation sets. Raises UserError for one that cannot be read."""
    return [_digest(url) for url in config.against]


def _digest(url: str) -> str:
    try:
        return hashlib.sha256(storage.read_bytes(url)).hexdigest()
    except OSError as error:
        raise UserError(
            f"decontaminate.against: {url} cannot be read ({error.strerror}); name Parquet files"
        ) from None


def _write_index(output: StageOutput, index: EvaluationNgrams) -> tuple[str, ...]:
    """For the workers; the digests of its files."""
    table = pa.table({"hash": index.hashes, "item": index.items}, schema=_INDEX_SCHEMA)
    sets, rows = zip(*index.names, strict=True) if index.names else ((), ())
    names = pa.table({"set": list(sets), "row": list(rows)}, schema=_NAMES_SCHEMA)
    for name, content in zip(_INDEX_FILES, (table, names), strict=True):
        write_table(content, output.path(name))
    return tuple(describe_file(output.path(name), name).sha256 for name in _INDEX_FILES)


@functools.lru_cache(maxsize=1)
def _read_index(
    folder: str, digests: tuple[str, ...], sizes: tuple[int, ...]
) -> tuple[EvaluationNgrams, Any]:
    """Once in each worker, with its filter. Raises DamagedOutput for a file that is not as it was
    written; the next run writes both anew."""
    for name, digest in zip(_INDEX_FILES, digests, strict=True):
        if describe_file(storage.join(folder, name), name).sha256 != digest:
            raise DamagedOutput(folder, name, is_own=True)
    table, names = (
        read_table(storage.join(folder, name), _INDEX, _INDEX_VERSION) for name in _INDEX_FILES
    )
    pairs = tuple(zip(names["set"].to_pylist(), names["row"].to_pylist(), strict=True))
    index = EvaluationNgrams(
        np.asarray(table["hash"]), np.asarray(table["item"]), sizes, pairs, too_short=0
    )
    return index, index.filter()


def scan_file(task: DecontaminateTask) -> ShardResult:
    """Facts: by set, the documents that it was found in."""
    index, flags = _read_index(task.folder, task.digests, task.sizes)
    documents = read_table(task.docs_url, Document.NAME, Document.VERSION)
    sidecar = read_table(task.dedupe_url, DEDUPE, DEDUPE_VERSION)
    columns = sidecar.select(["doc_id", "judged", "drop_reason", "removed_lines"]).to_pylist()
    rows: list[dict[str, Any]] = []
    sets: Counter[str] = Counter()
    for text, before in zip(documents["text"], columns, strict=True):
        judged = before["judged"] and before["drop_reason"] is None
        plain, places = _read_as(text.as_py(), before["removed_lines"]) if judged else ("", ())
        words = word_hashes(plain)
        hits = find_hits(words, index, flags)
        spans = word_places(plain, len(words)) if hits else None
        if spans is not None:
            spans = [(places[start], places[end - 1] + 1) for start, end in spans]
        row = _row(before["doc_id"], text.as_py(), hits, index, spans)
        ngrams = row["ngrams"]
        reason = CONTAMINATED if ngrams >= task.min_ngrams else None
        rows.append(row | {"judged": judged, "drop_reason": reason})
        sets.update({index.names[item][0] for hit in hits for item in hit.items})
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), task.output_url)
    total = sum(row["judged"] for row in rows)
    dropped = sum(row["drop_reason"] is not None for row in rows)
    counts = Counts(total, total - dropped, {CONTAMINATED: dropped} if dropped else {})
    entry = describe_file(task.output_url, task.output_name, len(rows))
    return ShardResult((entry,), counts, dict(sets))


def _read_as(text: str, removed: Collection[int]) -> tuple[str, Sequence[int]]:
    """The text as it is trained on, without the lines that others keep, and without disguises; for
    each of its characters the place in `text`."""
    left, kept = list[str](), list[int]()
    at = 0
    for number, line in enumerate(text.split("\n") if removed else ()):
        if number not in removed:
            left.append(f"{line}\n")
            kept.extend(range(at, at + len(line) + 1))
        at += len(line) + 1
    plain, places = undisguised("".join(left) if removed else text)
    return plain, [kept[place] for place in places[:-1]] if removed else places


def _row(
    identity: str,
    text: str,
    hits: list[Hit],
    index: EvaluationNgrams,
    places: Sequence[tuple[int, int]] | None,
) -> dict[str, Any]:
    """`places`: of each word in the text; None if they are unknown."""
    longest = sorted(hits, key=lambda hit: (hit.start - hit.end, hit.start))[:_MAX_HITS]
    found: list[dict[str, Any]] = []
    for hit, item in [(one, item) for one in longest for item in one.items]:
        name, row = index.names[item]
        start = places[hit.start][0] if places else None
        end = places[hit.end - 1][1] if places else None
        found.append(
            {
                "set": name,
                "item": row,
                "words": hit.end - hit.start,
                "start": start,
                "end": end,
                "span": "" if start is None else redact(text[start:end]).text,
            }
        )
    ngrams = sum(hit.ngrams for hit in hits)
    return {"doc_id": identity, "ngrams": ngrams, "hits": found[:_MAX_HITS]}
