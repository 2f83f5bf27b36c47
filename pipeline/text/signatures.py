"""MinHash signatures and shingle sets of many texts at once, from Arrow's buffers.

A text's words are its runs of letters, marks, digits and underscores after NFC and case folding; in
scripts written without blanks each character is a word. Shingles are word n-grams as 64-bit hashes.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipeline.text import characters, shingle_kernel
from pipeline.text.normalise import normalise

VERSION = 1  # of what the hashes are; equal versions sign equally
_ASCII = 128
Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Signatures:
    """Of n texts. `lanes` (n, bands * rows) uint32; `keys` (n, bands); `digests` (n, 2): equal for
    texts of the same words; `words` (n,): 0 for a text without any, whose digest and keys are those
    of its normal form, or all 0 if that is blank."""

    lanes: npt.NDArray[np.uint32]
    keys: Hashes
    digests: Hashes
    words: Places


@dataclasses.dataclass(frozen=True)
class ShingleSets:
    """Text i's shingles are hashes[bounds[i] : bounds[i + 1]], ascending and different."""

    hashes: Hashes
    bounds: Places

    def of(self, index: int) -> Hashes:
        return self.hashes[self.bounds[index] : self.bounds[index + 1]]

    def jaccard(self, left: int, right: int) -> float:
        """|both| / |either|; 0 for two empty sets, which share nothing."""
        return jaccard(self.of(left), self.of(right))


def jaccard(left: Hashes, right: Hashes) -> float:
    """Of two ascending sets of different hashes."""
    both = int(shingle_kernel.shared(left, right))
    either = len(left) + len(right) - both
    return both / either if either else 0.0


@dataclasses.dataclass(frozen=True)
class Signer:
    """`bands` x `rows` lanes over word `shingle_words`-grams; equal fields sign equally."""

    bands: int = 14
    rows: int = 8
    seed: int = 1
    shingle_words: int = 5

    @property
    def num_lanes(self) -> int:
        return self.bands * self.rows

    @functools.cached_property
    def permutations(self) -> npt.NDArray[np.uint32]:
        """(2, lanes): multipliers and addends, datasketch's for this seed."""
        from datasketch import MinHash  # 0.7 s, that a stage's config should not cost

        minhash = MinHash(num_perm=self.num_lanes, seed=self.seed, scheme="affine32")
        return np.ascontiguousarray(minhash.permutations, np.uint32)

    def sign(self, texts: "pa.Array | pa.ChunkedArray | Sequence[str]") -> Signatures:
        buffer, offsets = _buffers(texts)
        found = self._sign(buffer, offsets, is_normal=False)
        if len(slow := np.flatnonzero(found.words < 0)):
            again = self._sign(*_normal(buffer, offsets, slow), is_normal=True)
            for name in ("lanes", "keys", "digests", "words"):
                getattr(found, name)[slow] = getattr(again, name)
        for index in np.flatnonzero(found.words == 0):
            self._sign_wordless(found, int(index), _text(buffer, offsets, int(index)))
        return found

    def _sign(
        self, buffer: npt.NDArray[np.uint8], offsets: Places, *, is_normal: bool
    ) -> Signatures:
        number = len(offsets) - 1
        found = Signatures(
            np.full((number, self.num_lanes), 0xFFFFFFFF, np.uint32),
            np.zeros((number, self.bands), np.uint64),
            np.zeros((number, 2), np.uint64),
            np.zeros(number, np.int64),
        )
        shingle_kernel.sign_texts(
            buffer,
            offsets,
            kernel_tables(),
            self.shingle_words,
            self.permutations,
            self.rows,
            is_normal,
            found.lanes,
            found.keys,
            found.digests,
            found.words,
        )
        return found

    def _sign_wordless(self, found: Signatures, index: int, text: str) -> None:
        """Its normal form is its one shingle: such texts are alike only if they are equal."""
        whole = _wordless_shingle(text)
        if whole is None:
            return
        found.digests[index] = [whole, whole]
        spread = np.array([shingle_kernel.spread_32(np.uint64(whole))], np.uint32)
        shingle_kernel.lanes_of(spread, 1, self.permutations, found.lanes[index])
        for band in range(self.bands):
            found.keys[index, band] = shingle_kernel.band_key(found.lanes[index], band, self.rows)

    def shingle_sets(self, texts: "pa.Array | pa.ChunkedArray | Sequence[str]") -> ShingleSets:
        """8 bytes a word in memory."""
        buffer, offsets = _buffers(texts)
        sets = [self._shingles(buffer, offsets, is_normal=False)]
        if len(slow := np.flatnonzero(sets[0].bounds[1:] < 0)):
            sets.append(self._shingles(*_normal(buffer, offsets, slow), is_normal=True))
        by_text: dict[int, Hashes] = {}
        for place, index in enumerate(slow):
            by_text[int(index)] = sets[1].of(place)
        bounds = np.where(sets[0].bounds < 0, -sets[0].bounds - 1, sets[0].bounds)
        first = ShingleSets(sets[0].hashes, bounds)
        for index in np.flatnonzero(np.diff(first.bounds) == 0):
            if len(by_text.get(int(index), ())) == 0:
                whole = _wordless_shingle(_text(buffer, offsets, int(index)))
                by_text[int(index)] = np.array([] if whole is None else [whole], np.uint64)
        if not by_text:
            return first
        parts = [by_text.get(index, first.of(index)) for index in range(len(offsets) - 1)]
        return ShingleSets(np.concatenate(parts), np.cumsum([0, *map(len, parts)]))

    def _shingles(
        self, buffer: npt.NDArray[np.uint8], offsets: Places, *, is_normal: bool
    ) -> ShingleSets:
        room = int(offsets[-1] - offsets[0]) // 2 + 2 * len(offsets)
        found = np.empty(room, np.uint64)
        bounds = np.zeros(len(offsets), np.int64)
        shingle_kernel.shingle_sets(
            buffer, offsets, kernel_tables(), self.shingle_words, is_normal, found, bounds
        )
        return ShingleSets(found[: max(0, _last(bounds))], bounds)

    def match_probability(self, similarity: float) -> float:
        """The S-curve: how likely two sets of this Jaccard similarity become candidates."""
        return 1 - (1 - similarity**self.rows) ** self.bands


def _last(bounds: Places) -> int:
    last = int(bounds[-1])
    return last if last >= 0 else -last - 1


def _wordless_shingle(text: str) -> int | None:
    whole = normalise(text)
    return xxhash.xxh3_64_intdigest(whole.encode()) if whole else None


def _text(buffer: npt.NDArray[np.uint8], offsets: Places, index: int) -> str:
    return buffer[offsets[index] : offsets[index + 1]].tobytes().decode("utf-8", "replace")


def _normal(
    buffer: npt.NDArray[np.uint8], offsets: Places, rows: Places
) -> tuple[npt.NDArray[np.uint8], Places]:
    texts = [normalise(_text(buffer, offsets, int(row))) for row in rows]
    return _buffers(texts)


def _buffers(
    texts: "pa.Array | pa.ChunkedArray | Sequence[str]",
) -> tuple[npt.NDArray[np.uint8], Places]:
    """The UTF-8 bytes, and where each text begins and the last ends."""
    array: Any = texts  # pyarrow has no types
    if isinstance(texts, pa.ChunkedArray):
        array = array.combine_chunks()
    elif not isinstance(texts, pa.Array):
        array = pa.array(list(texts), pa.string())
    if array.null_count:
        raise ValueError(f"{array.null_count} texts are null")
    array = array.cast(pa.large_string())
    _, places, data = array.buffers()
    offsets = np.zeros(1, np.int64)
    if places is not None and len(array):
        offsets = np.frombuffer(places, np.int64)[array.offset : array.offset + len(array) + 1]
    buffer = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return buffer, offsets


@functools.cache
def kernel_tables() -> tuple[
    npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint8], npt.NDArray[np.uint32]
]:
    """For ASCII: each byte's random value, its mask (all ones in words) and whether it is in words;
    for the rest characters.table()."""
    table = characters.table()
    values, masks = np.zeros(_ASCII, np.uint64), np.zeros(_ASCII, np.uint64)
    is_word = np.zeros(_ASCII, np.uint8)
    for byte in range(_ASCII):
        if table[byte] & characters.WORD:
            point = np.uint32(table[byte] & characters.FOLDED)
            values[byte] = shingle_kernel.character_value(point)
            masks[byte] = np.uint64(0xFFFFFFFFFFFFFFFF)
            is_word[byte] = 1
    return values, masks, is_word, table
