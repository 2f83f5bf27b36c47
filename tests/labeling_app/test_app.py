"""The pages' forms, run by Streamlit's AppTest on a real store."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from labeling_app import auth, guidelines
from labeling_app.assignment import next_task
from labeling_app.export import read_labels

APP = Path(__file__).parents[2] / "labeling_app" / "app.py"
PASSWORD = "correct horse battery"


@pytest.fixture
def app(store, monkeypatch) -> AppTest:
    monkeypatch.setenv("FLYWHEEL_LABELS", store.url)
    monkeypatch.delenv("FLYWHEEL_ENDPOINT", raising=False)
    return AppTest.from_file(str(APP), default_timeout=30)


@pytest.fixture
def signed_in(app, person):
    """signed_in(role): the app with somebody at it who has read the instructions."""

    def enter(role: str = "labeler") -> AppTest:
        app.session_state["who"] = person("kaya", role)
        return app.run()

    return enter


def test_the_first_visit(store, app, tasks):
    tasks(1)
    first = auth.create_account(store, "kaya", "labeler")
    app.run()
    app.text_input(key="name").input("kaya")
    app.text_input(key="password").input("wrong")
    app.button[0].click().run()
    assert "name or password is wrong" in app.error[0].value
    app.text_input(key="password").input(first)
    app.button[0].click().run()
    app.text_input(key="new-password-1").input(PASSWORD)
    app.text_input(key="new-password-2").input("another password")
    app.button[1].click().run()
    assert "not the same" in app.error[0].value
    app.text_input(key="new-password-2").input(PASSWORD)
    app.button[1].click().run()
    assert any("Labeling instructions" in each.value for each in app.markdown)
    assert not app.text_area
    app.button(key="acknowledge").click().run()
    assert app.text_area[0].label == "Your answer"
    assert not app.exception


def test_write_saves_a_draft_and_submits(store, signed_in, tasks):
    tasks(2)
    app = signed_in()
    app.text_area[0].input("Half an ans").run()
    who = app.session_state["who"]
    assert next_task(store, who, "demo").draft.body == {"text": "Half an ans"}
    app.text_area[0].input("A whole answer. <b>")
    app.button(key="submit").click().run()
    assert [row.messages[-1].text for row in read_labels(store).conversations] == [
        "A whole answer. <b>"
    ]
    assert app.text_area[0].value == ""
    app.button(key="submit").click().run()
    assert "the answer is empty" in app.error[0].value
    assert len(read_labels(store).conversations) == 1


def test_a_session_finds_its_draft_again(store, signed_in, tasks):
    tasks(1)
    app = signed_in()
    app.text_area[0].input("Kept.").run()
    who = app.session_state["who"]
    again = AppTest.from_file(str(APP), default_timeout=30)
    again.session_state["who"] = who
    again.run()
    assert again.text_area[0].value == "Kept."


def test_skip_asks_why(store, signed_in, tasks):
    tasks(1)
    app = signed_in()
    app.button(key="skip").click().run()
    assert app.radio(key="put-back-reason").value == "I do not know this subject"
    assert "Skip this task" in [button.label for button in app.button]  # test_browser.py goes on


def test_a_closed_account_is_signed_out_on_the_next_step(store, app, tasks):
    tasks(1)
    who = auth.sign_in(store, "kaya", auth.create_account(store, "kaya", "labeler"))
    app.session_state["who"] = who = auth.set_password(store, who, PASSWORD)
    guidelines.acknowledge(store, who, 1)
    assert app.run().text_area
    auth.close_account(store, "kaya")
    app.run()
    assert "your session has ended" in app.info[0].value
    assert not app.text_area


def test_an_engineer_sees_no_work_pages(store, signed_in, tasks):
    tasks(1)
    app = signed_in("engineer")
    assert app.subheader[0].value == "Your work"
    assert not app.text_area
    assert not app.exception
