"""The pages as Streamlit's AppTest runs them on a real store; test_browser.py has the components."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from streamlit.testing.v1 import AppTest

from labeling_app import auth, guidelines, projects, reviews, running, sessions
from labeling_app.app_settings import VARIABLE, AppSettings
from labeling_app.assignment import next_task
from labeling_app.auth import Account
from labeling_app.schema import Review
from labeling_app.store import open_store
from labeling_app.submissions import submit_demonstration

APP = Path(__file__).parents[2] / "labeling_app" / "views" / "main.py"
PASSWORD = "correct horse battery"


@pytest.fixture
def app(store, monkeypatch) -> Iterator[AppTest]:
    settings = AppSettings(store=store.url)
    monkeypatch.setenv(VARIABLE, settings.model_dump_json())
    yield AppTest.from_file(str(APP), default_timeout=30)
    running.store().close()
    running._store.cache_clear()  # the next test may have a store at this place


@pytest.fixture
def sit_down(store, app):
    """sit_down(who): the app in that person's hands."""

    def sign_in(who: Account) -> AppTest:
        now = open_store(store.url)  # the app's clock is the real one, not the test's
        app.session_state["session"] = sessions.start_session(now, who).id
        now.close()
        return app.run()

    return sign_in


@pytest.fixture
def at_the_desk(sit_down, person):
    """at_the_desk(role): the app with somebody at it who has read the instructions."""

    def enter(role: str = "labeler", name: str = "kaya") -> AppTest:
        return sit_down(person(name, role))

    return enter


def _text(app: AppTest) -> str:
    return " ".join(each.value for each in (*app.markdown, *app.subheader, *app.info, *app.error))


def test_nobody_in_particular_sees_a_way_to_sign_in_and_nothing_else(app, tasks):
    tasks(1)
    app.run()
    assert not app.exception
    assert app.title[0].value == "Flywheel"
    assert not app.button


def test_the_instructions_come_before_all_work(store, sit_down, person, tasks):
    tasks(1)
    who = person("kaya", ready=False)
    app = sit_down(who)
    assert [each.key for each in app.button] == ["acknowledge"]
    app.button(key="acknowledge").click().run()
    assert guidelines.has_read_newest(store, who)
    assert not app.exception
    assert "acknowledge" not in [each.key for each in app.button]


def test_a_closed_account_is_signed_out_on_the_next_step(store, sit_down, tasks):
    tasks(1)
    who = auth.sign_in(store, "kaya", auth.create_account(store, "kaya", "labeler"))
    who = auth.set_password(store, who, PASSWORD)
    guidelines.acknowledge(store, who, 1)
    app = sit_down(who)
    assert not app.info
    auth.close_account(store, "kaya")
    app.run()
    assert "Your session has ended" in app.info[0].value
    assert "session" not in app.session_state


def test_a_one_time_password_leads_to_a_new_one_only(store, sit_down):
    who = auth.sign_in(store, "kaya", auth.create_account(store, "kaya", "labeler"))
    app = sit_down(who)
    assert app.title[0].value == "Choose your password"


def test_an_engineer_sees_no_work(at_the_desk, tasks):
    tasks(1)
    app = at_the_desk("engineer")
    assert app.subheader[0].value == "Your work"
    assert not app.exception


def test_nothing_to_do_is_said(at_the_desk):
    app = at_the_desk()
    assert "Nothing for you now" in _text(app)
    assert not app.exception


def test_a_paused_project_says_so(store, lead, at_the_desk, tasks):
    tasks(1)
    projects.pause(store, lead, True)
    assert "The project is paused" in _text(at_the_desk())


def test_a_reviewer_accepts_a_label(store, lead, person, at_the_desk, tasks):
    tasks(1)
    author = person("author")
    work = next_task(store, author, "write")
    label = submit_demonstration(store, author, work.token, "An <b>answer</b>.", "k")
    reviews.ask_for_review(store, lead, "demo", label.submission_id, "look at it")
    app = _page(at_the_desk("reviewer"), "review")
    app.button(key="return").click().run()
    assert "choose a reason first" in app.error[0].value
    reason = app.selectbox(key=f"reason-demo-{label.submission_id}")
    reason.select(reviews.REASONS[0]).run()
    app.button(key="accept").click().run()
    assert "a reason is chosen" in app.error[0].value
    reason.set_value(None).run()
    app.button(key="accept").click().run()
    assert "Nothing to review now" in _text(app)
    with store.read() as session:
        assert session.scalars(select(Review.verdict)).all() == ["accepted"]


@pytest.mark.parametrize("name", ["progress", "quality", "people", "project", "review", "compare"])
def test_every_page_of_the_lead_opens(at_the_desk, tasks, name):
    tasks(2, kind="compare", overlap=2)
    app = _page(at_the_desk("lead", "boss"), name)
    assert not app.exception, app.exception
    assert not app.error


def _page(app: AppTest, name: str) -> AppTest:
    """The app at another of its pages."""
    [app._page_hash] = [
        key for key, info in app._registered_pages.items() if info["url_pathname"] == name
    ]  # AppTest.switch_page wants a file
    return app.run()
