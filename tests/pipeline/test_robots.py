"""robots.txt: statuses, limits and the cache, and real files of the web."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.robots import (
    MAX_ROBOTS_BYTES,
    RobotsAnswer,
    RobotsCache,
    product_token,
    robots_url,
    rules_for,
)

AGENT = "FlywheelBot"


@pytest.mark.parametrize(
    ("status", "allowed"),
    [
        *((status, False) for status in (200, 204, 500, 503, 301, 100)),
        *((status, True) for status in (400, 403, 404, 410, 429)),
    ],
)
def test_the_status_decides_first(status: int, allowed: bool) -> None:
    rules = rules_for(status, b"User-agent: *\nDisallow: /", AGENT)
    assert rules.allows("http://h/x") is allowed


def test_groups_longest_match_and_wildcards() -> None:
    body = b"""\xef\xbb\xbfUser-agent: *
Disallow: /

User-agent: flywheelbot
Disallow: /a
Allow: /a/b
Disallow: /*.pdf$
Crawl-delay: 2.5
Sitemap: http://h/map.xml
Sitemap: /other.xml
"""
    rules = rules_for(200, body, AGENT)
    paths = {"/": True, "/a/x": False, "/a/b/c": True, "/x.pdf": False, "/x.pdf?y": True}
    assert {path: rules.allows(f"http://h{path}") for path in paths} == paths
    assert rules.delay_s == 2.5
    assert rules.sitemaps == ("http://h/map.xml", "/other.xml")
    assert not rules_for(200, body, "OtherBot").allows("http://h/")


def test_delays() -> None:
    def delay(text: str) -> float:
        return rules_for(200, f"User-agent: *\n{text}\n".encode(), AGENT).delay_s

    assert delay("Request-rate: 1/10") == 10.0
    assert delay("Request-rate: 2/1m") == 30.0
    assert delay("Crawl-delay: 20\nRequest-rate: 1/10") == 20.0
    assert delay("Crawl-delay: soon") == 0.0
    too_slow = rules_for(200, b"User-agent: *\nCrawl-delay: 7200\n", AGENT)
    assert (too_slow.allows("http://h/"), too_slow.reason) == (False, "robots crawl-delay")


def test_only_the_first_500_kb_count() -> None:
    start = b"User-agent: *\nDisallow: /a\n"
    filler = b"# x\n" * (MAX_ROBOTS_BYTES // 4)
    rules = rules_for(200, start + filler + b"Disallow: /b\n", AGENT)
    assert not rules.allows("http://h/a")
    assert rules.allows("http://h/b")


def test_names() -> None:
    assert robots_url("https://h:8443/a/b?c") == "https://h:8443/robots.txt"
    assert robots_url("http://h/") == "http://h/robots.txt"
    assert product_token("FlywheelBot/0.1 (+http://h)") == "FlywheelBot"
    assert product_token("FlywheelBot x") == "FlywheelBot"


def test_the_cache_asks_once_a_day_and_follows_five_redirects() -> None:
    asked: list[str] = []
    now = [0.0]
    hops = [5]

    async def ask(url: str) -> RobotsAnswer | None:
        asked.append(url)
        if url == "http://dead/robots.txt":
            return None
        hop = int(url.rpartition("-")[2]) if "-" in url else 0
        if hop < hops[0]:
            return RobotsAnswer(301, b"", f"http://other/r-{hop + 1}")
        return RobotsAnswer(200, b"User-agent: *\nDisallow: /a")

    async def use() -> None:
        cache = RobotsCache(AGENT, ask, lambda: now[0])
        assert cache.get("http://h/a") is None
        assert not (await cache.fetch("http://h/a")).allows("http://h/a")
        assert len(asked) == 6
        known = cache.get("http://h/b")
        assert known is not None
        assert known.allows("http://h/b")
        assert cache.get("http://h:81/b") is None
        assert cache.get("https://h/b") is None
        now[0] += 24 * 3600
        assert cache.get("http://h/b") is None
        hops[0] = 6
        assert (await cache.fetch("http://h/a")).allows("http://h/a")
        dead = await cache.fetch("http://dead/")
        assert (dead.allows("http://dead/"), dead.reason) == (False, "robots unreachable")

    asyncio.run(use())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\xff\xfe" * 100,
        b"<html>404</html>",
        b"Disallow: /",
        b"User-agent",
        b"\r\r\n:::\n",
    ],
)
def test_nonsense_allows_all(body: bytes) -> None:
    assert rules_for(200, body, AGENT).allows("http://h/x")


def test_real_files_all_parse(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("crawl/robots")
    files = [path for path in folder.rglob("*") if path.is_file() and "LICENSE" not in path.name]
    assert len(files) > 2000
    files = sorted(files)[::4]  # all take 5 seconds
    started = time.monotonic()
    delays: list[float] = []
    allowed = 0
    for path in files:
        rules = rules_for(200, path.read_bytes(), AGENT)
        allowed += rules.allows(f"http://{path.name}/")
        rules.allows(f"http://{path.name}/search?q=" + "a" * 2000)
        delays.append(rules.delay_s)
    assert allowed > 0.8 * len(files)
    assert min(delays) >= 0
    assert time.monotonic() - started < 60
