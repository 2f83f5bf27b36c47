"""The records of an exchange, written and read back by warcio and fastwarc."""

import datetime as dt
import gzip
import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeadersParser

from pipeline.cdxj import index_file
from pipeline.core.config import RunConfig
from pipeline.crawl import run_crawl
from pipeline.warc_writer import Original, WarcSeries
from tests.pipeline import small_site
from tests.pipeline.small_site import config, html
from tests.pipeline.written_warc import (
    AT,
    DATE,
    HEAD,
    REQUEST,
    by_fastwarc,
    check_index,
    digest,
    exchange,
    read,
    start,
)

serve = small_site.serve  # the fixture
INFO = (
    b"software: Test/1\r\nformat: WARC File Format 1.1\r\nconformsTo: http://iipc.github.io/"
    b"warc-specifications/specifications/warc-format/warc-1.1/\r\n"
)
REVISIT = "http://netpreserve.org/warc/1.1/revisit/"


def test_the_records_of_an_exchange(tmp_path: Path) -> None:
    series = start(tmp_path)
    body = random.Random(1).randbytes(5000)
    metadata = {"via": "http://h/a", "hopsFromSeed": "LE", "fetchTimeMs": "12"}
    place = series.write(exchange(7, body, metadata=metadata))
    plain = series.write(exchange(8, b"", ip=None))
    series.finish()
    path = tmp_path / "x-1-00000.warc.gz"
    info, request, response, more, _, (second, _) = read(path)
    assert [h["WARC-Type"] for h, _ in (info, request, response, more)] == [
        "warcinfo",
        "request",
        "response",
        "metadata",
    ]
    ids = [headers["WARC-Record-ID"] for headers, _ in read(path)]
    assert len(set(ids)) == 6
    assert all(name.startswith("<urn:uuid:") for name in ids)
    assert (info[1], request[1], response[1]) == (INFO, REQUEST, HEAD + body)
    assert more[1] == b"via: http://h/a\r\nhopsFromSeed: LE\r\nfetchTimeMs: 12\r\n"
    target = {"WARC-Target-URI": "http://h/7", "WARC-Date": DATE, "WARC-IP-Address": "127.0.0.1"}
    together = target | {"WARC-Concurrent-To": ids[2]}
    http = "application/http; msgtype="
    assert info[0].items() >= {"WARC-Filename": path.name, "WARC-Date": DATE}.items()
    assert request[0].items() >= (together | {"Content-Type": http + "request"}).items()
    assert more[0].items() >= (together | {"Content-Type": "application/warc-fields"}).items()
    wanted = target | {"Content-Type": http + "response", "WARC-Payload-Digest": digest(body)}
    assert response[0].items() >= wanted.items()
    assert "WARC-IP-Address" not in second
    assert (place.name, plain.end) == (path.name, path.stat().st_size)
    data = path.read_bytes()
    member = gzip.decompress(data[place.offset : place.offset + place.length])
    assert HEAD + body in member
    assert place.end > place.offset + place.length  # the metadata record
    assert plain.end == plain.offset + plain.length


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blocks=st.lists(
        st.tuples(st.binary(max_size=300), st.binary(max_size=2000), st.text(max_size=20)),
        max_size=5,
    )
)
def test_any_bytes_come_back(
    blocks: list[tuple[bytes, bytes, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    series = start(folder)
    series.write(exchange(0))
    for number, (head, body, text) in enumerate(blocks, 1):
        given_head = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n"
        url = f"http://h/{text}" if number % 2 else f"x:{text}"
        series.write(exchange(0, body, head=given_head, url=url, metadata={"via": text}))
    series.finish()
    (path,) = folder.glob("*.warc.gz")
    found = by_fastwarc(path)
    kinds = [headers["WARC-Type"] for headers, _ in found]
    assert kinds == [
        "warcinfo",
        "request",
        "response",
        *["request", "response", "metadata"] * len(blocks),
    ]
    for (head, body, _), (headers, block) in zip(blocks, found[4::3], strict=True):
        assert block == b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body
        assert headers["WARC-Payload-Digest"] == digest(body)
    written = path.with_name(path.name + ".cdxj").read_bytes()
    index_file(path)  # scanned, it is the same
    assert path.with_name(path.name + ".cdxj").read_bytes() == written
    assert len(written.splitlines()) == 1 + len(blocks)


def test_revisits(tmp_path: Path) -> None:
    series = start(tmp_path)
    before = AT - dt.timedelta(days=7)
    first = Original("http://h/old", before)
    place = series.write_revisit(exchange(1, b"same"), first, "identical-payload-digest")
    not_modified = b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"
    known = Original("http://h/2", "2026-02-22T13:30:15.25+01:00", hashlib.sha256(b"old").digest())
    series.write_revisit(exchange(2, b"", head=not_modified), known, "server-not-modified")
    series.write_revisit(
        exchange(3, b"", head=not_modified, metadata={"via": "x"}), first, "server-not-modified"
    )
    series.finish()
    path = tmp_path / "x-1-00000.warc.gz"
    found = read(path)
    kinds = [headers["WARC-Type"] for headers, _ in found]
    assert kinds == ["warcinfo", *["request", "revisit"] * 3, "metadata"]
    (same, same_block), (unchanged, block), (bare, _) = found[2:7:2]
    assert (same_block, block) == (HEAD, not_modified)
    assert (
        same.items()
        >= {
            "WARC-Target-URI": "http://h/1",
            "WARC-Date": DATE,
            "WARC-Profile": REVISIT + "identical-payload-digest",
            "WARC-Refers-To-Target-URI": "http://h/old",
            "WARC-Refers-To-Date": "2026-02-22T12:30:15.250000Z",
            "WARC-Payload-Digest": digest(b"same"),
            "WARC-Truncated": "length",
            "Content-Type": "application/http; msgtype=response",
        }.items()
    )
    assert (
        unchanged.items()
        >= {
            "WARC-Profile": REVISIT + "server-not-modified",
            "WARC-Refers-To-Date": "2026-02-22T12:30:15.250000Z",
            "WARC-Payload-Digest": digest(b"old"),
        }.items()
    )
    assert "WARC-Truncated" not in unchanged
    assert "WARC-Payload-Digest" not in bare
    entries = check_index(path)
    assert {entry["mime"] for entry in entries} == {"warc/revisit"}
    assert [entry["status"] for entry in entries] == ["200", "304", "304"]
    assert (int(entries[0]["offset"]), int(entries[0]["length"])) == (place.offset, place.length)


BREAKS = "a\r\nWARC-Type: warcinfo\r\n\r\nx\n\x00\x85\u2028\ud800 \tb"


def test_line_breaks_cannot_break_out_of_a_header(tmp_path: Path) -> None:
    info = {"operator": BREAKS}
    series = WarcSeries(tmp_path, "x", f"Evil/1{BREAKS}", 1 << 30, {}, info=info, now=lambda: AT)
    evil = exchange(0, b"b", url=f"http://h/{BREAKS}", ip=f"::1{BREAKS}", metadata={"via": BREAKS})
    series.write(evil)
    series.write_revisit(evil, Original(evil.url, AT), "server-not-modified")
    series.finish()
    path = tmp_path / "x-00000.warc.gz"
    found = read(path)
    kinds = [headers["WARC-Type"] for headers, _ in found]
    assert kinds == [
        "warcinfo",
        "request",
        "response",
        "metadata",
        "request",
        "revisit",
        "metadata",
    ]
    escaped = "http://h/a%0D%0AWARC-Type:%20warcinfo%0D%0A%0D%0Ax%0A%00%C2%85%E2%80%A8%3F%20%09b"
    for headers, _ in found[1:]:
        assert headers["WARC-Target-URI"] == escaped
    assert found[5][0]["WARC-Refers-To-Target-URI"] == escaped
    assert found[3][1].count(b"\r\n") == 1
    assert found[0][1].count(b"\r\n") == 4
    assert [entry["url"] for entry in check_index(path)] == [escaped] * 2
    with pytest.raises(ValueError, match="field name"):
        series.write(exchange(0, metadata={"a\r\nb": "c"}))


def test_a_crawls_files_say_whose_they_are(serve: Any, run: RunConfig) -> None:
    site = serve({"/": html("home")})
    told: list[dict[str, str]] = []
    for contact in ("me@example.org", ""):
        output = run_crawl(config(site.url, contact=contact, user_agent=f"Bot{contact[:2]}/1"), run)
        (entry,) = output.files
        with Path(output.file_url(entry.name)).open("rb") as file:
            record = next(iter(ArchiveIterator(file)))
            assert record.rec_type == "warcinfo"
            fields = StatusAndHeadersParser([], verify=False).parse(record.content_stream(), "-")
        told.append(dict(fields.headers))
    standard = "http://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/"
    same = {"format": "WARC File Format 1.1", "conformsTo": standard, "robots": "obey"}
    assert [site.agents, told] == [
        {"Botme/1 (+me@example.org)", "Bot/1"},
        [
            {
                "software": "Botme/1",
                **same,
                "operator": "me@example.org",
                "http-header-user-agent": "Botme/1 (+me@example.org)",
            },
            {"software": "Bot/1", **same, "http-header-user-agent": "Bot/1"},
        ],
    ]


def test_a_digest_that_is_known_is_not_computed_again(tmp_path: Path) -> None:
    wrong = hashlib.sha256(b"other").digest()
    series = start(tmp_path)
    series.write(exchange(1, b"body", body_digest=wrong))
    series.finish()
    (_, _, (headers, _)) = by_fastwarc(tmp_path / "x-1-00000.warc.gz")
    assert headers["WARC-Payload-Digest"] == digest(b"other")
    assert exchange(1, b"body").body_sha256 == hashlib.sha256(b"body").digest()
