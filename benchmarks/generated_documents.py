"""Documents with planted near-duplicates of known Jaccard similarity, as Arrow tables, by seed.

Words of a made-up vocabulary with Zipf's frequencies; lengths log-normal around a median; cluster
sizes Zipf. A copy has a run of its base's words replaced, so its similarity is arithmetic.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

SHINGLE = 5
_VOCABULARY = 50_000
_LINE = 15  # words
_LENGTHS = (50, 20_000)  # words
_MAX_CLUSTER = 1000
_LETTERS = str.maketrans("0123456789", "ghijklmnop")  # datatrove takes all numbers for one


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which documents there are, before a word is made. Document i has `words[i]` words and is its
    own base, or a copy of `base[i]` at similarity `similarity[i]`."""

    seed: int
    words: npt.NDArray[np.int64]
    base: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float64]
    replaced: npt.NDArray[np.int64]  # shingles of the base that a copy lacks

    def __len__(self) -> int:
        return len(self.words)

    @property
    def pairs(self) -> npt.NDArray[np.int64]:
        """(base, copy) of clusters of two: the pairs that no third document can join."""
        sizes = np.bincount(self.base, minlength=len(self))
        copies = np.flatnonzero(self.base != np.arange(len(self)))
        alone = copies[sizes[self.base[copies]] == 2]
        return np.stack([self.base[alone], alone], axis=1)


def plan(number: int, seed: int, median: int = 300, copies: float = 0.3) -> Plan:
    """`copies` is the share of documents that are near-duplicates of another: one in five at the
    least similarity of 0.8, the others uniform on [0.8, 1]."""
    rng = np.random.default_rng(seed)
    words = np.exp(rng.normal(np.log(median), 0.6, number)).astype(np.int64)
    words = np.clip(words, *_LENGTHS)
    base = np.arange(number)
    planted = int(number * copies)
    sizes = np.minimum(rng.zipf(2.0, planted) + 1, _MAX_CLUSTER)  # documents in a cluster
    members = rng.permutation(number)
    at = 0
    for size in sizes.tolist():
        if planted < size - 1:
            continue
        cluster = members[at : at + size]
        base[cluster] = cluster[0]
        at, planted = at + size, planted - (size - 1)
    words = words[base]
    wanted = np.where(rng.random(number) < 0.2, 0.8, rng.uniform(0.8, 1.0, number))
    shingles = words - SHINGLE + 1
    # A run of w new words takes w + 4 shingles away and brings as many: J = (n - d) / (n + d).
    replaced = np.floor(shingles * (1 - wanted) / (1 + wanted)).astype(np.int64)
    replaced = np.where((base == np.arange(number)) | (replaced < SHINGLE), 0, replaced)
    similarity = (shingles - replaced) / (shingles + replaced)
    return Plan(seed, words, base, similarity, replaced)


def vocabulary(seed: int) -> list[str]:
    """50,000 different words of two to five syllables."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "ai", "en")]
    found: dict[str, None] = {}
    while len(found) < _VOCABULARY:
        chosen = rng.integers(0, len(syllables), int(rng.integers(1, 5)))
        found["".join(syllables[index] for index in chosen)] = None
    return list(found)


class Writer:
    """Makes any document of a plan; a copy makes its base's words again from the base's number."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.words = np.array(vocabulary(plan.seed), object)
        frequency = 1.0 / (np.arange(_VOCABULARY) + 10)
        self.cumulated = np.cumsum(frequency / frequency.sum())

    def text(self, index: int) -> str:
        base = int(self.plan.base[index])
        rng = np.random.default_rng((self.plan.seed, base))
        number = int(self.plan.words[index])
        chosen = self.words[np.searchsorted(self.cumulated, rng.random(number))].tolist()
        if replaced := int(self.plan.replaced[index]):
            own = np.random.default_rng((self.plan.seed, base, index))
            run = replaced - SHINGLE + 1
            start = int(own.integers(SHINGLE - 1, number - run - SHINGLE + 2))
            new = (f"new{index:x}x{place:x}" for place in range(run))
            chosen[start : start + run] = [word.translate(_LETTERS) for word in new]
        lines = (chosen[at : at + _LINE] for at in range(0, number, _LINE))
        return "\n".join(map(" ".join, lines))

    def texts(self, start: int, end: int) -> Iterator[str]:
        return (self.text(index) for index in range(start, end))
