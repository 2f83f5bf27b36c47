"""A small web of six hosts whose link graph is known, and its server.

Pages link within and across hosts; some are orphans, some forbidden by robots.txt, some dead, some
redirect. `truth()` is what a right crawl from SEED archives: walked over the graph, not crawled.
"""

import argparse
import hashlib
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

HOSTS = tuple(f"www.{name}.example" for name in ("ash", "birch", "cedar", "elm", "fir", "larch"))
SEED = f"http://{HOSTS[0]}/"
PAGES_A_HOST = 60
ROBOTS = "User-agent: *\nDisallow: /private/\n"


@dataclass(frozen=True)
class Answer:
    """One response; `links` are the URLs that a crawler learns from it."""

    status: int
    body: bytes
    links: tuple[str, ...] = ()
    location: str | None = None
    content_type: str = "text/html; charset=utf-8"


def build_web(seed: int = 7) -> dict[str, Answer]:
    """Every URL that answers anything but 404. The same for the same seed."""
    choose = random.Random(seed)
    web: dict[str, Answer] = {}
    for number, host in enumerate(HOSTS):
        following = HOSTS[(number + 1) % len(HOSTS)]
        for page in range(PAGES_A_HOST):
            links = [f"http://{host}{_path(child)}" for child in range(2 * page + 1, 2 * page + 3)]
            links += [f"http://{choose.choice(HOSTS)}{_path(choose.randrange(PAGES_A_HOST))}"]
            if page == 0:
                links += [f"http://{following}/", f"http://{host}/private/notes"]
                links += [f"http://{host}/moved", f"http://{host}/missing"]
            web[f"http://{host}{_path(page)}"] = _page(f"{host}, page {page}", links, choose)
        web[f"http://{host}/orphan"] = _page(f"{host}: no page links here", [], choose)
        web[f"http://{host}/private/notes"] = _page(f"{host}: not for robots", [], choose)
        target = f"http://{host}{_path(5)}"
        web[f"http://{host}/moved"] = Answer(301, b"moved\n", (target,), target)
        robots = ROBOTS.encode()
        web[f"http://{host}/robots.txt"] = Answer(200, robots, content_type="text/plain")
    return web


def _path(page: int) -> str:
    return f"/p{page}.html" if page else "/"


def _page(title: str, links: Sequence[str], choose: random.Random) -> Answer:
    known = [link for link in links if "/p" not in link or _number(link) < PAGES_A_HOST]
    words = " ".join(choose.choices(("bark", "leaf", "root", "seed", "wood"), k=200))
    items = "".join(f'<li><a href="{link}">{link}</a></li>\n' for link in known)
    html = f"<!doctype html><title>{title}</title>\n<h1>{title}</h1><p>{words}</p><ul>{items}</ul>"
    return Answer(200, html.encode(), tuple(known))


def _number(link: str) -> int:
    digits = "".join(filter(str.isdigit, urlsplit(link).path))
    return int(digits) if digits else 0


def answer_to(web: Mapping[str, Answer], url: str) -> Answer:
    return web.get(url) or Answer(404, f"nothing at {url}\n".encode())


def truth(web: Mapping[str, Answer]) -> dict[str, str]:
    """URL -> sha256 of its body, of all that robots.txt allows and a link path from SEED reaches;
    redirects and 404s are answers too."""
    found: dict[str, str] = {}
    waiting = [SEED]
    while waiting:
        url = waiting.pop()
        if url in found or urlsplit(url).path.startswith("/private/"):
            continue
        answer = answer_to(web, url)
        found[url] = hashlib.sha256(answer.body).hexdigest()
        waiting.extend(answer.links)
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    web: Mapping[str, Answer]
    log: Path
    lock = threading.Lock()

    def do_GET(self) -> None:
        url = f"http://{self.headers.get('Host', '')}{self.path}"
        answer = answer_to(self.web, url)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.location:
            self.send_header("Location", answer.location)
        self.end_headers()
        self.wfile.write(answer.body)
        line = {"at": time.time(), "url": url, "by": self.client_address[0]}
        with self.lock, self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the web of known links, until killed.")
    parser.add_argument("--log", type=Path, required=True, help="one JSON line a request")
    parser.add_argument("addresses", nargs="+", help="one per host; port 80")
    options = parser.parse_args()
    _Handler.web, _Handler.log = build_web(), options.log
    servers = [ThreadingHTTPServer((address, 80), _Handler) for address in options.addresses]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


if __name__ == "__main__":
    main()
