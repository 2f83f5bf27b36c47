"""The word n-grams of evaluation sets as one sorted array, and where a document has them.

Words are the signatures' (NFC, case folded) of the text without disguises; 13 of them as in GPT-3
(Brown et al. 2020, appendix C) or, of a shorter item, all it has. Twelve bytes an n-gram, and two
bits of a filter before them.
"""

import dataclasses
import itertools
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.text.disguises import undisguised
from pipeline.text.word_hashes import ngram_hashes, word_hashes

Hashes = npt.NDArray[np.uint64]
_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)
_BITS_AN_NGRAM = 16


@dataclasses.dataclass(frozen=True)
class EvaluationNgrams:
    """`hashes` (n,) ascending, one for each set that has the n-gram, items[i] a row of `names`;
    `sizes`: how many words the n-grams have; `names`: (set, row in it) of each item; `too_short`:
    items that have no n-gram."""

    hashes: Hashes
    items: npt.NDArray[np.uint32]
    sizes: tuple[int, ...]
    names: tuple[tuple[str, int], ...]
    too_short: int

    def filter(self) -> npt.NDArray[np.uint8]:
        """A bit for the upper bits of each hash: all but 1/16 of other words end here."""
        bits = 1 << max(6, (len(self.hashes) * _BITS_AN_NGRAM - 1).bit_length())
        flags = np.zeros(bits // 8, np.uint8)
        places = self.hashes >> np.uint64(64 - (bits.bit_length() - 1))
        np.bitwise_or.at(flags, places >> np.uint64(3), np.uint8(1) << (places & np.uint64(7)))
        return flags


@dataclasses.dataclass(frozen=True)
class Hit:
    """A run of words that lie in n-grams of evaluation items: words[start:end] of the text;
    `items`: of each set that has one of them its first."""

    start: int
    end: int
    items: tuple[int, ...]
    ngrams: int


def build(
    items: Sequence[tuple[str, int, Sequence[str]]], ngram_words: int, min_words: int
) -> EvaluationNgrams:
    """From (set, row, texts) of each item. Each of its texts, and all of them together, give the
    `ngram_words`-grams they have; one of fewer words, but `min_words`, is one n-gram of all."""
    hashes: list[Hashes] = [np.zeros(0, np.uint64)]
    owners: list[npt.NDArray[np.uint32]] = [np.zeros(0, np.uint32)]
    sizes: set[int] = set()
    too_short = 0
    for index, (_, _, texts) in enumerate(items):
        covered = False
        for text in dict.fromkeys((*texts, "\n".join(texts))):
            words = word_hashes(undisguised(text)[0])
            if len(words) < min_words:
                continue
            size = min(ngram_words, len(words))
            found = np.unique(ngram_hashes(words, size))
            hashes.append(found)
            owners.append(np.full(len(found), index, np.uint32))
            sizes.add(size)
            covered = True
        too_short += not covered
    names = tuple((name, row) for name, row, _ in items)
    order = {name: index for index, name in enumerate(dict.fromkeys(name for name, _ in names))}
    sets = np.array([order[name] for name, _ in names], np.int64)
    whole, owner = np.concatenate(hashes), np.concatenate(owners)
    by_set = np.lexsort((owner, sets[owner], whole)) if len(whole) else np.zeros(0, np.int64)
    whole, owner = whole[by_set], owner[by_set]
    first = np.ones(len(whole), np.bool_)
    first[1:] = (whole[1:] != whole[:-1]) | (sets[owner[1:]] != sets[owner[:-1]])
    return EvaluationNgrams(whole[first], owner[first], tuple(sorted(sizes)), names, too_short)


def find_hits(
    words: Hashes, index: EvaluationNgrams, filter_bits: npt.NDArray[np.uint8]
) -> list[Hit]:
    """In order, none touching another."""
    covered = np.zeros(len(words) + 1, np.bool_)
    places_at: dict[int, list[int]] = {}
    counts = np.zeros(len(words), np.int64)
    shift = np.uint64(64 - ((8 * len(filter_bits)).bit_length() - 1))
    for size in index.sizes:
        if size > len(words) or not len(index.hashes):
            continue
        places = _look_up(ngram_hashes(words, size), index.hashes, filter_bits, shift)
        for start in np.flatnonzero(places >= 0).tolist():
            covered[start : start + size] = True
            counts[start] += 1
            places_at.setdefault(start, []).append(int(places[start]))
    edges = np.flatnonzero(np.diff(np.r_[False, covered]))
    found: list[Hit] = []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        items = _items(index, places_at, start, end)
        found.append(Hit(start, end, items, int(counts[start:end].sum())))
    return found


def _items(
    index: EvaluationNgrams, places_at: Mapping[int, Sequence[int]], start: int, end: int
) -> tuple[int, ...]:
    """Of the n-grams that begin in [start, end), the first item of each set."""
    found: dict[str, int] = {}
    for place in itertools.chain.from_iterable(places_at.get(at, ()) for at in range(start, end)):
        for same in range(place, len(index.hashes)):
            if index.hashes[same] != index.hashes[place]:
                break
            item = int(index.items[same])
            found.setdefault(index.names[item][0], item)
    return tuple(found.values())


@_compiled
def _look_up(ngrams: Any, hashes: Any, flags: Any, shift: Any) -> Any:
    """Where each stands in `hashes`, or -1."""
    found = np.full(len(ngrams), -1, np.int64)
    for index in range(len(ngrams)):
        place = ngrams[index] >> shift
        if flags[np.int64(place >> np.uint64(3))] >> np.uint8(place & np.uint64(7)) & 1:
            at = np.searchsorted(hashes, ngrams[index])
            if at < len(hashes) and hashes[at] == ngrams[index]:
                found[index] = at
    return found


def read_items(urls: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[str, int, list[str]]]:
    """(set, row, texts) of Parquet files; a set is named as its file is. `columns` empty: all with
    strings or lists of strings. Raises UserError."""
    for url in urls:
        name = posixpath.basename(url).removesuffix(".parquet")
        table = _read(url, columns)
        for row, values in enumerate(table.to_pylist()):
            texts: list[str] = []
            for value in values.values():
                texts += [value] if isinstance(value, str) else (value or [])
            yield name, row, [text for text in texts if text]


def _read(url: str, columns: Sequence[str]) -> pa.Table:
    try:
        with storage.open_read(url) as file:
            table = pq.read_table(pa.PythonFile(file, mode="r"))
    except OSError as error:
        raise UserError(
            f"decontaminate.against: {url} cannot be read ({error.strerror or error}); name Parquet"
            " files"
        ) from None
    except pa.ArrowException as error:
        raise UserError(
            f"decontaminate.against: {url} is no whole Parquet file ({error})"
        ) from None
    textual = [field.name for field in table.schema if _has_text(field.type)]
    chosen = [name for name in columns if name in textual] if columns else textual
    if not chosen:
        raise UserError(
            f"decontaminate.columns = {list(columns)}: {url} has no such column with text; its"
            f" columns with text: {', '.join(textual) or 'none'}"
        )
    table = table.select(chosen)
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"decontaminate.against: {url} holds text that is not UTF-8 ({error})"
        ) from None
    return table


def _has_text(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(kind) for is_kind in kinds)
