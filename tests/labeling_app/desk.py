"""People with work in hand at the running app, and the requests that their pages make."""

import base64
import contextlib
import dataclasses
import datetime as dt
import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser

import httpx
from sqlalchemy import func, select
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect

from labeling_app import auth, guidelines, invitations, projects, sessions
from labeling_app.app_settings import AppSettings
from labeling_app.assignment import Work, next_task
from labeling_app.auth import Account
from labeling_app.page_api import PAGE_HEADER
from labeling_app.schema import AssistAction, Demonstration, Draft, RankedSet
from labeling_app.store import Store, open_store, utc_now
from labeling_app.tasks import NewAnswer, NewTask, add_tasks
from pipeline.core.records import Message
from tests.labeling_app.browser import PASSWORD, running

RANKS = {"ranks": [2, 1, 3, 3], "likert": [None] * 4, "flags": [[]] * 4}
_NUMBERS = itertools.count()


@contextlib.contextmanager
def behind_a_proxy(store: Store) -> Iterator[tuple[str, Store]]:
    """The app at this store. The proxy's word counts, so each client has an address of its own."""
    with running(AppSettings(store=store.url, trusted_proxies=("127.0.0.1",))) as app:
        yield app.url, store
    store.close()


def new_name() -> str:
    return f"n{next(_NUMBERS)}"


@dataclasses.dataclass
class Person:
    who: Account
    session: int
    post: Callable[..., httpx.Response]


@dataclasses.dataclass
class Desk:
    """The running app, its store, and a project of its own for each test."""

    url: str
    store: Store
    project: str
    lead: Account
    opened: list[httpx.Client] = dataclasses.field(default_factory=list)

    def client(self, **headers: str) -> httpx.Client:
        """A browser of its own, at an address of its own, whose forms come from our pages."""
        number = next(_NUMBERS)
        mine = {"X-Forwarded-For": f"10.0.{number // 256}.{number % 256}", "Accept": "text/html"}
        made = httpx.Client(
            base_url=self.url, headers={**mine, "Origin": self.url, **headers}, timeout=30
        )
        self.opened.append(made)
        return made

    def close(self) -> None:
        for each in self.opened:
            each.close()

    def account(self, role: str = "labeler") -> Account:
        """Somebody with PASSWORD who has read the instructions."""
        token = invitations.invite(self.store, self.lead, role)
        who = invitations.accept(self.store, token, new_name(), PASSWORD)
        if role != "engineer":
            guidelines.acknowledge(self.store, who, 1)
        return who

    def person(self, work: bool = True) -> Person:
        """A labeler who is no simulated one, and who has read the instructions."""
        name = f"p{next(_NUMBERS)}"
        token = invitations.invite(self.store, self.lead, "labeler")
        who = invitations.accept_as(self.store, token, "https://issuer.test", name, name)
        guidelines.acknowledge(self.store, who, 1)
        return self.at_a_browser(who, self.store)

    def at_a_browser(self, who: Account, store: Store) -> Person:
        session = sessions.start_session(store, who).id
        page = sessions.page_token(store, session, who.project_id)
        return Person(who, session, lambda deed, body, **more: self.post(deed, body, page, **more))

    def post(self, deed: str, body: object, page: str | None = "", **more) -> httpx.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {} if page is None else {PAGE_HEADER: page}
        url = f"{self.url}/api/page/{deed}"
        return httpx.post(url, content=data, headers=headers, timeout=60, **more)

    def task(self, kind: str = "demo", count: int = 1) -> None:
        answers = tuple(NewAnswer("m", f"Answer {n}.") for n in range(4))
        add_tasks(
            self.store,
            self.lead,
            [
                NewTask(
                    f"{kind}{next(_NUMBERS)}",
                    kind,
                    (Message.of("user", "How?"),),
                    "test",
                    answers if kind == "compare" else (),
                )
                for _ in range(count)
            ],
        )

    def work(self, person: Person, kind: str = "demo") -> Work:
        self.task(kind)
        work = next_task(self.store, person.who, "compare" if kind == "compare" else "write")
        assert work is not None
        return work

    def count(self, model) -> int:
        with self.store.read() as session:
            return session.scalar(select(func.count()).select_from(model)) or 0

    def counts(self) -> list[int]:
        return [self.count(model) for model in (Draft, Demonstration, RankedSet, AssistAction)]


def answer(work: Work, text: str = "So.", key: str = "") -> dict:
    turns = [{"role": "assistant", "text": text}]
    return {
        "token": work.token, "key": key or f"key-{work.token}", "kind": "demo", "turns": turns,
        "trace": {"active_ms": 1200, "pasted_chars": 3},
    }  # fmt: skip


def ranking(work: Work, **verdict) -> dict:
    return {
        "token": work.token, "key": f"key-{work.token}", "kind": "compare",
        "verdict": {**RANKS, **verdict}, "trace": {},
    }  # fmt: skip


def desk_of(url: str, store: Store) -> Desk:
    project = f"project-{next(_NUMBERS)}"
    projects.create_project(store, project)
    guidelines.publish_default(store, project=project)
    lead = auth.command_line(store, project)
    projects.configure(store, lead, unassisted_share=0, review_share=0)
    return Desk(url, store, project, lead)


def at_once(*deeds: Callable[[], httpx.Response]) -> list[httpx.Response]:
    barrier, said = threading.Barrier(len(deeds)), []

    def run(deed: Callable[[], httpx.Response]) -> None:
        barrier.wait()
        said.append(deed())

    threads = [threading.Thread(target=run, args=(deed,)) for deed in deeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def dead_pages(desk: Desk, who: Account, session: int) -> Iterator[tuple[str, str | None]]:
    """Page tokens that open nothing, each with its kind."""
    store, project = desk.store, who.project_id
    good = sessions.page_token(store, session, project)
    number, _, mac = good.split(".")
    yield from [("missing", None), ("empty", ""), ("rubbish", "x" * 5000), ("digits", "1.1.1")]
    yield "another project by hand", f"{number}.{project + 1}.{mac}"
    yield "another session by hand", f"{session + 1}.{project}.{mac}"
    yield "another mac", f"{number}.{project}.{'0' * 64}"
    yield "doubled", f"{good}, {good}"
    yield "no member there", sessions.page_token(store, session, desk.lead.project_id + 999)
    ended = sessions.start_session(store, who).id
    sessions.end_session(store, ended)
    yield "ended", sessions.page_token(store, ended, project)
    past = open_store(store.url, lambda: utc_now() - sessions.SESSION - dt.timedelta(seconds=1))
    yield "expired", sessions.page_token(store, sessions.start_session(past, who).id, project)
    past.close()


def sign_in(at: httpx.Client, name: str, password: str = PASSWORD, **more: str) -> httpx.Response:
    return at.post("/sign-in", data={"name": name, "password": password, **more})


def is_in(at: httpx.Client) -> bool:
    opened = at.get("/")
    assert opened.status_code in (200, 303)
    return opened.status_code == 200


def cookies(at: httpx.Client) -> list[tuple[str, str]]:
    return [("Cookie", "; ".join(f"{key}={value}" for key, value in at.cookies.items()))]


def shown(url: str, headers: list[tuple[str, str]]) -> str:
    """All that the app sends to a page that is opened with these headers: the page is a web
    socket, and nothing else runs the app's script."""
    run, said = BackMsg(), []
    run.rerun_script.query_string = ""
    stream = url.replace("http", "ws", 1) + "/_stcore/stream"
    with connect(stream, origin=url, additional_headers=headers) as socket:
        socket.send(run.SerializeToString())
        while True:
            message = ForwardMsg()
            message.ParseFromString(socket.recv(timeout=30))
            said.append(str(message))
            if message.HasField("script_finished"):
                return "".join(said)


class InPage(HTMLParser):
    """A page's inline scripts, and its attributes that run or load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.bad: list[str] = []
        self._within = False
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self._within = tag == "script" and not dict(attrs).get("src")
        for name, value in attrs:
            if name.startswith("on") or (value or "").strip().lower().startswith(
                ("javascript:", "http", "//")
            ):
                self.bad.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self._within:
            self.inline.append(data)
            self._within = False


def check_policy(answer: httpx.Response) -> None:
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert "unsafe" not in policy["script-src"]
    assert (policy["frame-ancestors"], policy["base-uri"], policy["default-src"]) == (
        "'none'",
        "'self'",
        "'self'",
    )
    assert (policy["connect-src"], policy["object-src"], policy["form-action"]) == (
        "'self'",
        "'none'",
        "'self'",
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    page = InPage(answer.text)
    for script in page.inline:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy["script-src"]
    assert page.bad == []
