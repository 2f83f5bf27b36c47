"""Who gets which task; leases, submissions, drafts. Real threads and processes."""

import collections
import datetime as dt
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from labeling_app.assignment import LeaseLostError, next_task, shown_order
from labeling_app.backlog import open_tasks
from labeling_app.drafts import Kept, save_draft
from labeling_app.own_work import own_work
from labeling_app.schema import (
    Demonstration,
    EventRow,
    Lease,
    RankedItem,
    RankedSet,
    Slot,
    Task,
)
from labeling_app.submissions import (
    flag,
    skip,
    submit_comparison,
    submit_demonstration,
)
from labeling_app.tasks import NewAnswer, NewTask, add_tasks
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.records import Message


def test_priority_then_age(store, person, tasks):
    tasks(2, key="old")
    tasks(1, key="urgent", priority=5)
    worker = person("w")
    seen = []
    while work := next_task(store, worker, "write"):
        seen.append(work.prompt[0].text)
        submit_demonstration(store, worker, work.token, "An answer.", work.token)
    assert seen == ["Question urgent 0?", "Question old 0?", "Question old 1?"]
    assert next_task(store, worker, "compare") is None


def test_the_same_task_comes_back_until_it_is_dealt_with(store, person, tasks):
    tasks(2)
    worker = person("w")
    first = next_task(store, worker, "write")
    assert next_task(store, worker, "write").token == first.token
    skip(store, worker, first.token, "unclear")
    skip(store, worker, first.token, "unclear")  # a double click
    second = next_task(store, worker, "write")
    assert second.task_id != first.task_id
    flag(store, worker, second.token, "broken")
    assert next_task(store, worker, "write") is None
    other = person("v")
    assert next_task(store, other, "write").task_id == first.task_id
    with store.read() as session:
        leases = session.execute(select(Lease.outcome, Lease.reason)).all()
    assert ("skipped", "unclear") in leases
    assert ("flagged", "broken") in leases
    with pytest.raises(UserError, match="reason is empty"):
        skip(store, worker, second.token, " ")


def test_nobody_answers_the_same_task_twice(store, person, tasks):
    tasks(1, overlap=2)
    worker = person("w")
    work = next_task(store, worker, "write")
    submit_demonstration(store, worker, work.token, "An answer.", "k")
    assert next_task(store, worker, "write") is None
    assert next_task(store, person("v"), "write").task_id == work.task_id


def test_an_expired_lease_goes_to_the_next_person(store, clock, person, tasks):
    tasks(1)
    slow, quick = person("slow"), person("quick")
    late = next_task(store, slow, "write", lease=dt.timedelta(minutes=10))
    assert next_task(store, quick, "write") is None
    clock.move(minutes=10)
    taken = next_task(store, quick, "write")
    assert taken.task_id == late.task_id
    with pytest.raises(LeaseLostError, match="expired"):
        submit_demonstration(store, slow, late.token, "Too late.", "late")
    save_draft(store, slow, late.token, 1, {"text": "Too late."})  # the words are kept
    submit_demonstration(store, quick, taken.token, "In time.", "quick")
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Demonstration)) == 1
        assert session.scalars(select(Task.state)).one() == "done"


def test_an_expired_lease_that_nobody_wanted_still_counts(store, clock, person, tasks):
    tasks(1)
    worker = person("w")
    work = next_task(store, worker, "write")
    clock.move(hours=5)
    assert not submit_demonstration(store, worker, work.token, "After lunch.", "k").repeated


def test_a_clock_that_jumps_back_harms_nothing(store, clock, person, tasks):
    tasks(1)
    worker, other = person("w"), person("v")
    work = next_task(store, worker, "write")
    clock.move(days=-400)
    assert next_task(store, other, "write") is None
    submit_demonstration(store, worker, work.token, "Still mine.", "k")


def test_forged_and_foreign_tokens(store, person, tasks):
    tasks(2)
    worker, thief = person("w"), person("thief")
    work = next_task(store, worker, "write")
    for token in (work.token, "guess", ""):
        with pytest.raises(LeaseLostError, match="not given to you"):
            submit_demonstration(store, thief, token, "Mine.", "k")
    submit_demonstration(store, worker, work.token, "Mine.", "k")
    other = next_task(store, thief, "write")
    with pytest.raises(UserError, match="submitted before, with other content"):
        submit_demonstration(store, thief, other.token, "Mine.", "k")  # another's idempotency key


def test_a_submission_sent_twice_is_one(store, person, tasks):
    tasks(2, overlap=3)
    worker = person("w")
    work = next_task(store, worker, "write")
    first = submit_demonstration(store, worker, work.token, "An answer.", "key")
    again = submit_demonstration(store, worker, work.token, "An answer.", "key")
    assert (again.submission_id, again.repeated) == (first.submission_id, True)
    with pytest.raises(UserError, match="other content"):
        submit_demonstration(store, worker, work.token, "Another answer.", "key")
    with pytest.raises(LeaseLostError, match="submitted"):
        submit_demonstration(store, worker, work.token, "An answer.", "other key")
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Demonstration)) == 1


@pytest.mark.parametrize("ranks", [[1, 2, 3, 4], [1, 1, 1, 1], [2, 1, 2, 4], [1, 3, 3, 2]])
def test_rankings_with_ties_are_kept_as_given(store, person, tasks, ranks):
    tasks(1, kind="compare")
    worker = person("w")
    work = next_task(store, worker, "compare")
    assert sorted(answer.position for answer in work.answers) == [0, 1, 2, 3]
    receipt = submit_comparison(store, worker, work.token, Verdict(tuple(ranks), "fairly"), "k")
    assert submit_comparison(
        store, worker, work.token, Verdict(tuple(ranks), "fairly"), "k"
    ).repeated
    with store.read() as session:
        kept = session.scalars(select(RankedItem.rank).order_by(RankedItem.position)).all()
        row = session.get_one(RankedSet, receipt.submission_id)
        assert row.shown_order == [answer.position for answer in work.answers]
    assert list(kept) == ranks


@pytest.mark.parametrize(
    "ranks", [[1, 2, 3], [1, 2, 3, 4, 5], [0, 1, 2, 3], [1, 2, 3, 5], [1, 2, 3, True], [1.0] * 4]
)
def test_rankings_that_do_not_fit_are_refused(store, person, tasks, ranks):
    tasks(1, kind="compare")
    worker = person("w")
    work = next_task(store, worker, "compare")
    with pytest.raises(UserError, match="rank"):
        submit_comparison(store, worker, work.token, Verdict(tuple(ranks), None), "k")
    with pytest.raises(UserError, match="confidence 'much'"):
        submit_comparison(store, worker, work.token, Verdict((1, 2, 3, 4), "much"), "k")
    with pytest.raises(UserError, match="asks for 'compare'"):
        submit_demonstration(store, worker, work.token, "An answer.", "k")
    assert next_task(store, worker, "compare").token == work.token  # nothing was used up


def test_order_is_a_permutation_fixed_per_person_and_differs_between_people():
    orders = [tuple(shown_order("task", f"person{i}", 4)) for i in range(200)]
    assert orders == [tuple(shown_order("task", f"person{i}", 4)) for i in range(200)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(set(orders)) == 24
    first = collections.Counter(order[0] for order in orders)
    assert all(25 <= first[place] <= 75 for place in range(4))  # 50 expected, sd 6


def test_drafts_come_back_and_old_revisions_do_not(store, clock, person, tasks):
    tasks(2)
    worker = person("w")
    work = next_task(store, worker, "write")
    save_draft(store, worker, work.token, 1, {"text": "one"})
    clock.move(seconds=5)
    at = save_draft(store, worker, work.token, 3, {"text": "three <b>&\u202e😀"}).at
    late = save_draft(store, worker, work.token, 2, {"text": "two, late"})
    assert late == Kept(at, 3, kept=False)
    draft = next_task(store, worker, "write").draft
    assert (draft.rev, draft.body, draft.saved_at) == (3, {"text": "three <b>&\u202e😀"}, at)
    with pytest.raises(UserError, match="bytes"):
        save_draft(store, worker, work.token, 4, {"text": "x" * 10_000_000})
    assert own_work(store, worker).drafts == 1
    submit_demonstration(store, worker, work.token, "Done.", "k")
    with pytest.raises(LeaseLostError, match="already submitted"):
        save_draft(store, worker, work.token, 5, {"text": "after"})
    assert own_work(store, worker).drafts == 0


def test_after_an_expiry_the_drafted_task_comes_first(store, clock, person, tasks):
    tasks(1, key="plain")
    worker = person("w")
    work = next_task(store, worker, "write")
    save_draft(store, worker, work.token, 1, {"text": "half"})
    tasks(1, key="urgent", priority=9)
    clock.move(hours=1)
    other = person("v")
    assert next_task(store, other, "write").prompt[0].text == "Question urgent 0?"
    back = next_task(store, worker, "write")
    assert back.task_id == work.task_id
    assert back.draft.body == {"text": "half"}


def test_own_work_counts_by_utc_days(store, clock, person, tasks):
    tasks(3)
    tasks(1, kind="compare", key="c")
    worker = person("w")
    for days in (0, 6, 1):
        clock.move(days=days)
        work = next_task(store, worker, "write")
        submit_demonstration(store, worker, work.token, "An answer.", work.token)
    work = next_task(store, worker, "compare")
    submit_comparison(store, worker, work.token, Verdict((1, 1, 2, 2), None), work.token)
    counts = own_work(store, worker)
    assert (counts.answers_today, counts.answers_week, counts.answers) == (1, 2, 3)
    assert (counts.rankings_today, counts.rankings_week, counts.rankings) == (1, 1, 1)


def test_the_backlog_counts_what_is_still_asked_for(store, person, tasks):
    tasks(1, overlap=2)
    tasks(1, key="urgent", priority=5)
    worker = person("w")
    for _ in range(2):
        work = next_task(store, worker, "write")
        submit_demonstration(store, worker, work.token, "An answer.", work.token)
    [left] = open_tasks(store)
    assert (left.prompt, left.open_slots, left.priority) == ("Question t 0?", 1, 0)


def test_adding_a_task_twice_and_what_cannot_be_shown(store, lead):
    user = (Message.of("user", "Hi?"),)
    pair = (NewAnswer("m", "a"), NewAnswer("m", "b"))
    task = NewTask("k", "compare", user, "test", pair)
    assert add_tasks(store, lead, [task, task]) == 1
    assert add_tasks(store, lead, [task]) == 0
    for other in (
        NewTask("k", "compare", user, "test", pair[::-1]),
        NewTask("k", "demo", user, "test"),
        NewTask("k", "compare", (Message.of("user", "Ho?"),), "test", pair),
    ):
        with pytest.raises(UserError, match="exists with other content"):
            add_tasks(store, lead, [NewTask("new", "demo", user, "test"), other])
    for bad, why in (
        (NewTask("", "demo", user, "test"), "key is empty"),
        (NewTask("x" * 201, "demo", user, "test"), "201 characters"),
        (NewTask("b", "demo", (), "test"), "end with a user's message"),
        (NewTask("b", "demo", (Message.of("assistant", "Hi"),), "test"), "user's message"),
        (NewTask("b", "demo", (Message.of("tool", "x"), *user), "test"), "unknown role 'tool'"),
        (NewTask("b", "demo", user, "test", pair), "0 to 1"),
        (NewTask("b", "compare", user, "test", pair[:1]), "2 to 9"),
        (NewTask("b", "compare", user, "test", pair + pair[:1]), "the same"),
        (NewTask("b", "demo", user, "test", overlap=0), "overlap 0"),
    ):
        with pytest.raises(UserError, match=why):
            add_tasks(store, lead, [bad])
    with store.read() as session:
        assert session.scalars(select(Task.key)).all() == ["k"]


def test_two_leases_on_one_slot_are_refused_by_the_database_itself(store, person, tasks):
    tasks(1, overlap=2)
    worker, other = person("w"), person("v")
    next_task(store, worker, "write")

    def lease(slot_no: int, user_id: int, token: str) -> None:
        with store.write() as session:
            slot = session.scalars(select(Slot).where(Slot.slot_no == slot_no)).one()
            held = session.scalars(select(Lease)).first()
            session.add(
                Lease(
                    slot_id=slot.id,
                    task_id=slot.task_id,
                    user_id=user_id,
                    version_id=held.version_id,
                    token=token,
                    purpose="work",
                    assisted=False,
                    shown_order=[],
                    acquired=store.clock(),
                    expires=store.clock(),
                )
            )

    with pytest.raises(IntegrityError, match="slot_id"):
        lease(0, other.user_id, "second person")
    with pytest.raises(IntegrityError, match="user_id"):
        lease(1, worker.user_id, "second slot")
    lease(1, other.user_id, "allowed")


def _assert_sound(store, num_tasks: int, overlap: int) -> None:
    """Exactly `overlap` labels for every task, by different people, each slot used once."""
    with store.read() as session:
        rows = session.execute(select(Demonstration.task_id, Demonstration.user_id)).all()
        assert len(rows) == len(set(rows)) == num_tasks * overlap
        assert set(collections.Counter(row.task_id for row in rows).values()) == {overlap}
        assert set(session.scalars(select(Task.state))) == {"done"}
        submitted = select(func.count()).where(EventRow.verb == "submitted")
        assert session.scalar(submitted) == num_tasks * overlap
        live = select(func.count()).where(Lease.released.is_(None))
        assert session.scalar(live) == 0


def test_eight_threads_never_share_a_slot(store, person, tasks):
    tasks(12, overlap=3)
    people = [person(f"w{number}") for number in range(8)]
    errors: list[BaseException] = []

    def label(who) -> None:
        try:
            while work := next_task(store, who, "write"):
                answer = f"By {who.name}."
                submit_demonstration(store, who, work.token, answer, work.token)
                submit_demonstration(store, who, work.token, answer, work.token)
        except BaseException as error:  # noqa: BLE001 (told in the main thread)
            errors.append(error)

    threads = [threading.Thread(target=label, args=(who,)) for who in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    _assert_sound(store, 12, 3)


_WORKER = """
import sys
from labeling_app import auth
from labeling_app.assignment import next_task
from labeling_app.store import open_store
from labeling_app.submissions import submit_demonstration
store = open_store(sys.argv[1])
who = auth.act_as(store, sys.argv[2])
sys.stdin.readline()
while work := next_task(store, who, "write"):
    submit_demonstration(store, who, work.token, f"By {who.name}.", work.token)
"""


def test_processes_never_share_a_slot(store, person, tasks):
    tasks(10, overlap=2)
    people = [person(f"w{number}") for number in range(3)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, store.url, who.name],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for who in people
    ]
    errors = []
    for child in children:  # all are loaded by now, or soon: let them go together
        child.stdin.write(b"go\n")
        child.stdin.flush()
    errors = [child.communicate()[1].decode() for child in children]
    assert errors == [""] * 3
    _assert_sound(store, 10, 2)
