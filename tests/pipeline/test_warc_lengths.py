"""Records whose Content-Length is not what they hold, in WARC files with a gzip member for each."""

import contextlib
import gzip
import io
import random
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import IO, NamedTuple, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ranges import RangeClient
from pipeline.warc import MAX_DAMAGE, WarcDamage, WarcResponse, iter_responses
from tests.pipeline.small_warc import member, read

GOOD = [member(f"http://h/{i}", b"x" * 900) for i in range(50)]
BLOCK = 959  # of each of them, and 1,159 bytes with the header and the line ends
RECORD = 1159


def lying(kind: str, length: int | str, number: int = 1) -> bytes:
    record = member(f"http://h/{number}", b"x" * 900, length=cast(int, length))
    return record.replace(b"Type: response", b"Type: " + kind.encode(), 1)


def zipped(records: list[bytes]) -> list[bytes]:
    return [gzip.compress(record, 1, mtime=0) for record in records]


def urls(responses: list[WarcResponse]) -> list[int]:
    assert all(response.payload == b"x" * 900 for response in responses)
    return [int(response.url.rpartition("/")[2]) for response in responses]


SHORT = [0, 1, 60, 500, 955, 958]
LONG = [964, 1300, BLOCK + RECORD, BLOCK + 7 * RECORD, 5000, 40_000, 10**6, 10**12, 2**63, 10**20]
NO_NUMBER = ["abc", "-5", ""]


@pytest.mark.parametrize("kind", ["response", "request", "metadata", "conversion", "unheard-of"])
@pytest.mark.parametrize("length", [*SHORT, *LONG, *NO_NUMBER])
def test_a_wrong_length_costs_its_own_record_alone(
    tmp_path: Path, kind: str, length: int | str
) -> None:
    for at in (0, 1, 48, 49):
        members = zipped([*GOOD[:at], lying(kind, length), *GOOD[at + 1 :]])
        responses, damage = read(tmp_path / "a.warc.gz", b"".join(members))
        assert urls(responses) == [i for i in range(50) if i != at]
        assert [item.offset for item in damage] == [sum(map(len, members[:at]))]
        assert damage[0].reason.startswith("wrong Content-Length")
        assert damage[0].reason.endswith("its member holds 959")


@pytest.mark.parametrize("num_swallowed", [1, 2, 7, 49])
def test_a_length_that_ends_where_a_later_record_ends(tmp_path: Path, num_swallowed: int) -> None:
    """fastwarc sees nothing wrong in these: it gives a record less for each one swallowed."""
    for line_ends in (0, 2, 4):
        length = BLOCK + num_swallowed * RECORD + line_ends
        members = zipped([lying("request", length, 0), *GOOD[1:]])
        responses, damage = read(tmp_path / "a.warc.gz", b"".join(members))
        assert urls(responses) == list(range(1, 50))
        assert [item.offset for item in damage] == [0]


@pytest.mark.parametrize("kind", ["response", "request"])
def test_line_ends_counted_as_the_block_are_no_damage(tmp_path: Path, kind: str) -> None:
    members = zipped([GOOD[0], lying(kind, BLOCK + 4), *GOOD[2:]])
    responses, damage = read(tmp_path / "a.warc.gz", b"".join(members))
    assert [r.url for r in responses if r.url != "http://h/1"] == [
        f"http://h/{i}" for i in (0, *range(2, 50))
    ]
    assert damage == []


def test_wrong_lengths_beside_other_damage(tmp_path: Path) -> None:
    a, bad, c, d = zipped([GOOD[0], lying("request", 10**12), GOOD[2], GOOD[3]])
    junk = gzip.compress(random.Random(1).randbytes(3000))
    torn = bytearray(c)
    torn[-6] ^= 0xFF
    for data, pages, offsets in [
        (a + bad, [0], [len(a)]),
        (a + bad + bytes(100), [0], [len(a), len(a + bad)]),
        (a + bad + b"\r\n\r\n", [0], [len(a)]),
        (a + bad + junk + d, [0, 3], [len(a), len(a + bad)]),
        (a + bad + b"junk" * 50 + d, [0, 3], [len(a), len(a + bad)]),
        (a + bad + bytes(torn) + d, [0, 3], [len(a), len(a + bad)]),
        (bytes(torn) + bad + a, [0], [0, len(c)]),
        (a + bad[:-30], [0], [len(a)]),
        (bad + a + bad + bad + c, [0, 2], [0, len(bad + a), len(bad + a + bad)]),
    ]:
        responses, damage = read(tmp_path / "a.warc.gz", data)
        assert urls(responses) == pages
        assert [item.offset for item in damage] == offsets


def in_blocks(data: bytes, length: int) -> bytes:
    return b"".join(zipped([data[i : i + length] for i in range(0, len(data), length)]))


def test_members_that_are_not_records_are_sound(tmp_path: Path) -> None:
    """Some writers put many records in a member, some (BGZF) cut members wherever they are full."""
    rng = random.Random(2)
    pages = [member(f"http://h/{i}", rng.randbytes(5000) + b".") for i in range(20)]
    for data in [
        *(in_blocks(b"".join(pages), length) for length in (100, 999, 5000, 8192, 65_280)),
        *(in_blocks(page, 1000) for page in pages[:1]),
        b"".join(in_blocks(page, 1000) for page in pages),
        b"".join(zipped([b"".join(pages[i : i + 4]) for i in range(0, 20, 4)])),
        b"".join(zipped([b"".join(pages[:1]), b"".join(pages[1:])])),
    ]:
        responses, damage = read(tmp_path / "a.warc.gz", data)
        assert damage == []
        assert [r.url for r in responses] == [f"http://h/{i}" for i in range(len(responses))]
        assert len(responses) in (1, 20)


class Counting(RangeClient):
    """One file behind HTTP, and how often and how much of it was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data, self.num_read, self.num_reads = data, 0, 0

    @contextlib.contextmanager
    def open(self, url: str, ahead: int = 2) -> Generator[IO[bytes]]:
        counting = self

        class File(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                piece = super().read(size)
                counting.num_read += len(piece)
                counting.num_reads += 1
                return piece

        yield File(self.data)


def read_far(client: Counting) -> tuple[list[WarcResponse], list[WarcDamage]]:
    items = list(iter_responses("http://h/a.warc.gz", client=client))
    responses = [item for item in items if isinstance(item, WarcResponse)]
    return responses, [item for item in items if isinstance(item, WarcDamage)]


@pytest.mark.parametrize("length", [10**12, 30_000_000, 100, BLOCK + 2 * RECORD])
def test_many_wrong_lengths_do_not_read_the_file_again_and_again(length: int) -> None:
    rng = random.Random(3)
    good = [member(f"http://h/{i}", rng.randbytes(100_000)) for i in range(300)]
    members = zipped([r for record in good for r in (record, lying("request", length))])
    client = Counting(b"".join(members))
    responses, damage = read_far(client)
    assert [r.url for r in responses] == [f"http://h/{i}" for i in range(300)]
    assert len(damage) == 300
    # Once to the end for the first, then fastwarc's 64 kB ahead and ours, for each.
    assert client.num_read < 4 * len(client.data) + 600 * (300 << 10)


def test_a_sound_file_is_read_once() -> None:
    rng = random.Random(4)
    pages = [member(f"http://h/{i}", rng.randbytes(99_999)) for i in range(300)]
    client = Counting(b"".join(zipped(pages)))
    responses, damage = read_far(client)
    assert (len(responses), damage) == (300, [])
    assert client.num_read < len(client.data) + (1 << 20)
    assert client.num_reads < len(client.data) // (64 << 10) + 50  # fastwarc's, hardly one more


def test_more_wrong_lengths_than_a_file_may_have(tmp_path: Path) -> None:
    data = b"".join(zipped([lying("response", 10**12)] * (MAX_DAMAGE + 5)))
    responses, damage = read(tmp_path / "a.warc.gz", data)
    assert responses == []
    assert len(damage) == MAX_DAMAGE + 1
    assert "given up" in damage[-1].reason


def test_members_made_to_be_looked_at_again_and_again_are_given_up(tmp_path: Path) -> None:
    """fastwarc places a member's later records at the next member: here one with the same head."""
    twins = member("http://h/2", bytes(9)) * 4000
    client = Counting(b"".join(zipped([lying("request", 10**12), twins, twins])))
    responses, damage = read_far(client)
    assert 0 < len(responses) < 8000
    assert [item.reason.split(":")[0] for item in damage] == ["wrong Content-Length", "given up"]
    assert client.num_read < 32 << 20


class Written(NamedTuple):
    num_bytes: int
    kind: str
    lie: tuple[str, int] | None


LIES = st.one_of(
    st.tuples(st.just("short"), st.integers(1, 3000)),
    st.tuples(st.just("long"), st.integers(5, 20_000) | st.integers(5, 10**15)),
    st.tuples(st.just("members"), st.integers(0, 80)),
)
WRITTEN = st.builds(
    Written,
    st.integers(0, 2000),
    st.sampled_from(["response", "request", "metadata"]),
    st.none() | st.none() | LIES,
)


def stated_length(true: int, lie: tuple[str, int], later: list[int]) -> int:
    """A length that is wrong: by a number of bytes, or by later records of these lengths."""
    how, amount = lie
    if how == "short":
        return max(0, true - amount)
    if how == "long" or not later:
        return true + amount + 5
    num, beside = divmod(amount, 8)
    return true + sum(later[: 1 + num % len(later)]) + beside


def as_records(written: list[Written]) -> list[bytes]:
    records: list[bytes] = []
    for number, (num_bytes, kind, lie) in reversed(list(enumerate(written))):
        payload = random.Random(number).randbytes(num_bytes) + b"."
        length = len(b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=UTF-8\r\n\r\n" + payload)
        stated = stated_length(length, lie, [len(r) for r in reversed(records)]) if lie else length
        record = member(f"http://h/{number}", payload, length=stated)
        records.append(record.replace(b"Type: response", b"Type: " + kind.encode(), 1))
    return records[::-1]


@settings(max_examples=250, deadline=None)
@given(st.lists(WRITTEN, min_size=1, max_size=25))
def test_every_good_record_is_read_and_each_wrong_length_counted(written: list[Written]) -> None:
    members = zipped(as_records(written))
    with tempfile.TemporaryDirectory() as folder:
        responses, damage = read(Path(folder) / "a.warc.gz", b"".join(members))
    good = [i for i, w in enumerate(written) if w.kind == "response" and w.lie is None]
    assert [r.url for r in responses] == [f"http://h/{i}" for i in good]
    assert [len(r.payload) for r in responses] == [written[i].num_bytes + 1 for i in good]
    lies = [sum(map(len, members[:i])) for i, w in enumerate(written) if w.lie is not None]
    assert [item.offset for item in damage] == lies
