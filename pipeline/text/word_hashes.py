"""The words of texts, as the signatures have them (pipeline/text/signatures.py), as 64-bit hashes.

Equal words after NFC and case folding have equal hashes; a compiled loop, 200 MB of text a second.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from pipeline.text import characters, shingle_kernel
from pipeline.text.normalise import normalise
from pipeline.text.shingle_kernel import WORD_STEP, mix
from pipeline.text.signatures import kernel_tables

VERSION = 1  # of what the hashes are
Hashes = npt.NDArray[np.uint64]
_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)


def word_hashes(text: str) -> Hashes:
    """In their order, one a word; 8 bytes a byte of text in memory meanwhile."""
    found, count = _hashes(text, is_normal=False)
    if count < 0:
        found, count = _hashes(normalise(text), is_normal=True)
    return found[:count].copy()


def _hashes(text: str, *, is_normal: bool) -> tuple[Hashes, int]:
    buffer = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    words = np.empty(len(buffer) + 1, np.uint64)
    count = int(
        shingle_kernel.word_hashes(buffer, 0, len(buffer), kernel_tables(), is_normal, words)
    )
    return words, count


def ngram_hashes(words: Hashes, size: int) -> Hashes:
    """(words - size + 1,): of each `size` words side by side; none for fewer words."""
    found = np.empty(max(0, len(words) - size + 1), np.uint64)
    _ngrams(words, size, found)
    return found


@_compiled
def _ngrams(words: Any, size: Any, found: Any) -> None:
    for start in range(len(found)):
        value = np.uint64(0)
        for offset in range(size):
            value = value * WORD_STEP + mix(words[start + offset])
        found[start] = mix(value)


def word_places(text: str, number: int) -> list[tuple[int, int]] | None:
    """(start, end) in the text, as it is, of each of its `number` words; None for the rare text
    that has not as many before it is normalised (a kana with its mark apart)."""
    places = [match.span() for match in characters.word_pattern().finditer(text)]
    return places if len(places) == number else None
