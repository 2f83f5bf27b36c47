"""The heads of a request and of its response as they passed over the wire, out of aiohttp's
objects: for the archive, and as a dict for the crawl."""

import functools

import aiohttp

_JOINED = frozenset(["cache-control", "content-encoding", "link", "vary", "x-robots-tag"])
_HTTP11 = aiohttp.HttpVersion11


def response_head(response: aiohttp.ClientResponse) -> tuple[bytes, dict[str, str]]:
    """The header block as it came, and as a dict. The body is no longer in chunks, so that header
    changes its name in the block, as in Common Crawl's files."""
    version = response.version or _HTTP11
    reason = (response.reason or "").encode("latin-1", errors="replace")
    lines = [b"HTTP/%d.%d %d %b" % (version.major, version.minor, response.status, reason)]
    headers: dict[str, str] = {}
    for raw_name, raw_value in response.raw_headers:
        name = _name(raw_name)
        try:
            value = raw_value.decode()
        except UnicodeDecodeError:
            value = raw_value.decode("latin-1")
        if name in _JOINED and name in headers:
            # An agent named in one X-Robots-Tag must not take over the directives of the next.
            between = "\n" if name == "x-robots-tag" else ", "
            value = f"{headers[name]}{between}{value}"
        headers[name] = value
        prefix = b"X-Crawl-" if name == "transfer-encoding" else b""
        lines.append(prefix + raw_name + b": " + raw_value)
    return b"\r\n".join([*lines, b"", b""]), headers


@functools.lru_cache(4096)
def _name(raw: bytes) -> str:
    return raw.decode("latin-1").lower()


def request_head(response: aiohttp.ClientResponse) -> bytes:
    """What aiohttp wrote; a test holds it against what a server read."""
    info = response.request_info
    lines = [f"GET {info.url.raw_path_qs} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in info.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", errors="replace")
