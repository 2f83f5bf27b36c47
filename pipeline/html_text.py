"""HTML bytes to title and text: decoding as browsers do, one parse, then the chosen engine.

Runs in the extraction child (extract_child.py): what a hostile page does to a parser, it does
there. What a person would not see is cut out before any engine reads the page.
"""

import importlib.metadata
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import trafilatura
from resiliparse.extract.html2text import extract_plain_text
from trafilatura.utils import detect_encoding

from pipeline.hidden_text import Finding, Hidden, find_hidden, without_tag_characters
from pipeline.main_content import bundled_model, main_content, title_of
from pipeline.page_blocks import read_texts
from pipeline.page_look import ALL, Wanted, first_look
from pipeline.page_metadata import NOTHING, PageMetadata, metadata_of
from pipeline.page_tags import TAG_IDS
from pipeline.page_tree import PageTree, parse_page
from pipeline.text.language import detect_language
from pipeline.web_charsets import byte_order_mark, charset_in_page, codec_of

_META_WITHIN = 4096
_BLANK_LINES = re.compile(r"\n\s*\n")
_ANY_LIMIT = 1 << 40
MAX_TITLE = 1000  # characters
_TRAFILATURA_VERSION = importlib.metadata.version("trafilatura")
_RESILIPARSE_VERSION = importlib.metadata.version("resiliparse")


_GONE = [TAG_IDS[name] for name in ("script", "style", "template")]
SURE = 0.97  # of the first judgement: then the second one would change next to nothing


@dataclass(frozen=True)
class Extracted:
    """`text` has one line for each block of the page; empty if nothing was found. `extractor` and
    `version`: what made it. `hidden`: findings by kind, and the first of them. `unwanted`: why the
    first look went no further, if it did; `language`: what it took the page's prose for."""

    title: str
    text: str
    extractor: str = ""
    version: str = ""
    hidden: Mapping[str, int] | None = None
    findings: tuple[Finding, ...] = ()
    metadata: PageMetadata = NOTHING
    unwanted: str | None = None
    language: str = ""


def extract_html(
    payload: bytes,
    http_charset: str | None,
    focus: str,
    engine: str = "cascade",
    wanted: Wanted = ALL,
) -> Extracted:
    """Main text without comments and without hidden text; repeats kept.

    `engine`: "trafilatura", leaning to `focus`; "resiliparse", its main content; "fast", the first
    judgement of the block model; "cascade", the second one too where the first is not sure of
    itself. A page that is not `wanted` has a title and no text.
    """
    tree, smuggled = without_tag_characters(parse_page(decode_html(payload, http_charset)))
    look = first_look(tree, wanted)
    if look.reason:
        title = _storable(title_of(tree)[:MAX_TITLE])
        return Extracted(title, "", unwanted=look.reason, language=look.language)
    hidden = find_hidden(tree)
    text, version = _by(engine, tree, hidden, focus)
    return Extracted(
        _storable(title_of(tree)[:MAX_TITLE]),
        _storable(text),
        engine,
        version,
        dict(hidden.counts + Counter(one.kind for one in smuggled) + Counter(kept=hidden.kept)),
        (*smuggled, *hidden.findings),
        metadata_of(tree),
    )


def warm_up(engine: str, wanted: Wanted) -> None:
    """Have all compiled loops and the weights in memory."""
    tree = parse_page(
        "<title>t</title><style>.a{color:red}</style><p class=a id=b>A <a href=c>d</a>"
    )
    hidden = find_hidden(tree)
    metadata_of(tree)
    read_texts(tree)
    if wanted.languages:
        detect_language("a language")
    _by(engine, tree, hidden, "balanced")


def _by(engine: str, tree: PageTree, hidden: Hidden, focus: str) -> tuple[str, str]:
    """(text, version of what made it)"""
    if engine == "trafilatura":
        return _by_trafilatura(tree, hidden, focus), _TRAFILATURA_VERSION
    if engine == "resiliparse":
        seen = seen_html(tree, hidden.mask)
        text = extract_plain_text(seen, main_content=True)
        return _BLANK_LINES.sub("\n", text).strip(), _RESILIPARSE_VERSION
    return _by_blocks(tree, hidden, engine)


def _by_blocks(tree: PageTree, hidden: Hidden, engine: str) -> tuple[str, str]:
    model = bundled_model()
    found = main_content(tree, hidden.mask, model, sure=0.0 if engine == "fast" else SURE)
    return found.text, model.version


def _by_trafilatura(tree: PageTree, hidden: Hidden, focus: str) -> str:
    """trafilatura's `deduplicate` is a process-wide cache, so its result depends on the pages
    before: it stays off."""
    loaded = trafilatura.load_html(seen_html(tree, hidden.mask), max_size=_ANY_LIMIT)
    if loaded is None:
        return ""
    text = trafilatura.extract(
        loaded,
        favor_precision=focus == "precision",
        favor_recall=focus == "recall",
        include_comments=False,
        deduplicate=False,
    )
    return text or ""


def seen_html(tree: PageTree, mask: Any) -> str:
    """The page in normal form without its hidden elements, scripts and templates."""
    gone = np.flatnonzero((mask != 0) | np.isin(tree.tag, _GONE))
    source = tree.source.tobytes()
    parts: list[bytes] = []
    at = 0
    for element in gone.tolist():
        start, end = int(tree.opens[element]), int(tree.closes[element])
        if start >= at:
            parts.append(source[at:start])
            at = end
    parts.append(source[at:])
    return b"".join(parts).decode("utf-8", "replace")


def decode_html(payload: bytes, http_charset: str | None) -> str:
    """The page as text: by its byte order mark, the HTTP header, its meta tag, or detection.

    A declared charset counts unless it fits badly (more than one error in 1,000 bytes). Never
    raises; what no charset explains becomes U+FFFD. NUL is dropped, as HTML does.
    """
    if mark := byte_order_mark(payload):
        return payload[len(mark[0]) :].decode(mark[1], "replace").replace("\0", "")
    declared = [http_charset, charset_in_page(payload, _META_WITHIN)]
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
    name = codec_of(label or "")
    if name is None:
        return None
    text = payload.decode(name, "replace")
    return text if text.count("\ufffd") <= 1 + len(payload) // 1000 else None


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # a lone surrogate has no UTF-8
