"""Who gets in, over HTTP against the real app: signing in and out, invitations, forged requests."""

import http.client
import re
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import delete

from labeling_app import auth, invitations, sessions
from labeling_app.app_settings import AppSettings
from labeling_app.auth import MAX_ATTEMPTS_OF_ADDRESS
from labeling_app.schema import SignInAttempt
from labeling_app.store import Store, open_store
from tests import postgres
from tests.labeling_app import browser
from tests.labeling_app.browser import PASSWORD
from tests.labeling_app.desk import (
    Desk,
    InPage,
    behind_a_proxy,
    check_policy,
    cookies,
    desk_of,
    is_in,
    shown,
    sign_in,
)

EVIL = "https://evil.test"
FORMS = ("/sign-in", "/sign-out", "/password", "/invitation")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def served(request, empty_stores) -> Iterator[tuple[str, Store]]:
    with behind_a_proxy(open_store(empty_stores(request.param))) as found:
        yield found


@pytest.fixture(scope="module")
def strict(served) -> Iterator[Desk]:
    """The same store by https alone, without a proxy."""
    with browser.running(AppSettings(store=served[1].url, secure_cookies=True)) as app:
        found = desk_of(app.url, served[1])
        yield found
        found.close()


@pytest.fixture
def desk(served) -> Iterator[Desk]:
    found = desk_of(*served)
    yield found
    found.close()


@pytest.mark.parametrize("path", ["/", "/compare", "/a%20b", "/%22%3E%3Cscript%3E", "/people"])
def test_whoever_is_signed_out_is_led_to_sign_in_and_back(desk, path):
    at = desk.client()
    led = at.get(path)
    assert (led.status_code, led.headers["location"]) == (303, f"/sign-in?next={path}")
    page = at.get(led.headers["location"]).text
    assert "<script" not in page
    target = re.search(r'name="next" value="([^"]*)"', page)[1].replace("&quot;", '"')
    target = target.replace("&gt;", ">").replace("&lt;", "<")
    there = sign_in(at, desk.account().name, next=target)
    assert (there.status_code, there.headers["location"]) == (303, path)
    assert is_in(at)


@pytest.mark.parametrize(
    "target",
    ["//evil.test", "/\\evil.test", EVIL, "javascript:alert(1)", "///evil.test", "\\\\evil.test",
     "/\t/evil.test", "/\n/evil.test", " //evil.test", "evil.test", "", "/sign-out", "/\x00/e"],
)  # fmt: skip
def test_signing_in_leads_to_no_other_site(desk, target):
    at = desk.client()
    assert 'name="next" value="/"' in at.get("/sign-in", params={"next": target}).text
    there = sign_in(at, desk.account().name, next=target)
    assert (there.status_code, there.headers["location"]) == (303, "/")


def test_a_path_that_looks_like_another_site_leads_nowhere(desk):
    connection = http.client.HTTPConnection(desk.url.removeprefix("http://"), timeout=30)
    connection.request("GET", "//evil.test/x")
    led = connection.getresponse()
    assert (led.status, led.getheader("location")[:9]) == (303, "/sign-in?")
    page = httpx.get(desk.url + led.getheader("location")).text
    assert 'name="next" value="/"' in page
    connection.close()


def test_a_wrong_password_lets_nobody_in_and_is_not_told_from_a_wrong_name(desk):
    at, name = desk.client(), desk.account().name
    refused = [sign_in(at, name, "x" * 12), sign_in(at, "nobody-here"), sign_in(at, "\0<b>", "x")]
    assert [each.status_code for each in refused] == [401] * 3
    assert len({each.text for each in refused}) == 1
    assert not at.cookies
    assert not is_in(at)


# A page that is opened is a web socket: it alone runs the app's script.
def test_a_claimed_session_is_worthless(desk):
    at, who = desk.client(), desk.account()
    sign_in(at, who.name)
    assert "Nothing for you now" in shown(desk.url, cookies(at))
    session = str(sessions.start_session(desk.store, who).id)
    for name in ("X-Flywheel-Session", "x-flywheel-session", "X-FLYWHEEL-SESSION"):
        for claimed in ([(name, session)], [(name, session)] * 2, [(name, session), ("a", "b")]):
            for cookie in ([], [("Cookie", "flywheel_session=" + "0" * 64)]):
                said = shown(desk.url, [*claimed, *cookie])
                assert "Sign in" in said
                assert "Nothing for you now" not in said
    other = desk.client()
    sign_in(other, desk.account("engineer").name)
    said = shown(desk.url, [*cookies(other), ("X-Flywheel-Session", session)])
    assert "Your work" in said
    assert desk.client(**{"X-Flywheel-Session": session}).get("/").status_code == 303


def test_the_cookie_is_for_the_server_alone(desk, strict):
    set_cookie = sign_in(desk.client(), desk.account().name).headers["set-cookie"]
    name, *flags = (part.strip().lower() for part in set_cookie.split(";"))
    assert name.startswith("flywheel_session=")
    assert set(flags) == {"httponly", "samesite=lax", "path=/", "max-age=604800"}
    at, who = strict.client(**{"X-Forwarded-For": ""}), desk.account()
    set_cookie = sign_in(at, who.name).headers["set-cookie"]
    name, *flags = (part.strip() for part in set_cookie.split(";"))
    assert name.startswith("__Host-flywheel=")
    assert {"HttpOnly", "Secure", "Path=/"} <= set(flags)
    assert not any(flag.lower().startswith("domain") for flag in flags)
    token = name.removeprefix("__Host-flywheel=")
    for key, status in (("__Host-flywheel", 200), ("flywheel_session", 303)):
        opened = httpx.get(strict.url, headers={"Cookie": f"{key}={token}", "Accept": "text/html"})
        assert opened.status_code == status


@pytest.mark.parametrize("path", FORMS)
def test_a_form_of_another_site_is_refused(desk, path):
    at, who = desk.client(), desk.account()
    sign_in(at, who.name)
    token = invitations.invite(desk.store, desk.lead, "labeler")
    fields = {"name": who.name, "password": PASSWORD + "!", "again": PASSWORD + "!", "token": token}
    port = desk.url.rsplit(":", 1)[1]
    for headers in (
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": f"{desk.url}.evil.test"},
        {"Origin": f"http://127.0.0.1:{int(port) + 1}"},
        {"Origin": f"{EVIL}@127.0.0.1:{port}"},
        {"Origin": EVIL, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": ""},
        {},
    ):
        given = [*headers.items(), *cookies(at)]
        refused = httpx.post(desk.url + path, data=fields, headers=given)
        assert (headers, refused.status_code) == (headers, 403)
        assert "set-cookie" not in refused.headers
    assert is_in(at)
    assert invitations.look_up(desk.store, token).open
    assert auth.sign_in(desk.store, who.name, PASSWORD)


def test_signing_out_is_for_good_and_only_by_a_form(desk):
    at, who = desk.client(), desk.account()
    sign_in(at, who.name)
    kept = cookies(at)
    assert at.get("/sign-out").status_code == 303
    assert is_in(at)
    out = at.post("/sign-out")
    assert (out.status_code, out.headers["location"]) == (303, "/sign-in")
    assert not is_in(at)
    assert httpx.get(desk.url, headers=[*kept, ("Accept", "text/html")]).status_code == 303
    assert "Sign in" in shown(desk.url, kept)
    assert at.post("/sign-out").status_code == 303  # a double click


def test_an_address_is_slowed_down_whatever_it_says_of_itself(desk, strict):
    at = desk.client()
    mine = at.headers["X-Forwarded-For"]
    for number in range(MAX_ATTEMPTS_OF_ADDRESS):
        at.headers["X-Forwarded-For"] = f"6.6.6.{number}, {mine}"  # the proxy's own word is last
        assert "too many" not in sign_in(at, "!", "x").text
    refused = sign_in(at, desk.account().name)
    assert (refused.status_code, "too many attempts" in refused.text) == (401, True)
    assert sign_in(desk.client(), desk.account().name).status_code == 303
    with desk.store.write() as session:
        session.execute(delete(SignInAttempt))
    for number in range(MAX_ATTEMPTS_OF_ADDRESS):
        sign_in(strict.client(**{"X-Forwarded-For": f"6.6.7.{number}"}), "!", "x")
    refused = sign_in(strict.client(), desk.account().name)
    assert (refused.status_code, "too many attempts" in refused.text) == (401, True)
    with desk.store.write() as session:
        session.execute(delete(SignInAttempt))


def test_every_answer_tells_the_browser_to_run_nothing_of_others(desk):
    out, at = desk.client(), desk.client()
    sign_in(at, desk.account().name)
    token = invitations.invite(desk.store, desk.lead, "labeler")
    answers = [at.get(path) for path in ("/", "/compare", "/sign-in", "/password", "/nowhere")]
    answers += [out.get(f"/invitation?token={each}") for each in (token, "x")]
    answers += [
        sign_in(out, "!"),
        out.post("/sign-in", headers={"Origin": EVIL}),
        at.post("/password"),
    ]
    answers += [at.get("/api/v1/progress"), at.post("/api/page/draft"), at.get("/_stcore/health")]
    answers += [out.get("/"), out.get("/_stcore/metrics")]
    for answer in answers:
        check_policy(answer)
    assert [answer.status_code for answer in answers[:4]] == [200] * 4
    assert any(InPage(answer.text).inline for answer in answers)


@pytest.mark.parametrize(
    "path",
    ["/_stcore/metrics", "/_stcore/metrics/", "/_stcore/metrics?x", "/%5fstcore/metrics", "/_stcore/agent",
     "//_stcore/metrics", "/_stcore//metrics", "/_stcore/./metrics", "/x/../_stcore/metrics",
     "/_stcore/%6detrics", "/_stcore/agent/openapi.json", "/_stcore/script-health-check",
     "/static/../_stcore/metrics", "/_stcore/METRICS", "/_stcore%2fmetrics"],
)  # fmt: skip
def test_inner_addresses_answer_nobody(desk, path):
    for method in ("GET", "POST"):
        connection = http.client.HTTPConnection(desk.url.removeprefix("http://"), timeout=30)
        connection.request(method, path, headers={"Accept": "*/*"})
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        assert answer.status in (303, 400, 403, 404, 405) or b"<!doctype html" in said.lower()
        assert b"# TYPE" not in said


def test_another_host_name_that_leads_here_is_refused(desk):
    name, port = desk.account().name, desk.url.rsplit(":", 1)[1]
    for host in (f"evil.test:{port}", f"127.0.0.1.evil.test:{port}"):
        refused = sign_in(desk.client(Host=host, Origin=f"http://{host}"), name)
        assert "set-cookie" not in refused.headers
        assert refused.status_code in (400, 403)


def test_a_database_that_is_away_is_said_in_a_page_and_comes_back(served):
    if postgres.binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres.server() as server:
        store = open_store(server.url)
        with browser.running(AppSettings(store=store.url)) as app:
            desk = desk_of(app.url, store)
            at, name = desk.client(), desk.account().name
            sign_in(at, name)
            server.stop()
            away = [at.get("/"), sign_in(desk.client(), name), at.post("/sign-out")]
            assert [each.status_code for each in away] == [503] * 3
            assert all("does not answer" in each.text for each in away)
            server.start()
            assert is_in(at)
            assert sign_in(desk.client(), name).status_code == 303
            desk.close()
        store.close()
    for each in away:
        check_policy(each)
