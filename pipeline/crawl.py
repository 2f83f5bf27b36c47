"""Stage "crawl": seeds in, WARC files out, politely; killed at any moment, a rerun goes on.


`ray submit infra/cluster.yaml pipeline/crawl.py --config FILE section.key=value …`.
"""

import argparse
import asyncio
import dataclasses
import email.utils
import errno
import hashlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # `ray submit` copies this file alone to ~; the package is in ~/app
    _here = Path(__file__).resolve().parent
    sys.path[0] = str(_here.parent if (_here / "core").is_dir() else Path.home() / "app")

import aiohttp
from aiohttp.abc import AbstractResolver
from pydantic import Field

from pipeline.core import storage
from pipeline.core.config import RunConfig, Section, load_config, operational
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.progress import Progress
from pipeline.fetch import Fetcher, FetchError, Page
from pipeline.frontier import Archived, Entry, Frontier, Scope, host_of
from pipeline.links import page_links, resolve, sitemap_links
from pipeline.robots import (
    MAX_ROBOTS_BYTES,
    RobotsAnswer,
    RobotsCache,
    RobotsRules,
    product_token,
)
from pipeline.seeds import check_addresses, read_seeds
from pipeline.warc_writer import WarcSeries

VERSION = 1
SHARD = "shard-00000"  # one shard so far: its state and its files lie in this folder
LOG = "frontier.jsonl"
MAX_HOPS = 10  # redirects in a row; Fetch standard allows 20
MAX_RETRY_AFTER_S = 300.0
SYNC_EVERY_S = 1.0
REDIRECTS = (301, 302, 303, 307, 308)
TRY_AGAIN = (429, 500, 502, 503, 504)
HTML = ("text/html", "application/xhtml+xml")


class CrawlConfig(Section):
    """[crawl]. `epoch` tells a recrawl from the crawl before it."""

    seeds: list[str] = Field(default_factory=list, description="where to begin, whole URLs")
    epoch: int = Field(0, ge=0, description="raise it to crawl the same seeds again")
    max_pages: int = Field(
        1000, ge=1, description="responses; which ones, with several hosts, depends on their speed"
    )
    max_depth: int = Field(20, ge=0, description="links away from a seed or sitemap")
    delay_s: float = operational(1.0, ge=0, description="pause between two requests to a host")
    concurrency: int = operational(16, ge=1, description="hosts asked at the same time")
    user_agent: str = Field("FlywheelBot/0.1", pattern=r"^[!-~]+", description="robots.txt name")
    contact: str = operational("", description="URL or e-mail that a site's owner can turn to")
    allow_private: bool = Field(False, description="may loopback and private networks be reached?")
    allowed_hosts: list[str] = Field(default_factory=list, description="beside the seeds' own")
    max_bytes: int = Field(10_000_000, ge=1, description="a larger body is dropped")
    timeout_s: float = Field(30.0, gt=0, description="for one whole response")
    max_retries: int = Field(2, ge=0, description="after time-outs, broken connections, 429, 5xx")
    retry_delay_s: float = operational(1.0, ge=0, description="doubles with each retry")
    warc_max_bytes: int = Field(1_000_000_000, ge=1, description="then the next WARC file begins")
    sitemaps: bool = Field(True, description="take the URLs of the sitemaps that robots.txt names")


def run_crawl(
    config: CrawlConfig, run: RunConfig, *, resolver: AbstractResolver | None = None
) -> Manifest:
    """Crawl the seeds' hosts into WARC files, or go on with a crawl that was interrupted.

    A row is a URL that was taken: archived (whatever its status) or dropped with a reason. URLs
    left over when `max_pages` was reached are `facts["not_taken"]`. Raises UserError for seeds
    that cannot be crawled, and if not one page had status 200.
    """
    output = StageOutput.of(run.root, "crawl", VERSION, config.identity(), {})
    if done := output.finished():
        return done
    seeds = read_seeds(config.seeds, config.allowed_hosts, config.contact)
    if not storage.is_local(output.url):
        raise UserError(
            f"run.root = {run.root!r}: a crawl keeps its state in a local folder; give one, and"
            " copy its WARC files to where `ingest` finds them"
        )
    started = time.time()
    folder = storage.local_path(output.path(SHARD))
    with output.lock():
        crawl = _Crawl(config, seeds, folder, output.key[:12])
        try:
            asyncio.run(crawl.run(resolver))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OSError(errno.ENOSPC, "no space left on the disk", str(folder)) from error
            raise
        finally:
            crawl.close()
        if 200 not in crawl.frontier.statuses():
            shutil.rmtree(folder)  # a rerun is to ask again
            raise UserError(_nothing_found(crawl.frontier))
        return _commit(output, crawl, started)


def _commit(output: StageOutput, crawl: "_Crawl", started: float) -> Manifest:
    frontier = crawl.frontier
    rows = Counter(item.warc for item in frontier.archived.values())
    dropped = Counter(frontier.dropped.values())
    return output.commit(
        [
            describe_file(output.path(f"{SHARD}/{name}"), f"{SHARD}/{name}", rows[name])
            for name in crawl.series.finished()
        ],
        Counts(frontier.num_finished, len(frontier.archived), dict(sorted(dropped.items()))),
        started=started,
        facts={
            "statuses": {str(status): n for status, n in frontier.statuses().items()},
            "not_taken": frontier.num_waiting,
        },
        run={"retries": dict(sorted(crawl.retries.items()))},
    )


class _Crawl:
    """One run over one shard of the frontier."""

    def __init__(
        self, config: CrawlConfig, seeds: Sequence[str], folder: Path, prefix: str
    ) -> None:
        self.config, self.seeds = config, seeds
        allowed = [host_of(f"http://{host}/") for host in config.allowed_hosts]
        scope = Scope(frozenset([*map(host_of, seeds), *allowed]), config.max_depth)
        self.frontier = Frontier(
            folder / LOG, scope, config.max_pages, lambda name: WarcSeries.size(folder, name)
        )
        self.series = WarcSeries(
            folder, prefix, config.user_agent, config.warc_max_bytes, self.frontier.warc_ends()
        )
        self.robots = RobotsCache(
            product_token(config.user_agent), self._ask_robots, time.monotonic
        )
        self.retries: Counter[str] = Counter()
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Leave the state for a later run."""
        self.frontier.close()
        self.series.close()

    async def run(self, resolver: AbstractResolver | None) -> None:
        """Fetch until nothing in scope is left or `max_pages` is reached."""
        config = self.config
        resolver = resolver or aiohttp.ThreadedResolver()
        agent = f"{config.user_agent} (+{config.contact})" if config.contact else config.user_agent
        await check_addresses(self.seeds, config.allow_private, resolver)
        async with Fetcher(
            user_agent=agent,
            max_bytes=config.max_bytes,
            timeout_s=config.timeout_s,
            allow_private=config.allow_private,
            num_connections=config.concurrency,
            resolver=resolver,
        ) as self.fetcher:
            self.frontier.add(Entry(url, depth=0) for url in self.seeds)
            with Progress("crawl", total=0, unit="pages") as self.progress:
                self.progress.skip(len(self.frontier.archived))
                await self._work_off()
        self.frontier.sync()
        self.series.finish()

    async def _work_off(self) -> None:
        visits: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._sync()
                now = time.monotonic()
                while len(visits) < self.config.concurrency and (entry := self.frontier.take(now)):
                    visits.add(asyncio.create_task(self._visit(entry)))
                full = len(visits) == self.config.concurrency or self.frontier.is_spent
                turn = None if full else self.frontier.next_turn()
                if not visits and turn is None:
                    return
                wait_s = SYNC_EVERY_S if turn is None else max(0.0, turn - now)
                if not visits:
                    await asyncio.sleep(wait_s)
                    continue
                done, visits = await asyncio.wait(
                    visits, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
                )
                for visit in done:
                    visit.result()  # an error that no one foresaw ends the crawl
        finally:
            for visit in visits:
                visit.cancel()
            await asyncio.gather(*visits, return_exceptions=True)

    async def _visit(self, entry: Entry) -> None:
        """One turn of a host: its URL ends as archived or as dropped, unless we are cancelled."""
        delay_s = self.config.delay_s
        try:
            rules = self.robots.get(entry.url) or await self._new_rules(entry.url)
            if not rules.allows(entry.url):
                delay_s = 0.0
                self.frontier.drop(entry, rules.reason)
                return
            delay_s = max(delay_s, rules.delay_s)
            answer = await self._get(entry.url, delay_s)
            if isinstance(answer, Page):
                self._archive(entry, answer)
            else:
                self.frontier.drop(entry, answer)
        finally:
            self.frontier.release(entry, time.monotonic() + delay_s)

    async def _get(self, url: str, delay_s: float, cut_at: int | None = None) -> Page | str:
        """The response, after retries; or the reason why there is none."""
        for attempt in range(self.config.max_retries + 1):
            wait_s = max(delay_s, self.config.retry_delay_s * 2**attempt)
            try:
                answer: Page | str = await self.fetcher.get(url, cut_at=cut_at)
            except FetchError as error:
                answer, reason, again = error.reason, error.reason, error.transient
            else:
                asked_s = _retry_after(answer)
                reason = f"status {answer.status}"
                again = answer.status in TRY_AGAIN and asked_s <= MAX_RETRY_AFTER_S
                wait_s = max(wait_s, asked_s)
            if not again or attempt == self.config.max_retries:
                return answer
            self.retries[reason] += 1
            await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns")

    def _archive(self, entry: Entry, page: Page) -> None:
        """WARC first, log second, rotation third: a kill between any two loses nothing."""
        links, outside = self._links(entry, page)
        place = self.series.write(page.exchange)
        digest = hashlib.sha256(page.payload).hexdigest()
        item = Archived(page.status, digest, place.name, place.end, outside)
        self.frontier.archive(entry, item, links)
        self.series.rotate_if_full()
        self.progress.total = min(self.frontier.num_known, self.config.max_pages)
        self.progress.advance(1, note=f"{self.frontier.num_waiting:,} waiting")

    def _links(self, entry: Entry, page: Page) -> tuple[list[Entry], str]:
        """What a response makes known; and the host that it redirects to, if beyond the scope."""
        hops = entry.hops + 1
        if page.status in REDIRECTS:
            target = resolve(page.headers.get("location", ""), entry.url)
            if target is None or hops > MAX_HOPS:
                return [], ""
            host = host_of(target)
            outside = "" if host in self.frontier.scope.hosts else host
            return [dataclasses.replace(entry, url=target, hops=hops)], outside
        if page.status != 200:
            return [], ""
        if entry.is_sitemap:
            pages, sitemaps = sitemap_links(page.payload, entry.url)
            further = [Entry(url, 0, hops, is_sitemap=True) for url in sitemaps if hops <= MAX_HOPS]
            return [Entry(url, 0) for url in pages] + further, ""
        if page.content_type not in HTML:
            return [], ""
        links = page_links(page.payload, entry.url, page.charset)
        return [Entry(url, entry.depth + 1) for url in links], ""

    async def _new_rules(self, url: str) -> RobotsRules:
        rules = await self.robots.fetch(url)
        if self.config.sitemaps:
            sitemaps = [resolve(sitemap, url) for sitemap in rules.sitemaps]
            self.frontier.add(Entry(found, 0, is_sitemap=True) for found in sitemaps if found)
        await asyncio.sleep(max(self.config.delay_s, rules.delay_s))
        return rules

    async def _ask_robots(self, url: str) -> RobotsAnswer | None:
        answer = await self._get(url, self.config.delay_s, cut_at=MAX_ROBOTS_BYTES)
        if not isinstance(answer, Page):
            return None
        moved = answer.status in REDIRECTS
        target = resolve(answer.headers.get("location", ""), url) if moved else None
        return RobotsAnswer(answer.status, answer.payload, target)

    def _sync(self) -> None:
        """Against power cuts; a mere kill loses nothing that was written."""
        if time.monotonic() - self._synced_at > SYNC_EVERY_S:
            self.series.sync()
            self.frontier.sync()
            self._synced_at = time.monotonic()


def _retry_after(page: Page) -> float:
    """Seconds that a 429 or 503 asks us to wait; 0 if it does not say. RFC 9110 §10.2.3."""
    value = page.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, when.timestamp() - page.exchange.fetched_at.timestamp())


def _nothing_found(frontier: Frontier) -> str:
    seen = [f"{n} x status {status}" for status, n in frontier.statuses().items()]
    seen += [f"{n} x {reason}" for reason, n in Counter(frontier.dropped.values()).most_common()]
    message = f"crawl.seeds gave not one page with status 200; seen: {', '.join(seen)}"
    outside = sorted({item.outside for item in frontier.archived.values() if item.outside})
    if outside:
        return f"{message}; they redirect to {', '.join(outside)}: add it to crawl.allowed_hosts"
    return f"{message}; check the site, its robots.txt and the seeds, then rerun"


def main(argv: Sequence[str] | None = None) -> int:
    """The stage as a command of its own; 2 for a user's mistake, 1 for a full disk, 130 for
    Ctrl-C."""
    parser = argparse.ArgumentParser(
        description="Crawl the seeds of a run's config into WARC files. Interrupted at any moment,"
        " the same command goes on; finished, it does nothing.",
        epilog="example: python pipeline/crawl.py --config infra/runs/laptop.toml"
        " crawl.max_pages=500 crawl.contact=me@example.org",
    )
    parser.add_argument("--config", required=True, help="the run's TOML file; [crawl] and [run]")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args(argv)
    try:
        config = load_config(args.config, args.overrides)
        manifest = run_crawl(config.section("crawl", CrawlConfig), config.run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: {error}; make room, then rerun", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    counts = manifest.counts
    print(f"{counts.rows_out:,} responses of {counts.rows_in:,} URLs; dropped: {counts.dropped}")
    print(manifest.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
