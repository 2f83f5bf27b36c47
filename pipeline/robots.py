"""robots.txt by RFC 9309: what an origin allows, from the status and body of its answer.

Only the groups that bind us are kept, so neither a file's other groups nor a hostile file cost
memory or time; protego reads and matches their rules.
"""

import codecs
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol
from urllib.parse import quote

from protego import Protego

MAX_ROBOTS_BYTES = 500 * 1024  # RFC 9309 §2.5: parse at least this much
MAX_CRAWL_DELAY_S = 3600.0
MAX_RULE_CHARS = 4096  # no URL that we ask for is longer
MAX_WILDCARDS = 3000  # of one group: 30 ms a URL at worst; whole real files have at most 1,179
REFUSED, REFUSED_AI, TOO_SLOW = "robots", "ai opt-out: robots", "robots crawl-delay"
UNREACHABLE = "robots unreachable"
ADDRESS_REFUSED = "address refused"  # as pipeline/fetch_failures.py says it
_LINE_END = re.compile(r"\r\n?|\n")
# Python and protego break lines at these too, RFC 9309 does not; in a URL they are escaped.
_NO_LINE_END = re.compile("[\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
_AGENT = re.compile(r"(?:user[- ]?agent)(?:\s*:|\s)\s*(.*)", re.IGNORECASE)
_SITEMAP = re.compile(r"site-?maps?(?:\s*:|\s)\s*(.+)", re.IGNORECASE)
# With the slips that protego forgives. Other fields must not interfere (§2.2.4).
_RULE = re.compile(
    r"(allow|dis{1,2}al{1,2}[oa]w|diasllow|crawl[- ]delay|request[- ]rate)(?:\s*:|\s|$)\s*(.*)",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[a-z0-9_-]*")
_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))


class _Parsed(Protocol):
    """protego's result."""

    def can_fetch(self, url: str, user_agent: str) -> bool: ...
    def crawl_delay(self, user_agent: str) -> float | None: ...
    def request_rate(self, user_agent: str) -> Any: ...


@dataclasses.dataclass(frozen=True)
class RobotsRules:
    """What one origin allows one agent. `reason` says why a refused URL is refused.

    `retry_at`, on the cache's clock: the rules cannot be had now, and the origin's URLs are to
    wait until then; None where nothing is allowed: they are to be dropped. `oddities` are to
    be counted: "html", "binary", "cut", "rules cut".
    """

    agent: str
    allow_all: bool
    reason: str = REFUSED
    ours: _Parsed | None = None
    opt_outs: tuple[_Parsed, ...] = ()
    delay_s: float = 0.0
    sitemaps: tuple[str, ...] = ()
    retry_at: float | None = None
    oddities: tuple[str, ...] = ()

    def refusal(self, url: str) -> str | None:
        """Why the URL may not be fetched, in words to count by; None: it may."""
        if not self.allow_all:
            return self.reason
        if self.ours is not None and not self.ours.can_fetch(url, "*"):
            return REFUSED
        for group in self.opt_outs:
            if not group.can_fetch(url, "*"):
                return REFUSED_AI
        return None

    def allows(self, url: str) -> bool:
        return self.refusal(url) is None


def robots_url(url: str) -> str:
    """Where the rules for a canonical http(s) URL lie."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.split('/')[0]}/robots.txt"


def product_token(user_agent: str) -> str:
    """The name that robots.txt knows a crawler by: `FlywheelBot/0.1 (…)` is `FlywheelBot`."""
    return user_agent.split("/", maxsplit=1)[0].split(maxsplit=1)[0]


def is_answer(status: int) -> bool:
    """Whether a status says anything of the rules; after any other they are `unreachable`.

    429 asks for a pause, not for a crawl without rules: as Google does, we wait, as after 5xx.
    """
    return 200 <= status < 500 and status != 429


def rules_for(status: int, body: bytes, agent: str, also_obey: Sequence[str] = ()) -> RobotsRules:
    """RFC 9309 §2.3.1: 2xx is parsed; 3xx (redirects that led nowhere) and 4xx allow all.

    A delay of more than MAX_CRAWL_DELAY_S means that the host is not to be crawled.
    """
    if not is_answer(status):
        return unreachable(agent)
    if status >= 300:
        return RobotsRules(agent, allow_all=True)
    return rules_of(*binding_text(body, agent, also_obey), agent, also_obey)


def unreachable(agent: str, retry_at: float | None = None, failure: str = "") -> RobotsRules:
    """§2.3.1.4: rules that cannot be had (5xx, no answer) forbid all. `failure`: why not."""
    reason = f"{UNREACHABLE}: {failure}" if failure else UNREACHABLE
    if failure == ADDRESS_REFUSED:
        reason = failure
    return RobotsRules(agent, allow_all=False, reason=reason, retry_at=retry_at)


def binding_text(
    body: bytes, agent: str, also_obey: Sequence[str] = ()
) -> tuple[str, tuple[str, ...]]:
    """The part of a robots.txt that binds us, as a robots.txt, and what was odd about it.

    Our group by name or else the one for `*`; where we have none of our own, also those of the
    agents in `also_obey`. A group counts for its whole product token (§2.2.1), and groups of one
    name are one. The text of the text is the text itself.
    """
    text, oddities = _decode(body)
    ours = _token(agent)
    groups, sitemaps = _groups(text, {"*", ours, *map(_token, also_obey)})
    names = [ours] if ours in groups else ["*", *map(_token, also_obey)]
    by_rules: dict[tuple[str, ...], list[str]] = {}  # files often say the same to many agents
    is_cut = False
    for name in dict.fromkeys(names):
        if name in groups:
            rules, cut = _bounded(groups[name])
            is_cut |= cut
            by_rules.setdefault(tuple(rules) or ("Disallow:",), []).append(name)
    lines: list[str] = []
    for rules, named in by_rules.items():
        lines += [*(f"User-agent: {name}" for name in named), *rules]
    lines += [f"Sitemap: {sitemap}" for sitemap in sitemaps]
    return "\n".join(lines), (*oddities, "rules cut") if is_cut else oddities


def rules_of(
    text: str, oddities: tuple[str, ...], agent: str, also_obey: Sequence[str]
) -> RobotsRules:
    """The rules in a binding text."""
    ours, others = _token(agent), [_token(name) for name in also_obey]
    groups, sitemaps = _groups(text, {"*", ours, *others})
    by_rules: dict[str, _Parsed] = {}
    parsed: dict[str, _Parsed] = {}
    for name, rules in groups.items():
        group = "\n".join(["User-agent: *", *(f"{field}: {value}" for field, value in rules)])
        parsed[name] = by_rules.get(group) or by_rules.setdefault(group, Protego.parse(group))
    own = parsed.get(ours) or parsed.get("*")
    opt_outs = dict.fromkeys(parsed[name] for name in others if name in parsed)
    delay_s = _delay(own) if own else 0.0
    return RobotsRules(
        agent,
        allow_all=delay_s <= MAX_CRAWL_DELAY_S,
        reason=REFUSED if delay_s <= MAX_CRAWL_DELAY_S else TOO_SLOW,
        ours=own,
        opt_outs=() if ours in parsed else tuple(opt_outs),
        delay_s=delay_s,
        sitemaps=tuple(sitemaps),
        oddities=oddities,
    )


def _delay(group: _Parsed) -> float:
    delay_s = float(group.crawl_delay("*") or 0.0)
    rate = group.request_rate("*")
    if rate is None or rate.requests <= 0:
        return delay_s
    try:
        return max(delay_s, rate.seconds / rate.requests)
    except OverflowError:  # one request in 10^400 seconds
        return float("inf")


def _decode(body: bytes) -> tuple[str, tuple[str, ...]]:
    """A robots.txt as text; no text for a page or a file that stands in its place."""
    oddities: tuple[str, ...] = ()
    if len(body) >= MAX_ROBOTS_BYTES:  # half a last line could say more or less than the whole
        body = body[:MAX_ROBOTS_BYTES]
        body = body[: max(body.rfind(b"\n"), body.rfind(b"\r")) + 1]
        oddities = ("cut",)
    start = body[:1024].lower()
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # two of 2,116 real ones
        return body.decode("utf-16", errors="replace"), oddities
    is_markup = start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<")
    if is_markup and (b"<html" in start or b"<!doctype" in start):
        return "", (*oddities, "html")
    if len(start.translate(None, _CONTROL)) < 0.9 * len(start):
        return "", (*oddities, "binary")
    return body.decode("utf-8-sig", errors="replace"), oddities


def _token(name: str) -> str:
    """A product token in lower case, or `*`; what follows the token does not count."""
    name = name.strip().lower()
    found = _TOKEN.match(name.lstrip("*"))
    token = found[0] if found else ""
    return "*" if not token and name.startswith("*") else token


def _groups(text: str, names: Iterable[str]) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """The (field, value) rules of each named group, and the sitemaps (which are in no group)."""
    wanted = set(names) - {""}
    groups: dict[str, list[tuple[str, str]]] = {}
    sitemaps: list[str] = []
    current: list[list[tuple[str, str]]] = []
    is_heading = False
    text = _NO_LINE_END.sub(lambda found: quote(found[0]), text)
    for raw in _LINE_END.split(text):
        line = raw.partition("#")[0].strip()
        if found := _AGENT.match(line):
            if not is_heading:
                current, is_heading = [], True
            name = _token(found[1])
            if name in wanted:
                rules = groups.setdefault(name, [])
                if not any(rules is other for other in current):
                    current.append(rules)
        elif found := _RULE.match(line):
            is_heading = False
            for rules in current:
                rules.append((found[1], found[2]))
        elif found := _SITEMAP.match(line):
            sitemaps.append(found[1])
    return groups, list(dict.fromkeys(sitemaps))


def _bounded(rules: Iterable[tuple[str, str]]) -> tuple[list[str], bool]:
    """Rule lines that any URL is matched against in bounded time, and whether any was cut.

    A Disallow too long or with a wildcard too many is cut, which forbids more; an Allow is left
    out.
    """
    left, is_cut = MAX_WILDCARDS, False
    lines: list[str] = []
    for field, value in rules:
        left -= value.count("*")
        if len(value) > MAX_RULE_CHARS or (left < 0 and "*" in value):
            is_cut = True
            if not field.lower().startswith("d"):
                continue
            lines.append(f"{field}: {value[:MAX_RULE_CHARS].partition('*')[0] or '/'}")
        else:
            lines.append(f"{field}: {value}".rstrip())
    return lines, is_cut
