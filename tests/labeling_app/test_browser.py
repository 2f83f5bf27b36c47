"""A new labeler's first hour, in a real headless Chromium against the real app."""

import json
import os
import re
import socket
import urllib.request
from pathlib import Path

import pytest
from sqlalchemy import select

from labeling_app import guidelines, invitations, labels, projects
from labeling_app.app_settings import AppSettings
from labeling_app.auth import act_as, sign_in
from labeling_app.export import read_labels
from labeling_app.launch import start_app
from labeling_app.own_work import own_work
from labeling_app.schema import Assist, AssistAction, Qualification, RankedSet
from labeling_app.store import open_store
from labeling_app.tasks import NewAnswer, NewTask, add_tasks, code_of
from pipeline.core.errors import UserError
from pipeline.core.records import Message
from tests.labeling_app import browser
from tests.labeling_app.scripted_model import ScriptedModel, serve

DRAFT = (
    "First, boil the water.\n\nThen put the egg in <img src=x onerror=alert(1)> for ten minutes."
)
FINDING = [{"clause": "1.2", "quote": "egg", "why": "The task asks for one sentence."}]
ANSWERS = [f"<b>Answer</b> {name}." for name in ("one", "two", "three", "four")]
SAVED = re.compile(r"^saved \d")
SHOTS = os.environ.get("FLYWHEEL_SHOTS")  # a folder, for whoever wants to look


@pytest.fixture
def now_store(store):
    """The same store by the real clock, which the app goes by."""
    opened = open_store(store.url)
    yield opened
    opened.close()


@pytest.fixture
def model():
    replies = {"Reply with a JSON array": json.dumps(FINDING), "possible answer": DRAFT}
    with serve(ScriptedModel(["draft", "critique", "rank-check"], replies)) as scripted:
        yield scripted


@pytest.fixture
def app(now_store, model):
    with browser.running(AppSettings(store=now_store.url, endpoint=model.url)) as running:
        yield running


@pytest.fixture
def page():
    with browser.chromium() as chromium:
        page = chromium.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.set_default_timeout(30_000)
        yield page


def _shoot(page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(400)
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


def _prepare(store, lead) -> None:
    """Three prompts, five sets and a qualification of two."""
    projects.configure(
        store, lead, qualification_tasks=2, gold_share=0, unassisted_share=0, review_share=0
    )
    questions = [(Message.of("user", f"How do I cook <i>egg</i> {n}?"),) for n in range(8)]
    sets = tuple(NewAnswer(f"secret-model-{n}", text) for n, text in enumerate(ANSWERS))
    plain = {"source": "test"}
    tasks = [NewTask(f"w{n}", "demo", questions[n], **plain) for n in range(3)]
    tasks += [NewTask(f"c{n}", "compare", questions[n], answers=sets, **plain) for n in range(5)]
    tasks += [
        NewTask(f"q{n}", "compare", questions[n + 5], answers=sets[:2], purpose="qualification",
                gold=(1, 2), **plain)
        for n in range(2)
    ]  # fmt: skip
    add_tasks(store, lead, tasks)


def _rank_by_text(page) -> None:
    """Ranks 1, 2 by the number that the answers say, wherever they are shown."""
    for card in page.locator(".card").all():
        rank = 1 if "one" in card.locator(".answer").inner_text() else 2
        card.focus()
        page.keyboard.press(str(rank))
        chosen = card.get_by_role("radio", name=str(rank)).first
        browser.expect(chosen).to_have_attribute("aria-checked", "true")


def _next(page, store, task: int) -> None:
    page.get_by_text(f"Task {code_of(store, task)} is handed in.").wait_for()


def test_a_new_labelers_first_hour(now_store, lead, app, model, page):
    store = now_store
    _prepare(store, act_as(store, lead.name))
    link = invitations.invite(store, act_as(store, lead.name), "labeler")
    complaints = browser.watched(page)

    page.goto(f"{app.url}/invitation?token={link}")
    page.get_by_label("Name").fill("kaya")
    page.get_by_label("Password, 10").fill(browser.PASSWORD)
    page.get_by_label("The same again").fill(browser.PASSWORD)
    _shoot(page, "invitation")
    page.get_by_role("button", name="Join").click()

    page.get_by_role("heading", name="Labeling instructions").wait_for()
    _shoot(page, "instructions")
    page.get_by_role("button", name="I have read these").click()
    page.get_by_text("First pass the qualification").wait_for()
    page.get_by_role("link", name="Compare").click()
    for number in (1, 2):
        page.get_by_text(f"qualification {number} of 2").wait_for()
        _rank_by_text(page)
        page.keyboard.press("Control+Enter")
    page.get_by_text("compare 4").wait_for()

    _write_three(page, app, store, model)
    _rank_five(page)
    assert page.evaluate("document.cookie").find("flywheel") < 0  # scripts cannot read it
    assert complaints == []
    _check(store)


def _write_three(page, app, store, model) -> None:
    page.get_by_role("link", name="Write").click()
    answer = page.get_by_label("Your answer")
    answer.wait_for()
    page.get_by_text("How do I cook <i>egg</i> 0?").wait_for()  # shown as it is
    answer.press_sequentially("Boil it.")
    page.get_by_text(SAVED).wait_for()
    page.reload()  # nobody is signed out, nothing is lost
    page.wait_for_function("() => true")
    browser.expect(answer).to_have_value("Boil it.")
    answer.press("Control+End")
    answer.press_sequentially(" For ten minutes.")
    answer.press("Control+Enter")  # text not yet saved goes along
    _next(page, store, 1)

    page.get_by_role("button", name="Drafts").click()  # the second one from a draft
    page.get_by_role("button", name="take").first.wait_for()
    _shoot(page, "write-with-draft")
    page.get_by_text("<img src=x onerror=alert(1)>").wait_for()
    page.keyboard.press("Alt+1")
    browser.expect(answer).to_have_value("First, boil the water.")
    answer.press_sequentially(" With care.")
    page.keyboard.press("Alt+c")
    page.get_by_text("The task asks for one sentence.").wait_for()
    page.get_by_role("button", name="reject").click()
    _shoot(page, "write-with-critique")
    page.keyboard.press("Control+Enter")
    _next(page, store, 2)

    page.context.set_offline(True)  # the third one without a network for a while
    answer.press_sequentially("Offline words.")
    page.get_by_text("Offline: typing is kept on this computer").wait_for()
    _shoot(page, "offline")
    page.context.set_offline(False)
    page.get_by_text(SAVED).wait_for()
    assert own_work(store, _kaya(store)).drafts == 1
    page.keyboard.press("Control+Enter")
    page.get_by_text("Nothing for you now").wait_for()


def _rank_five(page) -> None:
    page.get_by_role("link", name="Compare").click()
    for number in range(5):
        page.get_by_text("compare 4").wait_for()
        assert "secret-model" not in page.content()
        for rank in ("1", "2", "2", "4"):
            page.locator(".card:focus").wait_for()
            page.keyboard.press(rank)
            page.keyboard.press("ArrowRight")
        page.get_by_text("A, then B and C tie, then D.").wait_for()
        if number == 0:
            page.keyboard.press("u")
            page.get_by_text("D has no rank yet.").wait_for()
            page.keyboard.press("d")
            page.keyboard.press("4")
            page.keyboard.press("Shift+7")
            page.get_by_role("radio", name="fairly").click()
            _shoot(page, "compare")
        page.keyboard.press("Control+Enter")
        page.wait_for_function(
            "n => document.querySelector('.stApp').innerText.includes('Nothing for you now') ||"
            " [...document.querySelectorAll('*')].some(e => e.shadowRoot &&"
            " e.shadowRoot.textContent.includes(`${n} of your 20 today`))",
            arg=number + 4,  # three answers before; the qualification does not count
        )
    page.get_by_text("Nothing for you now").wait_for()
    page.locator(".card").first.wait_for(state="detached")
    page.get_by_role("button", name="Undo last").click()
    page.get_by_text("correction", exact=False).first.wait_for()
    page.locator(".card").first.focus()
    page.keyboard.press("3")
    page.keyboard.press("Control+Enter")
    page.get_by_text("Nothing for you now").wait_for()
    page.get_by_role("link", name="Progress").click()
    page.get_by_text("What you handed in last").wait_for()
    _shoot(page, "progress")


def _kaya(store):
    return sign_in(store, "kaya", browser.PASSWORD)


def _check(store) -> None:
    """Everything that was done is in the store, once, with what it was done under."""
    exported = read_labels(store)
    texts = {row.messages[-1].text: row for row in exported.conversations}
    taken = "First, boil the water. With care."
    assert set(texts) == {"Boil it. For ten minutes.", taken, "Offline words."}
    assert (texts[taken].origin, texts[taken].edit_chars) == ("edited", len(" With care."))
    assert texts["Offline words."].origin == "human"
    assert all(row.active_ms > 0 for row in exported.conversations)
    assert len(exported.comparisons) == 5
    ranks = [[r.responses[place].rank for place in r.shown_order] for r in exported.comparisons]
    assert sorted(ranks) == [[1, 2, 2, 4]] * 4 + [[3, 2, 2, 4]]
    best = next(r for r in exported.comparisons if r.confidence)
    assert (best.confidence, best.responses[best.shown_order[3]].likert) == ("fairly", 7)
    with store.read() as session:
        assert session.scalars(select(Qualification.passed)).all() == [True]
        kinds = session.scalars(select(Assist.kind).order_by(Assist.id)).all()
        actions = session.scalars(select(AssistAction.action).order_by(AssistAction.id)).all()
        assert (kinds, actions) == (["draft", "critique"], ["take", "reject"])
        corrected = select(RankedSet).where(RankedSet.supersedes_id.is_not(None))
        assert len(session.scalars(corrected).all()) == 1
    assert guidelines.has_read_newest(store, _kaya(store))
    assert labels.last_label(store, _kaya(store)) is not None


def _status_of_handshake(port: int, host: str) -> str:
    request = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request.encode())
        return connection.recv(1000).decode().split("\r\n")[0]


def test_another_host_name_and_inner_pages_are_refused(app):
    assert "101" in _status_of_handshake(app.port, "localhost")
    assert "403" in _status_of_handshake(app.port, "rebound.example")
    for path in ("/_stcore/metrics", "/_stcore/agent/openapi.json"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(app.url + path, timeout=10)


def test_a_port_in_use_is_named(store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127.0.0.1:{port}.*labels.port"):
            start_app(AppSettings(store=store.url), port)
