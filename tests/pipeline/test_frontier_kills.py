"""The frontier's state: no kill, no power cut and no hung predecessor can spoil it."""

import contextlib
import datetime as dt
import hashlib
import os
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.frontier import Frontier, Turn
from pipeline.frontier_log import logged_ends
from pipeline.frontier_snapshot import SNAPSHOT, DamagedSnapshotError, read_snapshot
from pipeline.frontier_state import Archived, Entry
from pipeline.shard_mail import Mailbox
from pipeline.warc import WarcResponse, iter_responses
from pipeline.warc_writer import Exchange, WarcSeries
from tests.pipeline import small_frontier
from tests.pipeline.small_frontier import Opener, done, refusal, shard_of, url_of, work_off

frontier = small_frontier.frontier  # the fixture


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_successor_has_the_same_state(frontier: Opener, snapshot: bool) -> None:
    f = frontier()
    f.add(
        [Entry("http://a/1", 0), Entry("http://a/map", 0, is_sitemap=True), Entry("http://b/1", 0)]
    )
    one = f.take(0.0)
    assert one
    f.archive(one, done(), [Entry("http://a/%C3%A4", 1, hops=2), Entry("http://b/2", 1)])
    f.release(one, 0.0)
    two = f.take(0.0)  # http://b/1, in flight at the kill
    assert url_of(two) == "http://b/1"
    if snapshot:
        f.snapshot()
        assert f.seen.runs
    f.add([Entry("http://a/3", 1)])
    g = frontier()
    assert (g.num_known, g.tally.num_archived, g.num_waiting) == (6, 1, 5)
    assert g.tally == f.tally
    g.add([Entry("http://a/1", 0), Entry("http://b/2", 0)])  # known
    left = [(t.entry, f.take(0.0)) for t in iter(lambda: take_and_drop(g), None)]
    urls = [entry.url for entry, _ in left]
    assert sorted(urls) == sorted(
        ["http://a/map", "http://a/%C3%A4", "http://a/3", "http://b/1", "http://b/2"]
    )
    assert [url for url in urls if "//b/" in url] == ["http://b/1", "http://b/2"]
    assert Entry("http://a/%C3%A4", 1, hops=2) in [entry for entry, _ in left]
    assert Entry("http://a/map", 0, is_sitemap=True) in [entry for entry, _ in left]


def take_and_drop(f: Frontier) -> Turn | None:
    if turn := f.take(1e9):
        f.drop(turn, "x")
        f.release(turn, 0.0)
    return turn


def test_damage_in_the_middle_is_told(frontier: Opener, tmp_path: Path) -> None:
    f = frontier()
    f.add([Entry("http://a/1", 0)])
    f.add([Entry("http://a/2", 0)])
    (log,) = tmp_path.rglob("log-*.log")
    head, first, second = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(head + b"\x00\x00\n" + first + second)
    with pytest.raises(UserError, match=r"the log in .* is damaged at .*delete the folder"):
        frontier()
    log.write_bytes(b"\x00\n")
    with pytest.raises(UserError, match=r"log-000001.log is damaged; delete"):
        frontier()


@pytest.mark.parametrize("content", [b"", b"PK junk", b"x" * 1000])
def test_a_damaged_snapshot_is_told_and_the_log_read_instead(
    frontier: Opener, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    f = frontier()
    f.add([Entry("http://a/1", 0), Entry("http://a/2", 0)])
    f.snapshot()
    (path,) = tmp_path.rglob("snapshot.npz")
    path.write_bytes(content)
    g = frontier()
    assert "snapshot.npz is damaged" in capsys.readouterr().err
    assert logged_ends(g.folder) == {}
    g.add([Entry("http://a/2", 0)])
    g.snapshot()  # though nothing came in
    assert work_off(frontier()) == ["http://a/1", "http://a/2"]
    assert capsys.readouterr().err == ""
    path.write_bytes(content)
    for log in path.parent.glob("log-*.log"):
        log.unlink()
    with pytest.raises(UserError, match=r"snapshot.npz is damaged .* and the log is gone; delete"):
        frontier()


def _one_bit_of_each_byte(path: Path) -> Iterator[bytes]:
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(place % 3, 8, 3):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            yield bytes(damaged)


def test_no_bit_of_a_snapshot_brings_anything_else(frontier: Opener) -> None:
    f = frontier()
    f.add(Entry(f"http://a/{i}", 0) for i in range(5))
    f.snapshot()
    path, good = f.folder / SNAPSHOT, read_snapshot(f.folder)
    told = 0
    for damaged in list(_one_bit_of_each_byte(path)):
        path.write_bytes(damaged)
        try:
            found = read_snapshot(f.folder)
        except DamagedSnapshotError:
            told += 1
            continue
        assert (found.end, found.runs, found.tally) == (good.end, good.runs, good.tally)
        assert [host.waiting() for host in found.hosts] == [h.waiting() for h in good.hosts]
    assert told > 1000


def _cut(path: Path, num_bytes: int) -> None:
    os.truncate(path, path.stat().st_size - num_bytes)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [lambda p: _cut(p, 16), lambda p: _cut(p, 7), _flip, Path.unlink],
    ids=["cut by a row", "cut", "bit", "gone"],
)
def test_a_damaged_run_is_rebuilt_from_the_log(
    frontier: Opener, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None]
) -> None:
    f = frontier()
    known = [f"http://a/{i}" for i in range(40)]
    for part in (known[:20], known[20:]):
        f.add(Entry(url, 0) for url in part)
    done_with = [f.take(0.0)]
    assert done_with[0]
    f.drop(done_with[0], "x")
    f.release(done_with[0], 0.0)
    f.snapshot()
    (run,) = f.folder.glob("seen-*.run")
    spoil(run)
    g = frontier(max_recent=7)  # which also spills while it reads
    assert f"{run.name}" in capsys.readouterr().err
    assert len(list(g.folder.glob("seen-*.run"))) >= 1
    g.add(Entry(url, 0) for url in known)
    assert (g.num_known, g.tally) == (40, f.tally)
    g.snapshot()
    h = frontier()
    assert capsys.readouterr().err == ""
    h.add(Entry(url, 0) for url in known)
    assert work_off(h) == known[1:]


def test_a_segment_that_is_gone_is_told(frontier: Opener, tmp_path: Path) -> None:
    for number in range(3):
        frontier().add([Entry(f"http://a/{number}", 0)])
    one, two, _ = sorted(tmp_path.rglob("log-*.log"))
    kept = two.read_bytes()
    two.unlink()
    with pytest.raises(UserError, match=r"log-000001.log was cut short; delete"):
        frontier()
    two.write_bytes(kept)
    one.unlink()
    with pytest.raises(UserError, match=r"the beginning of the log in .* is gone; delete"):
        frontier()


def test_nothing_goes_behind_a_torn_line(frontier: Opener, tmp_path: Path) -> None:
    """A limit on files stands for a full disk: what fits is written, the rest raises."""
    f = frontier()
    f.add([Entry("http://a/1", 0)])
    first = f.take(0.0)
    assert first
    (log,) = tmp_path.rglob("log-*.log")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 70, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            f.add(Entry(f"http://b/{'x' * 40}{number}", 0) for number in range(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    torn = log.read_bytes()
    assert not torn.endswith(b"\n")
    for act in (  # there is room again, and nobody may use it
        lambda: f.add([Entry("http://c/1", 0)]),
        lambda: f.archive(first, done(), []),
        lambda: f.drop(first, "x"),
        f.sync,
        f.snapshot,
    ):
        with pytest.raises(OSError, match="File too large"):
            act()
    assert log.read_bytes() == torn
    assert not list(tmp_path.rglob("snapshot.npz"))
    g = frontier()
    assert g.num_known == 2  # one of the three came through whole
    assert sorted(work_off(g)) == ["http://a/1", f"http://b/{'x' * 40}0"]


def test_a_page_that_the_warc_lost_waits_again(frontier: Opener) -> None:
    f = frontier()
    f.add([Entry("http://a/1", 0), Entry("http://a/2", 0)])
    for number in range(2):
        turn = f.take(0.0)
        assert turn
        f.archive(turn, done(number), [Entry(f"http://b/{number}", 1)])
        f.release(turn, 0.0)
    g = frontier(warc_bytes=100)
    assert g.tally.num_archived == 1
    assert g.num_waiting == 3
    assert g.tally.warc_ends == {"x-00000.warc.gz": 100}
    assert "http://a/2" in work_off(g)


def test_what_was_on_the_disk_once_and_is_gone_is_told(frontier: Opener, tmp_path: Path) -> None:
    f = frontier()
    f.add([Entry("http://a/1", 0)])
    turn = f.take(0.0)
    assert turn
    f.archive(turn, done(), [])
    f.snapshot()
    with pytest.raises(UserError, match=r"x-00000.warc.gz is gone or cut short: 100 bytes"):
        frontier(warc_bytes=99)
    (tmp_path / "shard-00000" / "log-000001.log").write_text('{"epoch": 1, "start": 0}\n')
    for path in (tmp_path / "shard-00000").glob("log-00000[2-9].log"):
        path.unlink()
    with pytest.raises(UserError, match=r"the log in .* is shorter than its snapshot"):
        frontier()


def test_a_hung_predecessor_changes_nothing(frontier: Opener) -> None:
    f = frontier()
    f.add([Entry("http://a/1", 0), Entry("http://b/1", 0)])
    hung = f.take(0.0)
    assert hung
    g = frontier()
    f.archive(hung, done(), [Entry("http://a/2", 1)])  # it wakes up, and does not know
    assert g.num_known == 2
    g.add([Entry("http://a/3", 0)])
    h = frontier()
    assert sorted(work_off(h)) == ["http://a/1", "http://a/3", "http://b/1"]


def test_mail_survives_the_death_of_its_sender(frontier: Opener) -> None:
    left = frontier(shard=0, of=2)
    left.add([Entry("http://a/1", 1)])  # written down, and killed before the delivery
    again, right = frontier(shard=0, of=2), frontier(shard=1, of=2)
    again.sync()
    right.read_mail()
    assert work_off(right) == ["http://a/1"]
    third = frontier(shard=0, of=2)  # sends it once more
    third.sync()
    right.read_mail()
    assert work_off(right) == []


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_events_and_kills(tmp_path: Path, seed: int) -> None:
    """Against a plain model: known and finished sets."""
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        opener = Opener(tmp_path, stack)
        f = opener(max_recent=20)
        known, finished = set[str](), set[str]()
        flying: list[Turn] = []
        for _ in range(400):
            match chance.randrange(8):
                case 0 | 1 | 2:
                    batch = [
                        f"http://{chance.choice('abc')}/{chance.randrange(300)}" for _ in "abc"
                    ]
                    f.add(Entry(url, 0, priority=chance.randrange(3)) for url in batch)
                    known.update(batch)
                case 3 | 4:
                    if turn := f.take(1e9):
                        assert turn.entry.url in known - finished
                        flying.append(turn)
                case 5 | 6 if flying:
                    turn = flying.pop(chance.randrange(len(flying)))
                    link = f"http://b/{chance.randrange(300)}"
                    if chance.random() < 0.5:
                        f.archive(turn, done(), [Entry(link, 1)])
                        known.add(link)
                    else:
                        f.drop(turn, "x")
                    finished.add(turn.entry.url)
                    f.release(turn, 0.0)
                case 7:
                    if chance.random() < 0.3 or f.wants_snapshot():
                        f.snapshot()
                    if chance.random() < 0.2:
                        f, flying = opener(max_recent=20), []
                case _:
                    pass
            assert f.num_known == len(known)
            assert f.num_waiting == len(known - finished) - len(flying)
        f = opener()
        assert sorted(work_off(f)) == sorted(known - finished)


# A crawl without a network: a page is its number, and links to a few others.
PAGES = {i: [2 * i + 1, 2 * i + 2, i * 5 % 7] for i in range(7)}


def crawl_on(folder: Path, num_steps: int = 1 << 30) -> None:
    """The order of writes that pipeline/crawl_shard.py keeps; ends after so many of them."""
    epoch = 1 + len(list(folder.glob("log-*.log")))
    mailbox = Mailbox(folder.parent, 0, 1, shard_of, epoch)
    series = WarcSeries(folder, f"x-{epoch:05d}", "Test/1", 1500, logged_ends(folder))
    f = Frontier(folder, epoch, refusal, mailbox, lambda name: WarcSeries.size(folder, name), 1000)
    try:
        f.add([Entry("http://a/0", 0)])
        while turn := f.take(0.0):
            number = int(turn.entry.url.rpartition("/")[2])
            body = str(number).encode() * 50
            at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
            if (num_steps := num_steps - 1) < 0:
                return
            place = series.write(
                Exchange(turn.entry.url, at, None, b"GET", b"HTTP/1.1 200 OK\r\n\r\n", body)
            )
            if (num_steps := num_steps - 1) < 0:
                return
            links = [Entry(f"http://a/{link}", 1) for link in PAGES.get(number, [])]
            digest = hashlib.sha256(body).hexdigest()
            f.archive(turn, Archived(200, digest, place.name, place.end), links)
            if (num_steps := num_steps - 1) < 0:
                return
            series.rotate_if_full()
            if number % 4 == 3:
                series.sync()
                f.snapshot()
            f.release(turn, 0.0)
        series.finish()
    finally:
        f.close()
        series.close()


def archive(folder: Path) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*.warc.gz")):
        for item in iter_responses(str(path)):
            assert isinstance(item, WarcResponse)
            found.append((item.url, item.payload_sha256))
    return found


def test_death_between_any_two_writes(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    crawl_on(whole)
    wanted = archive(whole)
    assert len(wanted) == len(set(wanted)) == 15
    assert len(list(whole.glob("*.warc.gz"))) > 2
    for step in range(3 * 15):
        folder = tmp_path / str(step)
        crawl_on(folder, step)
        crawl_on(folder, 3)  # and soon once more
        crawl_on(folder)
        assert sorted(archive(folder)) == sorted(wanted), step
        assert not list(folder.glob("*.open"))


def test_death_in_the_middle_of_a_write(tmp_path: Path) -> None:
    crawl_on(tmp_path / "whole")
    wanted = archive(tmp_path / "whole")
    for cut in range(1, 60, 3):
        folder = tmp_path / str(cut)
        crawl_on(folder, 16)
        (log,) = folder.glob("log-*.log")
        log.write_bytes(log.read_bytes()[:-cut])
        for path in folder.glob("*.open"):
            path.write_bytes(path.read_bytes()[: -7 * cut] if cut % 2 else path.read_bytes() + b"x")
        crawl_on(folder)
        crawl_on(folder)  # the log is readable again
        assert sorted(archive(folder)) == sorted(wanted), cut
