"""Where a member of a gzip file ends, and what it holds of a WARC record.

What stands in a record's header is compared with this, for a header can lie. RFC 1952.
"""

import re
import zlib
from collections import deque
from collections.abc import Callable
from typing import IO

from fastwarc.warc import WarcRecord

MAX_HEAD_BYTES = 64 << 10
HEAD_END = re.compile(rb"\r?\n\r?\n")

_FIRST_WINDOW, _WINDOW = 16 << 10, 1 << 20  # bytes: most members are small
_MAX_MEMBER_BYTES = 16 << 30
_LINE_ENDS = b"\r\n"
_NEXT_BYTES = 5  # enough to know the WARC/ of another record


def member_end(
    file: IO[bytes], start: int, look: Callable[[bytes], None] | None = None
) -> int | None:
    """Where the gzip member that begins at `start` ends; None if it is torn or corrupt.

    `look` is called with each piece that it inflates to, of 1 MiB at most.
    """
    engine = zlib.decompressobj(31)
    file.seek(start)
    position, num_inflated, window = start, 0, _FIRST_WINDOW
    try:
        while block := file.read(window):
            position, window = position + len(block), min(2 * window, _WINDOW)
            while block and not engine.eof:
                piece = engine.decompress(block, _WINDOW)
                num_inflated += len(piece)
                if look is not None:
                    look(piece)
                block = engine.unconsumed_tail
                if num_inflated > _MAX_MEMBER_BYTES:
                    return None
            if engine.eof:
                return position - len(engine.unused_data)
    except zlib.error:
        return None
    return None


class MemberContent:
    """A member's content, added piece by piece, if its first record's block has `length` bytes.

    `num_bytes` is all of it, `block_start` where the record's header has ended (None: it has
    not), `behind` the first five bytes of what follows the block and its line ends.
    """

    def __init__(self, length: int) -> None:
        self.length, self.num_bytes = length, 0
        self.head, self.behind = b"", b""
        self.block_start: int | None = None

    def add(self, piece: bytes) -> None:
        at = self.num_bytes
        self.num_bytes += len(piece)
        if self.block_start is None:
            if len(self.head) > MAX_HEAD_BYTES:
                return
            piece, at = self.head + piece, 0
            first = len(piece) - len(piece.lstrip(_LINE_ENDS))
            blank = HEAD_END.search(piece, first)
            if blank is None:
                self.head = piece
                return
            self.head, self.block_start = piece[: blank.end()], blank.end()
        if len(self.behind) < _NEXT_BYTES:
            rest = piece[max(0, self.block_start + self.length - at) :]
            self.behind = (self.behind + rest).lstrip(_LINE_ENDS)[:_NEXT_BYTES]

    def has_head_of(self, record: WarcRecord) -> bool:
        """Whether the record's header fields, as far as they are ASCII, stand in the head."""
        return all(value.encode() in self.head for _, value in record.headers if value.isascii())


class RecentlyRead:
    """A file that is read through; its last four pieces are kept to be looked at again."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._pieces: deque[tuple[int, bytes]] = deque(maxlen=4)

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()
        piece = self._file.read(size)
        self._pieces.append((start, piece))
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seen(self, position: int, length: int) -> bytes | None:
        """Those bytes, if they were read lately."""
        found = b""
        for start, piece in self._pieces:
            at = position + len(found) - start
            if 0 <= at < len(piece):
                found += piece[at : at + length - len(found)]
        return found if len(found) == length else None
