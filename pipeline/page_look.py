"""A first look at a parsed page, before the costly part: is its text worth extracting?

What it drops, a later rule would drop as well: a page with next to no text, or one whose prose is
surely in a language that is not wanted, by the detector that judges the extracted text later.
"""

import html
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from pipeline.page_blocks import read_texts
from pipeline.page_tree import PageTree
from pipeline.text.language import detect_language

SURE_LANGUAGE = 0.8  # no wanted page was lost from 0.5 on, in any test; see test_page_look.py
POSSIBLE_LANGUAGE = 0.5
_PROSE = 40  # bytes of a text that is more than a label
_LEAST = 200  # characters of prose, for a judgement
_PART = 300  # characters
_MOST = 3000  # bytes that are looked at
_WINDOW = 300  # bytes of the page in a row
_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)
TOO_SHORT, LANGUAGE = "too-short", "language"


@dataclass(frozen=True)
class Wanted:
    """At least `min_chars` visible characters, and one of `languages` (ISO 639; none: any)."""

    min_chars: int = 0
    languages: tuple[str, ...] = ()


ALL = Wanted()


@dataclass(frozen=True)
class Look:
    """`reason` why the page is not wanted, if any; `language` as far as it was asked for."""

    reason: str | None = None
    language: str = ""


def first_look(tree: PageTree, wanted: Wanted) -> Look:
    """Hidden text still counts as visible here: a page passes rather than not."""
    if wanted.min_chars or wanted.languages:
        num_bytes, texts = read_texts(tree)
        if 0 < num_bytes < wanted.min_chars:
            return Look(TOO_SHORT)
        if wanted.languages:
            return _by_language(tree, texts, wanted.languages)
    return Look()


def _by_language(tree: PageTree, texts: Any, languages: tuple[str, ...]) -> Look:
    """The prose as a whole is surely in another language, and no part of the page is in one that
    is wanted: an article between menus and comments of another language passes."""
    lengths = tree.text_end[texts] - tree.text_start[texts]
    prose = _spread(tree, texts[lengths >= _PROSE])
    if len(prose) < _LEAST:
        return Look()
    found = detect_language(prose)
    if found.code in languages or found.score < SURE_LANGUAGE:
        return Look(language=found.code)
    everything = _spread(tree, texts)
    for at in range(0, len(everything), _PART):
        part = detect_language(everything[at : at + _PART])
        if part.code in languages and part.score >= POSSIBLE_LANGUAGE:
            return Look(language=found.code)
    return Look(LANGUAGE, found.code)


def _spread(tree: PageTree, texts: Any) -> str:
    """These texts (indices); of more than _MOST bytes, windows that lie evenly over them."""
    start, end = tree.text_start[texts], tree.text_end[texts]
    total = int((end - start).sum()) + len(texts)
    period = max(_WINDOW, total * _WINDOW // _MOST)
    found = _windows(tree.source, start, end, period, min(total, _MOST + 2 * _WINDOW))
    return html.unescape(found.tobytes().decode("utf-8", "ignore"))


@_compiled
def _windows(source: Any, start: Any, end: Any, period: Any, most: Any) -> Any:
    """Of each `period` bytes the first _WINDOW, a space behind each text."""
    found = np.full(most, 0x20, np.uint8)
    num, at = 0, 0
    for t in range(start.shape[0]):
        for i in range(start[t], end[t] + 1):
            if at % period < _WINDOW and num < most:
                if i < end[t]:
                    found[num] = source[i]
                num += 1
            at += 1
    return found[:num]
