"""A stand-in for Common Crawl's servers that fails as they do, with a small crawl on it."""

import json
import random
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

NUM_FILES, NUM_RECORDS = 3, 40


class Archive(ThreadingHTTPServer):
    """data.commoncrawl.org and its index server in one; `faults` of the ranges fail at first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.index: list[str] = []
        self.page_size = 25
        self.faults = 0.0
        self.is_down = False
        self.gives_ranges = True
        self.delay_s = 0.0
        self.asked: list[tuple[str, str]] = []
        self.agents: set[str] = set()
        self.failed: Counter[str] = Counter()
        self.rng = random.Random(5)
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def fault(self, what: str) -> str | None:
        with self.guard:
            if self.is_down:
                return "503"
            if self.rng.random() >= self.faults or self.failed[what] >= 3:
                return None
            self.failed[what] += 1
            return self.rng.choice(
                ["503", "429", "cut", "other range", "too long", "short", "reset"]
            )

    def whole(self, path: str) -> int:
        """How often a file was asked for, more than its first byte."""
        return sum(found == path and span != "bytes=0-0" for found, span in self.asked)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Archive

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None: ...

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        span = self.headers.get("Range", "")
        self.server.agents.add(self.headers.get("User-Agent", ""))
        with self.server.guard:
            self.server.asked.append((path, span))
        time.sleep(self.server.delay_s)
        fault = self.server.fault(self.path + span)
        if fault in ("503", "429"):
            self.answer(int(fault), b"<Code>SlowDown</Code>")
        elif fault == "reset":
            self.close_connection = True
        elif path == "/CC-TEST-index":
            self.search(dict(urllib.parse.parse_qsl(query)))
        elif path.lstrip("/") not in self.server.files:
            self.answer(404, b"")
        else:
            self.give(self.server.files[path.lstrip("/")], span, fault)

    def search(self, query: dict[str, str]) -> None:
        host = query["url"].removeprefix("*.").removesuffix("/*")
        found = [line for line in self.server.index if f"//{host}/" in line or host == "all"]
        size = self.server.page_size
        if "showNumPages" in query:
            return self.answer(200, json.dumps({"pages": -(-len(found) // size)}).encode())
        start = int(query["page"]) * size
        lines = "\n".join(found[start : start + size])
        return self.answer(200 if lines else 404, lines.encode())

    def give(self, data: bytes, span: str, fault: str | None) -> None:
        if not span or not self.server.gives_ranges:
            return self.answer(200, data)
        first, last = map(int, span.removeprefix("bytes=").split("-"))
        if first >= len(data):
            return self.answer(416, b"", f"bytes */{len(data)}")
        last = min(last, len(data) - 1)
        if fault == "other range" and last + 1 < len(data):
            first, last = first + 1, last + 1
        body = data[first : last + 1]
        place = f"bytes {first}-{last}/{len(data)}"
        if fault == "cut":
            return self.answer(206, body, place, cut=len(body) // 2)
        if fault == "short":
            body = body[:-1]
        return self.answer(206, body + b"x" * 9 * (fault == "too long"), place)

    def answer(self, status: int, body: bytes, place: str = "", cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        if place:
            self.send_header("Content-Range", place)
        self.end_headers()
        self.wfile.write(body[:cut])
        self.close_connection = cut is not None


@pytest.fixture
def archive(warc_record: Callable[..., bytes]) -> Iterator[Archive]:
    """Three WARC files of forty records of three sites, and their index."""
    with Archive() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        rng = random.Random(1)
        for number in range(NUM_FILES):
            name, data = f"crawl/{number}.warc.gz", b""
            for record in range(NUM_RECORDS):
                url = f"http://{rng.choice('abc')}.test/{number}/{record}"
                text = f"<p>{number} {record}</p>".encode() + rng.randbytes(rng.randrange(2000))
                member = warc_record(url, text)
                fields = {"url": url, "filename": name, "offset": str(len(data))}
                server.index.append(json.dumps({**fields, "length": str(len(member))}))
                data += member
            server.files[name] = data
        yield server
        server.shutdown()
        thread.join()
