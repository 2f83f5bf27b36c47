"""A crawl's shard as a service: it works in a thread, and answers at once how far it is.

pipeline/core/remote.py runs it in this process, in a child, or as an actor on another node.
"""

import asyncio
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable

from aiohttp.abc import AbstractResolver

from pipeline.core.manifest import read_manifest
from pipeline.crawl_shard import Crawler, ShardTask
from pipeline.frontier_state import Tally
from pipeline.lease import Lease
from pipeline.recrawl import PreviousCrawl
from pipeline.resolver import SystemResolver

STOP_WITHIN_S = 20.0  # what is in flight may end; a spot instance has 30 s in all


@dataclasses.dataclass(frozen=True)
class ShardStatus:
    """How far a shard is. `serial` grows with all that it finds or finishes; `hosts` counts those
    with something waiting, `busy` the requests in flight."""

    shard: int
    epoch: int
    state: str
    is_idle: bool
    serial: int
    tally: Tally
    num_waiting: int
    hosts: int
    busy: int
    refused: dict[str, int]
    retries: dict[str, int]
    next_turn_s: float | None

    @property
    def is_known(self) -> bool:
        """Whether it tells what the shard holds; a new owner cannot before it has read the log."""
        return self.serial >= 0


@dataclasses.dataclass(frozen=True)
class HostResult:
    """What a host gave, and the shortest time between the beginnings of two requests to it."""

    name: str
    pages: int
    num_bytes: int
    dropped: int
    waiting: int
    shortest_gap_s: float | None


@dataclasses.dataclass(frozen=True)
class ShardResult:
    tally: Tally
    num_waiting: int
    hosts: tuple[HostResult, ...]
    warcs: tuple[str, ...]


class CrawlService:
    """One owner of one shard, from construction until `finish` or `stop`."""

    def __init__(
        self,
        task: ShardTask,
        previous_url: str | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self.task, self._previous_url, self._resolver = task, previous_url, resolver
        self._crawler: Crawler | None = None
        self._error: BaseException | None = None
        self._state = "waiting for its lease"
        self._is_stopping = threading.Event()
        self._is_finishing = False
        self._result: ShardResult | None = None
        self._wake: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._live, name=f"shard {task.shard}", daemon=True)
        self._thread.start()

    def status(self, max_pages: int | None = None) -> ShardStatus:
        """How far it is; `max_pages` is from now on this shard's part of the budget. Raises what
        ended the shard, if something did."""
        if self._error is not None:
            raise self._error
        crawler = self._crawler
        if crawler is None or self._state != "crawling":
            return ShardStatus(
                self.task.shard, 0, self._state, False, -1, Tally(), 0, 0, 0, {}, {}, None
            )
        frontier = crawler.frontier
        if max_pages is not None:
            frontier.max_pages = max_pages
        turn = frontier.next_turn()
        return ShardStatus(
            shard=self.task.shard,
            epoch=crawler.lease.epoch,
            state=self._state,
            is_idle=crawler.has_begun and frontier.is_idle,
            serial=frontier.num_known + frontier.tally.num_finished,
            tally=frontier.tally,
            num_waiting=frontier.num_waiting,
            hosts=frontier.num_hosts_waiting,
            busy=len(frontier.in_flight),
            refused=dict(frontier.refused),
            retries=dict(crawler.web.retries),
            next_turn_s=None if turn is None else turn - time.monotonic(),
        )

    def stop(self) -> None:
        """End what is in flight, for a while, and leave the state for a successor."""
        self._is_stopping.set()
        if self._wake is not None:
            self._wake()
        self._thread.join(STOP_WITHIN_S + 10)

    def finish(self) -> ShardResult:
        """The crawl is over: `stop`, and close the WARC files. Raises what ended the shard."""
        self._is_finishing = True
        self.stop()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def process(self) -> int:
        """For tests of its death."""
        return os.getpid()

    def _live(self) -> None:
        try:
            lease = Lease(
                self.task.folder, lease_s=self.task.config.lease_s, sleep=self._sleep_unless_stopped
            )
            try:
                self._own(lease)
            finally:
                lease.release()
        except BaseException as error:  # noqa: BLE001 - raised where the status is asked for
            self._error = error

    def _sleep_unless_stopped(self, seconds: float) -> None:
        if self._is_stopping.wait(seconds):
            raise InterruptedError("stopped while it waited for its lease")

    def _own(self, lease: Lease) -> None:
        (self.task.folder / "pid").write_text(str(os.getpid()))
        self._state = "reading its log"
        previous = PreviousCrawl(read_manifest(self._previous_url)) if self._previous_url else None
        self._crawler = crawler = Crawler(self.task, lease, previous)
        try:
            self._state = "crawling"
            asyncio.run(self._crawl(crawler))
            crawler.save()
            if self._is_finishing:
                crawler.finish()
                self._result = _result(crawler)
        finally:
            self._state = "stopped"
            crawler.close()

    async def _crawl(self, crawler: Crawler) -> None:
        loop = asyncio.get_running_loop()
        resolver = self._resolver or SystemResolver()
        working = asyncio.create_task(crawler.run(resolver))
        asked = asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(asked.set)
        if self._is_stopping.is_set():
            asked.set()
        asking = asyncio.create_task(asked.wait())
        await asyncio.wait([working, asking], return_when=asyncio.FIRST_COMPLETED)
        self._wake = None
        asking.cancel()
        crawler.ask_to_stop()
        done, _ = await asyncio.wait([working], timeout=STOP_WITHIN_S)
        if not done:
            working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


def _result(crawler: Crawler) -> ShardResult:
    frontier = crawler.frontier
    hosts = [
        HostResult(
            host.name,
            host.pages,
            host.num_bytes,
            host.dropped,
            host.num_waiting,
            host.shortest_gap_s,
        )
        for host in frontier.hosts.values()
    ]
    return ShardResult(
        frontier.tally, frontier.num_waiting, tuple(hosts), tuple(crawler.series.finished())
    )
