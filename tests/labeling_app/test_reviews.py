"""Peer review: who reads what, once; what is returned, corrected, or replaced."""

import contextlib
import dataclasses

import pytest
from sqlalchemy import select

from labeling_app import auth, guidelines
from labeling_app.assignment import LeaseLostError, next_task
from labeling_app.auth import Account, DeniedError
from labeling_app.export import read_labels
from labeling_app.label_view import RankedAnswer
from labeling_app.labels import reopen
from labeling_app.own_work import own_work
from labeling_app.projects import FLAGS, configure, create_project
from labeling_app.reviews import (
    REASONS,
    adjudicate,
    ask_for_review,
    next_review,
    review,
    waiting,
)
from labeling_app.schema import Review, ReviewRequest
from labeling_app.store import PSEUDONYM_KEY
from labeling_app.submissions import (
    Trace,
    skip,
    submit_comparison,
    submit_demonstration,
)
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.records import Message
from tests.labeling_app.together import at_once

BAD = "not truthful"


@pytest.fixture
def human(store, lead):
    """human(name, role, project): a person who is not simulated, the instructions read; every
    label of theirs asks for a review."""

    def make(name: str, role: str = "labeler", project: int = 1) -> Account:
        key = store.key(PSEUDONYM_KEY)
        with store.write() as session:
            user = auth.new_user(session, store, key, name, None)
            auth.add_membership(session, user.id, project, role, ())
            who = auth.account(session, user, project)
        guidelines.acknowledge(store, who, 1)
        return who

    configure(store, lead, review_share=1.0)
    return make


def write(store, who, text="First.", work=None) -> int:
    work = work or next_task(store, who, "write")
    return submit_demonstration(store, who, work.token, text, work.token).submission_id


def correct(store, who, label: int, text: str) -> int:
    return write(store, who, text, reopen(store, who, "demo", label))


def pseudonym(store, name: str) -> str:
    return auth.pseudonym(store.key(PSEUDONYM_KEY), name, simulated=False)


def texts(store) -> list[str]:
    return sorted(row.messages[-1].text for row in read_labels(store).conversations)


def reviews(store) -> list[tuple[int, str, str]]:
    with store.read() as session:
        rows = session.scalars(select(Review).order_by(Review.id))
        return [(row.target_id, row.verdict, row.reason) for row in rows]


@pytest.mark.parametrize(("share", "low", "high"), [(0, 0, 0), (0.5, 5, 35), (1, 40, 40)])
def test_a_share_of_work_asks_for_review(store, lead, human, person, tasks, share, low, high):
    tasks(41)
    tasks(1, "compare", purpose="qualification", gold=(1, 2, 3, 4), key="q")
    write(store, person("simulated"))
    configure(store, lead, review_share=share, qualification_tasks=1)
    worker = human("w")
    token = next_task(store, worker, "compare").token
    submit_comparison(store, worker, token, Verdict((1, 2, 3, 4)), "k")
    labels = {write(store, worker) for _ in range(40)}
    with store.read() as session:
        asked = session.execute(select(ReviewRequest.target_id, ReviewRequest.why)).all()
    assert low <= len(asked) == waiting(store, lead) <= high
    assert {tuple(row) for row in asked} <= {(label, "drawn at random") for label in labels}


def test_nobody_is_given_their_own_label_nor_a_task_they_worked_on(store, human, tasks):
    tasks(1, overlap=2)
    one, two = human("one", "reviewer"), human("two", "reviewer")
    first, second = write(store, one), write(store, two)
    for reader in (one, two):
        assert (next_review(store, reader), waiting(store, reader)) == (None, 0)
        for label in (first, second):
            for deed, said in ((review, "accepted"), (adjudicate, BAD)):
                with pytest.raises(DeniedError, match="worked on themselves"):
                    deed(store, reader, "demo", label, said)
    assert waiting(store, human("three", "reviewer")) == 2


@pytest.mark.parametrize("kind", ["demo", "compare"])
def test_a_task_whose_label_one_reviewed_is_given_to_others(store, human, tasks, kind):
    """Who has read one answer would not write the second for themselves."""
    tasks(1, kind, overlap=2)
    area = "compare" if kind == "compare" else "write"
    author, reader, third = human("w"), human("r", "reviewer"), human("t")
    work = next_task(store, author, area)
    if kind == "demo":
        label = write(store, author, work=work)
    else:
        ranked = submit_comparison(store, author, work.token, Verdict((1, 2, 2, 3)), "first")
        label = ranked.submission_id
    review(store, reader, kind, label, "accepted")
    assert next_task(store, reader, area) is None
    assert next_task(store, third, area).task_id == work.task_id


def test_a_label_of_a_task_that_the_reviewer_has_in_hand_is_not_shown(store, human, tasks):
    tasks(1, overlap=2)
    reader = human("r", "reviewer")
    work = next_task(store, reader, "write")
    label = write(store, human("w"))
    assert next_review(store, reader) is None
    with pytest.raises(DeniedError):
        adjudicate(store, reader, "demo", label, BAD)
    skip(store, reader, work.token, "unclear")
    assert next_review(store, reader).id == label


def test_only_reviewers_and_leads_read_and_only_leads_ask(store, lead, human, person, tasks):
    tasks(1)
    worker = human("w")
    label = write(store, worker)
    for who in (worker, person("e", "engineer")):
        for deed in (next_review, waiting):
            with pytest.raises(DeniedError, match="this is for: reviewer, lead"):
                deed(store, who)
        for deed, said in ((review, "accepted"), (adjudicate, BAD), (ask_for_review, "Odd.")):
            with pytest.raises(DeniedError, match="this is for: "):
                deed(store, who, "demo", label, said)
    with pytest.raises(DeniedError, match="this is for: lead"):
        ask_for_review(store, human("r", "reviewer"), "demo", label, "Odd.")
    assert next_review(store, lead).id == label


def test_a_reviewer_sees_all_that_the_author_saw_and_not_who_it_was(store, human, tasks):
    tasks(1)
    tasks(1, kind="compare", key="c", k=2)
    worker, reader = human("w"), human("r", "reviewer")
    work = next_task(store, worker, "write")
    submit_demonstration(store, worker, work.token, "Mine.", "a", Trace(4000, 7))
    work = next_task(store, worker, "compare")
    verdict = Verdict((2, 1), "very", (2, 6), ((FLAGS[1],), ()), "clearly", "Second.")
    submit_comparison(store, worker, work.token, verdict, "b", Trace(9000))
    # In the order of their kinds: they came in at the same moment.
    shown = next_review(store, reader)
    assert next_review(store, reader) == shown  # still in hand
    order = [answer.position for answer in work.answers]
    values = [RankedAnswer("Answer 0.", 2, 2, (FLAGS[1],)), RankedAnswer("Answer 1.", 1, 6, ())]
    assert (shown.kind, shown.answers) == ("compare", tuple(values[place] for place in order))
    assert list(shown.words.values()) == ["very", "clearly", "Second."]
    review(store, reader, "compare", shown.id, "accepted")
    shown = next_review(store, reader)
    assert (shown.kind, shown.turns) == ("demo", (Message.of("assistant", "Mine."),))
    assert (shown.prompt[0].text, shown.why) == ("Question t 0?", "drawn at random")
    assert (shown.active_ms, shown.pasted_chars, shown.origin) == (4000, 7, "human")
    assert pseudonym(store, "w") not in repr(shown)
    assert "'w'" not in repr(shown)


def test_reviewers_never_read_the_same_label_at_once(store, human, tasks):
    tasks(6)
    worker = human("w")
    labels = [write(store, worker) for _ in range(6)]
    readers = [human(f"r{number}", "reviewer") for number in range(6)]
    shown = at_once(*[lambda who=who: next_review(store, who) for who in readers])
    assert sorted(label.id for label in shown) == labels, shown
    read: list[int] = []

    def work(who) -> None:
        while label := next_review(store, who):
            read.append(label.id)
            review(store, who, "demo", label.id, "accepted")

    assert at_once(*[lambda who=who: work(who) for who in readers]) == [None] * 6
    assert sorted(read) == labels


def test_a_claim_expires(store, clock, human, tasks):
    tasks(1)
    label = write(store, human("w"))
    slow, quick = human("slow", "reviewer"), human("quick", "reviewer")
    assert next_review(store, slow).id == label
    clock.move(minutes=29)
    assert (next_review(store, quick), waiting(store, quick)) == (None, 0)
    clock.move(minutes=1)
    assert next_review(store, quick).id == label
    assert next_review(store, slow) is None
    review(store, quick, "demo", label, "accepted")
    with pytest.raises(UserError, match="somebody has reviewed this label"):
        review(store, slow, "demo", label, "returned", BAD)


def test_two_reviews_at_once_are_one(store, human, tasks):
    tasks(1)
    label = write(store, human("w"))
    one, two = human("one", "reviewer"), human("two", "reviewer")
    deeds = [lambda who=who: review(store, who, "demo", label, "accepted") for who in (one, two)]
    results = at_once(*deeds * 3)
    assert len(reviews(store)) == 1
    assert sum(result is None for result in results) == 3
    assert {type(result) for result in results if result is not None} == {UserError}, results


def test_a_returned_label_is_left_out_until_corrected(store, clock, lead, human, tasks):
    tasks(1)
    worker, reader = human("w"), human("r", "reviewer")
    label = write(store, worker)
    configure(store, lead, review_share=0)  # what came back is read again at any share
    for verdict in ("returned", "returned", "accepted"):  # a double click; once said it stands
        review(store, reader, "demo", label, verdict, BAD)
    assert reviews(store) == [(label, "returned", BAD)]
    assert texts(store) == []
    clock.move(days=3)
    second = correct(store, worker, label, "Second.")
    assert texts(store) == ["Second."]
    shown = next_review(store, reader)
    assert (shown.id, shown.why) == (second, "corrected after it came back")
    assert (shown.earlier, shown.turns[0].text) == (("First.",), "Second.")
    review(store, reader, "demo", second, "returned", "something else")
    third = correct(store, worker, second, "Third.")
    assert next_review(store, reader).earlier == ("Second.", "First.")
    review(store, reader, "demo", third, "accepted", "looks careless")
    assert (texts(store), next_review(store, reader)) == (["Third."], None)
    for who, counted in ((worker, (1, 2, 1)), (reader, (0, 0, 0))):
        counts = own_work(store, who)
        assert (counts.accepted, counts.returned, counts.answers) == counted


def test_a_label_corrected_in_time_is_read_in_its_new_form(store, human, tasks):
    tasks(1)
    worker, reader = human("w"), human("r", "reviewer")
    label = write(store, worker)
    assert next_review(store, reader).id == label
    second = correct(store, worker, label, "Second.")
    for deed, said in ((review, "accepted"), (adjudicate, BAD)):
        with pytest.raises(UserError, match="corrected since"):
            deed(store, reader, "demo", label, said)
    assert (next_review(store, reader).id, waiting(store, reader)) == (second, 1)


def test_an_adjudicated_label_stands_in_the_place_of_the_old_one(store, human, tasks):
    tasks(1, kind="compare")
    worker, reader = human("w"), human("r", "reviewer")
    work = next_task(store, worker, "compare")
    submit_comparison(store, worker, work.token, Verdict((1, 2, 3, 4)), "a")
    shown = next_review(store, reader)
    mine = adjudicate(store, reader, "compare", shown.id, "the ranks do not fit the answers")
    order = [answer.position for answer in mine.answers]
    assert (mine.purpose, mine.corrects) == ("adjudicate", shown.id)
    assert mine.draft.body["ranks"] == [place + 1 for place in order]  # in the reviewer's order
    assert adjudicate(store, reader, "compare", shown.id, BAD).token == mine.token  # double click
    assert read_labels(store).comparisons[0].labeler == pseudonym(store, "w")
    done, again = (
        submit_comparison(store, reader, mine.token, Verdict((4, 3, 2, 1)), "b") for _ in range(2)
    )
    assert again.repeated
    assert reviews(store) == [(shown.id, "adjudicated", "the ranks do not fit the answers")]
    [standing] = read_labels(store).comparisons
    assert (standing.labeler, standing.responses[0].rank) == (pseudonym(store, "r"), 4)
    with pytest.raises(DeniedError, match="worked on themselves"):
        review(store, reader, "compare", done.submission_id, "accepted")
    with pytest.raises(DeniedError, match="another person's"):
        reopen(store, worker, "compare", done.submission_id)
    for who, why in ((reader, "reviewed since"), (human("o", "reviewer"), "corrected since")):
        with pytest.raises(UserError, match=why):
            adjudicate(store, who, "compare", shown.id, BAD)
    assert next_task(store, reader, "compare") is None


def test_nobody_is_given_their_own_adjudication(store, clock, lead, human, tasks):
    tasks(2)
    worker, reader, other = human("w"), human("r", "reviewer"), human("o", "reviewer")
    one = write(store, worker)
    mine = write(store, reader, "Better.", adjudicate(store, reader, "demo", one, BAD))
    ask_for_review(store, lead, "demo", mine, "Odd.")
    clock.move(seconds=1)
    two = write(store, worker)
    assert waiting(store, other) == 2
    assert (next_review(store, reader).id, waiting(store, reader)) == (two, 1)


def test_a_label_that_one_is_adjudicating_is_given_to_nobody_else(store, clock, human, tasks):
    tasks(1)
    label = write(store, human("w"))
    one, two = human("one", "reviewer"), human("two", "reviewer")
    next_review(store, one)
    adjudicate(store, one, "demo", label, BAD)
    clock.move(minutes=31)  # the claim is over, the lease is not
    with pytest.raises(LeaseLostError, match="somebody is correcting"):
        adjudicate(store, two, "demo", label, BAD)
    assert next_review(store, two) is None


def test_an_adjudication_of_a_label_reviewed_since_is_refused(store, human, tasks):
    tasks(1)
    label = write(store, human("w"))
    one, two = human("one", "reviewer"), human("two", "reviewer")
    work = adjudicate(store, one, "demo", label, BAD)
    with contextlib.suppress(UserError):
        review(store, two, "demo", label, "accepted")
    with contextlib.suppress(UserError):
        submit_demonstration(store, one, work.token, "Mine.", "k")
    assert len(reviews(store)) == 1


MISFITS = [
    (("adjudicated", BAD), "verdict 'adjudicated'"),
    (("", ""), "verdict ''"),
    (("returned", ""), "reason ''; one of: does not do"),
    (("accepted", "because"), "reason 'because'"),
    (("returned", BAD, "1" * 17), "clause"),
    (("returned", BAD, "1", "x" * 2001), "2001 characters; at most 2000"),
    (("returned", BAD, "1", "a\0b"), "NUL"),
    (("returned", BAD, "1", "\ud800"), "Unicode"),
    (("returned", BAD, "\0"), "clause"),
    (("returned", BAD, "\ud800"), "clause"),
]


@pytest.mark.parametrize(("said", "why"), MISFITS)
def test_unknown_verdicts_and_reasons_are_refused(store, human, tasks, said, why):
    tasks(1)
    label, reader = write(store, human("w")), human("r", "reviewer")
    with pytest.raises(UserError, match=why):
        review(store, reader, "demo", label, *said)
    for reason in ("", "because"):
        with pytest.raises(UserError, match="reason"):
            adjudicate(store, reader, "demo", label, reason)
    assert reviews(store) == []
    review(store, reader, "demo", label, "returned", REASONS[-1], "12.12.12.12.12", "x" * 2000)


def test_a_lead_or_a_signal_asks_once(store, lead, human, tasks):
    tasks(8)
    worker = human("w")
    configure(store, lead, review_share=0)
    one, two, *more = [write(store, worker) for _ in range(8)]
    assert ask_for_review(store, lead, "demo", one, "Odd. " * 100)
    assert not ask_for_review(store, lead, "demo", one, "Odd again.")
    correct(store, worker, two, "Second.")
    refused = [(more[0], " ", "why is empty"), (more[0], "a\0", "NUL"), (999, "x", "no label 999")]
    for label, bad, why in (*refused, (two, "x", "corrected since")):
        with pytest.raises(UserError, match=why):
            ask_for_review(store, lead, "demo", label, bad)
    assert next_review(store, human("r", "reviewer")).why == ("Odd. " * 100)[:200]
    for label in more:
        results = at_once(*[lambda n=label: ask_for_review(store, lead, "demo", n, "Odd.")] * 6)
        assert sorted(map(str, results)) == ["False"] * 5 + ["True"], results


def test_another_projects_labels_are_refused(store, lead, human, tasks):
    tasks(1)
    label = write(store, human("w"))
    other = create_project(store, "other")
    guidelines.publish_default(store, project="other")
    boss = human("boss", "lead", other)
    for deed, said in ((review, "accepted"), (adjudicate, BAD), (ask_for_review, "Odd.")):
        with pytest.raises(UserError, match=f"no label {label} in this project"):
            deed(store, boss, "demo", label, said)
    assert (next_review(store, boss), waiting(store, boss)) == (None, 0)
    assert waiting(store, lead) == 1


def test_own_work_is_of_one_project(store, lead, human, tasks):
    tasks(2)
    worker = human("w")
    work = next_task(store, worker, "write")
    submit_demonstration(store, worker, work.token, "Mine.", "k", Trace(1000))
    review(store, lead, "demo", 1, "accepted")
    skip(store, worker, next_task(store, worker, "write").token, "unclear")

    def counts(who) -> tuple[int, ...]:
        own = own_work(store, who)
        return own.answers, own.accepted, own.put_back, own.active_today_ms

    assert counts(worker) == (1, 1, 1, 1000)
    other = create_project(store, "other")
    with store.write() as session:
        auth.add_membership(session, worker.user_id, other, "labeler", ())
    assert counts(dataclasses.replace(worker, project_id=other)) == (0, 0, 0, 0)
