"""URLs that wait for another reason than their host's pause: the host's others go on."""

from pathlib import Path

from pipeline.frontier import Frontier, HostBudget
from pipeline.frontier_state import Archived, Entry
from pipeline.shard_mail import Mailbox


def opened(root: Path, epoch: int = 1, seconds: float | None = None) -> Frontier:
    mailbox = Mailbox(root, 0, 1, lambda host, num_shards: 0, epoch)
    return Frontier(
        root,
        epoch,
        lambda url, depth: None,
        mailbox,
        lambda _: 1 << 40,
        1000,
        HostBudget(seconds=seconds),
    )


def taken(f: Frontier, now: float) -> list[str]:
    """Dropped at once, as far as they can be had."""
    urls: list[str] = []
    while turn := f.take(now):
        urls.append(turn.entry.url)
        f.drop(turn, "x")
        f.release(turn, 0.0)
    return urls


def test_the_others_go_on_and_the_deferred_come_first_later(tmp_path: Path) -> None:
    f = opened(tmp_path)
    f.add(Entry(f"http://a/{i}", 0) for i in range(4))
    for until in (100.0, 50.0):
        turn = f.take(0.0)
        assert turn
        f.defer(turn, until)
    assert taken(f, 0.0) == ["http://a/2", "http://a/3"]
    assert (f.num_waiting, f.is_idle, f.next_turn()) == (2, False, 50.0)
    f.add([Entry("http://a/new", 0)])  # does not wait for them
    assert f.next_turn() == 0.0
    assert taken(f, 1.0) == ["http://a/new"]
    assert taken(f, 49.0) == []
    assert taken(f, 50.0) == ["http://a/0", "http://a/1"]
    assert f.is_idle
    assert (f.num_waiting, f.num_hosts_waiting) == (0, 0)


def test_no_deferred_url_is_lost_with_its_owner(tmp_path: Path) -> None:
    for epoch, snapshot in enumerate((False, True), 1):
        root = tmp_path / str(epoch)
        f = opened(root)
        f.add(Entry(f"http://a/{i}", 0) for i in range(5))
        for _ in range(2):
            turn = f.take(0.0)
            assert turn
            f.defer(turn, 100.0)
        turn = f.take(0.0)
        assert turn
        if snapshot:
            f.snapshot()
        f.drop(turn, "x")
        f.release(turn, 0.0)
        f.sync()
        f.close()
        f = opened(root, 2)
        assert f.num_waiting == 4
        assert sorted(taken(f, 0.0)) == [f"http://a/{i}" for i in (0, 1, 3, 4)]
        f.close()


def test_a_hosts_seconds_count_on_under_the_next_owner(tmp_path: Path) -> None:
    f = opened(tmp_path, seconds=10)
    f.add(Entry(f"http://a/{i}", 0) for i in range(9))
    f.host("a").first_asked, f.host("a").last_asked = 1000.0, 1007.0
    turn = f.take(1007.0)
    assert turn
    f.archive(turn, Archived(200, "00", "x.warc.gz", 100), [])
    f.release(turn, 0.0)
    f.snapshot()
    f.close()
    f = opened(tmp_path, 2, seconds=10)
    f.host("a").first_asked, f.host("a").last_asked = 5.0, 5.0  # another machine's clock
    turn = f.take(7.9)
    assert turn
    f.release(turn, 0.0)
    assert f.take(8.0) is None
    assert f.is_idle
    f.close()
