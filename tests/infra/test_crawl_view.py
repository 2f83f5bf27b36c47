"""`flywheel crawl` as people meet it: the run, its status from another terminal, its report."""

import dataclasses
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from infra import cli
from infra.crawl_page import _politeness
from infra.crawl_view import keys_by_kind, status_text
from infra.demo_site import DemoSite
from pipeline.core.errors import UserError
from pipeline.core.manifest import StageOutput
from pipeline.crawl_config import CrawlConfig
from pipeline.crawl_metrics import metrics, served_metrics
from pipeline.crawl_service import HostResult, ShardStatus
from pipeline.crawl_status import (
    NOT_ONE_PAGE,
    CrawlStatus,
    StatusBoard,
    is_running,
    note,
    read_status,
)
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
    assert re.search(r"may be changed on the way: .*delay_s", plan.stdout)
    assert re.search(r"another crawl, .*: seeds, .*max_pages", plan.stdout)
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
    assert "responses from 1 host, " in page
    assert "The largest of 1 host, in pages" in page
    assert "<script" not in page
    assert re.search(r"Of \d+ known URLs \d+ were not taken: crawl.max_pages was used up", page)
    assert 'href="shard-00000/not-kept.tsv.gz"' in page
    assert "not taken" in done.stdout

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


def test_the_status_says_whether_the_crawl_runs() -> None:
    text = status_text(_status(), 101.0, is_locked=True)
    assert text.startswith("crawling, begun 1m41s ago")
    assert "5 of 10 pages" in text
    assert "0.1 pages/s · 1m40s left" in text
    assert "20 URLs known · 14 waiting at 2 hosts · 1 in flight" in text
    assert status_text(_status(), 300.0, is_locked=True).startswith("silent for 3m20s")
    for unknown in (False, None):
        text = status_text(_status(), 300.0, unknown)
        assert text.startswith("not running: last seen 3m20s ago; the same command goes on")
        assert " left" not in text
    assert status_text(_status(), 110.0, is_locked=False).startswith("crawling"), "just begun"
    text = status_text(_status(state="stopped"), 103.0, is_locked=False)
    assert text.startswith("stopped 3s ago; the same command goes on")
    left = _status(state="finished", hosts=0, busy=0, ended_by="max_seconds")
    text = status_text(left, 103.0)
    assert text.startswith("finished 3s ago")
    assert "14 not taken · crawl.max_seconds was used up" in text
    assert "at 0 hosts" not in text


def test_where_the_crawl_ran_a_free_lock_says_at_once_that_it_ended() -> None:
    killed = _status(host="here")
    for state in ("crawling", "starting", "finishing"):
        status = dataclasses.replace(killed, state=state)
        text = status_text(status, 102.0, is_locked=False, host="here")
        assert text.startswith("not running: last seen 2s ago; the same command goes on")
        assert status_text(status, 102.0, is_locked=True, host="here").startswith(state)
        assert status_text(status, 102.0, is_locked=False, host="there").startswith(state)
        assert status_text(status, 102.0, None, host="here").startswith(state)


def test_a_crawl_that_failed_does_not_read_as_finished() -> None:
    text = status_text(_status(state=NOT_ONE_PAGE, shards=[]), 103.0, is_locked=False)
    assert text.startswith("failed: not one page 3s ago; the same command begins anew")
    assert "shard  epoch" not in text


def test_the_time_left_is_that_of_the_nearest_budget() -> None:
    status = _status(max_seconds=130.0, running_s=100.0)
    assert " · 30s left" in status_text(status, 101.0, is_locked=True)
    assert "1m40s left" in status_text(_status(max_seconds=1300.0), 101.0, is_locked=True)


def _politeness_text(delay_s: float, least_s: float | None, *gaps: float) -> str:
    hosts = [HostResult(f"{n}.example", 2, 9, 0, 0, gap) for n, gap in enumerate(gaps)]
    return str(_politeness(hosts, CrawlConfig(delay_s=delay_s), least_s).body)


def test_a_pause_that_was_changed_on_the_way_accuses_nobody() -> None:
    text = _politeness_text(0.9, 0.2, 0.21, 0.95)
    assert "Configured pause: 0.9 s (at times 0.2 s)." in text
    assert "hosts with less than 0.2 s: 0" in text
    assert "hosts with less than 0.2 s: 1" in _politeness_text(0.9, 0.2, 0.19, 0.95)
    assert "hosts with less than 0.9 s: 1" in _politeness_text(0.9, None, 0.21, 0.95)


def test_what_is_left_leaves_out_what_no_budget_is_for() -> None:
    many = {"max_pages": 1000, "num_known": 500, "num_waiting": 490, "busy": 1}
    assert _status(**many).num_wanted == 496
    assert _status(**many, num_excluded=300).num_wanted == 196
    assert _status(num_excluded=14, busy=0).num_wanted == 5
    assert _status(num_excluded=9000).num_wanted == 5, "what is there stays"
    text = status_text(_status(**many, num_excluded=300), 101.0, is_locked=True)
    assert "5 of 196 pages" in text
    assert "300 of them beyond their hosts' budgets" in text


def test_the_line_names_what_holds_the_crawl_up() -> None:
    waits = [["slow.example", 340, 12.4], ["b.example", 2, 60.0]]
    said = "waiting for slow.example (next in 12 s, 340 URLs) and 1 more host"
    assert note(_status(waits=waits, busy=0)).endswith(said)
    assert "waiting for" not in note(_status(waits=waits, busy=1))
    assert "waiting for" not in note(_status(waits=[["a.example", 3, 0.4]], busy=0))
    text = status_text(_status(waits=waits), 101.0, is_locked=True)
    assert "waiting for b.example: 2 URLs, next in 60 s" in text


def test_the_line_tells_refused_from_unreachable() -> None:
    dropped = {"robots": 3, "robots unreachable": 2, "robots crawl-delay": 1, "timeout": 1}
    line = note(_status(dropped=dropped, hosts=1, num_waiting=1))
    assert line == "0.0 MB · 1 waiting at 1 host · 4 blocked by robots · 2 unreachable · 1 dropped"
    assert "waiting" not in note(_status(hosts=0, num_waiting=0))


def test_whether_a_crawl_runs_is_told_by_its_lock(tmp_path: Path) -> None:
    output = StageOutput.of(str(tmp_path), "crawl", 1, {}, {})
    assert is_running(Path(output.url)) is None
    with output.lock():
        assert is_running(Path(output.url)) is True
    assert is_running(Path(output.url)) is False
    with output.lock():
        pass  # whoever looked holds nothing


def test_the_docs_name_each_key_with_its_kind() -> None:
    free, bound = keys_by_kind()
    assert {*free, *bound, "num_shards"} == CrawlConfig.model_fields.keys()
    assert {"delay_s", "contact", "concurrency"} <= set(free)
    assert {"seeds", "max_pages", "timeout_s"} <= set(bound)
    docs = (REPOSITORY / "docs/crawling.md").read_text()
    table = docs.partition("## Changed on the way")[2].partition("##")[0]
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    assert [set(re.findall(r"`(\w+)`", line)) for line in lines] == [set(free), set(bound)]


def test_a_recrawl_says_what_changed(site: DemoSite, tmp_path: Path) -> None:
    common = [f'crawl.seeds=["{site.url}"]', f"run.root={tmp_path}/data", "crawl.max_pages=9"]
    assert "since the crawl before" not in _flywheel(*common).stdout
    again = _flywheel(*common, "crawl.epoch=1")
    assert again.returncode == 0, again.stderr
    said = re.search(r"since the crawl before: (\d+) new, (\d+) unchanged$", again.stdout, re.M)
    assert said is not None, again.stdout
    assert said[1] == said[2] == "9"  # what has not changed costs none of max_pages
    (page,) = [p for p in tmp_path.rglob("crawl.html") if "Since the crawl" in p.read_text()]
    assert said[0].partition(": ")[2] in page.read_text()


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

    board = StatusBoard(tmp_path, CrawlConfig(max_pages=10))
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


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


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
    board = StatusBoard(tmp_path, CrawlConfig(max_pages=100))
    assert board.update([_shard(0, 5, 30), _shard(1, -1)]).num_archived == 30
    assert [shard.is_known for shard in board.shards] == [True, False]
    board.update([_shard(0, 5, 30), _shard(1, 9, 40)])
    status = board.update([_shard(0, 6, 31), _shard(1, -1, state="waiting for its lease")])
    assert status.num_archived == 71
    assert status.shards[1][2:] == ["waiting for its lease", 40, 40]
    assert all(shard.is_known for shard in board.shards)
    assert status.busy == 1


def test_the_rate_after_a_resume_is_of_this_run(tmp_path: Path) -> None:
    clock = Clock()
    board = StatusBoard(tmp_path, CrawlConfig(max_pages=1000), clock=clock)
    assert board.update([_shard(0, -1), _shard(1, 5, 400)]).timeline == []
    status = board.update([_shard(0, 7, 500), _shard(1, 5, 400)])
    assert [point[1] for point in status.timeline] == [900]
    clock.now += 10
    status = board.update([_shard(0, 7, 520), _shard(1, 5, 400)])
    assert status.pages_per_s == pytest.approx(2.0)
    assert status.num_before == 900


def test_who_cannot_speak_at_the_end_is_shown_as_it_was(tmp_path: Path) -> None:
    board = StatusBoard(tmp_path, CrawlConfig(max_pages=100))
    board.update([_shard(0, 5, 30), _shard(1, 9, 40)])
    board.end([None, _shard(1, 12, 44)], "stopped")
    status = read_status(tmp_path)
    assert (status.state, status.num_archived) == ("stopped", 74)
    assert [shard[2] for shard in status.shards] == ["stopped", "stopped"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["crawl.allow_private=false"], "crawl.allow_private = true"),
        (['crawl.seeds=["https://example.org/"]', "crawl.contact=me"], "'me' is neither"),
        (["crawl.blocked_domains=['127.0.0.1']"], "change crawl.blocked_domains"),
        (["crawl.drop_parameters=['']"], "query parameter ''"),
        (["run.root=/proc/x"], "run.root = '/proc/x' is no folder"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(
    site: DemoSite,
    tmp_path: Path,
    changes: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    common = [f'crawl.seeds=["{site.url}"]', f"run.root={tmp_path}/data", *changes]
    told: list[str] = []
    for dry in (["--dry-run"], []):
        assert cli.main(["crawl", *dry, *common]) == 2
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]
    assert message in told[0]
    assert not (tmp_path / "data").exists()
