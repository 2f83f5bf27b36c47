"""robots.txt by RFC 9309: what a host allows, from the status and body of its answer."""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from protego import Protego

MAX_ROBOTS_BYTES = 500 * 1024  # RFC 9309 §2.5: parse at least this much
MAX_ROBOTS_REDIRECTS = 5  # §2.3.1.2
MAX_CRAWL_DELAY_S = 3600.0
ROBOTS_TTL_S = 24 * 3600.0  # §2.4


class _Parsed(Protocol):
    """protego's result, which ships no types."""

    sitemaps: Any

    def can_fetch(self, url: str, user_agent: str) -> bool: ...
    def crawl_delay(self, user_agent: str) -> float | None: ...
    def request_rate(self, user_agent: str) -> Any: ...


@dataclasses.dataclass(frozen=True)
class RobotsRules:
    """What one origin allows one agent. `reason` says why a refused URL is refused."""

    agent: str
    allow_all: bool
    reason: str = "robots"
    parsed: _Parsed | None = None
    delay_s: float = 0.0
    sitemaps: tuple[str, ...] = ()

    def allows(self, url: str) -> bool:
        if self.parsed is None:
            return self.allow_all
        return bool(self.parsed.can_fetch(url, self.agent))


def robots_url(url: str) -> str:
    """Where the rules for a canonical http(s) URL lie."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.split('/')[0]}/robots.txt"


def product_token(user_agent: str) -> str:
    """The name that robots.txt knows a crawler by: `FlywheelBot/0.1 (…)` is `FlywheelBot`."""
    return user_agent.split("/", maxsplit=1)[0].split(maxsplit=1)[0]


def rules_for(status: int, body: bytes, agent: str) -> RobotsRules:
    """RFC 9309 §2.3.1: 2xx is parsed, 4xx allows all, anything else disallows all.

    A delay of more than MAX_CRAWL_DELAY_S means that the host is not to be crawled.
    """
    if 400 <= status < 500:
        return RobotsRules(agent, allow_all=True)
    if not 200 <= status < 300:
        return unreachable(agent)
    text = body[:MAX_ROBOTS_BYTES].decode("utf-8-sig", errors="replace")
    parsed: _Parsed = Protego.parse(text)
    delay_s = float(parsed.crawl_delay(agent) or 0.0)
    rate = parsed.request_rate(agent)
    if rate is not None and rate.requests > 0:
        delay_s = max(delay_s, rate.seconds / rate.requests)
    if delay_s > MAX_CRAWL_DELAY_S:
        return RobotsRules(agent, allow_all=False, reason="robots crawl-delay")
    return RobotsRules(agent, True, parsed=parsed, delay_s=delay_s, sitemaps=tuple(parsed.sitemaps))


def unreachable(agent: str) -> RobotsRules:
    """§2.3.1.4: rules that cannot be had (5xx, no answer) forbid all."""
    return RobotsRules(agent, allow_all=False, reason="robots unreachable")


@dataclasses.dataclass(frozen=True)
class RobotsAnswer:
    """`location`: the absolute URL that a redirect points to."""

    status: int
    body: bytes
    location: str | None = None


class RobotsCache:
    """The rules of each origin, asked for once a day."""

    def __init__(
        self,
        agent: str,
        ask: Callable[[str], Awaitable[RobotsAnswer | None]],
        clock: Callable[[], float],
    ) -> None:
        """`ask` gives None where no answer is to be had; `clock` counts seconds."""
        self.agent, self._ask, self._clock = agent, ask, clock
        self._rules: dict[str, tuple[float, RobotsRules]] = {}

    def get(self, url: str) -> RobotsRules | None:
        """What is known of the URL's origin and not stale."""
        known = self._rules.get(robots_url(url))
        return known[1] if known and self._clock() - known[0] < ROBOTS_TTL_S else None

    async def fetch(self, url: str) -> RobotsRules:
        """Ask the URL's origin, redirects followed."""
        origin = where = robots_url(url)
        rules = RobotsRules(self.agent, allow_all=True)  # §2.3.1.2, should the redirects not end
        for _hop in range(MAX_ROBOTS_REDIRECTS + 1):
            answer = await self._ask(where)
            if answer is None:
                rules = unreachable(self.agent)
                break
            if answer.location is None:
                rules = rules_for(answer.status, answer.body, self.agent)
                break
            where = answer.location
        self._rules[origin] = (self._clock(), rules)
        return rules
