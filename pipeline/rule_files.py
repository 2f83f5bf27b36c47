"""Questions for robots.txt and files like it, through their redirects: each host is asked at its
own pace, also one that is only pointed to.

A redirect may lead to any host (RFC 9309 §2.3.1.2), and hostile ones may all lead to one.
"""

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable

from pipeline.fetch import Page
from pipeline.frontier_state import Host, hostname_of
from pipeline.polite_fetch import PoliteFetcher, asked_to_wait_s
from pipeline.responses import REDIRECTS
from pipeline.robots import MAX_ROBOTS_BYTES
from pipeline.robots_cache import RobotsAnswer
from pipeline.urls import canonical

MAX_REDIRECTS = 5  # §2.3.1.2
SHORT_RETRY_S = 3.0  # a robots.txt that fails is asked again so soon, or as its cache says
OPT_OUT_TIMEOUT_S = 10.0  # of the others, which few hosts have; they are not asked again
MAX_QUEUE_S = 20.0  # a host that so many point to counts as silent
REMEMBERED_S = 600.0  # many hosts may point to one file
_MAX_REMEMBERED, _MAX_REMEMBERED_BYTES = 10_000, 8 << 20


@dataclasses.dataclass
class _Question:
    """Where a file is to be asked for next. `slot`: when a host pointed to has time for it."""

    url: str
    num_redirects: int = 0
    attempt: int = 0
    slot: float | None = None


@dataclasses.dataclass
class _Guest:
    """A host that is pointed to; `free_at`: behind all slots that were given out. `own_slot`: the
    one that its own URLs have among them."""

    host: Host
    free_at: float
    own_slot: float | None = None


class RuleFiles:
    """The questions of one shard that are under way. `clock` is monotonic."""

    def __init__(
        self,
        web: PoliteFetcher,
        host_of: Callable[[str], Host | None],
        may_ask: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`host_of` knows the frontier's hosts by name; `may_ask` says whether a redirect to a URL
        may be followed at all."""
        self._web, self._host_of, self._may_ask, self._clock = web, host_of, may_ask, clock
        self._questions: dict[str, _Question] = {}
        self._guests: dict[str, _Guest] = {}
        self._answers: OrderedDict[str, tuple[float, RobotsAnswer]] = OrderedDict()
        self._num_bytes = 0

    def host_asked(self, file: str) -> str:
        """The name of the host that the next request for a file goes to."""
        return hostname_of(self._question(file).url)

    def before(self, file: str) -> RobotsAnswer | float:
        """The answer, if no request is needed; else the seconds for which the host has still to be
        left alone (0: `ask`)."""
        question = self._question(file)
        if question.num_redirects and not self._may_ask(question.url):
            return self._end(file, RobotsAnswer(0, failure="redirect out of scope"))
        name = hostname_of(question.url)
        if name == hostname_of(file):
            return 0.0
        if known := self._remembered(question.url):
            return self._end(file, known)
        now = self._clock()
        if question.slot is None:
            guest = self._guest(name)
            delay_s = self._web.pace(guest.host).delay_s
            if guest.free_at - now > max(MAX_QUEUE_S, 2 * delay_s):
                return self._end(file, RobotsAnswer(0, failure="redirect to a busy host"))
            question.slot = max(now, guest.free_at)
            guest.free_at = question.slot + delay_s
        return max(0.0, question.slot - now)

    def own_turn(self, host: Host) -> float:
        """Seconds that a host's own URLs have to wait, since others point to it."""
        guest = self._guests.get(host.name)
        if guest is None:
            return 0.0
        now, slot = self._clock(), guest.own_slot
        guest.own_slot = None
        if slot is None and guest.free_at > now:
            slot = guest.own_slot = guest.free_at
            guest.free_at += self._web.pace(host).delay_s
        return max(0.0, slot - now) if slot is not None else 0.0

    async def ask(self, file: str, host: Host) -> RobotsAnswer | float:
        """One request: the answer, or the seconds after which to go on, beside the host's pause.
        `host` is the file's own."""
        question = self._question(file)
        name = hostname_of(question.url)
        is_guest = name != host.name
        asked = self._guest(name).host if is_guest else host
        answer, again_s = await self._request(file, question, asked)
        if is_guest:
            guest = self._guest(name)
            guest.free_at = max(guest.free_at, self._clock() + self._web.pace(asked).delay_s)
        if again_s is not None and again_s <= SHORT_RETRY_S:
            question.attempt, question.slot = question.attempt + 1, None
            return again_s
        if (target := self._redirect(question, answer)) is not None:
            self._questions[file] = _Question(target, question.num_redirects + 1)
            return 0.0
        found = RobotsAnswer(0, failure=answer) if isinstance(answer, str) else _said(answer)
        if is_guest:
            self._remember(question.url, found)
        return self._end(file, found)

    async def _request(
        self, file: str, question: _Question, host: Host
    ) -> tuple[Page | str, float | None]:
        config = self._web.config
        attempt, timeout_s = question.attempt, config.timeout_s
        if not file.endswith("/robots.txt"):
            attempt, timeout_s = config.max_retries, min(timeout_s, OPT_OUT_TIMEOUT_S)
        return await self._web.get(
            question.url, host, attempt, cut_at=MAX_ROBOTS_BYTES, timeout_s=timeout_s
        )

    @staticmethod
    def _redirect(question: _Question, answer: Page | str) -> str | None:
        """Where the answer points to, if that is to be followed."""
        if isinstance(answer, str) or answer.status not in REDIRECTS:
            return None
        if question.num_redirects >= MAX_REDIRECTS:
            return None
        return canonical(answer.headers.get("location", ""), question.url)

    def _question(self, file: str) -> _Question:
        return self._questions.setdefault(file, _Question(file))

    def _end(self, file: str, answer: RobotsAnswer) -> RobotsAnswer:
        self._questions.pop(file, None)
        return answer

    def _guest(self, name: str) -> _Guest:
        now = self._clock()
        if len(self._guests) > _MAX_REMEMBERED:
            self._guests = {n: guest for n, guest in self._guests.items() if guest.free_at > now}
        host = self._host_of(name)
        guest = self._guests.setdefault(name, _Guest(host or Host(name), 0.0))
        if host is not None:
            guest.host = host
        if guest.host.first_asked is not None:
            delay_s = self._web.pace(guest.host).delay_s
            guest.free_at = max(guest.free_at, guest.host.last_asked + delay_s)
        return guest

    def _remembered(self, url: str) -> RobotsAnswer | None:
        oldest = self._clock() - REMEMBERED_S
        while self._answers and (
            next(iter(self._answers.values()))[0] < oldest
            or len(self._answers) > _MAX_REMEMBERED
            or self._num_bytes > _MAX_REMEMBERED_BYTES
        ):
            self._num_bytes -= len(self._answers.popitem(last=False)[1][1].body)
        return self._answers[url][1] if url in self._answers else None

    def _remember(self, url: str, answer: RobotsAnswer) -> None:
        if url not in self._answers:
            self._answers[url] = self._clock(), answer
            self._num_bytes += len(answer.body)


def _said(page: Page) -> RobotsAnswer:
    return RobotsAnswer(page.status, page.payload, retry_after_s=asked_to_wait_s(page))
