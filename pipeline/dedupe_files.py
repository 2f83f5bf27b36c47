"""The files between dedupe's steps, and where each document of all corpora lies.

A handle is a document's number in the order of the files, earlier corpora first: good inside one
run only. Files hold rows inside their shard, so that a later run can number them anew.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.section_files import (
    DamagedFile,
    Records,
    open_sections,
    read_range,
    section_keys,
    write_sections,
    write_sorted,
)

Handles = npt.NDArray[np.int64]
LAYOUT = "layout.json"
GONE = "gone"
_ID_CHARS = 32
_MAX_WORDS = (1 << 24) - 1


def _dtype(*names: str) -> np.dtype[Any]:
    """key, then columns: 4 bytes if the name says _32, 8 otherwise."""
    fields = [("key", "<u8"), *((n, "<u4" if n.endswith("_32") else "<u8") for n in names)]
    return np.dtype(fields)


# The kinds of files and their records.
TEXTS = LEFT = _dtype("id_high", "id_low", "words_32")  # key: row; judged ones, with lines left out
EXACT = _dtype("low", "row_32")  # key, low: a digest
LINES = _dtype("id_high", "row_32", "line_32")  # key: of host and line
BANDS = _dtype("order", "row_32")  # key: of a band
REMOVED = _dtype("line_32")  # key: handle from the step `repeat`, row from the step `sign`
KEYS = _dtype()
PAIRS = _dtype("left", "left_words_32", "words_32")  # key: right handle; words of each
NEEDS = KEYS  # key: handle
COPIES = _dtype("left")  # key: the copy's handle; the first of those it is equal to
EDGES = np.dtype([*_dtype("left").descr, ("similarity", "<f8")])  # key: right handle
DECISIONS = np.dtype(
    [
        *_dtype("cluster_high", "cluster_low", "stands_high", "stands_low").descr,
        ("similarity", "<f8"),  # NaN: it stays
        ("corpus", "<i2"),  # where the one that stands for it is; -1: in this one
        ("reason", "u1"),
    ]
)  # key: row
# Of all the components of the documents that have copies or alike ones; key: the component's
# smallest handle. `ranked`: what the keep rule needs to know; `named`: what an earlier corpus says.
RANKED = _dtype("handle", "id_high", "id_low", "words_32")
NAMED = np.dtype(
    [
        *_dtype("handle", "cluster_high", "cluster_low", "stands_high", "stands_low").descr,
        ("similarity", "<f8"),
        ("corpus", "<i2"),
    ]
)
COPY_LINKS = _dtype("right", "left")
NEAR_LINKS = np.dtype([*COPY_LINKS.descr, ("similarity", "<f8")])
# What later runs read of a finished output, besides its sidecars and gone.bits.
KEPT = frozenset(("texts", "exact", "left", "left-exact", "bands", "removed", "repeated"))
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
    **dict.fromkeys(("all-ranked", "all-named", "all-first", "all-second", "all-edges"), "all"),
}  # any other kind has the name of its step
_BY_DRIVER = ("decisions",)
_NAME = re.compile(r"(.+?)-([0-9]{5,}(?:-[0-9]{3,})?)\.sorted")


def file_url(folder: str, kind: str, index: int | str) -> str:
    number = f"{index:05d}" if isinstance(index, int) else index
    return storage.join(folder, f"{kind}-{number}.sorted")


def receipt_of(url: str) -> str | None:
    """The receipt of the task that made this file; None for what the driver writes anew."""
    folder, _, name = url.rpartition("/")
    found = _NAME.fullmatch(name)
    if found is None or found[1] in _BY_DRIVER:
        return None
    step = STEPS.get(found[1], found[1])
    number = found[2] if step == "verify" else found[2].partition("-")[0]
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
    def end(self) -> int:
        """All handles are below."""
        return sum(place.rows for place in self.places)

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


def keep_order(facts: Records, corpora: Handles) -> Handles:
    """Indices that sort ascending handles by the keep rule: earlier corpora first, then more words,
    then the smallest doc_id, then the first in the files."""
    words = -facts["words_32"].astype(np.int64)
    return np.lexsort((facts["id_low"], facts["id_high"], words, corpora))


def packed_order(words: npt.NDArray[Any], id_high: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """The keep rule in 64 bits: 24 of the words, 40 of the doc_id; what ties here must be told
    apart by the whole of both."""
    fewer = np.uint64(_MAX_WORDS) - np.minimum(words, _MAX_WORDS).astype(np.uint64)
    return (fewer << np.uint64(40)) | (id_high >> np.uint64(24))


# ----------------------------------------------------------------------------- who is out


def write_gone(folder: str, name: str, layout: Layout, handles: Handles) -> None:
    """One bit a document of this run: those of the ascending handles are out."""
    parts = ((place.number, gone_bits(place, handles)) for place in layout.own)
    write_sections(storage.join(folder, f"{name}.bits"), GONE, parts)


def gone_bits(place: Place, handles: Handles) -> bytes:
    bits = np.zeros(place.rows, np.bool_)
    low, high = np.searchsorted(handles, [place.base, place.end])
    bits[handles[low:high] - place.base] = True
    return np.packbits(bits).tobytes()


def read_gone(folder: str, name: str, place: Place) -> npt.NDArray[np.bool_]:
    """By row. Of an earlier shard: all that its corpus does not keep."""
    url = storage.join(place.folder if place.is_earlier else folder, f"{name}.bits")
    with open_sections(url, GONE) as found:
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


def cut_keys(
    folder: str, kind: str, number: int, dtype: np.dtype[Any], end: int, parts: int
) -> list[tuple[int, int]]:
    """At most so many ranges of 0 ... end, each with as many of the files' records as the others,
    by the key of each 512th record: 8 bytes of them in memory. A key's records stay together."""
    found = [section_keys(file_url(folder, kind, index), dtype) for index in range(number)]
    keys = np.sort(np.concatenate([np.zeros(0, np.uint64), *found]))
    places = [len(keys) * part // parts for part in range(1, parts)]
    inner = keys[places].astype(np.int64) if len(keys) else []
    cuts = np.unique(np.r_[0, inner, end].astype(np.int64)).tolist()
    return list(itertools.pairwise(cuts)) or [(0, end)]


# ----------------------------------------------------------------------------- documents


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
