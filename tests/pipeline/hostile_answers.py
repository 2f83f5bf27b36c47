"""What a web server may say to spoil a crawl: each way known to us, by the path that brings it."""

import asyncio
import dataclasses
import datetime as dt
import functools
import gzip
import io
import zlib
from collections.abc import Awaitable, Callable

from fastwarc.stream_io import BrotliWriter, ZstdWriter

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
BOMB_BYTES = 256 << 20
_BLOCK = bytes(1 << 20)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request: its target, and its head as it came."""

    path: str
    head: bytes

    def header(self, name: str) -> str:
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return ""


Route = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


# ---------------------------------------------------------------------------------------- answers


def says(data: bytes, *, then_s: float = 0.0) -> Route:
    """These bytes, then silence for a while, then the end of the connection."""

    async def route(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(then_s)

    return route


def halts(first: bytes, second: bytes) -> Route:
    """The second part comes in a packet of its own."""

    async def route(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(second)
        await writer.drain()

    return route


def page(body: bytes | str, *headers: str, status: str = "200 OK") -> Route:
    """An honest response."""
    data = body if isinstance(body, bytes) else body.encode()
    kind = [] if any(h.lower().startswith("content-type:") for h in headers) else [_HTML]
    lines = [f"HTTP/1.1 {status}", *kind, *headers, f"Content-Length: {len(data)}"]
    return says("\r\n".join([*lines, "", ""]).encode() + data)


_HTML = "Content-Type: text/html; charset=utf-8"


def moved(location: str) -> Route:
    return page("", f"Location: {location}", status="302 Found")


def repeats(head: bytes, block: bytes, *, pause_s: float = 0.0) -> Route:
    """The head once, the block for ever."""

    async def route(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(block)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return route


@functools.cache
def bomb(coding: str, num_bytes: int = BOMB_BYTES) -> bytes:
    """Zeros, coded: some hundred kB at most."""
    sink = io.BytesIO()
    if coding in ("br", "zstd"):
        writer = (BrotliWriter if coding == "br" else ZstdWriter)(sink)
        for _ in range(num_bytes // len(_BLOCK)):
            writer.write(_BLOCK)
        writer.close()
        return sink.getvalue()
    engine = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    for _ in range(num_bytes // len(_BLOCK)):
        sink.write(engine.compress(_BLOCK))
    return sink.getvalue() + engine.flush()


def coded(coding: str) -> Route:
    async def route(asked: Asked, writer: asyncio.StreamWriter) -> None:
        data = bomb(coding)
        head = OK + b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (coding.encode(), len(data)) + data)
        await writer.drain()

    return route


def nested_gzip(depth: int = 5) -> bytes:
    data = bomb("gzip")
    for _ in range(depth - 1):
        data = gzip.compress(data, mtime=0)
    return data


async def endless_redirects(asked: Asked, writer: asyncio.StreamWriter) -> None:
    number = int(asked.path.rpartition("/")[2])
    await moved(f"/redirect/endless/{number + 1}")(asked, writer)


async def ping_pong(asked: Asked, writer: asyncio.StreamWriter) -> None:
    other = "b" if asked.path.endswith("a") else "a"
    await moved(f"/redirect/ring/{other}")(asked, writer)


async def calendar(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """A page for each day, with a link to the next: there is no end to them."""
    day = dt.date.fromisoformat(asked.path.rpartition("/")[2])
    following = day + dt.timedelta(days=1)
    await page(f"<p>{day}: nothing.</p><a href=/calendar/{following}>next day</a>")(asked, writer)


async def wants_cookie(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Whoever keeps no cookie is sent round in a ring."""
    if asked.header("Cookie"):
        await page("<p>Welcome back.</p>")(asked, writer)
        return
    data = b"HTTP/1.1 302 Found\r\nSet-Cookie: seen=1\r\nLocation: /cookie\r\n"
    writer.write(data + b"Content-Length: 0\r\n\r\n")


async def reset(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Half a body, then a reset instead of an end."""
    writer.write(OK + b"Content-Length: 100\r\n\r\nhalf")
    await writer.drain()
    writer.transport.abort()


ODD_LINKS = """<html><body><h1>Odd links</h1>
<a href="javascript:alert(1)">script</a> <a href="data:text/html,hi">data</a>
<a href="mailto:me@example.org">mail</a> <a href="file:///etc/passwd">file</a>
<a href="ftp://127.0.0.1/x">ftp</a> <a href="tel:+123">tel</a> <a href="">itself</a>
<a href=" /ok/with space ">space</a> <a href="/ok//double//slash">slashes</a>
<a href="/ok/a#one">one</a> <a href="/ok/a#two">two</a> <a href="/OK/A">other case</a>
<a href="HTTP://127.0.0.1:{port}/ok/scheme">scheme</a> <a href="/ok/./b/../c">dots</a>
<a href="http://b\u00fccher.example/">IDN</a> <a href="http://xn--bcher-kva.example/">punycode</a>
<a href="http://xn--a.example/">bad punycode</a> <a href="http://[::1/">half an address</a>
<a href="http://2130706433:{port}/ok/number">number</a> <a href="http://0x7f.1/">hexadecimal</a>
<a href="http://169.254.169.254/latest/meta-data/">metadata</a>
<a href="/ok/%zz%00%ff">escapes</a> <a href="/ok/nul\x00nul">NUL</a> <a href="\\\\ok\\back">back</a>
<a href="/ok/tab\tand\nline">controls</a> <a href="//">empty</a> <a href="http://:99999/">port</a>
<a href="/ok/long?{long}">long</a></body></html>"""


def odd_links(port: int) -> bytes:
    return ODD_LINKS.format(port=port, long="x" * 100_000).encode()


_CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def all_routes(port: int) -> dict[str, Route]:
    """The longest beginning of a path counts; "/ok" answers to anything beneath it."""
    return {
        "/robots.txt": page("User-agent: *\nDisallow:\n", "Content-Type: text/plain"),
        "/ok": page("<title>Fine</title><p>An honest page.</p>"),
        "/missing": page("<p>Not here.</p>", status="404 Not Found"),
        "/soft-error": page("<title>Error 404</title><p>This page does not exist.</p>"),
        "/endless/body": repeats(OK + b"\r\n", b"x" * 10_000),
        "/endless/length": repeats(OK + b"Content-Length: 999999999999\r\n\r\n", b"x" * 10_000),
        "/endless/chunks": repeats(_CHUNKED, b"3e8\r\n" + b"x" * 1000 + b"\r\n"),
        "/endless/tiny-chunks": repeats(_CHUNKED, b"1\r\nx\r\n" * 1000),
        "/endless/chunk-extension": repeats(_CHUNKED + b"1;", b"x" * 10_000),
        "/endless/trailers": repeats(_CHUNKED + b"0\r\n", b"X: y\r\n" * 100),
        "/endless/gzip": repeats(
            OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(_BLOCK, mtime=0)
        ),
        "/endless/informational": repeats(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        "/endless/headers": repeats(OK, b"X-Flood: y\r\n" * 100),
        "/endless/header-line": repeats(OK + b"X-Flood: ", b"y" * 10_000),
        "/endless/status-line": repeats(b"HTTP/1.1 200 ", b"y" * 10_000),
        "/slow/body": repeats(OK + b"Content-Length: 9999\r\n\r\n", b"x", pause_s=0.05),
        "/slow/head": repeats(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", pause_s=0.05),
        "/slow/silent": says(b"", then_s=600),
        "/slow/stalled": says(OK + b"Content-Length: 9999\r\n\r\nhalf", then_s=600),
        "/redirect/loop": moved("/redirect/loop"),
        "/redirect/ring/": ping_pong,
        "/redirect/endless/": endless_redirects,
        "/redirect/metadata": moved("http://169.254.169.254/latest/meta-data/"),
        "/redirect/hidden-metadata": moved("http://[::ffff:a9fe:a9fe]/latest/"),
        "/redirect/number": moved("http://2852039166/latest/"),
        "/redirect/file": moved("file:///etc/passwd"),
        "/redirect/script": moved("javascript:alert(1)"),
        "/redirect/nowhere": page("", status="302 Found"),
        "/redirect/garbage": moved("http://[half/\xff"),
        "/redirect/split": moved("/ok?x=%0d%0aSet-Cookie:a=b"),
        "/length/too-long": says(OK + b"Content-Length: 50\r\n\r\nshort"),
        "/length/too-short": says(OK + b"Content-Length: 5\r\n\r\nhello, and more than that"),
        "/length/late-surplus": halts(OK + b"Content-Length: 5\r\n\r\nhello", b", and more"),
        "/length/negative": says(OK + b"Content-Length: -5\r\n\r\nhello"),
        "/length/two": says(OK + b"Content-Length: 5\r\nContent-Length: 9\r\n\r\nhello1234"),
        "/length/huge": says(OK + b"Content-Length: " + b"9" * 40 + b"\r\n\r\nhello"),
        "/length/and-chunks": says(
            OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        ),
        "/chunks/garbage": says(_CHUNKED + b"zz\r\nhello"),
        "/chunks/late-garbage": halts(_CHUNKED + b"5\r\nhello\r\n", b"zz\r\n"),
        "/chunks/huge": says(_CHUNKED + b"f" * 40 + b"\r\nhello"),
        "/chunks/torn": says(_CHUNKED + b"5\r\nhello\r\n"),
        "/bomb/gzip": coded("gzip"),
        "/bomb/deflate": coded("deflate"),
        "/bomb/br": coded("br"),
        "/bomb/zstd": coded("zstd"),
        "/headers/flood": says(OK + b"X: y\r\n" * 100_000 + b"\r\n"),
        "/headers/line": says(OK + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n"),
        "/headers/nul": says(OK + b"X: a\x00b\r\nContent-Length: 2\r\n\r\nok"),
        "/headers/no-colon": says(OK + b"what is this\r\nContent-Length: 2\r\n\r\nok"),
        "/headers/folded": says(OK + b"X: a\r\n  b\r\nContent-Length: 2\r\n\r\nok"),
        "/body/nul": page(b"<title>a\x00b</title>\x00<p>NUL" + bytes(100)),
        "/body/empty": page(b""),
        "/body/charset": page("<p>Gr\u00fc\u00dfe</p>".encode("latin-1"), _HTML),
        "/body/unknown-charset": page(b"<p>hello</p>", "Content-Type: text/html; charset=\xe4x"),
        "/body/not-gzip": page("<p>plain</p>", "Content-Encoding: gzip"),
        "/body/video": page(b"\x00\x00\x00\x18ftypmp42" + bytes(1000), "Content-Type: video/mp4"),
        "/cookie": wants_cookie,
        "/calendar/": calendar,
        "/links": page(odd_links(port)),
        "/close/at-once": says(b""),
        "/close/in-status": says(b"HTTP/1.1 20"),
        "/close/in-head": says(OK + b"X: y\r\n"),
        "/close/in-body": says(OK + b"Content-Length: 100\r\n\r\nhalf"),
        "/close/reset": reset,
        "/status/999": page("<p>Go away.</p>", status="999 Request denied"),
        "/status/099": page("<p>Odd.</p>", status="099 Low"),
        "/status/words": page("<p>Odd.</p>", status="two hundred"),
        "/status/204": says(b"HTTP/1.1 204 No Content\r\n\r\n"),
        "/status/304": says(
            b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 99\r\n\r\n'
        ),
        "/status/429": page("", "Retry-After: 1", status="429 Too Many Requests"),
        "/status/informational": says(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
            + OK
            + b"Content-Length: 2\r\n\r\nok"
        ),
        "/status/switch": says(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\nnoise", then_s=600),
        "/http09": says(b"<p>There were no headers in 1991.</p>"),
        "/http2": says(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18)),
        "/smuggled": says(
            OK + b"Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        ),
    }


def index(routes: dict[str, Route]) -> str:
    """A page with a link to each of them, for a crawl to begin at."""
    ends = {"/calendar/": "2024-02-27", "/redirect/endless/": "1", "/redirect/ring/": "a"}
    links = [f'<a href="{path}{ends.get(path, "")}">{path}</a>' for path in routes]
    return "<title>Hostile</title>" + "\n".join(links)
