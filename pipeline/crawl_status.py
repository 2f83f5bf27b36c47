"""How far a crawl is: one line for a terminal, a file for another one and for the next start."""

import dataclasses
import fcntl
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.manifest import LOCK
from pipeline.crawl_config import CrawlConfig
from pipeline.crawl_service import ShardResult, ShardStatus
from pipeline.frontier_state import Tally
from pipeline.host_waits import FEW_HOSTS

STATUS = "status.json"
BY_HAND = "finished by hand"
NOT_ONE_PAGE = "failed: not one page"
_NUM_POINTS = 500  # of the timeline; beyond that every second one is left out
_AT_WORK = ("starting", "crawling", "finishing")


@dataclasses.dataclass(frozen=True)
class CrawlStatus:
    """All shards together, over all starts. `timeline`: [seconds at work, pages, bytes], ever
    coarser; a start begins with what is there then. `waits`: [host, URLs, seconds to its next
    request] of the hosts that are left, if they are few. `ended_by`: the key of the budget that was
    used up, or BY_HAND. `started` is the last start, `before_s` the seconds at work up to then,
    `num_before` the pages; `running_s` counts from when all shards had read what they know.
    `least_delay_s` is the shortest delay_s that was ever set, `host` the machine that wrote this.
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
    host: str = ""
    max_bytes: int | None = None
    max_seconds: float | None = None
    before_s: float = 0.0
    running_s: float = 0.0
    num_before: int = 0
    least_delay_s: float | None = None

    @property
    def is_at_work(self) -> bool:
        """By its own word: who was killed could not say so."""
        return self.state in _AT_WORK

    @property
    def worked_s(self) -> float:
        """Over all starts."""
        return self.before_s + self.running_s

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
        """Over the last minute or so of this start."""
        return self._per_s(1)

    @property
    def seconds_left(self) -> float | None:
        """Until the nearest of the budgets is used up or nothing known is left, at the pace of now;
        None if nothing tells."""
        known: list[float] = []
        if (ahead := self.num_wanted - self.num_archived) > 0 and (rate := self._per_s(1)) > 0:
            known.append(ahead / rate)
        if self.max_bytes is not None and (rate := self._per_s(2)) > 0:
            known.append(max(0.0, (self.max_bytes - self.num_bytes) / rate))
        if self.max_seconds is not None:
            known.append(max(0.0, self.max_seconds - self.running_s))
        return min(known, default=None)

    def _per_s(self, column: int) -> float:
        points = [point for point in self.timeline if point[0] >= self.before_s]
        if len(points) < 2:
            return 0.0
        last = points[-1]
        first = next((p for p in reversed(points) if last[0] - p[0] >= 60), points[0])
        return (last[column] - first[column]) / max(1e-9, last[0] - first[0])


class StatusBoard:
    """Adds up what the shards say, and shows it. `before` is what the crawl's last start said in
    the end: this one goes on with its counts and its timeline."""

    def __init__(
        self,
        folder: Path,
        config: CrawlConfig,
        before: CrawlStatus | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.config, self._before, self._clock = folder, config, before, clock
        self.started = time.time()
        self.timeline: list[list[float]] = list(before.timeline) if before else []
        # A little later than the last point of before: whose a point is, its time tells.
        self._before_s = round(before.worked_s + 0.1, 1) if before else 0.0
        self._gap_s = max(1.0, self._before_s / _NUM_POINTS)
        self._begun_at: float | None = None  # by the clock, when all shards were first known
        self._num_before = 0
        # What owners counted who are no more.
        self._refused = Counter(before.refused_links if before else {})
        self._retries = Counter(before.retries if before else {})
        delays = [config.delay_s, before.least_delay_s if before else None]
        self._least_delay_s = min(delay_s for delay_s in delays if delay_s is not None)
        self.shards: list[ShardStatus] = []  # as last told; a new owner's as its predecessor's
        self.last: CrawlStatus | None = None
        self.ended_by = ""
        self._written_at = 0.0

    def update(self, shards: Sequence[ShardStatus], state: str = "crawling") -> CrawlStatus:
        now = time.time()
        before = {shard.shard: shard for shard in self.shards if shard.is_known}
        for shard in shards:
            old = before.get(shard.shard)
            if old is not None and shard.is_known and shard.epoch != old.epoch:
                self._refused.update(old.refused)
                self._retries.update(old.retries)
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
        is_first = self._begun_at is None and all(shard.is_known for shard in self.shards)
        if is_first:
            self._begun_at, self._num_before = self._clock(), total.num_archived
        if self._begun_at is None and self._before is not None:
            self.last = self._starting(self._before, state, now)
        else:
            self._note_time(total, is_edge=is_first or state not in _AT_WORK)
            self.last = self._sum(total, state, now)
        if now - self._written_at > 2 or state != "crawling":
            self._written_at = now
            write_status(self.folder, self.last)
        return self.last

    @property
    def _running_s(self) -> float:
        return 0.0 if self._begun_at is None else self._clock() - self._begun_at

    def _starting(self, before: CrawlStatus, state: str, now: float) -> CrawlStatus:
        """Not all shards have read yet what they know: what is there is what was there before."""
        return dataclasses.replace(
            before,
            state="starting" if state == "crawling" else state,
            started=self.started,
            at=now,
            busy=0,
            waits=[],
            ended_by="",
            host=socket.gethostname(),
            max_seconds=None,
            before_s=self._before_s,
            running_s=0.0,
            least_delay_s=self._least_delay_s,
        )

    def _note_time(self, total: Tally, *, is_edge: bool) -> None:
        if self._begun_at is None:
            return  # what was there before would look like this run's
        gone = self._before_s + self._running_s
        if is_edge or gone - self.timeline[-1][0] >= self._gap_s:
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
            max_pages=self.config.max_pages,
            num_known=total.num_known,
            num_archived=total.num_archived,
            num_bytes=total.num_bytes,
            num_waiting=sum(shard.num_waiting for shard in shards),
            hosts=hosts,
            busy=sum(shard.busy for shard in shards),
            statuses={str(status): n for status, n in sorted(total.statuses.items())},
            dropped=dict(total.dropped.most_common()),
            refused_links=_sum([self._refused, *(shard.refused for shard in shards)]),
            retries=_sum([self._retries, *(shard.retries for shard in shards)]),
            shards=[
                [s.shard, s.epoch, s.state, s.tally.num_archived, s.num_waiting] for s in shards
            ],
            timeline=self.timeline,
            num_unchanged=total.num_unchanged,
            num_excluded=sum(shard.num_excluded for shard in shards),
            waits=[[w.name, w.num_waiting, round(w.turn_in_s, 1)] for w in waits if is_few],
            ended_by=self.ended_by,
            host=socket.gethostname(),
            max_bytes=self.config.max_bytes_total,
            max_seconds=self.config.max_seconds,
            before_s=self._before_s,
            running_s=round(self._running_s, 3),
            num_before=self._num_before,
            least_delay_s=self._least_delay_s,
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


def _sum(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total.most_common())


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
    """What the crawl last wrote. Raises UserError if there is none, or it is damaged."""
    try:
        return _checked((folder / STATUS).read_bytes())
    except FileNotFoundError:
        raise UserError(f"no crawl with this config has begun ({folder / STATUS})") from None
    except (ValueError, TypeError, IsADirectoryError) as error:
        told = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            told = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise UserError(
            f"{folder / STATUS} is damaged ({told}); a running crawl renews it"
        ) from None


def _checked(data: bytes) -> CrawlStatus:
    """Raises ValueError or TypeError if a field, a row or a number is not what it is to be."""
    found = TypeAdapter(CrawlStatus).validate_json(data)
    TypeAdapter(list[tuple[int, int, str, int, int]]).validate_python(found.shards)
    TypeAdapter(list[tuple[str, int, float]]).validate_python(found.waits)
    TypeAdapter(list[tuple[float, float, float]]).validate_python(found.timeline)
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    if not (0 <= found.started < 1e11 and 0 <= found.at < 1e11):
        raise ValueError("its times are none")
    return found


def write_status(folder: Path, status: CrawlStatus) -> None:
    storage.write_bytes(str(folder / STATUS), json.dumps(dataclasses.asdict(status)).encode())


def status_before(folder: Path) -> CrawlStatus | None:
    """What the crawl's last start said in the end; None if nothing, or nothing to go on with."""
    try:
        return read_status(folder)
    except UserError:
        return None


def ending(ended_by: str) -> str:
    """Why URLs were left, in words."""
    if ended_by == BY_HAND:
        return ended_by
    budget = f"crawl.{ended_by} was" if ended_by else "the budgets of their hosts were"
    return f"{budget} used up"


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
