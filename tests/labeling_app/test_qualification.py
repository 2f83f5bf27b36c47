"""Known answers: the set to pass before other work, and gold that nobody can tell from work."""

import dataclasses
import datetime as dt

import pytest
from sqlalchemy import select

from labeling_app import guidelines
from labeling_app.assignment import next_task
from labeling_app.auth import DeniedError
from labeling_app.drafts import save_draft
from labeling_app.export import read_labels
from labeling_app.guidelines import UnreadError
from labeling_app.invitations import accept_as, invite
from labeling_app.labels import own_labels, reopen
from labeling_app.projects import assign, configure, remove_member
from labeling_app.qualification import NotQualifiedError, Standing, grant_try, standing
from labeling_app.schema import Lease, Qualification, Slot, Task
from labeling_app.submissions import flag, skip, submit_comparison
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError

RIGHT, WRONG = (1, 2, 3, 4), (4, 3, 2, 1)


@pytest.fixture
def people(store, lead):
    """people(name, role): a person of an issuer, for whom qualification and gold are; read."""

    def make(name: str, role="labeler"):
        who = accept_as(store, invite(store, lead, role), "https://id.example", name, name)
        guidelines.acknowledge(store, who, guidelines.newest(store, who).n)
        return who

    return make


@pytest.fixture
def known(tasks):
    """known(count, purpose): tasks whose answers are ranked 1, 2, 3, 4."""

    def make(count: int, purpose: str = "qualification", key: str = "", **more) -> None:
        tasks(count, "compare", key=key or purpose, purpose=purpose, gold=RIGHT, **more)

    return make


@pytest.fixture
def ask(store, lead):
    """ask(...): two tasks to pass first, no gold, unless it is said otherwise."""

    def make(**settings) -> None:
        configure(store, lead, **{"qualification_tasks": 2, "gold_share": 0} | settings)

    return make


def rank(store, who, ranks=RIGHT, area="compare", **verdict) -> str:
    """Hand in what comes next, ranked so; the first word after "Question"."""
    work = next_task(store, who, area)
    submit_comparison(store, who, work.token, Verdict(tuple(ranks), **verdict), work.token)
    return work.prompt[0].text.split()[1]


def test_the_set_is_passed_before_other_work(store, people, tasks, known, ask):
    tasks(3, "compare", priority=9)
    tasks(1, key="demo")
    known(3)
    ask()
    worker = people("w")
    assert standing(store, worker) == Standing(True, 0, 2, 2, None)
    assert rank(store, worker) == "qualification"
    assert standing(store, worker) == Standing(True, 1, 2, 2, None)
    assert rank(store, worker) == "qualification"
    assert standing(store, worker) == Standing(False, 0, 2, 1, 1.0)
    assert rank(store, worker) == "t"
    assert next_task(store, worker, "write").prompt[0].text == "Question demo 0?"


def test_whoever_asks_again_gets_the_same_qualification_task(store, people, tasks, known, ask):
    tasks(1)
    known(4)
    ask()
    worker = people("w")
    found = [next_task(store, worker, area) for area in ("write", "compare", "write", "compare")]
    assert len({work.token for work in found if work}) == 1
    assert "Question t 0?" not in [work.prompt[0].text for work in found if work]
    with store.read() as session:
        assert len(session.scalars(select(Lease.id)).all()) == 1


@pytest.mark.parametrize(
    ("marks", "passed", "score"),
    [
        ((RIGHT, RIGHT), True, 1.0),
        ((RIGHT, WRONG), True, 0.5),
        ((RIGHT, (1, 2, 4, 4)), True, 1.0),
        ((WRONG, (1, 1, 1, 1)), False, 0.0),
        ((WRONG, (2, 1, 4, 3)), False, 0.0),  # tau-b 1/3
    ],
)
def test_the_score_is_the_share_that_agrees_with_gold(
    store, people, known, ask, marks, passed, score
):
    known(4)
    ask(pass_mark=0.5, gold_mark=0.5)
    worker = people("w")
    for ranks in marks:
        rank(store, worker, ranks)
    found = standing(store, worker)
    assert (found.needed, found.score, found.tries_left) == (not passed, score, 1)
    with store.read() as session:
        row = session.scalars(select(Qualification)).one()
        assert (row.passed, row.score, row.user_id) == (passed, score, worker.user_id)


def test_what_cannot_be_ranked_is_no_agreement(store, people, known, ask):
    known(2)
    ask(qualification_tasks=1, gold_mark=0)
    worker = people("w")
    rank(store, worker, (), not_rankable="all the same")
    assert standing(store, worker) == Standing(True, 0, 1, 1, 0.0)


def test_after_the_last_try_a_lead_grants_one(store, lead, people, tasks, known, ask):
    tasks(1, "compare")
    known(6)
    ask(qualification_tasks=2, qualification_tries=2)
    worker, other = people("w"), people("v")
    for _ in range(4):
        assert rank(store, worker, WRONG) == "qualification"
    assert standing(store, worker) == Standing(True, 0, 2, 0, 0.0)
    for area in ("compare", "write"):
        with pytest.raises(NotQualifiedError, match="your lead can give you another try"):
            next_task(store, worker, area)
    with pytest.raises(DeniedError, match="this is for: lead"):
        grant_try(store, worker, "w")
    with pytest.raises(UserError, match="'nobody' is not in this project"):
        grant_try(store, lead, "nobody")
    grant_try(store, lead, "w")
    assert standing(store, worker).tries_left == 1
    assert standing(store, other).tries_left == 2
    assert [rank(store, worker) for _ in range(3)] == ["qualification", "qualification", "t"]


def test_a_set_without_tasks_left_is_said(store, people, tasks, known, ask):
    tasks(1, "compare")
    known(3)
    ask()
    worker = people("w")
    for _ in range(3):
        rank(store, worker, WRONG)
    with pytest.raises(NotQualifiedError):
        next_task(store, worker, "compare")


def test_nobody_has_the_same_qualification_task_twice(store, people, known, ask):
    known(6)
    ask(qualification_tries=3)
    worker = people("w")
    for _ in range(4):
        rank(store, worker, WRONG)
    with pytest.raises(UserError, match="a qualification task is not skipped"):
        skip(store, worker, next_task(store, worker, "compare").token, "r")
    flag(store, worker, next_task(store, worker, "compare").token, "r")
    rank(store, worker, WRONG)
    with store.read() as session:
        leases = session.scalars(select(Lease.task_id)).all()
    assert len(leases) == len(set(leases)) == 6


def test_another_size_of_the_set_counts_whole_tries(store, lead, people, known, ask):
    known(9)
    ask(qualification_tries=3)
    worker = people("w")
    rank(store, worker, WRONG)
    rank(store, worker, WRONG)
    configure(store, lead, qualification_tasks=3)
    assert standing(store, worker).done == 0
    for number in (1, 2):
        rank(store, worker)
        assert standing(store, worker).done == number
    rank(store, worker)
    assert standing(store, worker) == Standing(False, 0, 3, 1, 1.0)


def test_a_new_version_asks_again_only_if_it_says_so(store, lead, people, tasks, known, ask):
    tasks(3, "compare")
    known(6)
    ask()
    worker = people("w")
    rank(store, worker)
    rank(store, worker)
    guidelines.publish(store, lead, "1 Two")
    guidelines.acknowledge(store, worker, 2)
    assert not standing(store, worker).needed
    assert rank(store, worker) == "t"
    guidelines.publish(store, lead, "1 Three", requalify=True)
    assert standing(store, worker) == Standing(True, 0, 2, 2, None)
    with pytest.raises(UnreadError, match="v3 are new"):
        next_task(store, worker, "compare")
    guidelines.acknowledge(store, worker, 3)
    rank(store, worker, WRONG)
    rank(store, worker, WRONG)
    assert standing(store, worker) == Standing(True, 0, 2, 1, 0.0)
    guidelines.publish(store, lead, "1 Four")  # what v3 asked for is still asked for
    guidelines.acknowledge(store, worker, 4)
    assert standing(store, worker).tries_left == 1
    assert [rank(store, worker) for _ in range(3)] == ["qualification", "qualification", "t"]


def test_what_was_begun_under_the_old_version_does_not_pass_the_new_one(
    store, lead, people, known, ask
):
    known(3)
    ask(qualification_tasks=1)
    worker = people("w")
    work = next_task(store, worker, "compare")
    guidelines.publish(store, lead, "1 Two", requalify=True)
    submit_comparison(store, worker, work.token, Verdict(RIGHT), "k")
    guidelines.acknowledge(store, worker, 2)
    assert standing(store, worker).needed


def test_leads_reviewers_and_simulated_accounts_need_none(store, lead, person, people, tasks, ask):
    tasks(3, "compare")
    ask()
    reviewer = people("r", "reviewer")
    for who in (lead, reviewer, person("sim")):
        assert standing(store, who) == Standing(False, 0, 2, 2, None)
        assert rank(store, who) == "t"
    assign(store, lead, "r", "labeler", ())
    assert standing(store, reviewer).needed


def test_a_qualification_is_not_corrected_and_not_exported(store, people, tasks, known, ask):
    known(2)
    known(1, "gold")
    ask()
    worker = people("w")
    rank(store, worker)
    [label] = own_labels(store, worker)
    assert not label.editable
    with pytest.raises(UserError, match="may be tried again"):
        reopen(store, worker, "compare", label.id)
    assert read_labels(store).comparisons == ()


def test_gold_is_mixed_in_by_share_and_looks_like_work(store, people, tasks, known, ask):
    tasks(60, "compare", overlap=9)
    known(60, "gold", overlap=3)
    ask(qualification_tasks=0, gold_share=0.5)
    seen = {}
    for name in ("w", "v"):
        worker, seen[name] = people(name), ""
        for _ in range(40):
            work = next_task(store, worker, "compare")
            gold = work.prompt[0].text.startswith("Question gold")
            seen[name] += "g" if gold else "."
            assert (work.purpose, work.kind, work.corrects, work.draft) == (
                "work",
                "compare",
                None,
                None,
            )
            assert "gold" not in str(dataclasses.replace(work, prompt=()))
            submit_comparison(store, worker, work.token, Verdict(RIGHT), work.token)
        labels = own_labels(store, worker, limit=40)
        assert {(label.kind, label.editable, label.verdict) for label in labels} == {
            ("compare", True, "")
        }
    for marks in seen.values():
        assert 10 <= marks.count("g") <= 30  # 20 expected, sd 3.2
    assert seen["w"] != seen["v"]
    assert len(read_labels(store).comparisons) == 80 - "".join(seen.values()).count("g")


def test_without_a_share_and_in_other_areas_there_is_no_gold(store, people, tasks, known, ask):
    tasks(12, "compare", overlap=9)
    tasks(12, key="demo")
    known(12, "gold")
    ask(qualification_tasks=0, gold_share=0)
    worker = people("w")
    assert {rank(store, worker) for _ in range(12)} == {"t"}
    assert next_task(store, worker, "compare") is None
    ask(qualification_tasks=0, gold_share=0.5)
    for _ in range(12):
        work = next_task(store, worker, "write")
        assert work.kind == "demo"
        skip(store, worker, work.token, "r")


def _gold_turn(store, who) -> str:
    """Put work back until a gold task comes; its token."""
    while work := next_task(store, who, "compare"):
        if work.prompt[0].text.startswith("Question gold"):
            return work.token
        skip(store, who, work.token, "r")
    raise AssertionError("no gold came")


def test_gold_is_for_everybody_and_for_nobody_twice(store, people, tasks, known, ask):
    tasks(30, "compare", overlap=9)
    known(1, "gold")
    ask(qualification_tasks=0, gold_share=0.5)
    for name in ("u", "v", "w", "x"):  # of one gold task of overlap 1
        worker = people(name)
        token = _gold_turn(store, worker)
        submit_comparison(store, worker, token, Verdict(RIGHT), token)
        while work := next_task(store, worker, "compare"):
            assert work.prompt[0].text.startswith("Question t ")
            skip(store, worker, work.token, "r")
    with store.read() as session:
        gold = select(Task.id).where(Task.purpose == "gold").scalar_subquery()
        slots = session.scalars(select(Slot.state).where(Slot.task_id == gold)).all()
        assert slots == ["filled"] * 4
        assert session.scalars(select(Task.state).where(Task.purpose == "gold")).one() == "open"


def test_gold_that_is_skipped_goes_to_nobodys_queue(store, people, person, tasks, known, ask):
    tasks(20, "compare")
    known(1, "gold")
    ask(qualification_tasks=0, gold_share=0.5)
    worker = people("w")
    skip(store, worker, _gold_turn(store, worker), "r")
    _assert_no_gold_in_the_queue(store, person("sim"))
    while work := next_task(store, worker, "compare"):
        assert work.prompt[0].text.startswith("Question t ")
        skip(store, worker, work.token, "r")


def test_a_gold_lease_that_expires_enters_nobodys_queue(
    store, clock, people, person, tasks, known, ask
):
    tasks(20, "compare")
    known(1, "gold", priority=99)
    ask(qualification_tasks=0, gold_share=0.5)
    worker = people("w")
    token = _gold_turn(store, worker)
    clock.move(hours=2)
    _assert_no_gold_in_the_queue(store, person("sim"))  # returns what has expired
    save_draft(store, worker, token, 1, {"ranks": [1]})  # the words are kept, the lease is back
    submit_comparison(store, worker, token, Verdict(RIGHT), "k")
    with store.read() as session:
        rows = session.execute(
            select(Slot.state, Lease.outcome)
            .join(Lease, Lease.slot_id == Slot.id)
            .join(Task, Task.id == Slot.task_id)
            .where(Task.purpose == "gold")
        ).all()
        assert rows == [("filled", "submitted")]


def _assert_no_gold_in_the_queue(store, simulated) -> None:
    """Simulated accounts get no gold but what lies in the queue."""
    seen = []
    while work := next_task(store, simulated, "compare", dt.timedelta(days=9)):
        seen.append(work.prompt[0].text.split()[1])
        skip(store, simulated, work.token, "r")
    assert seen == ["t"] * 20
    with store.read() as session:
        gold = select(Slot.state).join(Task, Task.id == Slot.task_id).where(Task.purpose == "gold")
        assert set(session.scalars(gold)) == {"void"}


def test_gold_of_a_skill_is_for_those_who_have_it(store, lead, people, tasks, known, ask):
    tasks(30, "compare", overlap=9)
    known(1, "gold", skill="law")
    ask(qualification_tasks=0, gold_share=0.5)
    plain, lawyer = people("w"), people("v")
    assign(store, lead, "v", "labeler", ("law",))
    while work := next_task(store, plain, "compare"):
        assert work.prompt[0].text.startswith("Question t ")
        skip(store, plain, work.token, "r")
    assert _gold_turn(store, lawyer)


def test_a_removed_member_keeps_no_standing(store, lead, people, known, ask):
    known(2)
    ask()
    worker = people("w")
    remove_member(store, lead, "w")
    with pytest.raises(DeniedError, match="not in this project"):
        standing(store, worker)
