"""`flywheel serve`: the champion behind an OpenAI-compatible endpoint.

A client that goes away frees the model at the next token; every error has OpenAI's shape.
"""

import asyncio
import contextlib
import errno
import logging
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from finetune.registry import Registry
from infra.engine import (
    ALIAS,
    BusyError,
    Engine,
    Piece,
    PromptTooLongError,
    Reply,
    UnknownModelError,
)
from infra.openai_api import ApiError, ChatRequest, Envelope, StreamOptions, refusal
from labeling_app.app_settings import Ability
from pipeline.core.config import RunConfig, Section, operational
from pipeline.core.errors import UserError

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1_000_000
_RETRY_AFTER_S = 1
_SHUTDOWN_S = 5
_CLIENT_IS_GONE = 499


class ServeConfig(Section):
    """[serve]"""

    host: str = operational("127.0.0.1", description="address to listen at")
    port: int = operational(8011, ge=0, le=65_535, description="0 takes a free one")
    max_tokens: int = Field(128, ge=1, description="length of an answer, unless the request says")
    queue_limit: int = operational(16, ge=1, description="requests at once; more are told 503")
    abilities: tuple[Ability, ...] = operational(
        (), description="what the model's card says that it can do for labelers: draft, critique, …"
    )


def _check_json(request: Request) -> None:
    """Raises ApiError (415). A browser sends no other site's JSON without asking us first (CORS),
    and we do not answer that: so no web page makes this model work."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"content-type is {kind[:80]!r}; send application/json")


async def _read_body(request: Request) -> bytes:
    """Raises ApiError (413) for more than MAX_BODY_BYTES; uvicorn reads the rest and drops it."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"the request is over {MAX_BODY_BYTES:,} bytes; shorten it")
    return bytes(body)


class Feed:
    """A reply's pieces, written by a thread of their own: a slow reader holds up nobody else.

    Made in an event loop. After `close` the thread stops at its next token.
    """

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()  # None: the model failed
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()
        threading.Thread(target=self._write, name="reply", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    async def pieces(self) -> AsyncIterator[Piece]:
        """All pieces, some of them empty. Raises ApiError if the model failed."""
        while True:
            piece = await self._pieces.get()
            if piece is None:
                raise ApiError(500, "the model failed on this request; the server's log says how")
            yield piece
            if piece.finish_reason:
                return

    def _write(self) -> None:
        try:
            for piece in self._reply:
                if self._closed.is_set():
                    return
                self._put(piece)
        except Exception:
            log.exception("model %s failed", self._reply.model_id)
            self._put(None)
        finally:
            self._reply.close()

    def _put(self, piece: Piece | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for it
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)


class EventStream(StreamingResponse):
    """Server-sent events that end their feed however they end themselves."""

    def __init__(self, events: AsyncIterator[str], feed: Feed, headers: Mapping[str, str]) -> None:
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.close()


class Endpoints:
    """`random` draws the answers' names, and the seed of a request that brings none."""

    def __init__(
        self,
        engine: Engine,
        max_tokens: int,
        clock: Callable[[], float],
        random: random.Random,
        abilities: Sequence[str] = (),
    ) -> None:
        self.engine, self.max_tokens, self.clock, self.random = engine, max_tokens, clock, random
        self.abilities = abilities

    async def health(self) -> Response:
        return JSONResponse({"status": "ok", "model": self.engine.model_id})

    async def models(self) -> Response:
        """The champion by its own name, then by its alias."""
        identity = self.engine.model_id
        published = (self.engine.registry.folder(identity) / "config.json").stat().st_mtime
        about = {"object": "model", "created": int(published), "owned_by": "flywheel"}
        champion = {"id": identity, **about, "abilities": list(self.abilities)}
        data = [champion, {"id": ALIAS, **about}]
        return JSONResponse({"object": "list", "data": data})

    async def chat(self, request: Request) -> Response:
        _check_json(request)
        asked = ChatRequest.model_validate_json(await _read_body(request))
        if asked.stream_options is not None and not asked.stream:
            raise ApiError(400, "stream_options are for stream = true", "stream_options")
        seed = self.random.getrandbits(63) if asked.seed is None else asked.seed
        reply = await run_in_threadpool(  # a new champion may have to be loaded
            self.engine.reply,
            [message.record() for message in asked.messages],
            asked.limit(self.max_tokens),
            asked.temperature,
            seed,
            asked.stop,
            asked.model,
        )
        options = asked.stream_options or StreamOptions()
        name = f"chatcmpl-{self.random.getrandbits(96):024x}"
        envelope = Envelope(name, int(self.clock()), reply.model_id, options.include_usage)
        feed = Feed(reply)
        headers = {"x-flywheel-dropped-turns": str(reply.dropped_turns)}
        if asked.stream:
            headers["cache-control"] = "no-cache"
            return EventStream(envelope.events(feed.pieces()), feed, headers)
        return await _whole(request, feed, envelope, headers)


async def _whole(
    request: Request, feed: Feed, envelope: Envelope, headers: Mapping[str, str]
) -> Response:
    texts: list[str] = []
    try:
        async for piece in feed.pieces():
            texts.append(piece.text)
            if piece.finish_reason:
                return JSONResponse(envelope.whole("".join(texts), piece), headers=headers)
            if await request.is_disconnected():
                break
    finally:
        feed.close()
    return Response(status_code=_CLIENT_IS_GONE)


def create_app(
    engine: Engine,
    max_tokens: int = 128,
    clock: Callable[[], float] = time.time,
    draws: random.Random | None = None,
    abilities: Sequence[str] = (),
) -> FastAPI:
    """/health, /v1/models and /v1/chat/completions; `max_tokens` is for requests without."""
    endpoints = Endpoints(engine, max_tokens, clock, draws or random.SystemRandom(), abilities)
    app = FastAPI(title="Flywheel", openapi_url=None)
    app.add_api_route("/health", endpoints.health)
    app.add_api_route("/v1/models", endpoints.models)
    app.add_api_route("/v1/chat/completions", endpoints.chat, methods=["POST"])
    for kind in (
        ApiError,
        ValidationError,
        UnknownModelError,
        PromptTooLongError,
        BusyError,
        HTTPException,
        ClientDisconnect,
        Exception,
    ):
        app.add_exception_handler(kind, _answer_error)
    return app


async def _answer_error(_request: Request, error: Exception) -> Response:
    match error:
        case ApiError():
            return error.response()
        case ValidationError():
            return refusal(error).response()
        case UnknownModelError():
            return ApiError(404, str(error), "model", "model_not_found").response()
        case PromptTooLongError():
            return ApiError(400, str(error), "messages", "context_length_exceeded").response()
        case BusyError():
            wait = {"Retry-After": str(_RETRY_AFTER_S)}
            return ApiError(503, str(error), code="overloaded", headers=wait).response()
        case HTTPException():
            return ApiError(error.status_code, error.detail, headers=error.headers).response()
        case ClientDisconnect():
            return Response(status_code=_CLIENT_IS_GONE)
        case _:  # starlette raises it again after this answer, and uvicorn logs it
            return ApiError(500, "the server failed on this request; its log says how").response()


def run_serve(config: ServeConfig, run: RunConfig) -> None:
    """Serve the champion until Ctrl-C, which raises KeyboardInterrupt once all is closed.

    Raises UserError if the port is in use or there is no champion yet.
    """
    with _listen(config.host, config.port) as listener:
        engine = Engine(Registry(run.root), queue_limit=config.queue_limit)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(engine, config.max_tokens, abilities=config.abilities),
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_SHUTDOWN_S,
            )
        )
        host = f"[{config.host}]" if ":" in config.host else config.host
        port = listener.getsockname()[1]
        # The socket listens already: who connects now is answered.
        print(f"http://{host}:{port}/v1 serves model {engine.model_id}", flush=True)
        server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host, port, family)  # create_server would not say that this went wrong
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise UserError(
                f"serve.host = {host!r} is no address of this machine; 127.0.0.1 is for this"
                " machine alone, 0.0.0.0 for all who can reach it"
            ) from None
        if error.errno == errno.EACCES:
            mend = "take a serve.port of 1024 or more"
        else:
            mend = "end what uses the port, or set serve.port (or serve.host) to another"
        why = str(error.strerror).partition(" (while attempting")[0]  # it repeats the address
        raise UserError(f"cannot serve at {host}:{port} ({why}); {mend}") from None
