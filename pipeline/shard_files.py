"""The files of the stage shard: Parquet for streaming readers, and the joined rows on their way.

Joined rows lie sorted by their place in the shuffle, in sections of 256 kB of text that are each
checked by a hash: a writer reads the sections of its range of keys, from each file, and no others.
"""

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from pipeline.core import storage
from pipeline.core.records import Document, open_table, schema_of
from pipeline.section_files import (
    DamagedFile,
    Records,
    Sections,
    open_sections,
    write_sections,
)

pc: Any = compute  # it makes its functions when it is imported: no checker knows them
KEY = "shuffle_key"
# Of a row group of a shard: what a reader must take in to begin anywhere.
GROUP_BYTES, GROUP_ROWS = 8 << 20, 1000
_SECTION_BYTES, _SECTION_ROWS = 1 << 18, 512
_SECTIONS_AT_ONCE = 64
# A column chunk's dictionary pays where values repeat; the text has no least and greatest value.
_REPEATING = [
    *("warc_file", "http_status", "content_type", "extractor", "extractor_version", "published"),
    *("declared_language", "license", "language", "signals.key_value.key", "drop_reason"),
]
_WITHOUT_STATISTICS = {"text", "title", "signals"}
_STATISTICS = [name for name in Document.SCHEMA.names if name not in _WITHOUT_STATISTICS]

# Texts of many documents in one array need 64-bit offsets.
WIDE = pa.schema(
    [
        field.with_type(pa.large_string()) if field.name == "text" else field
        for field in Document.SCHEMA
    ]
)
JOINED = WIDE.append(pa.field(KEY, pa.uint64(), nullable=False))
_JOINED_KIND = f"shard-joined-{Document.VERSION}"
_LENGTH = 8  # bytes before a section: how many it has when it is unpacked
KEYS = np.dtype([("key", "<u8"), ("bytes_32", "<u4")])  # of a joined row: its text's bytes


# ----------------------------------------------------------------------------- Parquet


class GroupWriter:
    """Rows into row groups of at most GROUP_BYTES of text (or one longer document) and GROUP_ROWS
    rows, which depend on the rows alone, not on how they come. Holds one row group."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self.writer = writer
        self.held: list[pa.Table] = []
        self.bytes = self.rows = 0

    def add(self, table: pa.Table) -> None:
        """Rows in the schema WIDE."""
        sizes = text_bytes(table)
        start = 0
        for at, size in enumerate(sizes.tolist()):
            rows = self.rows + at - start
            if rows and (rows >= GROUP_ROWS or self.bytes + size > GROUP_BYTES):
                self._hold(table.slice(start, at - start))
                self.flush()
                start = at
            self.bytes += size
        self._hold(table.slice(start))

    def _hold(self, part: pa.Table) -> None:
        if len(part):
            self.held.append(part)
            self.rows += len(part)

    def flush(self) -> None:
        if self.held:
            whole = pa.concat_tables(self.held).combine_chunks()
            self.writer.write_table(whole.cast(schema_of(Document)), row_group_size=len(whole))
        self.held, self.bytes, self.rows = [], 0, 0


@contextlib.contextmanager
def open_shard(url: str) -> Generator[GroupWriter]:
    """A Parquet file of documents, there whole or not at all: zstd, statistics and a page index.
    The same rows give the same bytes."""
    with storage.atomic_file(url) as path:
        options: dict[str, Any] = {
            "compression": "zstd",
            "use_dictionary": _REPEATING,
            "write_statistics": _STATISTICS,
            "write_page_index": True,
            "write_page_checksum": True,
            "version": "2.6",
        }
        with pq.ParquetWriter(path, schema_of(Document), **options) as writer:
            groups = GroupWriter(writer)
            yield groups
            groups.flush()


def text_bytes(table: pa.Table) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of each row's text."""
    return np.asarray(pc.binary_length(table["text"]), np.int64)


def iter_rows(
    url: str, name: str, version: int, columns: list[str], num_rows: int
) -> Iterator[pa.Table]:
    """A Parquet file's rows, `num_rows` at a time whatever its row groups are (the last part may
    have less); holds some 1 MB a column beside them. Raises UserError if it is not the record and
    version asked for."""
    with open_table(url, name, version, columns) as file:
        held: list[pa.RecordBatch] = []
        rows = 0
        for batch in file.iter_batches(num_rows, columns=columns, use_threads=False):
            rest = batch
            while rows + len(rest) >= num_rows:
                held.append(rest.slice(0, num_rows - rows))
                yield pa.Table.from_batches(held)
                rest = rest.slice(num_rows - rows)
                held, rows = [], 0
            if len(rest):
                held.append(rest)
                rows += len(rest)
        if held:
            yield pa.Table.from_batches(held)


def rows_at_once(url: str, name: str, version: int) -> int:
    """Of a file of documents: how many of middling size have GROUP_BYTES of text; at most
    GROUP_ROWS. Raises UserError as iter_rows does."""
    with open_table(url, name, version, ["text"]) as file:
        metadata = file.metadata
    paths = [metadata.schema.column(at).path for at in range(metadata.num_columns)]
    size = sum(
        metadata.row_group(number).column(paths.index("text")).total_uncompressed_size
        for number in range(metadata.num_row_groups)
    )
    return max(1, min(GROUP_ROWS, GROUP_BYTES * metadata.num_rows // max(1, size)))


# ----------------------------------------------------------------------------- joined rows


def write_joined(url: str, parts: Iterable[pa.Table]) -> Records:
    """Rows of the schema JOINED that ascend by their key; returns their KEYS. Holds one part."""
    found = [np.zeros(0, KEYS)]

    def sections() -> Iterator[tuple[int, bytes]]:
        for part in parts:
            records = np.zeros(len(part), KEYS)
            records["key"] = part[KEY].to_numpy()
            records["bytes_32"] = text_bytes(part)
            found.append(records)
            yield from _packed(part, records)

    write_sections(url, _JOINED_KIND, sections())
    return np.concatenate(found)


def _packed(part: pa.Table, records: Records) -> Iterator[tuple[int, bytes]]:
    codec = pa.Codec("lz4")  # three times as fast as zstd, for bytes that are read once
    sizes = records["bytes_32"].astype(np.int64)
    for start, end in runs(sizes, _SECTION_BYTES, _SECTION_ROWS):
        [batch] = part.slice(start, end - start).combine_chunks().to_batches()
        data = pa.record_batch(batch.columns, schema=JOINED).serialize()
        packed: Any = codec.compress(data)
        length = len(data).to_bytes(_LENGTH, "little")
        yield int(records["key"][start]), length + packed.to_pybytes()


def runs(sizes: npt.NDArray[np.int64], max_bytes: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Cut a sequence greedily into runs, (start, end), of at most so many bytes (or one item that
    alone has more) and items."""
    ends = np.cumsum(sizes)
    start = done = 0
    while start < len(sizes):
        end = int(np.searchsorted(ends, done + max_bytes, "right"))
        end = min(max(end, start + 1), start + max_rows)
        yield start, end
        start, done = end, int(ends[end - 1])


def read_joined(url: str, low: int, high: int) -> Iterator[pa.Table]:
    """The rows whose key is in [low, high], ascending: of each section a part that holds on to no
    more than itself. Raises DamagedFile."""
    with open_sections(url, _JOINED_KIND) as found:
        first = max(0, int(np.searchsorted(found.keys, np.uint64(low), "left")) - 1)
        end = int(np.searchsorted(found.keys, np.uint64(high), "right"))
        for at in range(first, end, _SECTIONS_AT_ONCE):
            for data in _split(found, at, min(at + _SECTIONS_AT_ONCE, end)):
                table = _unpacked(url, data)
                keys = table[KEY].to_numpy()
                start = int(np.searchsorted(keys, np.uint64(low), "left"))
                stop = int(np.searchsorted(keys, np.uint64(high), "right"))
                if stop - start == len(keys):
                    yield table
                elif start < stop:
                    yield table.take(pa.array(np.arange(start, stop)))


def _split(found: Sections, first: int, end: int) -> Iterator[memoryview]:
    data = memoryview(found.read(first, end))
    places = (found.offsets[first : end + 1] - found.offsets[first]).astype(np.int64).tolist()
    return (data[start:stop] for start, stop in itertools.pairwise(places))


def _unpacked(url: str, data: memoryview) -> pa.Table:
    size = int.from_bytes(data[:_LENGTH], "little")
    try:
        packed = pa.py_buffer(data[_LENGTH:])
        whole = pa.Codec("lz4").decompress(packed, decompressed_size=size)
        batch = pa.ipc.read_record_batch(whole, JOINED)
    except (pa.ArrowInvalid, OSError) as error:  # its hash was right: another version wrote it
        raise DamagedFile(url, f"cannot be unpacked ({error})") from error
    return pa.Table.from_batches([batch])


def in_order(parts: list[pa.Table]) -> Iterator[pa.Table]:
    """The rows by (key, doc_id), a row group's worth at a time; empties `parts`. Takes twice the
    rows' size, theirs included, and then once."""
    table = pa.concat_tables(parts).combine_chunks() if parts else JOINED.empty_table()
    parts.clear()
    sort_keys = [(KEY, "ascending"), ("doc_id", "ascending")]
    order = pc.sort_indices(table.select([KEY, "doc_id"]), sort_keys=sort_keys)
    sizes = text_bytes(table)[np.asarray(order)]
    for start, end in runs(sizes, GROUP_BYTES, GROUP_ROWS):
        yield table.take(order[start:end])
