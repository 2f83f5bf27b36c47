"""How far a crawl is: one line for a terminal, a file for another one, metrics for Prometheus."""

import contextlib
import dataclasses
import http.server
import json
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.crawl_service import ShardStatus
from pipeline.frontier_state import Tally

STATUS = "status.json"
_NUM_POINTS = 500  # of the timeline; beyond that every second one is left out


@dataclasses.dataclass(frozen=True)
class CrawlStatus:
    """All shards together. `timeline`: [seconds since the start, pages, bytes], ever coarser."""

    started: float
    at: float
    state: str
    max_pages: int
    num_known: int
    num_archived: int
    num_bytes: int
    num_waiting: int
    hosts: int
    busy: int
    statuses: dict[str, int]
    dropped: dict[str, int]
    refused_links: dict[str, int]
    retries: dict[str, int]
    shards: list[list[Any]]
    timeline: list[list[float]]

    @property
    def pages_per_s(self) -> float:
        """Over the last minute or so."""
        if len(self.timeline) < 2:
            return 0.0
        last = self.timeline[-1]
        first = next((p for p in reversed(self.timeline) if last[0] - p[0] >= 60), self.timeline[0])
        return (last[1] - first[1]) / max(1e-9, last[0] - first[0])


class StatusBoard:
    """Adds up what the shards say, and shows it."""

    def __init__(self, folder: Path, max_pages: int) -> None:
        self.folder, self.max_pages = folder, max_pages
        self.started = time.time()
        self.timeline: list[list[float]] = []
        self.shards: list[ShardStatus] = []  # as last told; a new owner's as its predecessor's
        self._gap_s = 1.0
        self.last: CrawlStatus | None = None
        self._written_at = 0.0

    def update(self, shards: Sequence[ShardStatus], state: str = "crawling") -> CrawlStatus:
        now = time.time()
        before = {shard.shard: shard for shard in self.shards if shard.is_known}
        self.shards = shards = [
            shard
            if shard.is_known or shard.shard not in before
            else dataclasses.replace(
                before[shard.shard], state=shard.state, is_idle=False, busy=0, next_turn_s=None
            )
            for shard in shards
        ]
        total = total_of([shard.tally for shard in shards])
        gone = now - self.started
        if not self.timeline or gone - self.timeline[-1][0] >= self._gap_s:
            self.timeline.append([round(gone, 1), total.num_archived, total.num_bytes])
            if len(self.timeline) > _NUM_POINTS:
                self.timeline, self._gap_s = self.timeline[::2], 2 * self._gap_s
        self.last = CrawlStatus(
            started=self.started,
            at=now,
            state=state,
            max_pages=self.max_pages,
            num_known=total.num_known,
            num_archived=total.num_archived,
            num_bytes=total.num_bytes,
            num_waiting=sum(shard.num_waiting for shard in shards),
            hosts=sum(shard.hosts for shard in shards),
            busy=sum(shard.busy for shard in shards),
            statuses={str(status): n for status, n in sorted(total.statuses.items())},
            dropped=dict(total.dropped.most_common()),
            refused_links=dict(_sum(shard.refused for shard in shards).most_common()),
            retries=dict(_sum(shard.retries for shard in shards).most_common()),
            shards=[
                [s.shard, s.epoch, s.state, s.tally.num_archived, s.num_waiting] for s in shards
            ],
            timeline=self.timeline,
        )
        if now - self._written_at > 2 or state != "crawling":
            self._written_at = now
            text = json.dumps(dataclasses.asdict(self.last))
            storage.write_bytes(str(self.folder / STATUS), text.encode())
        return self.last


def total_of(tallies: Sequence[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.num_known += tally.num_known
        total.num_archived += tally.num_archived
        total.num_bytes += tally.num_bytes
        total.statuses.update(tally.statuses)
        total.dropped.update(tally.dropped)
        total.warc_rows.update(tally.warc_rows)
        total.outside.update(tally.outside)
    return total


def _sum(parts: Any) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total


def note(status: CrawlStatus) -> str:
    """Behind the rate in the progress line."""
    said = [f"{status.num_bytes / 1e6:,.1f} MB", f"{status.hosts:,} hosts"]
    said.append(f"{status.num_waiting:,} waiting")
    blocked = sum(n for reason, n in status.dropped.items() if reason.startswith("robots"))
    failed = sum(status.dropped.values()) - blocked
    if blocked:
        said.append(f"{blocked:,} blocked by robots")
    if failed:
        said.append(f"{failed:,} dropped")
    return " · ".join(said)


def read_status(folder: Path) -> CrawlStatus:
    """What the crawl last wrote. Raises UserError if there is none."""
    try:
        return CrawlStatus(**json.loads((folder / STATUS).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"no crawl with this config has begun ({folder / STATUS})") from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{folder / STATUS} is damaged ({error}); a running crawl renews it"
        ) from None


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
