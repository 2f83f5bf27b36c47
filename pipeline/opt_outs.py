"""What an origin's ai.txt and /.well-known/tdmrep.json say, asked for once a day like robots.txt.

ai.txt as Spawning's generator writes it; tdmrep.json by the TDM Reservation Protocol (W3C, 2024).
"""

import dataclasses
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

from pipeline.origin_store import OriginStore
from pipeline.politeness import TdmRep, ai_txt_refusal, parse_tdmrep
from pipeline.robots import RobotsRules, binding_text, is_answer, robots_url, rules_for
from pipeline.robots_cache import MAX_RECENT, RobotsAnswer

AI_TXT, TDMREP = "/ai.txt", "/.well-known/tdmrep.json"
FILES = (AI_TXT, TDMREP)
TTL_S = 24 * 3600.0
RETRY_S = 3600.0  # after no answer: until then nothing is said
MAX_BYTES = 32 << 10  # of a file that are read: real ones have a few hundred


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
    """What each origin's two files say: due one at a time, since between two requests the host has
    its pause.

    The text lies compressed in `store`; in memory is what the last used origins say, parsed, as
    long as it has `max_parsed_chars` together.
    """

    def __init__(
        self,
        agent: str,
        store: OriginStore,
        clock: Callable[[], float],
        *,
        max_parsed_chars: int = 2_000_000,
    ) -> None:
        """`clock` as for the RobotsCache."""
        self.agent, self._store, self._clock = agent, store, clock
        self._max_parsed_chars, self._num_parsed_chars = max_parsed_chars, 0
        self._recent: OrderedDict[str, tuple[float, OptOuts, int]] = OrderedDict()
        self._nothing = OptOuts(RobotsRules(agent, allow_all=True), TdmRep())

    def get(self, url: str) -> OptOuts | None:
        """What the URL's origin says; None: `due` names the file to ask for."""
        origin = _origin(url)
        if found := self._recent.get(origin):
            if self._is_due(found[0]):
                return None
            self._recent.move_to_end(origin)
            return found[1]
        files = [self._stored(origin + name) for name in FILES]
        known = [file for file in files if file is not None and not self._is_due(file.due_at)]
        return self._keep(origin, known) if len(known) == len(FILES) else None

    def due(self, url: str) -> str:
        """The URL of the file that is to be asked for next."""
        origin = _origin(url)
        for name in FILES:
            known = self._stored(origin + name)
            if known is None or self._is_due(known.due_at):
                return origin + name
        return origin + FILES[0]

    def learn(self, file: str, answer: RobotsAnswer) -> None:
        """Take in the answer to the question for `file`."""
        is_ai_txt = file.endswith(AI_TXT)
        if not is_answer(answer.status):  # what it said before goes on to hold
            before = self._stored(file)
            known = _File(self._clock() + RETRY_S, before.packed if before else b"")
        else:
            body = answer.body if answer.status == 200 else b""
            known = _File(self._clock() + TTL_S, self._binding(body, is_ai_txt=is_ai_txt))
        self._store.put(file, str(known.due_at), known.packed)
        self._forget(file.removesuffix(AI_TXT if is_ai_txt else TDMREP))

    def _is_due(self, due_at: float) -> bool:
        now = self._clock()
        return not now < due_at <= now + TTL_S

    def _stored(self, file: str) -> _File | None:
        found = self._store.get(file)
        return None if found is None else _File(float(found[0]), found[1])

    def _binding(self, body: bytes, *, is_ai_txt: bool) -> bytes:
        """The part of a file that says something to us, compressed; empty for none."""
        body = body[:MAX_BYTES]
        if is_ai_txt:
            text = binding_text(body, self.agent)[0].encode(errors="replace")
            return zlib.compress(text) if text.strip() else b""
        return zlib.compress(body) if parse_tdmrep(body).rules else b""

    def _keep(self, origin: str, known: Sequence[_File]) -> OptOuts:
        ai_txt, tdmrep = (zlib.decompress(file.packed) if file.packed else b"" for file in known)
        said = self._nothing
        if ai_txt or tdmrep:
            said = OptOuts(rules_for(200, ai_txt, self.agent), parse_tdmrep(tdmrep))
        self._forget(origin)
        self._recent[origin] = min(file.due_at for file in known), said, len(ai_txt) + len(tdmrep)
        self._num_parsed_chars += len(ai_txt) + len(tdmrep)
        while len(self._recent) > 1 and (
            self._num_parsed_chars > self._max_parsed_chars or len(self._recent) > MAX_RECENT
        ):
            self._forget(next(iter(self._recent)))
        return said

    def _forget(self, origin: str) -> None:
        if found := self._recent.pop(origin, None):
            self._num_parsed_chars -= found[2]


def _origin(url: str) -> str:
    return robots_url(url).removesuffix("/robots.txt")
