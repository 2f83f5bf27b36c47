"""One HTTP GET within limits: bytes, seconds, headers, and the networks that may be reached.

Redirects are not followed here: the crawl records each hop and asks robots and scope anew.
"""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import socket
import time
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from pipeline.archived_response import charset_of, mime_type
from pipeline.encoding import BodyTooLargeError, decode_body
from pipeline.fetch_failures import (
    BrokenOffError,
    FetchError,
    UnaskedResponseError,
    classify_failure,
)
from pipeline.resolver import (
    AddressInfo,
    CachingResolver,
    Network,
    ReachableAddresses,
    SocketFactory,
    any_socket,
    guarded_socket,
    may_reach,
)
from pipeline.warc_writer import Exchange
from pipeline.wire_heads import request_head, response_head

__all__ = ["Conditions", "FetchError", "Fetcher", "Page"]

ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.5"
ACCEPT_ENCODING = "gzip, deflate, br, zstd"
_MAX_HEADER_BYTES = 32 << 10  # for one line; policies of 20 kB are met with
_MAX_HEADERS = 256
_CONNECT_S = 10.0  # for one address, TLS included


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What an earlier response said of itself: unchanged since, and the answer is a bare 304."""

    etag: str | None = None
    last_modified: str | None = None

    def headers(self) -> dict[str, str]:
        """RFC 9110 §13.1. Control characters would end the header: such a value is left out."""
        found = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in found.items() if value and value.isprintable()}


@dataclasses.dataclass(frozen=True)
class Page:
    """A response. `payload` is free of transfer and content coding; header names are in lower
    case; of a repeated header the last counts, but lists (Link, X-Robots-Tag …) are joined.

    `elapsed_s`: from the call to the last byte, with DNS and connecting. `truncated`: cut off at
    `cut_at`, or the coding broke off.
    """

    exchange: Exchange
    status: int
    headers: dict[str, str]
    payload: bytes
    elapsed_s: float = 0.0
    truncated: bool = False

    @property
    def ip(self) -> str | None:
        """The server's address; None behind a proxy."""
        return self.exchange.ip

    @property
    def content_type(self) -> str:
        return mime_type(self.headers.get("content-type", ""))

    @property
    def charset(self) -> str | None:
        return charset_of(self.headers.get("content-type", ""))


class _Request(aiohttp.ClientRequest):
    """Refuses a connection on which something came before the question."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        if conn.protocol is None or conn.protocol.should_close:
            raise UnaskedResponseError("a response before the request")
        return await super().send(conn)


class _Response(aiohttp.ClientResponse):
    """Remembers its peer, since the connection is handed back as soon as the body is in; and
    closes it after a 101, behind which nothing is HTTP any more."""

    peer: str | None = None

    async def start(self, connection: Connection) -> Self:
        if connection.transport is not None:
            name = connection.transport.get_extra_info("peername")
            self.peer = str(name[0]) if name else None
        protocol = connection.protocol
        try:
            await super().start(connection)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            raise BrokenOffError(str(error)) from error
        if self.status < 200 and protocol is not None:
            protocol.close()
        return self


class Fetcher:
    """An aiohttp session under our rules; use it as an async context manager."""

    def __init__(
        self,
        *,
        user_agent: str,
        max_bytes: int,
        timeout_s: float,
        allow_private: bool,
        num_connections: int,
        resolver: AbstractResolver | None = None,
        make_socket: SocketFactory | None = None,
        allow_networks: Sequence[Network] = (),
        connections_per_host: int = 1,
        keepalive_s: float = 15.0,
        min_bytes_per_s: float = 100.0,
        grace_s: float = 10.0,
        accept_types: tuple[str, ...] = (),
        proxy: str | None = None,
        verify_tls: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout_s` is for a whole response, the wait for one of the host's connections
        included; a body slower than `min_bytes_per_s`, `grace_s` after its head, is given up.

        `max_bytes` bounds the body as it comes and as it is decoded; while one is fetched, both
        may be in memory. `accept_types` are prefixes of the media types of a 200 that is read
        (none: all). `keepalive_s` = 0 closes each connection. With `proxy` (an http URL) names
        are the proxy's to resolve and addresses the proxy's to refuse. `resolver` and
        `make_socket` stand in for the system's in tests; pass a CachingResolver to share it.
        """
        self.user_agent, self.max_bytes, self.timeout_s = user_agent, max_bytes, timeout_s
        self.num_connections, self.connections_per_host = num_connections, connections_per_host
        self.keepalive_s, self.verify_tls, self.proxy = keepalive_s, verify_tls, proxy
        self.min_bytes_per_s, self.grace_s = min_bytes_per_s, grace_s
        self.accept_types, self.clock = accept_types, clock
        self.resolver = resolver
        self.allow_all = allow_private or proxy is not None
        self.allow_networks = tuple(allow_networks)
        self.make_socket = make_socket or self._make_socket

    def _make_socket(self, info: AddressInfo) -> socket.socket:
        return any_socket(info) if self.allow_all else guarded_socket(info, self.allow_networks)

    def _may_reach(self, address: str) -> bool:
        return self.allow_all or may_reach(address, self.allow_networks)

    async def __aenter__(self) -> Self:
        shared = self.resolver if isinstance(self.resolver, CachingResolver) else None
        self._own_names = None if shared else CachingResolver(self.resolver)
        names = shared or self._own_names
        assert names is not None
        connector = aiohttp.TCPConnector(
            limit=self.num_connections,
            limit_per_host=self.connections_per_host,
            force_close=self.keepalive_s == 0,
            keepalive_timeout=self.keepalive_s or None,
            ssl=self.verify_tls,
            resolver=ReachableAddresses(names, self._may_reach),
            use_dns_cache=False,
            socket_factory=self.make_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            request_class=_Request,
            response_class=_Response,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=self.timeout_s, sock_connect=_CONNECT_S),
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
            proxy=self.proxy,
            headers={
                "User-Agent": self.user_agent,
                "Accept": ACCEPT,
                "Accept-Encoding": ACCEPT_ENCODING,
            },
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()
        if self._own_names is not None:
            await self._own_names.close()

    async def get(
        self,
        url: str,
        *,
        cut_at: int | None = None,
        conditions: Conditions | None = None,
        accept_types: tuple[str, ...] | None = None,
        timeout_s: float | None = None,
    ) -> Page:
        """The response to one GET. Raises FetchError.

        A body above `max_bytes` is an error; with `cut_at` it is cut off there instead, as it
        comes and as it is decoded. `accept_types` (() takes all) and `timeout_s` stand for the
        fetcher's.
        """
        types = self.accept_types if accept_types is None else accept_types
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._get(url, cut_at, conditions, types)
        except BodyTooLargeError as error:
            raise FetchError("too large", str(error), transient=False) from None
        except TimeoutError:
            raise FetchError("timeout", f"over {limit_s} s", transient=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise classify_failure(error) from error

    async def _get(
        self, url: str, cut_at: int | None, conditions: Conditions | None, types: tuple[str, ...]
    ) -> Page:
        started = self.clock()
        asked = conditions.headers() if conditions else None
        request = self._session.get(URL(url, encoded=True), allow_redirects=False, headers=asked)
        async with request as response:
            fetched_at = dt.datetime.now(dt.UTC)
            if response.status < 200:
                raise FetchError("protocol", f"status {response.status}", transient=False)
            head, headers = response_head(response)
            _check_type(response.status, headers, types)
            if cut_at is None and not response.content.at_eof():  # a 304 has none
                self._check_length(headers)
            body, is_cut = await self._read(response, cut_at)
            elapsed_s = self.clock() - started
        decoded = decode_body(
            body,
            content_encoding=headers.get("content-encoding", ""),
            max_bytes=self.max_bytes if cut_at is None else cut_at,
            cut=cut_at is not None,
        )
        assert isinstance(response, _Response)
        ip = None if self.proxy else response.peer
        exchange = Exchange(url, fetched_at, ip, request_head(response), head, body)
        truncated = is_cut or decoded.truncated
        return Page(exchange, response.status, headers, decoded.body, elapsed_s, truncated)

    def _check_length(self, headers: dict[str, str]) -> None:
        """A body that says itself that it is too large need not be read."""
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.max_bytes:
            raise BodyTooLargeError(f"body of {length[:20]} bytes, more than {self.max_bytes:,}")

    async def _read(
        self, response: aiohttp.ClientResponse, cut_at: int | None
    ) -> tuple[bytes, bool]:
        """The body free of chunking; and whether it was cut off."""
        limit = self.max_bytes if cut_at is None else cut_at
        content, started = response.content, self.clock()
        first = content.read_nowait()
        if content.at_eof() and len(first) <= limit:
            return first, False
        body = bytearray(first)
        with _told_of_the_end(response):
            return await self._read_on(content, body, limit, cut_at is not None, started)

    async def _read_on(
        self, content: aiohttp.StreamReader, body: bytearray, limit: int, cut: bool, started: float
    ) -> tuple[bytes, bool]:
        while len(body) <= limit:
            block = await content.readany()
            if not block:
                return bytes(body), False
            body += block
            spent_s = self.clock() - started
            if spent_s > self.grace_s and len(body) < self.min_bytes_per_s * spent_s:
                detail = f"{len(body):,} bytes in {spent_s:.0f} s"
                raise FetchError("too slow", detail, transient=False)
        if not cut:
            raise BodyTooLargeError(f"body of more than {limit:,} bytes")
        return bytes(body[:limit]), True


@contextlib.contextmanager
def _told_of_the_end(response: aiohttp.ClientResponse) -> Generator[None]:
    """aiohttp 3.14 closes a connection on which chunks turn to garbage, and leaves the body's
    reader waiting for its timeout: here it is told."""
    content, connection = response.content, response.connection
    protocol = connection.protocol if connection is not None else None
    closed = protocol.closed if protocol is not None else None

    def tell(_: object) -> None:
        if protocol is not None and not content.is_eof() and content.exception() is None:
            cause = protocol.exception() or HttpProcessingError(message="connection closed")
            content.set_exception(aiohttp.ClientPayloadError(str(cause)), cause)

    if closed is not None:
        closed.remove_done_callback(_seen)
        closed.add_done_callback(_seen)
        closed.add_done_callback(tell)
    try:
        yield
    finally:
        if closed is not None:
            closed.remove_done_callback(tell)


def _seen(closed: asyncio.Future[None]) -> None:
    """The later end of an idle connection is no news; asyncio would log it as never retrieved."""
    if not closed.cancelled():
        closed.exception()


def _check_type(status: int, headers: dict[str, str], types: tuple[str, ...]) -> None:
    found = mime_type(headers.get("content-type", "")) if types and status == 200 else ""
    if found and not found.startswith(types):
        raise FetchError("content type", found, transient=False)
