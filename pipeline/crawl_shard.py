"""One shard of a crawl: its hosts' pages fetched, politely, into its own WARC files.

All that it knows it can rebuild from its folder: it may die at any moment, and its successor
(pipeline/lease.py) goes on. What is fetched is decided here, how in pipeline/fetch.py.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Iterator
from itertools import islice
from pathlib import Path

from aiohttp.abc import AbstractResolver

from pipeline.core import storage
from pipeline.crawl_config import CrawlConfig
from pipeline.fetch import Conditions, Page
from pipeline.frontier import Frontier, HostBudget, Turn
from pipeline.frontier_log import logged_ends
from pipeline.frontier_state import Archived, Entry, hostname_of
from pipeline.lease import Lease
from pipeline.opt_outs import OptOutCache, OptOuts
from pipeline.origin_store import OriginStore
from pipeline.pauses import Clocks
from pipeline.polite_fetch import PoliteFetcher
from pipeline.politeness import AddressLimit
from pipeline.recrawl import BATCH, Before, Changes, PreviousCrawl, territory_of, write_pages
from pipeline.resolver import CachingResolver, is_loopback
from pipeline.responses import Found, ResponseReader
from pipeline.robots import RobotsRules, product_token
from pipeline.robots_cache import RobotsAnswer, RobotsCache
from pipeline.rule_files import Answer, RuleFiles
from pipeline.shard_mail import Mailbox
from pipeline.urls import Scope, UrlRules, canonical, shard_of, trap_of
from pipeline.warc_writer import Original, WarcSeries

SYNC_EVERY_S = 1.0
SNAPSHOT_EVERY_S = 60.0
ORIGINS = "origins.sqlite"
FORBIDDEN = RobotsAnswer(403)  # robots.txt shuts us out of the file: it says nothing
_CACHE_VERSION = 1
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
        self.web = PoliteFetcher(config, self.lease.check)
        self.agent = product_token(config.user_agent)
        self.rules = UrlRules(extra_parameters=tuple(config.drop_parameters))
        self.reader = ResponseReader(config, task.scope, self.rules, self.agent)
        reader = f"{_CACHE_VERSION} {self.agent} {config.also_obey}"
        self.origins = OriginStore(task.folder / ORIGINS, reader)
        self.robots = RobotsCache(
            self.agent,
            self.origins,
            time.time,
            also_obey=tuple(config.also_obey),
            max_wait_s=config.max_robots_wait_s,
        )
        self.opt_outs = OptOutCache(self.agent, self.origins, time.time)
        self.rule_files = RuleFiles(self.web, self.frontier, task.shard, self._may_be_pointed_to)
        self.addresses = AddressLimit(config.connections_per_ip, config.delay_per_ip_s)
        self._attempts: dict[int, int] = {}  # of URLs that are tried again, by address
        self.is_stopping = self.has_begun = self.is_resting = False
        self._synced_at = self._saved_at = time.monotonic()
        self._changed = asyncio.Event()
        self._visits: set[asyncio.Task[None]] = set()

    def _refusal(self, url: str, depth: int) -> str | None:
        reason = self.task.scope.refusal(url, depth)
        if reason is None and self.config.traps:
            reason = trap_of(url, self.task.year)
        return reason

    def _may_be_pointed_to(self, url: str) -> bool:
        """Whether a robots.txt may redirect to it: to any host but those that are shut out, and
        beyond this machine only under a name that its owner can turn to."""
        if self.task.scope.refusal(url, 0) in ("scope: port", "scope: blocked domain"):
            return False
        return bool(self.config.contact) or is_loopback(hostname_of(url))

    # The loop

    async def run(self, names: AbstractResolver) -> None:
        """Fetch until `ask_to_stop`; others may find work for this shard at any time."""
        self.names = CachingResolver(names)
        async with self.web.connected(self.names):
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
                visit = asyncio.create_task(self._visit(turn))
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
        self.origins.sync()
        self.frontier.read_mail(self.rule_files.read_note)
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
        self.origins.sync()
        self._saved_at = time.monotonic()

    def close(self) -> None:
        self.frontier.close()
        self.series.close()
        self.origins.close()
        if self.previous:
            self.previous.close()

    # One URL

    async def _visit(self, turn: Turn) -> None:
        """One turn of a host: its URL ends as archived or as dropped, or waits for the next."""
        url = turn.entry.url
        if turn.is_errand:
            await self._run_errand(turn)
            return
        rules = self.robots.get(url)
        if rules is None:
            await self._learn(turn, self.robots)
            return
        if rules.retry_at is not None:  # other ports of the host may answer
            wait_s = max(0.1, rules.retry_at - time.time())
            self.frontier.defer(turn, time.monotonic() + wait_s)
            return
        self.web.pace(turn.host).robots_delay_s = rules.delay_s
        reason = rules.refusal(url)
        opt_outs = None
        if reason is None and self.config.honour_ai_optouts:
            opt_outs = self.opt_outs.get(url)
            if opt_outs is None:
                await self._learn(turn, self.opt_outs, rules)
                return
            reason = None if turn.entry.is_sitemap else opt_outs.refusal(url)
        if reason:
            self.frontier.drop(turn, reason)
            self.frontier.release(turn, turn.host.free_at)
            return
        await self._take(turn, opt_outs)

    async def _learn(
        self, turn: Turn, cache: RobotsCache | OptOutCache, rules: RobotsRules | None = None
    ) -> None:
        """One step towards what the origin says of itself; the URL waits for the host's next turn.
        Hosts have one request at a time, so nobody else asks for the same."""
        file = cache.due(turn.entry.url)
        said = FORBIDDEN if rules and not rules.allows(file) else self.rule_files.before(file)
        pause_s = 0.0
        if said == 0.0:
            async with self._address(turn.host.name) as free_at:
                if free_at:
                    self.frontier.put_back(turn, free_at)
                    return
                said = await self.rule_files.ask(file, turn.host)
                pause_s = self.web.pace(turn.host).delay_s
        elif not isinstance(said, RobotsAnswer):  # another host is asked meanwhile
            self.frontier.defer(turn, time.monotonic() + said)
            return
        if isinstance(said, RobotsAnswer):
            learnt = cache.learn(file, said)
            if isinstance(learnt, RobotsRules):
                self._take_sitemaps(learnt, turn.entry.url)
                refused = learnt.refusal(turn.entry.url)
                pause_s = 0.0 if refused else max(pause_s, learnt.delay_s)
        else:
            pause_s = max(pause_s, said)
        self.frontier.put_back(turn, time.monotonic() + pause_s)

    async def _run_errand(self, turn: Turn) -> None:
        url = turn.entry.url
        async with self._address(turn.host.name) as free_at:
            if free_at:
                self.frontier.put_back(turn, free_at)
                return
            answer = Answer(0, failure="cancelled")
            try:
                answer = await self.rule_files.run_errand(url, turn.host)
            finally:
                now = time.monotonic()
                self.frontier.release(turn, now + self.web.pace(turn.host).delay_s)
        self.rule_files.end_errand(url, answer)

    def _take_sitemaps(self, rules: RobotsRules, url: str) -> None:
        if self.config.sitemaps:
            found = [canonical(sitemap, url, self.rules) for sitemap in rules.sitemaps]
            self.frontier.add(Entry(url, 0, is_sitemap=True) for url in found if url)

    async def _take(self, turn: Turn, opt_outs: OptOuts | None) -> None:
        """Fetch the URL, if its address may be asked now."""
        async with self._address(turn.host.name) as free_at:
            if free_at:
                self.frontier.put_back(turn, free_at)
                return
            again_s = None
            try:
                again_s = await self._fetch(turn, opt_outs)
            finally:
                now = time.monotonic()
                if again_s is None:
                    self._attempts.pop(turn.address, None)
                    self.frontier.release(turn, now + self.web.pace(turn.host).delay_s)
                else:
                    self.frontier.put_back(turn, now + again_s)

    async def _fetch(self, turn: Turn, opt_outs: OptOuts | None) -> float | None:
        """One try. Seconds until the next one; None if the URL is done with."""
        url = turn.entry.url
        before = self.previous.find(url) if self.previous else None
        attempt = self._attempts.get(turn.address, 0)
        conditions = Conditions(before.etag, before.modified) if before else None
        answer, again_s = await self.web.get(url, turn.host, attempt, conditions=conditions)
        if again_s is not None:
            self._attempts[turn.address] = attempt + 1
            return again_s
        if isinstance(answer, str):
            self.frontier.drop(turn, answer)
            return None
        found = self.reader.read(turn.entry, answer, opt_outs)
        if found.refusal:
            self.frontier.drop(turn, found.refusal, found.links)
        else:
            self._archive(turn, answer, before, found)
        return None

    @contextlib.asynccontextmanager
    async def _address(self, name: str) -> AsyncGenerator[float]:
        """0.0 if the address of the host may be asked now; else when to come back."""
        ip = name
        if not self.config.proxy:  # which resolves the names itself
            with contextlib.suppress(OSError):  # the request finds out and says so
                ip = (await self.names.addresses(name))[0]
        free_at = self.addresses.try_start(ip, name, time.monotonic())
        try:
            yield free_at
        finally:
            if not free_at:
                self.addresses.end(ip, time.monotonic())

    def _archive(self, turn: Turn, page: Page, before: Before | None, found: Found) -> None:
        """WARC first, log second, rotation third: a kill between any two loses nothing."""
        digest, headers = page.exchange.body_sha256.hex(), page.headers
        fetched = page.exchange.fetched_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        validators = (headers.get("etag", ""), headers.get("last-modified", ""), fetched)
        profile = ""
        if before is not None and page.status == 304:
            profile, digest = "server-not-modified", before.sha256
            validators = (before.etag, before.modified, before.fetched)
        elif before is not None and digest == before.sha256:
            profile = "identical-payload-digest"
        if before is not None and profile:
            place = self.series.write_revisit(page.exchange, _original(before), profile)
        else:
            place = self.series.write(page.exchange)
        item = Archived(
            page.status,
            digest,
            place.name,
            place.end,
            len(page.exchange.body),
            found.outside,
            validators,
            is_unchanged=bool(profile),
        )
        self.frontier.archive(turn, item, found.links)
        self.series.rotate_if_full()


def _original(before: Before) -> Original:
    return Original(before.url, before.fetched, bytes.fromhex(before.sha256))
