"""One GET against servers that misbehave, and addresses that must not be reached."""

import asyncio
import errno
import gzip
import io
import ipaddress
import random
import socket
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver
from fastwarc.stream_io import BrotliWriter, ZstdWriter

from pipeline.core.identity import canonical_url
from pipeline.fetch import (
    AddressInfo,
    Conditions,
    Fetcher,
    FetchError,
    Page,
    guarded_socket,
    is_public,
)
from pipeline.resolver import CachingResolver, SystemResolver

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


class Names(AbstractResolver):
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

    def __init__(self, *allowed: str) -> None:
        self.allowed = [ipaddress.ip_network(network) for network in allowed]
        self.refused: list[str] = []
        self.passed: list[str] = []

    def __call__(self, info: AddressInfo) -> socket.socket:
        address = str(info[4][0])
        try:
            guarded_socket(info, self.allowed).close()
        except OSError:
            self.refused.append(address)
            raise
        self.passed.append(address)
        raise OSError(errno.ECONNREFUSED, f"a test connects nowhere, not even to {address}")


def ask(
    url: str, names: Any, times: int = 1, allowed: tuple[str, ...] = (), **changes: Any
) -> tuple[list[str], RecordedSockets]:
    sockets = RecordedSockets(*allowed)
    options: dict[str, Any] = {
        "allow_private": False,
        "resolver": names,
        "make_socket": sockets,
        "allow_networks": sockets.allowed,
        **changes,
    }

    async def talk() -> list[str]:
        reasons: list[str] = []
        for _ in range(times):
            async with fetcher(**options) as session:
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
        "::10.0.0.1",
        "fe80::1",
        "fd00:ec2::254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "224.0.0.1",
        "ff02::1",
        "0.0.0.0",
        "255.255.255.255",
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


@pytest.mark.parametrize(
    "host",
    ["0x7f.1", "0x7f000001", "2130706433", "017700000001", "127.1", "0177.0.0.01", "127.0.0.1."],
)
def test_an_odd_spelling_is_no_way_around(host: str) -> None:
    """As a crawl writes it (WHATWG), and as it stands: the system reads 0x7f.1 as 127.0.0.1."""
    assert canonical_url(f"http://{host}/") == "http://127.0.0.1/"
    for url in (canonical_url(f"http://{host}/"), f"http://{host}/"):
        reasons, sockets = ask(url, SystemResolver())
        assert reasons == ["address refused"]
        assert sockets.passed == []


def test_a_network_is_allowed_by_its_name() -> None:
    names = Names(["10.1.2.3"])
    for allowed, reason in [
        (("10.1.0.0/16",), "connection"),
        (("10.2.0.0/16",), "address refused"),
        (("::/0",), "address refused"),  # as IPv6 alone
        (("192.168.0.0/16", "10.1.2.3/32"), "connection"),
    ]:
        assert ask("http://inner.example/", names, allowed=allowed)[0] == [reason]
    assert ask("http://[fd00:1::5]/", names, allowed=("fd00:1::/32",))[0] == ["connection"]
    assert ask("http://[::ffff:10.1.2.3]/", names, allowed=("10.1.0.0/16",))[0] == ["connection"]
    assert ask("http://169.254.169.254/", names, allowed=("10.0.0.0/8",))[0] == ["address refused"]


def test_no_address_passes_that_python_calls_special() -> None:
    """Ours refuses more (clouds, what older Pythons do not know), never less."""
    rng = random.Random(7)
    near = [network.network_address for network in SPECIAL] + [n[-1] for n in SPECIAL]
    v4 = [ipaddress.IPv4Address(rng.getrandbits(32)) for _ in range(20_000)]
    v6 = [ipaddress.IPv6Address(rng.getrandbits(128)) for _ in range(20_000)]
    v6 += [ipaddress.IPv6Address(rng.getrandbits(125) | 1 << 125) for _ in range(20_000)]
    more = 0
    for ip in [*near, *v4, *v6]:
        ours = is_public(str(ip))
        assert not ours or (ip.is_global and not ip.is_multicast), ip
        more += not ours and ip.is_global and ip.version == 4 and not ip.is_multicast
    assert more < 20  # the rest of IPv4 is open


def test_a_public_address_inside_an_ipv6_one_may_be_reached() -> None:
    for address in ("64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1", "2606:4700::1111"):
        assert is_public(address), address


SPECIAL = [
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "240.0.0.0/4", "fc00::/7"),
        *("fe80::/10", "2001:db8::/32", "100::/64"),
    )
]


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


def test_of_many_addresses_four_are_tried() -> None:
    many = [f"93.184.216.{n}" for n in range(1, 99)]
    reasons, sockets = ask("http://many.example/", Names(["10.0.0.1", *many]))
    assert reasons == ["connection"]
    assert list(dict.fromkeys(sockets.passed)) == many[:4]
    assert sockets.refused == []


def test_ipv6() -> None:
    assert ask("http://six.example/", Names(["2606:4700::1111"]))[1].passed == ["2606:4700::1111"]
    _, sockets = ask("http://both.example/", Names(["2606:4700::1111", "93.184.216.34"]))
    assert set(sockets.passed) == {"2606:4700::1111", "93.184.216.34"}


def test_a_machine_out_of_sockets_is_not_the_servers_fault() -> None:
    def no_more(info: AddressInfo) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    assert ask("http://a.example/", Names(["93.184.216.34"]), make_socket=no_more)[0] == [
        "no sockets"
    ]


# ----------------------------------------------------------------------------------------- names


class CountedNames(AbstractResolver):
    """Addresses by name; a name without is an error. Each lookup waits for `gate`."""

    def __init__(self, **known: str) -> None:
        self.known = known
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        self.asked.append(host)
        await self.gate.wait()
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return await Names([self.known[host]]).resolve(host, port)

    async def close(self) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_names_are_remembered_for_a_while() -> None:
    async def talk() -> None:
        inner, clock = CountedNames(a="1.2.3.4"), Clock()
        names = CachingResolver(inner, ttl_s=300, failure_ttl_s=60, clock=clock)
        for _ in range(3):
            assert await names.addresses("a") == ("1.2.3.4",)
            with pytest.raises(OSError, match="unknown"):
                await names.addresses("b")
        assert inner.asked == ["a", "b"]
        [found] = await names.resolve("a", 8080, socket.AF_INET)
        assert (found["hostname"], found["host"], found["port"]) == ("a", "1.2.3.4", 8080)
        assert await names.resolve("a", 80, socket.AF_INET6) == []
        clock.now, inner.known = 61.0, {"a": "5.6.7.8", "b": "::1"}
        assert await names.addresses("a") == ("1.2.3.4",)
        assert await names.addresses("b") == ("::1",)
        clock.now = 301.0
        assert await names.addresses("a") == ("5.6.7.8",)
        assert inner.asked == ["a", "b", "b", "a"]
        assert await names.addresses("[2606:4700::1111]") == ("2606:4700::1111",)
        assert await names.addresses("1.2.3.4") == ("1.2.3.4",)
        await names.close()

    asyncio.run(talk())


def test_a_name_is_asked_for_once_at_a_time() -> None:
    async def talk() -> None:
        inner = CountedNames(a="1.2.3.4")
        inner.gate.clear()
        names = CachingResolver(inner)
        asking = [asyncio.create_task(names.addresses("a")) for _ in range(50)]
        await asyncio.sleep(0)
        asking[0].cancel()  # who asked first goes away: the others still get their answer
        await asyncio.sleep(0)
        inner.gate.set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1:] == [("1.2.3.4",)] * 49
        assert inner.asked == ["a"]
        await names.close()

    asyncio.run(talk())


def test_no_answer_and_impossible_names_are_failures() -> None:
    async def talk() -> None:
        inner = CountedNames(a="1.2.3.4")
        inner.gate.clear()
        names = CachingResolver(inner, timeout_s=0.05)
        with pytest.raises(OSError, match="no answer within"):
            await names.addresses("a")
        await names.close()
        system = CachingResolver()
        for impossible in ("x" * 64 + ".example", "a..example"):
            with pytest.raises(OSError, match="label"):
                await system.addresses(impossible)
        await system.close()

    asyncio.run(talk())


def test_memory_for_names_is_bounded() -> None:
    async def talk() -> None:
        hosts = [f"h{n}" for n in range(200)]
        inner = CountedNames(**dict.fromkeys(hosts, "1.2.3.4"))
        names = CachingResolver(inner, max_names=10)
        for host in hosts:
            await names.addresses(host)
        inner.asked.clear()
        for host in reversed(hosts):
            await names.addresses(host)
        assert len(inner.asked) == 190  # the last ten were known
        await names.close()

    asyncio.run(talk())


def test_an_unknown_name_is_final_and_a_mute_server_is_not() -> None:
    class Mute(CountedNames):
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")

    async def transient(names: CountedNames) -> bool:
        async with fetcher(resolver=names) as session:
            with pytest.raises(FetchError) as error:
                await session.get("http://nowhere.example/")
        assert error.value.reason == "dns"
        return error.value.transient

    assert asyncio.run(transient(Mute())) is True
    assert asyncio.run(transient(CountedNames())) is False


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
