"""ai.txt and tdmrep.json: asked for once a day and origin, bounded, and obeyed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.opt_outs import AI_TXT, RETRY_S, TDMREP, TTL_S, OptOutCache, OptOuts
from pipeline.origin_store import OriginStore
from pipeline.robots_cache import RobotsAnswer

NO_HTML = b"User-Agent: *\nAllow: *.txt\nDisallow: *.html\n"
PRESS = b'[{"location": "/press/*", "tdm-reservation": 1}]'
Files = dict[str, bytes | int]


class Web:
    """Files by URL, or the status of what is no file; others are 404. 0: no answer."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path, self.files, self.asked, self.now = path, files, list[str](), 0.0
        self.cache = self.fresh()

    def fresh(self, **options: int) -> OptOutCache:
        self.store = OriginStore(self.path, "FlywheelBot")
        return OptOutCache("FlywheelBot", self.store, lambda: self.now, **options)

    def ask(self, url: str) -> str:
        file = self.cache.due(url)
        self.asked.append(file)
        found = self.files.get(file, 404)
        said = RobotsAnswer(found) if isinstance(found, int) else RobotsAnswer(200, found)
        self.cache.learn(file, said)
        return file

    def learn(self, url: str) -> OptOuts:
        for _ in range(3):
            if (found := self.cache.get(url)) is not None:
                return found
            self.ask(url)
        raise AssertionError("it asks and asks")


@pytest.fixture
def new_web(tmp_path: Path) -> Callable[[Files], Web]:
    return lambda files: Web(tmp_path / "origins.sqlite", files)


def test_each_file_is_asked_for_once_a_day_one_at_a_call(new_web: Callable[[Files], Web]) -> None:
    web = new_web({"http://a" + AI_TXT: NO_HTML})
    assert web.cache.get("http://a/x") is None
    web.ask("http://a/x")
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


def test_tdmrep_speaks_for_the_origin(new_web: Callable[[Files], Web]) -> None:
    web = new_web({"https://a" + TDMREP: PRESS})
    said = web.learn("https://a/")
    assert said.tdmrep.reserved("https://a/press/1") is True
    assert said.tdmrep.reserved("https://a/other") is None


@pytest.mark.parametrize("failure", [0, 500, 503, 429])
def test_who_does_not_answer_is_asked_again_within_the_hour(
    failure: int, new_web: Callable[[Files], Web]
) -> None:
    web = new_web({"http://a" + AI_TXT: failure})
    assert web.learn("http://a/").refusal("http://a/x.html") is None
    web.files["http://a" + AI_TXT] = NO_HTML
    web.now = RETRY_S + 1
    assert web.learn("http://a/").refusal("http://a/x.html")
    assert web.asked.count("http://a" + TDMREP) == 1, "that one was answered"


def test_what_was_said_holds_while_nothing_is_said(new_web: Callable[[Files], Web]) -> None:
    web = new_web({"http://a" + AI_TXT: NO_HTML, "http://a" + TDMREP: PRESS})
    web.learn("http://a/")
    web.files = {"http://a" + AI_TXT: 503, "http://a" + TDMREP: 0}
    web.now = TTL_S + 1
    said = web.learn("http://a/")
    assert said.refusal("http://a/x.html")
    assert said.tdmrep.reserved("http://a/press/1") is True


@pytest.mark.parametrize(
    "body",
    [b"", b"<!doctype html><p>not found", b"\xff\xfe\x00", b"[" * 100_000, b"\0" * 500_000],
)
def test_what_is_no_such_file_says_nothing(body: bytes, new_web: Callable[[Files], Web]) -> None:
    web = new_web({"http://a" + AI_TXT: body, "http://a" + TDMREP: body})
    said = web.learn("http://a/")
    assert said.refusal("http://a/x.html", "text/html") is None
    assert said.tdmrep.reserved("http://a/x") is None


def test_it_survives_a_restart(new_web: Callable[[Files], Web]) -> None:
    utf16 = PRESS.decode().encode("utf-16")
    web = new_web({"http://a" + AI_TXT: NO_HTML, "http://a" + TDMREP: utf16})
    web.learn("http://a/")
    web.learn("http://b/")
    web.store.close()
    again = web.fresh()
    said = again.get("http://a/")
    assert said is not None
    assert said.refusal("http://a/x.html")
    assert said.tdmrep.reserved("http://a/press/x") is True
    assert again.get("http://b/") is not None


def test_big_files_of_many_origins_are_each_asked_for_once(
    new_web: Callable[[Files], Web],
) -> None:
    """Memory bounds what is parsed, not what is known: nothing is asked again for it."""
    big = NO_HTML + b"".join(b"Disallow: /%d\n" % i for i in range(2000))
    files: Files = {f"http://h{n}{AI_TXT}": big for n in range(50)}
    web = new_web(files)
    web.store.close()
    web.cache = web.fresh(max_parsed_chars=70_000)
    for turn in range(6):  # each host has its turns between the others'
        for n in range(50):
            if web.cache.get(f"http://h{n}/") is None:
                assert turn < 2
                web.ask(f"http://h{n}/")
    assert len(web.asked) == 100
    assert len(web.cache._recent) <= 3
