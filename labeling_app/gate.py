"""The gate before the app: who a browser is, and the headers that keep a page to itself.

It takes away any identity that a client claims and puts in that of the session cookie.
"""

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

import anyio.to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse

from labeling_app import sessions
from labeling_app.app_settings import AppSettings
from labeling_app.sign_in_pages import cookie_name, trouble
from labeling_app.store import Store
from pipeline.core.errors import UserError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SESSION_HEADER = "X-Flywheel-Session"
# Before Streamlit's pages: what is asked of everybody; a person signs in first, then the rest.
_OPEN = ("/sign-in", "/invitation", "/static/", "/_stcore/", "/api/", "/auth/", "/oauth2callback")
_CLOSED = ("/_stcore/metrics", "/_stcore/agent", "/_stcore/script-health-check")


class Gate:
    """ASGI middleware. `inline_scripts`: digests of the page's own inline scripts."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        store: Store,
        settings: AppSettings,
        inline_scripts: tuple[str, ...] = (),
        hosts: tuple[str, ...] = (),
    ) -> None:
        self._hosts = tuple(name.lower() for name in hosts)
        self._app, self._store, self._settings = app, store, settings
        self._policy = content_policy(inline_scripts).encode()
        self._limiter: anyio.CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        path = str(scope["path"])
        if path.startswith(_CLOSED):
            await PlainTextResponse("not here", 404)(scope, receive, self._hardened(send))
            return
        if scope["type"] == "http" and not self._is_our_name(scope):
            await PlainTextResponse("not our name", 400)(scope, receive, self._hardened(send))
            return
        claimed = SESSION_HEADER.lower().encode()
        headers = [pair for pair in scope["headers"] if pair[0].lower() != claimed]
        opens_page = scope["type"] == "http" and not path.startswith(_OPEN)
        if scope["type"] == "websocket" or (opens_page and _is_document(scope)):
            try:
                session = await self._session(scope)
            except UserError as error:  # the database is away
                if scope["type"] == "websocket":
                    session = None
                else:
                    await trouble(str(error))(scope, receive, self._hardened(send))
                    return
            if session is None and opens_page and self._settings.oidc is None:
                target = f"/sign-in?next={quote(path)}"
                await RedirectResponse(target, 303)(scope, receive, self._hardened(send))
                return
            if session is not None:
                headers.append((claimed, str(session).encode()))
        await self._app({**scope, "headers": headers}, receive, self._hardened(send))

    def _is_our_name(self, scope: Scope) -> bool:
        """Another host name that leads here is an attack (DNS rebinding)."""
        if not self._hosts:
            return True
        host = Headers(scope=scope).get("host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        return name.lower().rstrip(".") in self._hosts

    async def _session(self, scope: Scope) -> int | None:
        token = Request({**scope, "type": "http"}).cookies.get(cookie_name(self._settings))
        if not token or len(token) > 200:
            return None
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(8)
        return await anyio.to_thread.run_sync(
            sessions.find_session, self._store, token, limiter=self._limiter
        )

    def _hardened(self, send: Send) -> Send:
        async def add_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                headers.setdefault("Content-Security-Policy", self._policy.decode())
                headers["X-Content-Type-Options"] = "nosniff"
                headers["X-Frame-Options"] = "DENY"
                headers["Referrer-Policy"] = "same-origin"
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
            await send(message)

        return add_headers


def content_policy(inline_scripts: tuple[str, ...]) -> str:
    """Nothing is loaded from elsewhere, whatever a label or a model's answer says."""
    digests = "".join(f" 'sha256-{digest}'" for digest in inline_scripts)
    return (
        f"default-src 'self'; script-src 'self' blob:{digests}; style-src 'self' 'unsafe-inline';"
        " img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none';"
        " frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
    )


def inline_digests(page: str) -> tuple[str, ...]:
    """Base64 SHA-256 of a page's inline scripts, as a Content-Security-Policy names them."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    return tuple(
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    )


def _is_document(scope: Scope) -> bool:
    """A person opening a page, not a page loading its parts."""
    headers = Headers(scope=scope)
    return headers.get("sec-fetch-dest", "document") == "document" and "text/html" in headers.get(
        "accept", "text/html"
    )
