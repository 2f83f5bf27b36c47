"""What a new owner of a shard knows of the pauses that its predecessor kept."""

from pathlib import Path

import pytest

from pipeline.frontier import Frontier
from pipeline.frontier_state import Entry
from pipeline.pauses import Clocks, Pauses
from pipeline.shard_mail import Mailbox


class Day:
    """`wall` goes on from owner to owner; `now` begins anew with each, as after a reboot."""

    def __init__(self) -> None:
        self.wall, self.now = 1e9, 5000.0

    def sleep(self, seconds: float) -> None:
        self.wall += seconds
        self.now += seconds

    def reboot(self) -> None:
        self.now = 7.0

    @property
    def clocks(self) -> Clocks:
        return Clocks(lambda: self.now, lambda: self.wall)


def opened(root: Path, epoch: int, day: Day) -> Frontier:
    mailbox = Mailbox(root, 0, 1, lambda host, num_shards: 0, epoch)
    return Frontier(
        root,
        epoch,
        lambda url, depth: None,
        mailbox,
        lambda _: 1 << 40,
        1000,
        clocks=day.clocks,
        pause_s=1.0,
    )


def ask(f: Frontier, host: str, day: Day, pause_s: float) -> None:
    """One request of no length to a host, and the pause after it."""
    turn = f.take(day.now)
    assert turn
    assert turn.host.name == host
    f.put_back(turn, day.now + pause_s)


@pytest.mark.parametrize("snapshot", ["none", "before", "after"])
@pytest.mark.parametrize(
    ("gone_s", "left_s"),
    [
        (5.0, 295.0),  # a pause that still lasts ends when it was to
        (299.5, 1.0),  # but no owner begins at once
        (301.0, 300.0),  # one that had ended: the host may have been asked again
    ],
)
def test_a_long_pause_outlives_its_owner(
    tmp_path: Path, snapshot: str, gone_s: float, left_s: float
) -> None:
    day = Day()
    f = opened(tmp_path, 1, day)
    f.add([Entry("http://a/1", 0)])
    if snapshot == "before":
        f.snapshot()
    ask(f, "a", day, 300.0)
    if snapshot == "after":
        f.snapshot()
    f.close()  # killed
    day.sleep(gone_s)
    day.reboot()
    g = opened(tmp_path, 2, day)
    assert g.next_turn() == pytest.approx(day.now + left_s, abs=0.01)
    assert g.take(day.now + left_s - 0.1) is None
    assert g.take(day.now + left_s + 0.1)
    g.close()


def test_every_host_that_was_known_gets_the_usual_pause(tmp_path: Path) -> None:
    day = Day()
    f = opened(tmp_path, 1, day)
    f.add([Entry("http://a/1", 0)])
    assert f.next_turn() == 0.0  # nobody came before
    ask(f, "a", day, 1.0)
    (log,) = tmp_path.glob("log-*.log")
    assert "~" not in log.read_text()  # the usual pause is worth no line
    f.close()
    day.reboot()
    g = opened(tmp_path, 2, day)
    assert g.next_turn() == day.now + 1.0
    g.add([Entry("http://b/1", 0)])
    assert g.next_turn() == 0.0  # new to both
    g.close()


def test_a_host_that_is_quick_again_is_forgotten(tmp_path: Path) -> None:
    day = Day()
    f = opened(tmp_path, 1, day)
    f.add([Entry("http://a/1", 0)])
    ask(f, "a", day, 60.0)
    day.sleep(60.0)
    turn = f.take(day.now)
    assert turn
    f.release(turn, day.now - 1.0)  # not asked after all: its last pause says more
    f.close()
    g = opened(tmp_path, 2, day)
    assert g.next_turn() is not None
    assert g.next_turn() == day.now + 60.0
    day.sleep(60.0)
    ask(g, "a", day, 1.0)
    g.snapshot()
    g.close()
    h = opened(tmp_path, 3, day)
    assert h.next_turn() == day.now + 1.0
    h.close()


def test_a_host_that_was_asked_for_anothers_rules_alone(tmp_path: Path) -> None:
    day = Day()
    f = opened(tmp_path, 1, day)
    f.add([Entry("http://a/1", 0)])
    f.run_errand("http://other/robots.txt")
    turn = f.take_errand(day.now)
    assert turn
    f.release(turn, day.now + 30.0)
    f.close()
    g = opened(tmp_path, 2, day)
    g.add([Entry("http://other/", 0)])
    assert g.host("other").free_at == day.now + 30.0
    g.close()


def test_a_clock_that_was_set_back_holds_no_host_up_for_longer() -> None:
    day = Day()
    before = Pauses(day.clocks, 1.0)
    line = before.note("a", day.now + 40.0)
    assert line
    after = Pauses(day.clocks, 1.0)
    after.read(line)
    day.wall -= 1e6
    assert after.free_at("a") == day.now + 40.0
    again = Pauses(day.clocks, 1.0)
    again.of_json(before.to_json())
    assert again.free_at("a") == day.now + 40.0
    assert again.free_at("b") == day.now + 1.0


def test_without_clocks_nothing_is_remembered() -> None:
    assert Pauses(None, 1.0).note("a", 1e9) is None
    assert Pauses(None, 1.0).free_at("a") == 0.0


def test_damage_in_a_line_is_told() -> None:
    for line in ("~", "~\ta\tx\t1", "~\ta\t1"):
        with pytest.raises(ValueError, match=r"unpack|convert"):
            Pauses(None, 1.0).read(line)
