"""One HTTP GET within limits: bytes, seconds, and the networks that may be reached.

Redirects are not followed here: the crawl records each hop and asks robots and scope anew.
"""

import dataclasses
import datetime as dt
import ipaddress
import socket
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from pipeline.encoding import BodyTooLargeError, decode_body
from pipeline.warc import charset_of, mime_type
from pipeline.warc_writer import Exchange

AddressInfo = tuple[int, int, int, str, tuple[str | int | bytes, ...]]
SocketFactory = Callable[[AddressInfo], socket.socket]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class FetchError(Exception):
    """No whole response. `reason` is what is counted; `transient`: another try may help."""

    def __init__(self, reason: str, detail: str, *, transient: bool) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.transient = transient


class AddressRefusedError(OSError):
    """The host's address lies in a network that the config does not allow."""


@dataclasses.dataclass(frozen=True)
class Page:
    """A response. `payload` is free of transfer and content coding; header names are in lower
    case, and of a repeated header the last counts."""

    exchange: Exchange
    status: int
    headers: dict[str, str]
    payload: bytes

    @property
    def content_type(self) -> str:
        return mime_type(self.headers.get("content-type", ""))

    @property
    def charset(self) -> str | None:
        return charset_of(self.headers.get("content-type", ""))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet's, seen through 4-in-6 and NAT64."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def guarded_socket(info: AddressInfo) -> socket.socket:
    """A socket for an address that may be reached; it is asked after DNS, for each connection."""
    family, kind, protocol, _, address = info
    if not is_public(str(address[0])):
        raise AddressRefusedError(f"{address[0]} is not a public address")
    return socket.socket(family, kind, protocol)


def _any_socket(info: AddressInfo) -> socket.socket:
    return socket.socket(*info[:3])


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
    ) -> None:
        """`resolver` and `make_socket` stand in for the system's in tests."""
        self.user_agent, self.max_bytes, self.timeout_s = user_agent, max_bytes, timeout_s
        self.num_connections = num_connections
        self.resolver = resolver
        self.make_socket = make_socket or (_any_socket if allow_private else guarded_socket)

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=self.num_connections,
            resolver=self.resolver,
            socket_factory=self.make_socket,
            ttl_dns_cache=300,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=self.timeout_s),
            headers={
                "User-Agent": self.user_agent,
                "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.5",
                "Accept-Encoding": "gzip, deflate",
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

    async def get(self, url: str, *, cut_at: int | None = None) -> Page:
        """The response to one GET. Raises FetchError.

        A body above `max_bytes` is an error; with `cut_at` it is cut off there instead.
        """
        try:
            return await self._get(url, cut_at)
        except BodyTooLargeError as error:
            raise FetchError("too large", str(error), transient=False) from None
        except TimeoutError:
            raise FetchError("timeout", f"over {self.timeout_s} s", transient=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _classify(error) from error

    async def _get(self, url: str, cut_at: int | None) -> Page:
        limit = cut_at or self.max_bytes
        request = self._session.get(URL(url, encoded=True), allow_redirects=False)
        async with request as response:
            fetched_at = dt.datetime.now(dt.UTC)
            ip = _peer(response)
            body = bytearray()
            async for block in response.content.iter_any():
                body += block
                if len(body) > limit:
                    if cut_at is None:
                        raise BodyTooLargeError(f"body of more than {limit:,} bytes")
                    break
            return self._page(url, response, fetched_at, ip, bytes(body[:limit]))

    def _page(
        self,
        url: str,
        response: aiohttp.ClientResponse,
        fetched_at: dt.datetime,
        ip: str | None,
        body: bytes,
    ) -> Page:
        headers = {
            name.decode("latin-1").lower(): _text(value) for name, value in response.raw_headers
        }
        decoded = decode_body(
            body,
            content_encoding=headers.get("content-encoding", ""),
            max_bytes=self.max_bytes,
        )
        exchange = Exchange(url, fetched_at, ip, _request(response), _head(response), body)
        return Page(exchange, response.status, headers, decoded.body)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _peer(response: aiohttp.ClientResponse) -> str | None:
    """None: the body came with the headers, and the connection is handed back already."""
    connection = response.connection
    transport = connection.transport if connection else None
    name = transport.get_extra_info("peername") if transport else None
    return str(name[0]) if name else None


def _request(response: aiohttp.ClientResponse) -> bytes:
    info = response.request_info
    lines = [f"GET {info.url.raw_path_qs} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in info.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", errors="replace")


def _head(response: aiohttp.ClientResponse) -> bytes:
    """The header block as it came. The body is no longer in chunks, so that header changes its
    name, as in Common Crawl's files."""
    version = response.version or aiohttp.HttpVersion11
    reason = (response.reason or "").encode("latin-1", errors="replace")
    lines = [b"HTTP/%d.%d %d %s" % (version.major, version.minor, response.status, reason)]
    for name, value in response.raw_headers:
        chunked = name.lower() == b"transfer-encoding"
        lines.append((b"X-Crawl-" if chunked else b"") + name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])


def _classify(error: Exception) -> FetchError:
    """The class under which a failure is counted."""
    inner = getattr(error, "os_error", None)
    if isinstance(error, AddressRefusedError) or isinstance(inner, AddressRefusedError):
        return FetchError("address refused", str(inner or error), transient=False)
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return FetchError("dns", detail, transient=True)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return FetchError("tls", detail, transient=False)
    if isinstance(error, aiohttp.ClientPayloadError):
        return FetchError("incomplete", detail, transient=True)
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return FetchError("connection", detail, transient=True)
    return FetchError("protocol", detail, transient=False)
