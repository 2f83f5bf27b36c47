"""Which elements and attributes of HTML a page tree knows, and what is said of them."""

from typing import Any

import numpy as np

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
RAW = ["style", "script", "xmp", "iframe", "noembed", "noframes", "plaintext"]
SCRIPT = TAG_IDS["script"]
FOREIGN = ("svg", "math")
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
NAME_BYTES = 7
FNV_START, FNV_PRIME, LOW_56 = 14695981039346656037, 1099511628211, (1 << 56) - 1


def _packed(name: str) -> int:
    """The bytes of a short name, or a hash of 56 bits (FNV-1a), under the length."""
    value, whole = 0, FNV_START
    for index, byte in enumerate(name.encode()):
        value |= byte << (8 * index)
        whole = (whole ^ byte) * FNV_PRIME % (1 << 64)
    short = len(name) <= NAME_BYTES
    return (value if short else whole & LOW_56) | len(name) << 56


def _flags(names: list[str]) -> Any:
    flags = np.zeros(len(TAGS), np.uint8)
    flags[[TAG_IDS[name] for name in names]] = 1
    return flags


_ORDER = sorted(range(1, len(TAGS)), key=lambda index: _packed(TAGS[index]))
PACKED = np.array([_packed(TAGS[index]) for index in _ORDER], np.uint64)
PACKED_IDS = np.array(_ORDER, np.int16)
IS_VOID, IS_RAW, IS_FOREIGN = _flags(_VOID), _flags(RAW), _flags(list(FOREIGN))
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
ATTRIBUTE_NAMES = np.array([_packed(name) for name in _ATTRIBUTES], np.uint64)
