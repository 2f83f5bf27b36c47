"""Reading WARC files, whole, torn and hostile, against warcio's reader and known truth."""

import contextlib
import datetime as dt
import gzip
import hashlib
import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from fastwarc.stream_io import Lz4Writer, ZstdWriter
from fastwarc.warc import ArchiveIterator as FastReader
from warcio.archiveiterator import ArchiveIterator as WarcioReader

from pipeline import warc
from pipeline.archived_response import UNKNOWN_TIME
from pipeline.warc import WarcResponse, iter_responses
from pipeline.warc_writer import Place, WarcSeries
from tests.pipeline.small_warc import (
    PAGES,
    archive,
    corrupt,
    member,
    numbers,
    read,
)
from tests.pipeline.written_warc import AT, exchange


@pytest.mark.parametrize("compress", [True, False])
def test_a_whole_file(tmp_path: Path, compress: bool) -> None:
    records = archive(compress)
    responses, damage = read(tmp_path / "a.warc", b"".join(records))
    assert numbers(responses) == [0, 1, 2, 3, 4]
    assert damage == []
    assert [r.offset for r in responses] == [sum(map(len, records[:i])) for i in range(5)]
    assert responses[0] == WarcResponse(
        url="http://h/0",
        fetched_at=dt.datetime(2026, 3, 1, 12, 30, 15, tzinfo=dt.UTC),
        offset=0,
        http_status=200,
        content_type="text/html",
        charset="utf-8",
        payload=PAGES[0],
        payload_sha256=hashlib.sha256(PAGES[0]).hexdigest(),
        truncated=False,
    )


@pytest.mark.parametrize("compress", [True, False])
def test_one_damaged_place_costs_one_record_at_most(tmp_path: Path, compress: bool) -> None:
    a, b, c, d, e = archive(compress)
    ends = [len(a), len(a + b), len(a + b + c), len(a + b + c + d)]
    junk = b"garbage" * 100
    cases = {
        "torn last record": (a + b + c + d + e[:-30], [0, 1, 2, 3], ends[3]),
        "torn last header": (a + b + c + d + e[:15], [0, 1, 2, 3], ends[3]),
        "junk at the end": (a + b + c + d + e + junk, [0, 1, 2, 3, 4], ends[3] + len(e)),
        "zeros at the end": (a + b + c + d + e + bytes(1000), [0, 1, 2, 3, 4], ends[3] + len(e)),
        "junk in the middle": (a + b + junk + c + d + e, [0, 1, 2, 3, 4], ends[1]),
        "junk at the start": (junk + a + b + c + d + e, [0, 1, 2, 3, 4], 0),
        "piece missing": (a + b + c[:200] + d + e, [0, 1, 3, 4], ends[1]),
    }
    if compress:  # a plain record has no check sum
        cases["flipped bytes"] = (a + b + corrupt(c, 60, 9) + d + e, [0, 1, 3, 4], ends[1])
        cases["wrong crc"] = (a + b + corrupt(c, len(c) - 6, 1) + d + e, [0, 1, 3, 4], ends[1])
        cases["wrong crc at the end"] = (a + b + corrupt(c, len(c) - 6, 1), [0, 1], ends[1])
    for name, (data, readable, offset) in cases.items():
        if name == "junk at the start" and compress:
            continue  # then it is no gzip file: see below
        responses, damage = read(tmp_path / "a.warc.gz", data)
        assert numbers(responses) == readable, name
        assert [item.offset for item in damage] == [offset], (name, damage)
        assert damage[0].file.endswith("a.warc.gz")
        assert damage[0].reason


def test_one_gzip_member_around_the_whole_file(tmp_path: Path) -> None:
    data = gzip.compress(b"".join(archive(compress=False)))
    responses, damage = read(tmp_path / "a.warc.gz", data)
    assert numbers(responses) == [0, 1, 2, 3, 4]
    assert damage == []
    for length in range(20, len(data), 97):
        responses, damage = read(tmp_path / "a.warc.gz", data[:length])
        found = numbers(responses)
        assert found == list(range(len(found)))
        assert len(found) >= length // 1000 - 1
        assert len(damage) == 1


@pytest.mark.parametrize("compress", [True, False])
def test_cut_off_anywhere(tmp_path: Path, compress: bool) -> None:
    records = archive(compress)
    data = b"".join(records)
    ends = [sum(map(len, records[: i + 1])) for i in range(5)]
    for length in range(1, len(data), 23):
        responses, damage = read(tmp_path / "a.warc", data[:length])
        whole = sum(end <= length for end in ends)
        if compress:
            assert numbers(responses) == list(range(whole)), length
            assert len(damage) == (length not in ends), length
        else:  # blank lines that are missing behind a last record cost nothing
            assert numbers(responses)[:whole] == list(range(whole)), length
            assert len(responses) + len(damage) >= whole + (length not in ends), length


def test_flipped_bytes_never_give_a_wrong_page(tmp_path: Path) -> None:
    records = archive(compress=True)
    data = b"".join(records)
    rng = random.Random(7)
    for _ in range(60):
        bad = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            bad[rng.randrange(20, len(bad))] = rng.randrange(256)
        responses, damage = read(tmp_path / "a.warc.gz", bytes(bad))
        numbers(responses)
        assert damage or bytes(bad) == data or len(responses) == 5


def test_what_is_no_warc_is_one_damage_item(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(100_000)
    for data, reason in [
        (b"", "empty file"),
        (noise, "not a WARC"),
        (gzip.compress(noise), "not a WARC"),
        (b"<html>an error page</html>", "not a WARC"),
        (b"\x1f\x8b\x08" + noise, "gzip"),
        (b"filedesc://x 0.0.0.0 2014 text/plain 10\n", "no ARC record"),
    ]:
        responses, damage = read(tmp_path / "a.warc.gz", data)
        assert responses == []
        assert len(damage) == 1
        assert reason in damage[0].reason.replace("Gzip", "gzip"), damage


def test_bombs_are_damage_and_cost_no_neighbour(tmp_path: Path) -> None:
    a, b, *_ = archive(compress=True)
    zeros = bytes(32 << 20)
    inner = gzip.compress(zeros)
    bombs = {
        "large record": member("http://b/9", zeros),
        "inflating body": member("http://b/9", inner, b"Content-Encoding: gzip\r\n"),
        "junk in the member": member("http://b/9", b"x") + zeros,
        "endless header": b"WARC/1.0\r\nX: " + b"a" * len(zeros),
    }
    for name, bomb in bombs.items():
        data = a + gzip.compress(bomb) + b
        responses, damage = read(
            tmp_path / "a", data, max_block_bytes=4 << 20, max_payload_bytes=1 << 20
        )
        assert numbers([r for r in responses if r.url != "http://b/9"]) == [0, 1], name
        assert len(damage) == 1, (name, damage)


def test_lz4_and_zstd(tmp_path: Path) -> None:
    for writer in (Lz4Writer, ZstdWriter):
        parts = []
        for i, payload in enumerate(PAGES):
            sink = io.BytesIO()
            stream = writer(sink)
            stream.write(member(f"http://h/{i}", payload))
            stream.close()
            parts.append(sink.getvalue())
        assert numbers(read(tmp_path / "a", b"".join(parts))[0]) == [0, 1, 2, 3, 4]
        parts[2] = corrupt(parts[2], 0, 40)
        responses, damage = read(tmp_path / "a", b"".join(parts))
        assert numbers(responses) == [0, 1, 3, 4]
        assert len(damage) == 1
        responses, damage = read(tmp_path / "a", b"".join(parts[:2])[:-20])
        assert numbers(responses) == [0]
        assert len(damage) == 1


def test_a_file_made_to_be_read_again_and_again_is_given_up(tmp_path: Path) -> None:
    record = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 99999999\r\n\r\n\n"
    responses, damage = read(tmp_path / "a.warc", record * 3000)
    assert responses == []
    assert len(damage) == warc.MAX_DAMAGE + 1
    assert "given up" in damage[-1].reason


def test_headers_of_all_kinds(tmp_path: Path) -> None:
    http_date = b"Date: Sun, 01 Mar 2026 12:30:15 GMT\r\n"
    for record, field, value in [
        (member("http://h/1", b"", date="2026-03-01T12:30:15.250Z"), "fetched_at", AT),
        (member("http://h/1", b"", date="2008-10-294T05:21:46-0700"), "fetched_at", UNKNOWN_TIME),
        (
            member("http://h/1", b"", http_date, date="nonsense"),
            "fetched_at",
            AT.replace(microsecond=0),
        ),
        (
            member("http://h/1", b"", b"Date: Mon, 01 Jan 99999999999 00:00:00 GMT\r\n", date=""),
            "fetched_at",
            UNKNOWN_TIME,
        ),
        (member("<http://h/1>", b""), "url", "http://h/1"),
        (member("http://h/1", b"", content_type=b"text/html"), "charset", None),
        (member("http://h/1", b"", content_type=b'X/Y;Charset="EUC-JP"'), "charset", "euc-jp"),
        (member("http://h/1", b"", content_type=b'X/Y;Charset="EUC-JP"'), "content_type", "x/y"),
        (member("http://h/1", b"", more="WARC-Truncated: length\r\n"), "truncated", True),
        (member("http://h/1", b"", status_line=b"HTTP/1.1 404 NO"), "http_status", 404),
        (member("http://h/1", b"", status_line=b"HTTP/2 204"), "http_status", 204),
    ]:
        (response,), damage = read(tmp_path / "a.warc", record)
        assert getattr(response, field) == value
        assert damage == []
    for broken in (
        member("nonsense", b""),
        member("", b""),
        member("http://h/1", b"", status_line=b"junk"),
    ):
        responses, damage = read(tmp_path / "a.warc", broken + member("http://h/0", PAGES[0]))
        assert numbers(responses) == [0]
        assert len(damage) == 1


def test_the_text_of_a_wet_file(tmp_path: Path) -> None:
    text = "Grüße\nan alle\n".encode()
    head = (
        "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://h/1\r\n"
        "WARC-Date: 2026-03-01T12:30:15Z\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    )
    record = (head % ("text/plain", len(text))).encode() + text + b"\r\n\r\n"
    other = (head % ("image/png", len(text))).encode() + text + b"\r\n\r\n"
    responses, damage = read(
        tmp_path / "a.warc.wet.gz", gzip.compress(other) + gzip.compress(record)
    )
    assert damage == []
    assert responses == [
        WarcResponse(
            url="http://h/1",
            fetched_at=AT.replace(microsecond=0),
            offset=len(gzip.compress(other)),
            http_status=200,
            content_type="text/plain",
            charset="utf-8",
            payload=text,
            payload_sha256=hashlib.sha256(text).hexdigest(),
            truncated=False,
            converted=True,
        )
    ]


# {file: (responses, damaged places)}; warcio reads the same payloads unless the comment says why.
TABLE = {
    "warcio-testdata": {
        "bad.arc": (0, 3),  # lengths of -1 and abc, and a body of one line feed
        "example-bad-non-chunked.warc.gz": (1, 0),  # one member: warcio refuses the file
        "example-bad.warc.gz.bad": (2, 0),  # likewise
        "example-digest.warc": (0, 0),
        "example-iana.org-chunked.warc": (1, 0),
        "example-resource.warc.gz": (0, 0),
        "example-space-in-target-uri.warc.gz": (0, 0),
        "example-space-in-url.arc": (0, 1),  # 12 bytes shorter than it says
        "example-trunc.warc": (1, 1),  # Content-Length two bytes too long: read, and counted
        "example-wget-bad-target-uri.warc.gz": (1, 0),
        "example-wrong-chunks.warc.gz": (1, 0),  # says chunked, is not: warcio gives nothing
        "example.arc": (1, 0),
        "example.arc.gz": (1, 0),
        "example.warc": (1, 0),
        "example.warc.gz": (1, 0),
        "post-test.warc.gz": (3, 0),
    },
    "dolma-warc": {"sample-0000.warc.gz": (22, 0), "sample-0001.warc.gz": (15, 0)},
    "resiliparse-warc": {
        "block-sized-records.warc": (0, 0),
        "block-sized-records.warc.gz": (0, 0),
        "block-sized-records.warc.lz4": (0, 0),
        "clipped.warc.gz": (0, 1),  # the only record is torn: warcio gives its first half
        "clueweb-quirk.warc.gz": (29, 0),
        "warcfile.warc": (16, 0),
        "warcfile.warc.gz": (16, 0),
        "warcfile.warc.lz4": (16, 0),  # warcio has no lz4
    },
}
WARCIO_DIFFERS = {
    "example-bad-non-chunked.warc.gz",
    "example-bad.warc.gz.bad",
    "example-wrong-chunks.warc.gz",
    "example-space-in-url.arc",
    "bad.arc",
    "clipped.warc.gz",
    "warcfile.warc.lz4",
    "block-sized-records.warc.lz4",
}


def by_warcio(path: Path) -> list[tuple[str, bytes]]:
    with path.open("rb") as file:
        return [
            (record.rec_headers.get_header("WARC-Target-URI"), record.content_stream().read())
            for record in WarcioReader(file)
            if record.rec_type == "response" and record.http_headers
        ]


def urls_by_fastwarc(path: Path) -> list[str]:
    """Of the responses whose record ends well, as far as it comes; it knows no ARC."""
    found: list[str] = []
    with path.open("rb") as file, contextlib.suppress(OSError):
        for record in FastReader(file, parse_http=False):
            whole = len(record.reader.read()) == record.content_length
            if str(record.record_type) == "response" and record.is_http and whole:
                found.append(record.headers["WARC-Target-URI"].strip("<>"))
    return found


@pytest.mark.parametrize("name", TABLE)
def test_real_files(shared_data: Callable[[str], Path], name: str) -> None:
    folder = shared_data(f"crawl/{name}")
    paths = {p.name: p for p in folder.rglob("*") if ".warc" in p.name or ".arc" in p.name}
    assert paths.keys() == TABLE[name].keys()
    for file, path in paths.items():
        items = list(iter_responses(str(path)))
        responses = [item for item in items if isinstance(item, WarcResponse)]
        assert (len(responses), len(items) - len(responses)) == TABLE[name][file], file
        if ".arc" not in file and "clipped" not in file:
            theirs = urls_by_fastwarc(path)
            assert [item.url for item in responses][: len(theirs)] == theirs, file
        if file not in WARCIO_DIFFERS:
            theirs = by_warcio(path)
            assert [item.payload for item in responses] == [payload for _, payload in theirs], file


def test_written_files_read_back_with_every_reader(tmp_path: Path) -> None:
    series = WarcSeries(tmp_path, "x", "Test/1", 1 << 30, {})
    for number, body in enumerate(PAGES):
        place = series.write(exchange(number, body))
    assert series.finished() == []
    series.finish()
    assert series.finished() == ["x-00000.warc.gz"]
    path = tmp_path / "x-00000.warc.gz"
    assert place == Place("x-00000.warc.gz", path.stat().st_size)
    responses = [item for item in iter_responses(str(path)) if isinstance(item, WarcResponse)]
    assert numbers(responses) == [0, 1, 2, 3, 4]
    assert {response.fetched_at for response in responses} == {AT}
    assert by_warcio(path) == [(f"http://h/{i}", body) for i, body in enumerate(PAGES)]
    with path.open("rb") as file:
        kinds = []
        for record in FastReader(file, parse_http=False):
            kinds.append(str(record.record_type))
            block = record.reader.read()
            if kinds[-1] == "response":
                assert block.startswith(exchange(0).response_head)
    assert kinds == ["warcinfo", *["request", "response"] * 5]
    with path.open("rb") as file:  # warcio checks the payload digests itself
        assert all(
            record.digest_checker.passed is not False
            for record in WarcioReader(file, check_digests="raise")
        )
