"""Lines that many documents of one host share: menus, footers, inherited paragraphs.

The first document (by doc_id) keeps such a line where it first stands, all others lose it.
"""

from collections.abc import Collection, Sequence

import ada_url
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipeline.normal_forms import NormalForms, normal_forms


def forms_with_lines(texts: pa.Array, urls: Sequence[str], min_chars: int) -> NormalForms:
    """Line keys are of (host, normalised line); lines of fewer than `min_chars` normalised
    characters have none."""
    hosts = (xxhash.xxh3_64_intdigest(ada_url.URL(url).hostname.encode()) for url in urls)
    return normal_forms(texts, np.fromiter(hosts, np.uint64, len(urls)), max(1, min_chars))


def repeated_lines(
    keys: npt.NDArray[np.uint64],
    order: npt.NDArray[np.int64],
    lines: npt.NDArray[np.int64],
    min_docs: int,
    known: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """(indices of the occurrences to remove, the repeated keys, ascending).

    The inputs are parallel, an entry for each occurrence of a line: its key, its document's place
    in the order of doc_ids, its place in the text. Repeated are keys of at least `min_docs`
    documents: all their occurrences go but the first in the first document. Of the `known`
    (ascending: repeated in an earlier corpus, whose document keeps them) all go.
    """
    if not len(keys):
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    by = np.lexsort((lines, order, keys))
    keys, order = keys[by], order[by]
    first = np.r_[True, keys[1:] != keys[:-1]]
    of_document = first | np.r_[True, order[1:] != order[:-1]]
    group = np.cumsum(first) - 1
    num_docs = np.bincount(group[of_document])
    group_keys = keys[first]
    is_known = np.isin(group_keys, known)
    repeated = (num_docs >= min_docs) | is_known
    stays = first & ~is_known[group]
    return by[repeated[group] & ~stays], group_keys[repeated]


def without_lines(text: str, removed: Collection[int]) -> str:
    """The text without the lines of these indices, and without blank lines at its ends."""
    if not removed:
        return text
    gone = frozenset(removed)
    left = [line for index, line in enumerate(text.split("\n")) if index not in gone]
    return "\n".join(left).strip("\n")
