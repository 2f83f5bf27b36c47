"""Files and ranges of files over HTTP: exact, however the server fails, or given up as busy."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.ranges import RangeClient, RangeError
from pipeline.warc import WarcDamage, WarcResponse, iter_responses
from tests.pipeline import common_crawl_server
from tests.pipeline.common_crawl_server import Archive

archive = common_crawl_server.archive  # the fixture


@pytest.mark.parametrize("gives_ranges", [True, False])
def test_the_same_items_over_http_as_from_disk(
    archive: Archive, shared_data: Callable[[str], Path], gives_ranges: bool
) -> None:
    archive.gives_ranges = gives_ranges
    archive.faults = 0.3
    client = RangeClient(backoff_s=0.001, rng=random.Random(2))
    for folder in ("resiliparse-warc", "warcio-testdata"):
        for path in shared_data(f"crawl/{folder}").rglob("*arc*.*"):
            if path.is_file() and path.suffix != ".bad":
                archive.files[path.name] = path.read_bytes()
                here = list(iter_responses(str(path)))
                there = list(iter_responses(archive.url + path.name, client=client))
                assert len(here) == len(there), path.name
                for ours, theirs in zip(here, there, strict=True):
                    if isinstance(ours, WarcDamage):
                        assert isinstance(theirs, WarcDamage)
                        assert (ours.offset, ours.reason) == (theirs.offset, theirs.reason)
                    else:
                        assert ours == theirs


def test_a_file_of_many_blocks(archive: Archive, warc_record: Callable[..., bytes]) -> None:
    rng = random.Random(4)
    bodies = [rng.randbytes(rng.randrange(3_000_000)) for _ in range(12)]
    archive.files["big"] = b"".join(warc_record(f"http://h/{i}", b) for i, b in enumerate(bodies))
    assert len(archive.files["big"]) > 3 * (4 << 20)
    archive.faults = 0.3
    client = RangeClient(backoff_s=0.001)
    found = list(iter_responses(archive.url + "big", client=client))
    assert [item.payload for item in found if isinstance(item, WarcResponse)] == bodies
    archive.faults = 0.0
    client = RangeClient(backoff_s=0, max_attempts=2)
    items = iter_responses(archive.url + "big", client=client)
    next(items)
    archive.is_down = True
    with pytest.raises(RangeError, match="status-503"):  # no damage of the file's
        list(items)
    with pytest.raises(RangeError, match="status-503"):
        list(iter_responses(archive.url + "big", client=client))


def test_a_range_is_exact_however_the_server_fails(archive: Archive) -> None:
    data = archive.files["crawl/0.warc.gz"]
    archive.faults = 0.7
    client = RangeClient(backoff_s=0, sleep=lambda _: None)
    for _ in range(60):
        start = archive.rng.randrange(len(data) - 1)
        length = archive.rng.randrange(1, len(data) - start)
        found = client.read(archive.url + "crawl/0.warc.gz", start, length)
        assert found == data[start : start + length]
    with pytest.raises(RangeError, match="beyond the end"):
        client.read(archive.url + "crawl/0.warc.gz", len(data) - 5, 6)


def test_waits_double_with_jitter_and_as_long_as_the_server_asks(archive: Archive) -> None:
    archive.is_down = True
    waits: list[float] = []
    client = RangeClient(max_attempts=6, rng=random.Random(3), sleep=waits.append)
    with pytest.raises(RangeError, match="status-503") as caught:
        client.read(archive.url + "crawl/0.warc.gz", 0, 10)
    assert caught.value.busy
    assert len(waits) == 5
    assert all(2**i / 2 <= wait_s <= 2**i for i, wait_s in enumerate(waits))
