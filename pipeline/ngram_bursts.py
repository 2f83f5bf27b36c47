"""Word n-grams that are in far more of these documents than of others, in bounded memory.

Document frequencies stand in count-min sketches (Cormode & Muthukrishnan 2005), which only ever
overestimate; what they suggest is counted exactly in a second pass. Ranked by the log-likelihood
ratio (Dunning 1993).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipeline.text.disguises import undisguised
from pipeline.text.pii import redact
from pipeline.text.shingle_kernel import WORD_STEP, mix
from pipeline.text.word_hashes import ngram_hashes, word_hashes, word_places

_ROWS = 4
_LEAST_BITS = 10
_MAX_GROUPS = 64  # different hosts or clusters that are told apart for one n-gram
_MAX_EXAMPLES = 3
_EXAMPLE_CHARS = 60  # before and behind
Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)


@dataclasses.dataclass(frozen=True)
class Rule:
    """An n-gram of `sizes` words is suspect in `min_documents` of `min_groups` groups at least, in
    `max_share` of the documents at most, `min_ratio` times as often as in the others, and not by
    chance: with a log-likelihood ratio of `min_score` at least."""

    sizes: tuple[int, ...] = (1, 3)
    min_documents: int = 5
    min_groups: int = 3
    max_share: float = 0.05
    min_ratio: float = 20.0
    min_score: float = 25.0
    max_listed: int = 1000

    def is_suspect(
        self, here: Counts, num_here: int, others: Counts, num_others: int
    ) -> npt.NDArray[np.bool_]:
        """Of the numbers of documents with each, here and among the others."""
        few = here <= max(self.max_share * num_here, self.min_documents)
        more = here * num_others >= self.min_ratio * others * num_here
        chosen = (here >= self.min_documents) & few & more
        scores = log_likelihood_ratio(here[chosen], num_here, others[chosen], num_others)
        chosen[chosen] = scores >= self.min_score
        return chosen


@dataclasses.dataclass(frozen=True)
class Sketch:
    """`counts` (4, width) uint32: `documents` texts have been added. Sketches add up."""

    counts: npt.NDArray[np.uint32]
    documents: int

    @staticmethod
    def empty(bits: int) -> "Sketch":
        """4 * 4 * 2^bits bytes."""
        return Sketch(np.zeros((_ROWS, 1 << bits), np.uint32), 0)

    @property
    def bits(self) -> int:
        return self.counts.shape[1].bit_length() - 1

    def with_documents(self, ngrams: Iterable[Hashes]) -> "Sketch":
        """Counts each document's different n-grams once, in this sketch's own memory."""
        number = self.documents
        for hashes in ngrams:
            _add(self.counts, hashes, np.ones(len(hashes), np.uint32))
            number += 1
        return Sketch(self.counts, number)

    def with_counts(self, hashes: Hashes, numbers: Counts, documents: int) -> "Sketch":
        """Of so many documents at once, in this sketch's own memory."""
        _add(self.counts, hashes, numbers)
        return Sketch(self.counts, self.documents + documents)

    def widened(self, bits: int) -> "Sketch":
        """Its estimates stay what they are: each column stands in all places that fold to it."""
        assert bits >= self.bits, (bits, self.bits)
        wide = np.tile(self.counts, (1, 1 << (bits - self.bits)))
        return Sketch(wide, self.documents)

    def __add__(self, other: "Sketch") -> "Sketch":
        """As wide as the wider of the two: a small crawl does not blur a large one."""
        bits = max(self.bits, other.bits)
        counts = self.widened(bits).counts + other.widened(bits).counts
        return Sketch(counts, self.documents + other.documents)

    def estimate(self, hashes: Hashes) -> Counts:
        """How many documents have each: never too few; too many by at most e / width of all
        n-grams added, with probability 0.98."""
        found = np.empty(len(hashes), np.int64)
        _least(self.counts, hashes, found)
        return found


@_compiled
def _column(value: Any, row: Any, width: Any) -> Any:
    return np.int64(mix(value + np.uint64(row) * WORD_STEP) & np.uint64(width - 1))


@_compiled
def _add(counts: Any, hashes: Any, numbers: Any) -> None:
    for index in range(len(hashes)):
        for row in range(counts.shape[0]):
            counts[row, _column(hashes[index], row, counts.shape[1])] += np.uint32(numbers[index])


@_compiled
def _least(counts: Any, hashes: Any, found: Any) -> None:
    for index in range(len(hashes)):
        least = np.int64(1) << 62
        for row in range(counts.shape[0]):
            least = min(least, np.int64(counts[row, _column(hashes[index], row, counts.shape[1])]))
        found[index] = least


def bits_for(num_ngrams: int, most: int) -> int:
    """Of a sketch with a column or two for each different n-gram, if `most` allows it: then one
    that was never added is taken for one that was, in all four rows at once, 1 time in 6 to 40."""
    return max(min(_LEAST_BITS, most), min(most, (max(1, num_ngrams) - 1).bit_length()))


def document_ngrams(text: str, sizes: Sequence[int]) -> Hashes:
    """Different, ascending; of the text without disguises."""
    words = word_hashes(undisguised(text)[0])
    return np.unique(np.concatenate([ngram_hashes(words, size) for size in sizes]))


@dataclasses.dataclass
class Found:
    """What is known of one n-gram: documents with it, groups (hosts or clusters), examples as
    (doc_id, the words with what stands around them)."""

    documents: int = 0
    groups: set[int] = dataclasses.field(default_factory=set[int])
    examples: list[tuple[str, str]] = dataclasses.field(default_factory=list[tuple[str, str]])
    words: str = ""

    def merge(self, other: "Found") -> None:
        self.documents += other.documents
        self.groups = set(sorted(self.groups | other.groups)[:_MAX_GROUPS])
        self.examples = (self.examples + other.examples)[:_MAX_EXAMPLES]
        self.words = self.words or other.words


def collect(
    documents: Iterable[tuple[str, str, str]], here: Sketch, others: Sketch, rule: Rule
) -> dict[int, Found]:
    """From (doc_id, group, text): the n-grams that the sketches make suspect, counted exactly. In
    memory only those, some 1 kB each."""
    found: dict[int, Found] = {}
    for identity, group, text in documents:
        hashes = document_ngrams(text, rule.sizes)
        counts, before = here.estimate(hashes), others.estimate(hashes)
        suspect = rule.is_suspect(counts, here.documents, before, others.documents)
        places: _Places | None = None
        for value in hashes[suspect].tolist():
            entry = found.setdefault(value, Found())
            more = Found(1, {xxhash.xxh3_64_intdigest(group.encode("utf-8", "replace"))})
            if len(entry.examples) < _MAX_EXAMPLES:
                places = places or _Places(text, rule.sizes)
                words, example = places.shown(value)
                more.words, more.examples = words, [(identity, example)]
            entry.merge(more)
    return found


class _Places:
    """Where a document has which n-gram: looked up in the logarithm of its length."""

    def __init__(self, text: str, sizes: Sequence[int]) -> None:
        self.text, self.sizes = text, sizes
        plain, self.original = undisguised(text)
        words = word_hashes(plain)
        self.places = word_places(plain, len(words))
        hashes = [ngram_hashes(words, size) for size in sizes]
        self.orders = [np.argsort(found, kind="stable") for found in hashes]
        self.hashes = [found[order] for found, order in zip(hashes, self.orders, strict=True)]

    def shown(self, value: int) -> tuple[str, str]:
        """(the n-gram as it first stands there, with what is around it), without personal data."""
        for size, hashes, order in zip(self.sizes, self.hashes, self.orders, strict=True):
            at = int(np.searchsorted(hashes, np.uint64(value)))
            if self.places and at < len(hashes) and hashes[at] == np.uint64(value):
                first = int(order[at])
                start = self.original[self.places[first][0]]
                end = self.original[self.places[first + size - 1][1] - 1] + 1
                around = self.text[max(0, start - _EXAMPLE_CHARS) : end + _EXAMPLE_CHARS]
                return redact(self.text[start:end]).text, redact(around).text
        return "", redact(self.text[:_EXAMPLE_CHARS]).text


TRIGGERS = pa.schema(
    [
        pa.field("words", pa.string(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("groups", pa.int64(), nullable=False),  # hosts or clusters; 64 means: at least
        pa.field("others", pa.int64(), nullable=False),  # documents with it among the others
        pa.field("score", pa.float64(), nullable=False),
        pa.field("doc_ids", pa.list_(pa.string()), nullable=False),
        pa.field("examples", pa.list_(pa.string()), nullable=False),
    ]
)


def ranked(
    found: Mapping[int, Found], here: int, others: Sketch, rule: Rule
) -> tuple[list[dict[str, Any]], int]:
    """(rows of TRIGGERS, likeliest first, `max_listed` at most; how many there are)."""
    rows: list[dict[str, Any]] = []
    values = np.array(list(found), np.uint64)
    counts = np.array([entry.documents for entry in found.values()], np.int64)
    before = others.estimate(values)
    suspect = rule.is_suspect(counts, here, before, others.documents)
    scores = log_likelihood_ratio(counts, here, before, others.documents)
    for index, entry in enumerate(found.values()):
        if not suspect[index] or len(entry.groups) < rule.min_groups:
            continue
        rows.append(
            {
                "words": entry.words,
                "documents": entry.documents,
                "groups": len(entry.groups),
                "others": int(before[index]),
                "score": round(float(scores[index]), 6),
                "doc_ids": [identity for identity, _ in entry.examples],
                "examples": [example for _, example in entry.examples],
            }
        )
    rows.sort(key=lambda row: (-row["score"], row["words"], row["doc_ids"]))
    return rows[: rule.max_listed], len(rows)


def log_likelihood_ratio(
    here: Counts, num_here: int, others: Counts, num_others: int
) -> npt.NDArray[np.float64]:
    """Dunning's G² of the two shares being one; 0 if they are equal."""
    others = np.minimum(others, num_others)  # an overestimate may be beyond
    if not num_here or not num_others:
        return np.zeros(len(here))
    share = (here + others) / (num_here + num_others)
    apart = _logs(here, num_here, here / num_here) + _logs(others, num_others, others / num_others)
    return 2 * (apart - _logs(here, num_here, share) - _logs(others, num_others, share))


def _logs(counts: Counts, number: int, share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of drawing them at this share; 0 * log 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        hits = np.where(counts > 0, counts * np.log(share), 0.0)
        return hits + np.where(counts < number, (number - counts) * np.log1p(-share), 0.0)


def bursts(here: pa.Table, others: pa.Table, rule: Rule, most_bits: int = 26) -> pa.Table:
    """TRIGGERS of tables with doc_id, group and text: all of it in this process."""
    sketch, background = (
        _sketched(table["text"].to_pylist(), rule, most_bits) for table in (here, others)
    )
    rows = here.select(["doc_id", "group", "text"]).to_pylist()
    documents = [(row["doc_id"], row["group"], row["text"]) for row in rows]
    found = collect(documents, sketch, background, rule)
    listed, _ = ranked(found, sketch.documents, background, rule)
    return pa.Table.from_pylist(listed, schema=TRIGGERS)


def _sketched(texts: Sequence[str], rule: Rule, most_bits: int) -> Sketch:
    ngrams = [document_ngrams(text, rule.sizes) for text in texts]
    hashes, counts = np.unique(
        np.concatenate([np.zeros(0, np.uint64), *ngrams]), return_counts=True
    )
    return Sketch.empty(bits_for(len(hashes), most_bits)).with_counts(hashes, counts, len(texts))
