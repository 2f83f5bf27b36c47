"""Host names to addresses, remembered for a while; and which addresses a crawl may reach.

The special networks are those of IANA's registries (RFC 6890) and what clouds add to them.
"""

import asyncio
import dataclasses
import functools
import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
AddressInfo = tuple[int, int, int, str, tuple[str | int | bytes, ...]]
SocketFactory = Callable[[AddressInfo], socket.socket]

MAX_TRIES = 4  # addresses of one host that a connection tries
_MAX_KEPT = 32  # addresses remembered of one host
_NUM_LOOKUPS = 32  # threads; a dead name server holds one for ten seconds and more
_SPECIAL_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by customers of a carrier; Alibaba's metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's platform, from inside a machine there
        "169.254.0.0/16",  # link-local; metadata at .169.254 and elsewhere
        "172.16.0.0/12",
        "192.0.0.0/24",  # Oracle's metadata
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
_OPEN_V6 = ipaddress.IPv6Network("2000::/3")  # beyond it nothing is given out as global unicast
_SPECIAL_V6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocols, Teredo among them: an IPv4 address in disguise
        "2001:db8::/32",
        "3fff::/20",
    )
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def may_reach(address: str, allowed: Sequence[Network] = ()) -> bool:
    """Whether an IP address is the open internet's or in a network that is `allowed` by name.

    An IPv4 address inside an IPv6 one (mapped, 6to4, NAT64) is judged as itself.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = _inner(ip)
    if any(ip in network or inner in network for network in allowed):
        return True
    if isinstance(inner, ipaddress.IPv4Address):
        return not any(inner in network for network in _SPECIAL_V4)
    return inner in _OPEN_V6 and not any(inner in network for network in _SPECIAL_V6)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet's."""
    return may_reach(address)


def is_loopback(host: str) -> bool:
    """Whether a URL's host is this machine by its very name."""
    name = host.strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _inner(ip: Address) -> Address:
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


class AddressRefusedError(OSError):
    """The host's address lies in a network that the config does not allow."""


def guarded_socket(info: AddressInfo, allowed: Sequence[Network] = ()) -> socket.socket:
    """A socket for an address that may be reached; it is asked after DNS, for each connection."""
    family, kind, protocol, _, address = info
    if not may_reach(str(address[0]), allowed):
        raise AddressRefusedError(f"{address[0]} is not a public address")
    return socket.socket(family, kind, protocol)


def any_socket(info: AddressInfo) -> socket.socket:
    return socket.socket(*info[:3])


@dataclasses.dataclass(frozen=True)
class _Answer:
    """`error`: the arguments of the OSError that the lookup ended in."""

    expires_at: float
    addresses: tuple[tuple[str, socket.AddressFamily], ...] = ()
    error: tuple[int, str] | None = None


class CachingResolver(AbstractResolver):
    """Remembers answers and failures of the resolver beneath it, and asks one name once at a time.

    The system does not tell an answer's own time to live: `ttl_s` stands for it. Each connection
    is checked by its address, so that a remembered answer opens nothing.
    """

    def __init__(
        self,
        inner: AbstractResolver | None = None,
        *,
        ttl_s: float = 300.0,
        failure_ttl_s: float = 60.0,
        timeout_s: float = 15.0,
        max_names: int = 50_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`inner`: by default the system's, in threads. One that is passed in is not closed."""
        self._inner, self._own_inner = inner or SystemResolver(), inner is None
        self._ttl_s, self._failure_ttl_s, self._timeout_s = ttl_s, failure_ttl_s, timeout_s
        self._max_names, self._clock = max_names, clock
        self._known: dict[str, _Answer] = {}  # the oldest first
        self._running: dict[str, asyncio.Task[_Answer]] = {}

    async def addresses(self, host: str) -> tuple[str, ...]:
        """The host's addresses in the order in which they are tried; a literal is its own.

        Raises OSError if there are none.
        """
        literal = host.strip("[]")
        if ":" in literal or literal.replace(".", "").isdigit():
            return (literal,)
        return tuple(address for address, _ in await self._ask(host))

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """What aiohttp's connector asks for. Raises OSError."""
        return [
            _result(host, address, port, kind)
            for address, kind in await self._ask(host)
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def close(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        if self._own_inner:
            await self._inner.close()

    async def _ask(self, host: str) -> tuple[tuple[str, socket.AddressFamily], ...]:
        answer = self._known.get(host)
        if answer is None or answer.expires_at <= self._clock():
            task = self._running.get(host)
            if task is None:
                task = self._running[host] = asyncio.create_task(self._look_up(host))
                task.add_done_callback(lambda _: self._running.pop(host))
            answer = await asyncio.shield(task)  # others wait for it too
        if answer.error is not None:
            raise socket.gaierror(*answer.error)
        return answer.addresses

    async def _look_up(self, host: str) -> _Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._inner.resolve(host, 0, socket.AF_UNSPEC)
        except TimeoutError:
            answer = self._failure(socket.EAI_AGAIN, f"no answer within {self._timeout_s} s")
        except OSError as error:
            answer = self._failure(error.errno or socket.EAI_FAIL, error.strerror or str(error))
        except UnicodeError as error:  # a label of more than 63 letters cannot be asked for
            answer = self._failure(socket.EAI_NONAME, str(error))
        else:
            pairs = [(item["host"], socket.AddressFamily(item["family"])) for item in found]
            kept = tuple(dict.fromkeys(pairs))[:_MAX_KEPT]
            answer = _Answer(self._clock() + self._ttl_s, kept)
            if not kept:
                answer = self._failure(socket.EAI_NONAME, "no address")
        self._known.pop(host, None)
        self._known[host] = answer
        if len(self._known) > self._max_names:
            del self._known[next(iter(self._known))]
        return answer

    def _failure(self, code: int, text: str) -> _Answer:
        return _Answer(self._clock() + self._failure_ttl_s, error=(code, text))


class SystemResolver(AbstractResolver):
    """getaddrinfo in threads of its own: the loop's few would all be held by slow names."""

    def __init__(self, num_threads: int = _NUM_LOOKUPS) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of the families that this machine itself has. Raises OSError."""
        ask = functools.partial(
            socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        found = await asyncio.get_running_loop().run_in_executor(self._pool, ask)
        return [_result(host, str(address[0]), port, kind) for kind, _, _, _, address in found]

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _result(host: str, address: str, port: int, family: socket.AddressFamily) -> ResolveResult:
    return ResolveResult(
        hostname=host, host=address, port=port, family=family, proto=socket.IPPROTO_TCP, flags=0
    )


class ReachableAddresses(AbstractResolver):
    """Of a host's addresses the first four that may be reached.

    If there is none, the first: the socket factory refuses it by its name.
    """

    def __init__(self, inner: AbstractResolver, may_reach: Callable[[str], bool]) -> None:
        self._inner, self._may_reach = inner, may_reach

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        return [item for item in found if self._may_reach(item["host"])][:MAX_TRIES] or found[:1]

    async def close(self) -> None:
        """The resolver beneath belongs to whoever passed it in."""
