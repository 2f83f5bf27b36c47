"""WARC files in: every readable response of a file, and one counted item for each damaged place.

fastwarc reads; what it does not tell (a member torn at the end of the file, a Content-Length that
is not its member's, where to read on) is found out here, by looking at the bytes around the place.
ISO 28500:2017.
"""

import os
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from functools import partial
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
from pipeline.gzip_members import HEAD_END, MAX_HEAD_BYTES, MemberContent, RecentlyRead, member_end
from pipeline.ranges import RangeClient, open_archive

__all__ = ["Item", "WarcDamage", "WarcResponse", "charset_of", "iter_responses", "mime_type"]

MAX_BLOCK_BYTES = 256 << 20  # a larger record is a damage item
MAX_PAYLOAD_BYTES = 64 << 20  # likewise a body that inflates beyond this
MAX_DAMAGE = 1000  # then the file is given up: it may be crafted to be read again and again

_WINDOW = 1 << 20
_MAGIC = {"gzip": b"\x1f\x8b\x08", "lz4": b"\x04\x22\x4d\x18", "zstd": b"\x28\xb5\x2f\xfd"}
_PLAIN, _ARC = b"WARC/", b"filedesc:"
_RESPONSE, _CONVERSION = WarcRecordType.response, WarcRecordType.conversion
_SMALL_HEAD = 160  # bytes; real heads are longer, a smaller one costs a second look
_BUFFER = 256 << 10  # 4% faster than fastwarc's 64 kB
_MAX_LOOKS, _FREE_LOOK_BYTES = 4, 16 << 20
_RECORD_ID = re.compile(rb"(?im)^warc-record-id:[ \t]*(\S+)[ \t]*\r?\n")
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
        try:
            for _ in range(MAX_DAMAGE):
                position = yield from archive.read_run(position)
                if position is None:
                    return
            yield WarcDamage(url, position, f"given up after {MAX_DAMAGE} damaged places")
        except _LookedAtTooOftenError as error:
            yield WarcDamage(url, error.offset, "given up: its members were looked at too often")


class _LookedAtTooOftenError(Exception):
    """Records behind one another in a member were made to look like the next member's first."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


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
        self.is_wary = False  # after a wrong Content-Length each is checked before it is trusted
        self.num_looked_at = 0  # bytes of members
        self.is_local = storage.is_local(url)
        self.recent = RecentlyRead(file)
        self.size = probe.seek(0, 2)
        start = self._peek(0, 8)
        names = [name for name, magic in _MAGIC.items() if start.startswith(magic)]
        self.kind = names[0] if names else "plain"
        self.magic = _MAGIC.get(self.kind, _PLAIN)
        self.last_four: Callable[[int], bytes] = self._last_four
        if self.is_local:  # in C: this is done for every record
            self.last_four = partial(os.pread, probe.fileno(), 4)

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
        last: WarcRecord | None = None
        length, is_gzip, from_bytes = 0, self.kind == "gzip", int.from_bytes
        try:
            for record in ArchiveIterator(
                self._source(position), parse_http=False, buffer_size=_BUFFER
            ):
                next_start = record.stream_pos
                # The four bytes before it are the inflated length of the member that ends there
                # (RFC 1952): header and block, or the length reached over a member into this one.
                if (
                    last is not None
                    and is_gzip
                    and next_start > start
                    and from_bytes(self.last_four(next_start - 4), "little") < length + _SMALL_HEAD
                    and (lie := self._wrong_length(last)) is not None
                ):
                    return (yield from self._read_past(lie))
                if held is not None:
                    yield held
                elif self.pending is not None:
                    yield self.pending  # the trouble lay in the tail of the member before
                start, held, self.pending = next_start, None, None
                last, length = record, record.content_length
                if self.is_wary and (lie := self._wrong_length(record)) is not None:
                    return (yield from self._read_past(lie))
                held = self._item(record, start, length)
        except OSError as failure:
            if failure.errno is not None:
                raise  # the disk's or the network's, not the archive's
            error = str(failure)
        if last is None:
            self.pending = None  # the trouble lies here
            yield WarcDamage(self.url, position, self._first_words(position, error))
            return self._next_start(position + 1)
        if (lie := self._wrong_length(last)) is not None:
            return (yield from self._read_past(lie))
        return (yield from self._close_run(position, start, held, error))

    def _source(self, position: int) -> Path | BinaryIO:
        """What fastwarc reads: a local file by its path if it can, 5% faster than through us."""
        if position == 0 and self.is_local:
            return storage.local_path(self.url).absolute()
        self.file.seek(position)
        return cast(BinaryIO, self.file if self.is_local else self.recent)

    def _read_past(self, lie: WarcDamage) -> Generator[Item, None, int | None]:
        """Report a wrong Content-Length; returns where the members go on, if they do.

        From here on lengths are checked first: a file full of such records would else be read
        to its end for each of them.
        """
        self.is_wary = True
        yield lie
        end = member_end(self.probe, lie.offset)
        return end if end is not None and self._peek(end, 64).strip() else None

    def _wrong_length(self, record: WarcRecord) -> WarcDamage | None:
        """The damage if a record's Content-Length is not what its own gzip member holds.

        None as well if that cannot be told: the member is torn, or the record is not its first.
        """
        start, length = record.stream_pos, record.content_length
        if self.kind != "gzip" or not self._may_be_head_of(start, record):
            return None
        end, content = self._look_at(start, length)
        if end is None or content.block_start is None or not content.has_head_of(record):
            return None
        num_missing = content.block_start + length - content.num_bytes
        if num_missing > 0:
            if self._goes_on(end, num_missing):
                return None
        elif not content.behind or content.behind == _PLAIN:
            return None
        num_held = max(0, content.num_bytes - content.block_start - len(b"\r\n\r\n"))
        reason = f"wrong Content-Length: {length:,} bytes, its member holds {num_held:,}"
        return WarcDamage(self.url, start, reason)

    def _may_be_head_of(self, start: int, record: WarcRecord) -> bool:
        """False for most records that are not the first of the member at `start`."""
        if self._peek(start, len(self.magic)) != self.magic:
            return False
        stated = _RECORD_ID.search(self._head(start, _WINDOW) or b"")
        its_own = record.headers.get("WARC-Record-ID") or ""
        return stated is None or stated[1].decode("ascii", "replace") == its_own.strip()

    def _look_at(self, start: int, length: int) -> tuple[int | None, MemberContent]:
        """Where the member ends, and what it holds; each member twice at most in sane files."""
        content = MemberContent(length)
        end = member_end(self.probe, start, content.add)
        self.num_looked_at += (self.probe.tell() if end is None else end) - start
        if self.num_looked_at > _MAX_LOOKS * self.size + _FREE_LOOK_BYTES:
            raise _LookedAtTooOftenError(start)
        return end, content

    def _goes_on(self, position: int, num_missing: int) -> bool:
        """Whether the members from `position` on carry a record on: none begins another one."""
        while num_missing > 0:
            if position >= self.size or self._begins_record(position):
                return False
            end, content = self._look_at(position, 0)
            if end is None:
                return False
            position, num_missing = end, num_missing - content.num_bytes
        return True

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

    def _item(self, record: WarcRecord, offset: int, length: int) -> Item | None:
        """None for a record that is neither an HTTP response nor a text made of one."""
        kind = record.record_type
        if kind != _RESPONSE and kind != _CONVERSION:
            return None
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
            end = (
                member_end(self.probe, position)
                if self.kind == "gzip"
                else self._record_end(position)
            )
            if end is None:
                break
            position, count = end, count + 1
        return position

    def _record_end(self, start: int) -> int | None:
        """Where the plain record ends, its blank lines included; None if it does not end well."""
        end = self._block_end(start)
        if end is None or end > self.size:
            return None
        tail = self._peek(end, 4)
        return end + len(tail) if b"\r\n\r\n".startswith(tail) else None

    def _block_end(self, start: int) -> int | None:
        head = self._peek(start, MAX_HEAD_BYTES)
        blank = HEAD_END.search(head)
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

    def _last_four(self, position: int) -> bytes:
        return self.recent.seen(position, 4) or self._peek(position, 4)

    def _peek(self, position: int, length: int) -> bytes:
        self.probe.seek(position)
        return self.probe.read(length)


def _read_block(record: WarcRecord, length: int) -> bytes:
    block = record.reader.read(length) if length else b""
    while len(block) < length and (more := record.reader.read(length - len(block))):
        block += more
    return block
