"""Joining by an invitation: with a password or an issuer's word, once, in time, under a free
name."""

import datetime as dt
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import func, select, update

from labeling_app import auth, guidelines, projects
from labeling_app.assignment import next_task
from labeling_app.auth import Account, DeniedError
from labeling_app.invitations import Invited, accept, accept_as, invite, look_up, sign_in_as
from labeling_app.schema import Base, Invitation, Membership, User
from labeling_app.store import Store
from pipeline.core.errors import UserError
from tests.labeling_app.conftest import PASSWORD

ISSUER = "https://id.example"


@pytest.fixture
def other_lead(store) -> Account:
    """The lead of a second project, which has instructions."""
    projects.create_project(store, "other")
    guidelines.publish_default(store, project="other")
    auth.create_simulated(store, "otherlead", "lead", "other")
    return auth.act_as(store, "otherlead", "other")


def people(store: Store) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).where(~User.simulated))


def at_once(deeds: list[Callable[[], Account]]) -> tuple[list[Account], list[BaseException]]:
    """What each of them returned or raised, begun together."""
    start = threading.Barrier(len(deeds))
    joined: list[Account] = []
    errors: list[BaseException] = []

    def run(deed: Callable[[], Account]) -> None:
        start.wait()
        try:
            joined.append(deed())
        except BaseException as error:  # noqa: BLE001 (told in the main thread)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(deed,)) for deed in deeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return joined, errors


def test_an_invitation_makes_a_member_once(store, lead, tasks):
    tasks(1, skill="french")
    token = invite(store, lead, "labeler", ("french", "french"), "for the new one")
    assert look_up(store, token) == Invited("default", "labeler", open=True)
    who = accept(store, token, " Kaya ", PASSWORD)
    assert (who.name, who.role, who.must_change, who.simulated) == ("kaya", "labeler", False, False)
    assert not look_up(store, token).open
    assert auth.sign_in(store, "kaya", PASSWORD) == who
    guidelines.acknowledge(store, who, 1)
    assert next_task(store, who, "write") is not None  # it is for who knows French
    for again in (
        lambda: accept(store, token, "mallory", PASSWORD),
        lambda: accept_as(store, token, ISSUER, "s", "mallory"),
    ):
        with pytest.raises(DeniedError, match="was used"):
            again()
    assert people(store) == 1


def test_an_invitation_used_by_many_at_once_lets_one_in(store, lead):
    token = invite(store, lead, "lead")
    joined, errors = at_once(
        [
            lambda: accept(store, token, "first", PASSWORD),
            lambda: accept(store, token, "second", PASSWORD),
            *(
                lambda name=name: accept_as(store, token, ISSUER, name, name)
                for name in ("third", "fourth", "fifth", "sixth")
            ),
        ]
    )
    assert len(joined) == 1
    assert [type(error) for error in errors] == [DeniedError] * 5
    assert people(store) == 1
    with store.read() as session:
        assert session.scalars(select(Invitation.used_by)).one() == joined[0].user_id


def test_two_who_choose_one_name_at_once_are_told(store, lead):
    tokens = [invite(store, lead, "labeler") for _ in range(3)]
    joined, errors = at_once(
        [lambda token=token: accept(store, token, "kaya", PASSWORD) for token in tokens]
    )
    assert len(joined) == 1
    assert ["'kaya' is taken" in str(error) for error in errors] == [True, True]
    assert sorted(look_up(store, token).open for token in tokens) == [False, True, True]


def test_two_whom_the_issuer_names_alike_at_once_both_join(store, lead):
    tokens = [invite(store, lead, "labeler") for _ in range(4)]
    joined, errors = at_once(
        [lambda token=token: accept_as(store, token, ISSUER, token[:9], "kaya") for token in tokens]
    )
    assert errors == []
    assert len({who.name for who in joined}) == 4


def test_an_invitation_expires(store, clock, lead):
    token = invite(store, lead, "labeler", lasts=dt.timedelta(hours=1))
    clock.move(hours=1, seconds=-1)
    assert look_up(store, token).open
    clock.move(seconds=1)
    assert not look_up(store, token).open
    for late in (
        lambda: accept(store, token, "kaya", PASSWORD),
        lambda: accept_as(store, token, ISSUER, "s", "kaya"),
    ):
        with pytest.raises(DeniedError, match="is over"):
            late()
    assert people(store) == 0


def test_unknown_tokens_are_no_invitations(store, lead):
    token = invite(store, lead, "labeler")
    with store.read() as session:
        digest = session.scalars(select(Invitation.token_sha256)).one()
    for guess in ("", digest, token[:-1], token + " ", "a\0", "x" * 100_000):
        for refused in (
            lambda guess=guess: look_up(store, guess),
            lambda guess=guess: accept(store, guess, "kaya", PASSWORD),
            lambda guess=guess: accept_as(store, guess, ISSUER, "s", "kaya"),
        ):
            with pytest.raises(DeniedError, match="no invitation of ours"):
                refused()
    with store.read() as session:
        for table in Base.metadata.sorted_tables:
            assert token not in str(session.execute(select(table)).all())


@pytest.mark.parametrize(
    ("name", "password", "why"),
    [
        ("", PASSWORD, "account name"),
        ("a b", PASSWORD, "account name"),
        ("-x", PASSWORD, "account name"),
        ("é", PASSWORD, "account name"),
        ("a\0", PASSWORD, "account name"),
        ("\ud800", PASSWORD, "account name"),
        ("a" * 41, PASSWORD, "account name"),
        ("kaya", "short", "10 to 200"),
        ("kaya", "x" * 201, "10 to 200"),
        ("LEAD", PASSWORD, "'lead' is taken"),
    ],
)
def test_a_bad_name_or_password_leaves_the_invitation_open(store, lead, name, password, why):
    token = invite(store, lead, "labeler")
    with pytest.raises(UserError, match=why):
        accept(store, token, name, password)
    assert people(store) == 0
    assert look_up(store, token).open
    assert accept(store, token, "kaya", PASSWORD).name == "kaya"


def test_only_a_lead_invites_and_to_known_roles(store, person, lead):
    for role in ("labeler", "reviewer", "engineer"):
        with pytest.raises(DeniedError, match="this is for: lead"):
            invite(store, person(role, role), "labeler")
    with pytest.raises(UserError, match="role 'boss' is unknown"):
        invite(store, lead, "boss")
    with pytest.raises(UserError, match="201 characters"):
        invite(store, lead, "labeler", note="x" * 201)


@pytest.mark.parametrize(
    "bad",
    [
        {"note": "a\0b"},
        {"note": "\ud800"},
        {"skills": ("a\0b",)},
        {"lasts": dt.timedelta(days=4_000_000)},
        {"lasts": dt.timedelta(seconds=-1)},
    ],
    ids=["note-nul", "note-surrogate", "skill-nul", "for-ever", "over"],
)
def test_an_invitation_that_cannot_be_kept_is_refused(store, lead, bad):
    with pytest.raises(UserError):
        invite(store, lead, "labeler", **bad)


def test_an_invitation_can_be_looked_at_while_it_is_used(store, lead):
    token = invite(store, lead, "labeler")
    with store.write() as session:
        session.execute(update(Invitation).values(used_at=store.clock()))
        assert look_up(store, token).open


def test_somebody_an_issuer_vouches_for_joins_and_signs_in(store, lead, other_lead):
    with pytest.raises(DeniedError, match="no account here yet"):
        sign_in_as(store, ISSUER, "s1")
    who = accept_as(store, invite(store, lead, "reviewer"), ISSUER, "s1", "Kaya.Ö@example.org")
    assert (who.name, who.role, who.must_change) == ("kaya", "reviewer", False)
    assert sign_in_as(store, ISSUER, "s1") == who
    there = accept_as(store, invite(store, other_lead, "labeler"), ISSUER, "s1", "anything")
    assert (there.user_id, there.name, there.role) == (who.user_id, "kaya", "labeler")
    assert there.project_id != who.project_id
    assert sign_in_as(store, ISSUER, "s1") == who  # their oldest project, their role there
    for subject in ("s2", "S1", "s1 ", "kaya", ""):
        with pytest.raises(DeniedError, match="no account here yet"):
            sign_in_as(store, ISSUER, subject)
    with pytest.raises(DeniedError, match="no account here yet"):
        sign_in_as(store, "https://other.example", "s1")


def test_no_issuer_can_vouch_for_a_local_account(store, lead):
    accept(store, invite(store, lead, "lead"), "kaya", PASSWORD)
    with pytest.raises(DeniedError, match="no account here yet"):
        sign_in_as(store, "", "kaya")
    token = invite(store, lead, "labeler")
    for issuer, subject in (("", "kaya"), (ISSUER, ""), ("x" * 201, "s"), (ISSUER, "x" * 201)):
        with pytest.raises(DeniedError, match="names no person"):
            accept_as(store, token, issuer, subject, "kaya")
    assert look_up(store, token).open
    assert people(store) == 1


def test_an_issuers_account_has_no_password(store, lead):
    who = accept_as(store, invite(store, lead, "labeler"), ISSUER, "s", "kaya")
    with pytest.raises(DeniedError, match="wrong"):
        auth.sign_in(store, "kaya", "")
    with pytest.raises(DeniedError, match="no password here"):
        auth.set_password(store, who, PASSWORD)
    with pytest.raises(UserError, match=f"signs in at {ISSUER}"):
        auth.reset_password(store, "kaya")


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("kaya", "kaya-2"),
        ("KAYA@example.org", "kaya-2"),
        ("Ada Lovelace", "ada-lovelace"),
        ("._-é-_.", "person"),
        ("", "person"),
        ("@example.org", "person"),
        ("x" * 300, "x" * 30),
        ("\ud800b\0", "b"),
    ],
)
def test_the_issuers_name_becomes_a_free_account_name(store, lead, wanted, name):
    first = accept_as(store, invite(store, lead, "labeler"), ISSUER, "first", "kaya")
    second = accept_as(store, invite(store, lead, "labeler"), ISSUER, "second", wanted)
    assert (first.name, second.name) == ("kaya", name)
    third = accept_as(store, invite(store, lead, "labeler"), ISSUER, "third", wanted)
    assert third.name == (f"{name}-2" if name != "kaya-2" else "kaya-3")
    assert len({first.user_id, second.user_id, third.user_id}) == 3


def test_a_name_of_an_issuer_is_taken_for_passwords_too(store, lead):
    accept_as(store, invite(store, lead, "labeler"), ISSUER, "s", "kaya")
    token = invite(store, lead, "labeler")
    with pytest.raises(UserError, match="'kaya' is taken"):
        accept(store, token, "kaya", PASSWORD)
    with pytest.raises(UserError, match="exists"):
        auth.create_account(store, "kaya", "labeler")
    assert look_up(store, token).open


def test_a_former_member_joins_anew_with_the_new_role(store, lead):
    who = accept_as(store, invite(store, lead, "reviewer", ("law",)), ISSUER, "s", "kaya")
    projects.remove_member(store, lead, "kaya")
    with pytest.raises(DeniedError, match="in no project"):
        sign_in_as(store, ISSUER, "s")
    back = accept_as(store, invite(store, lead, "labeler"), ISSUER, "s", "kaya")
    assert (back.user_id, back.role) == (who.user_id, "labeler")
    with store.read() as session:
        row = session.get(Membership, (who.user_id, who.project_id))
        assert (row.role, row.skills, row.active) == ("labeler", [], True)


def test_a_closed_account_does_not_come_back_by_an_invitation(store, lead):
    accept_as(store, invite(store, lead, "labeler"), ISSUER, "s", "kaya")
    auth.close_account(store, "kaya")
    with pytest.raises(DeniedError, match="account is closed"):
        sign_in_as(store, ISSUER, "s")
    token = invite(store, lead, "lead")
    with pytest.raises(DeniedError, match="closed"):
        accept_as(store, token, ISSUER, "s", "kaya")
    assert look_up(store, token).open


def test_a_removed_lead_does_not_come_back_by_their_own_invitation(store, lead):
    who = accept_as(store, invite(store, lead, "lead"), ISSUER, "s", "kaya")
    kept = invite(store, who, "lead")
    projects.remove_member(store, lead, "kaya")
    with pytest.raises(DeniedError):
        accept_as(store, kept, ISSUER, "s", "kaya")
