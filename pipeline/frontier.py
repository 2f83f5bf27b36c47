"""What is known, what is waiting and what is done: the state of a crawl, kept in one log.

Each event is one JSON line, in the file before anything builds on it; a rerun replays the lines.
A page's line carries the links found on it, so that a kill loses either both or neither.
"""

import dataclasses
import heapq
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ada_url

from pipeline.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Entry:
    """A canonical URL to fetch. `hops`: redirects (or sitemap indices) that led here."""

    url: str
    depth: int
    hops: int = 0
    is_sitemap: bool = False

    @property
    def host(self) -> str:
        """Whose politeness it falls under: the host name, whatever the port."""
        return str(ada_url.URL(self.url).hostname)


@dataclasses.dataclass(frozen=True)
class Archived:
    """A response in a WARC file. `end` is the offset behind it; `outside`, if not empty, the host
    beyond the scope that it redirects to."""

    status: int
    payload_sha256: str
    warc: str
    end: int
    outside: str = ""


@dataclasses.dataclass(frozen=True)
class Scope:
    """`hosts` as in a canonical URL: name, and port where it is not the scheme's own."""

    hosts: frozenset[str]
    max_depth: int

    def admits(self, entry: Entry) -> bool:
        return entry.depth <= self.max_depth and host_of(entry.url) in self.hosts


def host_of(url: str) -> str:
    return str(ada_url.URL(url).host)


class Frontier:
    """Per-host queues in order of discovery, one request at a time per host.

    Times are seconds of any clock that never goes back; the caller passes them in.
    """

    def __init__(
        self, log: Path, scope: Scope, max_pages: int, bytes_in_warc: Callable[[str], int]
    ) -> None:
        """Replay the log, if there is one. A page whose WARC is shorter than the log says
        (`bytes_in_warc`, after a power cut) waits again. Raises UserError for a corrupt log."""
        self.scope, self.max_pages = scope, max_pages
        self.archived: dict[str, Archived] = {}
        self.dropped: dict[str, str] = {}
        self._known: set[str] = set()
        self._queues: dict[str, deque[Entry]] = {}
        self._ready: list[tuple[float, int, str]] = []  # a heap of (when, tie, idle host)
        self._idle: set[str] = set()
        self._free_at: dict[str, float] = {}
        self._num_turns = 0
        self.num_waiting = 0
        self._in_flight: dict[str, Entry] = {}
        self._replay(log, bytes_in_warc)
        self._log = log.open("ab", buffering=0)

    @property
    def num_known(self) -> int:
        return len(self._known)

    @property
    def num_finished(self) -> int:
        return len(self.archived) + len(self.dropped)

    @property
    def is_spent(self) -> bool:
        """Whether what is archived and in flight fills the budget."""
        return len(self.archived) + len(self._in_flight) >= self.max_pages

    def statuses(self) -> dict[int, int]:
        return dict(sorted(Counter(item.status for item in self.archived.values()).items()))

    def warc_ends(self) -> dict[str, int]:
        """The end of the last known record of each WARC file."""
        ends: dict[str, int] = {}
        for item in self.archived.values():
            ends[item.warc] = max(item.end, ends.get(item.warc, 0))
        return ends

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in what is new and in scope."""
        if new := self._new(entries):
            self._write({"event": "discovered", "entries": [_row(entry) for entry in new]})
            self._enqueue(new)

    def take(self, now: float) -> Entry | None:
        """The next URL of a host whose turn it is. Nobody else gets that host until `release`."""
        if self.is_spent or not self._ready or self._ready[0][0] > now:
            return None
        host = heapq.heappop(self._ready)[2]
        self._idle.discard(host)
        entry = self._queues[host].popleft()
        self._in_flight[host] = entry
        self.num_waiting -= 1
        return entry

    def next_turn(self) -> float | None:
        """When the next idle host may be asked, or None if none has anything waiting."""
        return self._ready[0][0] if self._ready else None

    def archive(self, entry: Entry, item: Archived, links: Iterable[Entry]) -> None:
        """The response is in the WARC file; its links become known with it."""
        new = self._new(links)
        line = {"event": "done", "url": entry.url, **dataclasses.asdict(item)}
        self._write({**line, "entries": [_row(link) for link in new]})
        self.archived[entry.url] = item
        self._enqueue(new)

    def drop(self, entry: Entry, reason: str) -> None:
        self._write({"event": "dropped", "url": entry.url, "reason": reason})
        self.dropped[entry.url] = reason

    def release(self, entry: Entry, free_at: float) -> None:
        """The host of `entry` may be asked again from `free_at` on."""
        host = entry.host
        self._in_flight.pop(host, None)
        self._free_at[host] = free_at
        self._make_ready(host)

    def sync(self) -> None:
        os.fsync(self._log.fileno())

    def close(self) -> None:
        self._log.close()

    def _new(self, entries: Iterable[Entry]) -> list[Entry]:
        new: dict[str, Entry] = {}
        for entry in entries:
            if entry.url not in self._known and entry.url not in new and self.scope.admits(entry):
                new[entry.url] = entry
        return list(new.values())

    def _enqueue(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._known.add(entry.url)
            self.num_waiting += 1
            host = entry.host
            self._queues.setdefault(host, deque()).append(entry)
            self._make_ready(host)

    def _make_ready(self, host: str) -> None:
        if self._queues.get(host) and host not in self._idle and host not in self._in_flight:
            self._num_turns += 1
            self._idle.add(host)
            heapq.heappush(self._ready, (self._free_at.get(host, 0.0), self._num_turns, host))

    def _write(self, event: dict[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n"
        view = memoryview(line.encode())
        while view:
            view = view[self._log.write(view) or 0 :]

    def _replay(self, log: Path, bytes_in_warc: Callable[[str], int]) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        data = log.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(log, whole)  # the line that a kill tore
        discovered: list[Entry] = []
        sizes: dict[str, int] = {}
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                event = json.loads(line)
                discovered += [Entry(*row) for row in event.get("entries", ())]
                if event["event"] == "dropped":
                    self.dropped[event["url"]] = event["reason"]
                elif event["event"] == "done":
                    fields = {f.name: event[f.name] for f in dataclasses.fields(Archived)}
                    item = Archived(**fields)
                    if item.warc not in sizes:
                        sizes[item.warc] = bytes_in_warc(item.warc)
                    if item.end <= sizes[item.warc]:
                        self.archived[event["url"]] = item
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"line {number} of {log} is damaged; delete {log.parent} to crawl afresh"
                ) from None
        self._known = {entry.url for entry in discovered}
        finished = self.archived.keys() | self.dropped.keys()
        self._enqueue([entry for entry in discovered if entry.url not in finished])


def _row(entry: Entry) -> list[Any]:
    return [entry.url, entry.depth, entry.hops, entry.is_sitemap]
