"""Small made-up inputs of the corpus stages: English text, WARC files, manifests of both."""

import datetime as dt
import gzip
import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.core.identity import doc_id
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import Document, to_table, write_table

_VOCABULARY = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "have",
    "with",
    "for",
    "not",
    "you",
    "this",
    "but",
    "from",
    "they",
    "say",
    "her",
    "she",
    "will",
    "one",
    "all",
    "would",
    "there",
    "their",
    "what",
    "about",
    "which",
    "when",
    "make",
    "can",
    "like",
    "time",
    "just",
    "know",
    "take",
    "people",
    "into",
    "year",
    "good",
    "some",
    "could",
    "them",
    "see",
    "other",
    "than",
    "then",
    "now",
    "look",
    "only",
    "come",
    "over",
    "think",
    "also",
    "back",
    "after",
    "use",
    "two",
    "how",
    "our",
    "work",
    "first",
    "well",
    "way",
    "even",
    "new",
    "want",
    "because",
    "any",
    "these",
    "give",
    "day",
    "most",
    "water",
    "house",
    "river",
    "garden",
    "mountain",
    "letter",
    "window",
    "morning",
    "teacher",
    "village",
    "winter",
    "bridge",
    "music",
    "answer",
    "paper",
    "market",
    "doctor",
    "kitchen",
    "station",
    "evening",
    "silver",
    "forest",
    "harbour",
    "journey",
    "captain",
    "promise",
    "shadow",
]


@pytest.fixture(scope="session")
def english() -> Callable[[int, int], str]:
    """english(seed, words): random English words in lines of twelve; few 5-grams in common."""

    def text(seed: int, words: int) -> str:
        rng = random.Random(seed)
        chosen = [rng.choice(_VOCABULARY) for _ in range(words)]
        lines = [" ".join(chosen[start : start + 12]) for start in range(0, words, 12)]
        return "\n".join(f"{line.capitalize()}." for line in lines)

    return text


@pytest.fixture(scope="session")
def warc_record() -> Callable[..., bytes]:
    """One gzip member: a response record, as ISO 28500 writes it."""

    def record(
        url: str, body: bytes, content_type: str = "text/html; charset=utf-8", status: int = 200
    ) -> bytes:
        http = f"HTTP/1.1 {status} Any\r\nContent-Type: {content_type}\r\n\r\n".encode() + body
        head = (
            "WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:0>\r\n"
            f"WARC-Target-URI: {url}\r\nWARC-Date: 2024-05-06T07:08:09Z\r\n"
            f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
        )
        return gzip.compress(head.encode() + http + b"\r\n\r\n", mtime=0)

    return record


@pytest.fixture(scope="session")
def source_manifest() -> Callable[[str, Sequence[Path]], Manifest]:
    """The manifest an ingest of these WARC files would leave."""

    def manifest(root: str, files: Sequence[Path]) -> Manifest:
        entries = [describe_file(str(path), path.name) for path in files]
        output = StageOutput.of(root, "ingest", 1, {"names": [path.name for path in files]}, {})
        where = {path.name: str(path) for path in files}
        return output.commit(entries, Counts(0, 0), started=0.0, run={"locations": where})

    return manifest


@pytest.fixture(scope="session")
def document() -> Callable[..., Document]:
    """A kept document of this text; its payload is the text and its page one of its own on a.test
    unless said otherwise."""

    def make(
        text: str,
        url: str = "",
        payload: str | None = None,
        reason: str | None = None,
    ) -> Document:
        digest = hashlib.sha256((text if payload is None else payload).encode()).hexdigest()
        url = url or f"http://a.test/{digest[:16]}"
        return Document(
            doc_id=doc_id(url, digest),
            url=url,
            fetched_at=dt.datetime(2024, 5, 6, tzinfo=dt.UTC),
            warc_file="made-up.warc.gz",
            warc_offset=0,
            payload_sha256=digest,
            http_status=200,
            content_type="text/html",
            extractor="none",
            extractor_version="",
            title="",
            text=text,
            drop_reason=reason,
        )

    return make


@pytest.fixture(scope="session")
def docs_manifest() -> Callable[[str, Sequence[Sequence[Document]]], Manifest]:
    """The manifest that extract would leave for these documents, one file for each list."""

    def manifest(root: str, shards: Sequence[Sequence[Document]]) -> Manifest:
        ids = [[document.doc_id for document in shard] for shard in shards]
        output = StageOutput.of(root, "extract", 1, {"made_of": ids}, {})
        entries = []
        for index, shard in enumerate(shards):
            name = f"docs-{index:05d}.parquet"
            write_table(to_table(shard, Document), output.path(name))
            entries.append(describe_file(output.path(name), name, len(shard)))
        reasons = [document.drop_reason for shard in shards for document in shard]
        dropped = {reason: reasons.count(reason) for reason in sorted(filter(None, reasons))}
        counts = Counts(len(reasons), reasons.count(None), dropped)
        return output.commit(entries, counts, started=0.0, record="Document")

    return manifest
