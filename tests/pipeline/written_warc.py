"""WARC files as the crawl writes them, and what other readers, and a plain reading of each gzip
member, find in them; a file and its index are checked whenever they are read."""

import base64
import datetime as dt
import gzip
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

from fastwarc.warc import ArchiveIterator as FastReader
from warcio.archiveiterator import ArchiveIterator as WarcioReader

from pipeline.cdxj import members, surt
from pipeline.warc_writer import Exchange, WarcSeries

AT = dt.datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=dt.UTC)
DATE = "2026-03-01T12:30:15.250000Z"
HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: s\r\ncontent-TYPE: text/html;charset=x\r\nX-Odd: \xff  a\r\n\r\n"
)
REQUEST = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def exchange(number: int, body: bytes = b"body", **more: Any) -> Exchange:
    url = more.pop("url", f"http://h/{number}")
    head = more.pop("head", HEAD)
    return Exchange(url, AT, more.pop("ip", "127.0.0.1"), REQUEST, head, body, **more)


def start(
    folder: Path, epoch: int = 1, known: dict[str, int] | None = None, max_bytes: int = 1 << 30
) -> WarcSeries:
    return WarcSeries(folder, f"x-{epoch}", "Test/1", max_bytes, known or {}, now=lambda: AT)


def digest(data: bytes) -> str:
    return "sha256:" + base64.b32encode(hashlib.sha256(data).digest()).decode()


def by_warcio(path: Path) -> list[tuple[dict[str, str], bytes]]:
    """(headers, block) of every record; the digests are checked."""
    with path.open("rb") as file:
        records = WarcioReader(file, no_record_parse=True)
        found = [(dict(record.rec_headers.headers), record.raw_stream.read()) for record in records]
    with path.open("rb") as file:
        for record in WarcioReader(file, check_digests="raise"):  # with HTTP parsed
            record.content_stream().read()
            assert record.digest_checker.passed is not False
    return found


def by_fastwarc(path: Path) -> list[tuple[dict[str, str], bytes]]:
    with path.open("rb") as file:
        records = FastReader(file, parse_http=False)
        return [(dict(record.headers), record.reader.read()) for record in records]


def read(path: Path) -> list[tuple[dict[str, str], bytes]]:
    """What both readers, and a plain reading of each gzip member, agree upon."""
    found = by_warcio(path)
    assert by_fastwarc(path) == found
    for (headers, block), member in zip(found, members(path), strict=True):
        text = gzip.decompress(path.read_bytes()[member.offset : member.offset + member.length])
        head, _, rest = text.partition(b"\r\n\r\n")
        assert rest == block + b"\r\n\r\n"
        assert head.startswith(b"WARC/1.1\r\n")
        assert len(head.split(b"\r\n")) == 1 + len(headers)
        assert headers["Content-Length"] == str(len(block))
    return found


def urls(path: Path) -> list[str]:
    found = read(path)
    assert [headers["WARC-Type"] for headers, _ in found] == [
        "warcinfo",
        *["request", "response"] * (len(found) // 2),
    ]
    return [headers["WARC-Target-URI"] for headers, _ in found[2::2]]


def check_index(path: Path) -> list[dict[str, str]]:
    """The index beside a file is sorted, and each line's range alone holds its very record."""
    lines = path.with_name(path.name + ".cdxj").read_bytes().splitlines(keepends=True)
    assert lines == sorted(lines)
    entries = []
    for line in lines:
        key, timestamp, text = line.decode().split(" ", 2)
        entry = json.loads(text)
        assert entry["filename"] == path.name
        offset, length = int(entry["offset"]), int(entry["length"])
        alone = path.read_bytes()[offset : offset + length]
        ((headers, _),) = by_fastwarc_bytes(alone)
        assert headers["WARC-Target-URI"] == entry["url"]
        assert headers["WARC-Type"] in ("response", "revisit")
        assert headers.get("WARC-Payload-Digest") == entry.get("digest")
        assert surt(entry["url"]) == key
        assert timestamp == re.sub(r"\D", "", headers["WARC-Date"])[:14]
        entries.append(entry)
    wanted = [h for h, _ in by_fastwarc(path) if h["WARC-Type"] in ("response", "revisit")]
    assert len(entries) == len(wanted)
    return entries


def by_fastwarc_bytes(data: bytes) -> list[tuple[dict[str, str], bytes]]:
    return [
        (dict(record.headers), record.reader.read())
        for record in FastReader(io.BytesIO(data), parse_http=False)
    ]
