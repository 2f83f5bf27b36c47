"""Why a fetch gave no whole response: each failure of aiohttp's, the system's or the server's has
one name, under which it is counted, and says whether another try may help."""

import errno
import socket
import ssl

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from pipeline.resolver import AddressRefusedError

_OUR_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class FetchError(Exception):
    """No whole response. `reason` is what is counted; `transient`: another try may help.

    Reasons: "address refused", "dns", "connection", "proxy", "tls", "timeout", "too slow",
    "too large", "incomplete", "protocol", "content type", and "no sockets" when this machine's
    own limit is reached.
    """

    def __init__(self, reason: str, detail: str, *, transient: bool) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.transient = transient


class UnaskedResponseError(aiohttp.ServerDisconnectedError):
    """The server spoke first. aiohttp takes a new connection once, as for one closed when idle."""


class BrokenOffError(aiohttp.ClientConnectionError):
    """A connection that broke after the question. At aiohttp's own errors for it aiohttp asks again
    at once, whatever the host's delay; the crawl does so in time."""


def classify_failure(error: Exception) -> FetchError:
    """The class under which a failure is counted."""
    inner = getattr(error, "os_error", None)
    if isinstance(error, AddressRefusedError) or isinstance(inner, AddressRefusedError):
        return FetchError("address refused", str(inner or error), transient=False)
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, aiohttp.InvalidURL) and "canonical IPv4" in str(error):
        return FetchError("address refused", detail, transient=False)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        unknown = isinstance(inner, OSError) and inner.errno == socket.EAI_NONAME
        return FetchError("dns", detail, transient=not unknown)
    if isinstance(error, aiohttp.ClientHttpProxyError | aiohttp.ClientProxyConnectionError):
        return FetchError("proxy", detail, transient=True)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return FetchError("tls", detail, transient=False)
    if isinstance(error, aiohttp.ClientPayloadError) and not _is_malformed(error):
        return FetchError("incomplete", detail, transient=True)
    if isinstance(error, UnaskedResponseError):
        return FetchError("protocol", detail, transient=False)
    if isinstance(error, OSError) and error.errno in _OUR_LIMITS:
        return FetchError("no sockets", detail, transient=True)
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return FetchError("connection", detail, transient=True)
    return FetchError("protocol", detail, transient=False)


def _is_malformed(error: aiohttp.ClientPayloadError) -> bool:
    """Not merely broken off: what else aiohttp says depends on where the packets end."""
    cause = error.__cause__
    return isinstance(cause, HttpProcessingError) and "Not enough data" not in cause.message
