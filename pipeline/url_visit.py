"""What becomes of one URL of a crawl: allowed or not, fetched, archived or dropped.

How a request is made is pipeline/fetch.py's part; when and for whom, pipeline/crawl_shard.py's.
"""

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from aiohttp.abc import AbstractResolver

from pipeline.crawl_config import CrawlConfig
from pipeline.fetch import Conditions, Page
from pipeline.frontier import Frontier, Turn
from pipeline.frontier_state import Archived, Entry, hostname_of
from pipeline.opt_outs import OptOutCache, OptOuts
from pipeline.origin_store import OriginStore
from pipeline.polite_fetch import PoliteFetcher
from pipeline.politeness import AddressLimit
from pipeline.recrawl import Before, PreviousCrawl
from pipeline.resolver import CachingResolver, is_loopback
from pipeline.responses import Found, ResponseReader
from pipeline.robots import RobotsRules, product_token
from pipeline.robots_cache import RobotsAnswer, RobotsCache
from pipeline.rule_files import Answer, RuleFiles
from pipeline.urls import Scope, UrlRules, canonical
from pipeline.warc_writer import Original, WarcSeries

ORIGINS = "origins.sqlite"
FORBIDDEN = RobotsAnswer(403)  # robots.txt shuts us out of the file: it says nothing
_CACHE_VERSION = 1


class Visitor:
    """Takes the turns of one shard's frontier; many at once, on one event loop."""

    def __init__(
        self,
        config: CrawlConfig,
        scope: Scope,
        folder: Path,
        shard: int,
        frontier: Frontier,
        series: WarcSeries,
        check_lease: Callable[[], None],
        previous: PreviousCrawl | None,
    ) -> None:
        self.config, self.scope, self.previous = config, scope, previous
        self.frontier, self.series = frontier, series
        self.web = PoliteFetcher(config, check_lease)
        agent = product_token(config.user_agent)
        self.rules = UrlRules(extra_parameters=tuple(config.drop_parameters))
        self.reader = ResponseReader(config, scope, self.rules, agent)
        self.origins = OriginStore(folder / ORIGINS, f"{_CACHE_VERSION} {agent} {config.also_obey}")
        self.robots = RobotsCache(
            agent,
            self.origins,
            time.time,
            also_obey=tuple(config.also_obey),
            max_wait_s=config.max_robots_wait_s,
        )
        self.opt_outs = OptOutCache(agent, self.origins, time.time)
        self.rule_files = RuleFiles(self.web, frontier, shard, self._may_be_pointed_to)
        self.addresses = AddressLimit(config.connections_per_ip, config.delay_per_ip_s)
        self._attempts: dict[int, int] = {}  # of URLs that are tried again, by address

    def _may_be_pointed_to(self, url: str) -> bool:
        """Whether a robots.txt may redirect to it: to any host but those that are shut out, and
        beyond this machine only under a name that its owner can turn to."""
        if self.scope.refusal(url, 0) in ("scope: port", "scope: blocked domain"):
            return False
        return bool(self.config.contact) or is_loopback(hostname_of(url))

    @contextlib.asynccontextmanager
    async def connected(self, names: AbstractResolver) -> AsyncGenerator[None]:
        """`visit` may be called within it."""
        self.names = CachingResolver(names)
        async with self.web.connected(self.names):
            yield

    async def visit(self, turn: Turn) -> None:
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
