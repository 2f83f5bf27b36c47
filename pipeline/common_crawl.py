"""Common Crawl by index query: the records of a site or pattern, fetched as byte ranges.

The index is a CDX server (`output=json`, paged) or an export of it: CDXJ, or Parquet from the
columnar index. What comes back is written as WARC files, member by member, byte for byte.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import posixpath
import sys
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any, cast

import pyarrow.parquet as pq

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.progress import Progress
from pipeline.ranges import RangeClient, RangeError, is_http

MAX_RECORD_BYTES = 256 << 20

_MAX_PAGE_BYTES = 256 << 20
_MAX_PAGES = 1_000_000  # four times the pages of Common Crawl's largest index
_MAX_REQUEST_BYTES = 8 << 20  # of merged ranges; a larger record goes alone
_BLOCK = 1 << 20
_MAX_INFLATED = 2 << 30
_PARQUET_COLUMNS = ("warc_filename", "warc_record_offset", "warc_record_length")


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Row:
    """Where a record lies: its file's key under the prefix, its first byte and its length."""

    filename: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclasses.dataclass(frozen=True)
class Fetched:
    """One WARC file made of rows. `rejected`: rows that are not in it, by reason."""

    name: str
    num_rows: int
    rejected: dict[str, int]


# ----------------------------------------------------------------------------------- the index


def query_index(
    client: RangeClient, server: str, pattern: str, filters: Sequence[str], folder: Path
) -> Iterator[Row | str]:
    """The rows that a CDX server has for a URL pattern, or what is wrong with one.

    Each page is kept in `folder`, so that a rerun asks for the missing ones only. Raises
    UserError if the server cannot be asked.
    """
    asked = [("url", pattern), ("output", "json"), *(("filter", text) for text in filters)]
    name = hashlib.sha256(json.dumps([server, asked]).encode()).hexdigest()[:16]
    first = _page(client, server, [*asked, ("showNumPages", "true")], folder / f"{name}-pages")
    try:
        num_pages = int(json.loads(first or b'{"pages": 0}')["pages"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"ingest.index: {server} does not answer as a CDX server does; it said {first[:80]!r}"
        ) from None
    for page in range(min(num_pages, _MAX_PAGES)):
        lines = _page(client, server, [*asked, ("page", str(page))], folder / f"{name}-{page:05d}")
        yield from _cdxj_rows(lines.splitlines())


def _page(client: RangeClient, server: str, asked: list[tuple[str, str]], kept: Path) -> bytes:
    if kept.exists():
        return kept.read_bytes()
    url = f"{server}?{urllib.parse.urlencode(asked)}"
    try:
        answer = client.read_all(url, _MAX_PAGE_BYTES)
    except RangeError as error:
        if error.reason != "status-404":  # this is how "no captures" is said
            raise UserError(
                f"ingest.index: {server} did not answer ({error.reason}); check the address, or"
                " rerun later: the pages that it gave are kept"
            ) from error
        answer = b""
    storage.write_bytes(str(kept), answer)
    return answer


def read_export(url: str) -> Iterator[Row | str]:
    """The rows of a CDXJ (plain or gzip) or Parquet file, or what is wrong with one."""
    with storage.open_read(url) as file:
        if url.endswith(".parquet"):
            yield from _parquet_rows(url, file)
        elif url.endswith(".gz"):
            yield from _cdxj_rows(_gunzipped_lines(file))
        else:
            yield from _cdxj_rows(iter(lambda: file.readline(_BLOCK), b""))


def _parquet_rows(url: str, file: IO[bytes]) -> Iterator[Row | str]:
    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        columns = [name if name in names else name.rpartition("_")[2] for name in _PARQUET_COLUMNS]
        batches = table.iter_batches(columns=columns)
        for batch in batches:
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield _row(*values)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"ingest.index: cannot read {url} ({error}); it needs the columns"
            f" {', '.join(_PARQUET_COLUMNS)}"
        ) from error


def _gunzipped_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Common Crawl's exports are many members long."""
    engine, rest = zlib.decompressobj(31), b""
    while data := file.read(_BLOCK):
        while data:
            try:
                rest += engine.decompress(data, _BLOCK)
            except zlib.error as error:
                raise UserError(f"ingest.index: the file is damaged ({error})") from error
            data = engine.unconsumed_tail
            if engine.eof:
                data, engine = engine.unused_data, zlib.decompressobj(31)
            *lines, rest = rest.split(b"\n")
            yield from lines
            if len(rest) > _BLOCK:
                raise UserError("ingest.index: a line of more than a megabyte; is it CDXJ?")
    yield rest


def _cdxj_rows(lines: Iterable[bytes]) -> Iterator[Row | str]:
    for line in lines:
        if not line.strip() or line.startswith(b"!"):
            continue
        try:
            fields: Any = json.loads(line[line.index(b"{") :])
            yield _row(fields["filename"], fields["offset"], fields["length"])
        except (ValueError, KeyError, TypeError, RecursionError):
            yield "index line not understood"


def _row(filename: Any, offset: Any, length: Any) -> Row | str:
    try:
        row = Row(sys.intern(str(filename)), int(offset), int(length))
    except (ValueError, TypeError):
        return "index line not understood"
    parts = row.filename.split("/")
    if not row.filename or ".." in parts or "" in parts or ":" in parts[0]:
        return "index line names no file"
    if row.offset < 0 or not 0 < row.length <= MAX_RECORD_BYTES:
        return "index line with an impossible range"
    return row


# ------------------------------------------------------------------------------------ the plan


def plan_files(rows: Iterable[Row | str], max_rows: int) -> tuple[list[Row], Counter[str]]:
    """The rows in order of their place, each once, and why others are left out."""
    rejected: Counter[str] = Counter()
    found: set[Row] = set()
    for row in rows:
        if isinstance(row, str):
            rejected[row] += 1
        elif row in found:
            rejected["named twice"] += 1
        else:
            found.add(row)
            if max_rows and len(found) >= max_rows:
                break
    kept: list[Row] = []
    for row in sorted(found):
        if kept and kept[-1].filename == row.filename and row.offset < kept[-1].end:
            rejected["overlaps another"] += 1
        else:
            kept.append(row)
    return kept, rejected


def split_by_size(rows: Sequence[Row], max_bytes: int) -> list[list[Row]]:
    """The rows of each output file: at most `max_bytes`, and at least one row."""
    files: list[list[Row]] = []
    size = 0
    for row in rows:
        if not files or size + row.length > max_bytes:
            files.append([])
            size = 0
        files[-1].append(row)
        size += row.length
    return files


def merge_adjacent(rows: Sequence[int], place: Sequence[Row], max_gap: int) -> list[list[int]]:
    """Rows (indices into `place`) that one request covers: of one file, with small gaps."""
    requests: list[list[int]] = []
    for index in rows:
        row = place[index]
        if requests:
            first, last = place[requests[-1][0]], place[requests[-1][-1]]
            is_near = first.filename == row.filename and 0 <= row.offset - last.end <= max_gap
            if is_near and row.end - first.offset <= _MAX_REQUEST_BYTES:
                requests[-1].append(index)
                continue
        requests.append([index])
    return requests


# ------------------------------------------------------------------------------------ fetching


class RangeFetcher:
    """Fetches rows into files of one folder; what is done is logged, so that a kill costs only
    the ranges in flight."""

    def __init__(
        self, client: RangeClient, prefix: str, folder: Path, parallel: int, max_gap: int
    ) -> None:
        self.client, self.prefix, self.folder = client, prefix, folder
        self.parallel, self.max_gap = parallel, max_gap

    def fetch(self, name: str, rows: Sequence[Row], progress: Progress) -> Fetched:
        """Make the file `name` of these rows, or find it made.

        The result depends on the rows alone. Raises UserError if the server stays busy.
        """
        receipt = self.folder / f"{name}.done.json"
        if receipt.exists():
            progress.skip(len(rows))
            return Fetched(**json.loads(receipt.read_text()))
        part, log = self.folder / f"{name}.part", self.folder / f"{name}.log"
        if (self.folder / name).exists() and not part.exists():
            (self.folder / name).rename(part)  # killed between the last rename and the receipt
        starts = _starts(rows)
        done = _read_log(log, part, rows, starts)
        progress.skip(len(done))
        missing = [index for index in range(len(rows)) if index not in done]
        with part.open("r+b" if part.exists() else "w+b") as file, log.open("ab", 0) as journal:
            for index, answer in self._fetch_all(rows, missing):
                done[index] = "" if isinstance(answer, bytes) else answer
                crc = 0
                if isinstance(answer, bytes):
                    os.pwrite(file.fileno(), answer, starts[index])
                    crc = zlib.crc32(answer)
                journal.write(json.dumps([index, done[index], crc]).encode() + b"\n")
                progress.advance(1)
        rejected = Counter(reason for reason in done.values() if reason)
        kept = [index for index in range(len(rows)) if not done[index]]
        _close_gaps(part, self.folder / name, rows, starts, kept)
        fetched = Fetched(name, len(kept), dict(sorted(rejected.items())))
        storage.write_bytes(str(receipt), json.dumps(dataclasses.asdict(fetched)).encode())
        part.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        return fetched

    def _fetch_all(
        self, rows: Sequence[Row], missing: Sequence[int]
    ) -> Generator[tuple[int, bytes | str]]:
        """(row, its bytes or why there are none), as they come."""
        upcoming = iter(merge_adjacent(missing, rows, self.max_gap))
        running: set[Future[list[tuple[int, bytes | str]]]] = set()
        with ThreadPoolExecutor(self.parallel, "range") as threads:
            try:
                while True:
                    while len(running) < self.parallel and (request := next(upcoming, None)):
                        running.add(threads.submit(self._request, rows, request))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def _request(self, rows: Sequence[Row], indices: list[int]) -> list[tuple[int, bytes | str]]:
        first, last = rows[indices[0]], rows[indices[-1]]
        url = self.prefix + first.filename
        try:
            data = self.client.read(url, first.offset, last.end - first.offset)
        except RangeError as error:
            if error.busy:
                raise UserError(
                    f"{url}: given up after many attempts ({error.reason}); rerun to go on:"
                    " what has come is kept, and fewer ingest.parallel may help"
                ) from error
            if len(indices) > 1:  # one row of them may be to blame
                return [pair for index in indices for pair in self._request(rows, [index])]
            return [(indices[0], error.reason)]
        answers: list[tuple[int, bytes | str]] = []
        for index in indices:
            at = rows[index].offset - first.offset
            member = data[at : at + rows[index].length]
            answers.append((index, member if _is_one_record(member) else "no whole WARC record"))
        return answers


def _is_one_record(member: bytes) -> bool:
    """Whether the bytes are one gzip member, to the last, with a WARC record in it."""
    engine = zlib.decompressobj(31)
    num_inflated, start, rest = 0, b"", member
    try:
        while rest and not engine.eof:
            piece = engine.decompress(rest, _BLOCK)
            rest = engine.unconsumed_tail
            start = start or piece[:5]
            num_inflated += len(piece)
            if num_inflated > _MAX_INFLATED:
                return False
    except zlib.error:
        return False
    return engine.eof and not engine.unused_data and start == b"WARC/"


def _starts(rows: Sequence[Row]) -> list[int]:
    starts, position = list[int](), 0
    for row in rows:
        starts.append(position)
        position += row.length
    return starts


def _read_log(log: Path, part: Path, rows: Sequence[Row], starts: Sequence[int]) -> dict[int, str]:
    """{row: "" or why it was rejected} of what an earlier run did and the disk still holds."""
    done: dict[int, str] = {}
    if not (log.exists() and part.exists()):
        return done
    lines = log.read_bytes().split(b"\n")
    with part.open("rb") as file:
        for line in lines:
            with contextlib.suppress(ValueError):  # torn by the kill
                index, reason, crc = cast(tuple[int, str, int], json.loads(line))
                file.seek(starts[index])
                if reason or zlib.crc32(file.read(rows[index].length)) == crc:
                    done[index] = reason
    if lines[-1]:
        with log.open("ab") as file:
            file.write(b"\n")
    return done


def _close_gaps(
    part: Path, target: Path, rows: Sequence[Row], starts: Sequence[int], kept: Sequence[int]
) -> None:
    if len(kept) == len(rows):
        storage.fsync(part)
        part.rename(target)
        return
    with part.open("rb") as source, storage.atomic_file(str(target)) as path, path.open("wb") as to:
        for index in kept:
            source.seek(starts[index])
            to.write(source.read(rows[index].length))


# ------------------------------------------------------------------------------------ by paths


def read_paths(client: RangeClient, url: str, prefix: str, max_files: int) -> list[str]:
    """The URLs that a paths file (`warc.paths.gz`: a key a line) means under `prefix`.

    `max_files` 0 means all. Raises UserError if it cannot be read or holds none.
    """
    try:
        data = client.read_all(url, _MAX_PAGE_BYTES)
        if data.startswith(b"\x1f\x8b"):
            data = zlib.decompressobj(31).decompress(data, _MAX_PAGE_BYTES)
    except (OSError, zlib.error) as error:
        reason = error.reason if isinstance(error, RangeError) else error
        raise UserError(f"ingest.paths: cannot read {url!r} ({reason}); check it") from None
    keys = [line.strip() for line in data.decode("utf-8", "replace").splitlines()]
    keys = [key for key in keys if key][: max_files or None]
    if not keys:
        raise UserError(f"ingest.paths: {url!r} names no file")
    for key in keys:
        if not is_http(prefix) and ".." in key.split("/"):
            raise UserError(f"ingest.paths: {url!r} names {key!r}, which leaves the prefix")
    return [prefix + key if prefix else key for key in keys]


def base_name(url: str) -> str:
    """The last part of a path or URL, without a query."""
    path = urllib.parse.urlsplit(url).path if is_http(url) else url
    return posixpath.basename(path)
