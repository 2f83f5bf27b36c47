"""When an origin is asked for its robots.txt: once a day, again after failures, over restarts."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.origin_store import OriginStore
from pipeline.robots import RobotsRules
from pipeline.robots_cache import ROBOTS_TTL_S, RobotsAnswer, RobotsCache

AGENT = "FlywheelBot"
AI_AGENTS = ("CCBot", "GPTBot", "Google-Extended")
FORBIDS_A = b"User-agent: *\nDisallow: /a\n"


class _Web:
    """A made-up web: what is asked for, and the one answer that it has."""

    def __init__(self, path: Path, **cache: object) -> None:
        self.path = path
        self.now = 1000.0
        self.asked: list[str] = []
        self.answer = RobotsAnswer(200, FORBIDS_A)
        self.cache = self.fresh(**cache)

    def fresh(self, **cache: object) -> RobotsCache:
        self.store = OriginStore(self.path, f"{AGENT} {cache.get('also_obey')}")
        return RobotsCache(AGENT, self.store, lambda: self.now, **cache)  # type: ignore[arg-type]

    def restarted(self, **cache: object) -> RobotsCache:
        self.store.close()
        return self.fresh(**cache)

    def fetch(self, url: str) -> RobotsRules:
        file = self.cache.due(url)
        self.asked.append(file)
        return self.cache.learn(file, self.answer)


@pytest.fixture
def new_web(tmp_path: Path) -> Callable[..., _Web]:
    return lambda **cache: _Web(tmp_path / "origins.sqlite", **cache)


def test_the_cache_asks_an_origin_once_a_day(new_web: Callable[..., _Web]) -> None:
    web = new_web()
    assert web.cache.get("http://h/a") is None
    assert not web.fetch("http://h/a").allows("http://h/a")
    known = web.cache.get("http://h/b")
    assert known is not None
    assert known.allows("http://h/b")
    assert web.cache.get("http://h:81/b") is None
    assert web.cache.get("https://h/b") is None
    web.now += ROBOTS_TTL_S - 1
    assert web.cache.get("http://h/b") is known
    web.now += 1
    assert web.cache.get("http://h/b") is None
    web.now = 0  # a clock that was set back
    assert web.cache.get("http://h/b") is None
    assert web.asked == ["http://h/robots.txt"]
    web.answer = RobotsAnswer(200, b"User-agent: *\nDisallow: /b")
    assert not web.fetch("http://h/a").allows("http://h/b")
    assert web.cache.get("http://h/a") != known


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (RobotsAnswer(0, failure="timeout"), "timeout"),
        (RobotsAnswer(503), "status 503"),
        (RobotsAnswer(429), "status 429"),
    ],
)
def test_rules_that_cannot_be_had_are_asked_for_with_back_off(
    answer: RobotsAnswer, why: str, new_web: Callable[..., _Web]
) -> None:
    web = new_web(max_wait_s=4 * 3600)
    web.answer = answer
    waits: list[float] = []
    while (rules := web.fetch("http://h/")).retry_at is not None:
        assert rules.refusal("http://h/") == f"robots unreachable: {why}"
        assert web.cache.get("http://h/") == rules
        waits.append(rules.retry_at - web.now)
        web.now = rules.retry_at
        assert web.cache.get("http://h/") is None
    # 60 s doubling to 1 h, and a last time when max_wait_s is over
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 4 * 3600 - 10_980]
    assert rules.refusal("http://h/") == f"robots unreachable: {why}"
    web.now += ROBOTS_TTL_S - 1
    assert web.cache.get("http://h/") == rules
    web.now += 1
    assert web.cache.get("http://h/") is None
    web.answer = RobotsAnswer(404, b"")
    assert web.fetch("http://h/").allows("http://h/")


def test_a_retry_after_is_heard_and_no_wait_is_no_wait(new_web: Callable[..., _Web]) -> None:
    web = new_web()
    web.answer = RobotsAnswer(429, b"", retry_after_s=600)
    assert web.fetch("http://h/").retry_at == web.now + 600
    web.answer = RobotsAnswer(429, b"", retry_after_s=1e9)
    assert web.fetch("http://h/").retry_at == web.now + 3600
    web.cache = web.restarted(max_wait_s=0)
    assert web.fetch("http://h/").retry_at is None


def test_good_rules_outlive_a_refresh_that_fails(new_web: Callable[..., _Web]) -> None:
    web = new_web(max_wait_s=60)
    web.fetch("http://h/")
    web.answer = RobotsAnswer(0, failure="dns")
    web.now += ROBOTS_TTL_S
    for wait_s in (60, 120, 240):
        assert web.cache.get("http://h/") is None
        rules = web.fetch("http://h/")
        assert (rules.allows("http://h/a"), rules.allows("http://h/b")) == (False, True)
        assert rules.retry_at is None
        web.now += wait_s - 1
        assert web.cache.get("http://h/") == rules
        web.now += 1
    web.answer = RobotsAnswer(200, b"")
    assert web.fetch("http://h/").allows("http://h/a")
    web.now += 3600
    assert web.cache.get("http://h/") is not None


def test_a_restarted_worker_asks_nothing_again(new_web: Callable[..., _Web]) -> None:
    web = new_web(also_obey=AI_AGENTS)
    web.fetch("http://rules/")
    web.answer = RobotsAnswer(404, b"")
    web.fetch("http://none/")
    web.answer = RobotsAnswer(200, b"<html>")
    web.fetch("http://page/")
    web.answer = RobotsAnswer(0, failure="dns")
    waiting = web.fetch("http://down/")
    hosts = ("rules", "none", "page", "down")
    before = {host: web.cache.get(f"http://{host}/") for host in hosts}
    web.cache = web.restarted(also_obey=AI_AGENTS)
    for host, known in before.items():
        after = web.cache.get(f"http://{host}/")
        assert known is not None
        assert after is not None
        for url in (f"http://{host}/a", f"http://{host}/b"):
            assert after.refusal(url) == known.refusal(url)
        assert after.oddities == known.oddities
    assert web.cache.get("http://down/") == waiting
    assert web.restarted().get("http://rules/") is None  # the texts were cut for others


def test_an_address_that_is_refused_is_not_asked_again(new_web: Callable[..., _Web]) -> None:
    web = new_web()
    web.answer = RobotsAnswer(0, failure="address refused")
    rules = web.fetch("http://h/")
    assert rules.retry_at is None
    assert rules.refusal("http://h/") == "address refused"


def test_what_is_no_longer_in_memory_is_on_the_disk(new_web: Callable[..., _Web]) -> None:
    web = new_web(max_parsed_chars=60)
    for i in range(300):
        web.fetch(f"http://h{i}/")
    assert len(web.cache._recent) <= 3
    for i in range(300):
        rules = web.cache.get(f"http://h{i}/")
        assert rules is not None
        assert not rules.allows(f"http://h{i}/a")
    assert len(web.asked) == 300


@pytest.mark.parametrize("damage", [b"", b"no database", None])
def test_a_damaged_store_costs_a_question(
    damage: bytes | None, new_web: Callable[..., _Web]
) -> None:
    web = new_web()
    for i in range(500):
        web.fetch(f"http://h{i}/")
    web.store.close()
    data = web.path.read_bytes()
    web.path.write_bytes(data[:4096] + bytes(len(data) - 4096) if damage is None else damage)
    web.cache = web.fresh()
    assert web.cache.get("http://h1/") is None
    assert not web.fetch("http://h1/").allows("http://h1/a")
    web.cache = web.restarted()
    rules = web.cache.get("http://h1/")
    assert rules is not None
    assert not rules.allows("http://h1/a")


def test_a_changed_entry_is_no_entry(new_web: Callable[..., _Web]) -> None:
    web = new_web()
    web.fetch("http://h/")
    web.store.close()
    with sqlite3.connect(web.path) as db:
        db.execute("UPDATE said SET packed = x'00' WHERE url <> ''")
    db.close()
    assert web.fresh().get("http://h/") is None


def test_a_kill_between_two_syncs_costs_what_came_after_the_first(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path;"
        "from pipeline.origin_store import OriginStore;"
        "store = OriginStore(Path(sys.argv[1]), 'x');"
        "store.put('a', '', b'1'); store.sync(); store.put('b', '', b'2');"
        "os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "origins.sqlite"
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -9
    store = OriginStore(path, "x")
    assert store.get("a") == ("", b"1")
    assert store.get("b") is None
    store.close()
