"""One shard of a crawl: its hosts' pages fetched, politely, into its own WARC files.

All that it knows it can rebuild from its folder: it may die at any moment, and its successor
(pipeline/lease.py) goes on. What is fetched is decided here, how in pipeline/fetch.py.
"""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections import Counter
from pathlib import Path

from aiohttp.abc import AbstractResolver

from pipeline.core import storage
from pipeline.crawl_config import CrawlConfig
from pipeline.fetch import Conditions, Fetcher, FetchError, Page
from pipeline.frontier import Archived, Frontier, HostBudget, Turn, logged_ends
from pipeline.frontier_state import Entry, Host
from pipeline.lease import Lease
from pipeline.politeness import (
    AddressLimit,
    HostPace,
    PaceLimits,
    retry_after_s,
)
from pipeline.recrawl import PAGES, Before, PreviousCrawl, write_pages
from pipeline.resolver import CachingResolver
from pipeline.responses import REDIRECTS, Found, ResponseReader
from pipeline.robots import (
    MAX_ROBOTS_BYTES,
    RobotsAnswer,
    RobotsCache,
    product_token,
)
from pipeline.seeds import read_networks
from pipeline.shard_mail import Mailbox
from pipeline.urls import Scope, UrlRules, canonical, shard_of, trap_of
from pipeline.warc_writer import Original, WarcSeries

MAX_RETRY_AFTER_S = 300.0
SHORT_RETRY_S = 3.0  # a robots.txt that fails is asked again so soon, or as pipeline/robots.py says
KEEP_ALIVE_S = 15.0  # servers close sooner or about then
SYNC_EVERY_S = 1.0
SNAPSHOT_EVERY_S = 60.0
TRY_AGAIN = (429, 500, 502, 503, 504)
ROBOTS = "robots.json"


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
        )
        self.frontier = Frontier(
            task.folder,
            lease.epoch,
            self._refusal,
            Mailbox(Path(task.root), task.shard, task.num_shards, shard_of, lease.epoch),
            lambda name: WarcSeries.size(task.folder, name),
            config.max_pages,
            HostBudget(
                config.max_pages_per_host, config.max_bytes_per_host, config.max_seconds_per_host
            ),
        )
        self.agent = product_token(config.user_agent)
        self.rules = UrlRules(extra_parameters=tuple(config.drop_parameters))
        self.reader = ResponseReader(config, task.scope, self.rules, self.agent)
        self.robots = RobotsCache(
            self.agent,
            self._ask_robots,
            time.time,
            also_obey=tuple(config.also_obey),
            max_wait_s=config.max_robots_wait_s,
        )
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            self.robots.restore(json.loads(storage.read_bytes(str(task.folder / ROBOTS))))
        self.paces: dict[str, HostPace] = {}
        self.pace_limits = PaceLimits(config.delay_s, config.max_delay_s, config.latency_factor)
        self.addresses = AddressLimit(config.connections_per_ip, config.delay_per_ip_s)
        self.retries: Counter[str] = Counter()
        self._attempts: dict[int, int] = {}  # of URLs that are tried again, by address
        self.is_stopping = self.has_begun = False
        self._synced_at = self._saved_at = time.monotonic()
        self._changed = asyncio.Event()
        self._visits: set[asyncio.Task[None]] = set()

    def _refusal(self, url: str, depth: int) -> str | None:
        reason = self.task.scope.refusal(url, depth)
        if reason is None and self.config.traps:
            reason = trap_of(url, self.task.year)
        return reason

    # The loop

    async def run(self, names: AbstractResolver) -> None:
        """Fetch until `ask_to_stop`; others may find work for this shard at any time."""
        config = self.config
        self.names = CachingResolver(names)
        agent = f"{config.user_agent} (+{config.contact})" if config.contact else config.user_agent
        async with Fetcher(
            user_agent=agent,
            max_bytes=config.max_bytes,
            timeout_s=config.timeout_s,
            min_bytes_per_s=config.min_bytes_per_s,
            accept_types=tuple(config.accept_types),
            allow_private=config.allow_private,
            allow_networks=read_networks(config),
            num_connections=config.concurrency,
            proxy=config.proxy or None,
            verify_tls=config.verify_tls,
            keepalive_s=KEEP_ALIVE_S if config.delay_s < KEEP_ALIVE_S else 0.0,
            resolver=self.names,
        ) as self.fetcher:
            self._begin()
            self.has_begun = True
            try:
                await self._work()
            finally:
                for visit in self._visits:
                    visit.cancel()
                await asyncio.gather(*self._visits, return_exceptions=True)

    def _begin(self) -> None:
        mine = [url for url in self.task.seeds if self.frontier.mailbox.is_ours(Entry(url, 0).host)]
        self.frontier.add(Entry(url, 0) for url in mine)
        if self.previous is not None and self.lease.epoch == 1:
            ours = self.frontier.mailbox.is_ours
            self.frontier.add(e for e in self.previous.entries() if ours(e.host))

    async def _work(self) -> None:
        while not (self.is_stopping and not self._visits):
            self._keep()
            now = time.monotonic()
            while (
                not self.is_stopping
                and len(self._visits) < self.config.concurrency
                and (turn := self.frontier.take(now))
            ):
                visit = asyncio.create_task(self._visit(turn))
                self._visits.add(visit)
                visit.add_done_callback(self._ended)
            full = len(self._visits) >= self.config.concurrency or self.frontier.is_spent
            turn_at = None if full or self.is_stopping else self.frontier.next_turn()
            wait_s = SYNC_EVERY_S if turn_at is None else min(SYNC_EVERY_S, turn_at - now)
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
        self.frontier.read_mail()
        if self.frontier.wants_snapshot() or now - self._saved_at > SNAPSHOT_EVERY_S:
            self.save()
        self._synced_at = now

    def ask_to_stop(self) -> None:
        """Take nothing more; `run` returns once what is in flight has ended."""
        self.is_stopping = True
        self._changed.set()

    def finish(self) -> None:
        """The crawl is over: close the last WARC file, and leave what a recrawl wants to know."""
        self.series.finish()
        write_pages(self.task.folder / PAGES, self.frontier.pages())

    def save(self) -> None:
        """Write down all that a successor would otherwise work out or ask again."""
        self.series.sync()
        self.frontier.snapshot()
        state = json.dumps(self.robots.state()).encode()
        storage.write_bytes(str(self.task.folder / ROBOTS), state)
        self._saved_at = time.monotonic()

    def close(self) -> None:
        self.frontier.close()
        self.series.close()
        if self.previous:
            self.previous.close()

    # One URL

    async def _visit(self, turn: Turn) -> None:
        """One turn of a host: its URL ends as archived or as dropped, or waits for the next."""
        url, pace = turn.entry.url, self._pace(turn.host)
        rules = self.robots.get(url)
        if rules is None:
            async with self._address(turn) as free:
                if free:
                    await self._ask_rules(turn, pace)
            return
        if rules.retry_at is not None:
            wait_s = max(0.1, rules.retry_at - time.time())
            self.frontier.put_back(turn, time.monotonic() + wait_s)
            return
        if reason := rules.refusal(url):
            self.frontier.drop(turn, reason)
            self.frontier.release(turn, turn.host.free_at)
            return
        pace.robots_delay_s = rules.delay_s
        async with self._address(turn) as free:
            if not free:
                return
            again_s = None
            try:
                again_s = await self._fetch(turn, pace)
            finally:
                now = time.monotonic()
                if again_s is None:
                    self._attempts.pop(turn.address, None)
                    self.frontier.release(turn, now + pace.delay_s)
                else:
                    self.frontier.put_back(turn, now + again_s)

    async def _ask_rules(self, turn: Turn, pace: HostPace) -> None:
        """Hosts have one request at a time, so nobody else asks for the same."""
        url = turn.entry.url
        rules = await self.robots.fetch(url)
        if self.config.sitemaps:
            found = [canonical(sitemap, url, self.rules) for sitemap in rules.sitemaps]
            self.frontier.add(Entry(url, 0, is_sitemap=True) for url in found if url)
        pause_s = 0.0 if rules.refusal(url) else max(pace.delay_s, rules.delay_s)
        self.frontier.put_back(turn, time.monotonic() + pause_s)

    async def _fetch(self, turn: Turn, pace: HostPace) -> float | None:
        """One try. Seconds until the next one; None if the URL is done with."""
        url = turn.entry.url
        before = self.previous.find(url) if self.previous else None
        attempt = self._attempts.get(turn.address, 0)
        answer, again_s = await self._get(url, pace, turn.host, attempt, before=before)
        if again_s is not None:
            self._attempts[turn.address] = attempt + 1
            return again_s
        if isinstance(answer, str):
            self.frontier.drop(turn, answer)
            return None
        found = self.reader.read(turn.entry, answer)
        if found.refusal:
            self.frontier.drop(turn, found.refusal, found.links)
        else:
            self._archive(turn, answer, before, found)
        return None

    @contextlib.asynccontextmanager
    async def _address(self, turn: Turn):  # noqa: ANN202 - an async generator of bool
        """Whether the host's address may be asked now; if not, the turn is put back."""
        ip = turn.host.name
        if not self.config.proxy:  # which resolves the names itself
            with contextlib.suppress(OSError):  # the request finds out and says so
                ip = (await self.names.addresses(turn.host.name))[0]
        now = time.monotonic()
        if (when := self.addresses.try_start(ip, turn.host.name, now)) > 0:
            self.frontier.put_back(turn, when)
            yield False
            return
        try:
            yield True
        finally:
            self.addresses.end(ip, time.monotonic())

    async def _get(
        self,
        url: str,
        pace: HostPace,
        host: Host,
        attempt: int,
        *,
        before: Before | None = None,
        cut_at: int | None = None,
    ) -> tuple[Page | str, float | None]:
        """The response, or the reason why there is none; and seconds until another try, if one
        may help."""
        self._note_start(host)
        conditions = Conditions(before.etag, before.modified) if before else None
        types = None if cut_at is None else ()
        asked_s = 0.0
        try:
            answer: Page | str = await self.fetcher.get(
                url, cut_at=cut_at, conditions=conditions, accept_types=types
            )
        except FetchError as error:
            answer, reason, again = error.reason, error.reason, error.transient
            if again:
                pace.failed()
        else:
            asked_s = _retry_after(answer)
            reason = f"status {answer.status}"
            again = answer.status in TRY_AGAIN and asked_s <= MAX_RETRY_AFTER_S
            if answer.status in (429, 503):
                pace.failed(asked_s)
            else:
                pace.succeeded(answer.elapsed_s)
        if not again or attempt >= self.config.max_retries:
            return answer, None
        self.retries[reason] += 1
        return answer, max(pace.delay_s, self.config.retry_delay_s * 2**attempt, asked_s)

    def _note_start(self, host: Host) -> None:
        """For the report: the shortest time between the beginnings of two requests to a host."""
        self.lease.check()
        now = time.monotonic()
        if host.first_asked is None:
            host.first_asked = now
        else:
            gap = now - host.last_asked
            if host.shortest_gap_s is None or gap < host.shortest_gap_s:
                host.shortest_gap_s = gap
        host.last_asked = now

    def _pace(self, host: Host) -> HostPace:
        pace = self.paces.get(host.name)
        if pace is None:
            pace = self.paces[host.name] = HostPace(self.pace_limits)
        return pace

    def _archive(self, turn: Turn, page: Page, before: Before | None, found: Found) -> None:
        """WARC first, log second, rotation third: a kill between any two loses nothing."""
        digest, headers = page.exchange.body_sha256.hex(), page.headers
        fetched = page.exchange.fetched_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        validators = (headers.get("etag", ""), headers.get("last-modified", ""), fetched)
        if before is not None and page.status == 304:
            place = self.series.write_revisit(
                page.exchange, _original(before), "server-not-modified"
            )
            digest = before.sha256
            validators = (before.etag, before.modified, before.fetched)
        elif before is not None and digest == before.sha256:
            place = self.series.write_revisit(
                page.exchange, _original(before), "identical-payload-digest"
            )
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
        )
        self.frontier.archive(turn, item, found.links)
        self.series.rotate_if_full()

    async def _ask_robots(self, url: str) -> RobotsAnswer | None:
        """With a retry or two at once; then the host waits for longer (pipeline/robots.py)."""
        host = self.frontier.host(Entry(url, 0).host)
        pace = self._pace(host)
        answer, again_s = await self._get(url, pace, host, 0, cut_at=MAX_ROBOTS_BYTES)
        attempt = 0
        while again_s is not None and again_s <= SHORT_RETRY_S and not self.is_stopping:
            await asyncio.sleep(again_s)
            attempt += 1
            answer, again_s = await self._get(url, pace, host, attempt, cut_at=MAX_ROBOTS_BYTES)
        if isinstance(answer, str):
            return None
        moved = answer.status in REDIRECTS
        target = canonical(answer.headers.get("location", ""), url) if moved else None
        return RobotsAnswer(answer.status, answer.payload, target, _retry_after(answer))


def _original(before: Before) -> Original:
    return Original(before.url, before.fetched, bytes.fromhex(before.sha256))


def _retry_after(page: Page) -> float:
    """Seconds that a response asks us to wait; 0 if it does not."""
    value = page.headers.get("retry-after", "")
    return retry_after_s(value, page.exchange.fetched_at) or 0.0 if value else 0.0
