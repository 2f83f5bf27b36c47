"""A crawl in several shards, in threads, in child processes and on Ray; and a recrawl."""

import gzip
import hashlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import remote
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest
from pipeline.crawl import CrawlConfig, run_crawl
from pipeline.crawl_status import read_status
from pipeline.warc import WarcResponse, iter_responses
from tests.known_web import ORIGIN_FILES
from tests.pipeline.small_site import QuietHandler, QuietServer

NUM_HOSTS, NUM_PAGES = 7, 60


def page_of(host: int, number: int, week: int) -> bytes:
    """Each page links to three of its own host and one of another; the graph is known."""
    own = [(2 * number + 1) % NUM_PAGES, (2 * number + 2) % NUM_PAGES, number * 7 % NUM_PAGES]
    links = [f"/{n}" for n in own] + [f"http://{name(host + 1)}:PORT/{number}"]
    links.append("/private/x")
    text = hashlib.sha256(f"{host} {number} {week if number % 3 == 0 else 0}".encode()).hexdigest()
    anchors = "".join(f'<a href="{link}">x</a>' for link in links)
    return f"<html><p>{text}</p>{anchors}</html>".encode()


def name(host: int) -> str:
    return f"127.0.0.{host % NUM_HOSTS + 1}"


class Web:
    """Many hosts on one port; `week` changes every third page. ETags on even pages only."""

    def __init__(self) -> None:
        self.week = 0
        self.asked: list[tuple[str, float]] = []
        self.not_modified = 0
        self.pauses_s: dict[str, float] = {}  # before a host's answers
        web = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                host = str(self.headers["Host"]).partition(":")[0]
                web.asked.append((f"{host}{self.path}", time.monotonic()))
                time.sleep(web.pauses_s.get(host, 0.0))
                if self.path == "/robots.txt":
                    return self.answer(200, {}, b"User-agent: *\nDisallow: /private\n")
                if not self.path[1:].isdigit():
                    return self.answer(404, {}, b"none")
                number = int(self.path[1:])
                body = page_of(int(host[8:]) - 1, number, web.week)
                body = body.replace(b"PORT", str(web.port).encode())
                etag = f'"{hashlib.sha256(body).hexdigest()}"' if number % 2 == 0 else ""
                web.not_modified += bool(etag) and self.headers["If-None-Match"] == etag
                headers = {"Content-Type": "text/html"} | ({"ETag": etag} if etag else {})
                return self.answer(200, headers, body)

        self.servers = [QuietServer(Handler, name(0))]
        self.port = self.servers[0].server_address[1]
        self.servers += [QuietServer(Handler, name(h), self.port) for h in range(1, NUM_HOSTS)]

    def close(self) -> None:
        for server in self.servers:
            server.close()

    @property
    def urls(self) -> set[str]:
        return {
            f"http://{name(host)}:{self.port}/{number}"
            for host in range(NUM_HOSTS)
            for number in range(NUM_PAGES)
        }


@pytest.fixture
def web() -> Generator[Web]:
    made = Web()
    yield made
    made.close()


def config(web: Web, **changes: Any) -> CrawlConfig:
    return CrawlConfig(
        seeds=[f"http://{name(0)}:{web.port}/0"],
        scope="any",
        contact="a@b",
        ports=[web.port],
        **{
            "delay_s": 0.0,
            "max_delay_s": 0.05,
            "retry_delay_s": 0.01,
            "latency_factor": 0.0,
            "allow_private": True,
            "connections_per_ip": 50,
            "max_robots_wait_s": 0.0,
            **changes,
        },
    )


def responses(manifest: Manifest) -> list[WarcResponse]:
    items = [
        item for entry in manifest.files for item in iter_responses(manifest.file_url(entry.name))
    ]
    assert all(isinstance(item, WarcResponse) for item in items)
    return [item for item in items if isinstance(item, WarcResponse)]


def identity(manifest: Manifest) -> list[tuple[str, str]]:
    return sorted((item.url, item.payload_sha256) for item in responses(manifest))


def truth(web: Web) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for url in web.urls:
        host, number = url.removeprefix("http://127.0.0.").replace(f":{web.port}", "").split("/")
        body = page_of(int(host) - 1, int(number), web.week)
        body = body.replace(b"PORT", str(web.port).encode())
        found.append((url, hashlib.sha256(body).hexdigest()))
    return sorted(found)


@pytest.mark.parametrize(
    ("backend", "workers", "num_shards"),
    [
        ("local", 1, 1),
        pytest.param("local", 1, 3, marks=pytest.mark.long),
        pytest.param("local", 2, 3, marks=pytest.mark.long),
        pytest.param("ray", 2, 3, marks=pytest.mark.long),
    ],
)
def test_any_number_of_shards_finds_the_same_set(
    web: Web, tmp_path: Path, backend: Any, workers: int, num_shards: int
) -> None:
    run = RunConfig(root=str(tmp_path / "data"), backend=backend, workers=workers)
    manifest = run_crawl(config(web, num_shards=num_shards), run)
    assert identity(manifest) == truth(web)
    assert manifest.counts.dropped == {"robots": NUM_HOSTS}
    assert manifest.counts.rows_in == len(web.urls) + NUM_HOSTS
    of_origins = [path for path, _ in web.asked if path.endswith(ORIGIN_FILES)]
    assert len(of_origins) == len(set(of_origins)) == NUM_HOSTS * len(ORIGIN_FILES)
    assert len(web.asked) == len(web.urls) + len(of_origins)
    assert len({entry.name.partition("/")[0] for entry in manifest.files}) >= min(2, num_shards)
    asked = len(web.asked)
    assert run_crawl(config(web, num_shards=num_shards), run) == manifest
    assert len(web.asked) == asked


def test_the_number_of_shards_may_not_change_midway(web: Web, tmp_path: Path) -> None:
    run = RunConfig(root=str(tmp_path / "data"), workers=1)
    output = run_crawl(config(web, max_pages=5), run)
    (Path(output.url) / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"num_shards = 2, but this crawl was begun with 1; set it"):
        run_crawl(config(web, max_pages=5, num_shards=2), run)


def test_the_budget_holds_over_restarts(web: Web, tmp_path: Path) -> None:
    """What a shard has already counts before anybody fetches on."""
    run = RunConfig(root=str(tmp_path / "data"), workers=1)
    done = run_crawl(config(web, num_shards=3, max_pages=60), run)
    (Path(done.url) / "manifest.json").unlink()
    asked = len(web.asked)
    again = run_crawl(config(web, num_shards=3, max_pages=60), run)
    assert again.counts.rows_out == done.counts.rows_out
    assert len(web.asked) == asked


@pytest.mark.parametrize("workers", [1, 2])
def test_the_budget_of_pages_is_met_exactly_by_all_shards_together(
    web: Web, tmp_path: Path, workers: int
) -> None:
    """Of hosts with uneven speeds, so that what one shard does not use goes to another."""
    web.pauses_s = {name(host): 0.002 * host for host in range(NUM_HOSTS)}
    run = RunConfig(root=str(tmp_path / "data"), workers=workers)
    manifest = run_crawl(config(web, num_shards=3, max_pages=100), run)
    assert manifest.counts.rows_out == 100
    assert manifest.facts["not_taken"] > 0
    assert manifest.run["ended_by"] == "max_pages"


@pytest.mark.long
def test_the_budget_of_pages_is_met_exactly_when_owners_die(web: Web, tmp_path: Path) -> None:
    web.pauses_s = {name(host): 0.004 * (1 + host % 3) for host in range(NUM_HOSTS)}
    killed: list[int] = []

    def kill() -> None:
        for at, victim in ((40, 0), (90, 1), (150, 2), (200, 0)):
            while len(web.asked) < at:
                time.sleep(0.001)
            pid = int(next(tmp_path.rglob(f"shard-{victim:05d}/pid")).read_text())
            if pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    run = RunConfig(root=str(tmp_path / "data"), workers=2)
    manifest = run_crawl(config(web, num_shards=3, max_pages=250), run)
    killer.join(60)
    assert len(killed) >= 3
    assert manifest.counts.rows_out == 250
    assert len(set(identity(manifest))) == 250


@pytest.mark.parametrize(
    ("budget", "key"), [({"max_bytes_total": 30_000}, "bytes_total"), ({"max_seconds": 2.5}, "sec")]
)
def test_the_last_status_is_the_manifests_truth(
    web: Web, tmp_path: Path, budget: dict[str, Any], key: str
) -> None:
    """What is in flight when such a budget is used up ends after the last look at the shards."""
    web.pauses_s = {name(host): 0.05 for host in range(NUM_HOSTS)}
    run = RunConfig(root=str(tmp_path / "data"), workers=2)
    manifest = run_crawl(config(web, num_shards=2, **budget), run)
    assert 0 < manifest.counts.rows_out < len(web.urls)
    folder = Path(manifest.url)
    status = read_status(folder)
    assert status.num_archived == manifest.counts.rows_out
    assert status.num_waiting == manifest.facts["not_taken"] > 0
    assert status.num_known == manifest.counts.rows_in + manifest.facts["not_taken"]
    assert sum(status.dropped.values()) == manifest.counts.rows_in - manifest.counts.rows_out
    assert (status.state, status.busy) == ("finished", 0)
    assert key in status.ended_by
    assert status.timeline[-1][1] == status.num_archived
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == json.loads((folder / "status.json").read_text())


@pytest.mark.long
def test_killed_actors_lose_nothing(web: Web, tmp_path: Path, monkeypatch: Any) -> None:
    """Child processes: test_known_web.py."""
    pids: list[int] = []
    whole = remote.RayRuntime.service

    def service(self: Any, *args: Any) -> Any:
        handle = whole(self, *args)
        pids.append(handle.call("process"))
        return handle

    monkeypatch.setattr(remote.RayRuntime, "service", service)
    chance = random.Random(1)

    def kill() -> None:
        for at in (60, 150, 260, 330):
            while len(web.asked) < at:
                time.sleep(0.001)
            victim = chance.randrange(3)
            os.kill(pids[victim], signal.SIGKILL)
            killed.append(victim)
            for _ in range(200):
                time.sleep(0.1)
                try:
                    pids[victim] = int(next(tmp_path.rglob(f"shard-{victim:05d}/pid")).read_text())
                except (StopIteration, ValueError):
                    continue
                if _alive(pids[victim]):
                    break

    killed: list[int] = []
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    run = RunConfig(root=str(tmp_path / "data"), backend="ray", workers=3)
    manifest = run_crawl(config(web, num_shards=3, delay_s=0.02), run)
    assert len(killed) >= 3
    assert identity(manifest) == truth(web)
    pages = [path for path, _ in web.asked if not path.endswith(ORIGIN_FILES)]
    # At most the requests in flight at a kill (one a host) are made twice.
    assert len(pages) <= len(web.urls) + NUM_HOSTS * len(killed)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_week_later_what_has_not_changed_costs_little(web: Web, tmp_path: Path) -> None:
    run = RunConfig(root=str(tmp_path / "data"), workers=1)
    first = run_crawl(config(web, num_shards=2), run)
    web.week, web.asked = 1, []
    second = run_crawl(config(web, num_shards=3, epoch=1), run)
    assert second.key != first.key
    changed = set(truth(web)) - set(identity(first))
    assert set(identity(second)) == changed
    assert len(changed) == NUM_HOSTS * 20
    assert second.facts["changes"] == {
        "unchanged": len(web.urls) - len(changed),
        "changed": len(changed),
        **dict.fromkeys(("new", "gone", "lost", "not_taken"), 0),
    }
    assert "changes" not in first.facts
    unchanged_even = sum(n % 2 == 0 and n % 3 != 0 for n in range(NUM_PAGES)) * NUM_HOSTS
    assert second.facts["statuses"]["304"] == web.not_modified == unchanged_even
    assert second.counts.rows_out == len(web.urls)
    text = b"".join(Path(second.file_url(e.name)).read_bytes() for e in second.files)
    records = gzip.decompress(text)
    num_revisits = records.count(b"WARC-Type: revisit")
    assert num_revisits == len(web.urls) - len(changed)
    assert records.count(b"server-not-modified") == unchanged_even
    # And the week after that knows what the 304s stood for.
    web.not_modified = 0
    third = run_crawl(config(web, epoch=2), run)
    assert responses(third) == []
    assert web.not_modified == NUM_HOSTS * NUM_PAGES // 2


def test_an_epoch_without_the_one_before_is_refused(web: Web, run: RunConfig) -> None:
    with pytest.raises(UserError, match=r"crawl.epoch = 5, but epoch 0 is not finished here"):
        run_crawl(config(web, epoch=5), run)
