"""The rows of a split's shards, from any row on: for training that is stopped and goes on.

A split is one sequence of rows over all its files. Reading begins with the row group that holds the
first row wanted, and holds one row group; nothing before it is read, from a local file or a URL.
"""

import bisect
import contextlib
import dataclasses
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.manifest import FileEntry, Manifest, open_checked
from pipeline.core.records import Document

SPLITS = ("train", "heldout", "rejects")


@dataclasses.dataclass(frozen=True)
class Rows:
    """`table` has the rows `start` … `end` - 1 of the split."""

    start: int
    table: pa.Table

    @property
    def end(self) -> int:
        return self.start + len(self.table)


@dataclasses.dataclass(frozen=True)
class ShardReader:
    """The share of worker `rank` of `world_size`: rows `first` … `end` - 1 of the split's
    `num_rows`, counted over all workers. What is read is compared with its pages' CRC; `checked`:
    each file with its digest, too, which reads it whole first."""

    shards: Manifest
    split: str
    rank: int
    world_size: int
    columns: tuple[str, ...]
    checked: bool
    files: tuple[FileEntry, ...]
    bounds: tuple[int, ...]  # the first row of each file, and num_rows

    @staticmethod
    def of(
        shards: Manifest,
        split: str = "train",
        *,
        rank: int = 0,
        world_size: int = 1,
        columns: Sequence[str] = ("doc_id", "text"),
        checked: bool = False,
    ) -> "ShardReader":
        """Raises UserError if the manifest is not of shards, a file of it is gone or has another
        size, or there is no such split, worker or column."""
        if shards.stage != "shard" or shards.record != Document.NAME:
            raise UserError(f"{shards.url} is an output of {shards.stage}; give one of shard")
        if split not in SPLITS:
            raise UserError(f"{split!r} is no split of the shards; give one of {', '.join(SPLITS)}")
        if not 0 <= rank < world_size:
            raise UserError(f"there is no worker {rank} of {world_size}; the first one is 0")
        if unknown := [name for name in columns if name not in Document.SCHEMA.names]:
            raise UserError(f"a document has no column {unknown[0]!r}")
        shards.check_files()
        files = tuple(entry for entry in shards.files if entry.name.startswith(f"{split}-"))
        bounds = tuple(itertools.accumulate((entry.num_rows for entry in files), initial=0))
        return ShardReader(shards, split, rank, world_size, tuple(columns), checked, files, bounds)

    @property
    def num_rows(self) -> int:
        return self.bounds[-1]

    @property
    def first(self) -> int:
        return self.num_rows * self.rank // self.world_size

    @property
    def end(self) -> int:
        return self.num_rows * (self.rank + 1) // self.world_size

    def position(self, row: int) -> dict[str, Any]:
        """JSON values that say: `row` is the next one to read."""
        assert self.first <= row <= self.end, (row, self.first, self.end)
        return {"shards": self.shards.content_hash, "split": self.split, "row": row}

    def row_at(self, position: Mapping[str, Any]) -> int:
        """Raises UserError for a position in other shards, or outside of this worker's share."""
        ours = (self.shards.content_hash, self.split)
        if (position.get("shards"), position.get("split")) != ours:
            raise UserError(
                f"the position {dict(position)} is not one in the {self.split} rows of"
                f" {self.shards.url}; begin anew, or give the shards that it was taken in"
            )
        row = position.get("row")
        if not isinstance(row, int) or not self.first <= row <= self.end:
            raise UserError(
                f"row {row!r} is not among the rows {self.first} to {self.end} of worker"
                f" {self.rank} of {self.world_size}; go on with as many workers as before"
            )
        return row

    def batches(self, position: Mapping[str, Any] | None = None) -> Iterator[Rows]:
        """The share from `position` on, a row group (or what is left of it) at a time, its columns
        in the order of `columns`. Raises UserError for a file that is not as its manifest says."""
        row = self.first if position is None else self.row_at(position)
        while row < self.end:
            number = bisect.bisect_right(self.bounds, row) - 1
            url = self.shards.file_url(self.files[number].name)
            with self._opened(url, self.files[number].num_rows) as file:
                for part in self._of_file(file, url, self.bounds[number], row):
                    yield part
                    row = part.end

    def _of_file(self, file: pq.ParquetFile, url: str, base: int, row: int) -> Iterator[Rows]:
        start = base
        for group in range(file.metadata.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if row < end and start < self.end:
                with _damage_named(url):
                    table = file.read_row_group(group, list(self.columns), use_threads=False)
                low, high = max(row, start), min(end, self.end)
                yield Rows(low, table.slice(low - start, high - low).select(list(self.columns)))
            start = end

    @contextlib.contextmanager
    def _opened(self, url: str, num_rows: int) -> Generator[pq.ParquetFile]:
        with contextlib.ExitStack() as stack:
            with _damage_named(url):
                file = stack.enter_context(
                    open_checked(url) if self.checked else storage.open_read(url, in_order=False)
                )
                source: Any = pa.PythonFile(file, mode="r")
                if storage.is_local(url):  # without a call of Python for each read
                    source = stack.enter_context(pa.OSFile(str(storage.local_path(url))))
                parquet = pq.ParquetFile(source, page_checksum_verification=True)
            if parquet.metadata.num_rows != num_rows:
                raise UserError(
                    f"{url} has {parquet.metadata.num_rows} rows, its manifest says"
                    f" {num_rows}; run the stage shard again"
                )
            yield parquet

    def texts(self, position: Mapping[str, Any] | None = None) -> Iterator[tuple[int, str, str]]:
        """(row, doc_id, text) of each document from `position` on."""
        for part in self.batches(position):
            ids, texts = part.table["doc_id"].to_pylist(), part.table["text"].to_pylist()
            yield from zip(range(part.start, part.end), ids, texts, strict=True)


@contextlib.contextmanager
def _damage_named(url: str) -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"no file at {url}; run the stage that makes it first") from None
    except (pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the disk's or the network's, not the file's
        raise UserError(f"{url} is not a whole Parquet file ({error})") from None
