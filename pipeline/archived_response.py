"""What an archive gives, whatever its format: a response, or a place that could not be read.

WARC and ARC hold HTTP messages as they came over the wire (RFC 9112); here they are taken apart.
"""

import dataclasses
import datetime as dt
import email.utils
import functools
import hashlib
import re

import ada_url

from pipeline.encoding import BodyTooLargeError, decode_body

UNKNOWN_TIME = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)?\s+(\d{3})\b")
_FIELDS = re.compile(
    rb"\n[ \t]*(content-type|content-encoding|transfer-encoding|date)[ \t]*:([^\n]*)",
    re.IGNORECASE,
)
# RFC 9110 §5.6.7; what is not of this form goes to the standard library, at ten times the cost.
_HTTP_DATE = re.compile(rb"\s*\w{3}, (\d\d) (\w{3}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT\s*")
_MONTHS = {
    month: number
    for number, month in enumerate(
        b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), start=1
    )
}
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class WarcResponse:
    """One archived HTTP response, or the plain text that an archive made of one.

    `offset` is where its record (compressed: its member) begins. `fetched_at` is the archive's
    date, else the response's Date, else UNKNOWN_TIME. `charset` is what the HTTP header says,
    unchecked. `payload` is free of transfer and content coding, and `payload_sha256` (hex) is its
    digest. `truncated`: the record says so, or its coding broke off. `converted`: the payload is
    a conversion record's text (WET) in UTF-8; its status is 200, for only such are converted.
    """

    url: str
    fetched_at: dt.datetime
    offset: int
    http_status: int
    content_type: str
    charset: str | None
    payload: bytes
    payload_sha256: str
    truncated: bool
    converted: bool = False


@dataclasses.dataclass(frozen=True)
class WarcDamage:
    """A place that could not be read."""

    file: str
    offset: int
    reason: str


Item = WarcResponse | WarcDamage


def read_response(
    url: str,
    archived_at: str | None,
    offset: int,
    block: bytes,
    *,
    is_truncated: bool,
    max_payload_bytes: int,
) -> WarcResponse | str:
    """The response in a record's block, or what is wrong with it. `archived_at` is ISO 8601."""
    if not ada_url.check_url(url):
        return f"no valid URL: {url[:200]!r}"
    status = _STATUS_LINE.match(block)
    if status is None:
        return "no HTTP status line"
    head_end, body_start = _blank_line(block)
    fields = {name.lower(): value for name, value in _FIELDS.findall(block, 0, head_end)}
    try:
        body, is_cut = _decode(fields, block[body_start:], max_payload_bytes)
    except BodyTooLargeError as error:
        return str(error)
    media_type, charset = _content_type(fields.get(b"content-type", b""))
    return WarcResponse(
        url,
        _time(archived_at, fields.get(b"date", b"")),
        offset,
        int(status[1]),
        media_type,
        charset,
        body,
        hashlib.sha256(body).hexdigest(),
        is_cut or is_truncated,
    )


def read_conversion(
    url: str, archived_at: str | None, offset: int, block: bytes, *, is_truncated: bool
) -> WarcResponse | str:
    """The plain text of a conversion record, or what is wrong with it."""
    if not ada_url.check_url(url):
        return f"no valid URL: {url[:200]!r}"
    digest = hashlib.sha256(block).hexdigest()
    return WarcResponse(
        url,
        _time(archived_at, b""),
        offset,
        200,
        "text/plain",
        "utf-8",
        block,
        digest,
        is_truncated,
        converted=True,
    )


def mime_type(content_type: str) -> str:
    """`text/html` of a Content-Type header; empty if there is none."""
    return content_type.partition(";")[0].strip().lower()


def charset_of(content_type: str) -> str | None:
    match = _CHARSET.search(content_type)
    return match[1].lower() if match else None


def _blank_line(block: bytes) -> tuple[int, int]:
    """Where the head ends and the body begins; without a blank line it is all head."""
    at, length = block.find(b"\n\r\n"), 3
    bare = block.find(b"\n\n", 0, len(block) if at < 0 else at)
    if bare >= 0:
        at, length = bare, 2
    return (at, at + length) if at >= 0 else (len(block), len(block))


def _decode(fields: dict[bytes, bytes], body: bytes, max_bytes: int) -> tuple[bytes, bool]:
    """The body free of codings, and whether it broke off."""
    transfer = fields.get(b"transfer-encoding", b"").strip()
    content = fields.get(b"content-encoding", b"").strip()
    if not transfer and not content and len(body) <= max_bytes:
        return body, False
    decoded = decode_body(
        body,
        transfer_encoding=transfer.decode("latin-1"),
        content_encoding=content.decode("latin-1"),
        max_bytes=max_bytes,
    )
    return decoded.body, decoded.truncated


@functools.lru_cache(maxsize=1024)  # few are in use, and each is taken apart in 5 us
def _content_type(field: bytes) -> tuple[str, str | None]:
    value = field.strip().decode("latin-1")
    return mime_type(value), charset_of(value)


def _time(archived_at: str | None, http_date: bytes) -> dt.datetime:
    try:
        when = dt.datetime.fromisoformat(archived_at or "")
    except ValueError:
        try:
            when = _http_date(http_date)
        except (ValueError, OverflowError):
            return UNKNOWN_TIME
    if when.tzinfo is dt.UTC:
        return when
    try:
        return when.replace(tzinfo=when.tzinfo or dt.UTC).astimezone(dt.UTC)
    except OverflowError:
        return UNKNOWN_TIME


def _http_date(field: bytes) -> dt.datetime:
    """Raises ValueError for what is no date."""
    match = _HTTP_DATE.fullmatch(field)
    if match is None or match[2] not in _MONTHS:
        return email.utils.parsedate_to_datetime(field.decode("latin-1"))
    day, _, year, *clock = match.groups()
    return dt.datetime(int(year), _MONTHS[match[2]], int(day), *map(int, clock), tzinfo=dt.UTC)
