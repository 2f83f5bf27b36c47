"""Signing in, roles, closing accounts, and the limit on attempts."""

import dataclasses
import threading

import pytest
from sqlalchemy import select

from labeling_app import auth, drafts, guidelines, submissions
from labeling_app.assignment import next_task, take_task
from labeling_app.auth import DeniedError
from labeling_app.guidelines import UnreadError
from labeling_app.schema import User
from labeling_app.tasks import NewTask, add_tasks
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.records import Message

PASSWORD = "correct horse battery"


@pytest.fixture
def kaya(store):
    """A real person, signed in."""
    who = auth.sign_in(store, "kaya", auth.create_account(store, "kaya", "labeler"))
    return auth.set_password(store, who, PASSWORD)


def test_one_time_password_is_good_for_setting_a_password_only(store):
    first = auth.create_account(store, "kaya", "labeler")
    who = auth.sign_in(store, "kaya", first)
    assert who.must_change
    with pytest.raises(DeniedError, match="one-time"):
        guidelines.newest(store, who)
    with pytest.raises(UserError, match="choose another"):
        auth.set_password(store, who, first)
    with pytest.raises(UserError, match="10 to 200"):
        auth.set_password(store, who, "short")
    changed = auth.set_password(store, who, PASSWORD)
    guidelines.newest(store, changed)
    with pytest.raises(DeniedError, match="wrong"):
        auth.sign_in(store, "kaya", first)
    with pytest.raises(DeniedError, match="ended"):
        auth.current(store, who)  # the session before the change
    assert auth.sign_in(store, " Kaya ", PASSWORD).name == "kaya"


def test_passwords_are_kept_as_argon2id(store, kaya):
    with store.read() as session:
        user = session.scalars(select(User).where(User.name == "kaya")).one()
    assert user.pw_hash.startswith("$argon2id$")
    assert PASSWORD not in user.pw_hash


def test_one_time_passwords_differ(store):
    assert len({auth.create_account(store, f"p{i}", "labeler") for i in range(3)}) == 3


@pytest.mark.parametrize("name", ["", "A", "a b", "-x", "a" * 41, "a\0", "é", "../x"])
def test_bad_names_are_refused(store, name):
    with pytest.raises(UserError, match="account name"):
        auth.create_account(store, name, "labeler")


def test_unknown_role_and_taken_name(store, kaya):
    with pytest.raises(UserError, match="role 'boss' is unknown"):
        auth.create_account(store, "x", "boss")
    with pytest.raises(UserError, match="exists"):
        auth.create_account(store, "kaya", "lead")
    with pytest.raises(UserError, match="a person's"):
        auth.create_simulated(store, "kaya", "labeler")


def test_a_closed_account_ends_at_once(store, kaya):
    auth.close_account(store, "kaya")
    with pytest.raises(DeniedError, match="ended"):
        next_task(store, kaya, "write")
    with pytest.raises(DeniedError, match="wrong"):
        auth.sign_in(store, "kaya", PASSWORD)


def test_reset_ends_sessions_and_gives_a_new_password(store, kaya):
    fresh = auth.reset_password(store, "kaya")
    with pytest.raises(DeniedError, match="ended"):
        auth.current(store, kaya)
    assert auth.sign_in(store, "kaya", fresh).must_change


def test_attempts_are_limited_by_account_and_come_back(store, clock, kaya):
    for _ in range(auth.MAX_ATTEMPTS):
        with pytest.raises(DeniedError, match="name or password is wrong"):
            auth.sign_in(store, "kaya", "guess")
    with pytest.raises(DeniedError, match=r"too many attempts; try again after 10:15 UTC"):
        auth.sign_in(store, "kaya", PASSWORD)
    auth.create_account(store, "other", "labeler")
    with pytest.raises(DeniedError, match="name or password is wrong"):
        auth.sign_in(store, "other", "guess")  # others are not locked out
    clock.move(minutes=15)
    assert auth.sign_in(store, "kaya", PASSWORD).name == "kaya"


def test_unknown_and_simulated_names_answer_like_known_ones(store, person):
    person("sim-a")
    for name in ("nobody", "sim-a", "x" * 5000, "a\0b", "\ud800"):
        with pytest.raises(DeniedError, match="name or password is wrong"):
            auth.sign_in(store, name, "guess")
    for _ in range(auth.MAX_ATTEMPTS - 1):
        with pytest.raises(DeniedError, match="wrong"):
            auth.sign_in(store, "nobody", "guess")
    with pytest.raises(DeniedError, match="too many"):
        auth.sign_in(store, "nobody", "guess")


def test_attempts_at_the_same_moment_all_count(store, kaya):
    said: list[str] = []

    def guess() -> None:
        try:
            auth.sign_in(store, "kaya", "guess")
        except DeniedError as error:
            said.append(str(error))

    threads = [threading.Thread(target=guess) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("wrong" in each for each in said) == auth.MAX_ATTEMPTS
    assert sum("too many" in each for each in said) == 12 - auth.MAX_ATTEMPTS


def test_roles_are_checked_in_the_services(store, person, tasks, kaya):
    tasks(1)
    engineer = person("eng", "engineer")
    labeler = person("lab", "labeler")
    task = NewTask("x", "demo", (Message.of("user", "Hi"),), "test")
    for refused in (
        lambda: next_task(store, engineer, "write"),
        lambda: submissions.submit_demonstration(store, engineer, "t", "text", "k"),
        lambda: submissions.submit_comparison(store, engineer, "t", Verdict((1, 2), None), "k"),
        lambda: drafts.save_draft(store, engineer, "t", 1, {}),
        lambda: submissions.skip(store, engineer, "t", "r"),
        lambda: guidelines.acknowledge(store, engineer, 1),
        lambda: add_tasks(store, labeler, [task]),
        lambda: guidelines.publish(store, labeler, "1 New"),
    ):
        with pytest.raises(DeniedError, match="this is for"):
            refused()
    guidelines.acknowledge(store, kaya, 1)
    with pytest.raises(DeniedError, match="only simulated accounts"):
        take_task(store, kaya, "t0")
    with pytest.raises(DeniedError, match="not a simulated account"):
        auth.act_as(store, "kaya")


def test_a_forged_account_gains_nothing(store, person, kaya):
    guidelines.acknowledge(store, kaya, 1)
    forged = dataclasses.replace(kaya, role="lead", simulated=True, name="lead")
    with pytest.raises(DeniedError, match="this is for: lead"):
        guidelines.publish(store, forged, "1 Mine")
    with pytest.raises(DeniedError, match="only simulated accounts"):
        take_task(store, forged, "t0")
    with pytest.raises(DeniedError, match="ended"):
        auth.current(store, dataclasses.replace(kaya, user_id=999))
    with pytest.raises(DeniedError, match="ended"):
        auth.current(store, dataclasses.replace(kaya, session_epoch=7))


def test_a_new_version_must_be_read_before_work(store, person, lead, tasks):
    tasks(2)
    worker = person("w")
    work = next_task(store, worker, "write")
    assert work.instruction_version == 1
    assert guidelines.publish(store, lead, "1 Two") == 2
    assert guidelines.publish(store, lead, "1 Two") == 2
    assert not guidelines.has_read_newest(store, worker)
    with pytest.raises(UnreadError, match="v2 are new"):
        next_task(store, worker, "write")
    submissions.submit_demonstration(store, worker, work.token, "Done under v1.", "k1")
    with pytest.raises(UserError, match="no instructions v3"):
        guidelines.acknowledge(store, worker, 3)
    guidelines.acknowledge(store, worker, 2)
    assert next_task(store, worker, "write").instruction_version == 2
