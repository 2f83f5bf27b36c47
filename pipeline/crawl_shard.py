"""One shard of a crawl: its hosts' pages fetched, politely, into its own WARC files.

All that it knows it can rebuild from its folder: it may die at any moment, and its successor
(pipeline/lease.py) goes on. What becomes of one URL: pipeline/url_visit.py.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from aiohttp.abc import AbstractResolver

from pipeline.core import storage
from pipeline.crawl_config import CrawlConfig
from pipeline.frontier import Frontier, HostBudget
from pipeline.frontier_log import logged_ends
from pipeline.frontier_state import Entry
from pipeline.lease import Lease
from pipeline.pauses import Clocks
from pipeline.recrawl import BATCH, Changes, PreviousCrawl, territory_of, write_pages
from pipeline.shard_mail import Mailbox
from pipeline.url_visit import Visitor
from pipeline.urls import Scope, shard_of, trap_of
from pipeline.warc_writer import WarcSeries

SYNC_EVERY_S = 1.0
SNAPSHOT_EVERY_S = 60.0
OFFERED = "offered"  # an empty file: all that the crawl before left is in the log


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """Which shard of which crawl. `scope` is built from the config and the seeds."""

    config: CrawlConfig
    seeds: tuple[str, ...]
    scope: Scope
    root: str
    shard: int
    num_shards: int
    prefix: str
    year: int

    @property
    def folder(self) -> Path:
        return Path(self.root) / f"shard-{self.shard:05d}"


class Crawler:
    """The state of one owner of a shard; everything happens on one event loop."""

    def __init__(self, task: ShardTask, lease: Lease, previous: PreviousCrawl | None) -> None:
        config = task.config
        self.task, self.config, self.lease, self.previous = task, config, lease, previous
        self.series = WarcSeries(
            task.folder,
            f"{task.prefix}-{task.shard:05d}-{lease.epoch:04d}",
            config.user_agent,
            config.warc_max_bytes,
            logged_ends(task.folder),
            info=config.warc_info,
        )
        self.frontier = Frontier(
            task.folder,
            lease.epoch,
            self._refusal,
            Mailbox(Path(task.root), task.shard, task.num_shards, shard_of, lease.epoch),
            lambda name: WarcSeries.size(task.folder, name),
            0,  # the driver deals out config.max_pages
            HostBudget(
                config.max_pages_per_host, config.max_bytes_per_host, config.max_seconds_per_host
            ),
            clocks=Clocks(time.monotonic, time.time),
            pause_s=config.delay_s,
        )
        self.visitor = Visitor(
            config,
            task.scope,
            task.folder,
            task.shard,
            self.frontier,
            self.series,
            lease.check,
            previous,
        )
        self.is_stopping = self.has_begun = self.is_resting = False
        self._synced_at = self._saved_at = time.monotonic()
        self._changed = asyncio.Event()
        self._visits: set[asyncio.Task[None]] = set()

    def _refusal(self, url: str, depth: int) -> str | None:
        reason = self.task.scope.refusal(url, depth)
        if reason is None and self.config.traps:
            reason = trap_of(url, self.task.year)
        return reason

    async def run(self, names: AbstractResolver) -> None:
        """Fetch until `ask_to_stop`; others may find work for this shard at any time."""
        async with self.visitor.connected(names):
            await self._begin()
            self.has_begun = True
            try:
                await self._work()
            finally:
                for visit in self._visits:
                    visit.cancel()
                await asyncio.gather(*self._visits, return_exceptions=True)

    async def _begin(self) -> None:
        mine = [url for url in self.task.seeds if self.frontier.mailbox.is_ours(Entry(url, 0).host)]
        self.frontier.add(Entry(url, 0) for url in mine)
        for _ in self._offer():
            await asyncio.sleep(0)
            if self.is_stopping:
                return

    def _offer(self) -> Iterator[None]:
        """Take in what the crawl before knew, batch by batch; again, if a kill came between."""
        offered = self.task.folder / OFFERED
        if self.previous is None or offered.exists():
            return
        entries = self.previous.entries(self._territory)
        while batch := list(islice(entries, BATCH)):
            self.frontier.add(e for e in batch if self.frontier.mailbox.is_ours(e.host))
            self._keep()
            yield
        self.frontier.sync()
        storage.write_bytes(str(offered), b"")

    @property
    def _territory(self) -> str:
        return territory_of(self.task.shard, self.task.num_shards)

    async def _work(self) -> None:
        while not (self.is_stopping and not self._visits):
            self.is_resting = False
            self._keep()
            now = time.monotonic()
            while (
                not self.is_stopping
                and len(self._visits) < self.config.concurrency
                and (turn := self.frontier.take_errand(now) or self.frontier.take(now))
            ):
                visit = asyncio.create_task(self.visitor.visit(turn))
                self._visits.add(visit)
                visit.add_done_callback(self._ended)
            full = len(self._visits) >= self.config.concurrency or self.frontier.is_spent
            turn_at = None if full or self.is_stopping else self.frontier.next_turn()
            wait_s = SYNC_EVERY_S if turn_at is None else min(SYNC_EVERY_S, turn_at - now)
            self.is_resting = self.frontier.is_idle
            if wait_s > 0:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait_s)
            else:
                await asyncio.sleep(0)

    def _ended(self, visit: asyncio.Task[None]) -> None:
        self._visits.discard(visit)
        self._changed.set()
        if not visit.cancelled() and visit.exception():
            self._failure = visit.exception()  # one that no one foresaw ends the crawl

    _failure: BaseException | None = None

    def _keep(self) -> None:
        """Now and then: renew, have it all on the disk, read the mail, take a snapshot."""
        if self._failure is not None:
            raise self._failure
        now = time.monotonic()
        if now - self._synced_at < SYNC_EVERY_S and not self.frontier.wants_snapshot():
            return
        if self.lease.is_due:
            self.lease.renew()
        self.lease.check()
        self.series.sync()  # before the log, which speaks of it
        self.frontier.sync()
        self.visitor.origins.sync()
        self.frontier.read_mail(self.visitor.rule_files.read_note)
        if self.frontier.wants_snapshot() or now - self._saved_at > SNAPSHOT_EVERY_S:
            self.save()
        self._synced_at = now

    @property
    def is_idle(self) -> bool:
        """Nothing to do and nothing to come, as far as this shard knows. For other threads: the
        loop says so between two steps, as in the middle of one nothing may seem to be there."""
        return self.has_begun and self.is_resting and not self.frontier.mailbox.has_mail

    def set_max_pages(self, max_pages: int) -> None:
        """This shard's part of the budget. On the loop."""
        self.is_resting = False
        self.frontier.max_pages = max_pages
        self._changed.set()

    def ask_to_stop(self) -> None:
        """Take nothing more; `run` returns once what is in flight has ended."""
        self.is_stopping = True
        self._changed.set()

    def finish(self) -> Changes:
        """The crawl is over: close the last WARC file, and leave what a recrawl wants to know."""
        for _ in self._offer():  # a budget may be used up before all of it was
            pass
        self.series.finish()
        self.frontier.sync()
        self.frontier.read_mail()  # a budget leaves letters unread
        folder = self.task.folder
        return write_pages(
            folder,
            self._territory,
            self.previous,
            lambda name: WarcSeries.size(folder, name),
            self._stay_owner,
        )

    def _stay_owner(self) -> None:
        if self.lease.is_due:
            self.lease.renew()
        self.lease.check()

    def save(self) -> None:
        """Write down all that a successor would otherwise work out or ask again."""
        self.series.sync()
        self.frontier.snapshot()
        self.visitor.origins.sync()
        self._saved_at = time.monotonic()

    def close(self) -> None:
        self.frontier.close()
        self.series.close()
        self.visitor.origins.close()
        if self.previous:
            self.previous.close()
