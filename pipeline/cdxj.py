"""CDXJ indexes of WARC files: which URL was captured when, and at which offset its record stands.

A line is `SURT timestamp {json}`; lines are sorted bytewise, so that pywb and others can search
the file as it lies. The form is that of cdxj-indexer; SURT: internetarchive/surt's rules.
"""

import contextlib
import dataclasses
import functools
import heapq
import json
import re
import tempfile
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import ada_url
from isal import isal_zlib

from pipeline.core import storage
from pipeline.core.errors import UserError

SUFFIX = ".cdxj"
INDEXED = ("response", "revisit")
RUN_LINES = 20_000  # sorted in memory at a time: about 8 MB
FAN_IN = 200  # files read at a time by `merge`, well below the usual limit of 1,024
_CHUNK = 1 << 16
_HEAD_BYTES = 1 << 20  # of a record, read for its WARC and HTTP headers
_UNESCAPES = 8  # no honest URL is escaped more often; a hostile one costs a pass for each
_CONTENT_TYPE = re.compile(rb"\r?\ncontent-type[ \t]*:[ \t]*([^\s;]+)", re.IGNORECASE)
_STATUS = re.compile(rb"HTTP/\S+[ \t]+(\S+)")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_NO_MARKS = str.maketrans("", "", "-:T")
_WWW = re.compile(r"www\d*\.")
_IPV4 = re.compile(r"\d+(?:\.\d+){3}")
_SESSIONS = [
    re.compile(rf"(?:{session})(?:&|$)")
    for session in (
        "jsessionid=[0-9a-z]{32}",
        "phpsessid=[0-9a-z]{32}",
        "sid=[0-9a-z]{32}",
        "aspsessionid[a-z]{8}=[a-z]{24}",
        "cfid=[^&]{1,200}&cftoken=[^&]{1,200}",  # bounded: no quadratic search
    )
]


@dataclasses.dataclass(frozen=True)
class Member:
    """One gzip member of a file: where it stands, and how its content begins (up to 1 MiB)."""

    offset: int
    length: int
    head: bytes


def surt(url: str) -> str:
    """The sort key of an http(s) URL: `com,example:8080)/path?query`, ASCII without spaces.

    The URL is first parsed as the WHATWG standard says. Then: scheme, user, fragment and a default
    port go, and so do a leading `www.`, `www2.` … and a dot behind the host; the host's labels (an
    IPv4 address's too) are reversed; in path and query, escapes are undone and what needs one is
    escaped anew; all is in lower case; of slashes in a row one stays, none at the end of a path; a
    query's parts are sorted, an empty query goes, and so do session ids (jsessionid, phpsessid,
    sid, ASPSESSIONID, cfid with cftoken). Session ids in paths stay. Other URLs are their own key.
    """
    try:
        scheme, _, rest = ada_url.normalize_url(url).partition("://")
    except ValueError:
        scheme = rest = ""
    if scheme not in ("http", "https"):
        return urllib.parse.quote(url, safe=":/?&=,;@+$!*'()", errors="replace")
    netloc, _, tail = rest.partition("#")[0].partition("/")
    path, _, query = tail.partition("?")
    return _host_key(netloc) + ")" + _path_key("/" + path) + _query_key(query)


@functools.lru_cache(maxsize=4096)
def _host_key(netloc: str) -> str:
    host, colon, port = netloc.rpartition("@")[2].partition(":")
    if netloc.rpartition("@")[2].startswith("["):
        host, _, after = netloc.rpartition("@")[2][1:].partition("]")
        return host + after
    host = host.rstrip(".")
    if not _IPV4.fullmatch(host) and (prefix := _WWW.match(host)):
        host = host[prefix.end() :]
    return ",".join(reversed(host.split("."))) + colon + port


def _path_key(path: str) -> str:
    if "%" in path:
        path = _escaped_once(path)
    path = path.lower()
    if "//" in path:
        path = re.sub("//+", "/", path)
    return path[:-1] if len(path) > 1 and path.endswith("/") else path


def _query_key(query: str) -> str:
    if not query:
        return ""
    if "%" in query:
        query = _escaped_once(query)
    if "id=" in (query := query.lower()) or "aspsessionid" in query:
        for session in _SESSIONS:
            if found := list(session.finditer(query)):
                query = query[: found[-1].start()] + query[found[-1].end() :]
    parts = sorted(query.split("&"), key=lambda part: part.partition("=")) if "&" in query else ()
    return "?" + ("&".join(parts) or query) if query else ""


def _escaped_once(text: str) -> str:
    raw = text.encode()
    for _ in range(_UNESCAPES):
        before, raw = raw, urllib.parse.unquote_to_bytes(raw)
        if raw == before:
            break
    return re.sub(rb"[\x00-\x20\x7f-\xff#%]", lambda found: b"%%%02x" % found[0][0], raw).decode()


def line(
    kind: str,
    url: str,
    date: str,
    http_head: bytes,
    digest: str,
    length: int,
    offset: int,
    filename: str,
) -> bytes:
    """The index line of a record of the kind `response` or `revisit`.

    `date` is its WARC-Date; offset and length are those of its gzip member. A revisit's type is
    `warc/revisit`, whatever its head says. What is not known (type, status, digest) is left out.
    """
    blank = _HEAD_END.search(http_head)
    head = http_head[: blank.start()] if blank else http_head
    fields = {"url": url}
    if kind == "revisit":
        fields["mime"] = "warc/revisit"
    elif mime := _CONTENT_TYPE.search(head):
        fields["mime"] = mime[1].decode("latin-1")
    if status := _STATUS.match(head):
        fields["status"] = status[1].decode("latin-1")
    if digest:
        fields["digest"] = digest
    fields |= {"length": str(length), "offset": str(offset), "filename": filename}
    timestamp = date[:19].translate(_NO_MARKS)
    return f"{surt(url)} {timestamp} {json.dumps(fields)}\n".encode()


class Index:
    """The lines of one WARC file as they come; `write` puts them out in order.

    What is over `RUN_LINES` waits on the disk in a nameless file, which `close` or a kill ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines: list[bytes] = []
        self._spilled: IO[bytes] | None = None
        self._runs: list[tuple[int, int]] = []

    def add(self, line: bytes) -> None:
        """Take a line in. Raises OSError for a full disk."""
        self._lines.append(line)
        if len(self._lines) >= RUN_LINES:
            self._spill()

    def write(self, path: Path) -> None:
        """All lines in order. Raises OSError for a full disk; nothing is lost by it."""
        runs: list[Iterable[bytes]] = [self._run(start, end) for start, end in self._runs]
        with path.open("wb") as file:
            file.writelines(heapq.merge(*runs, sorted(self._lines)))

    def close(self) -> None:
        if self._spilled is not None:
            self._spilled.close()

    def _spill(self) -> None:
        if self._spilled is None:
            self._spilled = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115, see close
        start = self._spilled.tell()
        self._spilled.writelines(sorted(self._lines))
        self._runs.append((start, self._spilled.tell()))
        self._lines.clear()

    def _run(self, start: int, end: int) -> Iterator[bytes]:
        """The lines of one run; the file's position is shared, so each read seeks anew."""
        file, rest = self._spilled, b""
        assert file is not None
        while start < end:
            file.seek(start)
            block = rest + file.read(min(_CHUNK, end - start))
            start += len(block) - len(rest)
            *lines, rest = block.split(b"\n")
            for found in lines:
                yield found + b"\n"


def members(path: Path, end: int | None = None) -> Iterator[Member]:
    """The whole gzip members of a file's first `end` bytes; stops at the first damage.

    A member's content is checked against its checksum; memory does not depend on its size.
    """
    with path.open("rb") as file:
        left = path.stat().st_size if end is None else end
        offset, waiting = 0, b""
        while True:
            unpacker = isal_zlib.decompressobj(31)
            head, length = bytearray(), 0
            while not unpacker.eof:
                if not waiting:
                    waiting = file.read(min(_CHUNK, left))
                    left -= len(waiting)
                    if not waiting:
                        return
                before = len(waiting)
                try:
                    found = unpacker.decompress(waiting, _HEAD_BYTES)
                except isal_zlib.error:  # pyright: ignore[reportGeneralTypeIssues], the stub calls it a value
                    return
                head += found[: max(0, _HEAD_BYTES - len(head))]
                waiting = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
                length += before - len(waiting)
            yield Member(offset, length, bytes(head))
            offset += length


def scan(path: Path, index: Index, filename: str, end: int | None = None) -> int:
    """Put the responses and revisits of a WARC file's first `end` bytes into the index.

    Returns the offset behind the last whole record: `end`, unless the file is short or damaged.
    """
    whole = 0
    for member in members(path, end):
        whole = member.offset + member.length
        warc_head, _, rest = member.head.partition(b"\r\n\r\n")
        headers: dict[str, str] = {}
        for field in warc_head.split(b"\r\n")[1:]:
            name, _, value = field.partition(b":")
            headers[name.decode("latin-1").lower()] = value.strip().decode("utf-8", "replace")
        kind, url = headers.get("warc-type", ""), headers.get("warc-target-uri", "")
        if kind not in INDEXED or not url:
            continue
        date, digest = headers.get("warc-date", ""), headers.get("warc-payload-digest", "")
        place = (member.length, member.offset, filename)
        index.add(line(kind, url, date, rest, digest, *place))
    return whole


def index_file(path: Path) -> Path:
    """Write `NAME.cdxj` beside a finished WARC file, and return its path."""
    target = path.with_name(path.name + SUFFIX)
    with contextlib.closing(Index(path.parent)) as index:
        scan(path, index, path.name)
        with storage.atomic_file(str(target)) as temporary:
            index.write(temporary)
    return target


def merge(paths: Sequence[Path], target: Path) -> int:
    """One sorted index of many; a line that stands in several is written once.

    Returns the number of lines. Any number of files of any size: at most `FAN_IN` are open at a
    time, and a line of each in memory. Raises UserError for a file that is not sorted.
    """
    if len(paths) > FAN_IN:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            groups = [paths[i : i + FAN_IN] for i in range(0, len(paths), FAN_IN)]
            parts = [Path(folder) / f"{number}{SUFFIX}" for number in range(len(groups))]
            for group, part in zip(groups, parts, strict=True):
                merge(group, part)
            return merge(parts, target)
    count, last = 0, b""
    with contextlib.ExitStack() as stack, storage.atomic_file(str(target)) as temporary:
        files = [(path, stack.enter_context(path.open("rb"))) for path in paths]
        with temporary.open("wb") as out:
            for found in heapq.merge(*(_sorted_lines(path, file) for path, file in files)):
                if found != last:
                    out.write(found)
                    count += 1
                last = found
    return count


def _sorted_lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    last = b""
    for number, found in enumerate(file, 1):
        if not (text := found.rstrip(b"\r\n")):
            continue
        if text + b"\n" < last:
            raise UserError(f"{path}: line {number} is not in order; sort it with LC_ALL=C sort")
        last = text + b"\n"
        yield last
