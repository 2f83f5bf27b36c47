"""A site of few routes on loopback, the config to crawl it, and what was archived of it."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.core.manifest import Manifest
from pipeline.crawl import CrawlConfig
from pipeline.warc import WarcResponse, iter_responses

Answer = tuple[int, dict[str, str], bytes]


def html(text: str, *links: str) -> Answer:
    anchors = "".join(f'<a href="{link}">link</a>' for link in links)
    body = f"<html><title>{text}</title><p>{text}</p>{anchors}</html>"
    return 200, {"Content-Type": "text/html; charset=utf-8"}, body.encode()


def redirect(to: str) -> Answer:
    return 302, {"Location": to}, b""


class QuietHandler(BaseHTTPRequestHandler):
    """HTTP/1.1 on a kept connection; nothing is printed."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """What has not changed since the ETag that is asked with is a 304."""
        etag = headers.get("ETag")
        if status == 200 and etag is not None and etag == self.headers["If-None-Match"]:
            status, body = 304, b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    """A client that hangs up is part of the tests. It serves from construction until `close`."""

    daemon_threads = True

    def __init__(self, handler: type[QuietHandler], host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), handler)
        self.url = f"http://{host}:{self.server_address[1]}/"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *args: Any) -> None:
        pass

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Site:
    """Routes (path -> answer, or a function of how often it was asked) on a loopback port."""

    def __init__(self, routes: dict[str, Any], host: str = "127.0.0.1") -> None:
        self.routes = routes
        self.asked: list[tuple[str, float]] = []
        self.agents: set[str] = set()
        site = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, time.monotonic()))
                site.agents.add(self.headers["User-Agent"])
                route = site.routes.get(self.path, (404, {"Content-Type": "text/plain"}, b"none"))
                answer = route(site.count()[self.path]) if callable(route) else route
                if answer is None:  # hang up
                    self.close_connection = True
                    return
                self.answer(*answer)

        self.server = QuietServer(Handler, host)
        self.url = self.server.url

    def count(self) -> Counter[str]:
        return Counter(path for path, _ in self.asked)

    def close(self) -> None:
        self.server.close()


@pytest.fixture
def serve() -> Generator[Callable[[dict[str, Any]], Site]]:
    sites: list[Site] = []

    def start(routes: dict[str, Any], host: str = "127.0.0.1") -> Site:
        sites.append(Site(routes, host))
        return sites[-1]

    yield start
    for site in sites:
        site.close()


def config(*seeds: str, **changes: Any) -> CrawlConfig:
    defaults = {
        "delay_s": 0.0,
        "max_delay_s": 0.05,  # a pause after a failure, that is
        "retry_delay_s": 0.01,
        "max_robots_wait_s": 0.0,
        "allow_private": True,
        "timeout_s": 5.0,
    }
    return CrawlConfig(seeds=list(seeds), **{**defaults, **changes})


def responses(manifest: Manifest) -> list[WarcResponse]:
    found: list[WarcResponse] = []
    for entry in manifest.files:
        items = list(iter_responses(manifest.file_url(entry.name)))
        assert all(isinstance(item, WarcResponse) for item in items)
        assert len(items) == entry.num_rows
        found += [item for item in items if isinstance(item, WarcResponse)]
    return found


def paths(manifest: Manifest, site: Site) -> dict[str, int]:
    """{path: status}, each URL archived once."""
    found = responses(manifest)
    assert len({response.url for response in found}) == len(found) == manifest.counts.rows_out
    return {response.url.removeprefix(site.url): response.http_status for response in found}


SITEMAP = """<?xml version="1.0"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"><url><loc>/orphan</loc></url>
<url><loc>http://example.invalid/y</loc></url></urlset>"""
SMALL = {
    "/": html("home", "/a", "/b#part", "b", "/private/x", "/gone", "mailto:x@y", "/feed.txt"),
    "/a": html("a", "/", "/c?q=1", "//127.0.0.1:1/elsewhere", "http://example.invalid/"),
    "/b": html("b", "/old", '/no" rel="nofollow', "javascript:void(0)", "data:text/html,x"),
    "/c?q=1": html("c", "/a/../d", "/%7Euser"),
    "/d": html("d"),
    "/%7Euser": html("tilde"),
    "/no": html("not to be followed"),
    "/old": redirect("/new"),
    "/new": html("new"),
    "/orphan": html("only in the sitemap"),
    "/feed.txt": (200, {"Content-Type": "text/plain"}, b'<a href="/not-a-link">'),
    "/private/x": html("secret"),
    "/robots.txt": (200, {}, b"User-agent: *\nDisallow: /private\nSitemap: /map.xml\n"),
    "/map.xml": (200, {"Content-Type": "application/xml"}, SITEMAP.encode()),
}
