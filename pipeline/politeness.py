"""Politeness beside robots.txt: what a page's owner says of it, and how often a server is asked.

Pure: no I/O, and every time is passed in. X-Robots-Tag and meta robots as Google documents them,
noai as DeviantArt and img2dataset do, TDMRep (W3C, 10 May 2024), ai.txt as Spawning's generator
writes it.
"""

import bisect
import dataclasses
import datetime as dt
import email.utils
import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.robots import RobotsRules, rules_for

MAX_RETRY_AFTER_S = 24 * 3600.0  # who asks for more gets as much
MAX_TDM_BYTES, MAX_TDM_RULES, MAX_TDM_WILDCARDS = 64 << 10, 100, 10
MAX_DIRECTIVE_CHARS = 8192
LATENCY_WEIGHT = 0.3  # of the newest request in the mean
FIRST_BACKOFF_S = 1.0
_EAGERNESS = 0.5  # come back sooner than the mean request lets one expect
_MIN_HINT_S = 0.02
_PATIENCE_S = 5.0
MAX_HINT_S = 30.0  # nobody is sent away for longer because of others who wait
_TAKEN = frozenset({"noindex", "nofollow", "noarchive", "noai", "noimageai", "unavailable_after"})
_WITH_VALUE = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)
_COMMA = re.compile(r",(?!\s*\d)")  # not the one in `Fri, 25 Jun 2027 15:00:00 GMT`
_EXTENSIONS = {
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "text/plain": ".txt",
    "application/pdf": ".pdf",
}


@dataclasses.dataclass(frozen=True)
class PagePolicy:
    """What a response's headers and meta elements ask of us.

    `directives`: those of noindex, nofollow, noarchive, noai, noimageai, unavailable_after (if
    that moment is past) that bind our agent.
    """

    directives: frozenset[str] = frozenset()
    is_tdm_reserved: bool = False

    @property
    def follow(self) -> bool:
        """Whether the page's links may be followed: a noindex page's may."""
        return "nofollow" not in self.directives


def page_policy(
    headers: Mapping[str, str] | Sequence[tuple[str, str]],
    meta_robots: Iterable[str] = (),
    *,
    agent: str,
    now: dt.datetime,
    also_obey: Sequence[str] = (),
    tdm_meta: str | None = None,
    tdm_origin: bool | None = None,
) -> PagePolicy:
    """The policy of one response.

    `headers`: (name, value) pairs, repeated ones each for itself (or joined by a newline: joined by
    a comma, the agent that one header names would take over the next). `meta_robots`: contents or
    single directives of <meta name="robots"> and of the meta named like our agent. `tdm_meta`: the
    content of <meta name="tdm-reservation">; it goes before the header, which goes before
    `tdm_origin`, what the origin's tdmrep.json says of the URL.
    """
    pairs: list[tuple[str, str]] = list(
        headers.items() if isinstance(headers, Mapping) else headers
    )
    tags = [value for name, value in pairs if name.lower() == "x-robots-tag"]
    directives = robots_directives([*tags, *meta_robots], agent=agent, now=now, also_obey=also_obey)
    tdm_headers = [value for name, value in pairs if name.lower() == "tdm-reservation"]
    said = [_reservation(tdm_meta), *map(_reservation, tdm_headers), tdm_origin]
    return PagePolicy(directives, next((one for one in said if one is not None), False))


def refusal(
    policy: PagePolicy, honour_ai_optouts: bool, content_type: str = "text/html"
) -> str | None:
    """Why a fetched response is not kept, in words to count by; None: it is.

    An archive for training is an index and a copy in one: noindex, noarchive and a past
    unavailable_after each refuse it, whatever the switch says. noimageai refuses images alone.
    """
    for directive in ("noindex", "noarchive", "unavailable_after"):
        if directive in policy.directives:
            return directive
    if not honour_ai_optouts:
        return None
    if "noai" in policy.directives:
        return "ai opt-out: noai"
    if "noimageai" in policy.directives and content_type.startswith("image/"):
        return "ai opt-out: noimageai"
    return "ai opt-out: tdm-reservation" if policy.is_tdm_reserved else None


def robots_directives(
    values: Iterable[str], *, agent: str, now: dt.datetime, also_obey: Sequence[str] = ()
) -> frozenset[str]:
    """The directives in X-Robots-Tag values that bind `agent`, `none` spelled out.

    A name before a colon is the agent that the rest of its value is for. What an agent in
    `also_obey` may not index, we may not train on: it counts as noai.
    """
    others = {name.lower() for name in also_obey}
    found: set[str] = set()
    for line in (line for value in values for line in value.split("\n")):
        scope = "*"
        for part in _COMMA.split(line[:MAX_DIRECTIVE_CHARS].lower()):
            name, colon, argument = part.partition(":")
            if colon and name.strip() not in _WITH_VALUE:
                scope = name.strip()
                name, colon, argument = argument.partition(":")
            taken = _directives(name, argument, now)
            if scope in ("*", "robots", agent.lower()):
                found |= taken
            elif scope in others and taken & {"noindex", "noai"}:
                found.add("noai")
    return frozenset(found)


def _directives(name: str, argument: str, now: dt.datetime) -> set[str]:
    if name.strip() == "unavailable_after":
        until = _moment(argument)
        return {"unavailable_after"} if until and until <= now else set()
    words = set(name.replace(";", " ").split())
    if "none" in words:
        words |= {"noindex", "nofollow"}
    return words & (_TAKEN - {"unavailable_after"})


def _moment(text: str) -> dt.datetime | None:
    """An RFC 822, 850 or ISO 8601 date; without a zone it is UTC."""
    text = text.strip()[:100]
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        try:
            moment = dt.datetime.fromisoformat(text.upper())
        except ValueError:
            return None
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _reservation(value: Any) -> bool | None:
    """TDMRep: 1 is reserved, 0 is not (in JSON also 1.0 and 0.0), anything else is unset."""
    if isinstance(value, float) and value in (0.0, 1.0):
        value = int(value)
    return {"1": True, "0": False}.get(str(value).strip())


@dataclasses.dataclass(frozen=True)
class TdmRep:
    """An origin's /.well-known/tdmrep.json: patterns as in robots.txt, the first match counts."""

    rules: tuple[tuple[RobotsRules, bool], ...] = ()

    def reserved(self, url: str) -> bool | None:
        """Whether rights in the URL are reserved; None: nothing is said."""
        for pattern, is_reserved in self.rules:
            if not pattern.allows(url):
                return is_reserved
        return None


def parse_tdmrep(body: bytes) -> TdmRep:
    """The rules of a tdmrep.json; none for what is no such file, or a huge one.

    A pattern with too many wildcards is cut at its first, if it reserves; else it is left out.
    """
    try:
        entries = json.loads(body) if len(body) <= MAX_TDM_BYTES else []
    except (ValueError, RecursionError):
        return TdmRep()
    rules: list[tuple[RobotsRules, bool]] = []
    for entry in entries[:MAX_TDM_RULES] if isinstance(entries, list) else []:
        said = _reservation(entry.get("tdm-reservation")) if isinstance(entry, dict) else None
        location = str(entry["location"]) if said is not None and "location" in entry else ""
        location = "".join(location.split())
        if location.count("*") > MAX_TDM_WILDCARDS:
            location = (location.partition("*")[0] or "/") if said else ""
        if location and said is not None:
            text = f"User-agent: *\nDisallow: {location}\n"
            rules.append((rules_for(200, text.encode(errors="replace"), "*"), said))
    return TdmRep(tuple(rules))


def ai_txt_refusal(ai_txt: RobotsRules, url: str, content_type: str = "text/html") -> str | None:
    """Why an origin's ai.txt keeps a URL out of training, in words to count by; None: it does not.

    ai.txt is a robots.txt whose patterns are file types (`Disallow: *.html`): read it by
    `rules_for`. A URL whose path has no extension counts as having the one of its media type.
    """
    path, mark, query = url.partition("?")
    extension = _EXTENSIONS.get(content_type, "")
    name = path.partition("://")[2].rpartition("/")[2]
    typed = path + ("index" if not name else "") + ("" if "." in name else extension)
    is_allowed = ai_txt.allows(url) and ai_txt.allows(f"{typed}{mark}{query}")
    return None if is_allowed else "ai opt-out: ai.txt"


def retry_after_s(value: str, now: dt.datetime) -> float | None:
    """Seconds that a Retry-After header asks us to wait, at most MAX_RETRY_AFTER_S.

    None if it says neither seconds nor a date. RFC 9110 §10.2.3.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_RETRY_AFTER_S)
    when = _moment(value)
    if when is None:
        return None
    return min(max(0.0, (when - now).total_seconds()), MAX_RETRY_AFTER_S)


@dataclasses.dataclass(frozen=True)
class PaceLimits:
    """Of one crawl, shared by its hosts. Seconds; `latency_factor` x latency is a pause."""

    delay_s: float
    max_delay_s: float
    latency_factor: float = 0.0


class HostPace:
    """The pause that one host is due between two requests.

    It grows with the host's latency, doubles with each 429, 503 or time-out, and halves with each
    success. `max_delay_s` bounds what adapts and Retry-After; the configured delay and the one
    that robots.txt asks for are kept whole.
    """

    __slots__ = ("backoff_s", "latency_s", "limits", "retry_after_s", "robots_delay_s")

    def __init__(self, limits: PaceLimits) -> None:
        self.limits = limits
        self.robots_delay_s = 0.0  # set it from RobotsRules.delay_s
        self.latency_s = self.backoff_s = self.retry_after_s = 0.0

    @property
    def delay_s(self) -> float:
        """Seconds from the end of the last request to the start of the next."""
        slow_s = self.limits.latency_factor * self.latency_s
        adaptive_s = max(slow_s, self.backoff_s, self.retry_after_s)
        return max(self._least_s, min(adaptive_s, self.limits.max_delay_s))

    @property
    def _least_s(self) -> float:
        return max(self.limits.delay_s, self.robots_delay_s)

    def succeeded(self, latency_s: float) -> None:
        """A response that does not ask us to slow down, after so many seconds."""
        newest_s = latency_s if 0 <= latency_s < math.inf else 0.0
        weight = LATENCY_WEIGHT if self.latency_s else 1.0
        self.latency_s += weight * (newest_s - self.latency_s)
        self.retry_after_s = 0.0
        self.backoff_s /= 2
        if self.backoff_s <= max(FIRST_BACKOFF_S, self._least_s):
            self.backoff_s = 0.0

    def failed(self, retry_after_s: float | None = None) -> None:
        """A 429, a 503, a time-out or a connection that broke."""
        before_s = max(FIRST_BACKOFF_S, self._least_s, self.backoff_s)
        self.backoff_s = min(2 * before_s, max(self.limits.max_delay_s, self._least_s))
        self.retry_after_s = retry_after_s or 0.0


@dataclasses.dataclass(slots=True)
class _Address:
    """`running`: when each request now running started. `waiting`: who was refused, and since
    when, the longest first; `order`: the same times; `hints`: when each was told to come back."""

    running: list[float]
    last_start: float = -math.inf
    mean_s: float = 0.1
    waiting: dict[str, float] = dataclasses.field(default_factory=dict[str, float])
    order: list[float] = dataclasses.field(default_factory=list[float])
    hints: dict[str, float] = dataclasses.field(default_factory=dict[str, float])

    def leave(self, who: str) -> None:
        since = self.waiting.pop(who, None)
        if since is not None:
            del self.order[bisect.bisect_left(self.order, since)]
            del self.hints[who]


class AddressLimit:
    """How often one IP address is asked, however many hosts share it: who has waited longest is
    next. An idle address is forgotten."""

    def __init__(self, connections_per_ip: int, delay_per_ip_s: float) -> None:
        self._most, self._gap_s = connections_per_ip, delay_per_ip_s
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    def __len__(self) -> int:
        return len(self._addresses)

    def try_start(self, ip: str, who: str, now: float) -> float:
        """0.0: go, and call `end` later. Else a time after `now` when to ask again; who does not
        come back by then loses the place in the queue."""
        self._sweep(now)
        address = self._addresses.setdefault(ip, _Address([]))
        self._forget_the_lost(address, now)
        since = address.waiting.get(who)
        ahead = len(address.order) if since is None else bisect.bisect_left(address.order, since)
        free = self._most - len(address.running)
        if ahead < free and now >= address.last_start + self._gap_s:
            address.leave(who)
            address.running.append(now)
            address.last_start = now
            return 0.0
        if since is None:
            since = max([now, *(math.nextafter(last, math.inf) for last in address.order[-1:])])
            address.waiting[who] = since
            address.order.append(since)
        hint = address.last_start + self._gap_s * (ahead + 1)
        if ahead >= free:  # so many have to end first
            step_s = _EAGERNESS * address.mean_s / self._most
            hint = max(hint, now + max(_MIN_HINT_S, (ahead - free + 1) * step_s))
        soonest = max(math.nextafter(now, math.inf), address.last_start + self._gap_s)
        hint = max(soonest, min(hint, now + MAX_HINT_S))
        address.hints[who] = hint
        return hint

    @staticmethod
    def _forget_the_lost(address: _Address, now: float) -> None:
        """Whoever is first in the queue and stays away must not keep the others waiting."""
        while address.waiting:
            first = next(iter(address.waiting))
            if now <= address.hints[first] + _PATIENCE_S:
                return
            address.leave(first)

    def end(self, ip: str, now: float) -> None:
        """A request that was let go is over, however it ended."""
        address = self._addresses[ip]
        took_s = max(0.0, now - address.running.pop(0))
        address.mean_s += LATENCY_WEIGHT * (took_s - address.mean_s)
        self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Forget idle addresses: two are looked at for each call, so none stays for long."""
        for _ in range(min(2, len(self._addresses))):
            ip, address = next(iter(self._addresses.items()))
            self._forget_the_lost(address, now)
            is_idle = not address.running and now >= address.last_start + self._gap_s
            if is_idle and not address.waiting:
                del self._addresses[ip]
            else:
                self._addresses.move_to_end(ip)
