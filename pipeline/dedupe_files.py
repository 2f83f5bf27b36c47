"""The files between dedupe's steps, and where each document of all corpora lies.

A handle is a document's number in the order of the files, earlier corpora first: good inside one
run only. Files hold rows inside their shard, so that a later run can number them anew.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.section_files import (
    DamagedFile,
    Records,
    open_sections,
    read_range,
    write_sections,
    write_sorted,
)

Handles = npt.NDArray[np.int64]
LAYOUT = "layout.json"
_ID_CHARS = 32
_MAX_WORDS = (1 << 24) - 1


def _dtype(*names: str) -> np.dtype[Any]:
    """key, then columns: 4 bytes if the name says _32, 8 otherwise."""
    fields = [("key", "<u8"), *((n, "<u4" if n.endswith("_32") else "<u8") for n in names)]
    return np.dtype(fields)


# The kinds of files and their records; the step that writes them.
TEXTS = LEFT = _dtype("id_high", "id_low", "words_32")  # key: row; judged ones, with lines left out
EXACT = _dtype("low", "row_32")  # key, low: a digest
LINES = _dtype("id_high", "row_32", "line_32")  # key: of host and line
BANDS = _dtype("order", "row_32")  # key: of a band
REMOVED = _dtype("line_32")  # key: handle from the step `repeat`, row from the step `sign`
KEYS = _dtype()
PAIRS = _dtype("left", "words_32")  # key: right handle; words of both
NEEDS = KEYS  # key: handle
EDGES = np.dtype([*_dtype("left").descr, ("similarity", "<f8")])  # key: right handle
DECISIONS = np.dtype(
    [
        *_dtype("cluster_high", "cluster_low", "stands_high", "stands_low").descr,
        ("similarity", "<f8"),  # NaN: it stays
        ("corpus", "<i2"),  # where the one that stands for it is; -1: in this one
        ("reason", "u1"),
    ]
)  # key: row
STEPS = {
    **dict.fromkeys(("texts", "exact", "lines"), "hash"),
    **dict.fromkeys(("left", "left-exact", "bands", "removed"), "sign"),
    **dict.fromkeys(("removals", "repeated"), "repeat"),
    "copies": "copies",
    "left-copies": "left-copies",
    "pairs": "group",
    **dict.fromkeys(("chunk", "needs"), "pair"),
    "sets": "sets",
    "edges": "verify",
}
_NAME = re.compile(r"(.+?)-([0-9]{5}(?:-[0-9]{3})?)\.sorted")


def file_url(folder: str, kind: str, index: int | str) -> str:
    number = f"{index:05d}" if isinstance(index, int) else index
    return storage.join(folder, f"{kind}-{number}.sorted")


def receipt_of(url: str) -> str | None:
    """The receipt of the task that made this file; None for what the driver writes anew."""
    folder, _, name = url.rpartition("/")
    found = _NAME.fullmatch(name)
    if found is None or (step := STEPS.get(found[1])) is None:
        return None
    number = found[2] if step == "verify" else found[2][:5]
    return storage.join(folder, f"{step}-{number}.done.json")


# ----------------------------------------------------------------------------- the layout


@dataclasses.dataclass(frozen=True)
class Place:
    """One shard: `number` in its corpus, whose dedupe output is `folder`; its handles are
    base ... base + rows - 1. `sidecar_url` is empty for a shard of this run."""

    corpus: int
    number: int
    folder: str
    docs_url: str
    sidecar_url: str
    rows: int
    base: int = 0

    @property
    def end(self) -> int:
        return self.base + self.rows

    @property
    def is_earlier(self) -> bool:
        return bool(self.sidecar_url)


@dataclasses.dataclass(frozen=True)
class Layout:
    """All shards, the earlier corpora's first; 32 bytes and two URLs a shard."""

    places: tuple[Place, ...]

    @staticmethod
    def of(places: list[Place]) -> "Layout":
        bases = np.cumsum([0, *(place.rows for place in places)]).tolist()
        numbered = (
            dataclasses.replace(place, base=base)
            for place, base in zip(places, bases, strict=False)
        )
        return Layout(tuple(numbered))

    @property
    def num_earlier(self) -> int:
        """Handles below are of earlier corpora."""
        return sum(place.rows for place in self.places if place.is_earlier)

    @property
    def own(self) -> list[Place]:
        return [place for place in self.places if not place.is_earlier]

    @property
    def bases(self) -> Handles:
        return np.array([place.base for place in self.places], np.int64)

    def corpora(self, handles: Handles) -> Handles:
        """The number of each handle's corpus."""
        numbers = np.array([place.corpus for place in self.places], np.int64)
        return numbers[np.searchsorted(self.bases, handles, "right") - 1]

    def by_shard(self, handles: Handles) -> Iterator[tuple[Place, slice]]:
        """Which of these ascending handles lie where."""
        for place in self.places:
            low, high = np.searchsorted(handles, [place.base, place.end])
            if low < high:
                yield place, slice(int(low), int(high))

    def write(self, folder: str) -> None:
        rows = [dataclasses.asdict(place) for place in self.places]
        storage.write_bytes(storage.join(folder, LAYOUT), json.dumps(rows).encode())

    @staticmethod
    def read(folder: str) -> "Layout":
        rows = json.loads(storage.read_bytes(storage.join(folder, LAYOUT)))
        return Layout(tuple(Place(**row) for row in rows))


def gather(layout: Layout, kind: str, handles: Handles) -> Records:
    """The `texts` or `left` records of these ascending handles; one shard's in memory at a time."""
    found = np.zeros(len(handles), TEXTS)
    for place, part in layout.by_shard(handles):
        rows = (handles[part] - place.base).astype(np.uint64)
        url = file_url(place.folder, kind, place.number)
        records = read_range(url, TEXTS, int(rows[0]), int(rows[-1]) + 1)
        at = np.searchsorted(records["key"], rows)
        assert (records["key"][at] == rows).all(), url
        found[part] = records[at]
    return found


def keep_order(layout: Layout, kind: str, handles: Handles) -> Handles:
    """Indices that sort these ascending handles by the keep rule: earlier corpora first, then more
    words, then the smallest doc_id, then the first in the files."""
    facts = gather(layout, kind, handles)
    words = -facts["words_32"].astype(np.int64)
    return np.lexsort((facts["id_low"], facts["id_high"], words, layout.corpora(handles)))


def packed_order(words: npt.NDArray[Any], id_high: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """The keep rule in 64 bits: 24 of the words, 40 of the doc_id; what ties here must be told
    apart by the whole of both."""
    fewer = np.uint64(_MAX_WORDS) - np.minimum(words, _MAX_WORDS).astype(np.uint64)
    return (fewer << np.uint64(40)) | (id_high >> np.uint64(24))


# ----------------------------------------------------------------------------- who is out


def write_gone(folder: str, name: str, layout: Layout, handles: Handles) -> None:
    """One bit a document of this run: those of the ascending handles are out."""
    parts: dict[int, bytes] = {}
    for place in layout.own:
        bits = np.zeros(place.rows, np.bool_)
        low, high = np.searchsorted(handles, [place.base, place.end])
        bits[handles[low:high] - place.base] = True
        parts[place.number] = np.packbits(bits).tobytes()
    write_sections(storage.join(folder, f"{name}.bits"), "gone", parts.items())


def read_gone(folder: str, name: str, place: Place) -> npt.NDArray[np.bool_]:
    """By row. Of an earlier shard: all that its corpus does not keep."""
    url = storage.join(place.folder if place.is_earlier else folder, f"{name}.bits")
    with open_sections(url, "gone") as found:
        bits = np.frombuffer(found.read(place.number, place.number + 1), np.uint8)
    if len(bits) != (place.rows + 7) // 8:
        raise DamagedFile(url, f"has {len(bits)} bytes for {place.rows} rows")
    return np.unpackbits(bits, count=place.rows).astype(np.bool_)


def write_records(url: str, dtype: np.dtype[Any], *columns: npt.NDArray[Any]) -> None:
    """Columns in the order of the record's fields; the file is sorted by the first."""
    records = np.zeros(len(columns[0]), dtype)
    for name, column in zip(dtype.names or (), columns, strict=True):
        records[name] = column
    write_sorted(url, records[np.argsort(records["key"])])


# ----------------------------------------------------------------------------- documents


def read_columns(url: str, name: str, version: int, columns: list[str]) -> pa.Table:
    """These columns of a Parquet file, checked as `records.read_table` does, which reads all."""
    try:
        with storage.open_read(url) as file:
            parquet = pq.ParquetFile(pa.PythonFile(file, mode="r"))
            metadata = parquet.schema_arrow.metadata or {}
            table = parquet.read(columns=columns)
    except FileNotFoundError:
        raise UserError(f"no file at {url}; run the stage that makes it first") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{url} is not a whole Parquet file ({error})") from None
    found = [metadata.get(key, b"?") for key in (b"flywheel.record", b"flywheel.version")]
    if found != [name.encode(), str(version).encode()]:
        raise UserError(
            f"{url} holds {found[0].decode()} version {found[1].decode()}, this code reads {name}"
            f" version {version}; run the stage that makes it again"
        )
    if missing := [column for column in columns if column not in table.column_names]:
        raise UserError(f"{url} has no column {missing[0]!r}; run the stage that makes it again")
    return table


def parse_ids(column: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """(n, 2): doc_ids of 32 hex digits as numbers, in whose order the strings are. Raises
    UserError."""
    strings = column.combine_chunks().cast(pa.large_string())
    if isinstance(strings, pa.ChunkedArray):
        strings = pa.concat_arrays(strings.chunks)
    _, places, data = strings.buffers()
    number = len(strings)
    if not number:
        return np.zeros((0, 2), np.uint64)
    offsets = np.frombuffer(places, np.int64)[strings.offset : strings.offset + number + 1]
    digits = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
    values = _DIGITS[digits]
    if (np.diff(offsets) != _ID_CHARS).any() or (values > 15).any():
        wrong = next(name for name in strings.to_pylist() if not _IS_ID.fullmatch(name))
        raise UserError(f"doc_id {wrong!r} is not 32 lower-case hex digits; extract again")
    pairs = values.reshape(-1, _ID_CHARS // 2, 2)
    whole = (pairs[:, :, 0] << 4) | pairs[:, :, 1]
    return np.ascontiguousarray(whole).view(">u8").astype(np.uint64)


def format_ids(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> pa.Array:
    """The doc_ids as strings."""
    whole = np.stack([high, low], axis=1).astype(">u8").view(np.uint8).reshape(-1, _ID_CHARS // 2)
    digits = np.stack([whole >> 4, whole & 15], axis=2)
    text = np.frombuffer(b"0123456789abcdef", np.uint8)[digits]
    offsets = np.arange(0, _ID_CHARS * (len(high) + 1), _ID_CHARS, dtype=np.int32)
    return pa.StringArray.from_buffers(
        len(high), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text))
    )


_IS_ID = re.compile("[0-9a-f]{32}")
_DIGITS = np.full(256, 255, np.uint8)
_DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
