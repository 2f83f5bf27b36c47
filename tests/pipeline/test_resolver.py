"""Addresses that must not be reached, however they are spelled; and names looked up once."""

import asyncio
import errno
import ipaddress
import random
import socket
from typing import Any

import pytest

from pipeline.core.identity import canonical_url
from pipeline.fetch import FetchError
from pipeline.resolver import (
    AddressInfo,
    CachingResolver,
    SystemResolver,
    guarded_socket,
    is_public,
)
from tests.pipeline.small_fetcher import CountedNames, Names, fetcher


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
