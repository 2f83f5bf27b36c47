"""What a lead looks at: the backlog over time, the tasks behind each number, one task whole."""

import datetime as dt
import random

import pytest
from sqlalchemy import event, func, select

from labeling_app import labels, projects, reviews
from labeling_app.assignment import next_task
from labeling_app.auth import DeniedError, create_simulated
from labeling_app.behind import NUMBERS, behind
from labeling_app.planning import find_tasks, plan
from labeling_app.quality import agreement_of_tasks, rankings
from labeling_app.schema import Slot, Task
from labeling_app.submissions import (
    Trace,
    flag,
    skip,
    submit_comparison,
)
from labeling_app.task_view import task_view
from labeling_app.tasks import NewAnswer, NewTask, add_tasks
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.records import Message
from tests.labeling_app.assists import human
from tests.labeling_app.test_quality import rank, write


def left(store) -> int:
    """Labels still asked for, counted from the slots."""
    with store.read() as session:
        query = select(func.count()).select_from(Slot).join(Task, Task.id == Slot.task_id)
        return session.scalar(query.where(Slot.state != "filled", Task.purpose == "work"))


def test_the_backlog_is_what_was_left_at_the_end_of_each_day(store, clock, lead, person, tasks):
    projects.configure(store, lead, gold_share=0, review_share=0)
    people, rng, seen = [person(f"w{n}") for n in range(3)], random.Random(3), []
    for day in range(12):
        if day % 4 == 0:
            tasks(rng.randrange(3, 6), "demo", overlap=2, key=f"d{day}-")
            tasks(2, "compare", key=f"c{day}-")
        last = None
        for who in people:
            for _ in range(rng.randrange(3)):
                work = next_task(store, who, "write")
                if work is None:
                    continue
                if rng.random() < 0.2:
                    skip(store, who, work.token, "unclear")
                else:
                    last = (who, write(store, who))
        if last is not None:  # one that is open for a correction stays a label
            again = labels.reopen(store, last[0], "demo", last[1])
            labels.give_up(store, last[0], again.token)
        seen.append((clock.now.date(), left(store)))
        clock.move(days=1)
    clock.move(days=-1)
    found = dict(plan(store, lead).backlog)
    assert {day: found[day] for day, _ in seen} == dict(seen)
    assert found[seen[0][0] - dt.timedelta(days=1)] == 0
    assert len(found) == 61


@pytest.fixture
def gold(store, lead):
    """gold(number): known answers, of which the first is better."""

    def make(number: int) -> None:
        prompt = (Message.of("user", "Which?"),)
        answers = (NewAnswer("a", "Right."), NewAnswer("b", "Wrong."))
        add_tasks(
            store,
            lead,
            [
                NewTask(f"g{n}", "compare", prompt, "gold", answers, purpose="gold", gold=(1, 2))
                for n in range(number)
            ],
        )

    return make


def _known(store, who, ranks) -> int:
    work = next_task(store, who, "compare")
    submit_comparison(store, who, work.token, Verdict(ranks), work.token)
    return work.task_id


def test_the_tasks_behind_a_persons_numbers(store, lead, person, tasks, gold, monkeypatch):
    monkeypatch.setattr("labeling_app.assignment._is_gold_turn", lambda *_: True)
    gold(3)
    ana, ben = human(store, lead, "ana"), person("ben")
    right, wrong = _known(store, ana, (1, 2)), _known(store, ana, (2, 1))
    found = behind(store, lead, "gold", str(ana.user_id))
    assert [(each.task_id, each.person) for each in found] == [(wrong, "ana"), (right, "ana")]
    assert [each.note for each in found] == [
        "wrong, tau-b with gold -1.00",
        "right, tau-b with gold 1.00",
    ]
    monkeypatch.setattr("labeling_app.assignment._is_gold_turn", lambda *_: False)
    assert behind(store, lead, "gold", str(ben.user_id)) == []
    tasks(2, "compare", overlap=2, k=3)
    for ranks_of_ana, ranks_of_ben in (((1, 2, 3), (1, 2, 3)), ((1, 2, 3), (3, 2, 1))):
        rank(store, ana, ranks_of_ana)
        rank(store, ben, ranks_of_ben)
    peers = behind(store, lead, "peers", str(ana.user_id))
    assert [each.note for each in peers] == [
        "mean tau-b with peers -1.00",
        "mean tau-b with peers 1.00",
    ]
    assert behind(store, lead, "agreement")[0].task_id == peers[0].task_id
    monday = agreement_of_tasks(rankings(store, lead))[0][1]
    assert len(behind(store, lead, "agreement", str(monday))) == 2
    assert behind(store, lead, "agreement", str(monday + dt.timedelta(days=7))) == []
    mine = behind(store, lead, "rankings", str(ana.user_id))
    assert [each.task_id for each in mine][-2:] == [wrong, right]
    assert len(mine) == 4


def test_the_tasks_behind_a_place_a_day_and_what_is_in_hand(store, lead, clock, person, tasks):
    projects.configure(store, lead, gold_share=0, unassisted_share=0)
    ana = person("ana")
    tasks(1, "compare", key="c")
    tasks(2, "demo", key="d")
    work = next_task(store, ana, "compare")
    order = [each.position for each in work.answers]
    ranks = [2] * 4
    ranks[order[3]] = 1
    submit_comparison(store, ana, work.token, Verdict(tuple(ranks)), work.token, Trace(9000))
    assert [each.task_id for each in behind(store, lead, "place", "4.3")] == [work.task_id]
    assert behind(store, lead, "place", "4.0") == behind(store, lead, "place", "2.1") == []
    (today,) = behind(store, lead, "day", str(clock.now.date()))
    assert (today.task_id, today.person, today.note) == (
        work.task_id,
        "ana",
        "10:00 UTC, 9 s at work",
    )
    assert behind(store, lead, "day", str(clock.now.date() - dt.timedelta(days=1))) == []
    held = next_task(store, ana, "write")
    (in_hand,) = behind(store, lead, "in-hand")
    assert (in_hand.task_id, in_hand.note) == (held.task_id, "since 02 Mar 2026, 10:00 UTC")
    assert [row.id for row in find_tasks(store, lead, ids=[held.task_id])] == [held.task_id]
    assert find_tasks(store, lead, ids=[]) == []
    assert behind(store, lead, "help", "yes") == []  # simulated people are not counted
    assert behind(store, lead, "odd") == []


@pytest.mark.parametrize(
    ("number", "of"),
    [
        ("gold", ""),
        ("gold", "ana"),
        ("peers", "1.5"),
        ("place", "4"),
        ("place", "a.b"),
        ("agreement", "yesterday"),
        ("day", "2026-13-40"),
        ("help", "maybe"),
        ("nothing", ""),
        ("__class__", ""),
    ],
)
def test_a_number_that_does_not_exist_is_named(store, lead, number, of):
    with pytest.raises(UserError, match="no number" if number not in NUMBERS else "nothing that"):
        behind(store, lead, number, of)


def test_one_task_with_all_that_was_done_to_it(store, lead, clock, person, tasks):
    projects.configure(store, lead, gold_share=0)
    ana, ben, chi = person("ana"), person("ben"), person("chi")
    eva = person("eva", "reviewer")
    tasks(1, "compare", overlap=2, k=3)
    flag(store, chi, next_task(store, chi, "compare").token, "It is harmful")
    first = rank(store, ana, (1, 2, 3))
    rank(store, ben, (3, 2, 1), active_ms=7000)
    reviews.ask_for_review(store, lead, "compare", first, "look")
    read = reviews.next_review(store, eva)
    reviews.review(store, eva, "compare", read.id, "returned", "harmful", "3.1", "Look again.")
    again = labels.reopen(store, ana, "compare", first)
    found = task_view(store, lead, again.task_id)
    assert (found.key, found.kind, found.overlap, found.answers) == (
        "t0", "compare", 2, ("Answer 0.", "Answer 1.", "Answer 2."),
    )  # fmt: skip
    assert [(each.person, each.ranks) for each in found.given] == [
        ("ana", (1, 2, 3)),
        ("ben", (3, 2, 1)),
    ]
    said = found.given[0].said
    assert (said.reviewer, said.verdict, said.reason, said.clause, said.comment) == (
        "eva", "returned", "harmful", "3.1", "Look again.",
    )  # fmt: skip
    assert found.given[1].said is None
    assert [(each.person, each.purpose, each.outcome, each.reason) for each in found.turns] == [
        ("chi", "work", "flagged", "It is harmful"),
        ("ana", "work", "submitted", ""),
        ("ben", "work", "submitted", ""),
        ("ana", "correct", "", ""),
    ]
    submit_comparison(store, ana, again.token, Verdict((2, 1, 3)), again.token)
    (newer, _) = sorted(task_view(store, lead, again.task_id).given, key=lambda each: each.person)
    assert (newer.ranks, newer.said, newer.label.earlier) == ((2, 1, 3), None, ("ranks 1 2 3",))


def test_who_may_open_a_task(store, lead, person, tasks):
    tasks(1)
    (row,) = find_tasks(store, lead)
    assert task_view(store, person("eng", "engineer"), row.id).given == ()
    for role in ("labeler", "reviewer"):
        with pytest.raises(DeniedError):
            task_view(store, person(role, role), row.id)
        with pytest.raises(DeniedError):
            behind(store, person(role, role), "in-hand")
    projects.create_project(store, "other")
    create_simulated(store, "there", "lead", "other")
    from labeling_app.auth import act_as

    there = act_as(store, "there", "other")
    for task in (row.id, 0, -1, 2**70):
        with pytest.raises(UserError, match="no task"):
            task_view(store, there if task == row.id else lead, task)
    assert behind(store, there, "in-hand") == []


def test_an_answer_that_cannot_be_ranked_has_no_ranks(store, lead, person, tasks):
    projects.configure(store, lead, gold_share=0)
    tasks(1, "compare")
    ana = person("ana")
    work = next_task(store, ana, "compare")
    verdict = Verdict(not_rankable="the answers cannot be read")
    submit_comparison(store, ana, work.token, verdict, work.token)
    (given,) = task_view(store, lead, work.task_id).given
    assert (given.ranks, given.label.words) == (
        (),
        {"cannot be ranked": "the answers cannot be read"},
    )


def test_in_one_view_a_row_is_loaded_once_and_stays_as_it_was(store, lead, person):
    said: list[str] = []
    listen = (store._engine, "before_cursor_execute", lambda *args: said.append(args[2]))
    with store.one_view():
        event.listen(*listen)
        try:
            names = [
                projects.project(store, lead).name,
                *projects.my_projects(store, lead).values(),
            ]
            with store.one_view():
                projects.project(store, lead)
            assert projects.project(store, lead).name == "default"
        finally:
            event.remove(*listen)
        projects.pause(store, lead, True)
        assert not projects.project(store, lead).paused  # as it was
    assert projects.project(store, lead).paused
    assert names == ["default", "default"]
    assert sum("FROM users" in text for text in said) == 1
    with pytest.raises(DeniedError), store.one_view():
        projects.members(store, person("ana"))
    assert projects.project(store, lead).paused  # and no view is left open
