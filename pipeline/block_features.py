"""What the block model looks at: a row of numbers for each block of a page, named in FEATURES.

Of the block, its place, its markup, the containers around it, its neighbours and the page. The
long loop that fills the rows is a list of columns, which reads best in one piece.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from pipeline.page_blocks import Blocks, Inherited, bits_of
from pipeline.page_tree import PageTree

_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)
_LONG_WORDS, _LONG_LINK_SHARE = 12, 0.34
_HEADINGS = bits_of("h1 h2 h3 h4 h5 h6")
_H1 = bits_of("h1")
_GROUPS = (
    "nav", "header", "footer", "aside", "article", "main", "section", "form", "ul ol", "dl", "li",
    "table", "td th", "blockquote", "pre", "figure figcaption", "p", "button label", "h1", "h2",
    "h3", "h4 h5 h6", "dt dd", "details", "address",
)  # fmt: skip
_GROUP_BITS = np.array([bits_of(group) for group in _GROUPS], np.int64)
_LEVELS = 4
_OWN = (
    "words", "bytes_a_word", "link_share", "links", "capital_share", "digit_share", "punctuation",
    "ends_sentence", "words_mean", "words_min", "words_max", "breaks", "told_in_head",
    "told_in_data",
)  # fmt: skip
_PLACE = (
    "depth", "place", "words_before", "after_h1", "since_heading", "heading_level",
    "heading_words_mean", "heading_words_min", "same_form", "same_form_words",
    "same_form_link_share", "same_text", "parent_blocks", "in_best",
)  # fmt: skip
_MARKUP = (
    "near_1", "near_2", "near_3", "near_4", "markup_min", "markup_max", "markup_sum",
)  # fmt: skip
_LEVEL = ("share", "link_share", "words_a_block", "long_share", "of_long", "markup", "blocks")
_BESIDE = ("words", "link_share", "words_mean", "near_1", "same_parent", "heading", "punctuation")
_BESIDES = (-2, -1, 1, 2)
_PAGE = ("words", "long_words", "blocks", "link_share", "headings_1", "in_p", "in_li", "in_td",
         "in_pre", "elements")  # fmt: skip
FEATURES = (
    *_OWN, *(f"in_{group}" for group in _GROUPS), *_PLACE, *_MARKUP,
    *(f"level_{level}_{name}" for level in range(1, _LEVELS + 1) for name in _LEVEL),
    *(f"beside_{by}_{name}" for by in _BESIDES for name in _BESIDE),
    *(f"page_{name}" for name in _PAGE),
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """`features`: (blocks, len(FEATURES)) float32. `forms`: per block the number of its form
    (blocks alike in markup share one). `up`: see `_larger`."""

    features: Any
    forms: Any
    up: Any


def measure(
    tree: PageTree, blocks: Blocks, inherited: Inherited, markup_odds: Any, word_odds: Any
) -> Measured:
    """The features of all blocks. `*_odds`: float32 log odds by bucket."""
    num = len(blocks.parent)
    features = np.zeros((num, len(FEATURES)), np.float32)
    sums = _add_up(blocks.parent, blocks.own, tree.parent)
    up = _larger(sums, tree.parent)
    scores = _markup_scores(blocks.markup, blocks.markup_at, tree.parent, markup_odds)
    keys = _forms(
        blocks.parent, tree.tag, tree.parent, inherited.block, blocks.markup, blocks.markup_at
    )
    slots, form_sums = _grouped(keys, blocks.own)
    texts, text_sums = _grouped(blocks.own[:, 9].astype(np.uint64), blocks.own)
    if num:
        _fill(
            features, blocks.own, blocks.parent, inherited.inside, inherited.depth, sums, up,
            scores,
            _word_odds(blocks.words, word_odds), slots, form_sums, texts, text_sums,
            _best_element(sums, tree.end), tree.end, _GROUP_BITS, len(tree.tag),
        )  # fmt: skip
    return Measured(features, slots, up)


@_compiled
def _add_up(blocks_parent: Any, own: Any, parent: Any) -> Any:
    """Per element, over the blocks inside: words, link words, blocks, long words."""
    num = parent.shape[0]
    sums = np.zeros((num, 4), np.float32)
    for b in range(blocks_parent.shape[0]):
        e = blocks_parent[b]
        words = own[b, 0]
        sums[e, 0] += words
        sums[e, 1] += own[b, 2]
        sums[e, 2] += 1
        if words >= _LONG_WORDS and own[b, 2] <= _LONG_LINK_SHARE * words:
            sums[e, 3] += words
    for e in range(num - 1, -1, -1):
        p = parent[e]
        if p >= 0:
            for column in range(4):
                sums[p, column] += sums[e, column]
    return sums


@_compiled
def _markup_scores(markup: Any, at: Any, parent: Any, odds: Any) -> Any:
    """Per element: the score of the 4 nearest with tokens (itself first), least, most, sum."""
    num = parent.shape[0]
    scores = np.zeros((num, 7), np.float32)
    for e in range(num):
        p = parent[e]
        if p >= 0:
            scores[e] = scores[p]
        count = at[e + 1] - at[e]
        if count == 0:
            continue
        total = np.float32(0.0)
        for k in range(at[e], at[e + 1]):
            total += odds[markup[k]]
        value = total / count
        for k in range(3, 0, -1):
            scores[e, k] = scores[e, k - 1]
        scores[e, 0] = value
        scores[e, 4] = min(scores[e, 4], value)
        scores[e, 5] = max(scores[e, 5], value)
        scores[e, 6] += value
    return scores


@_compiled
def _slot(table_keys: Any, table_used: Any, key: Any) -> Any:
    mask = table_keys.shape[0] - 1
    place = (key ^ (key >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    at = np.int64(place >> np.uint64(33)) & mask
    while table_used[at] and table_keys[at] != key:
        at = (at + 1) & mask
    table_used[at] = 1
    table_keys[at] = key
    return at


@_compiled
def _forms(holder: Any, tag: Any, parent: Any, block: Any, markup: Any, at: Any) -> Any:
    """A key for each block: its element's tag and tokens and those of the element above."""
    keys = np.zeros(holder.shape[0], np.uint64)
    for b in range(holder.shape[0]):
        e = holder[b]
        key = np.uint64(1469598103934665603)
        for _ in range(2):
            if e < 0:
                break
            key = (key ^ np.uint64(tag[e])) * np.uint64(1099511628211)
            for k in range(at[e], min(at[e + 1], at[e] + 4)):
                key = (key ^ np.uint64(markup[k] + 1000)) * np.uint64(1099511628211)
            p = parent[e]
            e = block[p] if p >= 0 else -1
        keys[b] = key
    return keys


@_compiled
def _grouped(keys: Any, own: Any) -> Any:
    """Per block: the slot of its key, and per slot the blocks, words and link words."""
    size = 16
    while size < 2 * keys.shape[0]:
        size *= 2
    table_keys = np.zeros(size, np.uint64)
    used = np.zeros(size, np.uint8)
    sums = np.zeros((size, 3), np.float32)
    slots = np.zeros(keys.shape[0], np.int32)
    for b in range(keys.shape[0]):
        at = _slot(table_keys, used, keys[b])
        slots[b] = at
        sums[at, 0] += 1
        sums[at, 1] += own[b, 0]
        sums[at, 2] += own[b, 2]
    return slots, sums


@_compiled
def _larger(sums: Any, parent: Any) -> Any:
    """Per element the nearest one around it with more words, or itself where there is none."""
    num = parent.shape[0]
    up = np.zeros(num, np.int32)
    for e in range(num):
        p = parent[e]
        up[e] = e
        if p >= 0:
            up[e] = p if sums[p, 0] > sums[e, 0] else (up[p] if up[p] != p else e)
    return up


@_compiled
def _word_odds(words: Any, odds: Any) -> Any:
    blocks = words.shape[0]
    result = np.zeros((blocks, 3), np.float32)
    for b in range(blocks):
        total, least, most, num = 0.0, 9.0, -9.0, 0
        for k in range(words.shape[1]):
            if words[b, k] < 0:
                break
            value = odds[words[b, k]]
            total += value
            least = min(least, value)
            most = max(most, value)
            num += 1
        if num:
            result[b, 0], result[b, 1], result[b, 2] = total / num, least, most
    return result


@_compiled
def _best_element(sums: Any, end: Any) -> Any:
    """The smallest element that holds 70% of the page's long words: of its ancestors alone."""
    best = 0
    num = sums.shape[0]
    if num == 0:
        return 0
    goal = 0.7 * sums[0, 3]
    e = 0
    while e < end[best]:
        if sums[e, 3] >= goal and sums[e, 3] > 0:
            best = e
            e += 1
        else:
            e = max(end[e], e + 1)
    return best


@_compiled
def _fill(  # noqa: C901 - one line a column
    features: Any, own: Any, holder: Any, inside: Any, depth: Any, sums: Any, up: Any,
    scores: Any, odds: Any, slots: Any, form_sums: Any, texts: Any, text_sums: Any,
    best: Any, end: Any, groups: Any, num_elements: Any,
) -> Any:  # fmt: skip
    blocks = holder.shape[0]
    total = max(1.0, np.float64(own[:, 0].sum()))
    long_total = max(1.0, np.float64(sums[0, 3]))
    h1 = -1
    for b in range(blocks):
        if inside[holder[b]] & _H1:
            h1 = b
            break
    before = 0.0
    heading = -1
    headings = 0
    page = np.zeros(4)
    for b in range(blocks):
        e = holder[b]
        words = max(1.0, own[b, 0])
        f = features[b]
        c = 0
        f[0], f[1], f[2], f[3] = own[b, 0], own[b, 1] / words, own[b, 2] / words, own[b, 3]
        f[4], f[5], f[6] = own[b, 4] / words, own[b, 5] / words, own[b, 6] / words
        sign = own[b, 7]
        f[7] = sign == 0x2E or sign == 0x21 or sign == 0x3F
        f[8], f[9], f[10], f[11] = odds[b, 0], odds[b, 1], odds[b, 2], own[b, 8]
        f[12], f[13] = own[b, 10] / words, own[b, 11] / words
        c = 14
        for g in range(groups.shape[0]):
            f[c] = (inside[e] & groups[g]) != 0
            c += 1
        f[c] = depth[e]
        f[c + 1] = b / blocks
        f[c + 2] = before / total
        f[c + 3] = (b - h1) / blocks if h1 >= 0 else -2.0
        if inside[e] & _HEADINGS:
            heading = b
            headings += (inside[e] & _H1) != 0
        f[c + 4] = b - heading if heading >= 0 else -1
        if heading >= 0:
            level = inside[holder[heading]] & _HEADINGS
            while level and not level & _H1:
                level >>= 1
                f[c + 5] += 1
            f[c + 6], f[c + 7] = odds[heading, 0], odds[heading, 1]
        else:
            f[c + 5] = -1
        group = form_sums[slots[b]]
        f[c + 8], f[c + 9] = group[0], group[1] / group[0]
        f[c + 10] = group[2] / max(1.0, group[1])
        f[c + 11] = text_sums[texts[b], 0]
        f[c + 12] = sums[e, 2]
        f[c + 13] = best <= e and e < end[best]
        c += 14
        for k in range(7):
            f[c + k] = scores[e, k]
        c += 7
        a = e
        for _ in range(_LEVELS):
            inner = max(1.0, sums[a, 0])
            f[c] = sums[a, 0] / total
            f[c + 1] = sums[a, 1] / inner
            f[c + 2] = sums[a, 0] / max(1.0, sums[a, 2])
            f[c + 3] = sums[a, 3] / inner
            f[c + 4] = sums[a, 3] / long_total
            f[c + 5] = scores[a, 0]
            f[c + 6] = sums[a, 2]
            c += 7
            a = up[a]
        for side in range(4):
            by = b + (side - 2 if side < 2 else side - 1)
            if 0 <= by < blocks:
                count = max(1.0, own[by, 0])
                f[c], f[c + 1], f[c + 2] = own[by, 0], own[by, 2] / count, odds[by, 0]
                f[c + 3] = scores[holder[by], 0]
                f[c + 4] = slots[by] == slots[b]
                f[c + 5] = (inside[holder[by]] & _HEADINGS) != 0
                f[c + 6] = own[by, 6] / count
            else:
                f[c] = -1
            c += 7
        before += own[b, 0]
        page[0] += own[b, 0] * ((inside[e] & groups[16]) != 0)
        page[1] += own[b, 0] * ((inside[e] & groups[10]) != 0)
        page[2] += own[b, 0] * ((inside[e] & groups[12]) != 0)
        page[3] += own[b, 0] * ((inside[e] & groups[14]) != 0)
    for b in range(blocks):
        f = features[b]
        c = features.shape[1] - 10
        f[c], f[c + 1], f[c + 2] = total, long_total, blocks
        f[c + 3] = own[:, 2].sum() / total if b == 0 else features[0, c + 3]
        f[c + 4] = headings
        for k in range(4):
            f[c + 5 + k] = page[k] / total
        f[c + 9] = num_elements
