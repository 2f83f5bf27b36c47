"""Five small pages as WARC records, and what our reader finds of them in a file."""

import gzip
import random
from pathlib import Path
from typing import Any

from pipeline.warc import WarcDamage, WarcResponse, iter_responses

PAGES = [b"<p>page %d</p>" % i + random.Random(i).randbytes(700) for i in range(5)]


def member(
    uri: str,
    payload: bytes,
    extra: bytes = b"",
    length: int | None = None,
    *,
    status_line: bytes = b"HTTP/1.1 200 OK",
    content_type: bytes = b"text/html; charset=UTF-8",
    date: str = "2026-03-01T12:30:15Z",
    more: str = "",
) -> bytes:
    """One response record, uncompressed."""
    block = status_line + b"\r\nContent-Type: " + content_type + b"\r\n" + extra
    block += b"\r\n" + payload
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {uri}\r\n"
        f"WARC-Date: {date}\r\nWARC-Record-ID: <urn:uuid:{uri[-1:]}>\r\n{more}"
        "Content-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def archive(compress: bool) -> list[bytes]:
    records = [member(f"http://h/{i}", payload) for i, payload in enumerate(PAGES)]
    return [gzip.compress(record) for record in records] if compress else records


def read(path: Path, data: bytes, **limits: Any) -> tuple[list[WarcResponse], list[WarcDamage]]:
    path.write_bytes(data)
    items = list(iter_responses(str(path), **limits))
    responses = [item for item in items if isinstance(item, WarcResponse)]
    return responses, [item for item in items if isinstance(item, WarcDamage)]


def numbers(responses: list[WarcResponse]) -> list[int]:
    """Which pages were read, after a check that each is read as it was written."""
    found = [int(response.url[-1]) for response in responses]
    assert [response.payload for response in responses] == [PAGES[i] for i in found]
    return found


def corrupt(record: bytes, at: int, length: int) -> bytes:
    return record[:at] + bytes(b ^ 0xFF for b in record[at : at + length]) + record[at + length :]
