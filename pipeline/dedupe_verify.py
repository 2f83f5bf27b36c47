"""The tasks of dedupe that verify candidate pairs: exact Jaccard similarity of shingle sets.

A chunk is a range of right handles, cut where its documents' words reach a limit. Each shard writes
the sets that each chunk asks for, and a chunk reads its own section of each: nothing is read twice.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from pipeline.core.manifest import Counts
from pipeline.core.shard_tasks import ShardResult
from pipeline.dedupe_files import (
    EDGES,
    NEEDS,
    PAIRS,
    REMOVED,
    Layout,
    file_url,
    write_records,
)
from pipeline.dedupe_tasks import texts_without_lines
from pipeline.section_files import (
    Records,
    open_sections,
    read_range,
    section_keys,
    write_sections,
)
from pipeline.text.shingle_kernel import shared
from pipeline.text.signatures import Signer

MAX_CHUNK_WORDS = 1 << 24  # of different documents: at most 128 MB of shingle sets
_CHUNK_PAIRS = 1 << 16
_SETS = "shingle sets"
_compiled: Any = numba.njit(cache=True, nogil=True)


@dataclasses.dataclass(frozen=True)
class PairTask:
    """Right handles low <= handle < high of all `ranges` files of pairs."""

    folder: str
    index: int
    low: int
    high: int
    ranges: int


@dataclasses.dataclass(frozen=True)
class SetsTask:
    """Shard `index` of the layout, for all chunks."""

    folder: str
    index: int
    chunks: tuple[str, ...]
    signer: Signer


@dataclasses.dataclass(frozen=True)
class VerifyTask:
    folder: str
    chunk: str
    number: int  # of the chunk
    shards: int
    threshold: float


def pair_cuts(folder: str, ranges: int, num_handles: int) -> list[tuple[int, int]]:
    """Ranges of right handles with some 65,000 pairs each, before the same pair of several bands
    counts as one."""
    keys = [section_keys(file_url(folder, "pairs", index), PAIRS) for index in range(ranges)]
    starts = np.sort(np.concatenate([np.zeros(0, np.uint64), *keys]))
    step = max(1, _CHUNK_PAIRS // 512)
    cuts = np.unique(np.r_[0, starts[step::step].astype(np.int64), num_handles]).tolist()
    return list(itertools.pairwise(cuts)) if len(starts) else []


def split_pairs(task: PairTask) -> ShardResult:
    """The range's pairs once each, in chunks, and for each chunk the handles that it needs. Facts:
    the number of chunks."""
    urls = [file_url(task.folder, "pairs", index) for index in range(task.ranges)]
    parts = [read_range(url, PAIRS, task.low, task.high) for url in urls]
    records = np.concatenate([np.zeros(0, PAIRS), *parts])
    order = np.lexsort((records["left"], records["key"]))
    records = records[order]
    new = np.ones(len(records), np.bool_)
    new[1:] = (records["key"][1:] != records["key"][:-1]) | (
        records["left"][1:] != records["left"][:-1]
    )
    records = records[new]
    number = -1
    for number, chunk in enumerate(_chunks(records)):
        name = f"{task.index:05d}-{number:03d}"
        columns = [chunk[field] for field in PAIRS.names or ()]
        write_records(file_url(task.folder, "chunk", name), PAIRS, *columns)
        needed = np.union1d(chunk["key"], chunk["left"])
        write_records(file_url(task.folder, "needs", name), NEEDS, needed)
    return ShardResult((), Counts(len(records), len(records)), {"chunks": number + 1})


def _chunks(records: Records) -> Iterator[Records]:
    """Pieces whose documents have so many words together, or of a single pair."""
    if not len(records):
        return
    ends = np.concatenate([records["left"], records["key"]])
    different, nodes = np.unique(ends, return_inverse=True)
    left, right = nodes[: len(records)], nodes[len(records) :]
    words = records["left_words_32"].astype(np.int64), records["words_32"].astype(np.int64)
    seen = np.full(len(different), -1)
    start = 0
    for end in _chunk_ends(left, right, *words, seen, MAX_CHUNK_WORDS).tolist():
        yield records[start:end]
        start = end


@_compiled
def _chunk_ends(
    left: Any, right: Any, left_words: Any, right_words: Any, seen: Any, limit: Any
) -> Any:
    """Where each chunk ends; a document counts once in a chunk: `seen` has the last it was in."""
    ends = np.empty(len(left), np.int64)
    count = total = 0
    for pair in range(len(left)):
        a, b = left[pair], right[pair]
        cost = left_words[pair] if seen[a] != count else 0
        cost += right_words[pair] if seen[b] != count else 0
        total += cost
        if total > limit and pair > 0 and total > cost:
            ends[count] = pair
            count += 1
            total = left_words[pair] + right_words[pair]
        seen[a] = seen[b] = count
    ends[count] = len(left)
    return ends[: count + 1]


def write_sets(task: SetsTask) -> ShardResult:
    """For each chunk a section: the shingle sets of this shard's documents that it needs."""
    place = Layout.read(task.folder).places[task.index]
    needed: list[npt.NDArray[np.int64]] = []
    for chunk in task.chunks:
        url = file_url(task.folder, "needs", chunk)
        found = read_range(url, NEEDS, place.base, place.end)["key"]
        needed.append(found.astype(np.int64) - place.base)
    rows = np.unique(np.concatenate([np.zeros(0, np.int64), *needed]))
    sections: Iterator[tuple[int, bytes]] = iter(())
    if len(rows):
        removed = read_range(file_url(place.folder, "removed", place.number), REMOVED)
        removed = removed[np.lexsort((removed["line_32"], removed["key"]))]
        texts, _ = texts_without_lines(place.docs_url, rows, removed)
        sets = task.signer.shingle_sets(texts)
        sections = (
            (chunk, _section(rows, found, place.base, sets.hashes, sets.bounds))
            for chunk, found in enumerate(needed)
            if len(found)
        )
    write_sections(file_url(task.folder, "sets", task.index), _SETS, sections)
    return ShardResult((), Counts(len(rows), len(rows)))


def _section(
    rows: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.int64],
    base: int,
    hashes: npt.NDArray[np.uint64],
    bounds: npt.NDArray[np.int64],
) -> bytes:
    """Number, handles, lengths, hashes: all in 8 bytes."""
    at = np.searchsorted(rows, chosen)
    lengths = np.diff(bounds)[at]
    parts = [hashes[bounds[index] : bounds[index + 1]] for index in at.tolist()]
    head = np.concatenate([[len(chosen)], chosen + base, lengths]).astype(np.uint64)
    return np.concatenate([head, *parts]).tobytes()


def verify_pairs(task: VerifyTask) -> ShardResult:
    """Exact Jaccard similarity of each of the chunk's pairs; those at the threshold stay."""
    pairs = read_range(file_url(task.folder, "chunk", task.chunk), PAIRS)
    handles, bounds, hashes = _sets_of(task)
    right, left = pairs["key"].astype(np.int64), pairs["left"].astype(np.int64)
    left_at, right_at = np.searchsorted(handles, left), np.searchsorted(handles, right)
    similarity = jaccards(hashes, bounds, left_at, right_at, task.threshold)
    alike = similarity >= task.threshold
    url = file_url(task.folder, "edges", task.chunk)
    write_records(url, EDGES, right[alike], left[alike], similarity[alike])
    found = int(alike.sum())
    return ShardResult((), Counts(len(pairs), found, {"below-threshold": len(pairs) - found}))


def _sets_of(
    task: VerifyTask,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """(handles, bounds, hashes) of all that the chunk needs; handles ascend, as the shards do."""
    handles, lengths = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)]
    hashes = [np.zeros(0, np.uint64)]
    for shard in range(task.shards):
        with open_sections(file_url(task.folder, "sets", shard), _SETS) as found:
            at = int(np.searchsorted(found.keys, np.uint64(task.number)))
            if at == found.count or found.keys[at] != task.number:
                continue
            section = np.frombuffer(found.read(at, at + 1), np.uint64)
        number = int(section[0])
        handles.append(section[1 : 1 + number].astype(np.int64))
        lengths.append(section[1 + number : 1 + 2 * number].astype(np.int64))
        hashes.append(section[1 + 2 * number :])
    bounds = np.cumsum(np.concatenate(lengths))
    return np.concatenate(handles), bounds, np.concatenate(hashes)


@_compiled
def jaccards(hashes: Any, bounds: Any, left: Any, right: Any, least: Any) -> Any:
    """|both| / |either| of sets left[i] and right[i], each hashes[bounds[s] : bounds[s + 1]],
    ascending; 0 for two empty ones, and for those whose sizes alone keep them below `least`."""
    found = np.zeros(len(left))
    for pair in range(len(left)):
        one = hashes[bounds[left[pair]] : bounds[left[pair] + 1]]
        other = hashes[bounds[right[pair]] : bounds[right[pair] + 1]]
        if min(len(one), len(other)) < (least - 1e-9) * max(len(one), len(other)):
            continue
        both = shared(one, other)
        either = len(one) + len(other) - both
        if either:
            found[pair] = both / either
    return found
