"""When to ask an origin for its robots.txt, and again: RFC 9309 §2.3.1 and §2.4.

What was learnt lasts a day and survives a restart; what cannot be had is asked for with back-off.
"""

import dataclasses
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pipeline.robots import (
    RobotsRules,
    binding_text,
    is_answer,
    robots_url,
    rules_of,
    unreachable,
)

MAX_ROBOTS_REDIRECTS = 5  # §2.3.1.2
ROBOTS_TTL_S = 24 * 3600.0  # §2.4
FIRST_RETRY_S, MAX_RETRY_S = 60.0, 3600.0  # doubled from the one to the other
_STATE_VERSION = 1
_ENTRY_BYTES = 600  # what a known origin takes besides its text, measured


@dataclasses.dataclass(frozen=True)
class RobotsAnswer:
    """`location`: the absolute URL that a redirect points to. `retry_after_s`: of a 429 or 503."""

    status: int
    body: bytes
    location: str | None = None
    retry_after_s: float = 0.0


@dataclasses.dataclass(slots=True)
class _Origin:
    """`packed`: the binding text, compressed; None: no rules were ever had. Times: the clock's."""

    fetched_at: float
    packed: bytes | None
    oddities: tuple[str, ...] = ()
    failures: int = 0
    failing_since: float = 0.0
    retry_at: float | None = None


class RobotsCache:
    """The rules of each origin: asked for once a day, and again with back-off where in vain.

    Of every known origin the compressed binding text is kept (0.3 kB a real file), up to
    `max_bytes` in all; parsed (13 kB a file) those of the last used whose texts have
    `max_parsed_chars`. The least recently used are forgotten. Not for two concurrent `fetch` of
    one origin.
    """

    def __init__(
        self,
        agent: str,
        ask: Callable[[str], Awaitable[RobotsAnswer | None]],
        clock: Callable[[], float],
        *,
        also_obey: Sequence[str] = (),
        max_wait_s: float = 6 * 3600.0,
        max_bytes: int = 64 << 20,
        max_parsed_chars: int = 2_000_000,
    ) -> None:
        """`ask` gives None where no answer is to be had; `clock` counts seconds.

        For `restore` to make sense the clock must go on over restarts, as time.time does.
        `max_wait_s`: how long an origin without rules is asked again before its URLs are dropped.
        """
        self.agent, self.also_obey, self._ask, self._clock = agent, tuple(also_obey), ask, clock
        self._max_wait_s, self._max_bytes = max_wait_s, max_bytes
        self._max_parsed_chars = max_parsed_chars
        self._known: OrderedDict[str, _Origin] = OrderedDict()
        self._parsed: OrderedDict[str, tuple[RobotsRules, int]] = OrderedDict()
        self._num_bytes = self._num_parsed_chars = 0
        self._allow_all = RobotsRules(agent, allow_all=True)

    def get(self, url: str) -> RobotsRules | None:
        """What is known of the URL's origin; None: `fetch` it."""
        where = robots_url(url)
        known = self._known.get(where)
        if known is None:
            return None
        self._known.move_to_end(where)
        now = self._clock()
        if known.retry_at is None:
            is_due = not 0 <= now - known.fetched_at < ROBOTS_TTL_S
        else:
            is_due = not known.retry_at - ROBOTS_TTL_S <= now < known.retry_at
        return None if is_due else self._rules(where, known)

    async def fetch(self, url: str) -> RobotsRules:
        """Ask the URL's origin, redirects followed.

        Rules that can no longer be had go on to hold (RFC 9309 §2.3.1.4, §2.4). Those that never
        could have `retry_at`, until `max_wait_s` after the first try.
        """
        where = origin = robots_url(url)
        answer = await self._ask(where)
        for _hop in range(MAX_ROBOTS_REDIRECTS):
            if answer is None or answer.location is None:
                break
            answer = await self._ask(answer.location)
        if answer is not None and is_answer(answer.status):
            known = self._learnt(answer)
        else:
            known = self._failed(self._known.get(origin), answer.retry_after_s if answer else 0.0)
        self._keep(origin, known)
        return self._rules(origin, known)

    def _learnt(self, answer: RobotsAnswer) -> _Origin:
        body = answer.body if answer.status < 300 else b""
        text, oddities = binding_text(body, self.agent, self.also_obey)
        return _Origin(self._clock(), _packed(text), oddities)

    def _failed(self, before: _Origin | None, retry_after_s: float) -> _Origin:
        now = self._clock()
        known = dataclasses.replace(before) if before else _Origin(now, None)
        since = known.failing_since if known.failures else now
        known.failures, known.failing_since = known.failures + 1, since
        wait_s = min(MAX_RETRY_S, FIRST_RETRY_S * 2.0 ** min(known.failures - 1, 30))
        known.retry_at = now + min(MAX_RETRY_S, max(wait_s, retry_after_s))
        if known.packed is None:
            give_up_at = since + self._max_wait_s
            known.retry_at = min(known.retry_at, give_up_at) if now < give_up_at else None
            known.fetched_at = now
        return known

    def _rules(self, where: str, known: _Origin) -> RobotsRules:
        if known.packed is None:
            return unreachable(self.agent, known.retry_at)
        if not known.packed and not known.oddities:
            return self._allow_all
        if found := self._parsed.get(where):
            self._parsed.move_to_end(where)
            return found[0]
        text = _unpacked(known.packed)
        rules = rules_of(text, known.oddities, self.agent, self.also_obey)
        self._parsed[where] = rules, len(text)
        self._num_parsed_chars += len(text)
        while self._num_parsed_chars > self._max_parsed_chars and len(self._parsed) > 1:
            self._num_parsed_chars -= self._parsed.popitem(last=False)[1][1]
        return rules

    def _keep(self, where: str, known: _Origin) -> None:
        self._forget(where)
        self._known[where] = known
        self._num_bytes += _ENTRY_BYTES + len(known.packed or b"")
        while self._num_bytes > self._max_bytes and len(self._known) > 1:
            self._forget(next(iter(self._known)))

    def _forget(self, where: str) -> None:
        if known := self._known.pop(where, None):
            self._num_bytes -= _ENTRY_BYTES + len(known.packed or b"")
        if found := self._parsed.pop(where, None):
            self._num_parsed_chars -= found[1]

    def state(self) -> dict[str, Any]:
        """All that is known, for JSON, the least recently used first."""
        return {
            "version": _STATE_VERSION,
            "agent": self.agent,
            "also_obey": list(self.also_obey),
            "origins": {
                where: [
                    known.fetched_at,
                    None if known.packed is None else _unpacked(known.packed),
                    list(known.oddities),
                    known.failures,
                    known.failing_since,
                    known.retry_at,
                ]
                for where, known in self._known.items()
            },
        }

    def restore(self, state: dict[str, Any]) -> int:
        """Take over what `state` gave; how many origins it was. 0 if it was another agent's."""
        ours = {"version": _STATE_VERSION, "agent": self.agent, "also_obey": list(self.also_obey)}
        if {key: state.get(key) for key in ours} != ours:
            return 0
        for where, (at, text, oddities, failures, since, retry_at) in state["origins"].items():
            packed = None if text is None else _packed(text)
            self._keep(where, _Origin(at, packed, tuple(oddities), failures, since, retry_at))
        return len(self._known)


def _packed(text: str) -> bytes:
    """Empty for no rules at all, which most origins have."""
    return zlib.compress(text.encode(errors="replace"), 6) if text else b""


def _unpacked(packed: bytes) -> str:
    return zlib.decompress(packed).decode() if packed else ""
