"""What holds a crawl up, and what its hosts' budgets leave out."""

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.config import RunConfig
from pipeline.crawl import run_crawl
from pipeline.crawl_status import read_status
from pipeline.frontier import Frontier, HostBudget
from pipeline.frontier_state import Entry
from pipeline.host_waits import FEW_HOSTS, HostWait, survey
from pipeline.shard_mail import Mailbox
from pipeline.urls import shard_of
from tests.pipeline import small_site
from tests.pipeline.small_site import config, html

serve = small_site.serve  # the fixture


def _frontier(folder: Path, budget: HostBudget, urls: dict[str, int]) -> Frontier:
    mailbox = Mailbox(folder, 0, 1, shard_of, 1)
    frontier = Frontier(folder, 1, lambda _url, _depth: None, mailbox, lambda _: 0, 100, budget)
    frontier.add(Entry(f"http://{host}/{n}", 0) for host, num in urls.items() for n in range(num))
    return frontier


def test_the_hosts_that_are_left_and_their_turns(tmp_path: Path) -> None:
    frontier = _frontier(tmp_path, HostBudget(), {"a": 3, "b": 9})
    turn = frontier.take(100.0)
    assert turn is not None
    found = survey(frontier, 100.0)
    assert found.num_excluded == 0
    assert found.waits == (HostWait("b", 9, 0.0), HostWait("a", 2, 0.0))
    frontier.put_back(turn, 112.5)
    assert survey(frontier, 100.0).waits[1] == HostWait("a", 3, 12.5)
    frontier.close()


def test_what_a_budget_has_no_room_for(tmp_path: Path) -> None:
    many = {f"h{n}": 5 for n in range(FEW_HOSTS + 1)}
    frontier = _frontier(tmp_path, HostBudget(pages=2), {"a": 30, **many})
    found = survey(frontier, 0.0)
    assert found.num_excluded == 28 + 3 * len(many)
    assert found.waits == (), "of many hosts none is named"
    turn = frontier.take(0.0)
    assert turn is not None
    assert survey(frontier, 0.0).num_excluded == found.num_excluded, "one in flight, one to come"
    frontier.close()


@pytest.mark.parametrize("kind", ["seconds", "num_bytes"])
def test_a_host_over_another_budget_is_left_out_whole(tmp_path: Path, kind: str) -> None:
    frontier = _frontier(tmp_path, HostBudget(**{kind: 1}), {"a": 5})
    host = frontier.hosts["a"]
    host.first_asked, host.last_asked, host.num_bytes = 1.0, 9.0, 9
    assert frontier.take(10.0) is None
    assert survey(frontier, 10.0).num_excluded == 5
    assert survey(frontier, 10.0).waits == ()
    frontier.close()


def test_the_progress_of_a_crawl_leaves_it_out(serve: Any, run: RunConfig) -> None:
    """The status of a crawl under way, as another terminal reads it."""
    site = serve({"/": html("home", *[f"/{n}" for n in range(400)])})
    site.routes |= {f"/{n}": lambda _: time.sleep(0.1) or html("x") for n in range(400)}
    seen: list[tuple[int, int]] = []

    def look(_n: int) -> Any:
        (folder,) = (Path(run.root) / "crawl").iterdir()
        status = read_status(folder)
        seen.append((status.num_wanted, status.num_excluded))
        return html("x")

    site.routes["/48"] = look
    manifest = run_crawl(config(site.url, max_pages_per_host=50), run)
    assert manifest.counts.rows_out == 50
    assert manifest.facts["not_taken"] == 351
    assert manifest.run["ended_by"] == "", "no budget of the whole crawl"
    assert seen == [(50, 351)]
