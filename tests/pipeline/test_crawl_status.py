"""What a crawl says of itself over its starts, its stops and its owners' deaths."""

import dataclasses
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.progress import Progress
from pipeline.crawl_config import CrawlConfig
from pipeline.crawl_metrics import metrics
from pipeline.crawl_service import ShardStatus
from pipeline.crawl_status import StatusBoard, read_status, status_before
from pipeline.frontier_state import Tally


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def shard(archived: int, *, epoch: int = 1, is_known: bool = True, **changes: Any) -> ShardStatus:
    status = ShardStatus(
        shard=0,
        epoch=epoch,
        state="crawling",
        is_idle=False,
        serial=archived if is_known else -1,
        tally=Tally(num_known=500, num_archived=archived, num_bytes=100 * archived),
        num_waiting=400,
        hosts=1,
        busy=0,
        refused={"scope: host": archived},
        retries={"timeout": 1},
        next_turn_s=None,
    )
    return dataclasses.replace(status, **changes)


def test_a_resumed_crawl_goes_on_with_what_its_last_start_said(tmp_path: Path) -> None:
    clock = Clock()
    first = StatusBoard(tmp_path, CrawlConfig(), clock=clock)
    for archived in (0, 50, 100):
        first.update([shard(archived)])
        clock.now += 10
    first.end([shard(110)], "stopped")
    clock.now += 86_400  # the next day

    second = StatusBoard(tmp_path, CrawlConfig(), status_before(tmp_path), clock)
    waiting = second.update([shard(0, is_known=False, state="reading its log")])
    assert (waiting.state, waiting.num_archived) == ("starting", 110), "what is there is there"
    clock.now += 5
    second.update([shard(110, epoch=2, refused={"scope: host": 0})])
    clock.now += 10
    status = second.update([shard(140, epoch=2, refused={"scope: host": 30})])
    assert status.worked_s == pytest.approx(40.1)
    assert status.timeline == [
        [0.0, 0, 0],
        [10.0, 50, 5000],
        [20.0, 100, 10_000],
        [30.0, 110, 11_000],
        [30.1, 110, 11_000],
        [40.1, 140, 14_000],
    ]
    assert status.pages_per_s == pytest.approx(3.0), "of this start alone"
    assert status.refused_links == {"scope: host": 140}
    assert status.retries == {"timeout": 2}
    assert (status.num_before, status.host) == (110, socket.gethostname())


def test_after_a_kill_a_few_seconds_are_missing_at_most(tmp_path: Path) -> None:
    """The last file is the last word: nobody could write a better one."""
    clock = Clock()
    board = StatusBoard(tmp_path, CrawlConfig(), clock=clock)
    board.update([shard(50)])
    clock.now += 3
    board._written_at = 0.0  # two seconds have gone
    board.update([shard(60)])
    after = StatusBoard(tmp_path, CrawlConfig(), status_before(tmp_path), clock)
    status = after.update([shard(66, epoch=2, refused={})])
    assert status.worked_s == pytest.approx(3.1)
    assert status.refused_links == {"scope: host": 60}
    assert status.pages_per_s == 0.0, "what came between is not this start's pace"


def test_a_new_owner_counts_on_where_its_predecessor_died(tmp_path: Path) -> None:
    board = StatusBoard(tmp_path, CrawlConfig())
    board.update([shard(50)])
    board.update([shard(0, is_known=False)])
    status = board.update([shard(55, epoch=2, refused={"scope: host": 5})])
    assert status.refused_links == {"scope: host": 55}
    assert status.retries == {"timeout": 2}
    assert board.update([shard(55, epoch=2, refused={"scope: host": 5})]).retries == {"timeout": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"timeline": [[0.0, 1]]},
        {"timeline": 5},
        {"retries": {"timeout": None}},
        {"before_s": float("nan")},
        {"refused_links": []},
    ],
)
def test_a_damaged_status_is_no_status_of_before(tmp_path: Path, change: dict[str, Any]) -> None:
    board = StatusBoard(tmp_path, CrawlConfig())
    board.end([shard(50)], "stopped")
    assert status_before(tmp_path) == read_status(tmp_path)
    path = tmp_path / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert status_before(tmp_path) is None


def test_the_shortest_pause_of_all_starts_is_kept(tmp_path: Path) -> None:
    for delay_s in (0.9, 0.2, 0.5):
        config = CrawlConfig(delay_s=delay_s)
        board = StatusBoard(tmp_path, config, status_before(tmp_path))
        status = board.end([shard(50)], "stopped")
    assert status.least_delay_s == 0.2


@pytest.mark.parametrize(
    ("config", "left_s"),
    [
        ({"max_pages": 1000}, 80),  # 400 known ones at 5 a second
        ({"max_pages": 150}, 10),
        ({"max_bytes_total": 10_500}, 1),  # at 500 bytes a second
        ({"max_bytes_total": 9_000}, 0),
        ({"max_seconds": 25.0}, 5),
        ({"max_pages": 150, "max_bytes_total": 11_000, "max_seconds": 600.0}, 2),
        ({"max_pages": 150, "max_bytes_total": 90_000, "max_seconds": 23.0}, 3),
    ],
)
def test_the_time_left_is_that_of_the_nearest_budget(
    tmp_path: Path, config: dict[str, Any], left_s: float
) -> None:
    clock = Clock()
    board = StatusBoard(tmp_path, CrawlConfig(**config), clock=clock)
    board.update([shard(0, is_known=False)])
    clock.now += 1000  # starting the workers is no work
    board.update([shard(0)])
    clock.now += 20
    status = board.update([shard(100)])
    assert status.seconds_left == pytest.approx(left_s)
    assert f"flywheel_crawl_seconds_left {float(left_s)}\n" in metrics(status)
    ended = board.end([shard(100)], "stopped")
    assert "seconds_left" not in metrics(ended)


def test_a_progress_line_takes_the_word_of_who_knows_better() -> None:
    progress = Progress("crawl", total=100, unit="pages")
    progress.advance(10)
    progress.left_s = 61.0
    assert " · 1m01s left" in progress.line()
