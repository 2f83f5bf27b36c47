"""The normal form (pipeline/text/normalise.py) of many texts at once, its lines, words and digests.

A compiled loop over Arrow's buffers; a text with a character whose normal form depends on its
neighbours goes through Python. A line's normal form is a piece of its text's.
"""

import dataclasses
import unicodedata
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipeline.text import characters
from pipeline.text.characters import FOLDED, SLOW

_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)
_BATCH_BYTES = 1 << 24
_ASK_PYTHON = np.uint32(0xFFFFFFFF)
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class NormalForms:
    """Of n texts. `digests` (n, 2): the two halves of xxh3_128 of the normal form, 0 and 0 if it
    is blank; `words` (n,): what white space parts. Of each line of `min_chars` normalised
    characters: its text, its place in `text.split("\\n")`, and xxh3_64 with the text's seed."""

    digests: npt.NDArray[np.uint64]
    words: Places
    line_text: Places
    line_place: Places
    line_key: npt.NDArray[np.uint64]


def normal_forms(
    texts: pa.Array, seeds: npt.NDArray[np.uint64] | None = None, min_chars: int = 0
) -> NormalForms:
    """Without `seeds` no lines."""
    parts = [
        _batch(texts.slice(start, stop - start), start, seeds, min_chars)
        for start, stop in _batches(texts)
    ]
    empty = np.zeros(0, np.int64)
    return NormalForms(
        np.concatenate([np.zeros((0, 2), np.uint64), *(part.digests for part in parts)]),
        np.concatenate([empty, *(part.words for part in parts)]),
        np.concatenate([empty, *(part.line_text for part in parts)]),
        np.concatenate([empty, *(part.line_place for part in parts)]),
        np.concatenate([np.zeros(0, np.uint64), *(part.line_key for part in parts)]),
    )


def _batches(texts: pa.Array) -> Iterator[tuple[int, int]]:
    """(start, end) of runs of texts of 16 MB together: the memory that the loop takes is theirs."""
    _, offsets = text_buffers(texts)
    start = 0
    while start < len(texts):
        limit = offsets[start] + _BATCH_BYTES
        stop = max(start + 1, int(np.searchsorted(offsets, limit, "right")) - 1)
        yield start, stop
        start = stop


def text_buffers(texts: pa.Array) -> tuple[Bytes, Places]:
    """The UTF-8 bytes, and where each text begins and the last ends."""
    array: Any = texts.cast(pa.large_string())
    _, places, data = array.buffers()
    if not len(array) or places is None:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    offsets = np.frombuffer(places, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8), offsets


def _batch(
    texts: pa.Array, base: int, seeds: npt.NDArray[np.uint64] | None, min_chars: int
) -> NormalForms:
    number = len(texts)
    digests, words = np.zeros((number, 2), np.uint64), np.zeros(number, np.int64)
    buffer, offsets = text_buffers(texts)
    first = _fold(buffer, offsets, is_normal=False)
    slow = np.flatnonzero(first.words < 0)
    rounds = [(first, np.arange(number))]
    if len(slow):
        again = pa.array([_folded(texts[int(row)].as_py()) for row in slow], pa.large_string())
        rounds.append((_fold(*text_buffers(again), is_normal=True), slow))
    lines: list[tuple[Places, Places, npt.NDArray[np.uint64]]] = []
    for found, rows in rounds:
        done = found.words > 0
        digests[rows[done]] = found.digests(done)
        words[rows[done]] = found.words[done]
        if seeds is not None:
            lines.append(found.lines(rows + base, seeds, min_chars))
    none = np.zeros(0, np.int64)
    return NormalForms(
        digests,
        words,
        np.concatenate([none, *(line[0] for line in lines)]),
        np.concatenate([none, *(line[1] for line in lines)]),
        np.concatenate([np.zeros(0, np.uint64), *(line[2] for line in lines)]),
    )


def _folded(text: str) -> str:
    """As `normalise` does, with the white space left as it is."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


@dataclasses.dataclass(frozen=True)
class _Folded:
    """`words` -1: the text asks for Python. Lines that are not blank: (text, place, start, end,
    characters)."""

    out: memoryview
    bounds: Places
    words: Places
    found: Places

    def digests(self, done: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
        starts, ends = self.bounds[:-1][done].tolist(), self.bounds[1:][done].tolist()
        whole = b"".join(
            xxhash.xxh3_128_digest(self.out[start:end])
            for start, end in zip(starts, ends, strict=True)
        )
        return np.frombuffer(whole, ">u8").astype(np.uint64).reshape(-1, 2)

    def lines(
        self, rows: Places, seeds: npt.NDArray[np.uint64], min_chars: int
    ) -> tuple[Places, Places, npt.NDArray[np.uint64]]:
        chosen = self.found[self.found[:, 4] >= min_chars]
        owners = rows[chosen[:, 0]]
        columns = (chosen[:, 2].tolist(), chosen[:, 3].tolist(), seeds[owners].tolist())
        keys = np.fromiter(
            (
                xxhash.xxh3_64_intdigest(self.out[start:end], seed)
                for start, end, seed in zip(*columns, strict=True)
            ),
            np.uint64,
            len(chosen),
        )
        return owners, chosen[:, 1], keys


def _fold(buffer: Bytes, offsets: Places, *, is_normal: bool) -> _Folded:
    number = len(offsets) - 1
    size = int(offsets[-1] - offsets[0])
    num_lines = number + int(np.count_nonzero(buffer[offsets[0] : offsets[-1]] == 10))
    out = np.empty(2 * size + 8, np.uint8)  # no folding makes UTF-8 more than 3/2 as long
    bounds, words = np.zeros(number + 1, np.int64), np.zeros(number, np.int64)
    lines = np.empty((num_lines, 5), np.int64)
    table = characters.table()
    found = _fold_texts(buffer, offsets, table, is_normal, out, bounds, words, lines)
    return _Folded(out.data, bounds, words, lines[:found])


@_compiled
def _fold_texts(
    text: Any,
    offsets: Any,
    classes: Any,
    is_normal: Any,
    out: Any,
    bounds: Any,
    words: Any,
    lines: Any,
) -> Any:
    """The number of lines that are not blank; a text that asks for Python leaves nothing."""
    at_out = num_lines = 0
    for index in range(len(offsets) - 1):
        before, lines_before = at_out, num_lines
        at_out, num_words, num_lines = _fold_text(
            text, offsets[index], offsets[index + 1], classes, is_normal, out, at_out,
            index, lines, num_lines,
        )  # fmt: skip
        words[index] = num_words
        if num_words < 0:
            at_out, num_lines = before, lines_before
        bounds[index + 1] = at_out
    return num_lines


@_compiled
def _fold_text(
    text: Any,
    at: Any,
    end: Any,
    classes: Any,
    is_normal: Any,
    out: Any,
    at_out: Any,
    index: Any,
    lines: Any,
    num_lines: Any,
) -> Any:
    """(end in `out`, words or -1, lines so far)."""
    first = at_out
    line_start = np.int64(-1)
    line = num_words = chars = 0
    gap = True
    while at < end:
        point, length = _folded_point(text, at, end, classes, is_normal)
        if point == _ASK_PYTHON:
            return at_out, -1, num_lines
        at += length
        if point == 10:
            if line_start >= 0:
                _end_line(lines, num_lines, index, line, line_start, at_out, chars)
                num_lines += 1
                line_start = np.int64(-1)
            chars = 0
            line += 1
            gap = True
        elif _is_space(point):
            gap = True
        else:
            if gap:
                num_words += 1
                if at_out > first:
                    out[at_out] = 32
                    at_out += 1
                if line_start >= 0:
                    chars += 1  # the blank before it
            if line_start < 0:
                line_start = np.int64(at_out)
            gap = False
            at_out = _encode(point, out, at_out)
            chars += 1
    if line_start >= 0:
        _end_line(lines, num_lines, index, line, line_start, at_out, chars)
        num_lines += 1
    return at_out, num_words, num_lines


@_compiled
def _folded_point(text: Any, at: Any, end: Any, classes: Any, is_normal: Any) -> Any:
    """(the code point at `at` as the normal form has it, the bytes it takes in the text)."""
    byte = text[at]
    if byte < 0x80:
        is_upper = byte >= 65 and byte <= 90 and not is_normal
        return np.uint32(byte | 0x20 if is_upper else byte), 1
    point, length = _decoded(text, at, end)
    if is_normal:
        return point, length
    entry = classes[point]
    return (_ASK_PYTHON if entry & SLOW else np.uint32(entry & FOLDED)), length


@_compiled
def _end_line(lines: Any, at: Any, index: Any, line: Any, start: Any, end: Any, chars: Any) -> None:
    lines[at, 0] = index
    lines[at, 1] = line
    lines[at, 2] = start
    lines[at, 3] = end
    lines[at, 4] = chars


@_compiled
def _is_space(point: Any) -> Any:
    """str.isspace: Unicode 16's White_Space and the four separators of ASCII."""
    if point < 0x80:
        return point == 32 or (point >= 9 and point <= 13) or (point >= 28 and point <= 31)
    if point < 0x1680:
        return point == 0x85 or point == 0xA0
    return (
        (point >= 0x2000 and point <= 0x200A)
        or point == 0x1680
        or point == 0x2028
        or point == 0x2029
        or point == 0x202F
        or point == 0x205F
        or point == 0x3000
    )


@_compiled
def _decoded(text: Any, at: Any, end: Any) -> Any:
    """(code point, bytes) of a sequence of more than one byte; Arrow's strings are UTF-8."""
    first = text[at]
    length = 4 if first >= 0xF0 else 3 if first >= 0xE0 else 2
    if at + length > end:
        return np.uint32(0xFFFD), end - at
    point = np.uint32(first) & np.uint32(0xFF >> (length + 1))
    for offset in range(1, length):
        point = np.uint32((point << np.uint32(6)) | np.uint32(text[at + offset] & 0x3F))
    return (point if point < 0x110000 else np.uint32(0xFFFD)), length


@_compiled
def _encode(point: Any, out: Any, at: Any) -> Any:
    if point < 0x80:
        out[at] = point
        return at + 1
    length = 2 if point < 0x800 else 3 if point < 0x10000 else 4
    for offset in range(length - 1, 0, -1):
        out[at + offset] = 0x80 | (point & np.uint32(0x3F))
        point = point >> np.uint32(6)
    mark = 0xC0 if length == 2 else 0xE0 if length == 3 else 0xF0
    out[at] = mark | point
    return at + length
