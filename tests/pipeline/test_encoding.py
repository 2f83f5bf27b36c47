"""Transfer and content codings undone: mislabelled, torn, and inflating beyond the limit."""

import gzip
import io
import random
import zlib

import pytest
from fastwarc.stream_io import BrotliWriter, ZstdWriter

from pipeline.encoding import BodyTooLargeError, Decoded, decode_body


def test_codings_are_undone() -> None:
    body = b"hello world " * 1000
    raw_deflate = zlib.compress(body)[2:-4]
    chunked = b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    assert decode_body(chunked, transfer_encoding="chunked", max_bytes=99).body == b"hello world"
    two_members = gzip.compress(body[:100]) + gzip.compress(body[100:])
    for coding, raw in [
        ("gzip", gzip.compress(body)),
        ("gzip", two_members),
        ("gzip", gzip.compress(body) + b"trailing junk"),
        ("x-gzip", gzip.compress(body)),
        ("deflate", zlib.compress(body)),
        ("deflate", raw_deflate),
        ("identity", body),
        ("gzip", body),  # mislabelled
        ("br", body),
        ("zstd", body),
        ("gzip, gzip", gzip.compress(gzip.compress(body))),
        ("", body),
    ]:
        assert decode_body(raw, content_encoding=coding, max_bytes=1 << 20) == Decoded(body), coding


def test_torn_codings_keep_what_came_before() -> None:
    noise = random.Random(3).randbytes(100_000)
    half = gzip.compress(noise)[:50_000]
    found = decode_body(half, content_encoding="gzip", max_bytes=1 << 20)
    assert found.truncated
    assert found.body
    assert noise.startswith(found.body)
    torn = decode_body(b"5\r\nhello\r\n6\r\n wo", transfer_encoding="chunked", max_bytes=99)
    assert torn == Decoded(b"hello wo", truncated=True)
    joined = decode_body(b"<html>", transfer_encoding="chunked", max_bytes=99)
    assert joined == Decoded(b"<html>")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", ""])
def test_no_coding_inflates_beyond_the_limit(coding: str) -> None:
    zeros = bytes(5 << 20)
    sink = io.BytesIO()
    if coding in ("br", "zstd"):
        writer = (BrotliWriter if coding == "br" else ZstdWriter)(sink)
        writer.write(zeros)
        writer.close()
    raw = {
        "gzip": gzip.compress(zeros),
        "deflate": zlib.compress(zeros),
        "": zeros,
    }.get(coding) or sink.getvalue()
    with pytest.raises(BodyTooLargeError, match="1,048,576"):
        decode_body(raw, content_encoding=coding, max_bytes=1 << 20)
    assert decode_body(raw, content_encoding=coding, max_bytes=8 << 20).body == zeros
