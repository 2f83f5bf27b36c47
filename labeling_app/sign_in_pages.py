"""The pages before and beside the app: signing in and out, a new password, an invitation.

Plain HTML forms, so that they work at once and password managers know them.
"""

import html
from collections.abc import Callable
from importlib import resources
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from labeling_app import auth, invitations, sessions
from labeling_app.app_settings import AppSettings
from labeling_app.store import Store, StoreAwayError
from pipeline.core.errors import UserError

INVITATION_COOKIE = "flywheel_invitation"
_MAX_FORM = 20_000

Form = dict[str, str]


def cookie_name(settings: AppSettings) -> str:
    return "__Host-flywheel" if settings.secure_cookies else "flywheel_session"


class SignInPages:
    """Each `on_…` answers one address: GET shows its page, POST takes its form."""

    def __init__(self, store: Store, settings: AppSettings) -> None:
        self._store, self._settings = store, settings

    def routes(self) -> list[Route]:
        addresses = {
            "/sign-in": self.on_sign_in,
            "/sign-out": self.on_sign_out,
            "/password": self.on_password,
            "/invitation": self.on_invitation,
        }
        return [Route(path, deed, methods=["GET", "POST"]) for path, deed in addresses.items()]

    async def on_sign_in(self, request: Request) -> Response:
        return await _answer(request, _sign_in_page, self._sign_in)

    async def on_sign_out(self, request: Request) -> Response:
        return await _answer(request, lambda _: RedirectResponse("/", 303), self._sign_out)

    async def on_password(self, request: Request) -> Response:
        return await _answer(request, lambda _: _password_page(), self._set_password)

    async def on_invitation(self, request: Request) -> Response:
        token = request.query_params.get("token", "")[:200]
        if self._settings.oidc is not None:
            return self._ask_the_issuer(token)
        return await _answer(request, lambda _: self._show_invitation(request, token), self._accept)

    def _show_invitation(self, request: Request, token: str) -> Response:
        who = self._who(request)
        return self._invitation_page(token, signed_in_as=who.name if who else "")

    def _who(self, request: Request) -> auth.Account | None:
        session = self._session(request)
        return sessions.account_of(self._store, session) if session is not None else None

    def _sign_in(self, request: Request, form: Form) -> Response:
        address = client_address(request, self._settings)
        name, password = form.get("name", ""), form.get("password", "")
        try:
            who = auth.sign_in(self._store, name, password, address)
        except StoreAwayError:
            raise
        except UserError as error:
            return _sign_in_page(request, str(error), 401)
        return self._signed_in(who, inner_path(form.get("next", "/")))

    def _signed_in(self, who: auth.Account, path: str) -> Response:
        started = sessions.start_session(self._store, who)
        response = RedirectResponse("/password" if who.must_change else path, 303)
        response.set_cookie(
            cookie_name(self._settings),
            started.token,
            max_age=int(sessions.SESSION.total_seconds()),
            httponly=True,
            secure=self._settings.secure_cookies,
            samesite="lax",
            path="/",
        )
        return response

    def _session(self, request: Request) -> int | None:
        token = request.cookies.get(cookie_name(self._settings), "")
        return sessions.find_session(self._store, token) if token else None

    def _sign_out(self, request: Request, _form: Form) -> Response:
        session = self._session(request)
        if session is not None:
            sessions.end_session(self._store, session)
        response = RedirectResponse("/sign-in", 303)
        response.delete_cookie(cookie_name(self._settings), path="/")
        return response

    def _set_password(self, request: Request, form: Form) -> Response:
        session = self._session(request)
        if session is None:
            return RedirectResponse("/sign-in", 303)
        if form.get("password") != form.get("again"):
            return _password_page("The two are not the same", 400)
        try:
            who = sessions.account_of(self._store, session)
            changed = auth.set_password(self._store, who, form.get("password", ""))
        except StoreAwayError:
            raise
        except UserError as error:
            return _password_page(str(error), 400)
        return self._signed_in(changed, "/")

    def _invitation_page(
        self, token: str, problem: str = "", status: int = 200, signed_in_as: str = ""
    ) -> Response:
        try:
            invited = invitations.look_up(self._store, token)
        except auth.DeniedError as error:
            return trouble(str(error), 404)
        if invited.open and signed_in_as:
            values = {
                "problem": problem,
                "token": token,
                "project": invited.project,
                "role": invited.role,
                "name": signed_in_as,
            }
            return _page("join", status, values)
        if not invited.open:
            return trouble(
                "this invitation was used or is over; sign in, or ask for a new one", 410
            )
        values = {
            "problem": problem,
            "token": token,
            "project": invited.project,
            "role": invited.role,
            "least": str(auth.MIN_PASSWORD),
        }
        return _page("invitation", status, values)

    def _accept(self, request: Request, form: Form) -> Response:
        token, password = form.get("token", ""), form.get("password", "")
        if "join" in form and (who := self._who(request)):
            try:
                invitations.accept_signed_in(self._store, token, who)
            except StoreAwayError:
                raise
            except UserError as error:
                return self._invitation_page(token, str(error), 400, who.name)
            return RedirectResponse("/", 303)
        if password != form.get("again"):
            return self._invitation_page(token, "The two passwords are not the same", 400)
        try:
            who = invitations.accept(self._store, token, form.get("name", ""), password)
        except StoreAwayError:
            raise
        except UserError as error:
            return self._invitation_page(token, str(error), 400)
        return self._signed_in(who, "/")

    def _ask_the_issuer(self, token: str) -> Response:
        """The token waits in a cookie while the sign-in service is asked who this is."""
        response = RedirectResponse("/", 303)
        response.set_cookie(
            INVITATION_COOKIE,
            token,
            max_age=900,
            httponly=True,
            secure=self._settings.secure_cookies,
            samesite="lax",
        )
        return response


def is_own_form(request: Request) -> bool:
    """Whether one of our own pages sent this: the browser says so, and no page can forge it."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        return False
    return site == "same-origin" if site is not None else origin is not None


def client_address(request: Request, settings: AppSettings) -> str:
    """The browser's network address; a proxy's word for it counts only if the proxy is ours."""
    address = request.client.host if request.client else ""
    forwarded = request.headers.get("x-forwarded-for", "")
    if address in settings.trusted_proxies and forwarded:
        return forwarded.split(",")[-1].strip()[:60]
    return address


def inner_path(path: str) -> str:
    """A path of this app: never another site (//host, /\\host), never back to signing in."""
    safe = path.startswith("/") and path[1:2] not in ("/", "\\") and path.isprintable()
    return path if safe and not path.startswith("/sign-") else "/"


def trouble(problem: str, status: int = 503) -> Response:
    return _page("trouble", status, {"problem": problem[:1].upper() + problem[1:]})


def _sign_in_page(request: Request, problem: str = "", status: int = 200) -> Response:
    values = {"problem": problem, "next": inner_path(request.query_params.get("next", "/"))}
    return _page("sign_in", status, values)


def _password_page(problem: str = "", status: int = 200) -> Response:
    return _page("password", status, {"problem": problem, "least": str(auth.MIN_PASSWORD)})


async def _answer(
    request: Request,
    show: Callable[[Request], Response],
    take: Callable[[Request, Form], Response],
) -> Response:
    """GET shows the page, POST takes its form: in a thread, for both ask the store."""
    try:
        if request.method != "POST":
            return await run_in_threadpool(show, request)
        if not is_own_form(request):
            return trouble("this form was not sent by one of our own pages", 403)
        if int(request.headers.get("content-length") or _MAX_FORM + 1) > _MAX_FORM:
            return trouble("this form is too large", 413)
        form = await request.form(max_files=0, max_fields=20)
        values = {key: value for key, value in form.items() if isinstance(value, str)}
        return await run_in_threadpool(take, request, values)
    except UserError as error:
        return trouble(str(error))


def _page(name: str, status: int, values: Form) -> Response:
    folder = resources.files("labeling_app") / "pages"
    frame = (folder / "frame.html").read_text("utf-8")
    body = (folder / f"{name}.html").read_text("utf-8")
    filled = body.format_map({key: html.escape(value) for key, value in values.items()})
    return HTMLResponse(frame.replace("{body}", filled), status, {"Cache-Control": "no-store"})
