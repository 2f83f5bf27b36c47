"""One GET: against servers that misbehave, what is sent, and what is kept of the answer."""

import asyncio
import gzip
import io
import socket
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastwarc.stream_io import BrotliWriter, ZstdWriter

from pipeline.fetch import Conditions, FetchError, Page
from tests.pipeline.small_fetcher import CountedNames, fetcher

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def get_from(script: Script, *, cut_at: int | None = None, scheme: str = "http") -> Page:
    """GET / from a server that runs `script` for each connection."""

    async def talk() -> Page:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await script(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            async with fetcher() as session:
                return await session.get(f"{scheme}://127.0.0.1:{port}/", cut_at=cut_at)
        finally:
            server.close()
            await asyncio.sleep(0)

    return asyncio.run(talk())


def says(data: bytes, then: float = 0.0) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(then)

    return script


async def endless_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 10_000)
        await writer.drain()


async def one_byte_at_a_time(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(50_000_000))


@pytest.mark.parametrize(
    ("script", "reason", "transient"),
    [
        (endless_body, "too large", False),
        (one_byte_at_a_time, "timeout", True),
        (says(b"", then=5), "timeout", True),
        (says(b""), "connection", True),
        (says(OK + b"Content-Length: 50\r\n\r\nshort"), "incomplete", True),
        (says(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello"), "protocol", False),
        (says(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"), "incomplete", True),
        (says(b"what is this?\r\n\r\n"), "protocol", False),
        (says(OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n"), "protocol", False),
        (says(OK + b"X: y\r\n" * 100_000 + b"\r\n"), "protocol", False),
        (
            says(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB),
            "too large",
            False,
        ),
    ],
)
def test_misbehaviour_has_a_name(script: Script, reason: str, transient: bool) -> None:
    started = time.monotonic()
    with pytest.raises(FetchError) as error:
        get_from(script)
    assert (error.value.reason, error.value.transient) == (reason, transient), error.value
    assert time.monotonic() - started < 5


def test_a_server_without_tls_under_https() -> None:
    with pytest.raises(FetchError) as error:
        get_from(says(b"HTTP/1.1 400 Bad\r\n\r\n"), scheme="https")
    assert error.value.reason in ("tls", "connection", "timeout")


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"

        async def ask() -> None:
            async with fetcher() as session:
                await session.get(url)

        with pytest.raises(FetchError) as error:
            asyncio.run(ask())
    assert (error.value.reason, error.value.transient) == ("connection", True)


def test_the_exchange_is_kept_as_it_passed_over_the_wire() -> None:
    body = gzip.compress(b"<p>hello</p>")
    head = OK + b"Content-Type: Text/HTML; charset=UTF-8\r\nX-Odd:  \xe4 \r\nX-Odd: 2\r\n"
    coded = b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    page = get_from(says(head + coded + chunks))
    assert page.status == 200
    assert page.payload == b"<p>hello</p>"
    assert (page.content_type, page.charset) == ("text/html", "utf-8")
    assert page.exchange.body == body
    assert page.exchange.response_head == (
        b"HTTP/1.1 200 OK\r\nContent-Type: Text/HTML; charset=UTF-8\r\nX-Odd: \xe4\r\nX-Odd: 2\r\n"
        b"Content-Encoding: gzip\r\nX-Crawl-Transfer-Encoding: chunked\r\n\r\n"
    )
    request = page.exchange.request.decode()
    assert request.startswith("GET / HTTP/1.1\r\n")
    assert "\r\nUser-Agent: FlywheelBot/0.1 (+me@example.org)\r\n" in request
    assert request.endswith("\r\n\r\n")


def test_a_cut_instead_of_an_error() -> None:
    page = get_from(says(OK + b"Content-Length: 50000\r\n\r\n" + b"x" * 50_000), cut_at=1000)
    assert page.payload == b"x" * 1000
    assert get_from(endless_body, cut_at=1000).payload == b"x" * 1000


# -------------------------------------------------------------------------------- what is sent


class Site:
    """Answers each request on kept connections with `answer`; remembers what it read."""

    def __init__(self, answer: bytes = OK + b"Content-Length: 2\r\n\r\nok") -> None:
        self.answer = answer
        self.heads: list[bytes] = []
        self.connections = 0

    async def __aenter__(self) -> "Site":
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.server.close()
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def test_the_request_in_the_archive_is_the_one_that_was_sent() -> None:
    async def talk() -> None:
        async with Site() as site, fetcher() as session:
            plain = await session.get(f"{site.url}/a%20b?q=%C3%BC&x#frag")
            since = Conditions('W/"abc"', "Mon, 01 Jan 2024 00:00:00 GMT")
            again = await session.get(f"{site.url}/", conditions=since)
            assert [plain.exchange.request, again.exchange.request] == site.heads
            assert site.heads[0].startswith(b"GET /a%20b?q=%C3%BC&x HTTP/1.1\r\nHost: 127.0.0.1:")
            assert b"\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n" in site.heads[0]
            assert b"If-" not in site.heads[0]
            assert b'\r\nIf-None-Match: W/"abc"\r\n' in site.heads[1]
            assert b"\r\nIf-Modified-Since: Mon, 01 Jan 2024 00:00:00 GMT\r\n" in site.heads[1]

    asyncio.run(talk())


def test_unchanged_is_a_page_without_a_payload() -> None:
    page = get_from(
        says(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 99999999\r\n\r\n')
    )
    assert (page.status, page.payload, page.headers["etag"]) == (304, b"", '"a"')


def test_one_kept_connection_for_each_host() -> None:
    async def talk(**changes: Any) -> int:
        async with Site() as site, fetcher(**changes) as session:
            await asyncio.gather(*(session.get(f"{site.url}/{n}") for n in range(12)))
            await session.get(site.url + "/more")
            assert len(site.heads) == 13
            return site.connections

    assert asyncio.run(talk()) == 1
    assert asyncio.run(talk(connections_per_host=3)) == 3
    assert asyncio.run(talk(keepalive_s=0)) == 13


def test_address_and_time_are_told() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Length: 4\r\n\r\nab")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"cd")

    page = get_from(answer)
    assert (page.payload, page.ip) == (b"abcd", "127.0.0.1")
    assert page.elapsed_s >= 0.05
    assert get_from(says(OK + b"Content-Length: 0\r\n\r\n")).ip == "127.0.0.1"


def test_repeated_headers_are_joined_where_they_are_lists() -> None:
    head = b"X-Robots-Tag: noindex\r\nx-robots-tag: nofollow\r\nLocation: /a\r\nLocation: /b\r\n"
    page = get_from(says(OK + head + b"Content-Length: 0\r\n\r\n"))
    assert page.headers["x-robots-tag"] == "noindex\nnofollow"
    assert page.headers["location"] == "/b"


def test_a_proxy_is_asked_in_place_of_the_host() -> None:
    async def talk() -> None:
        async with Site() as site:
            names = CountedNames()
            options: dict[str, Any] = {"proxy": site.url, "resolver": names}
            async with fetcher(allow_private=False, **options) as session:
                page = await session.get("http://far.example/x?y")
            assert names.asked == []
            assert site.heads[0].startswith(b"GET http://far.example/x?y HTTP/1.1\r\nHost: far.")
            assert page.exchange.request.startswith(b"GET /x?y HTTP/1.1\r\n")
            assert (page.payload, page.ip) == (b"ok", None)
            refusing = Site(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        async with refusing as site, fetcher(proxy=site.url, resolver=names) as session:
            with pytest.raises(FetchError) as error:
                await session.get("https://far.example/")
        assert error.value.reason == "proxy"
        assert site.heads[0].startswith(b"CONNECT far.example:443 HTTP/1.1\r\n")

    asyncio.run(talk())


@pytest.mark.parametrize("coding", ["br", "zstd", "deflate", "gzip"])
def test_every_coding_that_is_offered_is_understood(coding: str) -> None:
    body = b"<p>hello</p>" * 500
    data = coded(coding, body)
    head = OK + b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (coding.encode(), len(data))
    page = get_from(says(head + data))
    assert (page.payload, page.exchange.body, page.truncated) == (body, data, False)


def coded(coding: str, body: bytes) -> bytes:
    if coding in ("gzip", "deflate"):
        return gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    sink = io.BytesIO()
    writer = (BrotliWriter if coding == "br" else ZstdWriter)(sink)
    writer.write(body)
    writer.close()
    return sink.getvalue()
