"""The tasks of describe over files of documents with their sidecars: what became of each document.

A task holds some MB at a time, and what it writes is bounded, whatever the file. No excerpt has
personal data in it.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from pyarrow import compute

from pipeline.core import storage
from pipeline.core.manifest import Counts
from pipeline.core.records import Document, read_columns
from pipeline.core.shard_tasks import ShardResult
from pipeline.decontaminate import OVERLAPS, OVERLAPS_VERSION
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION
from pipeline.dedupe_files import parse_ids
from pipeline.quality import SIGNALS, SIGNALS_VERSION
from pipeline.quality_rules import BLOCK_REASONS, BLOCKED, QualityConfig, rules_of
from pipeline.repeated_lines import without_lines
from pipeline.section_files import Records, read_range, write_sorted
from pipeline.shard_files import iter_rows, rows_at_once
from pipeline.tallies import Findings, log_bin
from pipeline.text import pii

EXCERPT = 300  # characters shown of a text
REJECTS_SHOWN, PAIRS_SHOWN, OVERLAPS_SHOWN = 3, 5, 5
NUM_REASONS = 4096  # of a stage: all that there are, as a status has three digits
EARLIER_SHOWN = 20  # corpora with examples
STAGES = ("extract", "quality", "dedupe", "decontaminate")
KEPT = ""  # the name under which a stage's tally counts what went on
MEMBER = np.dtype([("key", "<u8"), ("low", "<u8")])  # a cluster's id, once for each linked document
_READ_FOR_AN_EXCERPT = 2000  # characters, so that personal data at its end is seen whole
_LONGEST_URL = 500
_LONGEST_NAME = 120  # of a licence
_SPAN = 100
_DUPLICATE_COLUMNS = [
    *("doc_id", "judged", "drop_reason", "cluster", "stands_for", "stands_in", "similarity"),
    "removed_lines",
]
pc: Any = compute  # it makes its functions when it is imported: no checker knows them


@dataclasses.dataclass(frozen=True)
class DocumentsTask:
    """One file of documents and its sidecars, row for row; `overlaps_url` None: no such step."""

    name: str
    docs_url: str
    signals_url: str
    dedupe_url: str
    overlaps_url: str | None
    rejects_url: str
    folder: str
    quality: QualityConfig


@dataclasses.dataclass(frozen=True)
class SizesTask:
    """The clusters whose id begins with low <= ... < high (64 bits)."""

    names: tuple[str, ...]
    folder: str
    low: int
    high: int


def findings_url(folder: str, name: str) -> str:
    return storage.join(folder, f"found-{name}.json")


def members_url(folder: str, name: str) -> str:
    return storage.join(folder, f"members-{name}.sorted")


def excerpt(text: str) -> str:
    """The beginning of a text, without personal data."""
    clean = pii.redact(text[:_READ_FOR_AN_EXCERPT]).text
    return clean if len(clean) <= EXCERPT else clean[:EXCERPT] + "…"


def write_findings(
    folder: str, name: str, found: Findings, counts: Counts, **facts: Any
) -> ShardResult:
    data = found.to_bytes()
    storage.write_bytes(findings_url(folder, name), data)
    return ShardResult((), counts, {"xxh3": xxhash.xxh3_64_hexdigest(data), **facts})


# ----------------------------------------------------------------------------- all documents


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Some rows of a file of documents, from row `first` on, and of its sidecars."""

    first: int
    documents: pa.Table
    signals: pa.Table
    duplicates: pa.Table
    overlaps: pa.Table | None
    task: DocumentsTask

    @functools.cached_property
    def dropped(self) -> list[tuple[str, str] | None]:
        """Of each row the first stage that dropped it, and its reason."""
        tables = [self.documents, self.signals, self.duplicates]
        tables += [self.overlaps] if self.overlaps is not None else []
        columns = [table["drop_reason"].to_pylist() for table in tables]
        return [
            next(((s, r) for s, r in zip(STAGES, reasons, strict=False) if r), None)
            for reasons in zip(*columns, strict=True)
        ]

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Bytes of text."""
        return pc.binary_length(self.documents["text"].cast(pa.large_binary())).to_pylist()

    @functools.cached_property
    def ids(self) -> list[str]:
        return self.documents["doc_id"].to_pylist()

    def place(self, row: int) -> str:
        """Tells apart what has one doc_id."""
        return f"{self.ids[row]} {self.task.name} {self.first + row:09d}"


def describe_documents(task: DocumentsTask) -> ShardResult:
    """What became of one file's documents, and examples. Facts: linked documents, counted by
    cluster in `members-NNNNN.sorted`. Holds some MB of text at a time."""
    found = Findings()
    rejects: list[tuple[str, str]] = []
    members = [np.zeros(0, MEMBER)]
    total = 0
    for rows in _parts(task):
        total += len(rows.documents)
        for row, (size, gone) in enumerate(zip(rows.sizes, rows.dropped, strict=True)):
            _flow(found, rows.overlaps is not None, gone, size)
            if gone:
                rejects.append((rows.ids[row], gone[1]))
                sample = found.sample("rejects " + " ".join(gone), REJECTS_SHOWN)
                sample.offer(
                    rows.ids[row],
                    rows.place(row),
                    lambda row=row, gone=gone, rows=rows: _reject(rows, row, gone),
                )
        for note in (_note_engines, _note_hidden, _note_lines, _note_duplicates, _note_overlaps):
            note(found, rows)
        members.append(_members(rows.duplicates))
    _check_rejects(task, rejects)
    linked = np.sort(np.concatenate(members), order=["key", "low"])
    write_sorted(members_url(task.folder, task.name), linked)
    return write_findings(task.folder, task.name, found, Counts(total, total), linked=len(linked))


def _parts(task: DocumentsTask) -> Iterator[_Rows]:
    columns = ["doc_id", "url", "text", "signals", "drop_reason", "fetched_at", "http_status"]
    columns += ["content_type", "extractor", "extractor_version"]
    size = rows_at_once(task.docs_url, Document.NAME, Document.VERSION)
    sources = [(task.docs_url, Document.NAME, Document.VERSION, columns)]
    columns = ["doc_id", "language", "language_score", "signals", "drop_reason"]
    sources.append((task.signals_url, SIGNALS, SIGNALS_VERSION, columns))
    sources.append((task.dedupe_url, DEDUPE, DEDUPE_VERSION, _DUPLICATE_COLUMNS))
    if task.overlaps_url:
        columns = ["doc_id", "ngrams", "hits", "drop_reason"]
        sources.append((task.overlaps_url, OVERLAPS, OVERLAPS_VERSION, columns))
    first = 0
    for parts in zip(*(iter_rows(*source, size) for source in sources), strict=True):
        assert all(parts[0]["doc_id"].equals(part["doc_id"]) for part in parts), task.docs_url
        overlaps = parts[3] if task.overlaps_url else None
        yield _Rows(first, parts[0], parts[1], parts[2], overlaps, task)
        first += len(parts[0])


def _check_rejects(task: DocumentsTask, expected: list[tuple[str, str]]) -> None:
    """What the sidecars say is dropped is what stands among the rejects."""
    columns = ["doc_id", "drop_reason"]
    rejects = read_columns(task.rejects_url, Document.NAME, Document.VERSION, columns)
    pairs = zip(rejects["doc_id"].to_pylist(), rejects["drop_reason"].to_pylist(), strict=True)
    assert list(pairs) == expected, task.rejects_url


def _flow(found: Findings, has_overlaps: bool, gone: tuple[str, str] | None, size: int) -> None:
    for stage in STAGES if has_overlaps else STAGES[:-1]:
        if gone and gone[0] == stage:
            found.tally(stage, NUM_REASONS).add(gone[1], 1, size)
            return
        found.tally(stage, NUM_REASONS).add(KEPT, 1, size)


def _reject(rows: _Rows, row: int, gone: tuple[str, str]) -> dict[str, Any]:
    return {
        "url": url_of(rows.documents, row),
        "text": excerpt(rows.documents["text"][row].as_py()),
        "why": _why(rows, row, *gone),
    }


def url_of(documents: pa.Table, row: int) -> str:
    """For the card: without personal data."""
    return pii.redact(documents["url"][int(row)].as_py()).text[:_LONGEST_URL]


def _why(rows: _Rows, row: int, stage: str, reason: str) -> str:
    """The values that decided."""
    if stage == "extract":
        status = rows.documents["http_status"][row].as_py()
        return f"status {status}, {rows.documents['content_type'][row].as_py()[:80] or 'no type'}"
    if stage == "quality":
        one = rows.signals.slice(row, 1).to_pylist()[0]
        return _broken_rule(reason, one, rows.task.quality)
    if stage == "dedupe":
        one = rows.duplicates.slice(row, 1).to_pylist()[0]
        if reason == "older-capture":
            return f"the latest capture of its URL is {one['stands_for']}"
        if one["similarity"] is None:
            return f"{len(one['removed_lines'])} lines removed, no word left"
        earlier = f" of {one['stands_in'][:12]}" if one["stands_in"] else ""
        return f"similarity {one['similarity']:.3f} to {one['stands_for']}{earlier}"
    assert rows.overlaps is not None
    one = rows.overlaps.slice(row, 1).to_pylist()[0]
    sets = sorted({hit["set"] for hit in one["hits"]})
    return f"{one['ngrams']} n-grams of {', '.join(sets)[:_SPAN]}"


def _broken_rule(reason: str, row: Mapping[str, Any], config: QualityConfig) -> str:
    signals = dict(row["signals"])
    score = f"{row['language']} with {row['language_score']:.2f}"
    if reason == "language":
        return f"language {score}; kept are {', '.join(config.languages)}"
    if reason == "language-score":
        return f"language {score}, below {config.min_language_score:g}"
    if reason in BLOCK_REASONS:
        return f"{BLOCKED} = {signals[BLOCKED]:g}"
    for name, signal, low, high in rules_of(config):
        if name == reason and not low <= signals[signal] <= high:
            bound = f"below {low:g}" if signals[signal] < low else f"above {high:g}"
            return f"{signal} = {signals[signal]:.4g}, {bound}"
    return ""


def _note_engines(found: Findings, rows: _Rows) -> None:
    columns = (rows.documents["extractor"], rows.documents["extractor_version"])
    names = zip(*(column.to_pylist() for column in columns), strict=True)
    for (engine, version), size, gone in zip(names, rows.sizes, rows.dropped, strict=True):
        if not (gone and gone[0] == STAGES[0]):
            found.tally("engines", 64).add(f"{engine} {version}".strip(), 1, size)
    if len(rows.documents):
        ends = pc.min_max(rows.documents["fetched_at"]).as_py()
        for end in ("min", "max"):
            found.tally("fetched", 4096).add(ends[end].date().isoformat())


def _note_hidden(found: Findings, rows: _Rows) -> None:
    """Pages and texts by kind; a page of several kinds is one flagged page. Of the kind "kept" is
    what the page seems to uncover: it flags none."""
    for signals in rows.documents["signals"].to_pylist():
        kinds = {
            name.removeprefix("hidden_"): int(value)
            for name, value in signals or ()
            if name.startswith("hidden_") and value
        }
        if kinds.keys() - {"kept"}:
            found.tally("flagged").add("pages")
        for kind, number in kinds.items():
            found.tally("hidden_pages").add(kind)
            found.tally("hidden_texts").add(kind, number)


def _note_lines(found: Findings, rows: _Rows) -> None:
    """Of the documents that are kept to the end: bytes of removed lines."""
    lost = rows.duplicates["removed_lines"].to_pylist()
    for row, (lines, gone) in enumerate(zip(lost, rows.dropped, strict=True)):
        if lines and not gone:
            left = without_lines(rows.documents["text"][row].as_py(), lines)
            found.tally("lines").add("documents", 1, rows.sizes[row] - len(left.encode()))
            found.tally("lines").add("lines", len(lines))


def _note_duplicates(found: Findings, rows: _Rows) -> None:
    """Pairs: of each document that stands for others, one."""
    columns = ["drop_reason", "stands_for", "stands_in", "similarity"]
    for row, one in enumerate(rows.duplicates.select(columns).to_pylist()):
        if one["stands_for"] is None:
            continue
        earlier = one["stands_in"] or ""
        if earlier:
            found.tally("earlier", 256).add(earlier, 1, rows.sizes[row])
        if one["drop_reason"] != "near-duplicate" and not earlier:
            continue
        sample = found.sample(f"pairs {earlier}".strip(), PAIRS_SHOWN)
        sample.offer(
            one["stands_for"],
            rows.place(row),
            lambda row=row, one=one: {
                "url": url_of(rows.documents, row),
                "text": excerpt(rows.documents["text"][row].as_py()),
                "reason": one["drop_reason"],
                "stands_for": one["stands_for"],
                "stands_in": one["stands_in"] or "",
                "similarity": round(one["similarity"], 4),
            },
        )


def _note_overlaps(found: Findings, rows: _Rows) -> None:
    if rows.overlaps is None:
        return
    for row, number in enumerate(rows.overlaps["ngrams"].to_pylist()):
        if number:
            found.sample("overlaps", OVERLAPS_SHOWN).offer(
                rows.ids[row],
                rows.place(row),
                lambda row=row, overlaps=rows.overlaps: _overlap(overlaps, rows.documents, row),
            )


def _overlap(overlaps: pa.Table, documents: pa.Table, row: int) -> dict[str, Any]:
    one = overlaps.slice(row, 1).to_pylist()[0]
    hit = one["hits"][0]
    return {
        "url": url_of(documents, row),
        "set": hit["set"][:_LONGEST_NAME],
        "item": hit["item"],
        "words": hit["words"],
        "ngrams": one["ngrams"],
        "dropped": one["drop_reason"] is not None,
        "text": pii.redact(hit["span"][:_READ_FOR_AN_EXCERPT]).text[:_SPAN],
    }


def _members(duplicates: pa.Table) -> Records:
    """The cluster of each document that is not its cluster's first."""
    linked = pc.and_(pc.is_valid(duplicates["cluster"]), duplicates["judged"])
    linked = pc.and_(linked, pc.not_equal(duplicates["cluster"], duplicates["doc_id"]))
    ids = parse_ids(duplicates["cluster"].filter(pc.fill_null(linked, False)))
    records = np.zeros(len(ids), MEMBER)
    records["key"], records["low"] = ids[:, 0], ids[:, 1]
    return records


def cluster_sizes(task: SizesTask) -> ShardResult:
    """Facts: how many clusters there are, by log_bin of their size, and the largest; a cluster is
    its first document, wherever that is, and those of this corpus that are linked to it."""
    parts = (
        read_range(members_url(task.folder, name), MEMBER, task.low, task.high)
        for name in task.names
    )
    members = np.concatenate([np.zeros(0, MEMBER), *parts])
    _, numbers = np.unique(members, return_counts=True)
    found = Findings()
    for number in (numbers + 1).tolist():
        found.tally("clusters").add(str(log_bin(number)), 1, number)
    largest = int(numbers.max()) + 1 if len(numbers) else 0
    facts = {"clusters": found.tally("clusters").counts, "largest": largest}
    return ShardResult((), Counts(len(members), len(members)), facts)
