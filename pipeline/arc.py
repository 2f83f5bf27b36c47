"""ARC files in: the Internet Archive's format before WARC, plain or gzip per record, versions 1, 2.

https://archive.org/web/researcher/ArcFileFormat.php. A record is a line (URL, IP address, date,
content type, length), then that many bytes, then a line feed. What is damaged is counted.
"""

import datetime as dt
import io
import re
import zlib
from collections.abc import Generator, Iterator
from typing import IO, NamedTuple

from pipeline.archived_response import Item, WarcDamage, WarcResponse, read_response

MAX_DAMAGE = 1000  # then the file is given up: it may be crafted to be read again and again

_GZIP = b"\x1f\x8b\x08"
_MAX_LINE = 64 << 10
_BLOCK = 256 << 10
_MAX_MEMBER_BYTES = 16 << 30
_FEWEST_FIELDS, _MOST_FIELDS = 4, 9  # behind the URL: version 1 has 4, version 2 has 9
_IP = re.compile(rb"\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]{2,39}")
_DATE = re.compile(rb"\d{12,18}")
_ADDRESS_AND_DATE = re.compile(rb" \d{1,3}(?:\.\d{1,3}){3} \d{12,18} ")
_WEB = re.compile(rb"https?:", re.IGNORECASE)
_SCHEME = re.compile(rb"[a-z][a-z0-9+.-]{1,20}:", re.IGNORECASE)


class _Header(NamedTuple):
    url: str
    archived_at: str | None
    length: int


class _Held(NamedTuple):
    """The newest record, until it is known that it ended well."""

    item: Item | None
    start: int
    block_start: int
    block_end: int


class ArcReader:
    """One ARC file; `file` is seekable."""

    def __init__(
        self, url: str, file: IO[bytes], max_block_bytes: int, max_payload_bytes: int
    ) -> None:
        self.url, self.file = url, file
        self.max_block_bytes, self.max_payload_bytes = max_block_bytes, max_payload_bytes

    def items(self) -> Iterator[Item]:
        """Every HTTP response, and one item for each damaged place."""
        is_gzip = self._peek(0, len(_GZIP)) == _GZIP
        num_damaged = 0
        for item in self._members() if is_gzip else self._plain():
            yield item
            if isinstance(item, WarcDamage):
                num_damaged += 1
                if num_damaged == MAX_DAMAGE:
                    reason = f"given up after {MAX_DAMAGE} damaged places"
                    yield WarcDamage(self.url, item.offset, reason)
                    return

    def _plain(self) -> Iterator[Item]:
        size = self.file.seek(0, 2)
        self.file.seek(0)
        held: _Held | None = None
        while line := self.file.readline(_MAX_LINE):
            if not line.strip():
                continue
            start = self.file.tell() - len(line)
            header = _header(line)
            if header is None:
                found = yield from self._close_torn(held, start)
                held = None
                if found is None:
                    return
                self.file.seek(found)
                continue
            if held and held.item:
                yield held.item
            block_start = self.file.tell()
            if block_start + header.length > size:
                reason = (
                    f"record of {header.length:,} bytes, and only {size - block_start:,} follow"
                )
                yield WarcDamage(self.url, start, reason)
                held, found = None, self._find_header()
                if found is None:
                    return
                self.file.seek(found)
                continue
            held = _Held(
                self._record(self.file, header, start), start, block_start, self.file.tell()
            )
        if held and held.item:
            yield held.item

    def _close_torn(self, held: _Held | None, start: int) -> Generator[Item, None, int | None]:
        """No record begins at `start`; returns where the next one does.

        The record before may be longer or shorter than it says: look from its head on.
        """
        self.file.seek(held.block_start if held else start + 1)
        found = self._find_header()
        stands = held is not None and (found is None or held.block_end <= found)
        if held and held.item and stands:
            yield held.item
        at = held.block_end if held and stands else held.start if held else start
        yield WarcDamage(self.url, at, "no ARC record where one should begin")
        return found

    def _members(self) -> Iterator[Item]:
        position: int | None = 0
        while position is not None and (magic := self._peek(position, len(_GZIP))):
            if magic != _GZIP:
                if magic.strip(b"\0\r\n"):
                    yield WarcDamage(self.url, position, "no gzip member where one should begin")
                position = self._next_member(position + 1)
                continue
            member = _Member(self.file, position)
            held: Item | None = None
            num_records = 0
            try:
                for item in self._in_member(io.BufferedReader(member, _BLOCK), position):
                    if held is not None:
                        yield held
                    held, num_records = item, num_records + 1
            except (zlib.error, EOFError) as error:
                if held is not None and (num_records > 1 or isinstance(held, WarcDamage)):
                    yield held
                yield WarcDamage(self.url, position, str(error))
                position = self._next_member(position + 1)
                continue
            if held is not None:
                yield held
            position = member.end

    def _in_member(self, stream: io.BufferedReader, offset: int) -> Iterator[Item]:
        """The records of one gzip member; behind damage, those that a sound line begins."""
        is_lost = False
        while line := stream.readline(_MAX_LINE):
            header = _header(line)
            if header is None:
                if line.strip() and not is_lost:
                    is_lost = True
                    reason = "no ARC record where one should begin"
                    yield WarcDamage(self.url, offset, reason)
                continue
            is_lost = False
            item = self._record(stream, header, offset)
            if item is not None:
                yield item

    def _record(self, stream: IO[bytes], header: _Header, offset: int) -> Item | None:
        """None for what is no HTTP response: the file's own description, a DNS answer."""
        if header.length > self.max_block_bytes:
            _skip(stream, header.length)
            reason = f"record over the limit: {header.length:,} bytes"
            return WarcDamage(self.url, offset, reason)
        block = stream.read(header.length)
        if len(block) < header.length:
            reason = f"record cut off: {len(block):,} of {header.length:,} bytes"
            return WarcDamage(self.url, offset, reason)
        if not header.url.lower().startswith(("http:", "https:")):
            return None
        found = read_response(
            header.url,
            header.archived_at,
            offset,
            block,
            is_truncated=False,
            max_payload_bytes=self.max_payload_bytes,
        )
        return found if isinstance(found, WarcResponse) else WarcDamage(self.url, offset, found)

    def _find_header(self) -> int | None:
        """The offset, from where the file stands, at which the next record may begin."""
        while line := self.file.readline(_MAX_LINE):
            at = 0 if _header(line) is not None else _behind_a_torn_record(line)
            if at is not None:
                return self.file.tell() - len(line) + at
        return None

    def _next_member(self, position: int) -> int | None:
        """The next offset at which a gzip member with a record in it may begin."""
        while window := self._peek(position, _BLOCK):
            at = window.find(_GZIP)
            while at >= 0:
                try:
                    head = self._peek(position + at, 4096)
                    if _SCHEME.match(zlib.decompressobj(31).decompress(head, 64)):
                        return position + at
                except zlib.error:
                    pass
                at = window.find(_GZIP, at + 1)
            position += max(1, len(window) - len(_GZIP) + 1)
        return None

    def _peek(self, position: int, length: int) -> bytes:
        self.file.seek(position)
        return self.file.read(length)


class _Member(io.RawIOBase):
    """The inflated bytes of the gzip member at `position`; then `end` is where it ends.

    Reading raises zlib.error for a corrupt member, EOFError for a torn one.
    """

    def __init__(self, file: IO[bytes], position: int) -> None:
        self._file, self._position, self._at = file, position, position
        self._engine = zlib.decompressobj(31)
        self._left = b""
        self._num_inflated = 0
        self.end: int | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]  # BufferedReader gives a memoryview
        while self.end is None:
            if not self._left:
                self._file.seek(self._at)
                self._left = self._file.read(_BLOCK)
                self._at += len(self._left)
                if not self._left:
                    raise EOFError("torn gzip member")
            data = self._engine.decompress(self._left, len(buffer))
            self._left = self._engine.unconsumed_tail
            if self._engine.eof:
                self.end = self._at - len(self._engine.unused_data)
            self._num_inflated += len(data)
            if self._num_inflated > _MAX_MEMBER_BYTES:
                raise EOFError("gzip member inflates beyond all bounds")
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0


def _header(line: bytes) -> _Header | None:
    """A record's first line, read from its right end: URLs of old crawls hold blanks."""
    if not line.endswith(b"\n") or not _SCHEME.match(line):
        return None
    line = line.rstrip(b"\r\n")
    for count in range(_FEWEST_FIELDS, _MOST_FIELDS + 1):
        url, *fields = line.rsplit(b" ", count)
        if len(fields) < count:
            return None
        if _IP.fullmatch(fields[0]) and _DATE.fullmatch(fields[1]):
            length = fields[-1]
            if not length.isdigit() or len(length) > 15:
                return None
            return _Header(
                url.decode("utf-8", "replace").strip(), _iso(fields[1][:14]), int(length)
            )
    return None


def _behind_a_torn_record(line: bytes) -> int | None:
    """Where in the line a record's first line begins, the record before having no end."""
    for match in _ADDRESS_AND_DATE.finditer(line):
        blank = line.rfind(b" ", 0, match.start()) + 1
        scheme = _WEB.search(line, blank, match.start())
        if scheme and _header(line[scheme.start() :]):
            return scheme.start()
    return None


def _iso(digits: bytes) -> str | None:
    """`20140216050221` as ISO 8601."""
    try:
        when = dt.datetime.strptime(digits.decode(), "%Y%m%d%H%M%S")  # noqa: DTZ007  ARC dates are UTC
    except ValueError:
        return None
    return when.isoformat() + "Z"


def _skip(stream: IO[bytes], length: int) -> None:
    while length > 0 and (block := stream.read(min(length, _BLOCK))):
        length -= len(block)
