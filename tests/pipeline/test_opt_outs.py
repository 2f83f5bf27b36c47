"""ai.txt and tdmrep.json: asked for once a day and origin, bounded, and obeyed."""

import asyncio
import json

import pytest

from pipeline.opt_outs import AI_TXT, RETRY_S, TDMREP, TTL_S, OptOutCache, OptOuts
from pipeline.robots_cache import RobotsAnswer

NO_HTML = b"User-Agent: *\nAllow: *.txt\nDisallow: *.html\n"
PRESS = b'[{"location": "/press/*", "tdm-reservation": 1}]'


class Web:
    """Files by URL; others are 404. None: no answer."""

    def __init__(self, files: dict[str, bytes | int | None]) -> None:
        self.files, self.asked, self.now = files, list[str](), 0.0
        self.cache = self.fresh()

    def fresh(self, **options: int) -> OptOutCache:
        return OptOutCache("FlywheelBot", self.ask, lambda: self.now, **options)

    async def ask(self, url: str) -> RobotsAnswer | None:
        self.asked.append(url)
        found = self.files.get(url, 404)
        if found is None:
            return None
        if isinstance(found, int):
            return RobotsAnswer(found, b"")
        if found.startswith(b"->"):
            return RobotsAnswer(301, b"", found[2:].decode())
        return RobotsAnswer(200, found)

    def learn(self, url: str) -> OptOuts:
        for _ in range(3):
            if (found := self.cache.get(url)) is not None:
                return found
            asyncio.run(self.cache.fetch(url))
        raise AssertionError("it asks and asks")


def test_each_file_is_asked_for_once_a_day_one_at_a_call() -> None:
    web = Web({"http://a" + AI_TXT: NO_HTML})
    assert web.cache.get("http://a/x") is None
    asyncio.run(web.cache.fetch("http://a/x"))
    assert web.asked == ["http://a/ai.txt"]
    assert web.cache.get("http://a/x") is None
    said = web.learn("http://a/x")
    assert web.asked == ["http://a/ai.txt", "http://a/.well-known/tdmrep.json"]
    assert said.refusal("http://a/x.html") == "ai opt-out: ai.txt"
    assert said.refusal("http://a/x.txt") is None
    assert said.refusal("http://a/x") is None, "its type is not known yet"
    assert said.refusal("http://a/x", "text/html") == "ai opt-out: ai.txt"
    web.now = TTL_S - 1
    assert web.cache.get("http://a/y") is not None
    web.now = TTL_S + 1
    assert web.cache.get("http://a/y") is None
    web.files.clear()
    assert web.learn("http://a/y").refusal("http://a/x.html") is None
    assert len(web.asked) == 4
    assert web.cache.get("http://a:81/y") is None, "another port is another origin"


def test_tdmrep_speaks_for_the_origin() -> None:
    web = Web({"https://a" + TDMREP: PRESS})
    said = web.learn("https://a/")
    assert said.tdmrep.reserved("https://a/press/1") is True
    assert said.tdmrep.reserved("https://a/other") is None


def test_redirects_are_followed_and_loops_end() -> None:
    web = Web({"http://a" + AI_TXT: b"->http://b/files/ai.txt", "http://b/files/ai.txt": NO_HTML})
    assert web.learn("http://a/").refusal("http://a/x.html")
    web = Web({"http://a" + AI_TXT: b"->http://a" + AI_TXT.encode()})
    assert web.learn("http://a/").refusal("http://a/x.html") is None
    assert len(web.asked) == 7


@pytest.mark.parametrize("failure", [None, 500, 503, 429])
def test_who_does_not_answer_is_asked_again_within_the_hour(failure: int | None) -> None:
    web = Web({"http://a" + AI_TXT: failure})
    assert web.learn("http://a/").refusal("http://a/x.html") is None
    web.files["http://a" + AI_TXT] = NO_HTML
    web.now = RETRY_S + 1
    assert web.learn("http://a/").refusal("http://a/x.html")
    assert web.asked.count("http://a" + TDMREP) == 1, "that one was answered"


def test_what_was_said_holds_while_nothing_is_said() -> None:
    web = Web({"http://a" + AI_TXT: NO_HTML, "http://a" + TDMREP: PRESS})
    web.learn("http://a/")
    web.files = {"http://a" + AI_TXT: 503, "http://a" + TDMREP: None}
    web.now = TTL_S + 1
    said = web.learn("http://a/")
    assert said.refusal("http://a/x.html")
    assert said.tdmrep.reserved("http://a/press/1") is True


@pytest.mark.parametrize(
    "body",
    [b"", b"<!doctype html><p>not found", b"\xff\xfe\x00", b"[" * 100_000, b"\0" * 500_000],
)
def test_what_is_no_such_file_says_nothing(body: bytes) -> None:
    web = Web({"http://a" + AI_TXT: body, "http://a" + TDMREP: body})
    said = web.learn("http://a/")
    assert said.refusal("http://a/x.html", "text/html") is None
    assert said.tdmrep.reserved("http://a/x") is None


def test_it_survives_a_restart_and_another_agent_starts_anew() -> None:
    files: dict[str, bytes | int | None] = {
        "http://a" + AI_TXT: NO_HTML,
        "http://a" + TDMREP: PRESS.decode().encode("utf-16"),
    }
    web = Web(files)
    web.learn("http://a/")
    web.learn("http://b/")
    state = json.loads(json.dumps(web.cache.state()))
    again = web.fresh()
    assert again.restore(state) == 2
    said = again.get("http://a/")
    assert said is not None
    assert said.refusal("http://a/x.html")
    assert said.tdmrep.reserved("http://a/press/x") is True
    assert again.get("http://b/") is not None
    assert OptOutCache("Other", web.ask, lambda: 0.0).restore(state) == 0


def test_the_least_recently_used_origins_are_forgotten() -> None:
    web = Web({})
    web.cache = web.fresh(max_bytes=4000)
    for n in range(50):
        web.learn(f"http://h{n}/")
    assert web.cache.get("http://h49/") is not None
    assert web.cache.get("http://h0/") is None
    assert len(web.cache.state()["origins"]) == 10
