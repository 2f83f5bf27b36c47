"""Counts and samples of a corpus in bounded memory, which add up shard by shard.

A tally keeps its most frequent names (Misra and Gries 1982; merged as Agarwal et al. 2012,
"Mergeable summaries", do); a sample keeps what hashes lowest. Neither depends on who came first.
"""

import dataclasses
import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import xxhash

from pipeline.core.identity import canonical_json

SEED = "flywheel card"
Sized = tuple[int, int]  # documents (or what is counted), bytes


@dataclasses.dataclass
class Tally:
    """[number, bytes] by name, for at most `limit` names. A name's true number is at least that,
    and at most `missed` more: missed <= all / (limit + 1), and 0 while the names fit."""

    limit: int
    counts: dict[str, list[int]] = dataclasses.field(default_factory=dict[str, list[int]])
    missed: int = 0

    def add(self, name: str, number: int = 1, num_bytes: int = 0) -> None:
        """In between there may be twice `limit` names."""
        entry = self.counts.setdefault(name, [0, 0])
        entry[0] += number
        entry[1] += num_bytes
        if len(self.counts) > 2 * self.limit:
            self.prune()

    def prune(self) -> None:
        if len(self.counts) <= self.limit:
            return
        numbers = heapq.nlargest(self.limit + 1, (number for number, _ in self.counts.values()))
        cut = numbers[-1]
        self.missed += cut
        self.counts = {
            name: [number - cut, num_bytes]
            for name, (number, num_bytes) in self.counts.items()
            if number > cut
        }

    def merge(self, other: Self) -> None:
        for name, (number, num_bytes) in sorted(other.counts.items()):
            entry = self.counts.setdefault(name, [0, 0])
            entry[0] += number
            entry[1] += num_bytes
        self.missed += other.missed
        self.prune()

    def of(self, name: str) -> Sized:
        number, num_bytes = self.counts.get(name, (0, 0))
        return number, num_bytes

    def largest(self, number: int) -> list[tuple[str, int, int]]:
        """(name, number, bytes), the most frequent first."""
        ordered = sorted(self.counts.items(), key=lambda entry: (-entry[1][0], entry[0]))
        return [(name, count, num_bytes) for name, (count, num_bytes) in ordered[:number]]

    @property
    def total(self) -> Sized:
        """Of the names that are kept."""
        entries = self.counts.values()
        return sum(number for number, _ in entries), sum(num_bytes for _, num_bytes in entries)


@dataclasses.dataclass
class Sample:
    """Of the `size` identities that hash lowest the entry with the lowest place."""

    size: int
    entries: list[tuple[str, dict[str, Any]]] = dataclasses.field(
        default_factory=list[tuple[str, dict[str, Any]]]
    )

    def offer(self, identity: str, place: str, make: Callable[[], dict[str, Any]]) -> None:
        """`make` is called only for what is taken."""
        hashed = xxhash.xxh3_64_hexdigest(f"{SEED}\0{identity}".encode())
        rank = f"{hashed} {place}"
        if len(self.entries) == self.size and rank >= self.entries[-1][0]:
            return
        if any(known.startswith(hashed) and known <= rank for known, _ in self.entries):
            return
        self._keep([*self.entries, (rank, make())])

    def merge(self, other: Self) -> None:
        self._keep([*self.entries, *other.entries])

    def _keep(self, entries: list[tuple[str, dict[str, Any]]]) -> None:
        first: dict[str, tuple[str, dict[str, Any]]] = {}
        for entry in sorted(entries, key=_rank):
            first.setdefault(entry[0].partition(" ")[0], entry)
        self.entries = list(first.values())[: self.size]

    @property
    def chosen(self) -> list[dict[str, Any]]:
        return [entry for _, entry in self.entries]


def _rank(entry: tuple[str, Any]) -> str:
    return entry[0]


@dataclasses.dataclass
class Findings:
    """Tallies and samples by name; each name has one limit, wherever it is used."""

    tallies: dict[str, Tally] = dataclasses.field(default_factory=dict[str, Tally])
    samples: dict[str, Sample] = dataclasses.field(default_factory=dict[str, Sample])

    def tally(self, name: str, limit: int = 1000) -> Tally:
        return self.tallies.setdefault(name, Tally(limit))

    def sample(self, name: str, size: int) -> Sample:
        return self.samples.setdefault(name, Sample(size))

    def merge(self, other: Self) -> None:
        for name, tally in other.tallies.items():
            self.tally(name, tally.limit).merge(tally)
        for name, sample in other.samples.items():
            self.sample(name, sample.size).merge(sample)

    def to_bytes(self) -> bytes:
        for tally in self.tallies.values():
            tally.prune()
        return canonical_json(dataclasses.asdict(self)).encode()

    @staticmethod
    def of(data: Mapping[str, Any]) -> "Findings":
        """From the JSON of `to_bytes`."""
        tallies = {name: Tally(**fields) for name, fields in data["tallies"].items()}
        samples = {
            name: Sample(fields["size"], [(rank, entry) for rank, entry in fields["entries"]])
            for name, fields in data["samples"].items()
        }
        return Findings(tallies, samples)


def log_bin(number: int) -> int:
    """The power of two at which the bin of a number >= 1 begins: 1, 2, 4, 8 ..."""
    return 1 << (max(1, number).bit_length() - 1)


def merged(parts: Iterable[Findings]) -> Findings:
    """One part in memory beside the sum."""
    whole = Findings()
    for part in parts:
        whole.merge(part)
    return whole
