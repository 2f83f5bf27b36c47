"""What an origin's ai.txt and /.well-known/tdmrep.json say, asked for once a day like robots.txt.

ai.txt as Spawning's generator writes it; tdmrep.json by the TDM Reservation Protocol (W3C, 2024).
"""

import dataclasses
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from pipeline.politeness import TdmRep, ai_txt_refusal, parse_tdmrep
from pipeline.robots import RobotsRules, binding_text, robots_url, rules_for
from pipeline.robots_cache import MAX_ROBOTS_REDIRECTS, RobotsAnswer

AI_TXT, TDMREP = "/ai.txt", "/.well-known/tdmrep.json"
FILES = (AI_TXT, TDMREP)
TTL_S = 24 * 3600.0
RETRY_S = 3600.0  # after no answer: until then nothing is said
_ENTRY_BYTES = 400  # what a known origin takes beside its files' text
_MAX_PARSED = 200
MAX_BYTES = 32 << 10  # of a file that are read: real ones have a few hundred
_STATE_VERSION = 1


@dataclasses.dataclass(frozen=True)
class OptOuts:
    """One origin's, parsed."""

    ai_txt: RobotsRules
    tdmrep: TdmRep

    def refusal(self, url: str, content_type: str = "") -> str | None:
        """Why ai.txt keeps the URL out of training, in words to count by; None: it does not. A
        path without an extension counts as one of the media type, once that is known."""
        return ai_txt_refusal(self.ai_txt, url, content_type)


@dataclasses.dataclass(slots=True)
class _File:
    """`packed`: what binds us of it, compressed; empty: it says nothing."""

    due_at: float
    packed: bytes


class OptOutCache:
    """Asks for each origin's two files, one at a call: between two requests the host has its pause.

    Of all origins that say something the text is kept compressed, up to `max_bytes` in all; the
    least recently used are forgotten. Not for two concurrent `fetch` of one origin.
    """

    def __init__(
        self,
        agent: str,
        ask: Callable[[str], Awaitable[RobotsAnswer | None]],
        clock: Callable[[], float],
        *,
        max_bytes: int = 32 << 20,
    ) -> None:
        """`ask` and `clock` as for the RobotsCache."""
        self.agent, self._ask, self._clock, self._max_bytes = agent, ask, clock, max_bytes
        self._known: OrderedDict[str, dict[str, _File]] = OrderedDict()
        self._parsed: OrderedDict[str, OptOuts] = OrderedDict()
        self._num_bytes = 0
        self._nothing = OptOuts(RobotsRules(agent, allow_all=True), TdmRep())

    def get(self, url: str) -> OptOuts | None:
        """What the URL's origin says; None: `fetch` has still to ask."""
        origin = _origin(url)
        known = self._known.get(origin, {})
        if self._due(known):
            return None
        self._known.move_to_end(origin)
        if not any(file.packed for file in known.values()):
            return self._nothing
        if origin not in self._parsed:
            self._parsed[origin] = self._parse(known)
            if len(self._parsed) > _MAX_PARSED:
                self._parsed.popitem(last=False)
        self._parsed.move_to_end(origin)
        return self._parsed[origin]

    async def fetch(self, url: str) -> None:
        """Ask the URL's origin for the next file that is due, redirects followed."""
        origin = _origin(url)
        known = self._forget(origin)
        name = (self._due(known) or FILES)[0]
        answer = await self._ask(origin + name)
        for _hop in range(MAX_ROBOTS_REDIRECTS):
            if answer is None or answer.location is None:
                break
            answer = await self._ask(answer.location)
        is_silent = answer is None or answer.status >= 500 or answer.status == 429
        body = answer.body if answer is not None and answer.status == 200 else b""
        if is_silent:  # what it said before goes on to hold
            packed = known[name].packed if name in known else b""
            known[name] = _File(self._clock() + RETRY_S, packed)
        else:
            known[name] = _File(self._clock() + TTL_S, self._binding(name, body))
        self._keep(origin, known)

    def _due(self, known: dict[str, _File]) -> list[str]:
        now = self._clock()
        return [
            name
            for name in FILES
            if name not in known or not now < known[name].due_at <= now + TTL_S
        ]

    def _binding(self, name: str, body: bytes) -> bytes:
        """The part of a file that says something to us, compressed; empty for none."""
        body = body[:MAX_BYTES]
        if name == AI_TXT:
            text = binding_text(body, self.agent)[0].encode(errors="replace")
            return zlib.compress(text) if text.strip() else b""
        return zlib.compress(body) if parse_tdmrep(body).rules else b""

    def _parse(self, known: dict[str, _File]) -> OptOuts:
        texts = {name: zlib.decompress(file.packed) for name, file in known.items() if file.packed}
        ai_txt = rules_for(200, texts.get(AI_TXT, b""), self.agent)
        return OptOuts(ai_txt, parse_tdmrep(texts.get(TDMREP, b"")))

    def _keep(self, origin: str, known: dict[str, _File]) -> None:
        self._known[origin] = known
        self._num_bytes += _size(known)
        while self._num_bytes > self._max_bytes and len(self._known) > 1:
            self._forget(next(iter(self._known)))

    def _forget(self, origin: str) -> dict[str, _File]:
        known = self._known.pop(origin, None)
        self._parsed.pop(origin, None)
        if known is None:
            return {}
        self._num_bytes -= _size(known)
        return known

    def state(self) -> dict[str, Any]:
        """All that is known, for JSON, the least recently used first."""
        return {
            "version": _STATE_VERSION,
            "agent": self.agent,
            "origins": {
                origin: {name: [file.due_at, _text(file)] for name, file in known.items()}
                for origin, known in self._known.items()
            },
        }

    def restore(self, state: dict[str, Any]) -> int:
        """Take over what `state` gave; how many origins it was. 0 if it was another agent's."""
        if (state.get("version"), state.get("agent")) != (_STATE_VERSION, self.agent):
            return 0
        for origin, files in state["origins"].items():
            known = {
                name: _File(float(due_at), self._binding(name, text.encode("latin-1")))
                for name, (due_at, text) in files.items()
                if name in FILES
            }
            self._keep(origin, known)
        return len(self._known)


def _text(file: _File) -> str:
    """Its bytes as characters: a tdmrep.json may be in any encoding that JSON may."""
    return zlib.decompress(file.packed).decode("latin-1") if file.packed else ""


def _size(known: dict[str, _File]) -> int:
    return _ENTRY_BYTES + sum(len(file.packed) for file in known.values())


def _origin(url: str) -> str:
    return robots_url(url).removesuffix("/robots.txt")
