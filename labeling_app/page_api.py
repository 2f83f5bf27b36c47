"""What the work pages ask for by themselves, without a rerun: keeping drafts, an LLM's help.

Each request shows the page's token in a header of its own, which no other site's page can send.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Generator
from typing import Any, cast

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from labeling_app import assist, submissions
from labeling_app.app_settings import ABILITIES, AppSettings
from labeling_app.assignment import LeaseLostError, shown_order_of
from labeling_app.auth import Account, DeniedError
from labeling_app.drafts import save_draft
from labeling_app.json_objects import load_object
from labeling_app.labels import give_up
from labeling_app.sessions import account_of_page
from labeling_app.store import MAX_TEXT_BYTES, Store, StoreAwayError
from labeling_app.submissions import (
    Receipt,
    Trace,
    submit_comparison,
    submit_demonstration,
)
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.records import Message

PAGE_HEADER = "X-Flywheel-Page"
MAX_BODY = 7 * MAX_TEXT_BYTES  # a megabyte of text can take six in JSON's escapes
_MAX_REV = 2**31 - 1
_SAVING, _ASKING = 8, 12  # threads at once: a slow model must not hold up what people type

Body = dict[str, Any]
Deed = Callable[[Account, Body], Body]


class PageApi:
    """Each deed takes the caller and the request's object, and returns the reply's."""

    def __init__(self, store: Store, settings: AppSettings) -> None:
        self._store, self._settings = store, settings
        self._lock, self._asking = threading.Lock(), set[int]()

    def routes(self) -> list[Route]:
        deeds: dict[str, tuple[Deed, int]] = {
            "draft": (self.save, _SAVING),
            "submit": (self.submit, _SAVING),
            "put-back": (self.put_back, _SAVING),
            "give-up": (self.keep_as_it_was, _SAVING),
            "assist": (self.ask, _ASKING),
            "assist-action": (self.act, _SAVING),
        }
        return [
            Route(f"/api/page/{name}", self._endpoint(deed, threads), methods=["POST"])
            for name, (deed, threads) in deeds.items()
        ]

    def save(self, who: Account, body: Body) -> Body:
        rev = body.get("rev")
        if type(rev) is not int or not 0 < rev <= _MAX_REV:
            raise UserError("a draft has a whole number rev")
        kept = save_draft(self._store, who, _text(body, "token"), rev, _object(body, "body"))
        saved = kept.at.isoformat(timespec="seconds")
        return {"saved": saved, "rev": kept.rev, "kept": kept.kept}

    def submit(self, who: Account, body: Body) -> Body:
        receipt = hand_in(self._store, who, body)
        return {"label": receipt.submission_id, "repeated": receipt.repeated}

    def put_back(self, who: Account, body: Body) -> Body:
        verb = _text(body, "verb")
        if verb not in ("skip", "flag"):
            raise UserError(f"verb {verb!r}; skip or flag will do")
        deed = submissions.skip if verb == "skip" else submissions.flag
        deed(self._store, who, _text(body, "token"), _text(body, "reason"))
        return {}

    def keep_as_it_was(self, who: Account, body: Body) -> Body:
        give_up(self._store, who, _text(body, "token"))
        return {}

    def ask(self, who: Account, body: Body) -> Body:
        kind = _text(body, "kind")
        if kind not in ABILITIES:
            raise UserError(f"kind {kind!r}; one of {', '.join(ABILITIES)} will do")
        text = _text(body, "text") if "text" in body else ""
        token = _text(body, "token")
        with self._one_at_a_time(who):
            able = assistants(self._settings)
            shown = assist.ask(self._store, who, token, kind, able, text)
        return {"shown": [dataclasses.asdict(each) for each in shown]}

    @contextlib.contextmanager
    def _one_at_a_time(self, who: Account) -> Generator[None]:
        """Of one person: the models are there for the others too."""
        with self._lock:
            if who.user_id in self._asking:
                raise UserError("a model is still at work on what you asked; wait for it")
            self._asking.add(who.user_id)
        try:
            yield
        finally:
            with self._lock:
                self._asking.discard(who.user_id)

    def act(self, who: Account, body: Body) -> Body:
        number, part = body.get("id"), body.get("part")
        if type(number) is not int or type(part) is not int or not 0 < number < 2**62:
            raise UserError("id and part are whole numbers")
        assist.act(self._store, who, number, part, _text(body, "action"))
        return {}

    def _endpoint(self, deed: Deed, threads: int) -> Callable[[Request], Any]:
        limiter: list[anyio.CapacityLimiter] = []  # made in the server's own event loop

        async def answer(request: Request) -> Response:
            if not limiter:
                limiter.append(anyio.CapacityLimiter(threads))
            try:
                token = request.headers.get(PAGE_HEADER, "")
                who = await anyio.to_thread.run_sync(
                    account_of_page, self._store, token, limiter=limiter[0]
                )
                body = await read_body(request)
                done = await anyio.to_thread.run_sync(deed, who, body, limiter=limiter[0])
            except UserError as error:
                return JSONResponse({"error": str(error)}, status_of(error))
            return JSONResponse(done)

        return answer


def hand_in(store: Store, who: Account, body: dict[str, Any]) -> Receipt:
    """The label that a work page sent. A ranking comes in the order on the screen; the store's is
    that of the task."""
    token, key = _text(body, "token"), _text(body, "key")
    given = _object(body, "trace")
    trace = Trace(_number(given, "active_ms"), _number(given, "pasted_chars"))
    if body.get("kind") != "compare":
        return submit_demonstration(store, who, token, _turns(body), key, trace)
    said = _object(body, "verdict")
    order = shown_order_of(store, who, token)

    def placed(name: str, empty: Any) -> tuple[Any, ...]:
        values = said.get(name)
        if not isinstance(values, list) or len(cast(list[Any], values)) != len(order):
            raise UserError(f"{name} must be a list of {len(order)}")
        row = cast(list[Any], values)
        if all(value == empty for value in row):
            return ()
        by_position = dict(zip(order, row, strict=True))
        return tuple(by_position[position] for position in sorted(by_position))

    flags = placed("flags", [])
    if any(not isinstance(each, list) for each in flags):
        raise UserError("flags must be a list of lists")
    verdict = Verdict(
        ranks=placed("ranks", None),
        confidence=said.get("confidence"),
        likert=placed("likert", None),
        flags=tuple(tuple(str(name) for name in each) for each in flags),
        degree=said.get("degree"),
        comment=_said(said, "comment"),
        not_rankable=_said(said, "not_rankable"),
    )
    return submit_comparison(store, who, token, verdict, key, trace)


def assistants(settings: AppSettings) -> tuple[Any, ...]:
    """The models that may help: those of the settings, and the served champion if its card says
    that it can."""
    champion = assist.served(settings.endpoint) if settings.endpoint else ()
    return (*settings.assistants, *champion)


def status_of(error: UserError) -> int:
    """The HTTP status that says what a client should do: 503 try again, 409 the task is gone."""
    if isinstance(error, StoreAwayError):
        return 503
    if isinstance(error, LeaseLostError):
        return 409
    return 403 if isinstance(error, DeniedError) else 400


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object sent, of a bounded size. Raises UserError."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            raise UserError(f"the request has over {MAX_BODY:,} bytes; make the text shorter")
        chunks.append(chunk)
    try:
        return load_object(b"".join(chunks))
    except UserError as error:
        raise UserError(f"the request is no JSON object: {error}") from None


def _turns(body: dict[str, Any]) -> list[Message]:
    turns: Any = body.get("turns")
    if not isinstance(turns, list):
        raise UserError("turns must be a list")
    found: list[Message] = []
    for turn in cast(list[Any], turns):
        if not isinstance(turn, dict):
            raise UserError("a turn is an object of role and text")
        row = cast(dict[str, Any], turn)
        found.append(Message.of(_text(row, "role"), _text(row, "text")))
    return found


def _object(body: dict[str, Any], key: str) -> dict[str, Any]:
    value = body.get(key)
    if not isinstance(value, dict):
        raise UserError(f"{key} must be an object")
    return cast(dict[str, Any], value)


def _number(body: dict[str, Any], key: str) -> int:
    value = body.get(key)
    return value if type(value) is int else 0


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise UserError(f"{key} must be a text")
    if key in ("token", "key", "kind", "text", "action", "verb") and not _is_storable(value):
        raise UserError(f"{key} holds what no database stores; write it anew")
    return value


def _is_storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)


def _said(body: dict[str, Any], key: str) -> str:
    """A text, or "" for none."""
    return "" if body.get(key) is None else _text(body, key)
