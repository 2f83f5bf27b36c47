"""A lead's way from a number to the tasks behind it and to one task, in a real browser."""

import pytest

from labeling_app import auth, guidelines, projects
from labeling_app.app_settings import AppSettings
from labeling_app.assignment import next_task
from labeling_app.store import open_store
from labeling_app.submissions import submit_comparison
from labeling_app.tasks import NewAnswer, NewTask, add_tasks
from labeling_app.verdicts import Verdict
from pipeline.core.records import Message
from tests.labeling_app import browser

HOSTILE = "<img src=x onerror=alert(1)> <b>Which?</b> [x](javascript:alert(1))"
ANSWERS = (NewAnswer("m1", "<script>alert(1)</script>"), NewAnswer("m2", "Two | three"))


@pytest.fixture
def desk(store, lead, person):
    """Two people who do not agree on one hostile task; the running app, and a lead's page."""
    projects.configure(store, lead, gold_share=0, review_share=0)
    now = open_store(store.url)
    add_tasks(
        now, lead, [NewTask("<k>", "compare", (Message.of("user", HOSTILE),), "a&b", ANSWERS, 2)]
    )
    for name, ranks in (("ana", (1, 2)), ("ben", (2, 1))):
        who = person(name)
        work = next_task(now, who, "compare")
        submit_comparison(now, who, work.token, Verdict(ranks, comment="<i>so</i>"), work.token)
    mira = auth.sign_in(now, "mira", auth.create_account(now, "mira", "lead"))
    guidelines.acknowledge(now, auth.set_password(now, mira, browser.PASSWORD), 1)
    with browser.running(AppSettings(store=now.url)) as app, browser.chromium() as chromium:
        page = chromium.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.set_default_timeout(30_000)
        browser.sign_in(page, app.url, "mira")
        page.get_by_role("link", name="Quality").wait_for()
        yield app, page
    now.close()


def test_a_number_opens_its_tasks_and_a_task_shows_what_was_done(desk):
    app, page = desk
    complaints = browser.watched(page)
    page.get_by_role("link", name="Quality").click()
    page.get_by_role("heading", name="Calibration").wait_for()
    row = page.get_by_role("row").filter(has_text="Two people on one task")
    row.get_by_role("link").click()
    page.get_by_role("heading", name="Where people agree least").wait_for()
    page.get_by_text(HOSTILE).wait_for()
    page.get_by_role("row").filter(has_text="mean tau-b -1.00").get_by_role("link").click()
    page.get_by_role("heading", name="Task 1 · compare · done").wait_for()
    ranks = page.get_by_role("row").filter(has_text="<script>alert(1)</script>").first
    browser.expect(ranks.get_by_role("cell")).to_have_text(["1", "2"])
    browser.expect(page.get_by_text("comment: <i>so</i>")).to_have_count(2)
    page.get_by_role("button", name="Let a peer read it").first.click()
    page.get_by_text("It is in the review queue now.").wait_for()
    page.get_by_role("link", name="Review").click()
    page.get_by_text("a lead asks").wait_for()
    page.get_by_role("button", name="Accept").click()
    page.get_by_text("Nothing to review now").wait_for()
    for query in ("task=99", "task=x", "task=1&task=2", "show=__class__", "show=gold&of=%00"):
        page.goto(f"{app.url}/tasks?{query}")
        page.get_by_text("Something is missing").or_(page.get_by_text("Task 2")).first.wait_for()
    assert complaints == []


@pytest.mark.long
def test_words_find_a_task(desk):
    app, page = desk
    page.goto(f"{app.url}/tasks")
    page.get_by_label("Words").fill("which")
    page.keyboard.press("Enter")
    page.get_by_text("1 shown").wait_for()
    page.get_by_label("Words").fill("nothing like it")
    page.keyboard.press("Enter")
    page.get_by_text("No task is like that.").wait_for()
