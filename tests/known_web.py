"""A small web whose link graph is known, and its server.

Pages link within and across hosts, in many spellings; some are orphans, some forbidden (robots.txt,
ai.txt, tdmrep.json, noindex, nofollow), some dead, some redirect, some stand only in a sitemap.
`truth` is what a right crawl archives: walked over the graph, not crawled.
"""

import argparse
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

HOSTS = tuple(f"www.{name}.example" for name in ("ash", "birch", "cedar", "elm", "fir", "larch"))
PAGES_A_HOST = 60
AI_TXT, TDMREP = "/ai.txt", "/.well-known/tdmrep.json"
ORIGIN_FILES = ("/robots.txt", AI_TXT, TDMREP)
PLAIN = "text/plain"
SPELLINGS = (
    "{url}",
    "{url}#top",
    "{url}?utm_source=here",
    "http://{HOST}{path}",
    "  {url}\n",
    "//{host}{path}",
    "http://{host}/x/..{path}",
)


@dataclass(frozen=True)
class Answer:
    """One response. `links`: the URLs that a crawler may learn from it; `is_kept`: whether it may
    archive it."""

    status: int
    body: bytes
    links: tuple[str, ...] = ()
    location: str | None = None
    content_type: str = "text/html; charset=utf-8"
    is_kept: bool = True


def build_web(
    hosts: Sequence[str] = HOSTS, pages_a_host: int = PAGES_A_HOST, seed: int = 7
) -> dict[str, Answer]:
    """Every URL that answers anything but 404; `hosts` may have a port. The same for one seed."""
    choose = random.Random(seed)
    web: dict[str, Answer] = {}
    for number, host in enumerate(hosts):
        at = f"http://{host}"
        for page in range(pages_a_host):
            children = [child for child in (2 * page + 1, 2 * page + 2) if child < pages_a_host]
            links = [f"{at}{_path(child)}" for child in children]
            links.append(f"http://{choose.choice(hosts)}{_path(choose.randrange(pages_a_host))}")
            if page == 0:
                links += [f"http://{hosts[(number + 1) % len(hosts)]}/"]
                links += [f"{at}/{name}" for name in ("moved", "missing", "private/notes")]
                links += [f"{at}/{name}" for name in ("unkept", "dead-end", "art/1", "press/1")]
            web[f"{at}{_path(page)}"] = _page(f"{host}, page {page}", links, choose)
        web |= _oddities(at, choose)
    return web


def _oddities(at: str, choose: random.Random) -> dict[str, Answer]:
    """Of one host: what must be found, or must not, in other ways than by a plain link."""
    pages: dict[str, tuple[list[str], str]] = {  # path -> links, head
        "/orphan": ([], ""),
        "/private/notes": ([f"{at}/only-private"], ""),
        "/only-private": ([], ""),
        "/only-sitemap": ([f"{at}/behind-sitemap"], ""),
        "/behind-sitemap": ([], ""),
        "/unkept": ([f"{at}/behind-unkept"], '<meta name="robots" content="noindex">'),
        "/behind-unkept": ([], ""),
        "/dead-end": ([f"{at}/behind-dead-end"], '<meta name="robots" content="nofollow">'),
        "/behind-dead-end": ([], ""),
        "/art/1": ([f"{at}/behind-art"], ""),
        "/behind-art": ([], ""),
        "/press/1": ([f"{at}/behind-press"], ""),
        "/behind-press": ([], ""),
    }
    found: dict[str, Answer] = {}
    for path, (links, head) in pages.items():
        answer = _page(f"{at}{path}", links, choose, head)
        shown = () if "nofollow" in head else answer.links
        is_kept = "noindex" not in head and path != "/press/1"
        found[f"{at}{path}"] = Answer(200, answer.body, shown, is_kept=is_kept)
    target = f"{at}{_path(5)}"
    found[f"{at}/moved"] = Answer(301, b"moved\n", (target,), target)
    robots = f"User-agent: *\nDisallow: /private/\nSitemap: {at}/sitemap.xml\n"
    found[f"{at}/robots.txt"] = Answer(200, robots.encode(), content_type=PLAIN)
    sitemap = f"<urlset><url><loc>{at}/only-sitemap</loc></url></urlset>"
    found[f"{at}/sitemap.xml"] = Answer(
        200, sitemap.encode(), (f"{at}/only-sitemap",), content_type="application/xml"
    )
    ai_txt = b"User-Agent: *\nDisallow: /art/\n"
    found[f"{at}{AI_TXT}"] = Answer(200, ai_txt, content_type=PLAIN)
    reserved = b'[{"location": "/press/*", "tdm-reservation": 1}]'
    found[f"{at}{TDMREP}"] = Answer(200, reserved, content_type="application/json")
    return found


def _path(page: int) -> str:
    return f"/p{page}.html" if page else "/"


def _page(title: str, links: Sequence[str], choose: random.Random, head: str = "") -> Answer:
    words = " ".join(choose.choices(("bark", "leaf", "root", "seed", "wood"), k=200))
    items = "".join(f'<li><a href="{_spelt(link, choose)}">{link}</a></li>\n' for link in links)
    html = f"<!doctype html><title>{title}</title>{head}<h1>{title}</h1><p>{words}</p><ul>{items}"
    return Answer(200, html.encode(), tuple(links))


def _spelt(url: str, choose: random.Random) -> str:
    parts = urlsplit(url)
    spelling = choose.choice(SPELLINGS)
    return spelling.format(url=url, host=parts.netloc, HOST=parts.netloc.upper(), path=parts.path)


def answer_to(web: Mapping[str, Answer], url: str) -> Answer:
    return web.get(url) or Answer(404, f"nothing at {url}\n".encode(), content_type=PLAIN)


def truth(web: Mapping[str, Answer]) -> dict[str, str]:
    """URL -> sha256 of its body, of all that may be archived and that a link path from the first
    host or any reached host's sitemap leads to; redirects and 404s are answers too."""
    found: dict[str, str] = {}
    known: set[str] = set()
    waiting = [next(iter(web))]
    while waiting:
        url = waiting.pop()
        path = urlsplit(url).path
        if url in known or path.startswith(("/private/", "/art/")):
            continue
        known.add(url)
        answer = answer_to(web, url)
        if answer.is_kept:
            found[url] = hashlib.sha256(answer.body).hexdigest()
        waiting += [*answer.links, f"http://{urlsplit(url).netloc}/sitemap.xml"]
    return found


def is_origin_file(url: str) -> bool:
    """Whether it is one of the files by which an origin speaks for itself."""
    return urlsplit(url).path in ORIGIN_FILES


def _handler(
    web: Mapping[str, Answer], note: Callable[[str, str], None]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            url = f"http://{self.headers.get('Host', '')}{self.path}"
            answer = answer_to(web, url)
            note(url, self.client_address[0])
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            if answer.location:
                self.send_header("Location", answer.location)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that is killed is part of the tests


@dataclass(frozen=True)
class Served:
    """A web on loopback. `asked`: the URLs so far, in order."""

    web: dict[str, Answer]
    hosts: tuple[str, ...]
    asked: list[str]

    @property
    def seed(self) -> str:
        return f"http://{self.hosts[0]}/"

    @property
    def pages_asked(self) -> list[str]:
        return [url for url in self.asked if not is_origin_file(url)]


@contextmanager
def serve(num_hosts: int, pages_a_host: int) -> Generator[Served]:
    """Hosts 127.0.0.1, 127.0.0.2 … on one free port."""
    asked: list[str] = []
    web: dict[str, Answer] = {}
    handler = _handler(web, lambda url, _by: asked.append(url))
    servers = [_Server(("127.0.0.1", 0), handler)]
    port = servers[0].server_address[1]
    servers += [_Server((f"127.0.0.{n}", port), handler) for n in range(2, num_hosts + 1)]
    hosts = tuple(f"127.0.0.{n}:{port}" for n in range(1, num_hosts + 1))
    web.update(build_web(hosts, pages_a_host))
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield Served(web, hosts, asked)
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the web of known links, until killed.")
    parser.add_argument("--log", type=Path, required=True, help="one JSON line a request")
    parser.add_argument("addresses", nargs="+", help="one per host; port 80")
    options = parser.parse_args()
    lock = threading.Lock()

    def note(url: str, by: str) -> None:
        with lock, options.log.open("a") as file:
            file.write(json.dumps({"at": time.time(), "url": url, "by": by}) + "\n")

    handler = _handler(build_web(), note)
    servers = [_Server((address, 80), handler) for address in options.addresses]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


if __name__ == "__main__":
    main()
