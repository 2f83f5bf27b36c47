"""Files of records sorted by a 64-bit key, read by key range; every section is checked by its hash.

A file is its sections, an index (first key, place and xxh3 of each) and a tail with the index's own
xxh3. What does not check out raises DamagedFile: nothing from it is ever handed on.
"""

import contextlib
import dataclasses
import struct
from collections.abc import Generator, Iterable
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.core import storage

Records: TypeAlias = npt.NDArray[Any]  # structured, with a uint64 field "key"
KEY_END = 1 << 64
_MAGIC = b"flysect1"
_TAIL = struct.Struct("<QQ8s")  # bytes and xxh3 of the index, magic
_SECTION = 512  # records: some 10 kB, so that a narrow range reads little beside it


class DamagedFile(Exception):  # noqa: N818 - it says what is, and its answer is to rebuild
    """An intermediate file that is missing, cut short or not as it was written."""

    def __init__(self, url: str, what: str) -> None:
        super().__init__(url, what)
        self.url, self.what = url, what

    def __str__(self) -> str:
        return f"{self.url} {self.what}"


@dataclasses.dataclass(frozen=True)
class Sections:
    """An open file of `count` sections."""

    url: str
    file: IO[bytes]
    keys: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.uint64]
    hashes: npt.NDArray[np.uint64]

    @property
    def count(self) -> int:
        return len(self.keys)

    def read(self, first: int, end: int) -> bytes:
        """Sections first to end - 1, one after the other, checked."""
        start, stop = int(self.offsets[first]), int(self.offsets[end])
        self.file.seek(start)
        data = self.file.read(stop - start)
        if len(data) != stop - start:
            raise DamagedFile(self.url, "is cut short")
        view = memoryview(data)
        places = (self.offsets[first : end + 1].astype(np.int64) - start).tolist()
        wanted = self.hashes[first:end].tolist()
        for index, expected in enumerate(wanted):
            if xxhash.xxh3_64_intdigest(view[places[index] : places[index + 1]]) != expected:
                raise DamagedFile(self.url, f"is damaged in section {first + index}")
        return data


def write_sections(url: str, kind: str, sections: Iterable[tuple[int, bytes]]) -> None:
    """(key, bytes) of each, keys ascending; holds one at a time. `kind` must be given to read."""
    keys: list[int] = []
    offsets, hashes = [0], list[int]()
    with storage.atomic_file(url) as path, path.open("wb") as file:
        for key, data in sections:
            file.write(data)
            keys.append(key)
            offsets.append(offsets[-1] + len(data))
            hashes.append(xxhash.xxh3_64_intdigest(data))
        numbers = [len(keys), *keys, *offsets, *hashes]
        index = np.array(numbers, np.uint64).tobytes() + kind.encode()
        file.write(index)
        file.write(_TAIL.pack(len(index), xxhash.xxh3_64_intdigest(index), _MAGIC))


@contextlib.contextmanager
def open_sections(url: str, kind: str) -> Generator[Sections]:
    """Raises DamagedFile, at once if the index is not whole or the file holds another kind."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(storage.open_read(url, in_order=False))
        except FileNotFoundError:
            raise DamagedFile(url, "is missing") from None
        yield _read_index(url, kind, file, file.seek(0, 2))


def _read_index(url: str, kind: str, file: IO[bytes], size: int) -> Sections:
    if size < _TAIL.size:
        raise DamagedFile(url, "is cut short")
    file.seek(size - _TAIL.size)
    length, expected, magic = _TAIL.unpack(file.read(_TAIL.size))
    start = size - _TAIL.size - length
    if magic != _MAGIC or start < 0:
        raise DamagedFile(url, "is cut short or no file of sections")
    file.seek(start)
    index = file.read(length)
    if xxhash.xxh3_64_intdigest(index) != expected:
        raise DamagedFile(url, "has a damaged index")
    count = int(np.frombuffer(index, np.uint64, 1)[0])
    numbers = np.frombuffer(index, np.uint64, 2 + 3 * count)[1:]
    if index[8 * (2 + 3 * count) :] != kind.encode():
        raise DamagedFile(url, f"does not hold {kind}")
    keys, offsets, hashes = np.split(numbers, [count, 2 * count + 1])
    if int(offsets[-1]) != start:
        raise DamagedFile(url, "is cut short")
    return Sections(url, file, keys, offsets, hashes)


def kind_of(dtype: np.dtype[Any]) -> str:
    return repr(dtype.descr)


def write_sorted(url: str, records: Records) -> None:
    """Records that ascend by `key`."""
    sections = (records[at : at + _SECTION] for at in range(0, len(records), _SECTION))
    parts = ((int(part["key"][0]), part.tobytes()) for part in sections)
    write_sections(url, kind_of(records.dtype), parts)


def read_range(url: str, dtype: np.dtype[Any], low: int = 0, high: int = KEY_END) -> Records:
    """The records of low <= key < high. Reads whole sections of 512 records, and no others."""
    with open_sections(url, kind_of(dtype)) as found:
        first = max(0, int(np.searchsorted(found.keys, np.uint64(low), "left")) - 1)
        end = _place(found.keys, high)
        if first >= end:
            return np.zeros(0, dtype)
        records = np.frombuffer(found.read(first, end), dtype)
    keys = records["key"]
    return records[int(np.searchsorted(keys, np.uint64(low), "left")) : _place(keys, high)]


def _place(keys: npt.NDArray[np.uint64], high: int) -> int:
    return len(keys) if high >= KEY_END else int(np.searchsorted(keys, np.uint64(high), "left"))


def section_keys(url: str, dtype: np.dtype[Any]) -> npt.NDArray[np.uint64]:
    """The first key of each 512 records: where to cut a file into equal parts."""
    with open_sections(url, kind_of(dtype)) as found:
        return found.keys.copy()
