"""How far a crawl is, for Prometheus: /metrics on loopback while it runs."""

import contextlib
import http.server
import threading
from collections.abc import Generator
from typing import Any

from pipeline.core.errors import UserError
from pipeline.crawl_status import CrawlStatus, StatusBoard


def metrics(status: CrawlStatus) -> str:
    """In Prometheus' text format."""
    lines: list[str] = []

    def metric(name: str, kind: str, text: str, values: dict[str, float], label: str = "") -> None:
        lines.append(f"# HELP flywheel_crawl_{name} {text}")
        lines.append(f"# TYPE flywheel_crawl_{name} {kind}")
        for key, value in values.items():
            part = f'{{{label}="{_escaped(key)}"}}' if label else ""
            lines.append(f"flywheel_crawl_{name}{part} {value}")

    metric("pages_total", "counter", "Responses archived.", {"": status.num_archived})
    metric("bytes_total", "counter", "Bytes of their bodies.", {"": status.num_bytes})
    metric("known_urls", "gauge", "URLs found in scope.", {"": status.num_known})
    metric("waiting_urls", "gauge", "URLs not yet fetched.", {"": status.num_waiting})
    metric("waiting_hosts", "gauge", "Hosts with a URL waiting.", {"": status.hosts})
    metric("in_flight", "gauge", "Requests under way.", {"": status.busy})
    if status.is_at_work and status.seconds_left is not None:
        text = "Until the nearest of the budgets of pages, bytes and time is used up."
        metric("seconds_left", "gauge", text, {"": round(status.seconds_left, 1)})
    metric("responses_total", "counter", "By status.", dict(status.statuses), "status")
    metric("dropped_total", "counter", "By reason.", dict(status.dropped), "reason")
    metric("retries_total", "counter", "By reason.", dict(status.retries), "reason")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


@contextlib.contextmanager
def served_metrics(board: StatusBoard, port: int) -> Generator[None]:
    """/metrics on loopback while you are inside; nothing for port 0. Raises UserError if the port
    is taken."""
    if port == 0:
        yield
        return

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/metrics" and board.last is not None
            body = metrics(board.last).encode() if found and board.last else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
            pass

    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UserError(f"crawl.metrics_port = {port}: {error.strerror}; choose another") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
