"""`flywheel crawl` as people meet it: the run, its status from another terminal, its report."""

import re
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from infra.demo_site import DemoSite
from pipeline.core.errors import UserError
from pipeline.crawl_service import ShardStatus
from pipeline.crawl_status import CrawlStatus, StatusBoard, metrics, read_status, served_metrics
from pipeline.frontier_state import Tally

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site() -> Generator[DemoSite]:
    with DemoSite(0) as started:
        yield started


def _flywheel(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", "crawl", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_plan_run_status_and_report(site: DemoSite, tmp_path: Path) -> None:
    common = [f'crawl.seeds=["{site.url}"]', f"run.root={tmp_path}/data", "crawl.max_pages=12"]
    common.append("crawl.num_shards=1")
    plan = _flywheel("--dry-run", *common)
    assert plan.returncode == 0, plan.stderr
    assert "not begun" in plan.stdout
    assert not (tmp_path / "data").exists()
    early = _flywheel("--status", *common)
    assert early.returncode == 2
    assert "no crawl with this config has begun" in early.stderr

    done = _flywheel(*common)
    assert done.returncode == 0, done.stderr
    assert re.search(r"archived +status 200 +1[0-2]", done.stdout)
    (report,) = tmp_path.rglob("crawl.html")
    page = report.read_text()
    for title in ("What became of the URLs", "Over time", "By host", "Politeness kept"):
        assert title in page
    assert "127.0.0.1" in page
    assert "<script" not in page

    status = _flywheel("--status", *common)
    assert status.returncode == 0, status.stderr
    assert "12 of 12 pages" in status.stdout
    assert "finished" in _flywheel("--dry-run", *common).stdout
    again = _flywheel(*common)
    assert again.stdout == done.stdout


def _status(**changes) -> CrawlStatus:
    values = {
        "started": 0.0,
        "at": 100.0,
        "state": "crawling",
        "max_pages": 10,
        "num_known": 20,
        "num_archived": 5,
        "num_bytes": 1000,
        "num_waiting": 14,
        "hosts": 2,
        "busy": 1,
        "statuses": {"200": 5},
        "dropped": {'a "quoted"\nreason\\': 1},
        "refused_links": {},
        "retries": {},
        "shards": [[0, 1, "crawling", 5, 14]],
        "timeline": [[0.0, 0, 0], [40.0, 2, 10], [100.0, 5, 50]],
    }
    return CrawlStatus(**{**values, **changes})


def test_a_crawl_that_is_silent_is_said_to_be() -> None:
    from infra.crawl_view import status_text

    assert status_text(_status(), 101.0).startswith("crawling, begun 1m41s ago")
    assert "5 of 10 pages" in status_text(_status(), 101.0)
    assert "0.1 pages/s · 1m40s left" in status_text(_status(), 101.0)
    assert "silent for 3m20s" in status_text(_status(), 300.0)


def test_metrics_are_prometheus_text() -> None:
    lines = metrics(_status()).splitlines()
    assert "flywheel_crawl_pages_total 5" in lines
    assert 'flywheel_crawl_responses_total{status="200"} 5' in lines
    assert 'flywheel_crawl_dropped_total{reason="a \\"quoted\\" reason\\\\"} 1' in lines
    sample = re.compile(r'[a-z_]+(\{[a-z]+="([^"\\]|\\.)*"\})? [0-9.]+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_status_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(UserError, match=r"status\.json is damaged"):
        read_status(tmp_path)


def test_metrics_are_served_while_the_crawl_runs(tmp_path: Path) -> None:
    import urllib.error
    import urllib.request

    board = StatusBoard(tmp_path, 10)
    board.last = _status()
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with served_metrics(board, port):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"flywheel_crawl_pages_total 5" in answer.read()
        taken = pytest.raises(UserError, match=r"metrics_port = \d+: .*choose another")
        with taken, served_metrics(board, port):
            pass
    with served_metrics(board, 0):
        assert threading.active_count() >= 1


def _shard(number: int, serial: int, archived: int = 0, state: str = "crawling") -> ShardStatus:
    return ShardStatus(
        shard=number,
        epoch=1,
        state=state,
        is_idle=False,
        serial=serial,
        tally=Tally(num_known=2 * archived, num_archived=archived),
        num_waiting=archived,
        hosts=1,
        busy=1,
        refused={},
        retries={},
        next_turn_s=None,
    )


def test_a_shard_between_two_owners_is_shown_as_it_was(tmp_path: Path) -> None:
    """Or the budget of pages would be dealt out twice."""
    board = StatusBoard(tmp_path, 100)
    assert board.update([_shard(0, 5, 30), _shard(1, -1)]).num_archived == 30
    assert [shard.is_known for shard in board.shards] == [True, False]
    board.update([_shard(0, 5, 30), _shard(1, 9, 40)])
    status = board.update([_shard(0, 6, 31), _shard(1, -1, state="waiting for its lease")])
    assert status.num_archived == 71
    assert status.shards[1][2:] == ["waiting for its lease", 40, 40]
    assert all(shard.is_known for shard in board.shards)
    assert status.busy == 1
