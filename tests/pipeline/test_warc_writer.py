"""WARC files and CDXJ indexes written, killed, saved and read back by warcio and fastwarc."""

import base64
import contextlib
import datetime as dt
import gzip
import hashlib
import heapq
import io
import json
import random
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator as FastReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator as WarcioReader

from pipeline import cdxj
from pipeline.cdxj import Index, index_file, members, merge, surt
from pipeline.core.errors import UserError
from pipeline.warc_writer import Exchange, Original, Place, WarcSeries

AT = dt.datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=dt.UTC)
DATE = "2026-03-01T12:30:15.250000Z"
HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: s\r\ncontent-TYPE: text/html;charset=x\r\nX-Odd: \xff  a\r\n\r\n"
)
REQUEST = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
INFO = b"software: Test/1\r\nformat: WARC File Format 1.1\r\n"
REVISIT = "http://netpreserve.org/warc/1.1/revisit/"


def exchange(number: int, body: bytes = b"body", **more) -> Exchange:
    url = more.pop("url", f"http://h/{number}")
    head = more.pop("head", HEAD)
    return Exchange(url, AT, more.pop("ip", "127.0.0.1"), REQUEST, head, body, **more)


def start(
    folder: Path, epoch: int = 1, known: dict[str, int] | None = None, max_bytes: int = 1 << 30
) -> WarcSeries:
    return WarcSeries(folder, f"x-{epoch}", "Test/1", max_bytes, known or {}, now=lambda: AT)


def digest(data: bytes) -> str:
    return "sha256:" + base64.b32encode(hashlib.sha256(data).digest()).decode()


def by_warcio(path: Path) -> list[tuple[dict[str, str], bytes]]:
    """(headers, block) of every record; the digests are checked."""
    with path.open("rb") as file:
        records = WarcioReader(file, no_record_parse=True)
        found = [(dict(record.rec_headers.headers), record.raw_stream.read()) for record in records]
    with path.open("rb") as file:
        for record in WarcioReader(file, check_digests="raise"):  # with HTTP parsed
            record.content_stream().read()
            assert record.digest_checker.passed is not False
    return found


def by_fastwarc(path: Path) -> list[tuple[dict[str, str], bytes]]:
    with path.open("rb") as file:
        records = FastReader(file, parse_http=False)
        return [(dict(record.headers), record.reader.read()) for record in records]


def read(path: Path) -> list[tuple[dict[str, str], bytes]]:
    """What both readers, and a plain reading of each gzip member, agree upon."""
    found = by_warcio(path)
    assert by_fastwarc(path) == found
    for (headers, block), member in zip(found, members(path), strict=True):
        text = gzip.decompress(path.read_bytes()[member.offset : member.offset + member.length])
        head, _, rest = text.partition(b"\r\n\r\n")
        assert rest == block + b"\r\n\r\n"
        assert head.startswith(b"WARC/1.1\r\n")
        assert len(head.split(b"\r\n")) == 1 + len(headers)
        assert headers["Content-Length"] == str(len(block))
    return found


def urls(path: Path) -> list[str]:
    found = read(path)
    assert [headers["WARC-Type"] for headers, _ in found] == [
        "warcinfo",
        *["request", "response"] * (len(found) // 2),
    ]
    return [headers["WARC-Target-URI"] for headers, _ in found[2::2]]


def check_index(path: Path) -> list[dict[str, str]]:
    """The index beside a file is sorted, and each line's range alone holds its very record."""
    lines = path.with_name(path.name + ".cdxj").read_bytes().splitlines(keepends=True)
    assert lines == sorted(lines)
    entries = []
    for line in lines:
        key, timestamp, text = line.decode().split(" ", 2)
        entry = json.loads(text)
        assert entry["filename"] == path.name
        offset, length = int(entry["offset"]), int(entry["length"])
        alone = path.read_bytes()[offset : offset + length]
        ((headers, _),) = by_fastwarc_bytes(alone)
        assert headers["WARC-Target-URI"] == entry["url"]
        assert headers["WARC-Type"] in ("response", "revisit")
        assert headers.get("WARC-Payload-Digest") == entry.get("digest")
        assert surt(entry["url"]) == key
        assert timestamp == re.sub(r"\D", "", headers["WARC-Date"])[:14]
        entries.append(entry)
    wanted = [h for h, _ in by_fastwarc(path) if h["WARC-Type"] in ("response", "revisit")]
    assert len(entries) == len(wanted)
    return entries


def by_fastwarc_bytes(data: bytes) -> list[tuple[dict[str, str], bytes]]:
    return [
        (dict(record.headers), record.reader.read())
        for record in FastReader(io.BytesIO(data), parse_http=False)
    ]


# ------------------------------------------------------------------------------------- records


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
    series = WarcSeries(tmp_path, "x", f"Evil/1{BREAKS}", 1 << 30, {}, now=lambda: AT)
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
    assert found[0][1].count(b"\r\n") == 2
    assert [entry["url"] for entry in check_index(path)] == [escaped] * 2
    with pytest.raises(ValueError, match="field name"):
        series.write(exchange(0, metadata={"a\r\nb": "c"}))


def test_a_digest_that_is_known_is_not_computed_again(tmp_path: Path) -> None:
    wrong = hashlib.sha256(b"other").digest()
    series = start(tmp_path)
    series.write(exchange(1, b"body", body_digest=wrong))
    series.finish()
    (_, _, (headers, _)) = by_fastwarc(tmp_path / "x-1-00000.warc.gz")
    assert headers["WARC-Payload-Digest"] == digest(b"other")
    assert exchange(1, b"body").body_sha256 == hashlib.sha256(b"body").digest()


# ------------------------------------------------------------------------------------- the index


def test_index_lines_are_those_of_cdxj_indexer(tmp_path: Path) -> None:
    # The form of cdxj-indexer 1.5.0, which printed the same for 500 such records.
    series = start(tmp_path)
    places = [
        series.write(exchange(0, b"b", url="http://www.Example.com:8080/B?b=1&A=2")),
        series.write(exchange(0, b"", head=b"HTTP/1.1 204\r\n\r\n", url="https://example.com/ü")),
    ]
    series.finish()
    path = tmp_path / "x-1-00000.warc.gz"
    a, b = (
        f'"length": "{p.length}", "offset": "{p.offset}", "filename": "{path.name}"' for p in places
    )
    assert path.with_name(path.name + ".cdxj").read_text().splitlines() == [
        (
            'com,example)/%c3%bc 20260301123015 {"url": "https://example.com/%C3%BC",'
            f' "status": "204", "digest": "{digest(b"")}", {b}}}'
        ),
        (
            'com,example:8080)/b?a=2&b=1 20260301123015 {"url":'
            ' "http://www.Example.com:8080/B?b=1&A=2", "mime": "text/html", "status": "200",'
            f' "digest": "{digest(b"b")}", {a}}}'
        ),
    ]


@pytest.mark.parametrize(
    ("url", "key"),
    [  # as internetarchive/surt 0.3.1 gives them
        ("http://example.com/", "com,example)/"),
        ("HTTPS://WWW.Example.COM:443/a/../b/./c//d/", "com,example)/b/c/d"),
        ("http://example.com:8080/x", "com,example:8080)/x"),
        ("https://example.com:80/x", "com,example:80)/x"),
        ("http://www2.example.com/?", "com,example)/"),
        ("http://www.com/", "com)/"),
        ("http://wwwx.com/", "com,wwwx)/"),
        ("http://www.www.example.com/", "com,example,www)/"),
        ("http://user:Pass@example.com./x#frag", "com,example)/x"),
        ("http://127.0.0.1:8000/a", "1,0,0,127:8000)/a"),
        ("http://[2001:DB8::1]:81/A", "2001:db8::1:81)/a"),
        ("http://bücher.de/ü", "de,xn--bcher-kva)/%c3%bc"),
        ("http://example.com/%7Euser/%41%2F%e4", "com,example)/~user/a/%e4"),
        ("http://example.com/a%%2541%2525", "com,example)/a%25a%25"),
        ("http://example.com/a%00b%20c", "com,example)/a%00b%20c"),
        ("http://example.com/?b&a&c=&a=1", "com,example)/?a&a=1&b&c="),
        ("http://example.com/?a=2&a=10&A=1", "com,example)/?a=1&a=10&a=2"),
        ("http://example.com/a?x=1&", "com,example)/a?&x=1"),
        ("http://example.com/?=1&!=%26", "com,example)/?&=1&!="),
        ("http://example.com/a+b?c+d=e%20f", "com,example)/a+b?c+d=e%20f"),
        (f"http://h.org/a?x=1&JSESSIONID={'0Ab1' * 8}&y", "org,h)/a?x=1&y"),
        (f"http://h.org/a?sid={'0ab1' * 8}", "org,h)/a"),
        (f"http://h.org/a?sid={'0ab1' * 7}", f"org,h)/a?sid={'0ab1' * 7}"),
        ("http://h.org/a?cfid=123&cftoken=456", "org,h)/a"),
        ("http://h.org/x?http://foo.com/Bar?x=y", "org,h)/x?http://foo.com/bar?x=y"),
    ],
)
def test_surt(url: str, key: str) -> None:
    assert surt(url) == key


def test_surt_of_hostile_urls(shared_data: Callable[[str], Path]) -> None:
    for count in (10, 30_000):
        assert surt("http://h/%2" + "%3" * count + "5")
        assert surt("http://h/?" + "cfid=" * count)
        assert surt("http://h/?" + "sid=" * count + "&" * count)
        assert surt("http://h" + "/%2e%2E" * count) == "h)/"
    assert surt("http://h:99999999/ x\r\n") == "http://h:99999999/%20x%0D%0A"
    assert surt("\ud800 \n") == "?%20%0A"
    vectors = json.loads(
        next(shared_data("crawl/wpt-url-vectors").rglob("urltestdata.json")).read_text()
    )
    for vector in vectors:
        if isinstance(vector, dict):
            key = surt(vector["input"])
            assert key.isascii()
            assert not set(key) & set(" \r\n\t\0")


def lines(seed: int, count: int) -> list[bytes]:
    chance = random.Random(seed)
    return [
        b"com,h)/%d %d {}\n" % (chance.randrange(10**6), chance.randrange(9)) for _ in range(count)
    ]


def test_an_index_larger_than_its_memory(tmp_path: Path) -> None:
    index = Index(tmp_path)
    wanted = lines(1, 3 * cdxj.RUN_LINES + 17)
    for line in wanted:
        index.add(line)
    assert list(tmp_path.iterdir()) == []  # what a kill would leave
    index.write(tmp_path / "a")
    index.write(tmp_path / "b")
    index.close()
    assert (tmp_path / "a").read_bytes() == b"".join(sorted(wanted))
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("count", [0, 1, 5, cdxj.FAN_IN + 1, 2 * cdxj.FAN_IN + 3])
def test_merge(tmp_path: Path, count: int) -> None:
    wanted: set[bytes] = set()
    paths = []
    for number in range(count):
        part = sorted(lines(number % 7, number % 13))
        wanted |= set(part)
        paths.append(tmp_path / f"{number}.cdxj")
        paths[-1].write_bytes(b"".join(part))
    assert merge(paths, tmp_path / "all") == len(wanted)
    assert (tmp_path / "all").read_bytes() == b"".join(sorted(wanted))
    assert len(list(tmp_path.iterdir())) == count + 1


def test_merge_takes_other_line_ends_and_refuses_disorder(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(b"a 1 {}\r\n\nb 1 {}")
    bad.write_bytes(b"b 1 {}\na 1 {}\n")
    assert merge([good], tmp_path / "all") == 2
    assert (tmp_path / "all").read_bytes() == b"a 1 {}\nb 1 {}\n"
    with pytest.raises(UserError, match="bad: line 2 is not in order"):
        merge([good, bad], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_indexes_of_several_files_merge_to_one(tmp_path: Path) -> None:
    series = start(tmp_path, max_bytes=5000)
    chance = random.Random(2)
    for number in range(30):
        series.write(exchange(number, chance.randbytes(900)))
        series.rotate_if_full()
    series.finish()
    paths = sorted(tmp_path.glob("*.cdxj"))
    assert len(paths) > 4
    assert [path.name.removesuffix(".cdxj") for path in paths] == series.finished()
    found = sum(len(check_index(tmp_path / name)) for name in series.finished())
    assert found == merge(paths, tmp_path / "all") == 30
    whole = (tmp_path / "all").read_bytes().splitlines()
    assert whole == sorted(whole)
    assert whole == list(heapq.merge(*(path.read_bytes().splitlines() for path in paths)))


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 300, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_members_of_any_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    chance = random.Random(size)
    contents = [b"x" * size, chance.randbytes(size), b"", b"y" * size]
    data = [gzip.compress(content) for content in contents]
    path.write_bytes(b"".join(data))
    found = list(members(path))
    assert [member.length for member in found] == [len(part) for part in data]
    assert [member.head for member in found] == [content[: 1 << 20] for content in contents]
    assert [m.offset for m in members(path, len(data[0]) + 1)] == [0]
    path.write_bytes(data[0] + data[1][:-1] + b"\xee" + data[3])  # a length that is not right
    assert [m.offset for m in members(path)] == [0]


# ------------------------------------------------------------------------------------- recovery


def write_some(folder: Path, epoch: int, count: int) -> tuple[WarcSeries, list[Place]]:
    """A writer of pages http://h/{100 * epoch} and on, that is left as it is."""
    series = start(folder, epoch)
    places = [series.write(exchange(100 * epoch + number)) for number in range(count)]
    return series, places


def page_urls(*numbers: int) -> list[str]:
    return [f"http://h/{number}" for number in numbers]


def test_the_known_records_of_an_open_file_are_saved(tmp_path: Path) -> None:
    series, places = write_some(tmp_path, 1, 3)
    series.close()
    known = {places[1].name: places[1].end}
    path = tmp_path / places[1].name
    assert WarcSeries.size(tmp_path, path.name) == places[2].end
    begun = path.with_name(path.name + ".open").read_bytes()
    successor = start(tmp_path, 2, known)
    assert successor.recovered == known
    assert path.read_bytes() == begun[: places[1].end]
    assert urls(path) == page_urls(100, 101)
    assert [(int(e["offset"]), int(e["length"])) for e in check_index(path)] == [
        (place.offset, place.length) for place in places[:2]
    ]
    assert successor.write(exchange(200)).name == "x-2-00000.warc.gz"  # never another's file
    successor.finish()
    assert successor.finished() == ["x-1-00000.warc.gz", "x-2-00000.warc.gz"]
    assert len(list(tmp_path.iterdir())) == 4
    assert start(tmp_path, 3, known).recovered == {}
    assert urls(path) == page_urls(100, 101)


def test_the_same_prefix_again_takes_the_next_number(tmp_path: Path) -> None:
    for number in range(3):
        series = start(tmp_path, 1)
        assert series.write(exchange(number)).name == f"x-1-0000{number}.warc.gz"
        series.finish()


def test_a_file_that_the_log_does_not_know_goes(tmp_path: Path) -> None:
    series, _ = write_some(tmp_path, 1, 2)
    series.close()
    assert start(tmp_path, 2).recovered == {"x-1-00000.warc.gz": 0}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda data, places: data + b"\x1f\x8b\x08torn", 3),
        (lambda data, places: data[: places[2].end - 1], 2),  # the log says more than is there
        (lambda data, places: data[: places[2].offset], 2),  # its request alone is there
        (lambda data, places: data[: places[1].end] + bytes(len(data) - places[1].end), 2),
        (lambda data, places: data[: places[0].end - 30] + b"?" + data[places[0].end - 29 :], 0),
        (lambda data, places: data[:20], None),
        (lambda data, places: b"", None),
    ],
)
def test_short_and_damaged_files(
    tmp_path: Path, damage: Callable[[bytes, list[Place]], bytes], left: int | None
) -> None:
    series, places = write_some(tmp_path, 1, 3)
    series.close()
    path = tmp_path / places[0].name
    begun = path.with_name(path.name + ".open")
    whole = begun.read_bytes()
    begun.write_bytes(damage(whole, places))
    successor = start(tmp_path, 2, {path.name: places[2].end})
    assert not begun.exists()
    if left is None:
        assert successor.recovered == {path.name: 0}
        assert list(tmp_path.iterdir()) == []
        return
    data = path.read_bytes()
    assert successor.recovered == {path.name: len(data)}
    assert data == whole[: len(data)]
    found = [
        headers.get("WARC-Target-URI")
        for headers, _ in read(path)
        if "WARC-Payload-Digest" in headers
    ]
    assert found == page_urls(100, 101, 102)[:left]
    assert len(check_index(path)) == left


def test_a_writer_that_was_taken_over_changes_no_finished_file(tmp_path: Path) -> None:
    hung, places = write_some(tmp_path, 1, 2)
    known = {places[1].name: places[1].end}
    start(tmp_path, 2, known)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    hung.write(exchange(102, b"late" * 1000))
    hung.sync()
    with pytest.raises(FileNotFoundError):
        hung.finish()
    hung.close()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert urls(tmp_path / places[1].name) == page_urls(100, 101)


def test_a_writer_that_finishes_while_it_is_taken_over(tmp_path: Path) -> None:
    """The successor has seen the open file; the rename comes before its own."""
    owner, places = write_some(tmp_path, 1, 2)

    class Late(WarcSeries):
        def _names(self, suffix: str) -> list[str]:
            found = super()._names(suffix)
            if suffix == ".open":
                owner.finish()
            return found

    successor = Late(tmp_path, "x-2", "Test/1", 1 << 30, {places[0].name: places[0].end})
    assert successor.recovered == {}
    assert urls(tmp_path / places[0].name) == page_urls(100, 101)
    check_index(tmp_path / places[0].name)


def test_what_a_kill_during_finish_or_recovery_leaves(tmp_path: Path) -> None:
    series, places = write_some(tmp_path, 1, 2)
    series.finish()
    path = tmp_path / places[0].name
    index = path.with_name(path.name + ".cdxj")
    whole, lines = path.read_bytes(), index.read_bytes()
    known = {path.name: places[1].end}
    index.unlink()
    (tmp_path / f".{path.name}.cdxj.abc.tmp").write_bytes(b"half")
    (tmp_path / f".{path.name}.abc.tmp").write_bytes(b"half")
    (tmp_path / (path.name + ".claimed")).write_bytes(whole + b"more")  # saved, not yet removed
    start(tmp_path, 2, known)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        path.name: whole,
        index.name: lines,
    }
    path.rename(tmp_path / (path.name + ".claimed"))  # taken over, not yet saved
    assert WarcSeries.size(tmp_path, path.name) == len(whole)
    start(tmp_path, 3, {path.name: places[0].end})
    assert path.read_bytes() == whole[: places[0].end]
    assert len(check_index(path)) == 1


WRITER = """
import datetime as dt, os, random, sys
from pathlib import Path
from pipeline.warc_writer import Exchange, WarcSeries

folder, epoch = Path(sys.argv[1]), int(sys.argv[2])
log = open(folder / "log", "ab+", buffering=0)
log.seek(0)
known = {}
for line in log.read().split(b"\\n")[:-1]:
    name, end, url = line.decode().split(" ")
    known[name] = int(end)
chance = random.Random(epoch)
series = WarcSeries(folder / "warc", f"x-{epoch}", "Test/1", 200_000, known)
for number in range(1_000_000):
    url = f"http://h/{epoch}/{number}"
    body = chance.randbytes(chance.randrange(9000))
    at = dt.datetime.now(dt.UTC)
    place = series.write(Exchange(url, at, None, b"GET", b"HTTP/1.1 200 OK\\r\\n\\r\\n", body))
    log.write(f"{place.name} {place.end} {url}\\n".encode())
    series.rotate_if_full()
"""


def test_kills_in_the_middle_of_writes(
    tmp_path: Path, kill_when: Callable[[list[str], Callable[[], bool]], None]
) -> None:
    script = tmp_path / "writer.py"
    script.write_text("import sys; sys.path.insert(0, '.')" + WRITER)
    log = tmp_path / "log"
    log.touch()
    for epoch in range(1, 7):
        wanted = log.stat().st_size + 4000 * epoch + 17
        kill_when(
            [str(script), str(tmp_path), str(epoch)], lambda at=wanted: log.stat().st_size > at
        )
        assert len(list((tmp_path / "warc").glob("*.open"))) <= 1
    entries = [line.split() for line in log.read_text().splitlines()]
    known = {name: int(end) for name, end, _ in entries}
    series = WarcSeries(tmp_path / "warc", "x-7", "Test/1", 1, known)
    logged = {name: [url for n, _, url in entries if n == name] for name in known}
    assert series.finished() == sorted(logged)
    assert len(entries) > 1000
    for name, wanted_urls in logged.items():
        path = tmp_path / "warc" / name
        assert path.stat().st_size == known[name]
        assert urls(path) == wanted_urls
        check_index(path)


# ------------------------------------------------------------------------------------- full disk


@contextlib.contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """As on a full disk, a write beyond it is cut short, and the next one raises OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_a_record_is_written(tmp_path: Path) -> None:
    series, places = write_some(tmp_path, 1, 2)
    with file_size_limit(places[1].end + 100), pytest.raises(OSError, match=r"large|space"):
        series.write(exchange(102, random.Random(0).randbytes(5000)))
    series.finish()  # of a torn file nothing is finished
    assert series.finished() == []
    (left,) = tmp_path.iterdir()
    assert left.stat().st_size == places[1].end + 100
    successor = start(tmp_path, 2, {places[1].name: places[1].end})
    assert urls(tmp_path / successor.finished()[0]) == page_urls(100, 101)


def test_a_full_disk_for_the_index(tmp_path: Path) -> None:
    series = start(tmp_path)
    series.write(exchange(0, url="http://h/" + "a" * 9000))
    with file_size_limit(5000), pytest.raises(OSError, match=r"large|space"):
        series.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["x-1-00000.warc.gz.open"]
    series.finish()  # there is room again
    assert len(check_index(tmp_path / "x-1-00000.warc.gz")) == 1


def test_a_full_disk_while_an_open_file_is_saved(tmp_path: Path) -> None:
    series = start(tmp_path)
    place = series.write(exchange(0, random.Random(0).randbytes(5000)))
    series.close()
    with file_size_limit(4000), pytest.raises(OSError, match=r"large|space"):
        start(tmp_path, 2, {place.name: place.end})
    assert [path.name for path in tmp_path.iterdir()] == ["x-1-00000.warc.gz.claimed"]
    assert start(tmp_path, 2, {place.name: place.end}).recovered == {place.name: place.end}
    assert urls(tmp_path / place.name) == page_urls(0)
