"""What a frontier shard has in memory: URLs, hosts with their queues, and counts."""

import array
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A canonical URL to fetch. `hops`: redirects (or sitemap indices) that led here. Of a host's
    URLs the lowest `priority` comes first, and among equals the first that was found."""

    url: str
    depth: int
    hops: int = 0
    is_sitemap: bool = False
    priority: int = 0

    @property
    def host(self) -> str:
        """Whose politeness it falls under: the host name, whatever the port."""
        return hostname_of(self.url)

    def line(self, kind: str) -> str:
        """As the log has it. A canonical URL holds neither blanks nor control characters."""
        numbers = f"{self.depth}\t{self.hops}\t{int(self.is_sitemap)}\t{self.priority}"
        return f"{kind}\t{numbers}\t{self.url}"

    @staticmethod
    def of(line: str) -> "Entry":
        _, depth, hops, is_sitemap, priority, url = line.split("\t")
        return Entry(url, int(depth), int(hops), is_sitemap == "1", int(priority))


def hostname_of(url: str) -> str:
    """The host name in a canonical URL, brackets and all for an IPv6 address."""
    start = url.index("//") + 2
    end = url.find("/", start)
    authority = url[start:] if end < 0 else url[start:end]
    if authority.startswith("["):
        return authority[: authority.index("]") + 1]
    return authority.partition(":")[0]


@dataclasses.dataclass(frozen=True)
class Archived:
    """A response in a WARC file. `payload_sha256` is its WARC-Payload-Digest; `end` is the offset
    behind it; `outside`, if not empty, the host beyond the scope that it redirects to;
    `validators` what a recrawl sends back: ETag and Last-Modified, and when it was fetched;
    `is_unchanged`: the crawl before has the same, and this one a revisit record.
    """

    status: int
    payload_sha256: str
    warc: str
    end: int
    num_bytes: int = 0
    outside: str = ""
    validators: tuple[str, str, str] = ("", "", "")
    is_unchanged: bool = False

    def line(self, address: int) -> str:
        """As the log has it, of the URL at an address."""
        fields = [
            "=",
            str(address),
            str(self.status),
            self.payload_sha256,
            self.warc,
            str(self.end),
            str(self.num_bytes),
            self.outside,
            *(value.replace("\t", " ").replace("\n", " ") for value in self.validators),
            *["u"] * self.is_unchanged,
        ]
        return "\t".join(fields)

    @staticmethod
    def of(line: str) -> "tuple[int, Archived]":
        """The address, and what became of it."""
        _, address, status, digest, warc, end, num_bytes, outside, *rest = line.split("\t")
        etag, modified, fetched, *unchanged = rest
        item = Archived(
            int(status),
            digest,
            warc,
            int(end),
            int(num_bytes),
            outside,
            (etag, modified, fetched),
            bool(unchanged),
        )
        return int(address), item


class Host:
    """A host's queues (one for each priority) and what it has had so far.

    `held` come first; `deferred` wait until `deferred_until`, while the others go on.
    `asked_for_s`: from the first request on, under owners before this one."""

    __slots__ = (
        "asked_for_s",
        "deferred",
        "deferred_until",
        "dropped",
        "first_asked",
        "free_at",
        "heads",
        "held",
        "is_over",
        "last_asked",
        "name",
        "num_bytes",
        "pages",
        "queues",
        "ready_at",
        "shortest_gap_s",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.queues: dict[int, array.array[int]] = {}
        self.heads: dict[int, int] = {}  # taken so far from the front of each queue
        # Most hosts have neither: an empty array for each would cost 80 bytes.
        self.held: array.array[int] | tuple[()] = ()
        self.deferred: array.array[int] | tuple[()] = ()
        self.deferred_until = self.asked_for_s = 0.0
        self.free_at = 0.0
        self.ready_at: float | None = None  # when it is in the frontier's heap for
        self.is_over = False
        self.pages = self.num_bytes = self.dropped = 0
        self.first_asked: float | None = None
        self.last_asked = 0.0
        self.shortest_gap_s: float | None = None

    @property
    def num_waiting(self) -> int:
        return len(self.held) + len(self.deferred) + self._num_queued

    @property
    def _num_queued(self) -> int:
        return sum(len(queue) - self.heads[priority] for priority, queue in self.queues.items())

    @property
    def next_turn(self) -> float:
        """When the first of its URLs may be asked for."""
        is_ready = bool(self.held or self.queues)
        return self.free_at if is_ready else max(self.free_at, self.deferred_until)

    def hold(self, address: int) -> None:
        if isinstance(self.held, tuple):
            self.held = array.array("Q")
        self.held.append(address)

    def defer(self, address: int, until: float) -> None:
        if isinstance(self.deferred, tuple):
            self.deferred, self.deferred_until = array.array("Q"), until
        self.deferred_until = min(until, self.deferred_until)
        self.deferred.append(address)

    def resume(self, now: float) -> None:
        """What was deferred until now comes first again."""
        if self.deferred and now >= self.deferred_until:
            self.deferred.reverse()
            if isinstance(self.held, tuple):
                self.held = self.deferred
            else:
                self.held.extend(self.deferred)
            self.deferred = ()

    def asked_s(self, now: float | None = None) -> float:
        """Seconds from the first request on, until the last one or `now`."""
        if self.first_asked is None:
            return self.asked_for_s
        return self.asked_for_s + (self.last_asked if now is None else now) - self.first_asked

    def push(self, priority: int, address: int) -> None:
        if priority not in self.queues:
            self.queues[priority] = array.array("Q")
            self.heads[priority] = 0
        self.queues[priority].append(address)

    def pop(self) -> int:
        if not isinstance(self.held, tuple):
            address = self.held.pop()
            self.held = self.held or ()
            return address
        priority = min(self.queues)
        queue, head = self.queues[priority], self.heads[priority]
        address = queue[head]
        head += 1
        if head == len(queue):
            del self.queues[priority], self.heads[priority]
            return address
        if head > 64 and head > len(queue) // 2:
            del queue[:head]
            head = 0
        self.heads[priority] = head
        return address

    def waiting(self) -> dict[int, "array.array[int]"]:
        """What waits, by priority; what was held comes first."""
        found = {p: queue[self.heads[p] :] for p, queue in self.queues.items()}
        if extra := self._not_queued():
            first = min(found, default=0)
            found[first] = extra + found.get(first, array.array("Q"))
        return found

    def _not_queued(self) -> "array.array[int]":
        found = array.array("Q", self.held)
        found.reverse()
        found.extend(self.deferred)
        return found

    def sizes(self, is_asked: bool) -> list[tuple[int, int]]:
        """(priority, how many wait) in the order of `pieces`."""
        found = {p: len(queue) - self.heads[p] for p, queue in self.queues.items()}
        extra = len(self.held) + len(self.deferred) + is_asked
        if extra:
            first = min(found, default=0)
            found = {first: found.pop(first, 0) + extra, **found}
        return list(found.items())

    def pieces(self, in_flight: int | None) -> Iterator[bytes | memoryview]:
        """What waits, as the snapshot has it: the first queue begins with what is in flight and
        what was held or deferred."""
        extra = array.array("Q", () if in_flight is None else (in_flight,)) + self._not_queued()
        if extra:
            yield extra.tobytes()
        first = min(self.queues, default=0) if extra else next(iter(self.queues), 0)
        for p in [first, *(p for p in self.queues if p != first)]:
            if p in self.queues:
                yield memoryview(self.queues[p])[self.heads[p] :].cast("B")

    def remove(self, addresses: Sequence[int]) -> None:
        """Take out what is done already."""
        gone = set(addresses)
        for priority, queue in self.waiting().items():
            left = array.array("Q", [address for address in queue if address not in gone])
            if left:
                self.queues[priority], self.heads[priority] = left, 0
            else:
                self.queues.pop(priority, None)
                self.heads.pop(priority, None)
        self.held = self.deferred = ()


@dataclasses.dataclass
class Tally:
    """A shard's counts. Known = archived + dropped + waiting + in flight."""

    num_known: int = 0
    num_archived: int = 0
    num_unchanged: int = 0  # of the archived
    num_bytes: int = 0
    statuses: Counter[int] = dataclasses.field(default_factory=Counter[int])
    dropped: Counter[str] = dataclasses.field(default_factory=Counter[str])
    warc_rows: Counter[str] = dataclasses.field(default_factory=Counter[str])
    warc_ends: dict[str, int] = dataclasses.field(default_factory=dict[str, int])
    outside: Counter[str] = dataclasses.field(default_factory=Counter[str])

    @property
    def num_charged(self) -> int:
        """What counts against the budget of pages."""
        return self.num_archived - self.num_unchanged

    @property
    def num_finished(self) -> int:
        return self.num_archived + self.dropped.total()

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @staticmethod
    def of_json(data: Mapping[str, Any]) -> "Tally":
        return Tally(
            data["num_known"],
            data["num_archived"],
            data["num_unchanged"],
            data["num_bytes"],
            Counter({int(status): number for status, number in data["statuses"].items()}),
            Counter(data["dropped"]),
            Counter(data["warc_rows"]),
            dict(data["warc_ends"]),
            Counter(data["outside"]),
        )
