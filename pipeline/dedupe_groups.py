"""The tasks of dedupe that take one range of keys of all shards: copies, repeated lines, pairs.

Memory: the range's records, some 32 MB by the driver's choice of ranges, and their sort: eight
times as much. Only a single key of very many documents makes a range larger.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.manifest import Counts
from pipeline.core.shard_tasks import ShardResult
from pipeline.dedupe_files import (
    BANDS,
    COPIES,
    EXACT,
    KEYS,
    LEFT,
    LINES,
    PAIRS,
    REMOVED,
    Handles,
    Layout,
    Place,
    file_url,
    gather,
    read_gone,
    write_records,
)
from pipeline.near_duplicates import bucket_pairs, different_pairs, num_pairs
from pipeline.repeated_lines import repeated_lines
from pipeline.section_files import KEY_END, Records, read_range

_MAX_WORDS = (1 << 24) - 1


@dataclasses.dataclass(frozen=True)
class RangeTask:
    """Part `index` of `number` equal ones of the keys; `kind`: the files that it reads; `gone`: the
    bits of documents that count no longer; `min_docs`: of a repeated line."""

    folder: str
    kind: str
    index: int
    number: int
    gone: str = ""
    min_docs: int = 0
    known_lines: tuple[tuple[str, int], ...] = ()  # (folder, files) of earlier corpora

    @property
    def low(self) -> int:
        return self.index * KEY_END // self.number

    @property
    def high(self) -> int:
        return (self.index + 1) * KEY_END // self.number

    def write(self, kind: str, dtype: np.dtype[Any], *columns: npt.NDArray[Any]) -> None:
        write_records(file_url(self.folder, kind, self.index), dtype, *columns)


def find_copies(task: RangeTask) -> ShardResult:
    """Documents of equal digests: `copies` has an edge from the first of each to the others.
    Facts: how many."""
    layout = Layout.read(task.folder)
    records, handles = _read(layout, layout.places, task, EXACT)
    order = np.lexsort((handles, records["low"], records["key"]))
    keys, low, handles = records["key"][order], records["low"][order], handles[order]
    first = np.ones(len(keys), np.bool_)
    first[1:] = (keys[1:] != keys[:-1]) | (low[1:] != low[:-1])
    star = handles[np.flatnonzero(first)][np.cumsum(first) - 1] if len(handles) else handles
    copy = ~first & (handles >= layout.num_earlier)
    name = "copies" if task.kind == "exact" else "left-copies"
    task.write(name, COPIES, handles[copy], star[copy])
    return ShardResult((), Counts(len(handles), len(handles)), {"copies": int(copy.sum())})


def find_repeated(task: RangeTask) -> ShardResult:
    """Lines to remove, and the keys that are repeated here or were in an earlier corpus."""
    layout = Layout.read(task.folder)
    records, handles = _read(layout, layout.own, task, LINES)
    known = [np.zeros(0, KEYS)]
    for folder, number in task.known_lines:
        for index in _overlapping(task, number):
            url = file_url(folder, "repeated", index)
            known.append(read_range(url, KEYS, task.low, task.high))
    earlier = np.unique(np.concatenate(known)["key"])
    records, handles = _frequent(records, handles, task.min_docs, earlier)
    order = _id_order(layout, handles, records["id_high"])
    lines = records["line_32"].astype(np.int64)
    keys = np.ascontiguousarray(records["key"])
    removed, found = repeated_lines(keys, order, lines, task.min_docs, earlier)
    task.write("removals", REMOVED, handles[removed], lines[removed])
    task.write("repeated", KEYS, np.union1d(found, earlier))
    return ShardResult((), Counts(len(removed), len(removed)))


def _overlapping(task: RangeTask, number: int) -> Iterator[int]:
    """Which of `number` equal ranges share keys with this one; both are powers of two."""
    for index in range(number):
        low, high = index * KEY_END // number, (index + 1) * KEY_END // number
        if low < task.high and task.low < high:
            yield index


def find_pairs(task: RangeTask) -> ShardResult:
    """Candidate pairs of documents with an equal band key, each once in this range. Facts: the
    pairs of large buckets that are not compared."""
    layout = Layout.read(task.folder)
    records, handles = _read(layout, layout.places, task, BANDS)
    chosen = _in_buckets(np.ascontiguousarray(records["key"]))
    records, handles = records[chosen], handles[chosen]
    order = bucket_order(layout, records, handles)
    keys, handles = records["key"][order], handles[order]
    bounds = np.r_[np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]), len(keys)]
    if not len(keys):
        bounds = np.zeros(1, np.int64)
    left, right = bucket_pairs(bounds, handles, layout.num_earlier)
    uncompared = num_pairs(bounds, handles, layout.num_earlier) - len(left)
    left, right = different_pairs(left, right)
    words = _MAX_WORDS - (records["order"][order] >> np.uint64(40)).astype(np.int64)
    by_handle = np.argsort(handles)
    known, counts = handles[by_handle], words[by_handle]
    sizes = (counts[np.searchsorted(known, side)] for side in (left, right))
    task.write("pairs", PAIRS, right, left, *sizes)
    return ShardResult((), Counts(len(left), len(left)), {"uncompared": uncompared})


# ------------------------------------------------------------------------------- the parts


def _read(
    layout: Layout, places: Sequence[Place], task: RangeTask, dtype: np.dtype[Any]
) -> tuple[Records, Handles]:
    """The range's records of all these shards with their handles, but for those who are out."""
    records, handles = [np.zeros(0, dtype)], [np.zeros(0, np.int64)]
    for place in places:
        url = file_url(place.folder, task.kind, place.number)
        found = read_range(url, dtype, task.low, task.high)
        rows = found["row_32"].astype(np.int64)
        if task.gone and len(found):
            gone = read_gone(task.folder, "gone" if place.is_earlier else task.gone, place)
            found, rows = found[~gone[rows]], rows[~gone[rows]]
        records.append(found)
        handles.append(rows + place.base)
    return np.concatenate(records), np.concatenate(handles)


def _in_buckets(keys: npt.NDArray[np.uint64], least: int = 2) -> npt.NDArray[np.int64]:
    """Indices of the keys that stand there at least so often."""
    order = np.argsort(keys)
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(keys) else order
    counts = np.diff(np.r_[starts, len(keys)])
    return order[np.repeat(counts >= least, counts)]


def _frequent(
    records: Records, handles: Handles, min_docs: int, known: npt.NDArray[np.uint64]
) -> tuple[Records, Handles]:
    """What can be repeated at all, so that little is left to sort."""
    keys = np.ascontiguousarray(records["key"])
    chosen = _in_buckets(keys, min_docs)
    if len(known):
        chosen = np.union1d(chosen, np.flatnonzero(np.isin(keys, known)))
    return records[chosen], handles[chosen]


def _id_order(layout: Layout, handles: Handles, high: npt.NDArray[np.uint64]) -> Handles:
    """Each occurrence's document's place in the order of the doc_ids."""
    different, first, inverse = np.unique(handles, return_index=True, return_inverse=True)
    high = high[first]
    low = np.zeros_like(high)
    tied = np.sort(_in_buckets(high))
    if len(tied):
        low[tied] = gather(layout, "texts", different[tied])["id_low"]
    place = np.empty(len(different), np.int64)
    place[np.lexsort((low, high))] = np.arange(len(different))
    return place[inverse]


def bucket_order(layout: Layout, records: Records, handles: Handles) -> Handles:
    """Indices that sort by band key, and within a bucket by the keep rule. Documents whose packed
    order ties are looked up in the files."""
    keys, packed = records["key"], records["order"]
    corpora = layout.corpora(handles) if len(handles) else handles
    order = np.lexsort((handles, packed, corpora, keys))
    by = np.stack([keys[order], corpora[order].astype(np.uint64), packed[order]])
    ties = np.flatnonzero((by[:, 1:] == by[:, :-1]).all(axis=0))
    if not len(ties):
        return order
    tied = np.unique(handles[order[np.r_[ties, ties + 1]]])
    facts = np.zeros(len(handles), LEFT)
    member = np.flatnonzero(np.isin(handles, tied))
    facts[member] = gather(layout, "left", tied)[np.searchsorted(tied, handles[member])]
    words = -facts["words_32"].astype(np.int64)
    return np.lexsort((handles, facts["id_low"], facts["id_high"], words, packed, corpora, keys))
