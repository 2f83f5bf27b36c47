"""Reviews against corrections, and old tabs against all that was done since."""

import contextlib

import pytest
from sqlalchemy import select

from labeling_app import projects
from labeling_app.assignment import LeaseLostError, Work, next_task, release_expired
from labeling_app.drafts import save_draft
from labeling_app.export import read_labels
from labeling_app.labels import give_up, reopen
from labeling_app.reviews import REASONS, adjudicate, review
from labeling_app.schema import Demonstration, Review
from labeling_app.submissions import skip, submit_comparison, submit_demonstration
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from tests.labeling_app.assists import human
from tests.labeling_app.together import at_once

BODY = {"turns": [{"role": "assistant", "text": "Typed."}]}


@pytest.fixture
def kaya(store, lead):
    projects.configure(store, lead, review_share=1)
    return human(store, lead)


def hand_in(store, who, work, text: str = "First.") -> int:
    return submit_demonstration(store, who, work.token, text, work.token).submission_id


def write(store, who, text: str = "First.") -> int:
    return hand_in(store, who, next_task(store, who, "write"), text)


def accepted_and_replaced(store) -> list[int]:
    with store.read() as session:
        query = (
            select(Review.id)
            .join(Demonstration, Demonstration.supersedes_id == Review.target_id)
            .where(Review.verdict == "accepted")
        )
        return list(session.scalars(query))


def texts(store) -> list[str]:
    return [row.messages[-1].text for row in read_labels(store).conversations]


def over(store, clock) -> None:
    """All leases are."""
    clock.move(hours=14)
    with store.write() as session:
        release_expired(session, clock())


def reviewed_meanwhile(store, clock, lead, who, *said: str) -> tuple[int, Work]:
    """A label that its author opened again, and that is reviewed once that lease is over."""
    label = write(store, who)
    work = reopen(store, who, "demo", label)
    clock.move(minutes=46)
    review(store, lead, "demo", label, *said)
    return label, work


def test_a_label_accepted_meanwhile_is_not_replaced_from_an_old_tab(
    store, clock, lead, kaya, tasks
):
    tasks(1)
    label, work = reviewed_meanwhile(store, clock, lead, kaya, "accepted")
    for _ in range(2):
        with pytest.raises(LeaseLostError, match=r"reviewed|no longer yours"):
            hand_in(store, kaya, work, "Other.")
    with pytest.raises(UserError, match="accepted"):
        reopen(store, kaya, "demo", label)
    assert (texts(store), accepted_and_replaced(store)) == (["First."], [])


def test_a_ranking_accepted_meanwhile_is_not_replaced_from_an_old_tab(
    store, clock, lead, kaya, tasks
):
    tasks(1, "compare")
    token = next_task(store, kaya, "compare").token
    done = submit_comparison(store, kaya, token, Verdict((1, 2, 3, 4)), "first")
    work = reopen(store, kaya, "compare", done.submission_id)
    clock.move(minutes=46)
    review(store, lead, "compare", done.submission_id, "accepted")
    with pytest.raises(LeaseLostError, match=r"reviewed|no longer yours"):
        submit_comparison(store, kaya, work.token, Verdict((4, 3, 2, 1)), "second")
    assert [row.responses[0].rank for row in read_labels(store).comparisons] == [1]


def test_a_label_that_came_back_meanwhile_is_corrected_from_the_old_tab(
    store, clock, lead, kaya, tasks
):
    tasks(1)
    _, work = reviewed_meanwhile(store, clock, lead, kaya, "returned", REASONS[0])
    hand_in(store, kaya, work, "Better.")
    assert texts(store) == ["Better."]


def test_an_old_tabs_autosave_does_not_open_an_accepted_label_again(
    store, clock, lead, kaya, tasks
):
    tasks(2)
    _, work = reviewed_meanwhile(store, clock, lead, kaya, "accepted")
    with contextlib.suppress(LeaseLostError):
        save_draft(store, kaya, work.token, 9, BODY)
    given = next_task(store, kaya, "write")
    assert (given.purpose, given.task_id != work.task_id) == ("work", True)


def test_an_old_tabs_autosave_does_not_open_a_correction_that_was_given_up(
    store, clock, lead, kaya, tasks
):
    tasks(2)
    projects.configure(store, lead, undo_minutes=1000)
    label = write(store, kaya)
    old = reopen(store, kaya, "demo", label)
    over(store, clock)
    give_up(store, kaya, reopen(store, kaya, "demo", label).token)
    with contextlib.suppress(LeaseLostError):
        save_draft(store, kaya, old.token, 9, BODY)
    assert next_task(store, kaya, "write").purpose == "work"


def test_a_label_opened_again_at_the_moment_of_its_review_stands_or_is_not_reviewed(
    store, lead, kaya, tasks
):
    tasks(20)
    for _ in range(20):
        label = write(store, kaya)
        opened, reviewed = at_once(
            lambda n=label: reopen(store, kaya, "demo", n),
            lambda n=label: review(store, lead, "demo", n, "accepted"),
        )
        assert isinstance(opened, Work) != (reviewed is None), (opened, reviewed)
        assert isinstance(opened, Work | UserError), opened
        assert isinstance(reviewed, UserError | None), reviewed
        if isinstance(opened, Work):
            hand_in(store, kaya, opened, "Other.")
    assert accepted_and_replaced(store) == []


def test_a_correction_handed_in_at_the_moment_of_its_review_wins_or_is_lost(
    store, clock, lead, kaya, tasks
):
    tasks(20)
    for n in range(20):
        label = write(store, kaya)
        work = reopen(store, kaya, "demo", label)
        clock.move(minutes=46)
        handed_in, reviewed = at_once(
            lambda given=work: hand_in(store, kaya, given, "Other."),
            lambda given=label: review(store, lead, "demo", given, "accepted"),
        )
        assert isinstance(handed_in, int) != (reviewed is None), (n, handed_in, reviewed)
        assert isinstance(handed_in, int | LeaseLostError), handed_in
        assert isinstance(reviewed, UserError | None), reviewed
    assert accepted_and_replaced(store) == []


def test_a_label_is_corrected_or_adjudicated_at_the_same_moment_by_one(store, lead, kaya, tasks):
    tasks(20)
    for _ in range(20):
        label = write(store, kaya)
        opened = at_once(
            lambda n=label: (kaya, reopen(store, kaya, "demo", n)),
            lambda n=label: (lead, adjudicate(store, lead, "demo", n, REASONS[0])),
        )
        [(who, work)] = [each for each in opened if isinstance(each, tuple)]
        assert sum(isinstance(each, UserError) for each in opened) == 1, opened
        hand_in(store, who, work, "Other.")
    assert set(texts(store)) == {"Other."}


@pytest.fixture
def two_tabs(store, clock, lead, kaya, tasks):
    """(the old tab's work, the new one's) on one task, whose other slot is free."""
    tasks(1, overlap=2)
    old = next_task(store, kaya, "write")
    clock.move(hours=14)
    noor = human(store, lead, "noor")
    hers = next_task(store, noor, "write")
    new = next_task(store, kaya, "write")
    assert (new.task_id, new.token != old.token) == (old.task_id, True)
    skip(store, noor, hers.token, "not mine")
    return old, new


def test_an_old_tab_takes_no_slot_after_the_task_was_handed_in(store, lead, kaya, tasks, two_tabs):
    old, new = two_tabs
    hand_in(store, kaya, new, "One.")
    for deed in (
        lambda: save_draft(store, kaya, old.token, 5, BODY),
        lambda: hand_in(store, kaya, old, "Two."),
    ):
        with pytest.raises(LeaseLostError):
            deed()
    assert next_task(store, kaya, "write") is None
    tasks(1, key="more")
    assert next_task(store, kaya, "write").task_id != old.task_id
    assert next_task(store, human(store, lead, "eve"), "write").task_id == old.task_id
    assert texts(store) == ["One."]


def test_an_old_tab_takes_no_slot_after_the_task_was_put_back(store, lead, kaya, two_tabs):
    old, new = two_tabs
    skip(store, kaya, new.token, "not mine")
    save_draft(store, kaya, old.token, 5, BODY)  # what is typed is kept, for nothing
    with pytest.raises(LeaseLostError):
        hand_in(store, kaya, old, "Two.")
    assert next_task(store, kaya, "write") is None
    eve, fay = human(store, lead, "eve"), human(store, lead, "fay")
    assert {next_task(store, who, "write").task_id for who in (eve, fay)} == {old.task_id}


def test_two_tabs_that_hand_in_at_once_bring_one_label(store, kaya, two_tabs):
    old, new = two_tabs
    done = at_once(
        lambda: hand_in(store, kaya, new, "One."),
        lambda: hand_in(store, kaya, old, "Two."),
        lambda: save_draft(store, kaya, old.token, 5, BODY),
    )
    assert sum(isinstance(each, int) for each in done[:2]) == 1, done
    assert (len(texts(store)), next_task(store, kaya, "write")) == (1, None)


@pytest.mark.parametrize("kind", ["demo", "compare"])
def test_the_key_of_another_tasks_label_is_refused(store, kaya, tasks, kind):
    tasks(2, kind)
    area = "write" if kind == "demo" else "compare"

    def submit(token: str):
        if kind == "demo":
            return submit_demonstration(store, kaya, token, "Same.", "key")
        return submit_comparison(store, kaya, token, Verdict((1, 2, 3, 4)), "key")

    first = next_task(store, kaya, area)
    assert [submit(first.token).repeated for _ in range(2)] == [False, True]
    second = next_task(store, kaya, area)
    with pytest.raises(UserError, match="submitted before"):
        submit(second.token)
    assert next_task(store, kaya, area).token == second.token
