"""robots.txt behind redirects: each host at its own pace, none shut out reached, one question for
what many point to."""

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.fetch import Page
from pipeline.frontier_state import Host, hostname_of
from pipeline.polite_fetch import PoliteFetcher
from pipeline.robots_cache import RobotsAnswer
from pipeline.rule_files import MAX_QUEUE_S, REMEMBERED_S, RuleFiles
from pipeline.warc_writer import Exchange
from tests.pipeline import small_site

RULES = b"User-agent: *\nDisallow: /a\n"


def page_of(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Page:
    exchange = Exchange("http://h/", dt.datetime.now(dt.UTC), None, b"", b"", body)
    return Page(exchange, status, headers or {}, body)


class Web(PoliteFetcher):
    """Made-up answers: a redirect's target, a status, or a reason for none; others are RULES."""

    def __init__(self, answers: dict[str, Any], delay_s: float = 1.0) -> None:
        super().__init__(small_site.config(delay_s=delay_s, max_delay_s=300.0), lambda: None)
        self.answers = answers
        self.asked: list[tuple[float, str]] = []
        self.now = 1000.0
        self.hosts: dict[str, Host] = {}
        self.may_ask: Callable[[str], bool] = lambda url: True
        self.files = RuleFiles(
            self, self.hosts.get, lambda url: self.may_ask(url), lambda: self.now
        )

    async def get(self, url: str, host: Host, attempt: int, **_: Any) -> Any:
        self.asked.append((self.now, url))
        host.first_asked = host.first_asked or self.now
        host.last_asked = self.now
        found = self.answers.get(url, 200)
        if found in ("timeout", 503):
            again_s = 2.0 if attempt < self.config.max_retries else None
            return (found if found == "timeout" else page_of(503)), again_s
        if isinstance(found, str):
            return page_of(301, {"location": found}), None
        return page_of(found, body=RULES), None

    def step(self, file: str) -> RobotsAnswer | float:
        """As the crawler does: one turn of the file's host."""
        before = self.files.before(file)
        if before != 0.0:
            return before
        host = self.hosts.setdefault(hostname_of(file), Host(hostname_of(file)))
        return asyncio.run(self.files.ask(file, host))

    def learn(self, file: str) -> RobotsAnswer:
        for _ in range(20):
            said = self.step(file)
            if isinstance(said, RobotsAnswer):
                return said
            self.now += max(said, 1.0)
        raise AssertionError("it asks and asks")


def test_five_redirects_are_followed_and_no_sixth() -> None:
    chain: dict[str, Any] = {"http://h/robots.txt": "/1"}
    chain |= {f"http://h/{i}": f"/{i + 1}" for i in range(1, 5)}
    web = Web(chain)
    assert web.learn("http://h/robots.txt") == RobotsAnswer(200, RULES)
    assert len(web.asked) == 6
    web = Web(chain | {"http://h/5": "/6"})
    assert web.learn("http://h/robots.txt").status == 301  # §2.3.1.2: as if there were none
    assert len(web.asked) == 6
    times = [when for when, _ in web.asked]
    assert all(b - a >= 1 for a, b in zip(times, times[1:], strict=False))


def test_a_host_that_hundreds_point_to_is_asked_at_its_own_pace() -> None:
    files = [f"http://h{i}/robots.txt" for i in range(300)]
    web = Web({file: f"http://victim/{i}" for i, file in enumerate(files)})
    web.hosts["victim"] = victim = Host("victim")
    victim.first_asked = victim.last_asked = web.now
    due = {file: web.now + i // 100 for i, file in enumerate(files)}
    said: dict[str, RobotsAnswer] = {}
    own: list[float] = []
    own_at = web.now
    while due or len(own) < 3:
        file = min(due, key=lambda name: due[name], default="")
        if not due or own_at <= due[file]:
            web.now = max(web.now, own_at)
            wait_s = web.files.own_turn(victim)
            if wait_s == 0.0:
                own.append(web.now)
                victim.last_asked = web.now
            own_at = web.now + (wait_s or 1.0)
            continue
        web.now = max(web.now, due[file])
        step = web.step(file)
        if isinstance(step, RobotsAnswer):
            said[file] = step
            del due[file]
        else:
            due[file] = web.now + max(step, 0.001)
    asked = sorted([when for when, url in web.asked if "victim" in url] + own)
    gaps = [b - a for a, b in zip(asked, asked[1:], strict=False)]
    assert min(gaps) >= 1 - 1e-9
    assert own[1] - own[0] < MAX_QUEUE_S + 3, "its own URLs have their turns, too"
    kinds = Counter(answer.failure or answer.status for answer in said.values())
    assert set(kinds) == {200, "redirect to a busy host"}
    assert kinds[200] >= 15


def test_one_file_that_many_point_to_is_asked_for_once() -> None:
    web = Web({f"http://h{i}/robots.txt": "http://hub/robots.txt" for i in range(50)})
    for i in range(50):
        assert web.learn(f"http://h{i}/robots.txt") == RobotsAnswer(200, RULES)
    assert [url for _, url in web.asked].count("http://hub/robots.txt") == 1
    web.now += REMEMBERED_S + 1
    assert web.learn("http://h0/robots.txt").status == 200
    assert [url for _, url in web.asked].count("http://hub/robots.txt") == 2


def test_what_may_not_be_asked_is_not_asked() -> None:
    web = Web({"http://h/robots.txt": "http://h:22/", "http://i/robots.txt": "http://blocked/"})
    web.may_ask = lambda url: url not in ("http://h:22/", "http://blocked/")
    for host in "hi":
        answer = web.learn(f"http://{host}/robots.txt")
        assert (answer.status, answer.failure) == (0, "redirect out of scope")
    assert len(web.asked) == 2


@pytest.mark.parametrize(("failure", "status"), [("timeout", 0), (503, 503)])
def test_robots_txt_is_asked_for_again_and_the_others_are_not(failure: Any, status: int) -> None:
    web = Web({"http://h/robots.txt": failure, "http://h/ai.txt": failure})
    assert web.learn("http://h/robots.txt").status == status
    assert len(web.asked) == 3
    web = Web({"http://h/ai.txt": failure})
    web.learn("http://h/ai.txt")
    assert len(web.asked) == 1
