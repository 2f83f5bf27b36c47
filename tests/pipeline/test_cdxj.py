"""CDXJ indexes: their lines and keys as others write them, sorted and merged beyond memory."""

import gzip
import heapq
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import cdxj
from pipeline.cdxj import Index, members, merge, surt
from pipeline.core.errors import UserError
from tests.pipeline.written_warc import check_index, digest, exchange, start


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
