"""When an origin is asked for its robots.txt: once a day, again after failures, over restarts."""

import asyncio
import json

import pytest

from pipeline.robots_cache import ROBOTS_TTL_S, RobotsAnswer, RobotsCache

AGENT = "FlywheelBot"
AI_AGENTS = ("CCBot", "GPTBot", "Google-Extended")
FORBIDS_A = b"User-agent: *\nDisallow: /a\n"


class _Web:
    """Answers of a made-up web: status, body; None: no answer. Redirects by number of hops."""

    def __init__(self, **cache: object) -> None:
        self.now = 1000.0
        self.asked: list[str] = []
        self.answer: RobotsAnswer | None = RobotsAnswer(200, FORBIDS_A)
        self.hops = 0
        self.cache = self.fresh(**cache)

    def fresh(self, **cache: object) -> RobotsCache:
        return RobotsCache(AGENT, self.ask, lambda: self.now, **cache)  # type: ignore[arg-type]

    async def ask(self, url: str) -> RobotsAnswer | None:
        self.asked.append(url)
        hop = int(url.rpartition("-")[2]) if "-" in url else 0
        if hop < self.hops:
            return RobotsAnswer(301, b"", f"http://other/r-{hop + 1}")
        return self.answer

    def fetch(self, url: str):
        return asyncio.run(self.cache.fetch(url))


def test_the_cache_asks_an_origin_once_a_day() -> None:
    web = _Web()
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


def test_five_redirects_are_followed_and_no_sixth() -> None:
    web = _Web()
    web.hops = 5
    assert not web.fetch("http://h/a").allows("http://h/a")
    assert len(web.asked) == 6
    web.hops = 6
    assert web.fetch("http://h/a").allows("http://h/a")  # §2.3.1.2: as if there were none
    assert len(web.asked) == 12


@pytest.mark.parametrize("answer", [None, RobotsAnswer(503, b""), RobotsAnswer(429, b"")])
def test_rules_that_cannot_be_had_are_asked_for_with_back_off(answer: RobotsAnswer | None) -> None:
    web = _Web(max_wait_s=4 * 3600)
    web.answer = answer
    waits: list[float] = []
    while (rules := web.fetch("http://h/")).retry_at is not None:
        assert rules.refusal("http://h/") == "robots unreachable"
        assert web.cache.get("http://h/") == rules
        waits.append(rules.retry_at - web.now)
        web.now = rules.retry_at
        assert web.cache.get("http://h/") is None
    # 60 s doubling to 1 h, and a last time when max_wait_s is over
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 4 * 3600 - 10_980]
    assert rules.refusal("http://h/") == "robots unreachable"
    web.now += ROBOTS_TTL_S - 1
    assert web.cache.get("http://h/") == rules
    web.now += 1
    assert web.cache.get("http://h/") is None
    web.answer = RobotsAnswer(404, b"")
    assert web.fetch("http://h/").allows("http://h/")


def test_a_retry_after_is_heard_and_no_wait_is_no_wait() -> None:
    web = _Web()
    web.answer = RobotsAnswer(429, b"", retry_after_s=600)
    assert web.fetch("http://h/").retry_at == web.now + 600
    web.answer = RobotsAnswer(429, b"", retry_after_s=1e9)
    assert web.fetch("http://h/").retry_at == web.now + 3600
    web.cache = web.fresh(max_wait_s=0)
    assert web.fetch("http://h/").retry_at is None


def test_good_rules_outlive_a_refresh_that_fails() -> None:
    web = _Web(max_wait_s=60)
    web.fetch("http://h/")
    web.answer = None
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


def test_a_restarted_worker_asks_nothing_again() -> None:
    web = _Web(also_obey=AI_AGENTS)
    web.fetch("http://rules/")
    web.answer = RobotsAnswer(404, b"")
    web.fetch("http://none/")
    web.answer = RobotsAnswer(200, b"<html>")
    web.fetch("http://page/")
    web.answer = None
    waiting = web.fetch("http://down/")
    state = json.loads(json.dumps(web.cache.state()))
    again = web.fresh(also_obey=AI_AGENTS)
    assert again.restore(state) == 4
    assert again.state() == state
    for url in ("http://rules/a", "http://rules/b", "http://none/", "http://page/", "http://down/"):
        before, after = web.cache.get(url), again.get(url)
        assert before is not None
        assert after is not None
        assert (after.refusal(url), after.oddities) == (before.refusal(url), before.oddities)
    assert again.get("http://down/") == waiting
    assert web.fresh().restore(state) == 0  # the texts were cut for others
    assert web.fresh().restore({}) == 0


def test_the_cache_forgets_the_least_recently_used() -> None:
    web = _Web(max_bytes=3000, max_parsed_chars=60)
    for i in range(1000):
        web.fetch(f"http://h{i}/")
        web.cache.get("http://h0/")
    known = [i for i in range(1000) if web.cache.get(f"http://h{i}/")]
    assert len(known) == 4
    assert {0, 999} <= set(known)
    assert len(web.cache.state()["origins"]) == 4
    assert len(web.cache._parsed) <= 3
    for i in known:
        rules = web.cache.get(f"http://h{i}/")
        assert rules is not None
        assert not rules.allows("http://h/a")
