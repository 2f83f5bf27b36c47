"""The fetcher against servers that misbehave: a named outcome for each, within bounded memory."""

import asyncio
import contextlib
import gc
import resource
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.fetch import Conditions, Fetcher, FetchError, Page
from pipeline.robots import MAX_ROBOTS_BYTES
from tests.pipeline.hostile_answers import OK, bomb, nested_gzip, page, repeats, says
from tests.pipeline.hostile_server import HostileServer

MAX_BYTES = 1_000_000


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


def fetcher(**changes: Any) -> Fetcher:
    defaults: dict[str, Any] = {
        "user_agent": "FlywheelBot/0.1 (+me@example.org)",
        "max_bytes": MAX_BYTES,
        "timeout_s": 20.0,
        "allow_private": True,
        "num_connections": 4,
        "min_bytes_per_s": 1000.0,
        "grace_s": 0.2,
    }
    return Fetcher(**{**defaults, **changes})


def get(url: str, timeout_s: float = 20.0, **options: Any) -> Page:
    async def ask() -> Page:
        async with fetcher(timeout_s=timeout_s) as session:
            return await session.get(url, **options)

    return asyncio.run(ask())


def reason(url: str, timeout_s: float = 20.0, **options: Any) -> str:
    with pytest.raises(FetchError) as error:
        get(url, timeout_s, **options)
    return error.value.reason


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/endless/body", "too large"),
        ("/endless/length", "too large"),
        ("/endless/chunks", "too large"),
        ("/endless/tiny-chunks", "too large"),
        ("/endless/gzip", "too large"),
        ("/endless/trailers", "protocol"),
        ("/endless/headers", "protocol"),
        ("/endless/header-line", "protocol"),
        ("/endless/status-line", "protocol"),
        ("/slow/body", "too slow"),
        ("/length/too-long", "incomplete"),
        ("/length/too-short", "protocol"),
        ("/length/negative", "protocol"),
        ("/length/two", "protocol"),
        ("/length/huge", "protocol"),
        ("/length/and-chunks", "protocol"),
        ("/chunks/garbage", "protocol"),
        ("/chunks/late-garbage", "protocol"),
        ("/chunks/huge", "protocol"),
        ("/chunks/torn", "incomplete"),
        ("/bomb/gzip", "too large"),
        ("/bomb/deflate", "too large"),
        ("/bomb/br", "too large"),
        ("/bomb/zstd", "too large"),
        ("/headers/flood", "protocol"),
        ("/headers/line", "protocol"),
        ("/headers/nul", "protocol"),
        ("/headers/no-colon", "protocol"),
        ("/close/at-once", "connection"),
        ("/close/in-status", "connection"),
        ("/close/in-head", "connection"),
        ("/close/in-body", "incomplete"),
        ("/close/reset", "incomplete"),
        ("/status/099", "protocol"),
        ("/status/words", "protocol"),
        ("/status/switch", "protocol"),
        ("/http09", "protocol"),
        ("/http2", "protocol"),
    ],
)
def test_no_page_but_a_reason(hostile: HostileServer, path: str, expected: str) -> None:
    assert reason(hostile.url + path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/slow/silent",
        "/slow/stalled",
        "/slow/head",
        "/endless/informational",
        "/endless/chunk-extension",
    ],
)
def test_what_never_ends_is_timed_out(hostile: HostileServer, path: str) -> None:
    assert reason(hostile.url + path, timeout_s=0.5) == "timeout"


@pytest.mark.parametrize(
    ("path", "status", "payload"),
    [
        ("/body/empty", 200, b""),
        ("/body/not-gzip", 200, b"<p>plain</p>"),
        ("/body/charset", 200, b"<p>Gr\xfc\xdfe</p>"),
        ("/body/nul", 200, b"<title>a\x00b</title>\x00<p>NUL" + bytes(100)),
        ("/soft-error", 200, b"<title>Error 404</title><p>This page does not exist.</p>"),
        ("/status/999", 999, b"<p>Go away.</p>"),
        ("/status/204", 204, b""),
        ("/status/304", 304, b""),
        ("/status/429", 429, b""),
        ("/status/informational", 200, b"ok"),
        ("/headers/folded", 200, b"ok"),
        ("/length/late-surplus", 200, b"hello"),
        ("/smuggled", 200, b"ok"),
    ],
)
def test_odd_but_a_page(hostile: HostileServer, path: str, status: int, payload: bytes) -> None:
    found = get(hostile.url + path)
    assert (found.status, found.payload, found.truncated) == (status, payload, False)


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("loop", "/redirect/loop"),
        ("ring/a", "/redirect/ring/b"),
        ("endless/7", "/redirect/endless/8"),
        ("metadata", "http://169.254.169.254/latest/meta-data/"),
        ("file", "file:///etc/passwd"),
        ("nowhere", None),
    ],
)
def test_a_redirect_is_handed_back_and_not_followed(
    hostile: HostileServer, path: str, location: str | None
) -> None:
    hits = sum(hostile.hits.values())
    found = get(f"{hostile.url}/redirect/{path}")
    assert (found.status, found.headers.get("location")) == (302, location)
    assert sum(hostile.hits.values()) == hits + 1


def test_no_cookie_is_kept(hostile: HostileServer) -> None:
    async def ask() -> list[int]:
        async with fetcher() as session:
            found: list[int] = []
            while len(found) < 3:  # the server closes each connection, and the fetcher says so
                with contextlib.suppress(FetchError):
                    found.append((await session.get(hostile.url + "/cookie")).status)
            return found

    assert asyncio.run(ask()) == [302, 302, 302]


def test_a_certificate_that_nobody_signed(hostile: HostileServer) -> None:
    assert reason(hostile.tls_url + "/ok") == "tls"

    async def ask() -> Page:
        async with fetcher(verify_tls=False) as session:
            return await session.get(hostile.tls_url + "/ok")

    assert asyncio.run(ask()).status == 200


def test_plain_http_where_tls_is_asked_for(hostile: HostileServer) -> None:
    assert reason(hostile.early_url.replace("http", "https")) == "tls"
    assert reason(hostile.tls_url.replace("https", "http") + "/ok") in ("connection", "protocol")


def test_a_connection_closed_as_soon_as_it_is_made(hostile: HostileServer) -> None:
    assert reason(hostile.closing_url) == "connection"


def test_a_response_that_nobody_asked_for_answers_no_later_request(hostile: HostileServer) -> None:
    """A 408 sent on an idle connection; and a second response behind the first."""

    async def ask(url: str) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        async with fetcher() as session:
            for _ in range(3):
                answer = await session.get(url)
                found.append((answer.status, answer.payload[:20]))
                await asyncio.sleep(0.1)
        return found

    assert asyncio.run(ask(hostile.late_url + "/ok")) == [(200, b"<title>Fine</title><")] * 3
    assert asyncio.run(ask(hostile.url + "/smuggled")) == [(200, b"ok")] * 3


def test_after_an_unasked_switch_the_connection_is_not_used_again(hostile: HostileServer) -> None:
    async def ask() -> int:
        async with fetcher(timeout_s=5.0) as session:
            with pytest.raises(FetchError, match="status 101"):
                await session.get(hostile.url + "/status/switch")
            return (await session.get(hostile.url + "/ok")).status

    assert asyncio.run(ask()) == 200


def test_a_large_robots_txt_is_read_to_the_limit(hostile: HostileServer) -> None:
    rules = b"User-agent: *\nDisallow: /private\n"
    hostile.routes["/robots-10mb"] = page(rules + b"# padding\n" * 1_000_000)
    hostile.routes["/robots-bomb"] = says(
        OK + b"Content-Encoding: gzip\r\n\r\n" + bomb("gzip", 64 << 20)
    )
    found = get(hostile.url + "/robots-10mb", cut_at=MAX_ROBOTS_BYTES)
    assert found.payload.startswith(rules)
    assert (len(found.payload), found.truncated) == (MAX_ROBOTS_BYTES, True)
    found = get(hostile.url + "/robots-bomb", cut_at=MAX_ROBOTS_BYTES)
    assert (found.payload, found.truncated) == (bytes(MAX_ROBOTS_BYTES), True)


def test_a_bomb_inside_bombs(hostile: HostileServer) -> None:
    data = nested_gzip(3)
    for coding, expected in [("gzip, gzip, gzip", "too large"), ("gzip," * 500, None)]:
        head = OK + b"Content-Encoding: %s\r\n\r\n" % coding.encode()
        hostile.routes["/nested"] = says(head + data)
        if expected:
            assert reason(hostile.url + "/nested") == expected
        else:  # too many codings to be meant: left as it came
            assert get(hostile.url + "/nested").payload == data


def test_a_type_that_is_not_wanted_is_refused_before_its_body(hostile: HostileServer) -> None:
    hostile.routes["/film"] = repeats(OK.replace(b"text/html", b"Video/MP4") + b"\r\n", bytes(9999))
    hostile.routes["/untyped"] = says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    hostile.routes["/gone"] = page("gone", "Content-Type: image/png", status="404 Not Found")
    texts = ("text/", "application/xhtml+xml")
    assert reason(hostile.url + "/film", accept_types=texts) == "content type"
    assert reason(hostile.url + "/film", accept_types=()) == "too large"
    assert get(hostile.url + "/ok", accept_types=texts).status == 200
    assert get(hostile.url + "/untyped", accept_types=texts).payload == b"ok"
    assert get(hostile.url + "/gone", accept_types=texts).status == 404


def test_a_condition_cannot_smuggle_a_header(hostile: HostileServer) -> None:
    get(
        hostile.url + "/ok",
        conditions=Conditions('"a"\r\nX-Evil: 1', "Mon, 01 Jan 2024 00:00:00 GMT"),
    )
    head = hostile.heads[-1]
    assert b"Evil" not in head
    assert b"If-None-Match" not in head
    assert b"If-Modified-Since: Mon, 01 Jan 2024 00:00:00 GMT\r\n" in head


HEAVY = [
    "/endless/body",
    "/endless/chunks",
    "/endless/tiny-chunks",
    "/endless/gzip",
    "/endless/headers",
    "/endless/header-line",
    "/endless/chunk-extension",
    "/endless/trailers",
    "/endless/informational",
    "/bomb/gzip",
    "/bomb/deflate",
    "/bomb/br",
    "/bomb/zstd",
    "/headers/line",
]


@pytest.mark.long
def test_memory_stays_flat(hostile: HostileServer) -> None:
    """The body coded and decoded, and what aiohttp buffers; the server's side is in it too."""

    async def ask() -> None:
        async with fetcher(timeout_s=1.0) as session:
            for path in HEAVY:
                gc.collect()
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                with contextlib.suppress(FetchError):
                    await session.get(hostile.url + path)
                    pytest.fail(f"{path} gave a page")
                peak = tracemalloc.get_traced_memory()[1] - before
                assert peak < 6 * MAX_BYTES, f"{path}: {peak:,} bytes"

    for path in HEAVY:  # what is built once
        with contextlib.suppress(FetchError):
            get(hostile.url + path, timeout_s=0.5)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        asyncio.run(ask())
    finally:
        tracemalloc.stop()
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    assert grown_kb < 64 << 10
