"""HTML bytes to title and text: decoding as browsers do, then trafilatura.

Runs in the extraction child (extract_child.py): what a hostile page does to lxml, it does there.
"""

import codecs
import re
from dataclasses import dataclass

import trafilatura
from trafilatura.utils import detect_encoding

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META = re.compile(
    rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_:.-]{1,40})", re.IGNORECASE
)
_META_WITHIN = 4096
# The WHATWG Encoding Standard reads these labels as their larger relatives.
_SUPERSETS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
_ANY_LIMIT = 1 << 40


@dataclass(frozen=True)
class Extracted:
    """`text` has one line for each block of the page; empty if nothing was found."""

    title: str
    text: str


def extract_html(payload: bytes, http_charset: str | None, focus: str) -> Extracted:
    """Main text without comments, repeats kept: trafilatura's `deduplicate` is a process-wide
    cache, so its result depends on the pages before."""
    tree = trafilatura.load_html(decode_html(payload, http_charset), max_size=_ANY_LIMIT)
    if tree is None:
        return Extracted("", "")
    title = " ".join((tree.findtext(".//title") or "").split())
    text = trafilatura.extract(
        tree,
        favor_precision=focus == "precision",
        favor_recall=focus == "recall",
        include_comments=False,
        deduplicate=False,
    )
    return Extracted(_storable(title), _storable(text or ""))


def decode_html(payload: bytes, http_charset: str | None) -> str:
    """The page as text: by its byte order mark, the HTTP header, its meta tag, or detection.

    A declared charset counts unless it fits badly (more than one error in 1,000 bytes). Never
    raises; what no charset explains becomes U+FFFD. NUL is dropped, as HTML does.
    """
    for bom, name in _BOMS:
        if payload.startswith(bom):
            return payload[len(bom) :].decode(name, "replace").replace("\0", "")
    meta = _META.search(payload[:_META_WITHIN])
    declared = [http_charset, meta.group(1).decode() if meta else None]
    for label in declared:
        text = _decode(payload, label)
        if text is not None:
            return text.replace("\0", "")
    for label in detect_encoding(payload):
        text = _decode(payload, label)
        if text is not None:
            return text.replace("\0", "")
    return payload.decode("utf-8", "replace").replace("\0", "")


def _decode(payload: bytes, label: str | None) -> str | None:
    try:
        name = codecs.lookup(label or "").name
        text = payload.decode(_SUPERSETS.get(name, name), "replace")
    except (LookupError, ValueError):  # an unknown label, or one that is no text encoding
        return None
    return text if text.count("\ufffd") <= 1 + len(payload) // 1000 else None


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # a lone surrogate has no UTF-8
