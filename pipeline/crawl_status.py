"""How far a crawl is: one line for a terminal, a file for another one, metrics for Prometheus."""

import contextlib
import dataclasses
import fcntl
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
from pipeline.core.manifest import LOCK
from pipeline.crawl_service import ShardResult, ShardStatus
from pipeline.frontier_state import Tally
from pipeline.host_waits import FEW_HOSTS

STATUS = "status.json"
_NUM_POINTS = 500  # of the timeline; beyond that every second one is left out


@dataclasses.dataclass(frozen=True)
class CrawlStatus:
    """All shards together. `timeline`: [seconds since the last start, pages, bytes], ever coarser;
    its first point is what was there then. `waits`: [host, URLs, seconds to its next request] of
    the hosts that are left, if they are few. `ended_by`: the key of the budget that was used up.
    """

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
    num_unchanged: int = 0
    num_excluded: int = 0
    waits: list[list[Any]] = dataclasses.field(default_factory=list[list[Any]])
    ended_by: str = ""

    @property
    def num_wanted(self) -> int:
        """Pages in the end, by what is known now: without what was dropped or has no budget."""
        ahead = self.num_waiting + self.busy - self.num_excluded
        most = self.max_pages + self.num_unchanged
        return max(self.num_archived, min(most, self.num_archived + ahead))

    @property
    def num_charged(self) -> int:
        """Pages that count against the budget: in a recrawl not those that have not changed."""
        return self.num_archived - self.num_unchanged

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
        self.ended_by = ""
        self._written_at = 0.0

    def update(self, shards: Sequence[ShardStatus], state: str = "crawling") -> CrawlStatus:
        now = time.time()
        before = {shard.shard: shard for shard in self.shards if shard.is_known}
        self.shards = [
            shard
            if shard.is_known or shard.shard not in before
            else dataclasses.replace(
                before[shard.shard],
                state=shard.state,
                is_idle=False,
                busy=0,
                next_turn_s=None,
                limit=0,
                waits=(),
            )
            for shard in shards
        ]
        return self._show(state, now)

    def end(self, shards: Sequence[ShardStatus | None], state: str) -> CrawlStatus:
        """What the shards said last; of one that could not (None), what it said before. At least
        one must have said something."""
        known = {shard.shard: shard for shard in [*self.shards, *shards] if shard is not None}
        return self.update([dataclasses.replace(s, state=state) for s in known.values()], state)

    def finished(self, results: Sequence[ShardResult], ended_by: str) -> CrawlStatus:
        """What the shards' results are in the end."""
        self.ended_by = ended_by
        ends = [
            dataclasses.replace(
                shard,
                tally=result.tally,
                num_waiting=result.num_waiting,
                busy=0,
                hosts=sum(host.waiting > 0 for host in result.hosts),
                waits=(),
                refused=result.refused,
                retries=result.retries,
            )
            for shard, result in zip(self.shards, results, strict=True)
        ]
        return self.end(ends, "finished")

    def _show(self, state: str, now: float) -> CrawlStatus:
        total = total_of([shard.tally for shard in self.shards])
        self._note_time(now, total, is_last=state == "finished")
        self.last = self._sum(total, state, now)
        if now - self._written_at > 2 or state != "crawling":
            self._written_at = now
            text = json.dumps(dataclasses.asdict(self.last))
            storage.write_bytes(str(self.folder / STATUS), text.encode())
        return self.last

    def _note_time(self, now: float, total: Tally, *, is_last: bool) -> None:
        if not all(shard.is_known for shard in self.shards):
            return  # what was there before would look like this run's
        gone = now - self.started
        if is_last or not self.timeline or gone - self.timeline[-1][0] >= self._gap_s:
            self.timeline.append([round(gone, 1), total.num_archived, total.num_bytes])
            if len(self.timeline) > _NUM_POINTS:
                self.timeline, self._gap_s = self.timeline[::2], 2 * self._gap_s

    def _sum(self, total: Tally, state: str, now: float) -> CrawlStatus:
        shards = self.shards
        hosts = sum(shard.hosts for shard in shards)
        waits = sorted((wait for s in shards for wait in s.waits), key=lambda w: -w.num_waiting)
        is_few = state == "crawling" and hosts <= FEW_HOSTS
        return CrawlStatus(
            started=self.started,
            at=now,
            state=state,
            max_pages=self.max_pages,
            num_known=total.num_known,
            num_archived=total.num_archived,
            num_bytes=total.num_bytes,
            num_waiting=sum(shard.num_waiting for shard in shards),
            hosts=hosts,
            busy=sum(shard.busy for shard in shards),
            statuses={str(status): n for status, n in sorted(total.statuses.items())},
            dropped=dict(total.dropped.most_common()),
            refused_links=dict(_sum(shard.refused for shard in shards).most_common()),
            retries=dict(_sum(shard.retries for shard in shards).most_common()),
            shards=[
                [s.shard, s.epoch, s.state, s.tally.num_archived, s.num_waiting] for s in shards
            ],
            timeline=self.timeline,
            num_unchanged=total.num_unchanged,
            num_excluded=sum(shard.num_excluded for shard in shards),
            waits=[[w.name, w.num_waiting, round(w.turn_in_s, 1)] for w in waits if is_few],
            ended_by=self.ended_by,
        )


def total_of(tallies: Sequence[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.num_known += tally.num_known
        total.num_archived += tally.num_archived
        total.num_unchanged += tally.num_unchanged
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
    said = [f"{status.num_bytes / 1e6:,.1f} MB"]
    if status.num_waiting:
        said.append(f"{status.num_waiting:,} waiting at {count(status.hosts, 'host')}")
    kinds = Counter[str]()
    for reason, number in status.dropped.items():
        kinds[_kind_of(reason)] += number
    said += [f"{number:,} {kind}" for kind, number in kinds.items()]
    if held := held_up(status):
        said.append(held)
    return " · ".join(said)


def _kind_of(reason: str) -> str:
    if reason.startswith("robots unreachable"):
        return "unreachable"
    return "blocked by robots" if reason.startswith("robots") else "dropped"


def held_up(status: CrawlStatus) -> str:
    """What a crawl of few hosts waits for; empty if that is nothing, or many."""
    waits = [wait for wait in status.waits if wait[2] >= 1]
    if not waits or status.busy:
        return ""
    name, number, turn_in_s = min(waits, key=lambda wait: wait[2])
    more = f" and {count(len(waits) - 1, 'more host')}" if len(waits) > 1 else ""
    return f"waiting for {name} (next in {turn_in_s:,.0f} s, {count(number, 'URL')}){more}"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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


def is_running(folder: Path) -> bool | None:
    """Whether someone on this machine writes the crawl in this folder, by its lock; None where
    that cannot be told."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


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
