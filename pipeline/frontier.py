"""What is known, waiting and done in one shard of a crawl: a log, and what follows from it.

Each event is a line of the log before anything builds on it. In memory a waiting URL is its line's
address (8 bytes), a known one nothing (pipeline/seen.py); a snapshot saves replaying the log from
its beginning. Times are seconds of any clock that never goes back; the caller passes them in.
"""

import dataclasses
import heapq
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipeline import pauses
from pipeline.core.errors import UserError
from pipeline.frontier_log import FrontierLog
from pipeline.frontier_snapshot import Snapshot, last_state, write_snapshot
from pipeline.frontier_state import (
    Archived,
    Entry,
    Host,
    Tally,
)
from pipeline.pauses import Clocks, Pauses
from pipeline.shard_mail import Mailbox

ERRAND_POLL_S = 0.2
Refusal = Callable[[str, int], str | None]


@dataclasses.dataclass(frozen=True)
class HostBudget:
    """What one host may take up; None is no limit. `seconds` count from its first request."""

    pages: int | None = None
    num_bytes: int | None = None
    seconds: float | None = None


@dataclasses.dataclass
class Turn:
    """A URL whose host's turn it is; `is_done`: archived or dropped, and not yet released. An
    errand is asked for somebody else, and is none of the crawl's URLs."""

    entry: Entry
    address: int
    host: Host
    is_done: bool = False
    is_errand: bool = False


class Frontier:
    """One shard. `refusal(url, depth)` is the scope: the reason why a URL is out, or None."""

    def __init__(
        self,
        folder: Path,
        epoch: int,
        refusal: Refusal,
        mailbox: Mailbox,
        bytes_in_warc: Callable[[str], int],
        max_pages: int,
        budget: HostBudget = HostBudget(),
        max_recent: int = 1 << 18,
        clocks: Clocks | None = None,
        pause_s: float = 0.0,
    ) -> None:
        """Rebuild the state that the folder's files tell. A page whose WARC is shorter than the
        log says (`bytes_in_warc`, after a power cut) waits again. With `clocks` the hosts of owners
        before this one get the rest of their pauses, or `pause_s`. Raises UserError for damage."""
        self.refusal, self.mailbox, self.max_pages, self.budget = (
            refusal,
            mailbox,
            max_pages,
            budget,
        )
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        self.tally = Tally()
        self.refused: Counter[str] = Counter()  # links, not URLs; since this owner began
        self.in_flight: dict[str, Turn] = {}
        # A heap of (when, tie, host); a host that was offered anew is in there twice.
        self._ready: list[tuple[float, int, str]] = []
        self._num_turns = self._num_ready = 0
        self._errands: list[tuple[float, int, str]] = []  # a heap of (when, tie, URL)
        self._served: set[str] = set()  # hosts whose last turn was an errand
        self._log = FrontierLog(folder, epoch)
        self._pauses = Pauses(clocks, pause_s)
        snapshot, self.seen, problem = last_state(
            folder, self._log.start, bytes_in_warc, max_recent
        )
        if problem:
            print(f"warning: {problem}; all of the log is read instead", file=sys.stderr)
        self._restore(snapshot, bytes_in_warc)
        self._snapshot_end = -1 if problem else self._log.end

    # What there is

    @property
    def num_known(self) -> int:
        return self.tally.num_known

    @property
    def num_waiting(self) -> int:
        turns = list(self.in_flight.values())  # one step: the status comes from another thread
        flying = sum(not turn.is_done for turn in turns)
        return self.tally.num_known - self.tally.num_finished - flying

    @property
    def num_hosts_waiting(self) -> int:
        return self._num_ready + len(self.in_flight)

    @property
    def is_spent(self) -> bool:
        """Whether what is archived and in flight fills the budget."""
        return self.tally.num_charged + len(self.in_flight) >= self.max_pages

    @property
    def is_idle(self) -> bool:
        """Nothing in flight, nothing to take, nothing to hand over or to take in."""
        has_turn = self._num_ready > 0 and not self.is_spent
        return not (self.in_flight or has_turn or self._errands or self.mailbox.has_mail)

    # What comes in

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in what is new and in scope."""
        lines, new = self._lines_of(entries)
        if lines:
            self._take_in(new, self._log.append(lines))

    def read_mail(self, note: Callable[[str], None] = lambda line: None) -> None:
        """Take in what other shards found for this one; `note` hears what else they say."""
        for name, lines in self.mailbox.letters():
            self.add(Entry.of(line) for line in lines if line.startswith("+"))
            self._log.sync()
            self.mailbox.burn(name)
            for line in lines:
                if not line.startswith("+"):
                    note(line)

    def archive(self, turn: Turn, item: Archived, links: Iterable[Entry]) -> None:
        """The page is in the WARC file: its links become known and itself done, in one write."""
        lines, new = self._lines_of(links)
        addresses = self._log.append([*lines, item.line(turn.address)])
        self._take_in(new, addresses)
        turn.is_done = True
        self._count_archived(turn.host, item)

    def drop(self, turn: Turn, reason: str, links: Iterable[Entry] = ()) -> None:
        """It is done with, and not archived; `links` all the same become known."""
        lines, new = self._lines_of(links)
        self._take_in(new, self._log.append([*lines, f"-\t{turn.address}\t{reason}"]))
        turn.is_done = True
        self._count_dropped(turn.host, reason)

    def _lines_of(self, entries: Iterable[Entry]) -> tuple[list[str], list[Entry]]:
        """What the log has to say of the entries: first those that are ours, which are returned,
        then those of other shards."""
        by_url: dict[str, Entry] = {}
        for entry in entries:
            reason = self.refusal(entry.url, entry.depth)
            if reason is None:
                by_url.setdefault(entry.url, entry)
            else:
                self.refused[reason] += 1
        fresh = [by_url[url] for url in self.seen.add_new(list(by_url))] if by_url else []
        if not self.mailbox.has_peers:
            return [entry.line("+") for entry in fresh], fresh
        ours = [entry for entry in fresh if self.mailbox.is_ours(entry.host)]
        others = [entry for entry in fresh if not self.mailbox.is_ours(entry.host)]
        for entry in others:
            self.mailbox.send(entry.host, entry.line("+"))
        lines = [entry.line("+") for entry in ours] + [entry.line(">") for entry in others]
        return lines, ours

    def _take_in(self, entries: Sequence[Entry], addresses: Sequence[int]) -> None:
        self.tally.num_known += len(entries)
        for entry, address in zip(entries, addresses, strict=False):
            self._enqueue(self.host(entry.host), entry.priority, address)

    # Turns

    def take(self, now: float) -> Turn | None:
        """The next URL of a host whose turn it is. Nobody else gets that host until `release`."""
        while not self.is_spent and self._ready and self._ready[0][0] <= now:
            when, _, name = heapq.heappop(self._ready)
            host = self.hosts[name]
            if host.ready_at != when:  # it was asked before
                continue
            host.ready_at = None
            self._num_ready -= 1
            if self._is_over(host, now):
                continue
            host.resume(now)
            self._served.discard(name)
            address = host.pop()
            turn = Turn(Entry.of(self._log.read(address)), address, host)
            self.in_flight[host.name] = turn
            return turn
        return None

    def run_errand(self, url: str) -> None:
        """Have a host asked for a URL that is none of the crawl's, in a turn of its own."""
        self._push_errand(url, self.host(Entry(url, 0).host).free_at)

    def _push_errand(self, url: str, when: float) -> None:
        self._num_turns += 1
        heapq.heappush(self._errands, (when, self._num_turns, url))

    def take_errand(self, now: float) -> Turn | None:
        """The next errand whose host's turn it is, whatever the budget."""
        while self._errands and self._errands[0][0] <= now:
            url = heapq.heappop(self._errands)[2]
            host = self.host(Entry(url, 0).host)
            is_own_turn = (  # after an errand, if the host has URLs of its own that may be taken
                host.name in self._served
                and host.ready_at is not None
                and host.ready_at <= now
                and not self.is_spent
            )
            if is_own_turn or host.name in self.in_flight or host.free_at > now:
                self._push_errand(url, max(now + ERRAND_POLL_S, host.free_at))
                continue
            self._served.add(host.name)
            if host.ready_at is not None:
                host.ready_at = None
                self._num_ready -= 1
            turn = Turn(Entry(url, 0), -1, host, is_done=True, is_errand=True)
            self.in_flight[host.name] = turn
            return turn
        return None

    def next_turn(self) -> float | None:
        """When the next idle host may be asked, or None if none has anything waiting."""
        first = [*self._ready[:1], *self._errands[:1]]  # one step, as above
        return min(first)[0] if first else None

    def release(self, turn: Turn, free_at: float) -> None:
        """The host may be asked again from `free_at` on."""
        del self.in_flight[turn.host.name]
        turn.host.free_at = free_at
        if line := self._pauses.note(turn.host.name, free_at):
            self._log.append([line])
        self._offer(turn.host)

    def put_back(self, turn: Turn, free_at: float) -> None:
        """Not fetched after all: it is the first of its host's next turn."""
        if turn.is_errand:
            self._push_errand(turn.entry.url, free_at)
        else:
            turn.host.hold(turn.address)
        self.release(turn, free_at)

    def defer(self, turn: Turn, until: float) -> None:
        """Not now, for a reason that need not be its host's other URLs'."""
        turn.host.defer(turn.address, until)
        self.release(turn, turn.host.free_at)

    def _is_over(self, host: Host, now: float) -> bool:
        """Whether the host's budget is used up: what waits there is left over."""
        limit = self.budget
        over = (
            (limit.pages is not None and host.pages >= limit.pages)
            or (limit.num_bytes is not None and host.num_bytes >= limit.num_bytes)
            or (limit.seconds is not None and host.asked_s(now) >= limit.seconds)
        )
        host.is_over = over
        return over

    def host(self, name: str) -> Host:
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = Host(name)
        return host

    def _enqueue(self, host: Host, priority: int, address: int) -> None:
        host.push(priority, address)
        self._offer(host)

    def _offer(self, host: Host) -> None:
        if host.name in self.in_flight or host.is_over or not host.num_waiting:
            return
        when = host.next_turn
        if host.ready_at is None or when < host.ready_at:
            self._num_ready += host.ready_at is None
            host.ready_at = when
            self._num_turns += 1
            heapq.heappush(self._ready, (when, self._num_turns, host.name))

    # Counting

    def _count_archived(self, host: Host, item: Archived) -> None:
        tally = self.tally
        tally.num_archived += 1
        tally.num_unchanged += item.is_unchanged
        tally.statuses[item.status] += 1
        tally.warc_rows[item.warc] += 1
        tally.warc_ends[item.warc] = max(item.end, tally.warc_ends.get(item.warc, 0))
        tally.num_bytes += item.num_bytes
        if item.outside and len(tally.outside) < 100:
            tally.outside[item.outside] += 1
        host.pages += 1
        host.num_bytes += item.num_bytes

    def _count_dropped(self, host: Host, reason: str) -> None:
        self.tally.dropped[reason] += 1
        host.dropped += 1

    # Lasting

    def sync(self) -> None:
        """Have all of it on the disk, and what is other shards' in their mailboxes."""
        self._log.sync()
        self.mailbox.deliver()

    def wants_snapshot(self) -> bool:
        return self.seen.is_full

    def snapshot(self) -> None:
        """Write the state down, so that a successor need not read the log up to here. The WARC
        files must be on the disk by now."""
        if self._log.end == self._snapshot_end and not self.seen.is_full:
            return
        self.sync()
        runs = self.seen.spill()
        flying = {
            turn.host.name: turn.address for turn in self.in_flight.values() if not turn.is_done
        }
        head = Snapshot(self._log.end, runs, self.tally, pauses=self._pauses.to_json())
        write_snapshot(self.folder, head, self.hosts, flying)
        self.seen.discard()
        self._snapshot_end = self._log.end

    def close(self) -> None:
        self._log.close()

    def _restore(self, snapshot: Snapshot, bytes_in_warc: Callable[[str], int]) -> None:
        self.tally = snapshot.tally
        for host in snapshot.hosts:
            self.hosts[host.name] = host
        self._pauses.of_json(snapshot.pauses)
        self._sizes: dict[str, int] = {}
        finished: dict[str, list[int]] = {}
        new: list[tuple[Entry, int]] = []
        for address, line in self._log.replay(snapshot.end):
            try:
                self._replay(address, line, new, finished, bytes_in_warc)
            except (ValueError, KeyError, AssertionError):
                raise UserError(
                    f"the log in {self.folder} is damaged at {address}:"
                    f" {line[:80]!r}; delete the folder to crawl anew"
                ) from None
            if len(new) >= 10_000:
                self._known_again(new)
        self._known_again(new)
        for name, addresses in finished.items():
            self.hosts[name].remove(addresses)
        for name in self._pauses.hosts():
            self.host(name)  # one may have been asked for another's rules alone
        for host in self.hosts.values():
            host.free_at = self._pauses.free_at(host.name)
            self._offer(host)

    def _replay(
        self,
        address: int,
        line: str,
        new: list[tuple[Entry, int]],
        finished: dict[str, list[int]],
        bytes_in_warc: Callable[[str], int],
    ) -> None:
        match line[:1]:
            case "+":
                new.append((Entry.of(line), address))
            case ">":
                entry = Entry.of(line)
                self.seen.add_new([entry.url])
                self.mailbox.send(entry.host, entry.line("+"))
            case "=":
                done, item = Archived.of(line)
                if item.warc not in self._sizes:
                    self._sizes[item.warc] = bytes_in_warc(item.warc)
                if item.end <= self._sizes[item.warc]:
                    self._count_archived(self._finish(done, finished), item)
            case "-":
                _, done, reason = line.split("\t")
                self._count_dropped(self._finish(int(done), finished), reason)
            case pauses.KIND:
                self._pauses.read(line)
            case _:
                raise ValueError(line)

    def _finish(self, address: int, finished: dict[str, list[int]]) -> Host:
        host = self.host(Entry.of(self._log.read(address)).host)
        finished.setdefault(host.name, []).append(address)
        return host

    def _known_again(self, new: list[tuple[Entry, int]]) -> None:
        fresh = set(self.seen.add_new([entry.url for entry, _ in new]))
        for entry, address in new:
            if entry.url in fresh:
                fresh.discard(entry.url)
                self.tally.num_known += 1
                self.host(entry.host).push(entry.priority, address)
        new.clear()
        if self.seen.is_full:  # the older runs stay until a snapshot names these
            self.seen.spill()
