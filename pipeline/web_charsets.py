"""Charsets as the web names them, in Python's names.

https://encoding.spec.whatwg.org/#names-and-labels
"""

import codecs
import re

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META = re.compile(
    rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_:.-]{1,40})", re.IGNORECASE
)
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_OF_THE_WEB = re.compile(  # Python knows more: rot13, idna, unicode_escape …
    r"utf-(?:8|16|32)|iso8859|koi8|cp(?:125\d|437|850|852|866|874|932|936|949|950)|mac-|gb|big5|euc"
    r"|iso2022|shift_jis|tis-620|hz|ascii|johab"
)
_ALIASES = {"x-sjis": "cp932", "x-gbk": "gbk", "windows-874": "cp874", "windows-949": "cp949"}
_MEANS = {  # what browsers read by a name, in Python's names
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}


def codec_of(label: str) -> str | None:
    """Python's name of what a browser reads by this label; None for one that it does not know."""
    label = label.strip().strip("\"'").lower()
    try:
        name = codecs.lookup(_ALIASES.get(label, label)).name
    except (LookupError, ValueError):
        return None
    return _MEANS.get(name, name) if _OF_THE_WEB.match(name) else None


def byte_order_mark(payload: bytes) -> tuple[bytes, str] | None:
    """(the mark, its codec)"""
    return next((one for one in _MARKS if payload.startswith(one[0])), None)


def charset_in_page(payload: bytes, within: int) -> str | None:
    """The codec that a <meta> in the first bytes names, outside of comments. UTF-16 there means
    UTF-8, says the standard: the tag could not have been read."""
    found = _META.search(_COMMENT.sub(b"", payload[:within]))
    known = codec_of(found[1].decode()) if found else None
    return "utf-8" if known and known.startswith(("utf-16", "utf-32")) else known
