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
from pipeline.host_waits import HostWait, Survey, survey
from pipeline.lease import Lease
from pipeline.not_kept import NOT_KEPT, write_not_kept
from pipeline.recrawl import Changes, PreviousCrawl
from pipeline.resolver import SystemResolver

STOP_WITHIN_S = 20.0  # what is in flight may end; a spot instance has 30 s in all
_SURVEY_EVERY = 2.0, 50.0  # seconds, and times as long as a survey takes


@dataclasses.dataclass(frozen=True)
class ShardStatus:
    """How far a shard is. `serial` grows with all that it finds or finishes; `hosts` counts those
    with something waiting, `busy` the requests in flight; `limit` is the part of the budget that
    it keeps to by now, `num_excluded` the waiting URLs that their hosts' budgets leave no room for,
    `waits` its hosts with something waiting, if they are few."""

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
    limit: int = 0
    num_excluded: int = 0
    waits: tuple[HostWait, ...] = ()

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
    """A finished shard; `refused` (links) and `retries` by reason, of its last owner."""

    tally: Tally
    num_waiting: int
    hosts: tuple[HostResult, ...]
    warcs: tuple[str, ...]
    refused: dict[str, int]
    retries: dict[str, int]
    changes: Changes


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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._survey, self._survey_at = Survey(), 0.0
        self._thread = threading.Thread(target=self._live, name=f"shard {task.shard}", daemon=True)
        self._thread.start()

    def status(self, max_pages: int | None = None) -> ShardStatus:
        """How far it is; `max_pages` becomes this shard's part of the budget, and is its `limit`
        once it has. Raises what ended the shard, if something did."""
        if self._error is not None:
            raise self._error
        crawler = self._crawler
        if crawler is None or self._state not in ("crawling", "stopped"):
            return ShardStatus(
                self.task.shard, 0, self._state, False, -1, Tally(), 0, 0, 0, {}, {}, None
            )
        self._ask_loop(crawler, max_pages)
        frontier = crawler.frontier
        turn = frontier.next_turn()
        return ShardStatus(
            shard=self.task.shard,
            epoch=crawler.lease.epoch,
            state=self._state,
            is_idle=self._state == "crawling" and crawler.is_idle,
            serial=frontier.num_known + frontier.tally.num_finished,
            limit=frontier.max_pages,  # before what is used: that then keeps to it
            busy=len(frontier.in_flight),  # before the tally: what ends meanwhile is in both
            tally=frontier.tally,
            num_waiting=frontier.num_waiting,
            hosts=frontier.num_hosts_waiting,
            refused=dict(frontier.refused),
            retries=dict(crawler.visitor.web.retries),
            next_turn_s=None if turn is None else turn - time.monotonic(),
            num_excluded=self._survey.num_excluded,
            waits=self._survey.waits,
        )

    def _ask_loop(self, crawler: Crawler, max_pages: int | None) -> None:
        """Have the loop take over the limit, and look round, between two of its steps."""

        def act() -> None:
            if max_pages is not None:
                crawler.set_max_pages(max_pages)
            now = time.monotonic()
            if now >= self._survey_at:
                self._survey = survey(crawler.frontier, now)
                at_least_s, times = _SURVEY_EVERY
                took_s = time.monotonic() - now
                self._survey_at = now + max(at_least_s, times * took_s)

        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended meanwhile: nothing to limit
                self._loop.call_soon_threadsafe(act)

    def stop(self) -> ShardStatus:
        """End what is in flight, for a while, close the WARC file, and leave the state for a
        successor; how far it came. Raises what ended the shard, if something did."""
        self._ask_to_stop()
        self._thread.join(STOP_WITHIN_S + 10)
        return self.status()

    def finish(self) -> ShardResult:
        """The crawl is over: stop, close the WARC files, write down what became of the URLs,
        however long that takes. Raises what ended the shard."""
        self._is_finishing = True
        self._ask_to_stop()
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def _ask_to_stop(self) -> None:
        self._is_stopping.set()
        if (wake := self._wake) is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                wake()

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
        if self._is_stopping.wait(0 if self._is_finishing else seconds):
            if not self._is_finishing:
                raise InterruptedError("stopped while it waited for its lease")
            time.sleep(seconds)  # a new owner, whose predecessor died as it was to finish

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
                changes = crawler.finish()
                write_not_kept(
                    self.task.folder / NOT_KEPT, self.task.folder, lambda: _stay_owner(lease)
                )
                self._result = _result(crawler, changes)
            else:
                lease.check()
                crawler.series.finish()  # whoever looks meanwhile finds whole files
        finally:
            self._state = "stopped"
            crawler.close()

    async def _crawl(self, crawler: Crawler) -> None:
        loop = asyncio.get_running_loop()
        resolver = self._resolver or SystemResolver()
        working = asyncio.create_task(crawler.run(resolver))
        asked = asyncio.Event()
        self._loop, self._wake = loop, lambda: loop.call_soon_threadsafe(asked.set)
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


def _stay_owner(lease: Lease) -> None:
    if lease.is_due:
        lease.renew()
    lease.check()


def _result(crawler: Crawler, changes: Changes) -> ShardResult:
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
        tally=frontier.tally,
        num_waiting=frontier.num_waiting,
        hosts=tuple(hosts),
        warcs=tuple(crawler.series.finished()),
        refused=dict(frontier.refused),
        retries=dict(crawler.visitor.web.retries),
        changes=changes,
    )
