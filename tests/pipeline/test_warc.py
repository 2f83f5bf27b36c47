"""Reading WARC files, whole, torn and hostile, against warcio's reader and known truth."""

import contextlib
import datetime as dt
import gzip
import hashlib
import io
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from fastwarc.stream_io import BrotliWriter, Lz4Writer, ZstdWriter
from fastwarc.warc import ArchiveIterator as FastReader
from warcio.archiveiterator import ArchiveIterator as WarcioReader

from pipeline import warc
from pipeline.archived_response import UNKNOWN_TIME
from pipeline.encoding import BodyTooLargeError, Decoded, decode_body
from pipeline.warc import WarcDamage, WarcResponse, iter_responses
from pipeline.warc_writer import Exchange, Place, WarcSeries

AT = dt.datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=dt.UTC)
PAGES = [b"<p>page %d</p>" % i + random.Random(i).randbytes(700) for i in range(5)]


def member(
    uri: str,
    payload: bytes,
    extra: bytes = b"",
    length: int | None = None,
    *,
    status_line: bytes = b"HTTP/1.1 200 OK",
    content_type: bytes = b"text/html; charset=UTF-8",
    date: str = "2026-03-01T12:30:15Z",
    more: str = "",
) -> bytes:
    """One response record, uncompressed."""
    block = status_line + b"\r\nContent-Type: " + content_type + b"\r\n" + extra
    block += b"\r\n" + payload
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {uri}\r\n"
        f"WARC-Date: {date}\r\nWARC-Record-ID: <urn:uuid:{uri[-1:]}>\r\n{more}"
        "Content-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def archive(compress: bool) -> list[bytes]:
    records = [member(f"http://h/{i}", payload) for i, payload in enumerate(PAGES)]
    return [gzip.compress(record) for record in records] if compress else records


def read(path: Path, data: bytes, **limits: int) -> tuple[list[WarcResponse], list[WarcDamage]]:
    path.write_bytes(data)
    items = list(iter_responses(str(path), **limits))
    responses = [item for item in items if isinstance(item, WarcResponse)]
    return responses, [item for item in items if isinstance(item, WarcDamage)]


def numbers(responses: list[WarcResponse]) -> list[int]:
    """Which pages were read, after a check that each is read as it was written."""
    found = [int(response.url[-1]) for response in responses]
    assert [response.payload for response in responses] == [PAGES[i] for i in found]
    return found


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


def corrupt(record: bytes, at: int, length: int) -> bytes:
    return record[:at] + bytes(b ^ 0xFF for b in record[at : at + length]) + record[at + length :]


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


# ------------------------------------------------------------------------------------- ARC, WET


def arc_record(number: int, length: int | None = None, version: int = 1) -> bytes:
    block = b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n" + PAGES[number]
    more = "200 - - 0 x.arc " if version == 2 else ""
    size = len(block) if length is None else length
    head = f"http://h/{number} 127.0.0.1 20080102030405 text/html {more}{size}\n"
    return head.encode() + block + b"\n"


ARC_HEAD = b"filedesc://x.arc 0.0.0.0 20080102030405 text/plain 5\n1 0 X\n"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("compress", [True, False])
def test_arc_files(tmp_path: Path, compress: bool, version: int) -> None:
    parts = [ARC_HEAD, *(arc_record(i, version=version) for i in range(5))]
    members = [gzip.compress(part) for part in parts] if compress else parts
    responses, damage = read(tmp_path / "a.arc", b"".join(members))
    assert numbers(responses) == [0, 1, 2, 3, 4]
    assert damage == []
    assert [r.offset for r in responses] == [sum(map(len, members[: i + 1])) for i in range(5)]
    assert {r.fetched_at for r in responses} == {dt.datetime(2008, 1, 2, 3, 4, 5, tzinfo=dt.UTC)}
    responses, damage = read(tmp_path / "a.arc", gzip.compress(b"".join(parts)))
    assert (numbers(responses), damage) == ([0, 1, 2, 3, 4], [])


@pytest.mark.parametrize("compress", [True, False])
def test_a_damaged_place_in_an_arc_file_costs_one_record_at_most(
    tmp_path: Path, compress: bool
) -> None:
    parts = [ARC_HEAD, *(arc_record(i) for i in range(5))]
    too_long, too_short = arc_record(2, length=5000), arc_record(2, length=700)
    if compress:
        parts = [gzip.compress(part) for part in parts]
        too_long, too_short = gzip.compress(too_long), gzip.compress(too_short)
    z, a, b, c, d, e = parts
    junk = b"garbage\n" * 100
    cases = {
        "torn last record": (z + a + b + c + d + e[:-30], [0, 1, 2, 3]),
        "torn head": (z + a + b + c + d + e[:15], [0, 1, 2, 3]),
        "junk in the middle": (z + a + b + junk + c + d + e, [0, 1, 2, 3, 4]),
        "piece missing": (z + a + b + c[:200] + d + e, [0, 1, 3, 4]),
        "says too much": (z + a + b + too_long + d + e, [0, 1, 3, 4]),
    }
    if compress:
        cases["flipped bytes"] = (z + a + b + corrupt(c, 60, 9) + d + e, [0, 1, 3, 4])
        cases["wrong crc"] = (z + a + b + corrupt(c, len(c) - 6, 1) + d + e, [0, 1, 3, 4])
        cases["no description"] = (corrupt(z, 12, 9) + a + b, [0, 1])
    for name, (data, readable) in cases.items():
        responses, damage = read(tmp_path / "x.arc", data)
        assert numbers(responses) == readable, name
        assert len(damage) == 1, (name, damage)
    responses, damage = read(tmp_path / "x.arc", z + a + b + too_short + d + e)
    assert [r.url[-1] for r in responses] == ["0", "1", "2", "3", "4"]  # 2 in part, and counted
    assert len(damage) == 1


@pytest.mark.parametrize("compress", [True, False])
def test_no_damage_makes_an_arc_file_raise(tmp_path: Path, compress: bool) -> None:
    parts = [ARC_HEAD, *(arc_record(i) for i in range(5))]
    data = b"".join(gzip.compress(part) if compress else part for part in parts)
    rng = random.Random(8)
    for _ in range(60):
        bad = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        cut = bytes(bad[: rng.choice([len(bad), rng.randrange(1, len(bad))])])
        responses, damage = read(tmp_path / "x.arc", cut)
        assert len(responses) + len(damage) <= 12
        if compress:
            numbers(responses)  # the check sum vouches for them


def test_an_arc_file_made_to_be_read_again_and_again_is_given_up(tmp_path: Path) -> None:
    line = b"http://h/1 127.0.0.1 20080102030405 text/html 99999999\nx\n"
    responses, damage = read(tmp_path / "a.arc", ARC_HEAD + line * 3000)
    assert responses == []
    assert 1 <= len(damage) <= warc.MAX_DAMAGE + 1
    bomb = gzip.compress(ARC_HEAD + bytes(64 << 20)) + gzip.compress(arc_record(1))
    responses, damage = read(tmp_path / "a.arc", bomb)
    assert (numbers(responses), len(damage)) == ([1], 1)


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


# ------------------------------------------------------------------------------------- writing


def exchange(number: int, body: bytes = b"body") -> Exchange:
    url = f"http://h/{number}"
    request = f"GET /{number} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nX-Odd: \xff  a\r\n\r\n"
    return Exchange(url, AT, "127.0.0.1", request, head, body)


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


def test_rotation_by_size(tmp_path: Path) -> None:
    series = WarcSeries(tmp_path, "x", "Test/1", 2000, {})
    for number, body in enumerate(PAGES):
        series.write(exchange(number, body))
        series.rotate_if_full()
    series.finish()
    series.finish()
    assert series.finished() == ["x-00000.warc.gz", "x-00001.warc.gz", "x-00002.warc.gz"]
    urls = [by_warcio(tmp_path / name) for name in series.finished()]
    assert [len(found) for found in urls] == [2, 2, 1]


def test_recovery_of_a_file_that_the_log_does_not_know(tmp_path: Path) -> None:
    series = WarcSeries(tmp_path, "x", "Test/1", 1 << 30, {})
    series.write(exchange(0))
    series.close()
    series = WarcSeries(tmp_path, "x", "Test/1", 1 << 30, {})
    assert list(tmp_path.iterdir()) == []
    series.finish()
    assert series.finished() == []


# ------------------------------------------------------------------------------------- codings


def test_codings_are_undone() -> None:
    body = b"hello world " * 1000
    raw_deflate = zlib.compress(body)[2:-4]
    chunked = b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    assert decode_body(chunked, transfer_encoding="chunked", max_bytes=99).body == b"hello world"
    two_members = gzip.compress(body[:100]) + gzip.compress(body[100:])
    for coding, raw in [
        ("gzip", gzip.compress(body)),
        ("gzip", two_members),
        ("gzip", gzip.compress(body) + b"trailing junk"),
        ("x-gzip", gzip.compress(body)),
        ("deflate", zlib.compress(body)),
        ("deflate", raw_deflate),
        ("identity", body),
        ("gzip", body),  # mislabelled
        ("br", body),
        ("zstd", body),
        ("gzip, gzip", gzip.compress(gzip.compress(body))),
        ("", body),
    ]:
        assert decode_body(raw, content_encoding=coding, max_bytes=1 << 20) == Decoded(body), coding


def test_torn_codings_keep_what_came_before() -> None:
    noise = random.Random(3).randbytes(100_000)
    half = gzip.compress(noise)[:50_000]
    found = decode_body(half, content_encoding="gzip", max_bytes=1 << 20)
    assert found.truncated
    assert found.body
    assert noise.startswith(found.body)
    torn = decode_body(b"5\r\nhello\r\n6\r\n wo", transfer_encoding="chunked", max_bytes=99)
    assert torn == Decoded(b"hello wo", truncated=True)
    joined = decode_body(b"<html>", transfer_encoding="chunked", max_bytes=99)
    assert joined == Decoded(b"<html>")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", ""])
def test_no_coding_inflates_beyond_the_limit(coding: str) -> None:
    zeros = bytes(5 << 20)
    sink = io.BytesIO()
    if coding in ("br", "zstd"):
        writer = (BrotliWriter if coding == "br" else ZstdWriter)(sink)
        writer.write(zeros)
        writer.close()
    raw = {
        "gzip": gzip.compress(zeros),
        "deflate": zlib.compress(zeros),
        "": zeros,
    }.get(coding) or sink.getvalue()
    with pytest.raises(BodyTooLargeError, match="1,048,576"):
        decode_body(raw, content_encoding=coding, max_bytes=1 << 20)
    assert decode_body(raw, content_encoding=coding, max_bytes=8 << 20).body == zeros
