"""HTTP's transfer and content codings undone within a limit (RFC 9110 §8.4, RFC 9112 §7.1).

Servers mislabel: a body that is not coded as its header says is handed back as it came.
"""

import dataclasses
import io
import re
import zlib

from fastwarc.stream_io import BrotliReader, ZstdReader

_GZIP, _ZLIB, _RAW_DEFLATE = 31, 15, -15  # zlib's window bits
_BLOCK = 16 << 10
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,15}")
_MAX_CHUNK_LINE = 4096
_MAX_CODINGS = 3  # a server names one; each further one costs a pass over the whole body


class BodyTooLargeError(Exception):
    """The body grows beyond the limit as it is decoded."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """`truncated`: the coding broke off or broke down; `body` is what came before."""

    body: bytes
    truncated: bool = False


def decode_body(
    raw: bytes,
    *,
    transfer_encoding: str = "",
    content_encoding: str = "",
    max_bytes: int,
    cut: bool = False,
) -> Decoded:
    """The body as its author wrote it. Raises BodyTooLargeError above `max_bytes`; with `cut` it
    is cut off there instead.

    Knows chunked, gzip, deflate (zlib or bare), br and zstd; other codings are left as they are,
    and so is a body with more than three. Holds at most the body twice and `max_bytes` once.
    """
    whole = Decoded(raw)
    if "chunked" in transfer_encoding.lower():
        whole = _dechunk(raw) or whole
    whole = _within(whole, max_bytes, cut, "body of")
    if not content_encoding:
        return whole
    codings = content_encoding.lower().split(",")
    for coding in reversed(codings if len(codings) <= _MAX_CODINGS else []):
        inner = _undo(coding.strip(), whole.body, max_bytes)
        if inner is not None:
            inner = _within(inner, max_bytes, cut, "body inflates to")
            whole = Decoded(inner.body, inner.truncated or whole.truncated)
    return whole


def _within(found: Decoded, max_bytes: int, cut: bool, what: str) -> Decoded:
    if len(found.body) <= max_bytes:
        return found
    if not cut:
        raise BodyTooLargeError(f"{what} more than {max_bytes:,} bytes")
    return Decoded(found.body[:max_bytes], truncated=True)


def _undo(coding: str, raw: bytes, max_bytes: int) -> Decoded | None:
    """None: not so coded. Stops as soon as there are more than `max_bytes`."""
    if coding in ("gzip", "x-gzip"):
        return _inflate(raw, _GZIP, max_bytes)
    if coding == "deflate":
        return _inflate(raw, _ZLIB, max_bytes) or _inflate(raw, _RAW_DEFLATE, max_bytes)
    if coding == "br":
        return _read_all(BrotliReader(io.BytesIO(raw)), max_bytes)
    if coding == "zstd":
        return _read_all(ZstdReader(io.BytesIO(raw)), max_bytes)
    return None


def _inflate(raw: bytes, window_bits: int, max_bytes: int) -> Decoded | None:
    """None: the first byte already is not so coded. Members of a gzip body are joined."""
    out = bytearray()
    engine = zlib.decompressobj(window_bits)
    try:
        for start in range(0, len(raw), _BLOCK):
            block = raw[start : start + _BLOCK]
            while block:
                out += engine.decompress(block, max_bytes + 1 - len(out))
                if len(out) > max_bytes:
                    return Decoded(bytes(out))
                if not engine.eof:
                    break
                block = engine.unused_data
                if block and (window_bits != _GZIP or not block.startswith(b"\x1f\x8b")):
                    return Decoded(bytes(out))  # junk behind the end is no part of the body
                if block:
                    engine = zlib.decompressobj(window_bits)
    except zlib.error:
        return Decoded(bytes(out), truncated=True) if out else None
    return Decoded(bytes(out), truncated=not engine.eof)


def _read_all(reader: BrotliReader | ZstdReader, max_bytes: int) -> Decoded | None:
    out = bytearray()
    try:
        while block := reader.read(_BLOCK):
            out += block
            if len(out) > max_bytes:
                break
    except OSError:
        return Decoded(bytes(out), truncated=True) if out else None
    return Decoded(bytes(out))


def _dechunk(raw: bytes) -> Decoded | None:
    """None: the body does not begin with a chunk (archives often hold it joined already)."""
    out = bytearray()
    position = 0
    while True:
        end = raw.find(b"\r\n", position, position + _MAX_CHUNK_LINE)
        size_text = raw[position:end].split(b";")[0].strip() if end >= 0 else b""
        if not _CHUNK_SIZE.fullmatch(size_text):
            return Decoded(bytes(out), truncated=True) if position else None
        size = int(size_text, 16)
        if size == 0:
            return Decoded(bytes(out))
        chunk = raw[end + 2 : end + 2 + size]
        out += chunk
        if len(chunk) < size:
            return Decoded(bytes(out), truncated=True)
        position = end + 2 + size + 2
