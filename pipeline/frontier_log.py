"""The append-only log of a frontier shard, in one segment for each epoch of its owner.

A line has one address for ever: its offset in the concatenation of all segments. A new owner
writes down where its predecessor's segment ends for it, so that a predecessor who was only hung
and writes on changes nothing.
"""

import bisect
import contextlib
import dataclasses
import json
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.frontier_snapshot import DamagedSnapshotError, Snapshot, read_snapshot
from pipeline.frontier_state import Archived

_LINE_BYTES = 8 << 10  # at least; a canonical URL has at most 4,096
_HEAD_BYTES = 100  # at most
_BLOCK = 4 << 20
_MEND = "delete {} to crawl anew"


@dataclasses.dataclass(frozen=True)
class Segment:
    """`start`: the address of its first byte; `end`: behind the last that counts."""

    path: Path
    start: int
    end: int


class FrontierLog:
    """Lines of text without line ends; what a line says is the frontier's business."""

    def __init__(self, folder: Path, epoch: int) -> None:
        """Open a segment of one's own behind all that is there. Raises UserError for damage."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        segments = _read_segments(folder)
        start = segments[-1].end if segments else 0
        self.start = start
        path = folder / f"log-{epoch:06d}.log"
        head = json.dumps({"epoch": epoch, "start": start}).encode() + b"\n"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            _write_all(handle, head)
        except OSError:
            os.close(handle)
            raise
        self.end = start + len(head)
        self._segments = [*segments, Segment(path, start, self.end)]
        self._starts = [segment.start for segment in self._segments]
        self._failed: OSError | None = None
        self._handles = [os.open(s.path, os.O_RDONLY) for s in segments] + [handle]

    def append(self, lines: Sequence[str]) -> list[int]:
        """Hand the lines to the operating system in one write; returns their addresses. After an
        OSError nothing more goes in, and each further call raises it anew."""
        addresses: list[int] = []
        at = self.end
        encoded = [line.encode() + b"\n" for line in lines]
        for line in encoded:
            addresses.append(at)
            at += len(line)
        # Behind half a line every address would be wrong. It cannot be cut off either: a successor
        # may have counted the whole lines before it.
        with self._lasting():
            _write_all(self._handles[-1], b"".join(encoded))
        self.end = at
        return addresses

    @contextlib.contextmanager
    def _lasting(self) -> Generator[None]:
        if self._failed is not None:
            raise OSError(self._failed.errno, self._failed.strerror, str(self._segments[-1].path))
        try:
            yield
        except OSError as error:
            self._failed = error
            raise

    def read(self, address: int) -> str:
        """The line at an address that `append` or `replay` gave."""
        number = bisect.bisect_right(self._starts, address) - 1
        offset = address - self._starts[number]
        length = _LINE_BYTES
        while True:
            data = os.pread(self._handles[number], length, offset)
            end = data.find(b"\n")
            if end >= 0:
                return data[:end].decode()
            assert len(data) == length, f"no line at {address}"
            length *= 2

    def replay(self, start: int = 0) -> Iterator[tuple[int, str]]:
        """(address, line) of all that was there when the log was opened, from `start` on."""
        for number, segment in enumerate(self._segments[:-1]):
            if segment.end > start:
                yield from self._lines(number, segment, max(start, segment.start))

    def _lines(self, number: int, segment: Segment, start: int) -> Iterator[tuple[int, str]]:
        return _lines(self._handles[number], segment, start)

    def sync(self) -> None:
        """Have it on the disk. After an OSError, here or in `append`, nothing may build on what
        was not: it raises that again."""
        with self._lasting():
            os.fsync(self._handles[-1])

    def close(self) -> None:
        for handle in self._handles:
            os.close(handle)
        self._handles = []


def lines_of(folder: Path, start: int = 0) -> Iterator[tuple[int, str]]:
    """(address, line) of a log as it lies there, without owning it. Raises UserError for damage."""
    for segment in _read_segments(folder):
        if segment.end > start:
            handle = os.open(segment.path, os.O_RDONLY)
            try:
                yield from _lines(handle, segment, max(start, segment.start))
            finally:
                os.close(handle)


def _lines(handle: int, segment: Segment, start: int) -> Iterator[tuple[int, str]]:
    at, rest = start, b""
    while at + len(rest) < segment.end:
        want = min(_BLOCK, segment.end - at - len(rest))
        data = rest + os.pread(handle, want, at + len(rest) - segment.start)
        if len(data) == len(rest):
            folder = segment.path.parent
            raise UserError(f"{segment.path} was cut short; {_MEND.format(folder)}")
        *lines, rest = data.split(b"\n")
        for line in lines:
            if at > segment.start:  # the head is the log's own
                yield at, line.decode(errors="replace")
            at += len(line) + 1


def _read_segments(folder: Path) -> list[Segment]:
    heads: list[tuple[Path, int]] = []
    for path in sorted(folder.glob("log-*.log")):
        if not path.is_file():
            raise UserError(f"{path} is no file; {_MEND.format(folder)}")
        with path.open("rb") as file:
            head = file.readline(_LINE_BYTES)
        if not head.endswith(b"\n") and len(head) < _HEAD_BYTES:  # killed before it owned anything
            path.unlink()
            continue
        try:
            heads.append((path, int(json.loads(head)["start"])))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise UserError(f"{path} is damaged; {_MEND.format(folder)}") from None
    ends = [start for _, start in heads[1:]]
    if heads:
        path, start = heads[-1]
        ends.append(start + _whole_lines(path))
    if heads and heads[0][1] != 0:
        raise UserError(f"the beginning of the log in {folder} is gone; {_MEND.format(folder)}")
    segments: list[Segment] = []
    for (path, start), end in zip(heads, ends, strict=True):
        if not 0 <= end - start <= path.stat().st_size:
            raise UserError(f"{path} was cut short; {_MEND.format(folder)}")
        segments.append(Segment(path, start, end))
    return segments


def _whole_lines(path: Path) -> int:
    """Bytes up to the last line end: what comes behind it, a kill has torn."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _LINE_BYTES)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def logged_ends(folder: Path) -> dict[str, int]:
    """How much of each WARC file the log in a shard's folder knows: what a new owner saves first,
    so that then `bytes_in_warc` tells the truth."""
    try:
        snapshot = read_snapshot(folder)
    except DamagedSnapshotError:  # the frontier will speak of it
        snapshot = Snapshot()
    ends = dict(snapshot.tally.warc_ends)
    for _, line in lines_of(folder, snapshot.end):
        if line.startswith("="):
            with contextlib.suppress(ValueError):  # damage, of which the frontier will speak
                _, item = Archived.of(line)
                ends[item.warc] = max(item.end, ends.get(item.warc, 0))
    return ends
