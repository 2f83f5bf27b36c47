"""The blocks of a page's text, and what can be counted of each.

A block is the text between two boundaries of block-level elements. A few linear passes over the
arrays of page_tree.py, compiled: the long loops are state machines that read best in one piece.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from pipeline.page_tags import IS_INLINE, IS_UNREAD, TAG_IDS, TAGS
from pipeline.page_tree import PageTree

MARKUP_BUCKETS, WORD_BUCKETS = 1 << 13, 1 << 14
_PAIR_BUCKETS = 1 << 17
_MAX_TOKENS = 12  # of one element's class, id, role and itemprop
_MAX_WORDS = 24  # of a block, whose words are looked up
_INSIDE = [
    "nav", "header", "footer", "aside", "article", "main", "section", "form", "ul", "ol", "dl",
    "li", "table", "td", "th", "blockquote", "pre", "figure", "figcaption", "p", "a", "button",
    "label", "h1", "h2", "h3", "h4", "h5", "h6", "dt", "dd", "details", "address", "caption",
    "code",
]  # fmt: skip
_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)
_BIT = np.zeros(len(TAGS), np.int64)
for _index, _tag in enumerate(_INSIDE):
    _BIT[TAG_IDS[_tag]] = 1 << _index
_UNREAD_BUT_NOSCRIPT = IS_UNREAD.copy()
_UNREAD_BUT_NOSCRIPT[TAG_IDS["noscript"]] = 0


def bits_of(names: str) -> int:
    """The bits of `Inherited.inside` for these tags."""
    return sum(int(_BIT[TAG_IDS[name]]) for name in names.split())


_IN_LINK = bits_of("a")


@dataclass(frozen=True)
class Blocks:
    """`pieces`: (text index, line break before) of the texts used; block i holds the pieces
    first[i] to first[i + 1] - 1. `parent`: its nearest block-level element. `own`: (blocks, 12),
    of each its words, letters, words in links, links, capitals, digits, signs, last sign, line
    breaks, a hash of its text, headings and data that it gives a name to."""

    piece_text: Any
    piece_break: Any
    first: Any
    parent: Any
    markup: Any  # buckets of the elements' tokens, those of e from markup_at[e] to [e + 1]
    markup_at: Any
    words: Any  # buckets of the blocks' first words, -1 for none: (blocks, 24)
    own: Any


@dataclass(frozen=True)
class Inherited:
    """Per element: `skip` (its text is not read), `inside` (bits of the tags around and of its
    own), `block` (nearest block-level element, itself included), `depth` (of such)."""

    skip: Any
    inside: Any
    block: Any
    depth: Any


@_compiled
def _inherit(tag: Any, parent: Any, hidden: Any, bit: Any, unread: Any, inline: Any) -> Any:
    """Per element: not to be read, what it stands in, nearest block-level element, depth."""
    num = tag.shape[0]
    skip = np.zeros(num, np.uint8)
    inside = np.zeros(num, np.int64)
    block = np.zeros(num, np.int32)
    depth = np.zeros(num, np.int32)
    for e in range(num):
        p = parent[e]
        kind = tag[e]
        skip[e] = unread[kind] | hidden[e]
        inside[e] = bit[kind]
        block[e] = e
        if p >= 0:
            skip[e] |= skip[p]
            inside[e] |= inside[p]
            depth[e] = depth[p]
            if inline[kind]:
                block[e] = block[p]
        if not inline[kind]:
            depth[e] += 1
    return skip, inside, block, depth


@_compiled
def _is_blank(source: Any, start: Any, end: Any) -> Any:
    at = start
    while at < end:
        byte = source[at]
        if byte == 0x26 and at + 5 < end and source[at + 1] == 0x6E and source[at + 2] == 0x62:
            at += 6  # &nbsp;
            continue
        if byte == 0xC2 and at + 1 < end and source[at + 1] == 0xA0:
            at += 2
            continue
        if byte > 0x20:
            return False
        at += 1
    return True


@_compiled
def _group(
    source: Any, start: Any, end: Any, parent: Any, before: Any, tag: Any,
    skip: Any, block: Any, inline: Any, br: Any,
) -> Any:  # fmt: skip
    """Texts to blocks."""
    num = start.shape[0]
    piece_text = np.zeros(num, np.int32)
    piece_break = np.zeros(num, np.uint8)
    first = np.zeros(num + 1, np.int32)
    holder = np.zeros(num, np.int32)
    pieces, blocks = 0, 0
    seen = 0  # elements
    last = -2
    broken, newline = True, False
    for t in range(num):
        for e in range(seen, before[t]):
            if tag[e] == br:
                newline = True
            elif not inline[tag[e]]:
                broken = True
        seen = max(seen, before[t])
        p = parent[t]
        if p < 0 or skip[p]:
            continue
        if block[p] != last:
            broken = True
        if _is_blank(source, start[t], end[t]):
            if not broken:
                piece_text[pieces], piece_break[pieces] = t, newline
                pieces += 1
                newline = False
            continue
        if broken:
            first[blocks], holder[blocks] = pieces, block[p]
            blocks += 1
            broken, newline = False, False
            last = block[p]
        piece_text[pieces], piece_break[pieces] = t, newline
        pieces += 1
        newline = False
    first[blocks] = pieces
    return piece_text[:pieces], piece_break[:pieces], first[: blocks + 1], holder[:blocks]


@_compiled
def _tokens(source: Any, start: Any, end: Any, buckets: Any, at: Any, stop: Any) -> Any:
    """Runs of letters, cut where a capital begins, hashed into `buckets[at:stop]`."""
    value = np.uint32(2166136261)
    length = 0
    was_small = False
    for i in range(start, end + 1):
        byte = source[i] if i < end else np.uint8(0x20)
        lower = byte | np.uint8(0x20)
        letter = (lower >= 0x61 and lower <= 0x7A and byte >= 0x41) or byte >= 0x80
        capital = byte >= 0x41 and byte <= 0x5A
        if not letter or (capital and was_small):
            if length > 1 and at < stop:
                buckets[at] = (value ^ (value >> np.uint32(15))) & np.uint32(MARKUP_BUCKETS - 1)
                at += 1
            value = np.uint32(2166136261)
            length = 0
        if letter:
            value = np.uint32((value ^ np.uint32(lower)) * np.uint32(16777619))
            length += 1
        was_small = letter and not capital
    return at


@_compiled
def _markup(source: Any, attributes: Any) -> Any:
    num = attributes.shape[0]
    total = 0
    for e in range(num):
        length = 0
        for column in range(4):
            length += attributes[e, column, 1] - attributes[e, column, 0] + 1
        total += min(_MAX_TOKENS, length // 2)
    buckets = np.zeros(total, np.int16)
    at_element = np.zeros(num + 1, np.int32)
    at = 0
    for e in range(num):
        at_element[e] = at
        stop = min(at + _MAX_TOKENS, total)
        for column in range(4):
            if attributes[e, column, 1] > attributes[e, column, 0]:
                at = _tokens(
                    source, attributes[e, column, 0], attributes[e, column, 1], buckets, at, stop
                )
    at_element[num] = at
    return buckets[:at], at_element


@_compiled
def _note_pairs(source: Any, start: Any, end: Any, pairs: Any, bit: Any) -> Any:
    """Mark the pairs of words that follow each other in source[start:end]."""
    value, before = np.uint32(2166136261), np.uint32(0)
    length = 0
    for i in range(start, end + 1):
        byte = source[i] if i < end else np.uint8(0x20)
        lower = byte | np.uint8(0x20)
        if (
            (lower >= 0x61 and lower <= 0x7A and byte >= 0x41)
            or (byte >= 0x30 and byte <= 0x39)
            or byte >= 0x80
            or byte == 0x5F
        ):
            value = np.uint32((value ^ np.uint32(lower)) * np.uint32(16777619))
            length += 1
        elif length:
            pairs[_pair(before, value)] |= bit
            before, value, length = value, np.uint32(2166136261), 0


@_compiled
def _pair(before: Any, value: Any) -> Any:
    mixed = np.uint32((before * np.uint32(2654435761)) ^ value)
    return (mixed ^ (mixed >> np.uint32(15))) & np.uint32(_PAIR_BUCKETS - 1)


@_compiled
def _told_elsewhere(
    source: Any, tag: Any, attributes: Any, start: Any, end: Any, parent: Any, meta: Any,
    script: Any, title: Any,
) -> Any:  # fmt: skip
    """Pairs of words of the head's title and descriptions (1) and of linked data (2)."""
    pairs = np.zeros(_PAIR_BUCKETS, np.uint8)
    for e in range(tag.shape[0]):
        if tag[e] == meta:
            _note_pairs(source, attributes[e, 7, 0], attributes[e, 7, 1], pairs, np.uint8(1))
    for t in range(start.shape[0]):
        p = parent[t]
        if p < 0:
            continue
        if tag[p] == title:
            _note_pairs(source, start[t], end[t], pairs, np.uint8(1))
            continue
        at = attributes[p, 8, 0]  # application/ld+json is 19 bytes with an l in the middle
        if tag[p] == script and attributes[p, 8, 1] - at == 19 and source[at + 12] == 0x6C:
            _note_pairs(source, start[t], end[t], pairs, np.uint8(2))
    return pairs


@_compiled
def _read_words(  # noqa: C901 - one state machine
    source: Any, start: Any, end: Any, text_parent: Any, piece_text: Any, piece_break: Any,
    first: Any, inside: Any, pairs: Any,
) -> Any:  # fmt: skip
    """Per block: words, bytes, link words, links, capitals, digits, punctuation, last sign,
    breaks, hash of the text, pairs told in the head and in linked data; and the buckets of its
    first words."""
    blocks = first.shape[0] - 1
    own = np.zeros((blocks, 12), np.float64)
    words = np.full((blocks, _MAX_WORDS), -1, np.int16)
    for b in range(blocks):
        whole = np.uint32(2166136261)
        num = 0
        last = np.uint8(0x20)
        linked = 0
        last_link = -1
        before = np.uint32(0)
        for piece in range(first[b], first[b + 1]):
            t = piece_text[piece]
            own[b, 8] += piece_break[piece]
            is_link = (inside[text_parent[t]] & _IN_LINK) != 0
            if is_link and last_link != text_parent[t]:
                own[b, 3] += 1
                last_link = text_parent[t]
            value = np.uint32(2166136261)
            length = 0
            first_byte = np.uint8(0)
            digits = False
            i = start[t]
            while i <= end[t]:
                byte = source[i] if i < end[t] else np.uint8(0x20)
                if byte == 0x26:  # a reference: &amp; &lt; &gt; &nbsp; and no other
                    while i < end[t] and source[i] != 0x3B:
                        i += 1
                    byte = np.uint8(0x20)
                lower = byte | np.uint8(0x20)
                digit = byte >= 0x30 and byte <= 0x39
                wordy = (lower >= 0x61 and lower <= 0x7A and byte >= 0x41) or digit or byte >= 0x80
                wordy = wordy or byte == 0x5F
                if wordy:
                    if length == 0:
                        first_byte = byte
                        digits = digit
                    value = np.uint32((value ^ np.uint32(lower)) * np.uint32(16777619))
                    length += 1
                elif length:
                    if num < _MAX_WORDS:
                        words[b, num] = (value ^ (value >> np.uint32(13))) & np.uint32(
                            WORD_BUCKETS - 1
                        )
                    whole = np.uint32((whole ^ value) * np.uint32(16777619))
                    told = pairs[_pair(before, value)]
                    own[b, 10] += told & 1
                    own[b, 11] += told >> 1
                    before = value
                    num += 1
                    own[b, 1] += length
                    if is_link:
                        linked += 1
                    if first_byte >= 0x41 and first_byte <= 0x5A:
                        own[b, 4] += 1
                    if digits:
                        own[b, 5] += 1
                    value = np.uint32(2166136261)
                    length = 0
                if byte > 0x20:
                    last = byte
                    if byte == 0x2C or byte == 0x2E or byte == 0x3B or byte == 0x3F or byte == 0x21:
                        own[b, 6] += 1
                i += 1
        own[b, 0], own[b, 2], own[b, 7] = num, linked, last
        own[b, 9] = whole
    return own, words


@_compiled
def _written(source: Any, start: Any, end: Any, parent: Any, skip: Any) -> Any:
    """Bytes above the space in the texts that are read, whatever their sense."""
    count = 0
    for t in range(start.shape[0]):
        if parent[t] >= 0 and not skip[parent[t]]:
            for at in range(start[t], end[t]):
                count += source[at] > 0x20
    return count


def read_texts(tree: PageTree) -> tuple[int, Any]:
    """The bytes above the space that any reader may see, with scripts or without, and the indices
    of the texts that are read."""
    seen = np.zeros(len(tree.tag), np.uint8)
    inherited = _inherited(tree, seen)
    most = _inherit(tree.tag, tree.parent, seen, _BIT, _UNREAD_BUT_NOSCRIPT, IS_INLINE)[0]
    num_bytes = _written(tree.source, tree.text_start, tree.text_end, tree.text_parent, most)
    holder = tree.text_parent
    return int(num_bytes), np.flatnonzero((holder >= 0) & (inherited.skip[holder] == 0))


def _inherited(tree: PageTree, hidden: Any) -> Inherited:
    texts = (tree.source, tree.text_start, tree.text_end, tree.text_parent)
    inherited = Inherited(*_inherit(tree.tag, tree.parent, hidden, _BIT, IS_UNREAD, IS_INLINE))
    if not (tree.tag == TAG_IDS["noscript"]).any():
        return inherited
    as_well = Inherited(
        *_inherit(tree.tag, tree.parent, hidden, _BIT, _UNREAD_BUT_NOSCRIPT, IS_INLINE)
    )
    shown = _written(*texts, as_well.skip)
    return as_well if shown > 2 * _written(*texts, inherited.skip) else inherited


def find_blocks(tree: PageTree, hidden: Any) -> tuple[Blocks, Inherited]:
    """The blocks of a page without its hidden elements (uint8 mask), and the inherited arrays.

    <noscript> is read where it holds most of the page, as forums do for readers without scripts:
    then it is what such a reader sees.
    """
    inherited = _inherited(tree, hidden)
    piece_text, piece_break, first, holder = _group(
        tree.source, tree.text_start, tree.text_end, tree.text_parent, tree.text_before, tree.tag,
        inherited.skip, inherited.block, IS_INLINE, TAG_IDS["br"],
    )  # fmt: skip
    markup, markup_at = _markup(tree.source, tree.attributes)
    pairs = _told_elsewhere(
        tree.source, tree.tag, tree.attributes, tree.text_start, tree.text_end, tree.text_parent,
        TAG_IDS["meta"], TAG_IDS["script"], TAG_IDS["title"],
    )  # fmt: skip
    own, words = _read_words(
        tree.source, tree.text_start, tree.text_end, tree.text_parent, piece_text, piece_break,
        first, inherited.inside, pairs,
    )  # fmt: skip
    return Blocks(piece_text, piece_break, first, holder, markup, markup_at, words, own), inherited
