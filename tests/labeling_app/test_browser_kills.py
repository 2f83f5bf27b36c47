"""What a person typed, when the server or the tab is killed under them: real kills, real browser."""

import re

import pytest
from sqlalchemy import select

from labeling_app import auth, guidelines
from labeling_app.app_settings import AppSettings
from labeling_app.export import read_labels
from labeling_app.schema import Draft
from labeling_app.store import open_store
from labeling_app.tasks import code_of
from tests.labeling_app import browser

SAVED = re.compile(r"^saved \d")


@pytest.fixture
def desk(store, tasks):
    """(store by the real clock, the running app, a page at the task)."""
    tasks(4)
    now = open_store(store.url)
    who = auth.sign_in(now, "kaya", auth.create_account(now, "kaya", "labeler"))
    who = auth.set_password(now, who, browser.PASSWORD)
    guidelines.acknowledge(now, who, 1)
    with browser.running(AppSettings(store=now.url)) as app, browser.chromium() as chromium:
        page = chromium.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.set_default_timeout(30_000)
        browser.sign_in(page, app.url, "kaya")
        page.get_by_label("Your answer").wait_for()
        yield now, app, page
    now.close()


def _draft(store) -> str:
    with store.read() as session:
        draft = session.scalars(select(Draft)).one_or_none()
    return draft.body["turns"][0]["text"] if draft else ""


def test_a_killed_server_costs_at_most_two_seconds_of_typing(desk):
    store, app, page = desk
    answer = page.get_by_label("Your answer")
    answer.focus()
    answer.press_sequentially("0123456789" * 9, delay=50)  # 4.5 s of it, 20 signs a second
    app.kill()
    kept = _draft(store)
    assert len(kept) >= 90 - 40, kept
    answer.press_sequentially(" and more")
    page.get_by_text("Offline: typing is kept on this computer").wait_for()
    app.start()
    page.get_by_text(SAVED).wait_for()  # by itself, without a reload
    assert _draft(store) == "0123456789" * 9 + " and more"


@pytest.mark.long
def test_a_tab_that_is_closed_offline_gives_its_words_back(desk):
    store, app, page = desk
    page.get_by_label("Your answer").press_sequentially("Kept on this ")
    page.get_by_text(SAVED).wait_for()
    app.kill()
    page.get_by_label("Your answer").press_sequentially("computer.")
    page.get_by_text("Offline").first.wait_for()
    context = page.context
    page.close()
    app.start()
    again = context.new_page()
    again.goto(app.url)
    answer = again.get_by_label("Your answer")
    browser.expect(answer).to_have_value("Kept on this computer.")
    again.get_by_text(SAVED).wait_for()
    assert _draft(store) == "Kept on this computer."


@pytest.mark.long
def test_a_label_handed_in_while_the_server_is_away_arrives_once(desk):
    store, app, page = desk
    answer = page.get_by_label("Your answer")
    answer.fill("Patience.")
    app.kill()
    answer.press("Control+Enter")
    page.get_by_text("The server does not answer; trying again").wait_for()
    app.start()
    page.get_by_text(f"Task {code_of(store, 2)} · write").wait_for()
    assert [row.messages[-1].text for row in read_labels(store).conversations] == ["Patience."]


@pytest.mark.long
def test_a_second_window_asks_before_it_writes_over_the_first(desk):
    store, _, page = desk
    other = page.context.new_page()
    other.goto(page.url)
    other.get_by_label("Your answer").wait_for()
    page.get_by_label("Your answer").fill("The first window's.")
    page.get_by_text(SAVED).wait_for()
    other.get_by_label("Your answer").fill("The second's.")
    other.get_by_text("Another window of yours has other text").wait_for()
    assert _draft(store) == "The first window's."
    other.get_by_role("button", name="Keep this one").click()
    other.get_by_text(SAVED).wait_for()
    assert _draft(store) == "The second's."
    other.close()
    page.get_by_label("Your answer").fill("The first's, later.")
    page.get_by_role("button", name="Take the other").click()
    browser.expect(page.get_by_label("Your answer")).to_have_value("The second's.")


TEXTS = [
    "<script>alert(1)</script>",
    "مرحبا \u202e שלום 👩‍👩‍👧‍👦",
    "![x](http://127.0.0.1:9/x.png)",
    "  two  blanks\t",
]


@pytest.mark.long
def test_every_text_is_kept_as_it_was_typed_and_none_is_not_handed_in(desk):
    store, _, page = desk
    for text in ("", "  \n "):
        page.get_by_label("Your answer").fill(text)
        page.keyboard.press("Control+Enter")
        page.get_by_text("The answer is empty; write something.").wait_for()
    assert read_labels(store).conversations == ()
    for number, text in enumerate(TEXTS, 1):
        page.get_by_label("Your answer").fill(text)
        page.keyboard.press("Control+Enter")
        page.get_by_text(f"Task {code_of(store, number)} is handed in").wait_for()
    kept = [row.messages[-1].text for row in read_labels(store).conversations]
    assert sorted(kept) == sorted(TEXTS)
