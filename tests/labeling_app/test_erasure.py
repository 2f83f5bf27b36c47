"""A person who is erased: their name is nowhere, their labels stay under their pseudonym."""

import pytest
from sqlalchemy import select

from labeling_app import auth, guidelines, labels, projects, reviews, sessions
from labeling_app.assignment import next_task
from labeling_app.auth import DeniedError
from labeling_app.drafts import save_draft
from labeling_app.export import COMPARISONS, CONVERSATIONS, export_labels, read_labels
from labeling_app.invitations import accept, accept_as, invite, sign_in_as
from labeling_app.schema import APPEND_ONLY, Base, User
from labeling_app.submissions import skip, submit_comparison, submit_demonstration
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from tests.labeling_app.conftest import PASSWORD

NAME, ISSUER, SUBJECT = "kayaseven", "https://id.example", "subject-4711"


@pytest.fixture(params=["password", "issuer"])
def kaya(request, store, lead):
    """A real person who has joined and read the instructions."""
    token = invite(store, lead, "labeler")
    if request.param == "password":
        who = accept(store, token, NAME, PASSWORD)
    else:
        who = accept_as(store, token, ISSUER, SUBJECT, NAME)
    guidelines.acknowledge(store, who, 1)
    return who


def work_through(store, lead, who, tasks) -> None:
    """Leave something in every table that a person can: labels, a review, a draft, a session."""
    tasks(3)
    tasks(1, "compare", key="c")
    sessions.start_session(store, who)
    for _ in range(2):
        work = next_task(store, who, "write")
        submit_demonstration(store, who, work.token, f"By hand, {work.task_id}.", work.token)
    work = next_task(store, who, "compare")
    submit_comparison(store, who, work.token, Verdict((1, 2, 2, 4), comment="so"), work.token)
    [last] = labels.own_labels(store, who, limit=1)
    reviews.review(store, lead, last.kind, last.id, "accepted")
    projects.assign(store, lead, NAME, "lead", ("law",))
    sessions.create_api_token(store, who, "weekly", ("export",))
    invite(store, who, "labeler")
    skip(store, who, next_task(store, who, "write").token, "not mine")
    tasks(1, key="more")
    save_draft(store, who, next_task(store, who, "write").token, 1, {"text": "half"})
    with pytest.raises(DeniedError, match="wrong"):
        auth.sign_in(store, f" {NAME.upper()} ", "guess", "10.0.0.1")


def told(store, text: str) -> list[str]:
    """The table and column of every cell that holds this text, in whatever case."""
    with store.read() as session:
        return [
            f"{table.name}.{column}"
            for table in Base.metadata.sorted_tables
            for row in session.execute(select(table)).mappings()
            for column, value in row.items()
            if text.lower()
            in (value.decode("latin-1") if isinstance(value, bytes) else str(value)).lower()
        ]


def test_the_name_is_in_no_table_afterwards(store, lead, kaya, tasks):
    work_through(store, lead, kaya, tasks)
    assert "users.name" in told(store, NAME)
    assert "sign_in_attempts.name" in told(store, NAME)
    pseudonym = auth.erase_account(store, NAME)
    assert told(store, NAME) == []
    assert told(store, SUBJECT) == []
    assert told(store, ISSUER) == []
    assert told(store, "argon2") == []
    assert "events.actor" in told(store, pseudonym)
    with store.read() as session:
        row = session.get_one(User, kaya.user_id)
        assert (row.name, row.active, row.erased_at) == (pseudonym, False, store.clock())


def test_the_note_of_their_invitation_is_forgotten(store, lead, tasks):
    accept(store, invite(store, lead, "labeler", note="for Kayaseven Smith"), NAME, PASSWORD)
    auth.erase_account(store, NAME)
    assert told(store, "Smith") == []


def test_the_names_of_their_programs_are_forgotten(store, lead):
    who = accept(store, invite(store, lead, "engineer"), NAME, PASSWORD)
    sessions.create_api_token(store, who, "the laptop of Kayaseven Smith", ("export",))
    auth.erase_account(store, NAME)
    assert told(store, "Smith") == []


def test_labels_and_exports_keep_the_pseudonym(store, lead, kaya, tasks, tmp_path):
    work_through(store, lead, kaya, tasks)
    before, report = read_labels(store), export_labels(store, str(tmp_path / "before"))
    assert (len(before.conversations), len(before.comparisons)) == (2, 1)
    pseudonym = auth.erase_account(store, NAME)
    everything = (*before.conversations, *before.comparisons)
    assert {label.labeler for label in everything} == {pseudonym}
    assert read_labels(store) == before
    assert export_labels(store, str(tmp_path / "after")).snapshot == report.snapshot
    for name in (CONVERSATIONS, COMPARISONS):
        file = (tmp_path / "after" / name).read_bytes()
        assert file == (tmp_path / "before" / name).read_bytes()


def test_what_they_wrote_is_not_touched(store, lead, kaya, tasks):
    work_through(store, lead, kaya, tasks)

    def rows() -> dict[str, list]:
        with store.read() as session:
            return {
                name: session.execute(
                    select(table := Base.metadata.tables[name]).order_by(*table.primary_key)
                ).all()
                for name in APPEND_ONLY
            }

    before = rows()
    auth.erase_account(store, NAME)
    after = rows()
    assert after.pop("events")[: len(before["events"])] == before.pop("events")
    assert after == before


def test_they_are_out_at_once_and_for_good(store, clock, lead, kaya, tasks, person):
    tasks(1)
    made = sessions.start_session(store, kaya)
    work = next_task(store, kaya, "write")
    pseudonym = auth.erase_account(store, NAME)
    for refused in (
        lambda: submit_demonstration(store, kaya, work.token, "Mine.", "k"),
        lambda: auth.current(store, kaya),
        lambda: sessions.account_of(store, made.id),
        lambda: auth.sign_in(store, NAME, PASSWORD),
        lambda: auth.sign_in(store, pseudonym, PASSWORD),
        lambda: auth.sign_in(store, pseudonym, ""),
        lambda: sign_in_as(store, ISSUER, SUBJECT),
        lambda: sign_in_as(store, "", pseudonym),
        lambda: auth.act_as(store, pseudonym),
    ):
        with pytest.raises(DeniedError):
            refused()
    for deed in (auth.erase_account, auth.close_account, auth.reset_password):
        with pytest.raises(UserError, match=f"no person's account '{NAME}'"):
            deed(store, NAME)
    clock.move(hours=1)
    assert next_task(store, person("v"), "write").task_id == work.task_id
    [gone] = [each for each in projects.members(store, lead) if each.user_id == kaya.user_id]
    assert (gone.name, gone.active) == (pseudonym, False)


def test_a_closed_account_can_be_erased_too(store, kaya):
    auth.close_account(store, NAME)
    auth.erase_account(store, NAME)
    assert told(store, NAME) == []


def test_somebody_else_takes_the_name_under_another_pseudonym(store, kaya, tasks):
    tasks(4, overlap=3)
    pseudonyms = []
    who = kaya
    for round_ in range(3):
        work = next_task(store, who, "write")
        submit_demonstration(store, who, work.token, f"Round {round_}.", work.token)
        pseudonyms.append(auth.erase_account(store, NAME))
        first = auth.sign_in(store, NAME, auth.create_account(store, NAME, "labeler"))
        who = auth.set_password(store, first, PASSWORD)
        guidelines.acknowledge(store, who, 1)
    assert len(set(pseudonyms)) == 3
    assert auth.sign_in(store, NAME, PASSWORD).user_id == who.user_id
    found = read_labels(store).conversations
    said = {label.messages[-1].text: label.labeler for label in found}
    assert said == {f"Round {number}.": name for number, name in enumerate(pseudonyms)}
    with pytest.raises(UserError, match="exists"):
        auth.create_account(store, NAME, "labeler")


def test_the_same_person_of_an_issuer_comes_back_as_somebody_new(store, lead):
    old = accept_as(store, invite(store, lead, "labeler"), ISSUER, SUBJECT, NAME)
    pseudonym = auth.erase_account(store, NAME)
    new = accept_as(store, invite(store, lead, "reviewer"), ISSUER, SUBJECT, NAME)
    assert new.user_id != old.user_id
    assert new.name == NAME
    assert sign_in_as(store, ISSUER, SUBJECT) == new
    with store.read() as session:
        assert session.get_one(User, new.user_id).pseudonym != pseudonym


def test_a_pseudonym_that_somebody_took_for_a_name_hinders_no_erasure(store, lead):
    who = accept(store, invite(store, lead, "labeler"), NAME, PASSWORD)
    with store.read() as session:
        pseudonym = session.get_one(User, who.user_id).pseudonym
    # IntegrityError. Refusing the name would do as well.
    try:
        accept(store, invite(store, lead, "labeler"), pseudonym, PASSWORD)
    except UserError:
        return
    assert auth.erase_account(store, NAME) == pseudonym


def test_only_people_are_erased(store, person):
    person("sim")
    for name in ("sim", "nobody", ""):
        with pytest.raises(UserError, match="no person's account"):
            auth.erase_account(store, name)
