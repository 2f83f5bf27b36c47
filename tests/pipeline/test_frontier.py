"""The frontier: turns of hosts, scope, budgets and shards."""

import array
import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frontier import HostBudget
from pipeline.frontier_state import Entry, Host, hostname_of
from tests.pipeline import small_frontier
from tests.pipeline.small_frontier import Opener, done, url_of, work_off

frontier = small_frontier.frontier  # the fixture


def test_turns(frontier: Opener) -> None:
    f = frontier()
    f.add(Entry(url, 0) for url in ["http://a/1", "http://a/2", "https://b/1", "http://c:81/1"])
    first = f.take(0.0)
    assert first is not None
    assert first.entry == Entry("http://a/1", 0)
    assert url_of(f.take(0.0)) == "https://b/1"
    assert url_of(f.take(0.0)) == "http://c:81/1"
    assert f.take(100.0) is None  # a second request to `a` waits for the first
    assert f.next_turn() is None
    f.archive(first, done(), [])
    f.release(first, free_at=5.0)
    assert f.next_turn() == 5.0
    assert f.take(4.9) is None
    assert url_of(f.take(5.0)) == "http://a/2"
    assert (f.num_known, f.tally.num_finished, f.num_waiting) == (4, 1, 0)


def test_a_host_keeps_its_delay_when_its_queue_runs_dry(frontier: Opener) -> None:
    f = frontier()
    f.add([Entry("http://a/1", 0)])
    first = f.take(0.0)
    assert first
    f.drop(first, "robots")
    f.release(first, free_at=9.0)
    f.add([Entry("http://a/2", 0)])
    assert f.take(8.9) is None
    assert url_of(f.take(9.0)) == "http://a/2"


def test_what_is_put_back_comes_first(frontier: Opener) -> None:
    f = frontier()
    f.add([Entry("http://a/1", 0), Entry("http://a/2", 0)])
    first = f.take(0.0)
    assert first
    f.put_back(first, 7.0)
    assert f.take(6.9) is None
    assert url_of(f.take(7.0)) == "http://a/1"


def test_scope_depth_and_doubles(frontier: Opener) -> None:
    f = frontier()
    f.add([Entry("http://a/", 0), Entry("http://a/", 1), Entry("http://z/", 0)])
    f.add([Entry("http://c/", 0), Entry("http://a/deep", 4)])
    assert f.num_known == 2
    f.add([Entry("http://a/deep", 3)])
    assert f.num_known == 3
    assert f.refused == {"host": 1, "depth": 1}


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a/", "a"),
        ("http://a:81/x", "a"),
        ("https://[::1]:8/x:y", "[::1]"),
        ("http://a.b/?q=//c/", "a.b"),
    ],
)
def test_host_names(url: str, host: str) -> None:
    assert hostname_of(url) == host


def test_priorities_then_order_of_discovery(frontier: Opener) -> None:
    f = frontier()
    f.add(Entry(f"http://a/{i}", 0, priority=i % 3) for i in range(9))
    assert work_off(f) == [f"http://a/{i}" for i in (0, 3, 6, 1, 4, 7, 2, 5, 8)]


def test_the_budget_counts_what_is_in_flight(frontier: Opener) -> None:
    f = frontier(max_pages=2)
    f.add([Entry("http://a/1", 0), Entry("http://b/1", 0), Entry("http://c:81/1", 0)])
    first, second = f.take(0.0), f.take(0.0)
    assert first
    assert second
    assert f.take(0.0) is None
    f.drop(first, "timeout")
    f.release(first, 0.0)
    assert f.take(0.0) is not None


@pytest.mark.parametrize(
    ("budget", "taken"),
    [
        (HostBudget(pages=3), 3),
        (HostBudget(num_bytes=35), 4),
        (HostBudget(seconds=2.5), 3),
        (HostBudget(), 9),
    ],
)
def test_a_hosts_budget(frontier: Opener, budget: HostBudget, taken: int) -> None:
    f = frontier(budget=budget)
    f.add(Entry(f"http://a/{i}", 0) for i in range(9))
    f.add([Entry("http://b/1", 0)])
    now, hosts = 0.0, list[str]()
    while turn := f.take(now):
        turn.host.first_asked = turn.host.first_asked or now
        hosts.append(turn.host.name)
        f.archive(turn, done(), [])
        f.release(turn, 0.0)
        now += 0.5
        if turn.host.name == "b":
            now = 1.0
    assert hosts.count("a") >= min(taken, 3)
    assert hosts.count("a") <= max(taken, 6)
    assert hosts.count("b") == 1
    if budget.seconds is None:
        assert hosts.count("a") == taken
        assert f.num_waiting == 9 - taken
    assert f.is_idle


def test_shards_hand_over_what_is_not_theirs(frontier: Opener) -> None:
    left, right = frontier(shard=0, of=2), frontier(shard=1, of=2)  # b is left, a and c are right
    left.add([Entry("http://b/1", 0), Entry("http://a/1", 1)])
    assert left.num_known == 1
    assert not left.is_idle
    assert not right.mailbox.has_mail
    left.sync()
    assert right.mailbox.has_mail
    right.read_mail()
    right.read_mail()
    assert right.num_known == 1
    assert right.is_idle is False
    assert work_off(right) == ["http://a/1"]
    left.add([Entry("http://a/1", 1)])  # sent already
    left.sync()
    assert not right.mailbox.has_mail


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "hold", "defer", "resume", "pop"]), st.integers(0, 3))
    )
)
def test_a_hosts_queues_against_plain_lists(acts: list[tuple[str, int]]) -> None:
    host = Host("a")
    queues: dict[int, list[int]] = {}
    held: list[int] = []
    deferred: list[int] = []
    for number, (act, priority) in enumerate(acts):
        if act == "push":
            host.push(priority, number)
            queues.setdefault(priority, []).append(number)
        elif act == "hold":
            host.hold(number)
            held.append(number)
        elif act == "defer":
            host.defer(number, 5.0)
            deferred.append(number)
        elif act == "resume":
            host.resume(5.0)
            held += deferred[::-1]
            deferred = []
        elif held or queues:
            first = min(queues, default=0)
            expected = held.pop() if held else queues[first].pop(0)
            queues = {p: queue for p, queue in queues.items() if queue}
            assert host.pop() == expected
        extra = [*held[::-1], *deferred]
        wanted = {p: list(queue) for p, queue in queues.items()}
        if extra:
            first = min(wanted, default=0)
            wanted[first] = extra + wanted.get(first, [])
        assert {p: list(queue) for p, queue in host.waiting().items()} == wanted
        assert host.num_waiting == sum(map(len, wanted.values()))
        written = array.array("Q", b"".join(host.pieces(None)))
        assert dict(host.sizes(False)) == {p: len(queue) for p, queue in wanted.items()}
        assert sorted(written) == sorted(itertools.chain(*wanted.values()))
        for empty, there in ((host.held, held), (host.deferred, deferred)):
            assert (empty == ()) is (not there)


def test_many_held_urls_cost_eight_bytes_each() -> None:
    host = Host("a")
    for number in range(100_000):
        host.hold(number)
        host.defer(number, 1.0)
    host.resume(2.0)
    assert isinstance(host.held, array.array)
    assert sys.getsizeof(host.held) < 1.2 * 8 * 200_000
    assert host.deferred == ()
