"""A real web site with no network: the standard library's documentation, over HTTP.

The pages (infra/demo_pages.py) are rendered on demand in a child process with a time limit, and
kept in memory. The bytes of a page depend on the Python alone: not on this machine's paths, nor
on what was asked before.
"""

import argparse
import hashlib
import json
import logging
import os
import pkgutil
import re
import selectors
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import unquote

from infra.demo_pages import html_page, install_paths, stdlib_modules
from pipeline.core.errors import UserError

log = logging.getLogger(__name__)

# ----------------------------------------------------------- rendering, as the server sees it

_ROOT = str(Path(__file__).resolve().parent.parent)
_CHILD = """import json, sys
config = json.loads(sys.stdin.readline())
sys.path.append(config["root"])
from infra.demo_pages import work
work(config)"""
_START_LIMIT_S = 30.0


@dataclass(frozen=True)
class Response:
    """What a path answers; the ETag is of the body alone."""

    status: int
    body: bytes
    content_type: str = "text/html; charset=utf-8"

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


def _error(status: HTTPStatus, why: str) -> Response:
    body = html_page(f"{status.value} {status.phrase}", f"<h1>{status.phrase}</h1>\n<p>{why}</p>")
    return Response(status.value, body.encode())


_NOT_FOUND = _error(HTTPStatus.NOT_FOUND, "This site has no such page.")
_NOT_ALLOWED = _error(HTTPStatus.METHOD_NOT_ALLOWED, "This site answers GET and HEAD alone.")
_BROKEN = _error(HTTPStatus.INTERNAL_SERVER_ERROR, "This page could not be rendered.")
_TOO_SLOW = _error(HTTPStatus.SERVICE_UNAVAILABLE, "This page took too long. Ask again later.")


class Renderer:
    """Pages of `modules` from one child process, each rendered once and then kept in memory.

    A page that exceeds `timeout_s` answers 503 and costs the child its life; it is not kept, and
    the next page gets a new child. Modules are looked for in `search_path` first.
    """

    def __init__(
        self, modules: Sequence[str], timeout_s: float = 10.0, search_path: Sequence[str] = ()
    ) -> None:
        self._config = {
            "modules": sorted(modules),
            "paths": install_paths(),
            "root": _ROOT,
            "search_path": list(search_path),
            "timeout_s": timeout_s,
        }
        self._timeout_s = timeout_s
        self._modules = frozenset(modules)
        self._kept: dict[str, Response] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._one_at_a_time = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The process id of the child, None while there is none."""
        return self._child.pid if self._child else None

    def render(self, name: str) -> Response:
        """The page of a module: 200, 404 (unknown, or fails to import), 500 or 503."""
        if name not in self._modules:
            return _NOT_FOUND
        if name not in self._kept:
            with self._one_at_a_time:
                response = self._kept.get(name) or self._render_anew(name)
                if response.status >= 500:
                    return response
                self._kept[name] = response
        return self._kept[name]

    def _render_anew(self, name: str) -> Response:
        try:
            answer = self._ask(self._living_child(), {"name": name}, self._timeout_s)
        except (TimeoutError, EOFError, BrokenPipeError) as error:
            log.warning("no page for %s: %s", name, error)
            self._end_child()
            return _TOO_SLOW
        if answer["status"] == HTTPStatus.OK:
            return Response(200, answer["html"].encode("utf-8", "backslashreplace"))
        log.warning("no page for %s: %s", name, answer["why"])
        return _NOT_FOUND if answer["status"] == HTTPStatus.NOT_FOUND else _BROKEN

    def _living_child(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise EOFError("the site has stopped")
        if self._child and self._child.poll() is None:
            return self._child
        self._end_child()
        # Apart from the user's settings, and with the same order of a set each time.
        environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LC_ALL": "C", "TZ": "UTC"}
        environment |= {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-S", "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        self._ask(self._child, self._config, _START_LIMIT_S)
        return self._child

    def _ask(
        self, child: subprocess.Popen[bytes], message: Mapping[str, object], limit_s: float
    ) -> dict[str, Any]:
        assert child.stdin
        assert child.stdout
        child.stdin.write(json.dumps(message).encode() + b"\n")
        child.stdin.flush()
        return json.loads(_read_line(child.stdout.fileno(), time.monotonic() + limit_s))

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child:
            _kill(child)
            child.communicate()  # closes the pipes and waits

    def close(self) -> None:
        """Ends the child, even in the middle of a page; later calls of `render` answer 503."""
        self._closed = True
        child = self._child
        if child:
            _kill(child)  # before the lock: the thread that waits for a page lets go of it
        with self._one_at_a_time:
            self._end_child()


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)  # the group: a fork of the child may be rendering


def _read_line(pipe: int, deadline: float) -> bytes:
    chunks: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not chunks or not chunks[-1].endswith(b"\n"):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not selector.select(left_s):
                raise TimeoutError("it took longer than the limit")
            chunks.append(os.read(pipe, 1 << 20))
            if not chunks[-1]:
                raise EOFError("the child ended")
    return b"".join(chunks)


# --------------------------------------------------------------------- the site and its server

_PRIVATE = ("notes", "drafts")


def _links(title: str, hrefs: Mapping[str, str]) -> str:
    items = "".join(f'<li><a href="{href}">{text}</a></li>\n' for text, href in hrefs.items())
    return f"<section><h2>{title}</h2>\n<ul>\n{items}</ul></section>\n"


def _index(modules: Sequence[str]) -> str:
    groups: dict[str, dict[str, str]] = {"Modules": {}}
    packages = {name.partition(".")[0] for name in modules if "." in name}
    for name in modules:
        top = name.partition(".")[0]
        group = f"Package {top}" if top in packages else "Modules"
        groups.setdefault(group, {})[name] = f"/{name}.html"
    groups["Not for robots"] = {name: f"/private/{name}.html" for name in _PRIVATE}
    groups["Dead on purpose"] = {"missing": "/missing.html"}
    lists = "".join(_links(title, hrefs) for title, hrefs in groups.items() if hrefs)
    return html_page("Python library", f"<h1>Python library, module by module</h1>\n{lists}")


def _fixed_pages(url: str, modules: Sequence[str]) -> dict[str, Response]:
    """Everything that needs no rendering, by path."""
    index = Response(200, _index(modules).encode())
    robots = f"User-agent: *\nDisallow: /private/\n\nSitemap: {url}sitemap.xml\n"
    pages = [url, *(f"{url}{name}.html" for name in modules)]
    sitemap = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
        + "".join(f"<url><loc>{page}</loc></url>\n" for page in pages)
        + "</urlset>\n"
    )
    fixed = {
        "/": index,
        "/index.html": index,
        "/robots.txt": Response(200, robots.encode(), "text/plain; charset=utf-8"),
        "/sitemap.xml": Response(200, sitemap.encode(), "application/xml; charset=utf-8"),
    }
    for name in _PRIVATE:
        body = f"<h1>{name}</h1>\n<p>A robot that reads this has ignored robots.txt.</p>"
        fixed[f"/private/{name}.html"] = Response(200, html_page(name, body).encode())
    return fixed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "FlywheelDemoSite"
    sys_version = ""
    timeout = 30  # seconds an idle connection is kept
    disable_nagle_algorithm = True  # or each answer on a kept connection waits 40 ms

    def __init__(self, respond: Callable[[str], Response], *args: Any) -> None:
        self._respond = respond
        super().__init__(*args)

    def do_GET(self) -> None:
        response = self._respond(unquote(re.split("[?#]", self.path)[0]))
        asked = self.headers.get("If-None-Match", "")
        tags = {tag.strip().removeprefix("W/") for tag in asked.split(",")}
        fresh = response.status == HTTPStatus.OK and bool(tags & {"*", response.etag})
        self._send(response, HTTPStatus.NOT_MODIFIED if fresh else response.status)

    do_HEAD = do_GET

    def _send(self, response: Response, status: int, *headers: tuple[str, str]) -> None:
        has_body = status != HTTPStatus.NOT_MODIFIED
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if response.status == HTTPStatus.OK:
            self.send_header("ETag", response.etag)
        if has_body:
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if has_body and self.command != "HEAD":
            self.wfile.write(response.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The base class answers 501 to a method it finds no do_… for; here that is a 405."""
        if code != HTTPStatus.NOT_IMPLEMENTED:
            super().send_error(code, message, explain)
            return
        length = self.headers.get("Content-Length", "")
        if length.isdecimal():  # closing on an unread body would reset the connection
            self.rfile.read(min(int(length), 1 << 20))
        self._send(_NOT_ALLOWED, 405, ("Allow", "GET, HEAD"), ("Connection", "close"))

    def log_message(self, *args: Any, **_: Any) -> None:
        log.debug(*args)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def server_bind(self) -> None:
        # Not HTTPServer's, which looks the host's name up: there may be no network.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = cast("tuple[str, int]", self.server_address[:2])

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that left is no error
            super().handle_error(request, client_address)


class DemoSite:
    """The site as a context manager: `with DemoSite(modules=("json",)) as site: site.url`.

    `modules` None means all of `stdlib_modules()`; port 0 takes any free port. A port in use, or
    a module that the site must not show, raises UserError.
    """

    def __init__(
        self,
        port: int = 0,
        modules: Sequence[str] | None = None,
        render_timeout_s: float = 10.0,
        host: str = "127.0.0.1",
        search_path: Sequence[str] = (),
    ) -> None:
        known = stdlib_modules() + tuple(m.name for m in pkgutil.iter_modules(list(search_path)))
        self.modules = known if modules is None else tuple(sorted(set(modules)))
        unknown = sorted(set(self.modules) - set(known))
        if unknown:
            raise UserError(f"no page for {', '.join(unknown)}: name public standard modules")
        self.host, self.port = host, port
        self.renderer = Renderer(self.modules, render_timeout_s, search_path)
        self._fixed: dict[str, Response] = {}
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/"

    def start(self) -> None:
        try:
            self._server = _Server((self.host, self.port), partial(_Handler, self._respond))
        except OSError as error:
            raise UserError(
                f"cannot listen on {self.host} port {self.port} ({error.strerror}): "
                "choose another with site.port=NUMBER"
            ) from error
        self.port = self._server.server_port
        self._fixed = _fixed_pages(self.url, self.modules)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Ends the server and the child; a second call does nothing."""
        server, self._server = self._server, None
        if server:
            server.shutdown()
            server.server_close()
        self.renderer.close()

    def _respond(self, path: str) -> Response:
        fixed = self._fixed.get(path)
        if fixed or not path.endswith(".html"):
            return fixed or _NOT_FOUND
        return self.renderer.render(path.removeprefix("/").removesuffix(".html"))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


# ------------------------------------------------------------------------------- the command


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 0 to 65535")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.demo_site",
        description="Serve the documentation of Python's standard library as a web site to crawl: "
        "some hundred linked pages, a robots.txt that forbids /private/, a sitemap, one dead link. "
        "Needs no network. Pages are rendered when first asked for. Ctrl-C ends it.",
        epilog="Try: python -m infra.demo_site --port 8700, then open http://127.0.0.1:8700/",
    )
    parser.add_argument("--port", type=_port, default=8700, help="0: any free one (default: 8700)")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    options = parser.parse_args(argv)
    try:
        with DemoSite(options.port, host=options.host) as site:
            print(f"{len(site.modules)} pages at {site.url} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
