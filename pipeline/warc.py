"""WARC files in: every readable response of a file, and one counted item for each damaged place.

fastwarc reads; what it does not tell (a member torn at the end of the file, where to read on after
garbage) is found out here, by looking at the bytes around the place. ISO 28500:2017.
"""

import re
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

from fastwarc.warc import ArchiveIterator, WarcHeader, WarcRecord, WarcRecordType

from pipeline.arc import ArcReader
from pipeline.archived_response import (
    Item,
    WarcDamage,
    WarcResponse,
    charset_of,
    mime_type,
    read_conversion,
    read_response,
)
from pipeline.core import storage
from pipeline.ranges import RangeClient, open_archive

__all__ = ["Item", "WarcDamage", "WarcResponse", "charset_of", "iter_responses", "mime_type"]

MAX_BLOCK_BYTES = 256 << 20  # a larger record is a damage item
MAX_PAYLOAD_BYTES = 64 << 20  # likewise a body that inflates beyond this
MAX_DAMAGE = 1000  # then the file is given up: it may be crafted to be read again and again

_WINDOW = 1 << 20
_MAX_MEMBER_BYTES = 16 << 30
_MAX_HEAD_BYTES = 64 << 10
_MAGIC = {"gzip": b"\x1f\x8b\x08", "lz4": b"\x04\x22\x4d\x18", "zstd": b"\x28\xb5\x2f\xfd"}
_PLAIN, _ARC = b"WARC/", b"filedesc:"
_RESPONSE, _CONVERSION = WarcRecordType.response, WarcRecordType.conversion
_BUFFER = 256 << 10  # 4% faster than fastwarc's 64 kB
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CONTENT_LENGTH = re.compile(rb"(?im)^content-length:\s*(\d{1,15})\s*$")


def iter_responses(
    url: str,
    *,
    client: RangeClient | None = None,
    max_block_bytes: int = MAX_BLOCK_BYTES,
    max_payload_bytes: int = MAX_PAYLOAD_BYTES,
) -> Iterator[Item]:
    """Every response of a WARC, WET or ARC file, in order, and what is damaged.

    WARC may be plain, gzip, lz4 or zstd, ARC plain or gzip; `client` reads what lies behind
    HTTP(S). Damage is data, not an error; only a file that cannot be opened, a failing disk or
    a server that gives up raises (OSError).
    """
    with open_archive(url, client) as file, open_archive(url, client, ahead=0) as probe:
        archive = _Archive(url, file, probe, max_block_bytes, max_payload_bytes)
        if archive.size == 0:
            yield WarcDamage(url, 0, "empty file")
            return
        if archive.is_arc():
            yield from ArcReader(url, file, max_block_bytes, max_payload_bytes).items()
            return
        position: int | None = 0
        for _ in range(MAX_DAMAGE):
            position = yield from archive.read_run(position)
            if position is None:
                return
        yield WarcDamage(url, position, f"given up after {MAX_DAMAGE} damaged places")


class _Archive:
    """One open file: `file` is fastwarc's, `probe` looks around in it meanwhile."""

    def __init__(
        self,
        url: str,
        file: IO[bytes],
        probe: IO[bytes],
        max_block_bytes: int,
        max_payload_bytes: int,
    ) -> None:
        self.url, self.file, self.probe = url, file, probe
        self.max_block_bytes, self.max_payload_bytes = max_block_bytes, max_payload_bytes
        self.pending: WarcDamage | None = None  # in this record's member, or at the next one
        self.size = probe.seek(0, 2)
        start = self._peek(0, 8)
        names = [name for name, magic in _MAGIC.items() if start.startswith(magic)]
        self.kind = names[0] if names else "plain"
        self.magic = _MAGIC.get(self.kind, _PLAIN)

    def is_arc(self) -> bool:
        """By its first line; where that is damaged, by its name."""
        if self.kind not in ("gzip", "plain"):
            return False
        head = self._head(0, 512)
        if head is None or not head.startswith((_PLAIN, _ARC)):
            return self.url.endswith((".arc", ".arc.gz"))
        return head.startswith(_ARC)

    def read_run(self, position: int) -> Generator[Item, None, int | None]:
        """Read from `position` to the end or to damage; returns where to read on, if anywhere.

        The newest item is held back until it is known that its record ended well.
        """
        start, held, error = position, None, ""
        num_records = 0
        try:
            for record in ArchiveIterator(
                self._source(position), parse_http=False, buffer_size=_BUFFER
            ):
                if held is not None:
                    yield held
                elif self.pending is not None:
                    yield self.pending  # the trouble lay in the tail of the member before
                start, held, self.pending = record.stream_pos, None, None
                num_records += 1
                held = self._item(record)
        except OSError as failure:
            if failure.errno is not None:
                raise  # the disk's or the network's, not the archive's
            error = str(failure)
        if num_records == 0:
            self.pending = None  # the trouble lies here
            yield WarcDamage(self.url, position, self._first_words(position, error))
            return self._next_start(position + 1)
        return (yield from self._close_run(position, start, held, error))

    def _source(self, position: int) -> Path | BinaryIO:
        """What fastwarc reads: a local file by its path if it can, 5% faster than through us."""
        if position == 0 and storage.is_local(self.url):
            return storage.local_path(self.url).absolute()
        self.file.seek(position)
        return cast(BinaryIO, self.file)

    def _close_run(
        self, position: int, start: int, held: Item | None, error: str
    ) -> Generator[Item, None, int | None]:
        """What the end of a run means, the last record having begun at `start`."""
        own_member = self._peek(start, len(self.magic)) == self.magic
        # If one member holds many records, positions inside it are not to be had.
        anchor = start if own_member else position
        sound = self._sound_until(anchor, 1 if error else None)
        if not error and not self._peek(sound, 64).strip():
            if held is not None:
                yield held
            return None
        if sound > anchor:  # the last record is whole, the trouble comes behind it
            if held is not None:
                yield held
            if error and own_member and self._begins_record(sound):
                self.pending = WarcDamage(self.url, start, error)
                return sound
            yield WarcDamage(
                self.url, sound if sound < self.size else anchor, error or "torn record"
            )
            return self._next_start(max(sound, start) + 1)
        next_start = self._next_start(start + 1)
        if isinstance(held, WarcDamage):
            yield held
        else:
            if held is not None and self._stands_alone(start, own_member, next_start):
                yield held
            yield WarcDamage(self.url, start, error or "torn record")
        return next_start

    def _stands_alone(self, start: int, own_member: bool, next_start: int | None) -> bool:
        """Whether a record not closed as it should be is whole all the same.

        In plain files: its block ends before the next record begins (a wrong Content-Length).
        """
        if self.kind != "plain":
            return not own_member
        end = self._block_end(start)
        return end is not None and end <= self.size and (next_start is None or end <= next_start)

    def _item(self, record: WarcRecord) -> Item | None:
        """None for a record that is neither an HTTP response nor a text made of one."""
        kind = record.record_type
        if kind != _RESPONSE and kind != _CONVERSION:
            return None
        offset, length = record.stream_pos, record.content_length
        if length > self.max_block_bytes:
            return WarcDamage(self.url, offset, f"record over the limit: {length:,} bytes")
        block = _read_block(record, length)
        if len(block) < length:
            return WarcDamage(
                self.url, offset, f"record cut off: {len(block):,} of {length:,} bytes"
            )
        headers = record.headers
        url = (headers.get(WarcHeader.WARC_TARGET_URI) or "").strip().strip("<>")
        date = headers.get(WarcHeader.WARC_DATE)
        is_truncated = headers.get(WarcHeader.WARC_TRUNCATED) is not None
        if kind == _CONVERSION:
            if mime_type(headers.get(WarcHeader.CONTENT_TYPE) or "") != "text/plain":
                return None
            found = read_conversion(url, date, offset, block, is_truncated=is_truncated)
        elif block.startswith(b"HTTP/") or record.is_http:
            found = read_response(
                url,
                date,
                offset,
                block,
                is_truncated=is_truncated,
                max_payload_bytes=self.max_payload_bytes,
            )
        else:
            return None  # a DNS answer, say
        return WarcDamage(self.url, offset, found) if isinstance(found, str) else found

    def _first_words(self, position: int, error: str) -> str:
        head = self._head(position, 512)
        if head is None:
            return error or "damaged gzip member"
        if head.startswith(_ARC):
            return "not a WARC but an ARC file"
        if not head.startswith(_PLAIN):
            return f"not a WARC: begins with {head[:16]!r}"
        return error or "torn record header"

    def _sound_until(self, start: int, max_members: int | None) -> int:
        """The offset up to which the members (plain: records) from `start` on are whole.

        lz4 and zstd frames are not looked into: one lasts until what may begin the next.
        """
        if self.kind not in ("gzip", "plain"):
            return self.size if max_members is None else self._next_start(start + 1) or self.size
        position, count = start, 0
        while position < self.size and (max_members is None or count < max_members):
            end = self._member_end(position) if self.kind == "gzip" else self._record_end(position)
            if end is None:
                break
            position, count = end, count + 1
        return position

    def _member_end(self, start: int) -> int | None:
        """Where the gzip member that begins at `start` ends; None if it is torn or corrupt."""
        engine = zlib.decompressobj(31)
        self.probe.seek(start)
        position, num_inflated = start, 0
        try:
            while block := self.probe.read(_WINDOW):
                position += len(block)
                while block and not engine.eof:
                    num_inflated += len(engine.decompress(block, _WINDOW))
                    block = engine.unconsumed_tail
                    if num_inflated > _MAX_MEMBER_BYTES:
                        return None
                if engine.eof:
                    return position - len(engine.unused_data)
        except zlib.error:
            return None
        return None

    def _record_end(self, start: int) -> int | None:
        """Where the plain record ends, its blank lines included; None if it does not end well."""
        end = self._block_end(start)
        if end is None or end > self.size:
            return None
        tail = self._peek(end, 4)
        return end + len(tail) if b"\r\n\r\n".startswith(tail) else None

    def _block_end(self, start: int) -> int | None:
        head = self._peek(start, _MAX_HEAD_BYTES)
        blank = _HEAD_END.search(head)
        length = _CONTENT_LENGTH.search(head, 0, blank.end()) if blank else None
        if not head.startswith(_PLAIN) or blank is None or length is None:
            return None
        return start + blank.end() + int(length[1])

    def _next_start(self, position: int) -> int | None:
        """The next offset from `position` on at which a record may begin."""
        while position < self.size:
            window = self._peek(position, _WINDOW)
            at = window.find(self.magic)
            while at >= 0:
                if self._begins_record(position + at):
                    return position + at
                at = window.find(self.magic, at + 1)
            position += max(1, len(window) - len(self.magic) + 1)
        return None

    def _begins_record(self, position: int) -> bool:
        head = self._head(position, len(_PLAIN))
        expected = _PLAIN if self.kind == "gzip" else self.magic
        return head is not None and head.startswith(expected)

    def _head(self, position: int, length: int) -> bytes | None:
        """The first bytes there, inflated if the file is gzip; None if they do not inflate."""
        head = self._peek(position, 512)
        if self.kind == "gzip":
            try:
                head = zlib.decompressobj(31).decompress(head, length)
            except zlib.error:
                return None
        return head

    def _peek(self, position: int, length: int) -> bytes:
        self.probe.seek(position)
        return self.probe.read(length)


def _read_block(record: WarcRecord, length: int) -> bytes:
    block = record.reader.read(length) if length else b""
    while len(block) < length and (more := record.reader.read(length - len(block))):
        block += more
    return block
