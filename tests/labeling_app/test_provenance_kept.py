"""What a correction, a new lease and midnight may not change: a text's origin, and how good one's
labels are."""

import pytest

from labeling_app import assist, guidelines, invitations, projects
from labeling_app.agreement import share_interval
from labeling_app.assignment import next_task, release_expired, take_task
from labeling_app.drafts import save_draft
from labeling_app.export import read_labels
from labeling_app.labels import reopen
from labeling_app.quality import calibration, own_agreement, rankings
from labeling_app.reviews import REASONS, adjudicate, review
from labeling_app.schema import Demonstration, Task
from labeling_app.submissions import skip, submit_comparison, submit_demonstration
from labeling_app.verdicts import Verdict
from tests.labeling_app.assists import DRAFTER, Model, events, human, rows

TEXT = "A model wrote this.\n\nAnd all of that."
RIGHT, WRONG = (1, 2, 3, 4), (4, 3, 2, 1)


@pytest.fixture
def kaya(store, lead):
    projects.configure(store, lead, unassisted_share=0, gold_share=0, review_share=0)
    return human(store, lead)


@pytest.fixture
def reviewer(store, lead):
    def make(name: str):
        token = invitations.invite(store, lead, "reviewer")
        who = invitations.accept_as(store, token, "https://issuer.test", name, name)
        guidelines.acknowledge(store, who, 1)
        return who

    return make


def take_all(store, who, token: str) -> None:
    model = Model(events(TEXT))
    [shown] = assist.ask(store, who, token, "draft", (DRAFTER,), client=model.client)
    for part in range(len(shown.parts)):
        assist.act(store, who, shown.id, part, "take")


def hand_in(store, who, work, text: str = TEXT) -> int:
    return submit_demonstration(store, who, work.token, text, work.token).submission_id


def drafted(store, who) -> int:
    """A label of the caller's that is a model's text."""
    work = next_task(store, who, "write")
    take_all(store, who, work.token)
    return hand_in(store, who, work)


def origins(store) -> list[tuple[str, int | None]]:
    return [(row.origin, row.edit_chars) for row in rows(store, Demonstration)]


def test_a_models_text_stays_one_however_often_it_is_corrected(store, kaya, tasks):
    tasks(1)
    label = drafted(store, kaya)
    for text in (TEXT, TEXT + "!", TEXT):
        label = hand_in(store, kaya, reopen(store, kaya, "demo", label), text)
    assert origins(store) == [("accepted", 0), ("accepted", 0), ("edited", 1), ("accepted", 0)]
    assert [row.origin for row in read_labels(store).conversations] == ["accepted"]


def test_a_models_text_stays_one_when_it_came_back(store, lead, clock, kaya, tasks):
    tasks(1)
    label = drafted(store, kaya)
    review(store, lead, "demo", label, "returned", REASONS[0])
    clock.move(days=3)
    hand_in(store, kaya, reopen(store, kaya, "demo", label))
    assert origins(store)[1] == ("accepted", 0)


def test_a_models_text_stays_one_after_its_lease(store, clock, kaya, tasks):
    tasks(1)
    first = next_task(store, kaya, "write")
    take_all(store, kaya, first.token)
    save_draft(store, kaya, first.token, 1, {"turns": [{"role": "assistant", "text": TEXT}]})
    clock.move(hours=14)
    with store.write() as session:
        release_expired(session, clock())
    again = next_task(store, kaya, "write")
    assert again.token != first.token
    hand_in(store, kaya, again)
    assert origins(store) == [("accepted", 0)]


def test_a_models_text_stays_one_where_it_was_taken_in_a_lease_after_the_tabs(
    store, lead, clock, kaya, tasks
):
    tasks(1, overlap=2)
    first = next_task(store, kaya, "write")
    clock.move(hours=14)
    next_task(store, human(store, lead, "noor"), "write")
    take_all(store, kaya, next_task(store, kaya, "write").token)
    hand_in(store, kaya, first)
    assert origins(store) == [("accepted", 0)]


def test_a_models_text_stays_one_in_the_hands_of_two_reviewers(store, kaya, reviewer, tasks):
    tasks(1)
    label = drafted(store, kaya)
    for who in (reviewer("r1"), reviewer("r2")):
        label = hand_in(store, who, adjudicate(store, who, "demo", label, REASONS[0]))
    assert origins(store) == [("accepted", 0)] * 3


def test_what_a_reviewer_took_counts_beside_what_the_author_took(store, kaya, reviewer, tasks):
    tasks(1)
    work, reader = next_task(store, kaya, "write"), reviewer("r")
    label = hand_in(store, kaya, work, "Mine.")
    again = adjudicate(store, reader, "demo", label, REASONS[0])
    take_all(store, reader, again.token)
    hand_in(store, reader, again)
    assert origins(store) == [("human", None), ("accepted", 0)]


def test_what_another_took_for_the_same_task_makes_no_draft_of_ones_own(store, lead, kaya, tasks):
    tasks(2, overlap=2)
    drafted(store, kaya)
    noor = human(store, lead, "noor")
    hand_in(store, noor, next_task(store, noor, "write"), "Mine.")
    hand_in(store, kaya, next_task(store, kaya, "write"), "Mine too.")
    assert origins(store) == [("accepted", 0), ("human", None), ("human", None)]


def known_answer(store, lead, who, tasks):
    """The one that there is, in the caller's hands."""
    tasks(20, "compare", key="other")
    tasks(1, "compare", key="g", purpose="gold", gold=RIGHT)
    projects.configure(store, lead, gold_share=0.5)
    while work := next_task(store, who, "compare"):
        with store.read() as session:
            if session.get_one(Task, work.task_id).purpose == "gold":
                return work
        skip(store, who, work.token, "next")
    raise AssertionError("it never came")


def rank(store, who, ranks) -> int:
    work = next_task(store, who, "compare")
    return rerank(store, who, work, ranks)


def rerank(store, who, work, ranks) -> int:
    verdict = Verdict(ranks)
    return submit_comparison(store, who, work.token, verdict, work.token).submission_id


def test_ones_own_figures_stand_still_until_midnight(store, lead, clock, kaya, tasks):
    projects.configure(store, lead, gold_share=0.5)
    tasks(6, "compare")
    tasks(6, "compare", key="g", purpose="gold", gold=RIGHT)
    for n in range(6):
        label = rank(store, kaya, WRONG)
        assert own_agreement(store, kaya) == (None, None)
        rerank(store, kaya, reopen(store, kaya, "compare", label), RIGHT)
        assert own_agreement(store, kaya) == (None, None), n
    num = sum(each.purpose == "gold" for each in rankings(store, lead))
    assert 0 < num < 6
    clock.move(hours=13, minutes=59)
    assert own_agreement(store, kaya) == (None, None)
    clock.move(minutes=1)
    assert own_agreement(store, kaya)[0] == share_interval(0, num)
    rank(store, kaya, RIGHT)
    assert own_agreement(store, kaya)[0] == share_interval(0, num)


@pytest.mark.parametrize(("first", "then", "right"), [(WRONG, RIGHT, 0), (RIGHT, WRONG, 1)])
def test_the_first_label_of_a_known_answer_counts(
    store, lead, clock, kaya, tasks, first, then, right
):
    label = rerank(store, kaya, known_answer(store, lead, kaya, tasks), first)
    for _ in range(2):
        label = rerank(store, kaya, reopen(store, kaya, "compare", label), then)
    [row] = calibration(store, lead, rankings(store, lead))
    assert (row.labels, row.gold) == (1, share_interval(right, 1))
    clock.move(days=1)
    assert own_agreement(store, kaya) == (share_interval(right, 1), None)


def test_for_oneself_the_first_label_of_work_counts_too(store, lead, clock, kaya, person, tasks):
    tasks(1, "compare", overlap=2)
    peer = person("peer")
    rerank(store, peer, take_task(store, peer, "t0"), RIGHT)
    label = rank(store, kaya, WRONG)
    rerank(store, kaya, reopen(store, kaya, "compare", label), RIGHT)
    clock.move(days=1)
    assert own_agreement(store, kaya)[1].value == -1


def test_ones_own_figures_stand_still_when_yesterdays_work_is_corrected(
    store, clock, kaya, person, tasks
):
    tasks(1, "compare", overlap=2)
    clock.move(hours=13, minutes=59)
    peer = person("peer")
    rerank(store, peer, take_task(store, peer, "t0"), RIGHT)
    label = rank(store, kaya, WRONG)
    clock.move(minutes=2)
    before = own_agreement(store, kaya)
    assert before[1].value == -1
    rerank(store, kaya, reopen(store, kaya, "compare", label), RIGHT)
    assert own_agreement(store, kaya) == before


def test_ones_own_figures_stand_still_when_yesterdays_known_answer_is_corrected(
    store, lead, clock, kaya, tasks
):
    clock.move(hours=13, minutes=59)
    label = rerank(store, kaya, known_answer(store, lead, kaya, tasks), WRONG)
    clock.move(minutes=2)
    rerank(store, kaya, reopen(store, kaya, "compare", label), RIGHT)
    assert own_agreement(store, kaya) == (share_interval(0, 1), None)
