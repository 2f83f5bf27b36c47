"""Browser sessions, page tokens and programs' tokens: who they let in, and until when."""

import dataclasses
import datetime as dt

import pytest
from sqlalchemy import select

from labeling_app import auth, guidelines, projects, sessions
from labeling_app.auth import DeniedError
from labeling_app.schema import ApiToken, Base, WebSession
from labeling_app.tasks import NewTask, add_tasks
from pipeline.core.errors import UserError
from pipeline.core.records import Message
from tests.labeling_app.conftest import PASSWORD

FORGED = ("", "x", "0" * 64, "fw_" + "0" * 64, "a\0b", "é", "x" * 100_000)


@pytest.fixture
def kaya(store):
    """A real person, signed in."""
    who = auth.sign_in(store, "kaya", auth.create_account(store, "kaya", "lead"))
    return auth.set_password(store, who, PASSWORD)


@pytest.fixture
def other(store) -> int:
    """A second project, with instructions and a lead of its own."""
    number = projects.create_project(store, "other")
    guidelines.publish_default(store, project="other")
    auth.create_simulated(store, "stranger", "lead", "other")
    return number


def stranger(store) -> auth.Account:
    return auth.act_as(store, "stranger", "other")


def test_a_browser_is_known_by_its_token_until_it_expires(store, clock, kaya):
    made = sessions.start_session(store, kaya)
    assert made.expires == clock.now + sessions.SESSION
    assert sessions.find_session(store, made.token) == made.id
    assert sessions.account_of(store, made.id) == kaya
    clock.move(days=7, seconds=-1)
    assert sessions.find_session(store, made.token) == made.id
    clock.move(seconds=1)
    assert sessions.find_session(store, made.token) is None
    with pytest.raises(DeniedError, match="session has ended"):
        sessions.account_of(store, made.id)


def test_forged_tokens_let_nobody_in(store, kaya):
    made = sessions.start_session(store, kaya)
    with store.read() as session:
        digest = session.scalars(select(WebSession.token_sha256)).one()
    for guess in (*FORGED, digest, made.token[:-1], made.token.upper() + " "):
        assert sessions.find_session(store, guess) is None
        with pytest.raises(DeniedError, match="not one of ours"):
            sessions.account_of_page(store, guess)
        with pytest.raises(DeniedError, match=r"unknown or has ended|no API token"):
            sessions.account_of_api(store, guess, "export")
    with pytest.raises(DeniedError, match="ended"):
        sessions.account_of(store, made.id + 1)


def test_a_token_that_is_no_unicode_lets_nobody_in(store):
    assert sessions.find_session(store, "\ud800") is None
    with pytest.raises(DeniedError, match="unknown or has ended"):
        sessions.account_of_api(store, "\ud800", "export")


def test_no_token_is_kept_as_it_is(store, kaya):
    browser = sessions.start_session(store, kaya)
    program = sessions.create_api_token(store, kaya, "weekly", ("export",))
    assert len({browser.token, program.token, sessions.start_session(store, kaya).token}) == 3
    with store.read() as session:
        kept = [
            str(value)
            for table in Base.metadata.sorted_tables
            for row in session.execute(select(table))
            for value in row
        ]
    assert not any(token in text for text in kept for token in (browser.token, program.token[3:]))


def test_signing_out_ends_one_browser_and_its_pages(store, kaya):
    here, there = sessions.start_session(store, kaya), sessions.start_session(store, kaya)
    page = sessions.page_token(store, here.id, kaya.project_id)
    sessions.end_session(store, here.id)
    sessions.end_session(store, here.id)  # a double click
    sessions.end_session(store, 999)
    assert sessions.find_session(store, here.token) is None
    with pytest.raises(DeniedError, match="ended"):
        sessions.account_of_page(store, page)
    assert sessions.find_session(store, there.token) == there.id


def test_another_password_ends_every_browser(store, kaya):
    made = sessions.start_session(store, kaya)
    page = sessions.page_token(store, made.id, kaya.project_id)
    changed = auth.set_password(store, kaya, PASSWORD + "!")
    assert sessions.find_session(store, made.token) is None
    with pytest.raises(DeniedError, match="ended"):
        sessions.account_of_page(store, page)
    again = sessions.start_session(store, changed)
    assert sessions.account_of(store, again.id).name == "kaya"
    auth.reset_password(store, "kaya")
    assert sessions.find_session(store, again.token) is None
    with pytest.raises(DeniedError, match="ended"):
        sessions.account_of(store, again.id)


def test_a_session_of_an_older_account_is_none(store, kaya):
    auth.set_password(store, kaya, PASSWORD + "!")
    stale = sessions.start_session(store, kaya)
    assert sessions.find_session(store, stale.token) is None
    ahead = sessions.start_session(store, dataclasses.replace(kaya, session_epoch=99))
    assert sessions.find_session(store, ahead.token) is None


@pytest.mark.parametrize("end", [auth.close_account, auth.erase_account])
def test_a_closed_account_has_no_browsers_pages_or_programs(store, kaya, end):
    made = sessions.start_session(store, kaya)
    page = sessions.page_token(store, made.id, kaya.project_id)
    program = sessions.create_api_token(store, kaya, "weekly", ("export",))
    end(store, "kaya")
    assert sessions.find_session(store, made.token) is None
    for refused in (
        lambda: sessions.account_of(store, made.id),
        lambda: sessions.account_of_page(store, page),
    ):
        with pytest.raises(DeniedError, match="session has ended"):
            refused()
    with pytest.raises(DeniedError, match="account of this API token is closed"):
        sessions.account_of_api(store, program.token, "export")


def test_a_browser_opens_the_projects_of_its_person_only(store, kaya, other):
    made = sessions.start_session(store, kaya)
    assert sessions.account_of(store, made.id).project_id == kaya.project_id
    for project in (other, 999):
        with pytest.raises(DeniedError, match="not in this project"):
            sessions.account_of(store, made.id, project)
        with pytest.raises(DeniedError, match="not in this project"):
            sessions.account_of_page(store, sessions.page_token(store, made.id, project))
    with store.write() as session:
        auth.add_membership(session, kaya.user_id, other, "labeler", ())
    there = sessions.account_of(store, made.id, other)
    assert (there.project_id, there.role) == (other, "labeler")
    assert sessions.account_of(store, made.id).project_id == kaya.project_id  # the oldest
    projects.remove_member(store, stranger(store), "kaya")
    with pytest.raises(DeniedError, match="not in this project"):
        sessions.account_of(store, made.id, other)


def test_a_person_without_a_project_is_told_so(store, lead, kaya):
    made = sessions.start_session(store, kaya)
    projects.remove_member(store, lead, "kaya")
    with pytest.raises(DeniedError, match="in no project"):
        sessions.account_of(store, made.id)


def test_page_tokens_hold_for_their_session_and_project(store, kaya, person, other):
    mine = sessions.start_session(store, kaya)
    theirs = sessions.start_session(store, person("w"))
    page = sessions.page_token(store, mine.id, kaya.project_id)
    assert page == sessions.page_token(store, mine.id, kaya.project_id)
    assert sessions.account_of_page(store, page) == kaya
    _, project, mac = page.split(".")
    flipped = mac[:-1] + ("0" if mac[-1] != "0" else "1")
    for forged in (
        f"{theirs.id}.{project}.{mac}",
        f"{mine.id}.{other}.{mac}",
        f"{mine.id}.{project}.{flipped}",
        f"{mine.id}.{project}.{mac.upper()}A",
        f"{mine.id}.{project}.",
        f"-1.{project}.{mac}",
        f"{'9' * 40}.{project}.{mac}",
        f"{page}\n",
        f" {page}",
    ):
        with pytest.raises(DeniedError, match="not one of ours"):
            sessions.account_of_page(store, forged)


def test_page_tokens_of_another_store_are_forged(store, new_store, kaya):
    made = sessions.start_session(store, kaya)
    page = sessions.page_token(store, made.id, kaya.project_id)
    apart = new_store()
    with apart.write() as session:
        session.execute(
            Base.metadata.tables["secrets"]
            .update()
            .where(Base.metadata.tables["secrets"].c.name == "page-key")
            .values(value=b"another key")
        )
    with pytest.raises(DeniedError, match="not one of ours"):
        sessions.account_of_page(apart, page)


def test_a_one_time_password_opens_no_work(store):
    who = auth.sign_in(store, "kaya", auth.create_account(store, "kaya", "lead"))
    made = sessions.start_session(store, who)
    found = sessions.account_of(store, made.id)
    assert found.must_change
    with pytest.raises(DeniedError, match="one-time"):
        sessions.create_api_token(store, found, "weekly", ("export",))


def test_a_program_acts_for_its_maker_within_its_scopes(store, clock, kaya):
    made = sessions.create_api_token(store, kaya, "weekly", ("import", "export", "import"))
    assert made.token.startswith("fw_")
    assert sessions.account_of_api(store, made.token, "export") == kaya
    assert sessions.account_of_api(store, made.token, "import") == kaya
    with pytest.raises(DeniedError, match="for export, import, not for progress"):
        sessions.account_of_api(store, made.token, "progress")
    clock.move(days=90, seconds=-1)
    assert sessions.account_of_api(store, made.token, "export") == kaya
    clock.move(seconds=1)
    with pytest.raises(DeniedError, match="unknown or has ended"):
        sessions.account_of_api(store, made.token, "export")


def test_a_program_survives_its_makers_new_password_but_not_a_one_time_one(store, kaya):
    made = sessions.create_api_token(store, kaya, "weekly", ("import",))
    changed = auth.set_password(store, kaya, PASSWORD + "!")
    assert sessions.account_of_api(store, made.token, "import") == changed
    auth.reset_password(store, "kaya")
    found = sessions.account_of_api(store, made.token, "import")
    with pytest.raises(DeniedError, match="one-time"):
        add_tasks(store, found, [NewTask("x", "demo", (Message.of("user", "Hi"),), "test")])


def test_a_program_loses_what_its_maker_loses(store, lead, kaya):
    made = sessions.create_api_token(store, kaya, "weekly", ("import",))
    task = NewTask("x", "demo", (Message.of("user", "Hi"),), "test")
    projects.assign(store, lead, "kaya", "labeler", ())
    with pytest.raises(DeniedError, match="this is for: lead, engineer"):
        add_tasks(store, sessions.account_of_api(store, made.token, "import"), [task])
    projects.assign(store, lead, "kaya", "engineer", ())
    assert add_tasks(store, sessions.account_of_api(store, made.token, "import"), [task]) == 1
    projects.remove_member(store, lead, "kaya")
    with pytest.raises(DeniedError, match="not in this project"):
        sessions.account_of_api(store, made.token, "import")


def test_what_a_programs_token_cannot_be(store, kaya, person):
    for bad, why in (
        (("", ("export",)), "name is empty"),
        (("a\0", ("export",)), "NUL"),
        (("x" * 201, ("export",)), "201 characters"),
        (("x", ()), "can do nothing"),
        (("x", ("export", "all")), "scope 'all' is unknown; known are import"),
        (("x", ("export",), dt.timedelta(seconds=59)), "from a minute"),
        (("x", ("export",), dt.timedelta(days=-1)), "from a minute"),
        (("x", ("export",), dt.timedelta(days=3651)), "ten years"),
    ):
        with pytest.raises(UserError, match=why):
            sessions.create_api_token(store, kaya, *bad)
    for role in ("labeler", "reviewer"):
        who = person(role, role)
        for refused in (
            lambda who=who: sessions.create_api_token(store, who, "x", ("export",)),
            lambda who=who: sessions.end_api_token(store, who, 1),
            lambda who=who: sessions.api_tokens(store, who),
        ):
            with pytest.raises(DeniedError, match="this is for: lead, engineer"):
                refused()
    with store.read() as session:
        assert session.scalars(select(ApiToken)).all() == []


def test_a_program_is_ended_and_listed_by_its_own_project(store, clock, kaya, other):
    first = sessions.create_api_token(store, kaya, "first", ("export",))
    second = sessions.create_api_token(store, kaya, "second", ("progress",), dt.timedelta(days=1))
    foreign = stranger(store)
    apart = sessions.create_api_token(store, foreign, "apart", ("export",))
    assert sessions.account_of_api(store, apart.token, "export").project_id == other
    for number in (apart.id, 999):
        with pytest.raises(UserError, match=f"no API token {number} in this project"):
            sessions.end_api_token(store, kaya, number)
    assert sessions.account_of_api(store, apart.token, "export").name == "stranger"
    assert [row[1] for row in sessions.api_tokens(store, foreign)] == ["apart"]
    assert sessions.api_tokens(store, kaya) == [
        (first.id, "first", ["export"], first.expires, True),
        (second.id, "second", ["progress"], second.expires, True),
    ]
    sessions.end_api_token(store, kaya, first.id)
    sessions.end_api_token(store, kaya, first.id)
    clock.move(days=1)
    assert [row[4] for row in sessions.api_tokens(store, kaya)] == [False, False]
    with pytest.raises(DeniedError, match="unknown or has ended"):
        sessions.account_of_api(store, first.token, "export")


def test_a_program_whose_maker_is_gone_is_listed_as_ended(store, lead, kaya):
    sessions.create_api_token(store, kaya, "weekly", ("export",))
    auth.close_account(store, "kaya")
    assert [row[4] for row in sessions.api_tokens(store, lead)] == [False]
