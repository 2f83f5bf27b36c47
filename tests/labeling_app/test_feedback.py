"""A thumb down becomes one task, however often it is sent."""

import dataclasses
import threading

import pytest
from sqlalchemy import select

from labeling_app.assignment import next_task
from labeling_app.feedback import FeedbackReceipt, record_feedback
from labeling_app.schema import FeedbackRow, Task
from pipeline.core.errors import UserError
from pipeline.core.identity import prompt_id
from pipeline.core.records import Feedback, Message


@pytest.fixture
def thumb(clock):
    messages = (Message.of("user", "What is 2 + 2?"), Message.of("assistant", "<b>Five</b> 🖐"))
    return Feedback("click-1", prompt_id(messages[:-1]), messages, "model-a", -1, "", clock())


def _tasks(store) -> list[Task]:
    with store.read() as session:
        return list(session.scalars(select(Task)))


def test_a_thumb_down_is_one_urgent_task_that_shows_the_answer(store, thumb, person, tasks):
    tasks(1)
    receipt = record_feedback(store, thumb)
    assert record_feedback(store, thumb) == FeedbackReceipt(True, receipt.task_id)
    work = next_task(store, person("w"), "write")
    assert work.task_id == receipt.task_id
    assert work.prompt == thumb.messages[:1]
    assert [answer.text for answer in work.answers] == ["<b>Five</b> 🖐"]
    assert len(_tasks(store)) == 2


def test_another_click_on_the_same_answer_leads_to_the_same_task(store, thumb):
    first = record_feedback(store, thumb)
    second = record_feedback(store, dataclasses.replace(thumb, feedback_id="click-2"))
    assert (second.repeated, second.task_id) == (False, first.task_id)
    other_model = dataclasses.replace(thumb, feedback_id="click-3", model_id="model-b")
    assert record_feedback(store, other_model).task_id != first.task_id
    with store.read() as session:
        assert len(session.scalars(select(FeedbackRow)).all()) == 3


def test_the_same_click_from_many_threads_is_one_task(store, thumb):
    threads = [threading.Thread(target=record_feedback, args=(store, thumb)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(_tasks(store)) == 1


def test_a_thumb_up_is_kept_and_makes_no_task(store, thumb):
    receipt = record_feedback(store, dataclasses.replace(thumb, rating=1))
    assert receipt == FeedbackReceipt(False, None)
    assert _tasks(store) == []


def test_an_empty_answer_makes_a_task_without_it(store, thumb, person):
    silent = (thumb.messages[0], Message.of("assistant", " "))
    record_feedback(store, dataclasses.replace(thumb, messages=silent))
    assert next_task(store, person("w"), "write").answers == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rating": 0}, "rating 0"),
        ({"feedback_id": ""}, "id is empty"),
        ({"feedback_id": "x" * 300}, "300 characters"),
        ({"comment": "a\0"}, "NUL"),
        ({"messages": ()}, "end with the rated answer"),
        ({"messages": (Message.of("user", "Hi"),)}, "end with the rated answer"),
        (
            {"messages": (Message.of("user", "Hi"), Message.of("assistant", "x" * 2_000_000))},
            "2,000,000 bytes",
        ),
    ],
    ids=["rating", "no-id", "long-id", "nul", "nothing", "no-answer", "2-MB"],
)
def test_what_cannot_be_kept_is_refused(store, thumb, change, why):
    with pytest.raises(UserError, match=why):
        record_feedback(store, dataclasses.replace(thumb, **change))
    assert _tasks(store) == []
