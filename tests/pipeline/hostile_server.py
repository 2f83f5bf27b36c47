"""A web server for tests that misbehaves as tests/pipeline/hostile_answers.py says, on loopback, in
a thread. `HostileServer().routes` maps a path's beginning to what is said there; tests add their own.
"""

import asyncio
import contextlib
import functools
import ssl
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.pipeline.hostile_answers import Asked, Route, all_routes, index, page, says

_MAX_REQUEST = 1 << 20

# Self-signed for localhost and 127.0.0.1; of use to nobody.
_KEY = """
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg6lemUpzug0ucNOIm
LotaMud4EEczJgQpu5rdzcILHr6hRANCAAQKZ4Cvii9po0ob4wLjWdev3ZY+ifVj
TwJ7y1klDhHz65U3Dqx0e4+BqCfiVCQcXIFD2GaZbx6/hckVV+eTJqfl
"""
_CERTIFICATE = """
MIIBmjCCAUGgAwIBAgIUZRNiUGWbWc22glHG6iff7tysH9cwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTA5NDU1NVoYDzIxMjYxMDI4
MDk0NTU1WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQKZ4Cvii9po0ob4wLjWdev3ZY+ifVjTwJ7y1klDhHz65U3Dqx0e4+B
qCfiVCQcXIFD2GaZbx6/hckVV+eTJqflo28wbTAdBgNVHQ4EFgQUEBKoA3ZTQrCw
rQUnSGDLx9SmlPEwHwYDVR0jBBgwFoAUEBKoA3ZTQrCwrQUnSGDLx9SmlPEwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDRwAwRAIgRclcSBV+okDmIhYHG1DYIdAgBTOqlr8zErDwSvjRlLACIBsA
DeuLDrdhDAk523dB0mavFzY7Q0VQNWWfXHpqnIVM
"""


class HostileServer:
    """Listens once entered. `hits` counts requests by path; `connections` counts connections.

    `url` is the server of `routes`; `tls_url` the same behind a certificate that nobody signed;
    at `early_url` the response comes before the request; at `closing_url` the connection is
    closed as soon as it is made; at `late_url` each answer is followed by a 408 that no one asked
    for, 20 ms later on the same connection.
    """

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.hits: Counter[str] = Counter()
        self.heads: list[bytes] = []  # of the last hundred requests
        self.connections = 0
        self._ready = threading.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:

            async def listen(
                scheme: str, talk: Route | None = None, *, keep_alive: bool = False
            ) -> tuple[str, int]:
                serve = functools.partial(self._serve, talk, keep_alive)
                context = _tls() if scheme == "https" else None
                server = await asyncio.start_server(
                    serve, "127.0.0.1", 0, ssl=context, limit=_MAX_REQUEST
                )
                stack.callback(server.close)
                port = server.sockets[0].getsockname()[1]
                return f"{scheme}://127.0.0.1:{port}", port

            self.url, self.port = await listen("http")
            self.tls_url, _ = await listen("https")
            self.early_url, _ = await listen("http", says(_UNASKED, then_s=600))
            self.closing_url, _ = await listen("http", says(b""))
            self.late_url, _ = await listen("http", None, keep_alive=True)
            self.routes = {**all_routes(self.port), **self.routes}
            self.routes.setdefault("/index", page(index(self.routes)))
            self._ready.set()
            await self._stop.wait()
        for writer in list(self._writers):
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(
        self,
        talk: Route | None,
        keep_alive: bool,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            if talk is not None:
                await talk(Asked("", b""), writer)
            else:
                await self._answer(reader, writer)
            while keep_alive:
                await asyncio.sleep(0.02)
                await says(_UNASKED)(Asked("", b""), writer)
                await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode("latin-1")
        self.hits[path] += 1
        self.heads = [*self.heads[-99:], head]
        route = self._route(path)
        await route(Asked(path, head), writer)
        await writer.drain()

    def _route(self, path: str) -> Route:
        if path == "/":
            return self.routes["/index"]
        found = [beginning for beginning in self.routes if path.startswith(beginning)]
        return self.routes[max(found, key=len)] if found else self.routes["/missing"]


_UNASKED = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 7\r\n\r\nunasked"


def _tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "both.pem"
        path.write_text(_pem("PRIVATE KEY", _KEY) + _pem("CERTIFICATE", _CERTIFICATE))
        context.load_cert_chain(path)
    return context


def _pem(kind: str, body: str) -> str:
    return f"-----BEGIN {kind}-----{body}-----END {kind}-----\n"
