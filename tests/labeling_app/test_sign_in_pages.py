"""The forms beside the app: invitations, new passwords, and what is no form of ours."""

import datetime as dt
import html
from collections.abc import Iterator

import pytest
from sqlalchemy import func, select

from labeling_app import auth, guidelines, invitations, projects
from labeling_app.schema import User
from labeling_app.store import Store, open_store, utc_now
from tests.labeling_app.browser import PASSWORD
from tests.labeling_app.desk import (
    Desk,
    at_once,
    behind_a_proxy,
    check_policy,
    cookies,
    desk_of,
    is_in,
    new_name,
    shown,
    sign_in,
)

FORMS = ("/sign-in", "/sign-out", "/password", "/invitation")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def served(request, empty_stores) -> Iterator[tuple[str, Store]]:
    with behind_a_proxy(open_store(empty_stores(request.param))) as found:
        yield found


@pytest.fixture
def desk(served) -> Iterator[Desk]:
    found = desk_of(*served)
    yield found
    found.close()


def test_a_one_time_password_leads_to_another_one_and_nowhere_else(desk):
    name = new_name()
    once = auth.create_account(desk.store, name, "lead", desk.project)
    at = desk.client()
    assert sign_in(at, name, once, next="/people").headers["location"] == "/password"
    said = shown(desk.url, cookies(at))
    assert "Choose your password" in said
    assert "People" not in said
    for fields, why in (
        ({"password": PASSWORD, "again": PASSWORD + "!"}, "not the same"),
        ({"password": "short", "again": "short"}, "10 to 200"),
        ({"password": once, "again": once}, "choose another"),
        ({}, "10 to 200"),
    ):
        refused = at.post("/password", data=fields)
        assert (refused.status_code, why in refused.text) == (400, True)
    kept = at.post("/password", data={"password": PASSWORD, "again": PASSWORD})
    assert (kept.status_code, kept.headers["location"]) == (303, "/")
    assert "Choose your password" not in shown(desk.url, cookies(at))
    assert sign_in(desk.client(), name, once).status_code == 401


def test_another_password_ends_the_other_browsers(desk):
    here, there, who = desk.client(), desk.client(), desk.account()
    for at in (here, there):
        sign_in(at, who.name)
    fields = {"password": PASSWORD + "!", "again": PASSWORD + "!"}
    assert here.post("/password", data=fields).status_code == 303
    assert (is_in(here), is_in(there)) == (True, False)
    led = there.post("/password", data={"password": "x" * 10, "again": "x" * 10})
    assert (led.status_code, led.headers["location"][:8]) == (303, "/sign-in")
    assert sign_in(there, who.name).status_code == 401


def test_an_invitation_makes_an_account_once(desk):
    token = invitations.invite(desk.store, desk.lead, "reviewer")
    at, name = desk.client(), new_name()
    page = at.get("/invitation", params={"token": token})
    assert (page.status_code, desk.project in page.text, "reviewer" in page.text) == (
        200,
        True,
        True,
    )
    good = {"token": token, "name": name, "password": PASSWORD, "again": PASSWORD}
    for bad, why in (
        ({"again": "x"}, "not the same"),
        ({"password": "short", "again": "short"}, "10 to 200"),
        ({"name": desk.account().name}, "is taken"),
        ({"name": "<b>"}, "use 1 to 40"),
        ({"name": ""}, "use 1 to 40"),
        ({"name": "person-0123456789abcdef"}, "looks like a pseudonym"),
    ):
        refused = at.post("/invitation", data=good | bad)
        assert (refused.status_code, why in refused.text, token in refused.text) == (
            400,
            True,
            True,
        )
    said = at_once(*[lambda n=n: desk.client().post("/invitation", data=good | {"name": f"{name}-{n}"}) for n in range(4)])  # fmt: skip
    assert sorted(each.status_code for each in said) == [303, 410, 410, 410]
    with desk.store.read() as session:
        assert session.scalar(select(func.count()).where(User.name.startswith(name))) == 1
    assert at.get("/invitation", params={"token": token}).status_code == 410


def test_an_invitation_that_is_none_or_over_is_said(desk):
    past = open_store(desk.store.url, lambda: utc_now() - dt.timedelta(days=8))
    over = invitations.invite(past, desk.lead, "lead")
    past.close()
    at = desk.client()
    fields = {"name": new_name(), "password": PASSWORD, "again": PASSWORD}
    for token, status in (
        (over, 410),
        ("", 404),
        ("x" * 5000, 404),
        ('"><script>', 404),
        ("\0", 404),
    ):
        for said in (
            at.get("/invitation", params={"token": token}),
            at.post("/invitation", data={**fields, "token": token}),
            at.post("/invitation", data={"join": "yes", "token": token}),
        ):
            assert (said.status_code, "<script>" in said.text) == (status, False)
    assert not at.cookies


def test_somebody_signed_in_joins_one_more_project(desk, served):
    at, who, apart = desk.client(), desk.account(), desk_of(*served)
    sign_in(at, who.name)
    token = invitations.invite(desk.store, apart.lead, "reviewer")
    page = at.get("/invitation", params={"token": token}).text
    assert f"Welcome, {who.name}" in page
    assert 'name="password"' not in page
    joined = at.post("/invitation", data={"token": token, "join": "yes"})
    assert (joined.status_code, joined.headers["location"]) == (303, "/")
    mine = projects.my_projects(desk.store, who)
    assert set(mine.values()) == {desk.project, apart.project}
    again = invitations.invite(desk.store, apart.lead, "lead")
    refused = at.post("/invitation", data={"token": again, "join": "yes"})
    assert (refused.status_code, "in this project already" in refused.text) == (400, True)
    assert invitations.look_up(desk.store, again).open
    assert at.post("/invitation", data={"token": token, "join": "yes"}).status_code == 410


@pytest.mark.parametrize("path", FORMS)
def test_a_form_that_is_too_large_or_none_is_refused(desk, path):
    at = desk.client()
    sign_in(at, desk.account().name)
    large = {"name": "x" * 20_000, "password": "x"}
    assert at.post(path, data=large).status_code == 413
    assert at.post(path, content=iter([b"name=x"])).status_code == 413  # who knows how much comes
    for more in (
        {"data": {f"field{n}": "x" for n in range(21)}},
        {"files": {"name": ("x.html", b"<script>")}},
        {"content": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}},
        {"content": b"", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": b"name=%ED%A0%80&password=%00&token=%ff&next=%0d%0aSet-Cookie:x=y&again=%00"},
        {"content": b"\xff\xfe=\xff", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"content": b"name=%ED%A0%80&password=%ED%A0%80&token=%ED%A0%80&again=%ED%A0%80",
         "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"json": {"name": "x"}},
    ):  # fmt: skip
        refused = at.post(path, **more)
        assert refused.status_code < 500
        assert "x=y" not in refused.headers.get("set-cookie", "")
        assert "<script>" not in refused.text


def test_what_people_wrote_is_shown_as_text(desk, served):
    hostile = f'<script>alert(1)</script>"><img src=x onerror=a>{{token}}{{body}} {new_name()}'[:64]
    number = projects.create_project(desk.store, hostile)
    guidelines.publish_default(desk.store, project=hostile)
    assert number
    token = invitations.invite(desk.store, auth.command_line(desk.store, hostile), "labeler")
    at = desk.client()
    sign_in(at, desk.account().name)
    for each in (at, desk.client()):
        page = each.get("/invitation", params={"token": token})
        check_policy(page)
        assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&gt;&lt;img" in page.text
        assert "{token}" in page.text
        assert page.text.count(token) == 1
    for path in ('/"><script>', "/{problem}{body}", "/&quot;"):
        page = desk.client().get("/sign-in", params={"next": path})
        check_policy(page)
        assert f'value="{html.escape(path)}"' in page.text
    page = desk.client().post(
        "/invitation",
        data={"token": token, "name": '"><script>', "password": "x" * 10, "again": "x" * 10},
    )
    assert (page.status_code, "<script>" in page.text) == (400, False)
