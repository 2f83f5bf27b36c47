"""robots.txt behind redirects: none shut out reached, one question for what many point to, and
other hosts' files fetched in turns of theirs."""

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.fetch import Page
from pipeline.frontier_state import Host, hostname_of
from pipeline.polite_fetch import PoliteFetcher
from pipeline.robots_cache import RobotsAnswer
from pipeline.rule_files import (
    FAILURE_REMEMBERED_S,
    MAX_ERRAND_S,
    REMEMBERED_S,
    Answer,
    RuleFiles,
)
from pipeline.warc_writer import Exchange
from tests.pipeline import small_site

RULES = b"User-agent: *\nDisallow: /a\n"


def page_of(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Page:
    exchange = Exchange("http://h/", dt.datetime.now(dt.UTC), None, b"", b"", body)
    return Page(exchange, status, headers or {}, body)


class Peers:
    """A frontier's mailbox: hosts named `far...` belong to shard 1."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, str]] = []

    def is_ours(self, host: str) -> bool:
        return not host.startswith("far")

    def send(self, host: str, line: str) -> None:
        self.sent.append((host, line))

    def send_to(self, shard: int, line: str) -> None:
        self.sent.append((shard, line))


class Web(PoliteFetcher):
    """Made-up answers: a redirect's target, a status, or a reason for none; others are RULES.
    Errands are done as soon as they are asked for, unless `is_slow`."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__(small_site.config(delay_s=1.0), lambda: None)
        self.answers, self.asked = answers, list[str]()
        self.now, self.is_slow = 1000.0, False
        self.mailbox = Peers()
        self.may_ask: Callable[[str], bool] = lambda url: True
        frontier: Any = self
        self.files = RuleFiles(self, frontier, 0, lambda url: self.may_ask(url), lambda: self.now)

    async def get(self, url: str, host: Host, attempt: int, **_: Any) -> Any:
        assert hostname_of(url) == host.name
        self.asked.append(url)
        found = self.answers.get(url, 200)
        if found in ("timeout", 503):
            again_s = 2.0 if attempt < self.config.max_retries else None
            return (found if found == "timeout" else page_of(503)), again_s
        if isinstance(found, str):
            return page_of(301, {"location": found}), None
        return page_of(found, body=RULES), None

    def run_errand(self, url: str) -> None:
        if not self.is_slow:
            answer = asyncio.run(self.files.run_errand(url, Host(hostname_of(url))))
            self.files.end_errand(url, answer)

    def learn(self, file: str) -> RobotsAnswer:
        for _ in range(99):
            said = self.files.before(file)
            if said == 0.0:
                said = asyncio.run(self.files.ask(file, Host(hostname_of(file))))
            if isinstance(said, RobotsAnswer):
                return said
            self.now += said
        raise AssertionError("it asks and asks")


@pytest.mark.parametrize("other", ["http://h", "http://o", "https://o:81"])
def test_five_redirects_are_followed_and_no_sixth(other: str) -> None:
    chain: dict[str, Any] = {"http://h/robots.txt": f"{other}/1"}
    chain |= {f"{other}/{i}": f"/{i + 1}" for i in range(1, 5)}
    web = Web(chain)
    assert web.learn("http://h/robots.txt") == RobotsAnswer(200, RULES)
    assert len(web.asked) == 6
    web = Web(chain | {f"{other}/5": "/6"})
    assert web.learn("http://h/robots.txt").status == 301  # §2.3.1.2: as if there were none
    assert len(web.asked) == 6


def test_there_and_back() -> None:
    web = Web({"http://h/robots.txt": "http://o/x", "http://o/x": "http://h/y"})
    assert web.learn("http://h/robots.txt") == RobotsAnswer(200, RULES)
    assert web.asked == ["http://h/robots.txt", "http://o/x", "http://h/y"]


def test_one_file_that_many_point_to_is_asked_for_once() -> None:
    web = Web({f"http://h{i}/robots.txt": "http://hub/robots.txt" for i in range(50)})
    for i in range(50):
        assert web.learn(f"http://h{i}/robots.txt") == RobotsAnswer(200, RULES)
    assert web.asked.count("http://hub/robots.txt") == 1
    web.now += REMEMBERED_S + 1
    assert web.learn("http://h0/robots.txt").status == 200
    assert web.asked.count("http://hub/robots.txt") == 2


@pytest.mark.parametrize(("failure", "status"), [("timeout", 0), (503, 503)])
def test_a_failure_elsewhere_is_not_remembered_for_long(failure: Any, status: int) -> None:
    web = Web({"http://h/robots.txt": "http://o/x", "http://o/x": failure})
    assert web.learn("http://h/robots.txt").status == status
    web.answers["http://o/x"] = 200
    web.now += FAILURE_REMEMBERED_S + 1
    assert web.learn("http://h/robots.txt") == RobotsAnswer(200, RULES)


def test_what_may_not_be_asked_is_not_asked() -> None:
    web = Web({"http://h/robots.txt": "http://h:22/", "http://i/robots.txt": "http://blocked/"})
    web.may_ask = lambda url: url not in ("http://h:22/", "http://blocked/")
    for host in "hi":
        answer = web.learn(f"http://{host}/robots.txt")
        assert (answer.status, answer.failure) == (0, "redirect out of scope")
    assert len(web.asked) == 2


def test_a_host_that_never_has_a_turn_counts_as_silent() -> None:
    web = Web({"http://h/robots.txt": "http://o/x"})
    web.is_slow = True
    answer = web.learn("http://h/robots.txt")
    assert (answer.status, answer.failure) == (0, "redirect to a silent host")
    assert MAX_ERRAND_S <= web.now - 1000 <= MAX_ERRAND_S + 10


def test_another_shards_host_is_asked_by_that_shard() -> None:
    here = Web({"http://h/robots.txt": "http://far/robots.txt"})
    there = Web({})
    assert here.files.before("http://h/robots.txt") == 0.0
    assert asyncio.run(here.files.ask("http://h/robots.txt", Host("h"))) == 0.0
    assert here.files.before("http://h/robots.txt") > 0
    assert here.mailbox.sent == [("far", "?\t0\thttp://far/robots.txt")]
    there.files.read_note(here.mailbox.sent[0][1])
    (shard, line) = there.mailbox.sent[0]
    assert shard == 0
    here.files.read_note(line)
    assert here.files.before("http://h/robots.txt") == RobotsAnswer(200, RULES)
    assert (here.asked, there.asked) == (["http://h/robots.txt"], ["http://far/robots.txt"])


@pytest.mark.parametrize(("failure", "status"), [("timeout", 0), (503, 503)])
def test_robots_txt_is_asked_for_again_and_the_others_are_not(failure: Any, status: int) -> None:
    web = Web({"http://h/robots.txt": failure, "http://h/ai.txt": failure})
    assert web.learn("http://h/robots.txt").status == status
    assert len(web.asked) == 3
    web = Web({"http://h/ai.txt": failure})
    web.learn("http://h/ai.txt")
    assert len(web.asked) == 1


def test_an_answer_survives_the_mail() -> None:
    answer = Answer(503, b"\0\xff\n\t", "", 30.0, "http://h/\u2028?q=%0A")
    line = answer.to_json()
    assert "\n" not in line
    assert Answer.of_json(line) == answer
