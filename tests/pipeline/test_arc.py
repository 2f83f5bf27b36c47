"""Reading ARC files, the form before WARC: whole, damaged and made to be read for ever."""

import datetime as dt
import gzip
import random
from pathlib import Path

import pytest

from pipeline import warc
from tests.pipeline.small_warc import PAGES, corrupt, numbers, read


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
