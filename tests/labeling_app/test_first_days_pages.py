"""What a new user stumbled over in the first days, on the pages: that it stays mended."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from streamlit.testing.v1 import AppTest

from labeling_app import guidelines, invitations, projects, reviews, running, sessions
from labeling_app.app_settings import VARIABLE, AppSettings
from labeling_app.assignment import next_task
from labeling_app.auth import Account
from labeling_app.invitations import invite
from labeling_app.qualification import grant_try
from labeling_app.schema import Review
from labeling_app.store import open_store
from labeling_app.submissions import submit_comparison, submit_demonstration
from labeling_app.tasks import code_of
from labeling_app.verdicts import Verdict
from tests.labeling_app.assists import human

MAIN = Path(__file__).parents[2] / "labeling_app" / "views" / "main.py"
RIGHT, WRONG = (1, 2, 3, 4), (4, 3, 2, 1)
QUALIFICATION = {"purpose": "qualification", "gold": RIGHT, "key": "q"}


@pytest.fixture
def sit_down(store, monkeypatch) -> Iterator:
    """sit_down(who, page): the app in that person's hands, at that page."""
    monkeypatch.setenv(VARIABLE, AppSettings(store=store.url).model_dump_json())

    def sign_in(who: Account, page: str = "") -> AppTest:
        app = AppTest.from_file(str(MAIN), default_timeout=30)
        now = open_store(store.url)  # the app's clock is the real one, not the test's
        app.session_state["session"] = sessions.start_session(now, who).id
        now.close()
        app.run()
        return at(app, page) if page else app

    yield sign_in
    running.store().close()
    running._store.cache_clear()  # the next test may have a store at this place


def at(app: AppTest, name: str) -> AppTest:
    pages = app._registered_pages.items()
    [app._page_hash] = [key for key, info in pages if info["url_pathname"] == name]
    return app.run()


def text(app: AppTest) -> str:
    shown = (*app.markdown, *app.subheader, *app.info, *app.error, *app.warning, *app.get("html"))
    return " ".join(str(getattr(each, "value", "") or each.proto.body) for each in shown)


def sent(app: AppTest) -> dict:
    """What the page of work gives to the browser."""
    assert not app.exception, app.exception
    [data] = [
        json.loads(each.proto.json or each.proto.mixed.json)
        for each in app.get("bidi_component")
        if "work" in each.proto.id
    ]
    return data


def press(app: AppTest, label: str) -> AppTest:
    [button] = [each for each in app.button if each.label == label]
    return button.click().run()


def rank(store, who, ranks=RIGHT) -> None:
    work = next_task(store, who, "compare")
    submit_comparison(store, who, work.token, Verdict(tuple(ranks)), work.token)


@pytest.mark.parametrize("more", [0, 1])
def test_the_next_page_says_that_one_has_passed(store, lead, tasks, sit_down, more):
    tasks(more, "compare")
    tasks(2, "compare", **QUALIFICATION)
    projects.configure(store, lead, qualification_tasks=1)
    worker = human(store, lead)
    app = sit_down(worker, "compare")
    assert (sent(app)["name"], sent(app)["said"]) == ("qualification 1 of 1", "")
    rank(store, worker)
    app.run()
    assert "You passed: 100% right." in (sent(app)["said"] if more else text(app))
    app.run()
    assert "You passed" not in (sent(app)["said"] if more else text(app))


def test_the_next_page_says_that_one_has_not_passed(store, lead, tasks, sit_down):
    tasks(4, "compare", **QUALIFICATION)
    projects.configure(store, lead, qualification_tasks=2)
    worker = human(store, lead)
    app = sit_down(worker, "compare")
    rank(store, worker)
    assert sent(app.run())["said"] == ""
    rank(store, worker, WRONG)
    data = sent(app.run())
    assert data["said"] == "You did not pass this time: 50% right."
    assert data["name"] == "qualification 1 of 2"
    rank(store, worker, WRONG)
    rank(store, worker)
    assert "50% right, 70% are needed; your lead can give" in text(app.run())


def test_a_try_that_is_granted_is_no_news_of_failure(store, lead, tasks, sit_down):
    tasks(2, "compare", **QUALIFICATION)
    projects.configure(store, lead, qualification_tasks=2)
    app = sit_down(human(store, lead), "compare")
    grant_try(store, lead, "kaya")
    assert sent(app.run())["said"] == ""


def test_a_held_task_is_not_called_the_qualification(store, lead, tasks, sit_down):
    tasks(1, "compare")
    tasks(1, key="d")
    worker = human(store, lead)
    for area in ("compare", "write"):
        next_task(store, worker, area)
    tasks(4, "compare", **QUALIFICATION)
    projects.configure(store, lead, qualification_tasks=4)
    guidelines.publish(store, lead, "1 Two", requalify=True)
    guidelines.acknowledge(store, worker, 2)
    app = sit_down(worker)
    assert sent(app)["name"] == "write"
    data = sent(at(app, "compare"))
    assert (data["name"], data["instructions"]["n"]) == ("compare 4", 2)
    rank(store, worker)
    assert sent(app.run())["name"] == "qualification 1 of 4"


@pytest.mark.parametrize(("kind", "page"), [("demo", ""), ("compare", "compare")])
def test_no_number_of_a_task_is_sent_to_its_labeler(store, person, tasks, sit_down, kind, page):
    tasks(37, "demo" if kind == "compare" else "compare", key="other")
    tasks(1, kind)
    worker = person("kaya")
    data = sent(sit_down(worker, page))
    number = next_task(store, worker, "compare" if page else "write").task_id
    assert (number, data["task_id"]) == (38, code_of(store, 38))
    assert '"38"' not in json.dumps(data)
    assert not re.search(r"[:\[,] 38[,\]}]", json.dumps(data))


def test_a_reason_is_for_what_is_returned(store, lead, person, tasks, sit_down):
    tasks(1)
    author = person("author")
    work = next_task(store, author, "write")
    label = submit_demonstration(store, author, work.token, "Mine.", "k").submission_id
    reviews.ask_for_review(store, lead, "demo", label, "look at it")
    app = sit_down(person("reader", "reviewer"), "review")
    for key in ("return", "adjudicate"):
        assert "choose a reason first" in app.button(key=key).click().run().error[0].value
    reason = app.selectbox(key=f"reason-demo-{label}")
    reason.select(reviews.REASONS[0]).run()
    app.button(key="accept").click().run()
    assert "Not done: a reason is chosen" in app.error[0].value
    with store.read() as session:
        assert session.scalars(select(Review)).all() == []
    app.button(key="return").click().run()
    with store.read() as session:
        assert session.scalars(select(Review.verdict)).all() == ["returned"]


def test_people_lists_the_open_invitations_and_takes_them_back(store, lead, sit_down):
    now = open_store(store.url)
    token = invite(now, lead, "reviewer", note="<b>Ada</b>")
    now.close()
    app = sit_down(lead, "people")
    assert "Invited: &lt;b&gt;Ada&lt;/b&gt; · reviewer · good until" in text(app)
    [back] = [each for each in app.button if each.label == "Take back"]
    back.click().run()
    assert "Ada" not in text(app)
    now = open_store(store.url)
    assert not invitations.look_up(now, token).open
    now.close()


@pytest.mark.parametrize(
    ("here", "start"),
    [("https://labels.example:8443/people", "https://labels.example:8443"), (None, "")],
)
def test_the_link_of_an_invitation_begins_with_the_apps_address(lead, sit_down, here, start):
    app = sit_down(lead, "people")
    app.context = {"url": here} if here else {}
    press(app.run(), "Make a link")
    assert app.code[0].value.startswith(f"{start}/invitation?token=")


def test_a_setting_keeps_its_fraction(store, lead, sit_down):
    app = sit_down(lead, "project")
    app.number_input(key="set-hourly_cost").set_value(12.5)
    press(app, "Keep")
    assert not app.error
    settings = projects.project(store, lead).settings
    assert (settings.hourly_cost, settings.lease_minutes) == (12.5, 45)
    assert app.run().number_input(key="set-hourly_cost").value == 12.5


def test_a_set_that_lacks_tasks_is_warned_of(store, lead, tasks, sit_down):
    app = sit_down(lead, "project")
    assert not app.warning
    projects.configure(store, lead, qualification_tasks=3, qualification_tries=2)
    tasks(4, "compare", **QUALIFICATION)
    tasks(9, "compare", purpose="gold", gold=RIGHT, key="g")
    assert "The qualification set lacks 2 tasks" in app.run().warning[0].value


@pytest.mark.parametrize("page", ["compare", "review", "progress", "people", "chat", "tasks"])
def test_unread_instructions_come_first_at_every_address(store, lead, tasks, sit_down, page):
    tasks(1, "compare")
    guidelines.publish(store, lead, "1 Two")
    app = sit_down(lead, page)
    assert [each.key for each in app.button] == ["acknowledge"]
    app.button(key="acknowledge").click().run()
    assert not app.exception
    assert guidelines.has_read_newest(store, lead)


def test_progress_shows_a_ranking_as_its_author_saw_it(store, person, tasks, sit_down):
    tasks(1, "compare", k=2)
    worker = person("kaya")
    work = next_task(store, worker, "compare")
    ranks = [0, 0]
    for place, answer in enumerate(work.answers):
        ranks[answer.position] = place + 1
    submit_comparison(store, worker, work.token, Verdict(tuple(ranks)), "k")
    said = text(sit_down(worker, "progress"))
    assert "A 1 · B 2" in said
    assert "Question t 0?" in said
    assert code_of(store, work.task_id) in said


def test_progress_says_once_that_a_set_cannot_be_ranked(store, person, tasks, sit_down):
    tasks(1, "compare")
    worker = person("kaya")
    work = next_task(store, worker, "compare")
    submit_comparison(store, worker, work.token, Verdict(not_rankable="all are bad"), "k")
    said = text(sit_down(worker, "progress"))
    assert "cannot be ranked: all are bad" in said
    assert "ranks cannot be ranked" not in said
