"""What of labels is no accident: phrases that decide the answer, labelers who stand apart.

Every test is one-sided and exact (the hypergeometric tail, Fisher 1935); Bonferroni over all of a
kind, which holds however they depend on one another. Pure functions over hashed words.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from scipy import sparse, stats

from pipeline.text.ngrams import words
from pipeline.text.overlap import Hashes, Places, Words
from pipeline.text.word_hashes import ngram_hashes, word_hashes

SIZES = (1, 2, 3)  # words of a phrase; a longer one shows itself by its parts
_AFFIX = 4  # words at the very beginning or end, of a text of twice as many
_START, _END = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_MAX_PHRASE, _MAX_READ = 24, 50  # words; carriers that are read to find how far a phrase goes
Event = tuple[tuple[str, ...], bool]  # who had a part in it, and whether it has the trait


@dataclasses.dataclass(frozen=True)
class Features:
    """`has` [texts, features] 0 or 1; of each feature its hash and, for ranking, its `size`."""

    has: Any  # a scipy.sparse.csr_array
    hashes: Hashes
    sizes: Places


@dataclasses.dataclass(frozen=True)
class Rule:
    """What stands out: `alpha` after correction, in `min_texts` at least, half of the carriers or
    more with one outcome, and their share of it `min_shift` over that of the others."""

    alpha: float
    min_texts: int
    min_shift: float


@dataclasses.dataclass(frozen=True)
class Association:
    """Of `total` texts `having` have the outcome; of the `carried` with the feature those in
    `texts`. `p` is corrected."""

    dimension: str
    value: str
    feature: int
    texts: tuple[int, ...]
    carried: int
    having: int
    total: int
    p: float


def string_hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(b"\0" + text.encode("utf-8", "replace"))


def features_of(texts: Sequence[str], strings: Sequence[Iterable[str]], least: int) -> Features:
    """Phrases of SIZES words, the first and the last words, and the `strings` of each text: those
    that `least` texts have. 40 bytes a word and size in memory meanwhile."""
    all_words = Words.of(texts)
    parts = [(*all_words.ngrams(size), size) for size in SIZES]
    grams = ngram_hashes(all_words.hashes, _AFFIX)
    long = np.flatnonzero(all_words.lengths >= 2 * _AFFIX)
    parts.append((grams[all_words.bounds[long]] ^ _START, long, _AFFIX))
    parts.append((grams[all_words.bounds[long + 1] - _AFFIX] ^ _END, long, _AFFIX))
    hashed = [(string_hash(one), i) for i, found in enumerate(strings) for one in found]
    values, places = (np.array([pair[side] for pair in hashed], np.uint64) for side in (0, 1))
    parts.append((values, places.astype(np.int64), 1))
    hashes, owners = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    sizes = np.repeat([size for *_, size in parts], [len(part[0]) for part in parts])
    kinds, first, inverse, counts = np.unique(
        hashes, return_index=True, return_inverse=True, return_counts=True
    )
    often = counts >= least
    chosen = often[inverse]
    pairs = (owners[chosen], (np.cumsum(often) - 1)[inverse[chosen]])
    ones = np.ones(len(pairs[0]), np.int64)
    has = sparse.csr_array((ones, pairs), shape=(len(texts), int(often.sum())))
    has.sum_duplicates()
    has.data[:] = 1
    enough = np.flatnonzero(has.sum(axis=0) >= least)
    return Features(has[:, enough], kinds[often][enough], sizes[first][often][enough])


def associations(
    features: Features, outcomes: Mapping[str, Sequence[str | None]], rule: Rule
) -> list[Association]:
    """What the features decide. `outcomes`: by dimension each text's, None where it has none. Of
    features that explain the same texts the surest, then longest stays."""
    found: list[Association] = []
    num_tests = 0
    for dimension, values in outcomes.items():
        rows = np.array([i for i, value in enumerate(values) if value is not None], np.int64)
        names, classes = np.unique([str(values[i]) for i in rows], return_inverse=True)
        has, total = features.has[rows], len(rows)
        shape = (total, len(names))
        is_of = sparse.csr_array((np.ones(total, np.int64), (np.arange(total), classes)), shape)
        carried, having = has.sum(axis=0), is_of.sum(axis=0)
        common = np.flatnonzero(having >= rule.min_texts)
        num_tests += int((carried >= rule.min_texts).sum()) * len(common)
        both = (has.T @ is_of[:, common]).tocoo()
        k, feature, value = both.data, both.coords[0], common[both.coords[1]]
        n, m = carried[feature], having[value]
        shift = k / n - (m - k) / np.maximum(1, total - n)
        kept = (k >= rule.min_texts) & (2 * k >= n) & (shift >= rule.min_shift)
        tails = stats.hypergeom.sf(k[kept] - 1, total, m[kept], n[kept])
        columns = has.tocsc()
        for p, one, which in zip(tails.tolist(), feature[kept], value[kept], strict=True):
            at = columns.indices[columns.indptr[one] : columns.indptr[one + 1]]
            texts = tuple(sorted(rows[at[classes[at] == which]].tolist()))
            numbers = (int(carried[one]), int(having[which]), total, p)
            found.append(Association(dimension, str(names[which]), int(one), texts, *numbers))
    corrected = [dataclasses.replace(one, p=min(1.0, one.p * num_tests)) for one in found]
    return _surest([one for one in corrected if one.p <= rule.alpha], features)


def _surest(found: list[Association], features: Features) -> list[Association]:
    def order(one: Association) -> tuple[Any, ...]:
        size, value = features.sizes[one.feature], features.hashes[one.feature]
        return (one.p, -len(one.texts), -int(size), int(value), one.dimension, one.value)

    explained: dict[tuple[str, str], set[int]] = {}
    kept: list[Association] = []
    for one in sorted(found, key=order):
        before = explained.setdefault((one.dimension, one.value), set())
        if 2 * len(before.intersection(one.texts)) < len(one.texts):
            kept.append(one)
            before.update(one.texts)
    return kept


def phrase_of(value: int, texts: Sequence[str], strings: Iterable[str]) -> tuple[str, str]:
    """(where it stands, the feature in words): of the `texts` that have it, the first with those
    `strings`; with the words around it that 19 of 20 of them share."""
    for string in strings:
        if string_hash(string) == value:
            return "with", string
    told = [(words(text), _place(text, value)) for text in texts[:_MAX_READ]]
    where, start, size = told[0][1]
    low, high = 0, size
    while high - low < _MAX_PHRASE:
        left, right = (
            Counter(
                said[at] for said, (_, begin, _) in told if 0 <= (at := begin + offset) < len(said)
            ).most_common(1)
            for offset in (low - 1, high)
        )
        if left and 20 * left[0][1] >= 19 * len(told):
            low -= 1
        elif right and 20 * right[0][1] >= 19 * len(told):
            high += 1
        else:
            break
    return where, " ".join(told[0][0][start + low : start + high])


def _place(text: str, value: int) -> tuple[str, int, int]:
    """(where it stands, its first word, its words)"""
    hashes, wanted = word_hashes(text), np.uint64(value)
    for size in SIZES:
        if len(at := np.flatnonzero(ngram_hashes(hashes, size) == wanted)):
            return "with", int(at[0]), size
    if ngram_hashes(hashes[:_AFFIX], _AFFIX)[0] ^ _START == wanted:
        return "beginning with", 0, _AFFIX
    return "ending in", len(hashes) - _AFFIX, _AFFIX


def concordance(left: Sequence[int], right: Sequence[int]) -> float:
    """Kendall's tau over the pairs that both put in order: -1 to 1; 0 if there is none."""
    signs = [
        (left[a] < left[b]) == (right[a] < right[b])
        for a, b in itertools.combinations(range(len(left)), 2)
        if left[a] != left[b] and right[a] != right[b]
    ]
    return 2 * sum(signs) / len(signs) - 1 if signs else 0.0


@dataclasses.dataclass(frozen=True)
class Apart:
    """A labeler's share `rate` of `number` beside the `rest`'s; `interval` is Wilson's, 95%."""

    trait: str
    labeler: str
    rate: float
    number: int
    rest: float
    p: float
    interval: tuple[float, float]


def standing_apart(
    events: Mapping[str, Sequence[Event]], alpha: float, least: int, gap: float
) -> list[Apart]:
    """Who has a trait more often than the others, by `gap` at least, where both sides have `least`
    events. The surest is found first and his events then left out: who works with him disagrees as
    often, and is not to blame."""
    found: list[Apart] = []
    num_tests = 0
    while True:
        tried = [
            (trait, who, mine, rest)
            for trait, told in events.items()
            for who, mine, rest in _shares(told, {a.labeler for a in found if a.trait == trait})
            if min(mine[1], rest[1]) >= least
        ]
        num_tests = num_tests or len(tried)
        far: list[Apart] = []
        for trait, who, (hits, number), (others, rest) in tried:
            if hits / number - others / rest >= gap:
                p = num_tests * stats.hypergeom.sf(hits - 1, number + rest, hits + others, number)
                interval = stats.binomtest(hits, number).proportion_ci(method="wilson")
                both = (float(interval.low), float(interval.high))
                rates = (hits / number, number, others / rest)
                far.append(Apart(trait, who, *rates, min(1.0, float(p)), both))
        worst = min(far, key=lambda one: (one.p, one.trait, one.labeler), default=None)
        if worst is None or worst.p > alpha:
            return found
        found.append(worst)


def _shares(
    told: Sequence[Event], gone: set[str]
) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Each labeler's (hits, number) and that of the events that he has no part in."""
    mine: dict[str, list[bool]] = {}
    every: list[bool] = []
    for people, hit in told:
        if not gone.intersection(people):
            every.append(hit)
            for who in people:
                mine.setdefault(who, []).append(hit)
    for who, hits in sorted(mine.items()):
        own = (sum(hits), len(hits))
        yield who, own, (sum(every) - own[0], len(every) - own[1])
