"""One GET against servers that misbehave, and addresses that must not be reached."""

import asyncio
import gzip
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pipeline.fetch import AddressInfo, Fetcher, FetchError, Page, guarded_socket

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def fetcher(**changes: Any) -> Fetcher:
    defaults: dict[str, Any] = {
        "user_agent": "FlywheelBot/0.1 (+me@example.org)",
        "max_bytes": 100_000,
        "timeout_s": 0.6,
        "allow_private": True,
        "num_connections": 4,
    }
    return Fetcher(**{**defaults, **changes})


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


# ------------------------------------------------------------------------------------- addresses


class Names:
    """Answers each question with the next list of addresses."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        base = {"hostname": host, "port": port, "proto": 6, "flags": 0}
        family_of = {True: socket.AF_INET6, False: socket.AF_INET}
        return [{**base, "host": a, "family": family_of[":" in a]} for a in addresses]

    async def close(self) -> None:
        pass


class RecordedSockets:
    """The guard as it is, in front of sockets that are never made."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.passed: list[str] = []

    def __call__(self, info: AddressInfo) -> socket.socket:
        address = str(info[4][0])
        try:
            guarded_socket(info).close()
        except OSError:
            self.refused.append(address)
            raise
        self.passed.append(address)
        raise OSError(f"a test connects nowhere, not even to {address}")


def ask(url: str, names: Names, times: int = 1) -> tuple[list[str], RecordedSockets]:
    sockets = RecordedSockets()

    async def talk() -> list[str]:
        reasons: list[str] = []
        for _ in range(times):
            async with fetcher(allow_private=False, resolver=names, make_socket=sockets) as session:
                try:
                    await session.get(url)
                except FetchError as error:
                    reasons.append(error.reason)
        return reasons

    return asyncio.run(talk()), sockets


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "192.168.0.1",
        "::1",
        "::ffff:10.0.0.1",
        "fe80::1",
    ],
)
def test_a_name_of_an_inner_address_is_refused_at_connect_time(address: str) -> None:
    reasons, sockets = ask("http://innocent.example/", Names([address]))
    assert reasons == ["address refused"]
    assert sockets.passed == []
    assert sockets.refused == [address]


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "[::1]", "10.1.1.1:8080"])
def test_a_literal_address_is_no_way_around(host: str) -> None:
    reasons, sockets = ask(f"http://{host}/", Names([]))
    assert reasons == ["address refused"]
    assert sockets.passed == []


def test_rebinding_is_caught_at_each_connection() -> None:
    names = Names(["93.184.216.34"], ["169.254.169.254"])
    reasons, sockets = ask("http://rebind.example/", names, times=2)
    assert reasons == ["connection", "address refused"]
    assert (sockets.passed, sockets.refused) == (["93.184.216.34"], ["169.254.169.254"])


def test_of_many_addresses_only_public_ones_are_tried() -> None:
    reasons, sockets = ask("http://many.example/", Names(["10.0.0.1", "93.184.216.34", "::1"]))
    assert reasons
    assert set(sockets.passed) == {"93.184.216.34"}
    assert set(sockets.refused) <= {"10.0.0.1", "::1"}
