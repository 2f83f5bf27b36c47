"""Requests with manners: each host at its own pace, with retries where they may help.

How a request is made is pipeline/fetch.py's part; what is asked for, pipeline/url_visit.py's.
"""

import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable

from aiohttp.abc import AbstractResolver

from pipeline.crawl_config import CrawlConfig
from pipeline.fetch import Conditions, Fetcher, FetchError, Page
from pipeline.frontier_state import Host
from pipeline.politeness import HostPace, PaceLimits, retry_after_s
from pipeline.seeds import read_networks

MAX_RETRY_AFTER_S = 300.0
KEEP_ALIVE_S = 15.0  # servers close sooner or about then
TRY_AGAIN = (429, 500, 502, 503, 504)


class PoliteFetcher:
    """The paces of one shard's hosts. `may_begin` is called before each request and may raise."""

    def __init__(self, config: CrawlConfig, may_begin: Callable[[], None]) -> None:
        self.config, self._may_begin = config, may_begin
        self.retries: Counter[str] = Counter()
        self._paces: dict[str, HostPace] = {}
        self._limits = PaceLimits(config.delay_s, config.max_delay_s, config.latency_factor)

    @contextlib.asynccontextmanager
    async def connected(self, resolver: AbstractResolver) -> AsyncGenerator[None]:
        """Requests are made inside of this."""
        config = self.config
        async with Fetcher(
            user_agent=config.agent_header,
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
            resolver=resolver,
        ) as self._fetcher:
            yield

    def pace(self, host: Host) -> HostPace:
        pace = self._paces.get(host.name)
        if pace is None:
            pace = self._paces[host.name] = HostPace(self._limits)
        return pace

    async def get(
        self,
        url: str,
        host: Host,
        attempt: int,
        *,
        conditions: Conditions | None = None,
        cut_at: int | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Page | str, float | None]:
        """The response, or the reason why there is none; and seconds until another try, if one
        may help. With `cut_at`, so many bytes of whatever type it is; `timeout_s` stands for the
        config's."""
        self._note_start(host)
        pace, asked_s = self.pace(host), 0.0
        types = None if cut_at is None else ()
        try:
            answer: Page | str = await self._fetcher.get(
                url,
                cut_at=cut_at,
                conditions=conditions,
                accept_types=types,
                timeout_s=timeout_s,
            )
        except FetchError as error:
            answer, reason, again = error.reason, error.reason, error.transient
            if again:
                pace.failed()
        else:
            asked_s = asked_to_wait_s(answer)
            reason = f"status {answer.status}"
            again = answer.status in TRY_AGAIN and asked_s <= MAX_RETRY_AFTER_S
            if answer.status in (429, 503):
                pace.failed(asked_s)
            else:
                pace.succeeded(answer.elapsed_s)
        if not again or attempt >= self.config.max_retries:
            return answer, None
        self.retries[reason] += 1
        return answer, max(pace.delay_s, self.retry_delay_s(attempt), asked_s)

    def retry_delay_s(self, attempt: int) -> float:
        """Before the try after that one; without what the host itself asks for."""
        first_s = self.config.retry_delay_s
        return min(first_s * 2.0 ** min(attempt, 100), max(first_s, self.config.max_delay_s))

    def _note_start(self, host: Host) -> None:
        """For the report: the shortest time between the beginnings of two requests to a host."""
        self._may_begin()
        now = time.monotonic()
        if host.first_asked is None:
            host.first_asked = now
        else:
            gap = now - host.last_asked
            if host.shortest_gap_s is None or gap < host.shortest_gap_s:
                host.shortest_gap_s = gap
        host.last_asked = now


def asked_to_wait_s(page: Page) -> float:
    """Seconds that a response asks us to wait; 0 if it does not."""
    value = page.headers.get("retry-after", "")
    return retry_after_s(value, page.exchange.fetched_at) or 0.0 if value else 0.0
