"""Signing in at a team's own service, in a real browser: an OpenID Connect issuer of the tests'."""

import base64
import contextlib
import hashlib
import http.server
import json
import secrets
import threading
import time
import urllib.parse
from collections.abc import Iterator

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from sqlalchemy import select

from labeling_app import auth, guidelines, invitations, sessions
from labeling_app.app_settings import OIDC_SECRET_VARIABLE, AppSettings, Oidc
from labeling_app.launch import start_app
from labeling_app.schema import User, WebSession
from labeling_app.store import open_store
from tests.labeling_app import browser

CLIENT, SECRET = "flywheel", "a secret of the tests' own"


class Issuer:
    """Vouches for `person` without asking: its claims, or None for nobody."""

    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
        self.person: dict[str, str] | None = None
        self.codes: dict[str, dict[str, str]] = {}
        self.url = ""

    def discovery(self) -> dict:
        names = {"authorization": "authorize", "token": "token"}
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/jwks",
            **{f"{name}_endpoint": f"{self.url}/{path}" for name, path in names.items()},
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
        }

    def authorize(self, asked: dict[str, str]) -> str:
        code = secrets.token_hex(16)
        self.codes[code] = asked | {"person": json.dumps(self.person)}
        answer = urllib.parse.urlencode({"code": code, "state": asked["state"]})
        return f"{asked['redirect_uri']}?{answer}"

    def token(self, form: dict[str, str], basic: str) -> dict | None:
        asked = self.codes.pop(form.get("code", ""), None)
        given = base64.b64decode(basic.removeprefix("Basic ")).decode()
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(verifier).rstrip(b"=").decode()
        client = tuple(urllib.parse.unquote_plus(part) for part in given.split(":"))
        if not asked or client != (CLIENT, SECRET) or asked["code_challenge"] != challenge:
            return None
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": CLIENT, "iat": now, "exp": now + 300,
            "nonce": asked["nonce"], **json.loads(asked["person"]),
        }  # fmt: skip
        signed = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.key)
        return {"access_token": "x", "token_type": "Bearer", "id_token": signed, "expires_in": 300}


@contextlib.contextmanager
def serve(issuer: Issuer) -> Iterator[Issuer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path == "/authorize":
                self.send_response(302)
                self.send_header("Location", issuer.authorize(dict(urllib.parse.parse_qsl(query))))
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif path == "/jwks":
                self._send(200, {"keys": [issuer.key.as_dict(private=False)]})
            else:
                self._send(200, issuer.discovery())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = dict(urllib.parse.parse_qsl(body))
            said = issuer.token(form, self.headers.get("Authorization", ""))
            self._send(200 if said else 400, said or {"error": "invalid_grant"})

        def _send(self, status: int, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(data)

        def log_message(self, *_args: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
    thread.start()
    issuer.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield issuer
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class OidcApp(browser.RunningApp):
    """Its own address is part of its settings, so the port is chosen first."""

    def __init__(self, store: str, issuer: Issuer) -> None:
        self.port = browser.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        oidc = Oidc(metadata_url=f"{issuer.url}/discovery", client_id=CLIENT, address=self.url)
        self.settings = AppSettings(store=store, oidc=oidc)
        self.start()


@pytest.fixture
def now_store(store):
    """The same store by the real clock, which the app goes by."""
    opened = open_store(store.url)
    yield opened
    opened.close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serve(Issuer()) as found:
        yield found


@pytest.fixture
def app(now_store, issuer, monkeypatch) -> Iterator[OidcApp]:
    monkeypatch.setenv(OIDC_SECRET_VARIABLE, SECRET)
    running = OidcApp(now_store.url, issuer)
    yield running
    running.stop()


def people(store) -> list[tuple[str, str, str]]:
    with store.read() as session:
        found = session.scalars(select(User).where(User.simulated.is_(False)).order_by(User.id))
        return [(user.name, user.issuer, user.subject) for user in found]


def test_a_team_signs_in_at_its_own_service(now_store, lead, issuer, app):
    store, link = now_store, invitations.invite(now_store, lead, "labeler")
    kaya = {"sub": "u-1", "email": "Kaya@team.test", "name": "Kaya <b>"}
    with browser.chromium() as chromium:

        def visit(path: str, person: dict[str, str]):
            """A new browser, at the button Sign in, in the hands of that person."""
            issuer.person = person
            page = chromium.new_context().new_page()
            page.set_default_timeout(30_000)
            page.goto(app.url + path)
            page.get_by_role("button", name="Sign in").click()
            return page

        stranger = visit("/", {"sub": "u-9", "email": "eve@team.test"})
        stranger.get_by_text("You have no account here yet; ask a lead").wait_for()
        assert people(store) == []

        first = visit(f"/invitation?token={link}", kaya)
        first.get_by_role("heading", name="Labeling instructions").wait_for()
        assert people(store) == [("kaya", issuer.url, "u-1")]
        assert first.evaluate("document.cookie").find("invitation") < 0
        first.get_by_role("button", name="I have read these").click()
        first.get_by_text("Nothing for you now").wait_for()

        again = visit("/", kaya)  # known by the issuer's word alone
        again.get_by_text("Nothing for you now").wait_for()
        assert people(store) == [("kaya", issuer.url, "u-1")]

        # A used invitation makes nobody an account; a second Kaya gets a name of their own.
        eve = visit(f"/invitation?token={link}", {"sub": "u-9", "email": "eve@team.test"})
        eve.get_by_text("This invitation was used").wait_for()
        more = invitations.invite(store, lead, "labeler")
        visit(
            f"/invitation?token={more}", {"sub": "u-2", "preferred_username": "KAYA"}
        ).get_by_role("heading", name="Labeling instructions").wait_for()
        assert people(store)[1:] == [("kaya-2", issuer.url, "u-2")]

        auth.close_account(store, "kaya")
        again.get_by_role("link", name="Progress").click()
        again.get_by_text("session has ended").wait_for()
        closed = visit("/", kaya)
        closed.get_by_text("Your account is closed").wait_for()
        assert people(store)[0][0] == "kaya"


@pytest.mark.long
def test_opening_pages_again_makes_no_more_sessions(now_store, lead, issuer, app):
    link = invitations.invite(now_store, lead, "engineer")
    issuer.person = {"sub": "u-1", "email": "kaya@team.test"}
    with browser.chromium() as chromium:
        page = chromium.new_context().new_page()
        page.set_default_timeout(30_000)
        page.goto(f"{app.url}/invitation?token={link}")
        page.get_by_role("button", name="Sign in").click()
        for _ in range(3):
            page.get_by_role("heading", name="Your work").wait_for()
            page.reload()
        page.get_by_role("heading", name="Your work").wait_for()
    with now_store.read() as session:
        assert len(session.scalars(select(WebSession)).all()) == 1


def test_what_no_issuer_said_is_not_believed(now_store, lead, issuer, app):
    """Forged answers of the issuer, and cookies of somebody's own making."""
    link = invitations.invite(now_store, lead, "lead")
    issuer.person = {"sub": "u-1", "email": "kaya@team.test"}
    with httpx.Client(base_url=app.url, timeout=30) as at:
        for query in ("", "?code=x", "?code=x&state=y", "?error=access_denied&state=y"):
            assert at.get(f"/oauth2callback{query}").status_code < 500
        asked = at.get("/auth/login").headers.get("location", "")
        state = dict(urllib.parse.parse_qsl(asked.partition("?")[2])).get("state", "")
        at.get("/oauth2callback", params={"code": "made up", "state": state})
        assert "_streamlit_user" not in at.cookies
        for cookie in ("_streamlit_user", "flywheel_session"):
            at.cookies.set(cookie, "2|1:0|10:1|15:_streamlit_user|4:e30=|" + "0" * 64)
            assert at.get("/").status_code == 200
    assert people(now_store) == []
    assert invitations.look_up(now_store, link).open


def test_a_local_password_does_not_make_one_the_issuers_person(now_store, lead, issuer, app):
    link = invitations.invite(now_store, lead, "labeler")
    made = invitations.accept(now_store, link, "kaya", browser.PASSWORD)
    guidelines.acknowledge(now_store, made, 1)
    with pytest.raises(auth.DeniedError, match="no account here"):
        invitations.sign_in_as(now_store, issuer.url, "kaya")
    with pytest.raises(auth.DeniedError, match="no account here"):
        invitations.sign_in_as(now_store, "", "kaya")
    assert sessions.start_session(now_store, made).id


def test_a_secret_that_is_missing_is_named_at_the_start(now_store, issuer, monkeypatch, capfd):
    monkeypatch.delenv(OIDC_SECRET_VARIABLE, raising=False)
    oidc = Oidc(metadata_url=f"{issuer.url}/discovery", client_id=CLIENT, address="http://x")
    port = browser.free_port()
    process = start_app(AppSettings(store=now_store.url, oidc=oidc), port)
    assert process.wait(60) != 0
    assert OIDC_SECRET_VARIABLE in capfd.readouterr().err
