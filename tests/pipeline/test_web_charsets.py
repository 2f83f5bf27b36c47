"""Pages in the charsets of the web, rightly and wrongly named, and in others."""

import pytest

from pipeline.html_text import decode_html


@pytest.mark.parametrize(
    ("payload", "header", "expected"),
    [
        ("Füße".encode("cp1252"), "iso-8859-1", "Füße"),
        ("“quoted”".encode("cp1252"), "latin1", "“quoted”"),  # WHATWG: latin1 means cp1252
        ("Füße".encode(), "utf-8", "Füße"),
        (
            '<meta charset="shift_jis">日本語'.encode("cp932"),
            None,
            '<meta charset="shift_jis">日本語',
        ),
        (
            '<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">Мир'.encode(
                "koi8-r"
            ),
            None,
            '<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">Мир',
        ),
        ("\ufeffFüße".encode(), "iso-8859-1", "Füße"),  # a byte order mark beats the header
        ("Füße".encode("utf-16"), None, "Füße"),
        (b"<!-- +AC0ALQA+-x<meta charset=utf-7>", None, "<!-- +AC0ALQA+-x<meta charset=utf-7>"),
        (b"<!-- \\x2d\\x2d\\x3ex", "unicode_escape", "<!-- \\x2d\\x2d\\x3ex"),
        ("<!--<meta charset=cp037>-->Füße".encode(), None, "<!--<meta charset=cp037>-->Füße"),
        (b"<meta charset=utf_16_le>plain", None, "<meta charset=utf_16_le>plain"),
        (b"<meta charset=utf-16>plain", None, "<meta charset=utf-16>plain"),  # by the standard
        ("Füße".encode(), "no-such-charset", "Füße"),
        ("Füße".encode(), "base64", "Füße"),  # a codec, but of bytes
        (b"a\0b", "utf-8", "ab"),
        (b"", None, ""),
    ],
)
def test_charsets(payload: bytes, header: str | None, expected: str):
    assert decode_html(payload, header) == expected


def test_a_declared_charset_that_does_not_fit_is_not_believed():
    text = "Größe und Maß: für Füße, Häuser und schöne Bäume. " * 40
    assert decode_html(text.encode("cp1252"), "utf-8") == text


def test_one_bad_byte_does_not_change_the_charset():
    assert decode_html("Füße ".encode() * 200 + b"\xff", "utf-8").startswith("Füße Füße")
