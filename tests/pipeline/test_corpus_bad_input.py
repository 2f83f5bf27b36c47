"""What the web, the disk and the machine do to a corpus: it costs what it must, counted, no more."""

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest, describe_file, read_manifest
from pipeline.core.records import Document, read_table
from pipeline.core.remote import InlineRuntime
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION, DedupeConfig, run_dedupe
from pipeline.extract import ExtractConfig, run_extract
from pipeline.quality import QualityConfig, run_quality
from pipeline.shard import ShardConfig, run_shard

ROOT = Path(__file__).resolve().parents[2]
FAILURES = {"extract-timeout", "extract-crash", "extract-memory", "extract-error", "empty-text"}
ALL = {"min_chars": 0}  # no first look that drops what is short
Record = Callable[..., bytes]
English = Callable[[int, int], str]


def page(text: str, head: str = "") -> bytes:
    lines = "".join(f"<p>{line}</p>" for line in text.split("\n"))
    return f"<html><head>{head}</head><body><main>{lines}</main></body></html>".encode()


def stages(source: Manifest, run: RunConfig, config: ExtractConfig) -> list[Manifest]:
    """extract, quality, dedupe, shard; every document that has a text is good enough."""
    runtime = InlineRuntime()
    docs = run_extract(config, source, run, runtime)
    quality = run_quality(QualityConfig(rules=[], languages=[]), docs, run, runtime)
    dedupe = run_dedupe(DedupeConfig(), docs, quality, run, runtime)
    shard = run_shard(ShardConfig(heldout_fraction=0), docs, quality, dedupe, run, runtime)
    for before, after in ((docs, quality), (quality, dedupe)):
        assert after.counts.rows_in == before.counts.rows_out
    assert shard.counts.rows_in == docs.counts.rows_in
    assert shard.counts.rows_out == dedupe.counts.rows_out
    return [docs, quality, dedupe, shard]


def rows_by_path(docs: Manifest, dedupe: Manifest) -> dict[str, tuple[Document, str | None]]:
    """{path of the URL: (the document, its first reason to be dropped)}."""
    found: dict[str, tuple[Document, str | None]] = {}
    for text, sidecar in zip(docs.files, dedupe.files, strict=True):
        table = read_table(docs.file_url(text.name), Document.NAME, Document.VERSION).to_pylist()
        copies = read_table(dedupe.file_url(sidecar.name), DEDUPE, DEDUPE_VERSION).to_pylist()
        for row, copy in zip(table, copies, strict=True):
            document = Document.from_row(row)
            reason = document.drop_reason or copy["drop_reason"]
            found[document.url.removeprefix("http://a.test/")] = document, reason
    return found


def hostile_pages(english: English) -> dict[str, bytes]:
    """Well-formed records with bodies that are not."""
    laughs = "".join(f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, 12))
    lone = '<script type="application/ld+json">{"@type": "Article", "headline": "\\ud800x",'
    lone += ' "datePublished": "\\udfff", "inLanguage": "\\ud801", "license": "\\udc00"}</script>'
    half = english(900, 60)
    return {
        "laughs": f'<!DOCTYPE x [<!ENTITY l0 "ha">{laughs}]><html><body>&l11;</body>'.encode(),
        "nested": b"<html><body>" + b"&amp;" * 200_000 + b"&amp" * 1000,
        "mislabelled": page("Größe und Maß für Füße, Häuser. " * 30).decode().encode("cp1252"),
        "mixed": page(f"Füße {half}") + page(f"Füße {half[::-1]}").decode().encode("cp1252"),
        "utf-16": page(english(901, 60)).decode().encode("utf-16"),
        "nulls": page(english(902, 60).replace(" ", "\0 ")),
        "surrogates": page(f"&#xD800; {english(903, 60)}") + b"\xed\xa0\x80 \xed\xbf\xbf",
        "surrogates-in-json": page(english(904, 60), lone),
        "surrogate-attributes": page(english(905, 60), '<meta name="author" content="&#xDFFF;">'),
        "controls": page("".join(map(chr, range(1, 32))) + english(906, 60)),
        "unclosed": b"<html><body><p>" + b"<div><span>" * 50_000 + english(907, 60).encode(),
        "bytes": bytes(range(256)) * 400,
        "astral": page("\U0010ffff\U0001f600 " * 50 + english(908, 60)),
    }


def test_hostile_pages_cost_themselves_alone(
    tmp_path: Path, run: RunConfig, english: English, warc_record: Record, source_manifest
) -> None:
    pages = hostile_pages(english)
    for number in range(3):
        pages[f"good-{number}"] = page(english(number, 80))
    warc = tmp_path / "hostile.warc.gz"
    records = [warc_record(f"http://a.test/{path}", body) for path, body in pages.items()]
    warc.write_bytes(b"".join(records))
    docs, _, dedupe, _ = stages(
        source_manifest(run.root, [warc]), run, ExtractConfig(timeout_s=20, **ALL)
    )
    found = rows_by_path(docs, dedupe)
    assert found.keys() == pages.keys()
    for path, (document, reason) in found.items():
        assert reason in {None, *FAILURES}, path
        for value in (document.text, document.title, document.published, document.license):
            assert "\0" not in value, path
            value.encode()  # no lone surrogate, that no file could hold
        assert len(document.text) <= 4 * len(pages[path]), path  # nothing was blown up
    for number in range(3):
        assert found[f"good-{number}"][0].text == english(number, 80)
    assert "Größe und Maß für Füße, Häuser." in found["mislabelled"][0].text
    assert found["utf-16"][0].text == english(901, 60)


def test_damaged_archives_are_counted_and_their_sound_records_kept(
    tmp_path: Path, run: RunConfig, english: English, warc_record: Record, source_manifest
) -> None:
    """Torn in the middle, flipped bits, a wrong Content-Length, a bomb; pages before and behind."""
    good = [warc_record(f"http://a.test/{n}", page(english(n, 80))) for n in range(9)]
    flipped = bytearray(good[2])
    flipped[len(flipped) // 2] ^= 0x10
    plain = gzip.decompress(good[4])
    length = len(plain.partition(b"\r\n\r\n")[2]) - 4
    said = f"Content-Length: {length}".encode()
    assert said in plain
    bomb = zlib.compress(b"\0" * (200 << 20), 9)
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: deflate\r\n\r\n" + bomb
    head = gzip.decompress(good[6]).partition(b"Content-Length")[0]
    bombs = head + b"Content-Length: %d\r\n\r\n" % len(http) + http + b"\r\n\r\n"
    files = {
        "torn.warc.gz": good[0] + good[1][: len(good[1]) // 2] + good[3],
        "flipped.warc.gz": bytes(flipped) + good[5],
        "length.warc": plain.replace(said, b"Content-Length: 99999") + gzip.decompress(good[7]),
        "bomb.warc.gz": gzip.compress(bombs) + good[8],
        "empty.warc.gz": b"",
        "zeros.warc.gz": bytes(1000),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    source = source_manifest(run.root, [tmp_path / name for name in files])
    docs, _, dedupe, _ = stages(source, run, ExtractConfig())
    found = rows_by_path(docs, dedupe)
    for number in (0, 3, 5, 7, 8):
        assert found[str(number)][0].text == english(number, 80), number
    assert not {"1", "2", "6"} & {path for path, (_, reason) in found.items() if reason is None}
    damaged = docs.facts["damaged"]
    assert {name for name, _, _ in damaged} == files.keys()
    assert sum(docs.counts.quarantined.values()) == len(damaged)


def test_one_word_documents_and_copies(
    tmp_path: Path, run: RunConfig, warc_record: Record, source_manifest
) -> None:
    """Short texts are copies of equal ones, and of no others; many copies are one cluster."""
    words = ["yes", "no", "a", "I", "é", "水", "水水", "1", "2", "!", "?", "…", "ok", "OK."]
    bodies = {f"word-{n}": page(word) for n, word in enumerate(words)}
    bodies |= {
        f"copy-{n}": page("the same line on every page", f"<!-- {n} -->") for n in range(300)
    }
    warc = tmp_path / "short.warc.gz"
    warc.write_bytes(
        b"".join(warc_record(f"http://a.test/{path}", body) for path, body in bodies.items())
    )
    config = ExtractConfig(engine="fast", **ALL)
    docs, _, dedupe, shard = stages(source_manifest(run.root, [warc]), run, config)
    found = rows_by_path(docs, dedupe)
    copies = [reason for path, (_, reason) in found.items() if path.startswith("copy")]
    assert sorted(map(str, copies)) == ["None"] + ["exact-duplicate"] * 299
    kept = {doc.text for path, (doc, reason) in found.items() if reason is None}
    texts = {doc.text.casefold().strip("!?….") or doc.text for doc, _ in found.values() if doc.text}
    assert {text.casefold().strip("!?….") or text for text in kept} == texts
    assert shard.counts.rows_out == len(kept)


# ------------------------------------------------------------------------ files that are not whole


def test_documents_without_a_needed_column(
    run: RunConfig, docs_manifest, document, english: English
) -> None:
    docs = docs_manifest(run.root, [[document(english(1, 100))]])
    url = docs.file_url("docs-00000.parquet")
    table = pq.read_table(url).drop_columns(["text"])
    pq.write_table(table, url)
    path = storage.local_path(docs.url) / "manifest.json"
    body = json.loads(path.read_text())
    body["content"]["files"] = [describe_file(url, "docs-00000.parquet", 1).__dict__]
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_manifest(docs.url)
    lacking = docs.__class__(
        **{**docs.__dict__, "files": (describe_file(url, "docs-00000.parquet", 1),)}
    )
    body |= {"content": lacking.content, "content_hash": lacking.content_hash}
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match=r"docs-00000.parquet has no column 'text'; run the stage"):
        run_quality(QualityConfig(), read_manifest(docs.url), run, InlineRuntime())


# ------------------------------------------------------------------------------------ very large


@pytest.mark.long
@pytest.mark.parametrize("engine", ["trafilatura", "resiliparse", "fast", "cascade"])
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("50 MB of text", b"<html><body><p>" + b"word and word " * 3_600_000),
        ("50 MB of lines", b"<html><body><p>" + b"one more line\n" * 3_600_000),
        ("50 MB in one tag", b"<html><body><p " + b"x=y " * 12_500_000 + b">text"),
        ("ten million elements", b"<html><body>" + b"<b>" * 10_000_000),
        ("ten million siblings", b"<html><body>" + b"<p>x" * 10_000_000),
        ("ten million entities", b"<html><body><p>" + b"&lt;" * 10_000_000),
    ],
)
def test_pages_of_fifty_megabytes_and_ten_million_elements(
    tmp_path: Path,
    run: RunConfig,
    english: English,
    warc_record: Record,
    source_manifest,
    engine: str,
    name: str,
    body: bytes,
) -> None:
    """The usual limit drops them unread; without it they are cut off or they are read, in time
    and memory, and the pages around them are what they are."""
    good = page(english(1, 100))
    warc = tmp_path / "large.warc.gz"
    warc.write_bytes(
        warc_record("http://a.test/before", good)
        + warc_record("http://a.test/large", body)
        + warc_record("http://a.test/behind", page(english(2, 100)))
    )
    source = source_manifest(run.root, [warc])
    [entry] = run_extract(ExtractConfig(engine=engine), source, run, InlineRuntime()).files
    assert entry.num_rows == 3
    config = ExtractConfig(engine=engine, max_bytes=1 << 30, timeout_s=20, memory_mb=2048, **ALL)
    docs, _, dedupe, _ = stages(source, run, config)
    found = rows_by_path(docs, dedupe)
    assert found["large"][1] in {None, *FAILURES}
    assert found["before"][0].text == english(1, 100)
    assert found["behind"][0].text == english(2, 100)
