"""A page as flat arrays: elements in document order, their texts and the attributes that tell.

Resiliparse parses as browsers do (the WHATWG algorithm) and writes the tree out again in its
normal form; a compiled loop reads that in one pass, where a walk of the tree from Python would
cost five times the parse. Indices are of elements unless said otherwise.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from resiliparse.parse.html import HTMLTree

from pipeline.page_reader import read_elements
from pipeline.page_tags import (
    ATTRIBUTE_NAMES,
    FOREIGN,
    IS_FOREIGN,
    IS_RAW,
    IS_UNREAD,
    IS_VOID,
    PACKED,
    PACKED_IDS,
    RAW,
)

_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)
_SPACE, _BANG, _SLASH, _LESS = 0x20, 0x21, 0x2F, 0x3C


@dataclass(frozen=True)
class PageTree:
    """`source` is the page in normal form, UTF-8; all positions are bytes of it.

    Elements: `tag` (index in TAGS), `parent` (-1 for none), `end` (the subtree of i is i to
    end[i] - 1), `opens` and `closes` (from `<` to behind the end tag's `>`), `attributes`
    (n, 14, 2: start and end of the value, 0 and 0 if absent). Texts: `text_start`, `text_end`,
    `text_parent`, `text_before` (elements begun so far). Comments: `comment_start`, `comment_end`.
    """

    source: Any
    tag: Any
    parent: Any
    end: Any
    opens: Any
    closes: Any
    attributes: Any
    text_start: Any
    text_end: Any
    text_parent: Any
    text_before: Any
    comment_start: Any
    comment_end: Any

    def value(self, element: int, attribute: int) -> str:
        start, end = self.attributes[element, attribute]
        return self.source[start:end].tobytes().decode("utf-8", "replace")


def parse_page(html: str) -> PageTree:
    """Never raises but for want of memory. A lone surrogate becomes `?`, NUL goes."""
    payload = html.replace("\0", "").encode("utf-8", "replace")
    tree = HTMLTree.parse_from_bytes(payload, "utf-8")
    document: Any = tree.document
    page = _read_normal_form(document.html)
    if _has_raw_in_pictures(page.tag, page.parent, IS_RAW, IS_FOREIGN):
        _defuse(document)
        page = _read_normal_form(document.html)
    return page


def _read_normal_form(html: str) -> PageTree:
    source = np.frombuffer(html.encode("utf-8", "replace"), np.uint8)
    following = source[1:][source[:-1] == _LESS]
    most = (
        int(np.count_nonzero((following != _SLASH) & (following != _BANG))) + 1,
        len(following) + 2,
        int(np.count_nonzero(following == _BANG)) + 1,
    )  # elements, texts, comments
    tables = (PACKED, PACKED_IDS, IS_VOID, IS_RAW, ATTRIBUTE_NAMES)
    return PageTree(source, *read_elements(source, most, tables))


@_compiled
def _has_raw_in_pictures(tag: Any, parent: Any, raw: Any, foreign: Any) -> Any:
    inside = np.zeros(tag.shape[0], np.uint8)
    for e in range(tag.shape[0]):
        inside[e] = foreign[tag[e]] or (parent[e] >= 0 and inside[parent[e]])
        if inside[e] and raw[tag[e]]:
            return True
    return False


def _defuse(document: Any) -> None:
    """Styles and scripts in pictures may hold elements, comments, and `</style>` as text, which the
    normal form writes as if they were raw text. Nobody sees what is in them, nor in a template,
    whose insides are no part of the document."""
    found: list[Any] = []
    for node in document:
        if node.type != 1:
            continue
        if node.tag == "template" or (node.tag in RAW and _is_in_picture(node)):
            found.append(node)
    for node in reversed(found):  # inner ones first
        inside = node.html.partition(">")[2].rpartition("</")[0]
        if node.tag != "style" or "<" in inside:
            node.decompose()


def _is_in_picture(node: Any) -> bool:
    while node is not None and node.type == 1:
        if node.tag in FOREIGN:
            return True
        node = node.parent
    return False


def bytes_inside(tree: PageTree) -> Any:
    """Per element the bytes above the space in the texts of its subtree, scripts and the like
    left out: (elements,) int64."""
    return _bytes_inside(
        tree.source, tree.tag, tree.parent, tree.text_start, tree.text_end, tree.text_parent,
        IS_UNREAD,
    )  # fmt: skip


@_compiled
def _bytes_inside(
    source: Any, tag: Any, parent: Any, start: Any, end: Any, text_parent: Any, unread: Any
) -> Any:
    num = tag.shape[0]
    skip = np.zeros(num, np.uint8)
    sums = np.zeros(num, np.int64)
    for e in range(num):
        skip[e] = unread[tag[e]] or (parent[e] >= 0 and skip[parent[e]])
    for t in range(start.shape[0]):
        p = text_parent[t]
        if p >= 0 and not skip[p]:
            for at in range(start[t], end[t]):
                sums[p] += source[at] > _SPACE
    for e in range(num - 1, -1, -1):
        if parent[e] >= 0:
            sums[parent[e]] += sums[e]
    return sums
