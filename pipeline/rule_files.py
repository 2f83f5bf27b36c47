"""Questions for robots.txt and files like it, through their redirects.

A redirect may lead to any host (RFC 9309 §2.3.1.2), and hostile ones may all lead to one: what lies
on another host is fetched as an errand, in a turn of that host, by the shard whose host it is.
"""

import base64
import dataclasses
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from pipeline.fetch import Page
from pipeline.frontier import Frontier
from pipeline.frontier_state import Host, hostname_of
from pipeline.polite_fetch import PoliteFetcher, asked_to_wait_s
from pipeline.responses import REDIRECTS
from pipeline.robots import MAX_ROBOTS_BYTES, is_answer
from pipeline.robots_cache import RobotsAnswer
from pipeline.urls import canonical

MAX_REDIRECTS = 5  # §2.3.1.2
SHORT_RETRY_S = 3.0  # a robots.txt that fails is asked again so soon, or as its cache says
OPT_OUT_TIMEOUT_S = 10.0  # of the others, which few hosts have; they are not asked again
MAX_ERRAND_S = 120.0  # then the host that was pointed to counts as silent
LOOK_EVERY_S = (0.2, 5.0)  # whether an errand is done: soon, and ever later
REMEMBERED_S, FAILURE_REMEMBERED_S = 600.0, 15.0  # many hosts may point to one file
_MAX_REMEMBERED, _MAX_REMEMBERED_BYTES = 10_000, 8 << 20


@dataclasses.dataclass(frozen=True)
class Answer:
    """One response, or the `failure` to get one (`status` 0). `location`: where it redirects to."""

    status: int
    body: bytes = b""
    failure: str = ""
    retry_after_s: float = 0.0
    location: str | None = None

    @staticmethod
    def of(said: Page | str, url: str) -> "Answer":
        if isinstance(said, str):
            return Answer(0, failure=said)
        target = None
        if said.status in REDIRECTS:
            target = canonical(said.headers.get("location", ""), url)
        return Answer(said.status, said.payload, "", asked_to_wait_s(said), target)

    def to_json(self) -> str:
        return json.dumps(
            {**dataclasses.asdict(self), "body": base64.b64encode(self.body).decode()}
        )

    @staticmethod
    def of_json(text: str) -> "Answer":
        values: dict[str, Any] = json.loads(text)
        values["body"] = base64.b64decode(values["body"])
        return Answer(**values)


@dataclasses.dataclass
class _Question:
    """Where a file is to be asked for next; `sent_at`: since when an errand is under way."""

    url: str
    num_redirects: int = 0
    attempt: int = 0
    sent_at: float | None = None


class RuleFiles:
    """The questions of one shard that are under way. `clock` is monotonic."""

    def __init__(
        self,
        web: PoliteFetcher,
        frontier: Frontier,
        shard: int,
        may_ask: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`may_ask` says whether a redirect to a URL may be followed at all."""
        self._web, self._frontier, self._shard = web, frontier, shard
        self._may_ask, self._clock = may_ask, clock
        self._asked_by: dict[str, list[int]] = {}  # the shards that wait for an errand's answer
        self._questions: dict[str, _Question] = {}
        self._sent: dict[str, float] = {}
        self._answers: OrderedDict[str, tuple[float, Answer]] = OrderedDict()
        self._num_bytes = 0

    def before(self, file: str) -> RobotsAnswer | float:
        """The answer, if no request to the file's own host is needed; else seconds to come back
        after (0: `ask`)."""
        while True:
            question = self._questions.setdefault(file, _Question(file))
            url = question.url
            if question.num_redirects and not self._may_ask(url):
                return self._end(file, Answer(0, failure="redirect out of scope"))
            if hostname_of(url) == hostname_of(file):
                return 0.0
            answer = self._remembered(url)
            if answer is None:
                return self._wait(file, question)
            if (said := self._go_on(file, question, answer)) is not None:
                return said

    def _wait(self, file: str, question: _Question) -> RobotsAnswer | float:
        now = self._clock()
        if question.sent_at is None:
            question.sent_at = now
            if now - self._sent.get(question.url, -MAX_ERRAND_S) >= MAX_ERRAND_S:
                self._sent[question.url] = now
                self._send(question.url)
        waited_s = now - question.sent_at
        if waited_s >= MAX_ERRAND_S:
            return self._end(file, Answer(0, failure="redirect to a silent host"))
        least_s, most_s = LOOK_EVERY_S
        return min(most_s, max(least_s, waited_s / 2))

    async def ask(self, file: str, host: Host) -> RobotsAnswer | float:
        """One request to the file's own host: the answer, or the seconds after which to go on,
        beside the host's pause."""
        question = self._questions.setdefault(file, _Question(file))
        config = self._web.config
        attempt, timeout_s = question.attempt, config.timeout_s
        if not file.endswith("/robots.txt"):
            attempt, timeout_s = config.max_retries, min(timeout_s, OPT_OUT_TIMEOUT_S)
        said, again_s = await self._web.get(
            question.url, host, attempt, cut_at=MAX_ROBOTS_BYTES, timeout_s=timeout_s
        )
        if again_s is not None and again_s <= SHORT_RETRY_S:
            question.attempt += 1
            return again_s
        found = self._go_on(file, question, Answer.of(said, question.url))
        return 0.0 if found is None else found

    async def run_errand(self, url: str, host: Host) -> Answer:
        """One request for a file that another host points to."""
        config = self._web.config
        said, _ = await self._web.get(url, host, config.max_retries, cut_at=MAX_ROBOTS_BYTES)
        return Answer.of(said, url)

    def end_errand(self, url: str, answer: Answer) -> None:
        """What came of it, for this shard and those that asked."""
        self._learn(url, answer)
        for shard in self._asked_by.pop(url, ()):
            self._frontier.mailbox.send_to(shard, f"!\t{url}\t{answer.to_json()}")

    def read_note(self, line: str) -> None:
        """What another shard asks for, or has found out for this one."""
        kind, first, second = line.split("\t", 2)
        if kind == "!":
            self._learn(first, Answer.of_json(second))
            return
        asked_by = self._asked_by.setdefault(second, [])
        asked_by.append(int(first))
        if len(asked_by) == 1:
            self._frontier.run_errand(second)

    def _send(self, url: str) -> None:
        """Have the shard whose host it is fetch a file that another host points to."""
        mailbox, name = self._frontier.mailbox, hostname_of(url)
        if mailbox.is_ours(name):
            self._frontier.run_errand(url)
        else:
            mailbox.send(name, f"?\t{self._shard}\t{url}")

    def _learn(self, url: str, answer: Answer) -> None:
        self._sent.pop(url, None)
        if url in self._answers:
            self._num_bytes -= len(self._answers.pop(url)[1].body)
        is_lasting = is_answer(answer.status) or answer.location is not None
        lasts_s = REMEMBERED_S if is_lasting else FAILURE_REMEMBERED_S
        self._answers[url] = self._clock() + lasts_s, answer
        self._num_bytes += len(answer.body)
        while len(self._answers) > _MAX_REMEMBERED or (
            self._num_bytes > _MAX_REMEMBERED_BYTES and len(self._answers) > 1
        ):
            self._num_bytes -= len(self._answers.popitem(last=False)[1][1].body)

    def _go_on(self, file: str, question: _Question, answer: Answer) -> RobotsAnswer | None:
        """The end, or None: a redirect is to be followed."""
        if answer.location is not None and question.num_redirects < MAX_REDIRECTS:
            self._questions[file] = _Question(answer.location, question.num_redirects + 1)
            return None
        return self._end(file, answer)

    def _end(self, file: str, answer: Answer) -> RobotsAnswer:
        self._questions.pop(file, None)
        return RobotsAnswer(answer.status, answer.body, answer.failure, answer.retry_after_s)

    def _remembered(self, url: str) -> Answer | None:
        known = self._answers.get(url)
        return known[1] if known and self._clock() < known[0] else None
