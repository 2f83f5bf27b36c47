"""What a host's origins say of themselves, in whole crawls: dead ports, robots.txt elsewhere."""

import itertools
import socket
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.core.config import RunConfig
from pipeline.crawl import run_crawl
from pipeline.frontier_log import FrontierLog
from tests.pipeline import small_site
from tests.pipeline.small_fetcher import Names
from tests.pipeline.small_site import (
    SMALL,
    QuietHandler,
    QuietServer,
    Site,
    config,
    html,
    paths,
    redirect,
)

serve = small_site.serve  # the fixture


def named(site: Site | QuietServer, name: str) -> str:
    return site.url.replace("127.0.0.1", f"{name}.example")


def test_a_dead_port_does_not_hold_up_its_host(serve: Any, run: RunConfig) -> None:
    """Another origin of the host: its URLs wait for its robots.txt, the others go on."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        routes = {"/": html("home", f"{dead}/x", f"{dead}/y", *[f"/{i}" for i in range(10)])}
        site = serve(routes | {f"/{i}": html(str(i)) for i in range(10)})
        seeds = [f"{dead}/z", site.url]
        config_ = config(*seeds, max_retries=0, max_robots_wait_s=2.0)
        manifest = run_crawl(config_, run)
    assert manifest.counts.rows_out == 11
    assert manifest.counts.dropped == {"robots unreachable: connection": 3}
    times = [at for at, path in ((at, path) for path, at in site.asked if path != "/robots.txt")]
    assert times[-1] - times[0] < 2.0, "nobody waited for the dead one"


class Watched(QuietHandler):
    """Notes when each request begins and ends; slow."""

    times: ClassVar[list[tuple[float, float, str]]] = []
    answers: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        began = time.monotonic()
        time.sleep(0.3)
        status, headers, body = self.answers.get(self.path, (404, {}, b""))
        self.answer(status, headers, body)
        self.times.append((began, time.monotonic(), self.path))


@pytest.fixture
def victim() -> Generator[QuietServer]:
    Watched.times.clear()
    Watched.answers.clear()
    server = QuietServer(Watched)
    yield server
    server.close()


def pauses() -> list[float]:
    """Between the end of an answer and the next question; below 0: two at once."""
    ordered = sorted(Watched.times)
    return [b[0] - a[1] for a, b in itertools.pairwise(ordered)]


@pytest.mark.parametrize("num_shards", [pytest.param(1, marks=pytest.mark.long), 3])
def test_many_hosts_whose_robots_point_to_one_ask_it_at_its_pace(
    num_shards: int, victim: QuietServer, serve: Any, tmp_path: Path
) -> None:
    """The host is in the crawl itself, and slow; some of those that point to it are other shards'.
    Shards share no resolver, so the names are addresses here."""
    port = victim.url.rpartition(":")[2].rstrip("/")
    Watched.answers["/"] = html("home", "/1", "/2", "/3")
    hosts = [serve({"/": html(str(i))}, f"127.0.0.{i + 10}") for i in range(6)]
    for i, host in enumerate(hosts):
        host.routes["/robots.txt"] = redirect(f"http://127.0.0.1:{port}/rules/{i}")
    seeds = [victim.url, *(host.url for host in hosts)]
    run = RunConfig(root=str(tmp_path / "data"), workers=2)
    manifest = run_crawl(config(*seeds, delay_s=0.3, num_shards=num_shards), run)
    assert manifest.counts.rows_out == 10
    assert manifest.counts.dropped == {}
    asked = Counter(path for _, _, path in Watched.times)
    assert set(asked.values()) == {1}
    assert {f"/rules/{i}" for i in range(6)} <= asked.keys()
    assert min(pauses()) >= 0.29
    turns = "".join("e" if "rules" in path else "o" for _, _, path in sorted(Watched.times))
    assert "eee" not in turns[: turns.rindex("o")], "its own URLs have every other turn"


@pytest.mark.long
def test_a_host_that_is_pointed_to_may_ask_for_a_pause(
    victim: QuietServer, serve: Any, run: RunConfig
) -> None:
    slow_down = 503, {"Retry-After": "1"}, b""
    Watched.answers.update({f"/rules/{i}": slow_down for i in range(4)})
    hosts = [serve({"/": html(str(i))}) for i in range(4)]
    for i, host in enumerate(hosts):
        host.routes["/robots.txt"] = redirect(f"{named(victim, 'victim')}rules/{i}")
    seeds = [*(named(host, f"h{i}") for i, host in enumerate(hosts)), serve(SMALL).url]
    limits = {"delay_s": 0.1, "max_delay_s": 5.0, "contact": "a@b"}
    manifest = run_crawl(config(*seeds, **limits), run, resolver=Names(["127.0.0.1"]))
    assert manifest.counts.dropped["robots unreachable: status 503"] == 4
    assert min(pauses()) >= 0.95


def test_a_crawl_does_not_end_in_the_middle_of_a_step(
    serve: Any, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All URLs wait for a robots.txt, and the driver looks while one is between two queues."""
    site = serve({"/": html("home")})
    down = serve({"/robots.txt": lambda n: (503 if n < 3 else 404, {}, b"")})
    dead = named(down, "down")
    site.routes["/"] = html("home", *(f"{dead}{i}" for i in range(3)))
    read = FrontierLog.read

    def slow(log: FrontierLog, address: int) -> str:
        time.sleep(0.3)
        return read(log, address)

    monkeypatch.setattr(FrontierLog, "read", slow)
    monkeypatch.setattr("pipeline.robots_cache.FIRST_RETRY_S", 1.0)
    limits = {"max_robots_wait_s": 60.0, "max_retries": 0, "contact": "a@b"}
    seeds = [named(site, "site"), f"{dead}seed"]
    manifest = run_crawl(config(*seeds, **limits), run, resolver=Names(["127.0.0.1"]))
    assert manifest.facts["not_taken"] == 0
    assert manifest.counts.rows_out == 5


def test_what_a_robots_txt_calls_a_sitemap_is_what_it_is(serve: Any, run: RunConfig) -> None:
    """A page is read as a page: its links count, and what it says of itself."""
    noindex = {"Content-Type": "text/html", "X-Robots-Tag": "noindex"}
    maps = ["/map.html", "/secret", "/real.xml"]
    lines = "".join(f"Sitemap: {path}\n" for path in maps)
    loc = b"<urlset><url><loc>/2</loc></url></urlset>"
    site = serve(
        {
            "/": html("home"),
            "/robots.txt": (200, {}, f"User-agent: *\nAllow: /\n{lines}".encode()),
            "/map.html": html("map", "/1"),
            "/secret": (200, noindex, b"<a href=/3>"),
            "/real.xml": (200, {"Content-Type": "text/xml", "X-Robots-Tag": "noindex"}, loc),
            **{f"/{i}": html(str(i)) for i in (1, 2, 3)},
        }
    )
    manifest = run_crawl(config(site.url), run)
    assert set(paths(manifest, site)) == {"", "map.html", "1", "2", "3"}
    assert manifest.counts.dropped == {"noindex": 2}
