"""When to ask an origin for its robots.txt, and again: RFC 9309 §2.3.1 and §2.4.

What was learnt lasts a day and survives a restart; what cannot be had is asked for with back-off.
"""

import dataclasses
import json
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.origin_store import OriginStore
from pipeline.robots import (
    ADDRESS_REFUSED,
    RobotsRules,
    binding_text,
    is_answer,
    robots_url,
    rules_of,
    unreachable,
)

ROBOTS_TTL_S = 24 * 3600.0  # §2.4
FIRST_RETRY_S, MAX_RETRY_S = 60.0, 3600.0  # doubled from the one to the other
MAX_RECENT = 10_000  # origins whose rules are in memory, parsed


@dataclasses.dataclass(frozen=True)
class RobotsAnswer:
    """The answer to a question for robots.txt or a file like it, redirects followed. `status` is 0
    where there was none, for a `failure` as pipeline/fetch_failures.py names them. `retry_after_s`:
    of a 429 or 503."""

    status: int
    body: bytes = b""
    failure: str = ""
    retry_after_s: float = 0.0


@dataclasses.dataclass(slots=True)
class _Origin:
    """`packed`: the binding text, compressed; None: no rules were ever had. `failure`: why the last
    question had no answer. Times: the clock's."""

    fetched_at: float
    packed: bytes | None
    oddities: tuple[str, ...] = ()
    failures: int = 0
    failing_since: float = 0.0
    retry_at: float | None = None
    failure: str = ""


class RobotsCache:
    """The rules of each origin: due once a day, and again with back-off where asked in vain.

    The binding texts lie compressed in `store`; in memory are the rules of the last used origins,
    as long as their texts have `max_parsed_chars` together (13 kB a real file, parsed).
    """

    def __init__(
        self,
        agent: str,
        store: OriginStore,
        clock: Callable[[], float],
        *,
        also_obey: Sequence[str] = (),
        max_wait_s: float = 6 * 3600.0,
        max_parsed_chars: int = 2_000_000,
    ) -> None:
        """`clock` counts seconds and goes on over restarts, as time.time does. `max_wait_s`: how
        long an origin without rules is asked again before its URLs are dropped."""
        self.agent, self.also_obey, self._clock = agent, tuple(also_obey), clock
        self._store, self._max_wait_s = store, max_wait_s
        self._max_parsed_chars, self._num_parsed_chars = max_parsed_chars, 0
        self._recent: OrderedDict[str, tuple[_Origin, RobotsRules, int]] = OrderedDict()
        self._allow_all = RobotsRules(agent, allow_all=True)

    def get(self, url: str) -> RobotsRules | None:
        """What is known of the URL's origin; None: `due` names the file to ask for."""
        where = robots_url(url)
        if found := self._recent.get(where):
            self._recent.move_to_end(where)
            known, rules, _ = found
        elif stored := self._stored(where):
            known = stored
            rules = self._keep(where, known)
        else:
            return None
        now = self._clock()
        if known.retry_at is None:
            is_due = not 0 <= now - known.fetched_at < ROBOTS_TTL_S
        else:
            is_due = not known.retry_at - MAX_RETRY_S <= now < known.retry_at
        return None if is_due else rules

    def due(self, url: str) -> str:
        return robots_url(url)

    def learn(self, file: str, answer: RobotsAnswer) -> RobotsRules:
        """Take in the answer to the question for `file`.

        Rules that can no longer be had go on to hold (RFC 9309 §2.3.1.4, §2.4). Those that never
        could have `retry_at`, until `max_wait_s` after the first try. An address that we may not
        ask stays one: nothing is asked again.
        """
        if is_answer(answer.status):
            known = self._learnt(answer)
        else:
            known = self._failed(self._stored(file), answer)
        facts = [*dataclasses.astuple(known)]
        packed = facts.pop(1)
        self._store.put(file, json.dumps([*facts, packed is None]), packed or b"")
        return self._keep(file, known)

    def _stored(self, where: str) -> _Origin | None:
        found = self._store.get(where)
        if found is None:
            return None
        facts: list[Any] = json.loads(found[0])
        fetched_at, oddities, failures, since, retry_at, failure, is_unknown = facts
        packed = None if is_unknown else found[1]
        return _Origin(fetched_at, packed, tuple(oddities), failures, since, retry_at, failure)

    def _learnt(self, answer: RobotsAnswer) -> _Origin:
        body = answer.body if answer.status < 300 else b""
        text, oddities = binding_text(body, self.agent, self.also_obey)
        packed = zlib.compress(text.encode(errors="replace"), 6) if text else b""
        return _Origin(self._clock(), packed, oddities)

    def _failed(self, before: _Origin | None, answer: RobotsAnswer) -> _Origin:
        now = self._clock()
        known = before or _Origin(now, None)
        since = min(now, known.failing_since) if known.failures else now  # a clock set back
        known.failures, known.failing_since = known.failures + 1, since
        known.failure = answer.failure or f"status {answer.status}"
        wait_s = min(MAX_RETRY_S, FIRST_RETRY_S * 2.0 ** min(known.failures - 1, 30))
        known.retry_at = now + min(MAX_RETRY_S, max(wait_s, answer.retry_after_s))
        if known.packed is None:
            give_up_at = since + (0 if answer.failure == ADDRESS_REFUSED else self._max_wait_s)
            known.retry_at = min(known.retry_at, give_up_at) if now < give_up_at else None
            known.fetched_at = now
        return known

    def _keep(self, where: str, known: _Origin) -> RobotsRules:
        """Its rules, parsed, in memory for a while."""
        self._forget(where)
        text = zlib.decompress(known.packed).decode() if known.packed else ""
        if known.packed is None:
            rules = unreachable(self.agent, known.retry_at, known.failure)
        elif not text and not known.oddities:
            rules = self._allow_all
        else:
            rules = rules_of(text, known.oddities, self.agent, self.also_obey)
        self._recent[where] = known, rules, len(text)
        self._num_parsed_chars += len(text)
        while len(self._recent) > 1 and (
            self._num_parsed_chars > self._max_parsed_chars or len(self._recent) > MAX_RECENT
        ):
            self._forget(next(iter(self._recent)))
        return rules

    def _forget(self, where: str) -> None:
        if found := self._recent.pop(where, None):
            self._num_parsed_chars -= found[2]
