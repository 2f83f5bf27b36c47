"""WARC files out: warcinfo, request, response, revisit and metadata records (ISO 28500:2017).

One gzip member a record; files rotate by size. A file being written ends in `.open`; a finished
one never changes and has its index (pipeline/cdxj.py) beside it. After a kill, the next writer
saves what the crawl's log knows of the open file, and begins a new one.
"""

import base64
import contextlib
import dataclasses
import datetime as dt
import functools
import hashlib
import os
import re
import urllib.parse
import uuid
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import IO, Literal

from isal import igzip_lib

from pipeline import cdxj
from pipeline.core import storage

GZIP_LEVEL = 1  # ISA-L's; against zlib's, in speed and size: benchmarks/crawl_choices.py
Profile = Literal["identical-payload-digest", "server-not-modified"]

_WARC = ".warc.gz"
_OPEN = ".open"
_CLAIMED = ".claimed"  # an open file that a successor took over and has not yet saved
_PROFILES = "http://netpreserve.org/warc/1.1/revisit/"
_WARC_1_1 = "http://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/"
_HTTP_REQUEST = "application/http; msgtype=request"
_HTTP_RESPONSE = "application/http; msgtype=response"
_FIELDS = "application/warc-fields"
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_URI = re.compile(r"[^!-~]")
_COPY_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A request and its response as they passed over the wire; `body` is free of chunking only.

    `response_head` and `request` end in a blank line. `metadata` (via, hopsFromSeed, fetchTimeMs …)
    becomes a record of its own. `body_digest` is the body's sha256, 32 bytes, from a caller who
    has it already.
    """

    url: str
    fetched_at: dt.datetime
    ip: str | None
    request: bytes
    response_head: bytes
    body: bytes
    metadata: Mapping[str, str] | None = None
    body_digest: bytes | None = None

    @functools.cached_property
    def body_sha256(self) -> bytes:
        """The body's sha256, 32 bytes, computed once."""
        return self.body_digest or hashlib.sha256(self.body).digest()


@dataclasses.dataclass(frozen=True)
class Original:
    """The earlier capture that a revisit record refers to: its URL, its time (or WARC-Date), and
    for a 304, which has no body, the sha256 of the capture's body (32 bytes), if it is known.
    """

    url: str
    date: dt.datetime | str
    body_sha256: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an exchange was written: file name, and the offset behind its last record.

    Its response (or revisit) record is the gzip member of `length` bytes at `offset`. Name and
    end alone tell two places apart.
    """

    name: str
    end: int
    offset: int = dataclasses.field(default=0, compare=False)
    length: int = dataclasses.field(default=0, compare=False)


class WarcSeries:
    """Files `{prefix}-00000.warc.gz`, `{prefix}-00001.warc.gz` … in one local folder."""

    def __init__(
        self,
        folder: Path,
        prefix: str,
        software: str,
        max_bytes: int,
        known: Mapping[str, int],
        *,
        info: Mapping[str, str] | None = None,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        """Save what earlier writers left open in the folder; the first write begins a new file.

        The folder belongs to this series alone, and `prefix` to this writer: it holds its epoch.
        `known` (name -> end offset) says how much of each file the log knows; the rest of an open
        file was never logged, and goes. `recovered` then tells how much of each was saved: less
        than `known` where the file was short or damaged (a power cut), never a part of a record.
        A writer that was taken over so can change no finished file, and gets FileNotFoundError
        from `finish`. `info` (operator, robots, http-header-user-agent …) goes into each file's
        warcinfo record, empty values left out.
        """
        self.folder, self.prefix, self.software = folder, prefix, software
        self.max_bytes, self.now = max_bytes, now
        self._info = {name: value for name, value in (info or {}).items() if value}
        self.recovered: dict[str, int] = {}
        self._file: IO[bytes] | None = None
        self._name, self._end = "", 0
        folder.mkdir(parents=True, exist_ok=True)
        self._index = cdxj.Index(folder)
        self._recover(known)
        own = re.compile(re.escape(prefix) + r"-(\d{5,})" + re.escape(_WARC))
        numbers = [int(found[1]) for name in self.finished() if (found := own.fullmatch(name))]
        self._number = max(numbers, default=-1) + 1

    @staticmethod
    def size(folder: Path, name: str) -> int:
        """Bytes on disk of a file of the series, finished or not; 0 if it is not there."""
        for path in (folder / name, folder / (name + _OPEN), folder / (name + _CLAIMED)):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return 0

    def finished(self) -> list[str]:
        """Names of the folder's finished files, in order."""
        return self._names("")

    def write(self, exchange: Exchange) -> Place:
        """Append request, response and metadata records, and hand them to the operating system.

        After an OSError (a full disk) the open file is left to the next start's recovery.
        """
        digest = _digest(exchange.body_sha256)
        return self._write(exchange, "response", "", digest, exchange.body)

    def write_revisit(self, exchange: Exchange, original: Original, profile: Profile) -> Place:
        """As `write`, for a response that brought nothing new: its head alone is kept.

        `identical-payload-digest`: the body is the original's, and its digest is in the record.
        `server-not-modified`: a 304; the digest is the original's, if it is given.
        """
        fields = (
            f"WARC-Profile: {_PROFILES}{profile}\r\n"
            f"WARC-Refers-To-Target-URI: {_uri(original.url)}\r\n"
            f"WARC-Refers-To-Date: {_date(original.date)}\r\n"
        )
        if profile == "identical-payload-digest":
            sha256 = exchange.body_sha256
            fields += "WARC-Truncated: length\r\n"
        else:
            sha256 = original.body_sha256
        return self._write(exchange, "revisit", fields, _digest(sha256) if sha256 else "", b"")

    def rotate_if_full(self) -> None:
        """Call it once the log knows the last write: a finished file holds no unlogged record."""
        if self._file is not None and self._end >= self.max_bytes:
            self.finish()

    def sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Close the open file, if any, and give it its final name and its index.

        Raises FileNotFoundError if another writer took the file over.
        """
        if self._file is None:
            return
        self.sync()
        final = self.folder / self._name
        with _indexed(final, self._index):
            final.with_name(final.name + _OPEN).rename(final)
        self.close()

    def close(self) -> None:
        """Leave the open file as it is, for the next writer to save."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._index.close()

    def _write(self, exchange: Exchange, kind: str, fields: str, digest: str, body: bytes) -> Place:
        url, date = _uri(exchange.url), _date(exchange.fetched_at)
        target = f"WARC-Target-URI: {url}\r\n"
        if exchange.ip:
            target += f"WARC-IP-Address: {_one_line(exchange.ip)}\r\n"
        response_id = _new_id()
        together = f"{target}WARC-Concurrent-To: {response_id}\r\n"
        if digest:
            fields += f"WARC-Payload-Digest: {digest}\r\n"
        head = exchange.response_head
        request = _member("request", date, together, _HTTP_REQUEST, exchange.request)
        response = _member(kind, date, target + fields, _HTTP_RESPONSE, head, body, response_id)
        metadata = b""
        if exchange.metadata:
            block = _warc_fields(exchange.metadata)
            metadata = _member("metadata", date, together, _FIELDS, block)
        if self._file is None:
            self._start()
        offset, length = self._end + len(request), len(response)
        self._append(request + response + metadata)
        self._index.add(cdxj.line(kind, url, date, head, digest, length, offset, self._name))
        return Place(self._name, self._end, offset, length)

    def _start(self) -> None:
        self._name = f"{self.prefix}-{self._number:05d}{_WARC}"
        self._file = (self.folder / (self._name + _OPEN)).open("xb", buffering=0)
        self._number += 1
        self._end, self._index = 0, cdxj.Index(self.folder)
        about = {
            "software": self.software,
            "format": "WARC File Format 1.1",
            "conformsTo": _WARC_1_1,
        }
        block = _warc_fields({**about, **self._info})
        name = f"WARC-Filename: {_one_line(self._name)}\r\n"
        self._append(_member("warcinfo", _date(self.now()), name, _FIELDS, block))

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            self.close()  # it may end in half a record: nothing more goes behind it
            raise
        self._end += len(data)

    def _names(self, suffix: str) -> list[str]:
        found = (path.name for path in self.folder.iterdir() if path.name.endswith(_WARC + suffix))
        return sorted(name.removesuffix(suffix) for name in found)

    def _recover(self, known: Mapping[str, int]) -> None:
        for path in self.folder.glob(f".*{_WARC}*.tmp"):  # a writer was killed while it finished
            path.unlink(missing_ok=True)
        for name in self._names(_OPEN):
            # The rename decides: an owner who is alive after all can no longer finish the file.
            with contextlib.suppress(FileNotFoundError):  # or else it just did
                (self.folder / (name + _OPEN)).rename(self.folder / (name + _CLAIMED))
        for name in self._names(_CLAIMED):
            self._save(name, known.get(name, 0))
        for name in self.finished():
            if not (self.folder / (name + cdxj.SUFFIX)).exists():
                cdxj.index_file(self.folder / name)

    def _save(self, name: str, end: int) -> None:
        """Copy a file's known records to its final name: the owner may still hold the old one."""
        claimed, final = self.folder / (name + _CLAIMED), self.folder / name
        if not final.exists():
            with contextlib.closing(cdxj.Index(self.folder)) as index:
                whole = cdxj.scan(claimed, index, name, end)
                if whole:
                    # `create`: what is finished is never replaced, not even by a late successor
                    with (
                        _indexed(final, index),
                        storage.atomic_file(str(final), mode="create") as temporary,
                    ):
                        _copy(claimed, temporary, whole)
            self.recovered[name] = whole
        claimed.unlink(missing_ok=True)


@contextlib.contextmanager
def _indexed(final: Path, index: cdxj.Index) -> Generator[None]:
    """The index is on the disk before the block (a full disk shows now), and in place after it."""
    with storage.atomic_file(str(final) + cdxj.SUFFIX) as temporary:
        index.write(temporary)
        storage.fsync(temporary)
        yield


def _copy(source: Path, target: Path, length: int) -> None:
    with source.open("rb") as old, target.open("wb") as new:
        while length and (block := old.read(min(length, _COPY_BYTES))):
            new.write(block)
            length -= len(block)


def _member(
    kind: str,
    date: str,
    fields: str,
    content_type: str,
    block: bytes,
    more: bytes = b"",
    record_id: str | None = None,
) -> bytes:
    """A record as a gzip member; its block is `block` and `more`, these very bytes.

    It has no WARC-Block-Digest, which is optional: gzip's checksum covers header and block, and
    two more digests would cost a fifth of the time of writing a page.
    """
    header = (
        f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Record-ID: {record_id or _new_id()}\r\n"
        f"WARC-Date: {date}\r\n{fields}"
        f"Content-Type: {content_type}\r\nContent-Length: {len(block) + len(more)}\r\n\r\n"
    )
    record = b"".join((header.encode(), block, more, b"\r\n\r\n"))
    return igzip_lib.compress(record, GZIP_LEVEL, igzip_lib.COMP_GZIP)


def _new_id() -> str:
    return f"<urn:uuid:{uuid.uuid4()}>"


def _date(at: dt.datetime | str) -> str:
    if isinstance(at, str):
        at = dt.datetime.fromisoformat(at)
    return at.astimezone(dt.UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def _digest(sha256: bytes) -> str:
    return "sha256:" + base64.b32encode(sha256).decode()


def _uri(url: str) -> str:
    """The URL with what must not stand in a header field (CR, LF, spaces …) percent-encoded."""
    return _NOT_URI.sub(lambda found: urllib.parse.quote(found[0], errors="replace"), url)


def _one_line(value: str) -> str:
    if value.isprintable():
        return value
    return "".join(sign if sign.isprintable() else " " for sign in value)


def _warc_fields(fields: Mapping[str, str]) -> bytes:
    """application/warc-fields. A value stays on its line; ValueError for a name that is none."""
    for name in fields:
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a field name: letters, digits and hyphens")
    return "".join(f"{name}: {_one_line(value)}\r\n" for name, value in fields.items()).encode()
