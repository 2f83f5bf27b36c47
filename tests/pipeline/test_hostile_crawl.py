"""A whole crawl of a site on which everything is wrong: it ends, and each URL has an outcome."""

import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.crawl import CrawlConfig, run_crawl
from pipeline.warc import WarcResponse, iter_responses
from tests.pipeline.hostile_answers import moved, page
from tests.pipeline.hostile_server import HostileServer

REPOSITORY = Path(__file__).resolve().parents[2]
LIMITS: dict[str, Any] = {
    "allow_private": True,
    "delay_s": 0.0,
    "max_delay_s": 0.01,
    "retry_delay_s": 0.01,
    "max_retries": 0,
    "timeout_s": 1.0,
    "max_bytes": 1_000_000,
    "max_robots_wait_s": 0.0,
    "max_pages": 400,
}


@pytest.fixture
def contacted(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The addresses that a connection was tried to; none but loopback gets through."""
    found: set[str] = set()
    connect = socket.socket.connect

    def record(self: socket.socket, address: Any) -> Any:
        found.add(str(address[0]))
        if not str(address[0]).startswith("127."):
            raise OSError(f"this test reaches nobody at {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", record)
    return found


def test_everything_ends_as_a_counted_outcome(run: RunConfig) -> None:
    with HostileServer() as server:
        config = CrawlConfig(seeds=[server.url + "/"], **LIMITS)
        manifest = run_crawl(config, run)
    counts = manifest.counts
    assert counts.rows_in == counts.rows_out + sum(counts.dropped.values())
    assert manifest.facts["not_taken"] == 0
    assert set(counts.dropped) >= {"too large", "timeout", "protocol", "content type"}
    found = [
        item for entry in manifest.files for item in iter_responses(manifest.file_url(entry.name))
    ]
    assert all(isinstance(item, WarcResponse) for item in found)
    urls = [item.url for item in found if isinstance(item, WarcResponse)]
    assert len(urls) == len(set(urls)) == counts.rows_out
    paths = {url.removeprefix(server.url + "/") for url in urls}
    assert {"ok", "missing", "soft-error", "redirect/metadata", "redirect/file"} <= paths
    assert not any("169.254" in url for url in urls)
    calendar = [path for path in paths if path.startswith("calendar/")]
    assert 2 <= len(calendar) <= 30  # endless, but for max_depth


@pytest.mark.long
def test_memory_stays_flat(tmp_path: Path) -> None:
    """The same in a child: what it holds at most is bounded by its limits, not by the server."""
    with HostileServer() as server:
        settings = {**LIMITS, "seeds": [server.url + "/"]}
        code = (
            "from pathlib import Path; from pipeline.crawl import *\n"
            f"run_crawl(CrawlConfig(**{settings!r}), RunConfig(root={str(tmp_path / 'data')!r},"
            " backend='local', workers=1))\n"
            "peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2]\n"
            "print(peak.split()[0])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    assert int(done.stdout.splitlines()[-1]) < 400_000  # kB; the bombs are of 100 MB and more


def test_what_must_not_be_reached_is_refused_whoever_names_it(
    run: RunConfig, contacted: set[str]
) -> None:
    """Redirects, links and robots.txt that name inner addresses, with any host in scope."""
    with HostileServer() as server:
        inner = ["http://169.254.169.254/latest/", "http://10.0.0.1/", "http://[fd00:ec2::254]/"]
        inner += ["http://2130706433:9/", "http://[::ffff:10.0.0.1]/", "http://100.100.100.200/"]
        links = "".join(f'<a href="{url}">x</a>' for url in inner)
        server.routes["/inner"] = page(links)
        server.routes["/hop"] = moved("http://192.168.0.1/")
        config = CrawlConfig(
            seeds=[server.url + "/inner", server.url + "/hop"],
            scope="any",
            contact="a@b",
            # One retry: the server may close a kept connection just when it is used again.
            **{
                **LIMITS,
                "max_retries": 1,
                "allow_private": False,
                "allow_networks": ["127.0.0.1/32"],
            },
        )
        manifest = run_crawl(config, run)
    assert manifest.counts.rows_out >= 2
    # One of them is this machine, which is allowed here, and has nothing at that port.
    assert manifest.counts.dropped == {"address refused": 6, "robots unreachable: connection": 1}
    assert contacted <= {"127.0.0.1"}


class ChangingResolver:
    """A public address at first, and an inner one from then on: DNS rebinding."""

    def __init__(self) -> None:
        self.asked = 0
        self.lock = threading.Lock()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        with self.lock:
            self.asked += 1
            address = "192.0.2.1" if self.asked == 1 else "10.9.8.7"
        if self.asked == 1:
            address = "8.8.8.8"
        base = {"hostname": host, "port": port, "family": 2, "proto": 6, "flags": 0}
        return [{**base, "host": address}]

    async def close(self) -> None:
        pass


def test_rebinding_between_the_check_and_the_request(run: RunConfig, contacted: set[str]) -> None:
    config = CrawlConfig(
        seeds=["http://rebound.example/"], contact="a@b", **{**LIMITS, "allow_private": False}
    )
    with pytest.raises(UserError, match="1 x address refused"):
        run_crawl(config, run, resolver=ChangingResolver())
    assert "10.9.8.7" not in contacted


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        ('<meta name="robots" content="noindex"><a href="/ok">x</a>', (), "noindex"),
        ('<meta name="flywheelbot" content="none">', (), "noindex"),
        ("<p>x</p>", ("X-Robots-Tag: noarchive",), "noarchive"),
        ("<p>x</p>", ("X-Robots-Tag: otherbot: noindex",), ""),
        ("<p>x</p>", ("X-Robots-Tag: noai",), "ai opt-out: noai"),
        ('<meta name="tdm-reservation" content="1">', (), "ai opt-out: tdm-reservation"),
        ('<meta name="tdm-reservation" content="0">', ("tdm-reservation: 1",), ""),
    ],
)
def test_what_an_owner_says_of_a_page(run: RunConfig, body: str, headers: Any, reason: str) -> None:
    with HostileServer() as server:
        server.routes["/home"] = page('<a href="/said">x</a>')
        server.routes["/said"] = page(body, *headers)
        config = CrawlConfig(seeds=[server.url + "/home"], **LIMITS)
        manifest = run_crawl(config, run)
    assert manifest.counts.dropped == ({reason: 1} if reason else {})
    followed = "/ok" in body  # a page that is not to be kept may say where others are
    assert manifest.counts.rows_out == 1 + (not reason) + followed
