"""What many texts have in common: n-grams of words, near-duplicates, items of another set in them.

Words are the signatures' (pipeline/text/signatures.py), as hashes; all of it is linear in the text.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.text.signatures import Signer
from pipeline.text.word_hashes import ngram_hashes, word_hashes

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Words:
    """The hashed words of n texts in a row: text i's are hashes[bounds[i] : bounds[i + 1]]."""

    hashes: Hashes
    bounds: Places

    @staticmethod
    def of(texts: Sequence[str]) -> "Words":
        parts = [word_hashes(text) for text in texts]
        bounds = np.cumsum([0, *map(len, parts)])
        return Words(np.concatenate([np.zeros(0, np.uint64), *parts]), bounds)

    @property
    def lengths(self) -> Places:
        return np.diff(self.bounds)

    def ngrams(self, size: int) -> tuple[Hashes, Places]:
        """(hash, text that has it) of each `size` words side by side in one text."""
        owners = np.repeat(np.arange(len(self.lengths)), self.lengths)
        found = ngram_hashes(self.hashes, size)
        inside = owners[: len(found)] == owners[len(owners) - len(found) :]
        return found[inside], owners[: len(found)][inside]


def near_clusters(texts: Sequence[str], least: float = 0.8) -> list[int]:
    """For each text the index of the first that it is nearly the same as, perhaps itself: of the
    same words, or found by MinHash with `least` of their shingles in common, verified."""
    signer = Signer()
    array = pa.array(texts, pa.large_string())
    signed, sets = signer.sign(array), signer.shingle_sets(array)
    same: dict[tuple[int, ...], int] = {}
    holders: list[dict[int, int]] = [{} for _ in range(signer.bands)]
    found: list[int] = []
    keys = zip(signed.digests.tolist(), signed.keys.tolist(), strict=True)
    for index, (digest, bands) in enumerate(keys):
        mine = same.setdefault((*digest,), index)
        if mine == index:
            for holder, key in zip(holders, bands, strict=True):
                other = holder.setdefault(key, index)
                if other != index and sets.jaccard(index, other) >= least:
                    mine = other
                    break
        found.append(found[mine] if mine != index else index)
    return found


def shared_ngrams(
    texts: Words, items: Words, size: int, least: int, whole: int
) -> dict[tuple[int, int], int]:
    """(item, text): how many `size`-grams they share; of an item of fewer words, but `least`, all
    its words in a row; an even shorter one, of `whole` words or more, must be the whole text. An
    n-gram of several items is a turn of phrase, and tells of none."""
    found: dict[tuple[int, int], int] = {}
    sizes = np.minimum(items.lengths, size)
    for number in np.unique(sizes[sizes >= whole]).tolist():
        grams, owners = items.ngrams(number)
        order = np.lexsort((owners, grams))
        grams, owners = grams[order], owners[order]
        new = np.r_[True, grams[1:] != grams[:-1]]
        several = np.r_[False, ~new[1:] & (owners[1:] != owners[:-1])]
        several = np.logical_or.reduceat(several, np.flatnonzero(new))
        known, first = grams[new][~several], owners[new][~several]
        mine = sizes[first] == number
        known, first = known[mine], first[mine]
        hashes, places = texts.ngrams(number)
        if not len(known):
            continue
        if number < least:
            alone = texts.lengths[places] == number
            hashes, places = hashes[alone], places[alone]
        at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        hit = known[at] == hashes
        item = first[at[hit]].tolist()
        for pair in zip(item, places[hit].tolist(), strict=True):
            found[pair] = found.get(pair, 0) + 1
    return found
