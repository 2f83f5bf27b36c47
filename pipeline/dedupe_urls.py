"""Captures of one URL in one corpus: the latest stays, older ones go before texts are compared.

An archive of several visits holds a page several times, changed a little each time. The URL counts
in its canonical form; earlier corpora are left alone: a page that has changed since is new there.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipeline.core.manifest import Counts
from pipeline.core.records import Document, read_columns
from pipeline.core.shard_tasks import ShardResult
from pipeline.dedupe_files import file_url, parse_ids, write_records
from pipeline.section_files import KEY_END, Records, read_range
from pipeline.urls import canonical

# key, low: digest of the URL; fetched: microseconds, plus 2**63; place: shard and row.
URLS = np.dtype([(name, "<u8") for name in ("key", "low", "fetched", "id_high", "id_low", "place")])
SUPERSEDED = np.dtype([(name, "<u8") for name in ("key", "id_high", "id_low")])  # key: place
_SHARD = 32  # bits that a row takes in a place


@dataclasses.dataclass(frozen=True)
class CaptureTask:
    """Part `index` of `number` equal ones of the URLs' digests, of so many shards."""

    folder: str
    index: int
    number: int
    shards: int


def write_urls(url: str, shard: int, docs_url: str, rows: npt.NDArray[np.int64]) -> ShardResult:
    """The URLs of these rows of one shard, by their digest."""
    columns = ["doc_id", "url", "fetched_at"]
    table = read_columns(docs_url, Document.NAME, Document.VERSION, columns).take(pa.array(rows))
    ids = parse_ids(table["doc_id"])
    fetched = table["fetched_at"].cast(pa.int64()).to_numpy().astype(np.uint64)
    digests = [
        xxhash.xxh3_128_digest((canonical(name) or name).encode())
        for name in table["url"].to_pylist()
    ]
    keys = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)
    place = (np.uint64(shard) << np.uint64(_SHARD)) | rows.astype(np.uint64)
    later = fetched ^ np.uint64(1 << 63)  # so that times before 1970 come first
    write_records(url, URLS, keys[:, 0], keys[:, 1], later, ids[:, 0], ids[:, 1], place)
    return ShardResult((), Counts(len(rows), len(rows)))


def find_superseded(task: CaptureTask) -> ShardResult:
    """`superseded`: the places of all captures but each URL's latest, with the id of that; of those
    of one moment the smallest doc_id stays."""
    low, high = (KEY_END * part // task.number for part in (task.index, task.index + 1))
    parts = [
        read_range(file_url(task.folder, "urls", shard), URLS, low, high)
        for shard in range(task.shards)
    ]
    found = np.concatenate([np.zeros(0, URLS), *parts])
    earliest_last = np.uint64(2**64 - 1) - found["fetched"]
    by: tuple[Any, ...] = (found["place"], found["id_low"], found["id_high"], earliest_last)
    found = found[np.lexsort((*by, found["low"], found["key"]))]
    first = np.ones(len(found), np.bool_)
    same = (found["key"][1:] == found["key"][:-1]) & (found["low"][1:] == found["low"][:-1])
    first[1:] = ~same
    latest = found[np.flatnonzero(first)][np.cumsum(first) - 1] if len(found) else found
    # The same bytes once more are an exact duplicate, as the next steps find.
    gone = (found["id_high"] != latest["id_high"]) | (found["id_low"] != latest["id_low"])
    url = file_url(task.folder, "superseded", task.index)
    stands = latest["id_high"][gone], latest["id_low"][gone]
    write_records(url, SUPERSEDED, found["place"][gone], *stands)
    return ShardResult((), Counts(len(found), len(found)))


def superseded_rows(folder: str, shard: int, number: int) -> Records:
    """SUPERSEDED records of a shard from all `number` files, their `key` the row, ascending."""
    low = shard << _SHARD
    parts = [
        read_range(file_url(folder, "superseded", index), SUPERSEDED, low, low + (1 << _SHARD))
        for index in range(number)
    ]
    found = np.concatenate([np.zeros(0, SUPERSEDED), *parts])
    found["key"] -= np.uint64(low)
    return found[np.argsort(found["key"])]
