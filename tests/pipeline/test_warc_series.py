"""A series of WARC files: full ones rotated, open ones saved after kills, takeovers, full disks."""

import contextlib
import random
import resource
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from pipeline.warc_writer import Place, WarcSeries
from tests.pipeline.small_warc import PAGES
from tests.pipeline.written_warc import check_index, exchange, read, start, urls


def test_rotation_by_size(tmp_path: Path) -> None:
    series = WarcSeries(tmp_path, "x", "Test/1", 2000, {})
    for number, body in enumerate(PAGES):
        series.write(exchange(number, body))
        series.rotate_if_full()
    series.finish()
    series.finish()
    assert series.finished() == ["x-00000.warc.gz", "x-00001.warc.gz", "x-00002.warc.gz"]
    found = [urls(tmp_path / name) for name in series.finished()]
    assert [len(pages) for pages in found] == [2, 2, 1]


def test_recovery_of_a_file_that_the_log_does_not_know(tmp_path: Path) -> None:
    series = WarcSeries(tmp_path, "x", "Test/1", 1 << 30, {})
    series.write(exchange(0))
    series.close()
    series = WarcSeries(tmp_path, "x", "Test/1", 1 << 30, {})
    assert list(tmp_path.iterdir()) == []
    series.finish()
    assert series.finished() == []


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
def file_size_limit(num_bytes: int) -> Generator[None]:
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
