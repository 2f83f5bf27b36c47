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

TAGS = (
    "?", "html", "head", "body", "title", "meta", "link", "style", "script", "noscript",
    "template", "base", "nav", "header", "footer", "aside", "article", "main", "section", "form",
    "div", "p", "ul", "ol", "li", "dl", "dt", "dd", "table", "thead", "tbody", "tfoot", "tr",
    "td", "th", "caption", "blockquote", "pre", "figure", "figcaption", "h1", "h2", "h3", "h4",
    "h5", "h6", "button", "label", "select", "option", "textarea", "input", "fieldset", "legend",
    "details", "summary", "address", "hr", "br", "img", "a", "abbr", "acronym", "b", "bdi",
    "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd", "mark",
    "q", "rp", "rt", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup",
    "time", "tt", "u", "var", "wbr", "svg", "math", "iframe", "object", "video", "audio",
    "canvas", "picture", "source", "embed", "area", "col", "param", "track", "center", "dialog",
    "menu", "hgroup", "noembed", "noframes", "xmp", "optgroup", "path", "g", "use", "nobr",
    "basefont", "bgsound", "frame", "keygen", "plaintext", "datalist", "progress", "meter",
)  # fmt: skip
TAG_IDS = {name: index for index, name in enumerate(TAGS)}
_VOID = [
    "area",
    "base",
    "br",
    "col",
    "embed",
    "hr",
    "img",
    "input",
    "link",
    "meta",
    "param",
    "source",
    "track",
    "wbr",
    "basefont",
    "bgsound",
    "frame",
    "keygen",
]  # lexbor's, which writes no end tag for them
_RAW = ["style", "script", "xmp", "iframe", "noembed", "noframes", "plaintext"]
_SCRIPT = TAG_IDS["script"]
_FOREIGN = ("svg", "math")
_UNREAD = [
    "head",
    "style",
    "script",
    "noscript",
    "template",
    "svg",
    "iframe",
    "object",
    "video",
    "audio",
    "canvas",
    "select",
    "textarea",
    "noembed",
    "noframes",
    "option",
    "optgroup",
    "title",
    "rp",
    "datalist",
    "progress",
    "meter",
]  # what stands inside is no text of the page
_INLINE = [
    "a",
    "abbr",
    "acronym",
    "b",
    "bdi",
    "bdo",
    "big",
    "cite",
    "code",
    "data",
    "del",
    "dfn",
    "em",
    "font",
    "i",
    "ins",
    "kbd",
    "label",
    "mark",
    "q",
    "rp",
    "rt",
    "ruby",
    "s",
    "samp",
    "small",
    "span",
    "strike",
    "strong",
    "sub",
    "sup",
    "time",
    "tt",
    "u",
    "var",
    "wbr",
    "img",
    "picture",
    "source",
    "nobr",
    "br",
]
_NAME_BYTES = 7
_FNV_START, _FNV_PRIME, _LOW_56 = 14695981039346656037, 1099511628211, (1 << 56) - 1

_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)


def _packed(name: str) -> int:
    """The bytes of a short name, or a hash of 56 bits (FNV-1a), under the length."""
    value, whole = 0, _FNV_START
    for index, byte in enumerate(name.encode()):
        value |= byte << (8 * index)
        whole = (whole ^ byte) * _FNV_PRIME % (1 << 64)
    short = len(name) <= _NAME_BYTES
    return (value if short else whole & _LOW_56) | len(name) << 56


def _flags(names: list[str]) -> Any:
    flags = np.zeros(len(TAGS), np.uint8)
    flags[[TAG_IDS[name] for name in names]] = 1
    return flags


_ORDER = sorted(range(1, len(TAGS)), key=lambda index: _packed(TAGS[index]))
_PACKED = np.array([_packed(TAGS[index]) for index in _ORDER], np.uint64)
_PACKED_IDS = np.array(_ORDER, np.int16)
_IS_VOID, _IS_RAW, _IS_FOREIGN = _flags(_VOID), _flags(_RAW), _flags(list(_FOREIGN))
IS_UNREAD, IS_INLINE = _flags(_UNREAD), _flags(_INLINE)

# The attributes that are kept, by column of `PageTree.attributes`.
CLASS, ID, ROLE, ITEMPROP, STYLE, HIDDEN, ARIA_HIDDEN, CONTENT, TYPE = range(9)
MEDIA, BGCOLOR, BACKGROUND, COLOR, TEXT = range(9, 14)
_ATTRIBUTES = (
    "class",
    "id",
    "role",
    "itemprop",
    "style",
    "hidden",
    "aria-hidden",
    "content",
    "type",
    "media",
    "bgcolor",
    "background",
    "color",
    "text",
)
_ATTRIBUTE_NAMES = np.array([_packed(name) for name in _ATTRIBUTES], np.uint64)
_SPACE, _BANG, _QUOTE, _SLASH = 0x20, 0x21, 0x22, 0x2F
_LESS, _EQUAL, _MORE, _MINUS, _QUESTION = 0x3C, 0x3D, 0x3E, 0x2D, 0x3F


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
    if _has_raw_in_pictures(page.tag, page.parent, _IS_RAW, _IS_FOREIGN):
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
    tables = (_PACKED, _PACKED_IDS, _IS_VOID, _IS_RAW, _ATTRIBUTE_NAMES)
    return PageTree(source, *_read(source, most, tables))


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
        if node.tag == "template" or (node.tag in _RAW and _is_in_picture(node)):
            found.append(node)
    for node in reversed(found):  # inner ones first
        inside = node.html.partition(">")[2].rpartition("</")[0]
        if node.tag != "style" or "<" in inside:
            node.decompose()


def _is_in_picture(node: Any) -> bool:
    while node is not None and node.type == 1:
        if node.tag in _FOREIGN:
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


@_compiled
def _name(source: Any, at: Any, stop: Any) -> Any:
    """(packed name, position behind it) of the tag's or attribute's name at `at`."""
    value, whole = np.uint64(0), np.uint64(_FNV_START)
    length = 0
    while at < stop:
        byte = source[at]
        if byte in (_SPACE, _MORE, _SLASH) or (byte == _EQUAL and length > 0):
            break
        if length < _NAME_BYTES:
            value |= np.uint64(byte) << np.uint64(8 * length)
        whole = (whole ^ np.uint64(byte)) * np.uint64(_FNV_PRIME)
        length += 1
        at += 1
    if length > _NAME_BYTES:
        value = whole & np.uint64(_LOW_56)
    return value | (np.uint64(min(length, 255)) << np.uint64(56)), at


@_compiled
def _tag_id(packed: Any, names: Any, ids: Any) -> Any:
    low, high = 0, names.shape[0]
    while low < high:
        middle = (low + high) // 2
        if names[middle] < packed:
            low = middle + 1
        else:
            high = middle
    if low < names.shape[0] and names[low] == packed:
        return ids[low]
    return np.int16(0)


@_compiled
def _attributes(source: Any, at: Any, wanted: Any, into: Any) -> Any:
    """Read ` name="value"` until the tag's end; the position behind its `>`."""
    stop = source.shape[0]
    while at < stop and source[at] != _MORE:
        if source[at] != _SPACE:
            at += 1
            continue
        packed, at = _name(source, at + 1, stop)
        if at + 1 >= stop or source[at] != _EQUAL or source[at + 1] != _QUOTE:
            continue
        start = at + 2
        at = start
        while at < stop and source[at] != _QUOTE:
            at += 1
        for column in range(wanted.shape[0]):
            if wanted[column] == packed and into[column, 1] == 0:
                into[column, 0] = start
                into[column, 1] = at
                break
        at += 1
    return min(at + 1, stop)


@_compiled
def _has_name(source: Any, at: Any, name: Any, length: Any) -> Any:
    """Whether the name source[name:name + length], in small letters, stands whole at `at`."""
    if at + length >= source.shape[0]:
        return False
    for offset in range(length):
        if source[at + offset] | 0x20 != source[name + offset] | 0x20:
            return False
    behind = source[at + length]
    return behind <= _SPACE or behind in (_SLASH, _MORE)


@_compiled
def _raw_end(source: Any, at: Any, name: Any, length: Any, is_script: Any) -> Any:
    """Where the end tag of a raw text element stands, or the page's end. In a script, a comment in
    which a script begins hides one end tag (the double escaped state of the HTML standard); of one
    that goes on to the page's end, the last is its own."""
    stop = source.shape[0]
    last = stop
    escaped = double = False
    while at < stop:
        byte = source[at]
        if byte == _LESS and at + 1 < stop:
            if source[at + 1] == _SLASH and _has_name(source, at + 2, name, length):
                if not double:
                    return at
                double, last = False, at
            elif is_script and escaped and _has_name(source, at + 1, name, length):
                double = True
            elif (
                is_script
                and at + 3 < stop
                and source[at + 1] == _BANG
                and source[at + 2] == _MINUS
                and source[at + 3] == _MINUS
            ):
                escaped = True
                at += 3
        elif byte == _MORE and escaped and source[at - 1] == _MINUS and source[at - 2] == _MINUS:
            escaped = double = False
        at += 1
    return last


@_compiled
def _comment_end(source: Any, at: Any) -> Any:
    stop = source.shape[0]
    while at + 2 < stop:
        if source[at] == _MINUS and source[at + 1] == _MINUS and source[at + 2] == _MORE:
            return at
        at += 1
    return stop


@_compiled
def _read(source: Any, most: Any, tables: Any) -> Any:  # noqa: C901 - one loop, one state machine
    names, ids, is_void, is_raw, wanted = tables
    upper, upper_texts, upper_comments = most
    tag = np.zeros(upper, np.int16)
    parent = np.zeros(upper, np.int32)
    end = np.zeros(upper, np.int32)
    opens = np.zeros(upper, np.int32)
    closes = np.full(upper, source.shape[0], np.int32)
    attributes = np.zeros((upper, wanted.shape[0], 2), np.int32)
    text_start = np.zeros(upper_texts, np.int32)
    text_end = np.zeros(upper_texts, np.int32)
    text_parent = np.zeros(upper_texts, np.int32)
    text_before = np.zeros(upper_texts, np.int32)
    comment_start = np.zeros(upper_comments, np.int32)
    comment_end = np.zeros(upper_comments, np.int32)
    num, texts, comments = 0, 0, 0
    current = -1
    stop = source.shape[0]
    at = 0
    while at < stop:
        if source[at] != _LESS:
            start = at
            while at < stop and source[at] != _LESS:
                at += 1
            text_start[texts], text_end[texts], text_parent[texts] = start, at, current
            text_before[texts] = num
            texts += 1
            continue
        following = source[at + 1] if at + 1 < stop else _MORE
        if following in (_BANG, _QUESTION):
            if at + 3 < stop and source[at + 2] == _MINUS and source[at + 3] == _MINUS:
                inside = at + 4
                at = _comment_end(source, inside)
                comment_start[comments], comment_end[comments] = inside, at
                comments += 1
                at = min(at + 3, stop)
            else:
                while at < stop and source[at] != _MORE:
                    at += 1
                at += 1
            continue
        if following == _SLASH:
            packed, _ = _name(source, at + 2, stop)
            is_alone = is_void[_tag_id(packed, names, ids)]  # pictures have some with an end tag
            while at < stop and source[at] != _MORE:
                at += 1
            at += 1
            if current >= 0 and not is_alone:
                end[current], closes[current] = num, at
                current = parent[current]
            continue
        packed, behind = _name(source, at + 1, stop)
        kind = _tag_id(packed, names, ids)
        name_start = at + 1
        tag[num], parent[num], opens[num] = kind, current, at
        at = _attributes(source, behind, wanted, attributes[num])
        num += 1
        if is_void[kind]:
            end[num - 1], closes[num - 1] = num, at
            continue
        current = num - 1
        if is_raw[kind]:
            start = at
            at = _raw_end(source, at, name_start, behind - name_start, kind == _SCRIPT)
            if at > start:
                text_start[texts], text_end[texts], text_parent[texts] = start, at, current
                text_before[texts] = num
                texts += 1
    while current >= 0:
        end[current] = num
        current = parent[current]
    return (
        tag[:num], parent[:num], end[:num], opens[:num], closes[:num], attributes[:num],
        text_start[:texts], text_end[:texts], text_parent[:texts], text_before[:texts],
        comment_start[:comments], comment_end[:comments],
    )  # fmt: skip
