"""Lines that many documents of one host share: menus, footers, inherited paragraphs.

The first document (by doc_id) keeps such a line where it first stands, all others lose it.
"""

from collections.abc import Collection, Mapping

import ada_url
import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.text.normalise import normalise


def line_keys(text: str, url: str, min_chars: int) -> dict[int, int]:
    """{index of the line in `text.split("\\n")`: 64-bit key of (host, normalised line)}; lines of
    fewer than `min_chars` normalised characters are left alone."""
    host = xxhash.xxh3_64_intdigest(ada_url.URL(url).hostname.encode())
    keys: dict[int, int] = {}
    for index, line in enumerate(text.split("\n")):
        plain = normalise(line)
        if plain and len(plain) >= min_chars:
            keys[index] = xxhash.xxh3_64_intdigest(plain.encode(), host)
    return keys


def repeated_keys(
    keys: npt.NDArray[np.uint64], documents: npt.NDArray[np.int64], min_docs: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Keys that stand in at least `min_docs` documents, each with its smallest document.

    The inputs are parallel: a (key, document) pair for each different line of a document.
    """
    order = np.lexsort((documents, keys))
    keys, documents = keys[order], documents[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, int)
    counts = np.diff(np.r_[starts, len(keys)])
    chosen = starts[counts >= min_docs]
    return keys[chosen], documents[chosen]


def lines_to_remove(keys: Mapping[int, int], first: Mapping[int, str], identity: str) -> list[int]:
    """Indices of the lines that another document keeps, or this one further up; `first` names each
    key's keeper."""
    removed: list[int] = []
    kept: set[int] = set()
    for index, key in keys.items():
        if key in first and (first[key] != identity or key in kept):
            removed.append(index)
        kept.add(key)
    return removed


def without_lines(text: str, removed: Collection[int]) -> str:
    """The text without the lines of these indices, and without blank lines at its ends."""
    if not removed:
        return text
    gone = frozenset(removed)
    left = [line for index, line in enumerate(text.split("\n")) if index not in gone]
    return "\n".join(left).strip("\n")
