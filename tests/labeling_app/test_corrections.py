"""Undo: one's own label, opened again, handed in anew; the old row stays as it was."""

import datetime as dt

import pytest
from sqlalchemy import select

from labeling_app import auth, guidelines
from labeling_app.assignment import LeaseLostError, next_task
from labeling_app.auth import Account, DeniedError
from labeling_app.drafts import save_draft
from labeling_app.export import read_labels
from labeling_app.labels import give_up, history, last_label, own_labels, reopen
from labeling_app.own_work import own_work
from labeling_app.projects import FLAGS, configure
from labeling_app.reviews import adjudicate, review
from labeling_app.schema import Demonstration, Draft, Lease, RankedItem, RankedSet, Slot, Task
from labeling_app.store import PSEUDONYM_KEY
from labeling_app.submissions import skip, submit_comparison, submit_demonstration
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.records import Message
from tests.labeling_app.together import at_once

FULL = Verdict(
    (2, 1, 3, 1),
    "fairly",
    (3, 7, None, 6),
    ((FLAGS[0], FLAGS[2]), (), (FLAGS[10],), ()),
    comment="The second is best <b>😀",
)


@pytest.fixture
def human(store):
    """human(name, role): a person who is not simulated, signed in, the instructions read."""

    def make(name: str, role: str = "labeler") -> Account:
        key = store.key(PSEUDONYM_KEY)
        with store.write() as session:
            user = auth.new_user(session, store, key, name, None)
            auth.add_membership(session, user.id, 1, role, ())
            who = auth.account(session, user, 1)
        guidelines.acknowledge(store, who, 1)
        return who

    return make


def write(store, who, text="First.") -> int:
    work = next_task(store, who, "write")
    return submit_demonstration(store, who, work.token, text, work.token).submission_id


def rank(store, who, verdict=FULL) -> int:
    work = next_task(store, who, "compare")
    return submit_comparison(store, who, work.token, verdict, work.token).submission_id


def correct(store, who, label: int, text: str) -> int:
    work = reopen(store, who, "demo", label)
    return submit_demonstration(store, who, work.token, text, work.token).submission_id


def texts(store) -> list[str]:
    return [row.messages[-1].text for row in read_labels(store).conversations]


def rows_of(store, model) -> list[dict]:
    table = model.__table__
    with store.read() as session:
        rows = session.execute(select(table).order_by(*table.primary_key.columns))
        return [dict(row._mapping) for row in rows]


def test_a_correction_is_a_new_row_and_the_old_one_never_changes(store, clock, person, tasks):
    tasks(1)
    worker = person("w")
    first = write(store, worker)
    [before] = rows_of(store, Demonstration)
    clock.move(minutes=5)
    work = reopen(store, worker, "demo", first)
    assert (work.purpose, work.corrects) == ("correct", first)
    assert work.draft.body == {"turns": [{"role": "assistant", "text": "First."}]}
    assert texts(store) == ["First."]  # until it is handed in
    done = submit_demonstration(store, worker, work.token, "Second.", "second")
    assert submit_demonstration(store, worker, work.token, "Second.", "second").repeated
    old, new = rows_of(store, Demonstration)
    assert old == before
    assert (new["id"], new["supersedes_id"]) == (done.submission_id, first)
    assert new["created_at"] == clock()
    assert (new["slot_id"], new["task_id"]) == (old["slot_id"], old["task_id"])
    assert texts(store) == ["Second."]
    with store.read() as session:
        assert session.scalars(select(Slot.state)).all() == ["filled"]
        assert session.scalars(select(Task.state)).all() == ["done"]
        assert session.scalars(select(Draft.rev)).all() == []


def test_a_ranking_comes_back_in_the_order_on_the_screen(store, person, tasks):
    tasks(1, kind="compare")
    worker = person("w")
    label = rank(store, worker)
    items = rows_of(store, RankedItem)
    work = reopen(store, worker, "compare", label)
    order = [answer.position for answer in work.answers]
    assert order != [0, 1, 2, 3]  # else this shows nothing; the order is fixed for "w" and "t0"
    assert work.draft.body == {
        "ranks": [FULL.ranks[place] for place in order],
        "likert": [FULL.likert[place] for place in order],
        "flags": [list(FULL.flags[place]) for place in order],
        "confidence": "fairly",
        "degree": None,
        "comment": FULL.comment,
        "not_rankable": "",
    }
    submit_comparison(store, worker, work.token, Verdict((1, 2, 3, 4)), "second")
    assert rows_of(store, RankedItem)[:4] == items
    [kept] = read_labels(store).comparisons
    assert [answer.rank for answer in kept.responses] == [1, 2, 3, 4]
    assert list(kept.shown_order) == order
    assert (kept.comment, kept.confidence, kept.responses[0].flags) == ("", None, ())


def test_what_cannot_be_ranked_and_a_degree_survive_the_round_trip(store, person, tasks):
    tasks(2, kind="compare", k=2)
    worker = person("w")
    one = rank(store, worker, Verdict(not_rankable="Both are empty."))
    two = rank(store, worker, Verdict((2, 1), degree="slightly"))
    work = reopen(store, worker, "compare", one)
    assert (work.draft.body["not_rankable"], work.draft.body["ranks"]) == (
        "Both are empty.",
        [None, None],
    )
    submit_comparison(store, worker, work.token, Verdict((1, 2), degree="clearly"), "a")
    work = reopen(store, worker, "compare", two)
    assert (work.draft.body["degree"], work.draft.body["not_rankable"]) == ("slightly", "")
    assert sorted(work.draft.body["ranks"]) == [1, 2]
    submit_comparison(store, worker, work.token, Verdict(not_rankable="Neither."), "b")
    kept = {row.not_rankable_reason: row for row in read_labels(store).comparisons}
    assert set(kept) == {"", "Neither."}
    assert (kept[""].not_rankable, kept[""].degree) == (False, "clearly")
    assert kept["Neither."].not_rankable
    assert list(kept["Neither."].pairs()) == []


def test_turns_come_back_without_the_prompt_and_questions_with_it(store, person, tasks):
    tasks(1)
    tasks(1, kind="question", key="q")
    worker = person("w")
    said = (Message.of("assistant", "A."), Message.of("user", "B?"), Message.of("assistant", "C."))
    asked = (Message.of("user", "Mine?"), Message.of("assistant", "Yes."))
    for turns, prompt in ((said, "Question t 0?"), (asked, None)):
        work = next_task(store, worker, "write")
        label = submit_demonstration(store, worker, work.token, turns, work.token).submission_id
        work = reopen(store, worker, "demo", label)
        assert work.draft.body == {"turns": [{"role": t.role, "text": t.text} for t in turns]}
        again = (*turns[:-1], Message.of("assistant", "Better."))
        submit_demonstration(store, worker, work.token, again, work.token)
        [row] = [row for row in read_labels(store).conversations if row.messages[-3:] == again[-3:]]
        before = (Message.of("user", prompt),) if prompt else ()
        assert row.messages == (*before, *again)


def test_a_correction_of_a_correction(store, person, tasks):
    tasks(1)
    worker = person("w")
    first = write(store, worker)
    second = correct(store, worker, first, "Second.")
    with pytest.raises(UserError, match="corrected since"):
        reopen(store, worker, "demo", first)
    third = correct(store, worker, second, "Third.")
    chain = [(row["id"], row["supersedes_id"]) for row in rows_of(store, Demonstration)]
    assert chain == [(first, None), (second, first), (third, second)]
    assert texts(store) == ["Third."]
    assert [label.id for label in own_labels(store, worker)] == [third]
    counts = own_work(store, worker)
    assert (counts.answers, counts.answers_today) == (1, 1)
    told = history(store, person("boss", "lead"), "demo", third)
    assert [row["text"] for row in told] == ["Third.", "Second.", "First."]


@pytest.mark.parametrize(("minutes", "open_"), [(60, True), (60.1, False)])
def test_a_label_can_be_corrected_for_the_time_that_the_project_sets(
    store, clock, person, tasks, minutes, open_
):
    tasks(1)
    worker = person("w")
    label = write(store, worker)
    clock.move(minutes=minutes)
    assert own_labels(store, worker)[0].editable is open_
    assert (last_label(store, worker) is not None) is open_
    if open_:
        reopen(store, worker, "demo", label)
    else:
        with pytest.raises(UserError, match="for 60 minutes, or when it came back"):
            reopen(store, worker, "demo", label)


def test_what_a_reviewer_accepted_stands_also_within_the_time(store, lead, person, tasks):
    tasks(2)
    worker, reader = person("w"), person("r", "reviewer")
    one = write(store, worker)
    assert last_label(store, worker).id == one
    review(store, reader, "demo", one, "accepted")
    assert last_label(store, worker) is None
    with pytest.raises(UserError, match="a reviewer accepted this label; it stands"):
        reopen(store, worker, "demo", one)


def test_a_draft_that_comes_after_the_correction_was_given_up_is_refused(store, person, tasks):
    tasks(1)
    worker = person("w")
    again = reopen(store, worker, "demo", write(store, worker))
    give_up(store, worker, again.token)
    with pytest.raises(LeaseLostError, match="given up; the label stands"):
        save_draft(store, worker, again.token, 5, {"turns": []})
    assert own_work(store, worker).drafts == 0


def test_the_lead_sets_the_time_and_a_returned_label_has_none(store, clock, lead, person, tasks):
    tasks(2)
    worker, reader = person("w"), person("r", "reviewer")
    configure(store, lead, undo_minutes=0)
    one, two = write(store, worker), write(store, worker)
    clock.move(seconds=1)
    assert last_label(store, worker) is None
    review(store, reader, "demo", one, "returned", "not truthful", "2.1", "Wrong year.")
    review(store, reader, "demo", two, "accepted")
    clock.move(days=40)
    by_id = {label.id: label for label in own_labels(store, worker)}
    back = by_id[one]
    assert (back.verdict, back.reason, back.editable) == ("returned", "not truthful", True)
    assert (back.clause, back.comment) == ("2.1", "Wrong year.")
    assert by_id[two].editable is False
    with pytest.raises(UserError, match="stands"):
        reopen(store, worker, "demo", two)
    correct(store, worker, one, "Right year.")


def test_others_labels_and_unknown_ones_are_refused(store, person, tasks):
    tasks(1, overlap=2)
    worker, other = person("w"), person("v")
    label = write(store, worker)
    with pytest.raises(DeniedError, match="another person's"):
        reopen(store, other, "demo", label)
    for kind, number in (("demo", 999), ("compare", label), ("demo", -1)):
        with pytest.raises(UserError, match=f"no label {number}"):
            reopen(store, worker, kind, number)
    work = reopen(store, worker, "demo", label)
    with pytest.raises(LeaseLostError, match="not given to you"):
        submit_demonstration(store, other, work.token, "Mine.", "k")
    with pytest.raises(LeaseLostError, match="not given to you"):
        give_up(store, other, work.token)
    assert own_labels(store, other) == []


def test_a_qualification_is_not_corrected_and_gold_is(store, lead, human, tasks):
    tasks(1, kind="compare", purpose="qualification", gold=(1, 2, 3, 4), key="q")
    tasks(1, kind="compare", purpose="gold", gold=(1, 2, 3, 4), key="g")
    configure(store, lead, qualification_tasks=1, gold_share=0.5)
    worker = human("w")
    tested = rank(store, worker, Verdict((1, 2, 3, 4)))
    assert not own_labels(store, worker)[0].editable
    with pytest.raises(UserError, match="may be tried again"):
        reopen(store, worker, "compare", tested)
    tasks(9, kind="compare", key="work")
    while next_task(store, worker, "compare").prompt[0].text != "Question g 0?":
        rank(store, worker, Verdict((1, 2, 3, 4)))
    gold = rank(store, worker, Verdict((4, 3, 2, 1)))
    work = reopen(store, worker, "compare", gold)
    submit_comparison(store, worker, work.token, Verdict((1, 2, 3, 4)), "again")
    assert rows_of(store, RankedSet)[-1]["supersedes_id"] == gold


def test_two_tabs_open_one_correction_and_one_of_them_hands_it_in(store, person, tasks):
    tasks(1)
    worker = person("w")
    label = write(store, worker)
    works = at_once(*[lambda: reopen(store, worker, "demo", label)] * 4)
    [token] = {work.token for work in works}

    def hand_in(text: str):
        return lambda: submit_demonstration(store, worker, token, text, text)

    results = at_once(*[hand_in(f"By tab {number}.") for number in range(4)])
    lost = [result for result in results if isinstance(result, LeaseLostError)]
    assert len(lost) == 3, results
    assert len(rows_of(store, Demonstration)) == 2
    [kept] = texts(store)
    assert kept.startswith("By tab ")


def test_the_correction_is_what_the_person_is_given_first(store, person, tasks):
    tasks(3)
    worker = person("w")
    label = write(store, worker)
    ordinary = next_task(store, worker, "write")
    work = reopen(store, worker, "demo", label)
    assert reopen(store, worker, "demo", label).token == work.token
    assert next_task(store, worker, "write").token == work.token
    with pytest.raises(UserError, match="given up, not put back"):
        skip(store, worker, work.token, "unclear")
    submit_demonstration(store, worker, work.token, "Second.", "k")
    assert next_task(store, worker, "write").token == ordinary.token


def test_giving_up_leaves_the_label(store, person, tasks):
    tasks(2)
    worker = person("w")
    label = write(store, worker)
    work = reopen(store, worker, "demo", label)
    save_draft(store, worker, work.token, 9, {"turns": [{"role": "assistant", "text": "Half"}]})
    for _ in range(2):  # a double click
        give_up(store, worker, work.token)
    with pytest.raises(LeaseLostError, match="given-up"):
        submit_demonstration(store, worker, work.token, "Too late.", "k")
    assert texts(store) == ["First."]
    assert own_work(store, worker).drafts == 0
    again = reopen(store, worker, "demo", label)
    assert again.token != work.token
    assert again.draft.body["turns"][0]["text"] == "First."
    give_up(store, worker, again.token)
    ordinary = next_task(store, worker, "write")
    with pytest.raises(UserError, match="no correction"):
        give_up(store, worker, ordinary.token)


def test_a_correction_is_saved_as_it_is_typed_and_its_lease_prolonged(store, clock, person, tasks):
    tasks(1)
    worker = person("w")
    work = reopen(store, worker, "demo", write(store, worker))
    body = {"turns": [{"role": "assistant", "text": "Half"}]}
    for minute in range(1, 4):
        clock.move(minutes=40)
        save_draft(store, worker, work.token, work.draft.rev + minute, body)
        assert rows_of(store, Lease)[-1]["expires"] == clock() + dt.timedelta(minutes=45)
    back = next_task(store, worker, "write")
    assert (back.token, back.draft.body, back.draft.rev) == (work.token, body, work.draft.rev + 3)
    save_draft(store, worker, work.token, work.draft.rev, {"turns": []})  # late, from before
    assert next_task(store, worker, "write").draft.body == body


def test_an_expired_correction_still_counts_while_nobody_else_has_the_label(
    store, clock, person, tasks
):
    tasks(2)
    worker = person("w")
    work = reopen(store, worker, "demo", write(store, worker))
    clock.move(hours=3)
    other = person("v")
    taken = next_task(store, other, "write")  # whoever asks next gives expired leases back
    assert taken.task_id != work.task_id
    with store.read() as session:
        outcome = select(Lease.outcome).where(Lease.token == work.token)
        assert session.scalars(outcome).one() == "expired"
    assert next_task(store, other, "write").task_id == taken.task_id
    submit_demonstration(store, worker, work.token, "After lunch.", "k")
    assert texts(store) == ["After lunch."]


def test_what_was_typed_outlives_the_lease_of_the_correction(store, clock, person, tasks):
    tasks(1)
    worker = person("w")
    label = write(store, worker)
    work = reopen(store, worker, "demo", label)
    body = {"turns": [{"role": "assistant", "text": "Half of a long answer"}]}
    save_draft(store, worker, work.token, work.draft.rev + 1, body)
    clock.move(minutes=46)
    assert next_task(store, person("v"), "write") is None
    assert reopen(store, worker, "demo", label).draft.body == body


def test_an_expired_correction_keeps_nobody_from_the_label(store, clock, person, tasks):
    tasks(1)
    worker, reader = person("w"), person("r", "reviewer")
    label = write(store, worker)
    work = reopen(store, worker, "demo", label)
    with pytest.raises(LeaseLostError, match="somebody is correcting"):
        adjudicate(store, reader, "demo", label, "not truthful")
    clock.move(hours=3)
    mine = adjudicate(store, reader, "demo", label, "not truthful")
    with pytest.raises(LeaseLostError, match="no longer yours"):
        submit_demonstration(store, worker, work.token, "Late.", "k")
    submit_demonstration(store, reader, mine.token, "By the reader.", "r")
    assert texts(store) == ["By the reader."]


def test_an_expired_correction_of_a_label_that_was_replaced_is_refused(store, clock, person, tasks):
    tasks(1)
    worker, reader = person("w"), person("r", "reviewer")
    label = write(store, worker)
    work = reopen(store, worker, "demo", label)
    clock.move(hours=3)
    assert next_task(store, person("v"), "write") is None  # gives the lease back
    mine = adjudicate(store, reader, "demo", label, "not truthful")
    submit_demonstration(store, reader, mine.token, "By the reader.", "r")
    with pytest.raises(LeaseLostError):
        submit_demonstration(store, worker, work.token, "Late.", "k")
    assert texts(store) == ["By the reader."]
