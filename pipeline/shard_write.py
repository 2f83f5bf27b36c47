"""The later steps of shard: the shuffle cut into shards of a target size, and each shard written.

The driver reads 12 bytes a document, those of a part of the shuffle at a time. A shard's rows are
in memory twice when it is put in order.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.core import storage
from pipeline.core.manifest import Counts, FileEntry, describe_file
from pipeline.core.shard_tasks import ShardResult
from pipeline.section_files import KEY_END, Records, read_range
from pipeline.shard_files import KEY, KEYS, in_order, open_shard, read_joined
from pipeline.shard_join import joined_name, keys_name

_DOCS_AT_ONCE = 1 << 23  # some 1 GB in the driver
_SIZES = np.dtype([("key", "<u8"), ("rows", "<i8"), ("bytes", "<i8")])


@dataclasses.dataclass(frozen=True)
class Cut:
    """One output shard: the rows of `split` whose key is in [low, high]."""

    name: str
    split: str
    low: int
    high: int


@dataclasses.dataclass(frozen=True)
class WriteTask:
    cut: Cut
    num_joined: int
    folder: str


def cuts_of(
    folder: str,
    split: str,
    num_joined: int,
    max_rows: int,
    max_bytes: int,
    num_docs: int,
    docs_at_once: int = _DOCS_AT_ONCE,
) -> Iterator[Cut]:
    """The split's keys, in order, cut greedily: each shard has at most `max_rows` documents and
    `max_bytes` of text, or one document that alone has more. Equal keys (the same doc_id) stay
    together. Raises DamagedFile."""
    urls = [storage.join(folder, keys_name(split, index)) for index in range(num_joined)]
    held, number = np.zeros(0, _SIZES), 0
    for low, high in _ranges(num_docs, docs_at_once):
        found = [_sizes(read_range(url, KEYS, low, high)) for url in urls]
        records = _distinct(np.concatenate([held, *found]))
        start = 0
        for end in _ends(records, max_rows, max_bytes):
            if end == len(records) and high < KEY_END:
                break  # the next range may have more for this shard
            name = f"{split}-{number:05d}.parquet"
            yield Cut(name, split, int(records["key"][start]), int(records["key"][end - 1]))
            start, number = end, number + 1
        held = records[start:]


def _sizes(records: Records) -> Records:
    found = np.ones(len(records), _SIZES)
    found["key"], found["bytes"] = records["key"], records["bytes_32"]
    return found


def _ranges(num_docs: int, docs_at_once: int) -> Iterator[tuple[int, int]]:
    """Equal parts of the space of keys, each with about so many documents: keys are hashes."""
    number = max(1, -(-num_docs // docs_at_once))
    bounds = [KEY_END * part // number for part in range(number + 1)]
    return itertools.pairwise(bounds)


def _distinct(records: Records) -> Records:
    """Ascending; those of one key are one, its `rows` and `bytes` theirs together."""
    records = records[np.argsort(records["key"], kind="stable")]
    if not len(records):
        return records
    first = np.flatnonzero(np.r_[True, records["key"][1:] != records["key"][:-1]])
    found = records[first]
    for name in ("rows", "bytes"):
        found[name] = np.add.reduceat(records[name], first)
    return found


def _ends(records: Records, max_rows: int, max_bytes: int) -> Iterator[int]:
    """Where each shard ends, the last one's end included."""
    rows, sizes = (np.cumsum(records[name], dtype=np.int64) for name in ("rows", "bytes"))
    end = 0
    while end < len(records):
        before = (rows[end - 1], sizes[end - 1]) if end else (0, 0)
        by_rows = int(np.searchsorted(rows, before[0] + max_rows, "right"))
        by_bytes = int(np.searchsorted(sizes, before[1] + max_bytes, "right"))
        end = max(end + 1, min(by_rows, by_bytes))
        yield end


def write_shard(task: WriteTask) -> ShardResult:
    """Gather one shard's rows from every joined file. Raises DamagedFile."""
    cut = task.cut
    parts: list[pa.Table] = []
    for index in range(task.num_joined):
        joined = storage.join(task.folder, joined_name(cut.split, index))
        parts += read_joined(joined, cut.low, cut.high)
    url = storage.join(task.folder, cut.name)
    num_rows = sum(map(len, parts))
    with open_shard(url) as shard:
        for part in in_order(parts):
            shard.add(part.drop_columns([KEY]))
    return ShardResult((describe_file(url, cut.name, num_rows),), Counts(num_rows, num_rows))


def write_empty(folder: str, split: str) -> FileEntry:
    """A shard of no documents, which says what columns it would have."""
    name = f"{split}-00000.parquet"
    url = storage.join(folder, name)
    with open_shard(url):
        pass
    return describe_file(url, name)
