"""WARC files out: warcinfo, request and response records, gzip per record, rotated by size.

The file being written ends in `.open`; a finished one is renamed and never changes. After a kill
the open file is cut back to the last record that the crawl's log knows. ISO 28500:2017.
"""

import base64
import dataclasses
import datetime as dt
import hashlib
import io
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from warcio.recordloader import ArcWarcRecord
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

_OPEN = ".open"


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A request and its response as they passed over the wire; `body` is free of chunking only.

    `response_head` and `request` end in a blank line.
    """

    url: str
    fetched_at: dt.datetime
    ip: str | None
    request: bytes
    response_head: bytes
    body: bytes


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an exchange was written: file name, and the offset behind its last record."""

    name: str
    end: int


class WarcSeries:
    """Files `{prefix}-00000.warc.gz`, `{prefix}-00001.warc.gz` … in one local folder."""

    def __init__(
        self, folder: Path, prefix: str, software: str, max_bytes: int, known: Mapping[str, int]
    ) -> None:
        """Open for writing behind what `known` (name -> end offset) says is in the log.

        What the files hold beyond that was never logged: it is cut off.
        """
        self.folder, self.prefix, self.software = folder, prefix, software
        self.max_bytes = max_bytes
        self._file: IO[bytes] | None = None
        self._name = ""
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob(f"{prefix}-*.warc.gz{_OPEN}")):
            self._recover(path, known.get(path.name.removesuffix(_OPEN), 0))

    @staticmethod
    def size(folder: Path, name: str) -> int:
        """Bytes on disk of a file of the series, finished or open; 0 if it is not there."""
        for path in (folder / name, folder / (name + _OPEN)):
            if path.exists():
                return path.stat().st_size
        return 0

    def finished(self) -> list[str]:
        """Names of the finished files, in order."""
        return sorted(path.name for path in self.folder.glob(f"{self.prefix}-*.warc.gz"))

    def write(self, exchange: Exchange) -> Place:
        """Append the two records and hand them to the operating system."""
        file = self._file or self._start()
        _append(file, *_records(exchange))
        return Place(self._name, file.tell())

    def rotate_if_full(self) -> None:
        """Call it once the log knows the last write: a finished file holds no unlogged record."""
        if self._file is not None and self._file.tell() >= self.max_bytes:
            self.finish()

    def sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Close the open file, if any, and give it its final name."""
        if self._file is None:
            return
        self.sync()
        self.close()
        (self.folder / (self._name + _OPEN)).rename(self.folder / self._name)

    def close(self) -> None:
        """Leave the open file as it is, for a later run to go on with."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _recover(self, path: Path, end: int) -> None:
        if end == 0 or self._file is not None:
            path.unlink()
            return
        os.truncate(path, end)
        self._name = path.name.removesuffix(_OPEN)
        self._file = path.open("ab", buffering=0)

    def _start(self) -> IO[bytes]:
        number = len(self.finished())
        self._name = f"{self.prefix}-{number:05d}.warc.gz"
        file = (self.folder / (self._name + _OPEN)).open("ab", buffering=0)
        self._file = file
        text = f"software: {self.software}\r\nformat: WARC File Format 1.1\r\n"
        headers = [("WARC-Filename", self._name)]
        info = _record("warcinfo", "application/warc-fields", text.encode(), headers, _now())
        _append(file, info)
        return file


def _append(file: IO[bytes], *records: ArcWarcRecord) -> None:
    members = io.BytesIO()
    for record in records:
        WARCWriter(members, gzip=True, warc_version="1.1").write_record(record)
    view = members.getbuffer()
    while view:
        view = view[file.write(view) :]


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _records(exchange: Exchange) -> tuple[ArcWarcRecord, ArcWarcRecord]:
    target = [("WARC-Target-URI", exchange.url)]
    if exchange.ip:
        target.append(("WARC-IP-Address", exchange.ip))
    digest = [("WARC-Payload-Digest", _digest(exchange.body))]
    no_payload = [("WARC-Payload-Digest", _digest(b""))]  # else warcio puts in the block's
    block = exchange.response_head + exchange.body
    http = "application/http; msgtype="
    at = exchange.fetched_at
    response = _record("response", http + "response", block, target + digest, at)
    together = [("WARC-Concurrent-To", str(response.rec_headers.get_header("WARC-Record-ID")))]
    headers = target + together + no_payload
    request = _record("request", http + "request", exchange.request, headers, at)
    return request, response


def _record(
    kind: str, content_type: str, block: bytes, headers: Sequence[tuple[str, str]], at: dt.datetime
) -> ArcWarcRecord:
    """A record whose block is these very bytes."""
    fields = [
        ("WARC-Type", kind),
        ("WARC-Record-ID", f"<urn:uuid:{uuid.uuid4()}>"),
        ("WARC-Date", at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")),
        *headers,
        ("WARC-Block-Digest", _digest(block)),
        ("Content-Type", content_type),
    ]
    return ArcWarcRecord(
        "warc",
        kind,
        StatusAndHeaders("WARC/1.1", fields, protocol=""),
        io.BytesIO(block),
        None,
        content_type,
        len(block),
    )


def _digest(data: bytes) -> str:
    return "sha256:" + base64.b32encode(hashlib.sha256(data).digest()).decode()
