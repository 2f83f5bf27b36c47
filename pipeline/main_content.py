"""The main text of a page by a learnt judgement of its blocks, over one parse.

Boosted trees give each block its chance of being main content; a second set sees the neighbours'
chances and the page's type. The blocks that promise the best F1 of words are the text.
Trained by benchmarks/train_extract.py on WCXB's development pages (CC-BY-4.0 annotations).
"""

import functools
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np

from pipeline.block_features import FEATURES, Measured, measure
from pipeline.boosted_trees import Trees
from pipeline.page_blocks import Blocks, find_blocks
from pipeline.page_context import CONTEXT_FEATURES, context_of
from pipeline.page_tags import TAG_IDS
from pipeline.page_tree import PageTree
from pipeline.page_types import PAGE_TYPES, type_features

MODEL = Path(__file__).with_name("main_content.npz")
_SPACES = re.compile(r"[ \t\n\f\r\xa0]+")
_LOOK_UP = 12  # elements around a block that may be a list item or a cell
_PRE, _ITEM, _CELL, _ROW = 1, 2, 3, 4
_ROLES = np.zeros(len(TAG_IDS), np.uint8)
for _name, _role in (
    ("pre", _PRE), ("li", _ITEM), ("dd", _ITEM), ("td", _CELL), ("th", _CELL), ("tr", _ROW),
):  # fmt: skip
    _ROLES[TAG_IDS[_name]] = _role
_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)


@dataclass(frozen=True)
class Model:
    """`scale`: per page type, how much a missed word weighs against a word too many (the higher,
    the more is taken). `version`: of the weights."""

    markup_odds: Any
    word_odds: Any
    markup_by_type: Any
    first: Trees
    second: Trees
    types: Trees
    scale: Any
    version: str

    @staticmethod
    def of_arrays(arrays: Mapping[str, Any]) -> "Model":
        """Raises ValueError for weights of other features: the compiled loops do not look."""
        first, second, types = (
            Trees.of_arrays(name, arrays) for name in ("first", "second", "types")
        )
        columns = len(FEATURES)
        wider = columns + len(CONTEXT_FEATURES) + len(PAGE_TYPES)
        of_page = 2 * columns + len(PAGE_TYPES) + 4
        for trees, most in ((first, columns), (second, wider), (types, of_page)):
            if trees.feature.min() < 0 or trees.feature.max() >= most:
                raise ValueError("the weights were trained on other features: train them again")
        return Model(
            np.asarray(arrays["markup_odds"], np.float32),
            np.asarray(arrays["word_odds"], np.float32),
            np.asarray(arrays["markup_by_type"], np.float32),
            first,
            second,
            types,
            np.asarray(arrays["scale"], np.float64),
            str(arrays["version"]),
        )

    def to_arrays(self) -> dict[str, Any]:
        trees = {"first": self.first, "second": self.second, "types": self.types}
        arrays = {
            "markup_odds": self.markup_odds.astype(np.float16),
            "word_odds": self.word_odds.astype(np.float16),
            "markup_by_type": self.markup_by_type.astype(np.float16),
            "scale": self.scale,
            "version": np.array(self.version),
        }
        for name, one in trees.items():
            arrays |= one.to_arrays(name)
        return arrays


@functools.cache
def bundled_model() -> Model:
    with np.load(MODEL) as arrays:
        return Model.of_arrays(arrays)


@dataclass(frozen=True)
class MainContent:
    """`promise`: the F1 of words that the judgement expects of itself, 0 to 1. `page_type` is
    empty where only the first judgement was asked."""

    text: str
    promise: float
    page_type: str = ""


@dataclass(frozen=True)
class Judged:
    """Per block: chance, words."""

    likely: Any
    words: Any
    scale: float
    page_type: str = ""


def main_content(tree: PageTree, hidden: Any, model: Model, *, sure: float) -> MainContent:
    """The main text of a page without its hidden elements (uint8 mask); one line for each block.

    Where the first judgement promises less than `sure`, the second is asked, with the page's type.
    """
    blocks, inherited = find_blocks(tree, hidden)
    if not len(blocks.parent):
        return MainContent("", 0.0)
    measured = measure(tree, blocks, inherited, model.markup_odds, model.word_odds)
    judged = judge(tree, blocks, measured, model, thorough=False)
    chosen, promise = best_blocks(judged.likely, judged.words, judged.scale)
    if promise < sure:
        judged = judge(tree, blocks, measured, model, thorough=True, likely=judged.likely)
        chosen, promise = best_blocks(judged.likely, judged.words, judged.scale)
    return MainContent(text_of(tree, blocks, chosen), promise, judged.page_type)


def judge(
    tree: PageTree,
    blocks: Blocks,
    measured: Measured,
    model: Model,
    *,
    thorough: bool,
    likely: Any = None,
) -> Judged:
    """The first judgement, or the second where `thorough`; `likely`: the first, if known."""
    words = blocks.own[:, 0]
    if likely is None:
        likely = model.first.probabilities(measured.features)
    if not thorough:
        return Judged(likely, words, float(model.scale.mean()))
    row = type_features(measured.features, words, likely, blocks.markup, model.markup_by_type)
    types = model.types.probabilities(row[None])[0]
    context = context_of(likely, words, blocks.parent, tree.parent, measured.forms, measured.up)
    features = second_features(measured.features, context, types)
    kind = PAGE_TYPES[int(types.argmax())]
    likely = model.second.probabilities(features)
    return Judged(likely, words, float(types @ model.scale), kind)


def second_features(features: Any, context: Any, types: Any) -> Any:
    shares = np.broadcast_to(types.astype(np.float32), (len(features), len(types)))
    return np.concatenate([features, context, shares], axis=1)


def best_blocks(likely: Any, words: Any, scale: float) -> tuple[Any, float]:
    """The blocks (bool mask) whose text has the best expected F1, and that F1 for scale 1.

    With the likeliest k blocks taken, F1 = 2 * right words / (taken words + main words), each in
    expectation; k is chosen by it, `scale` weighing the main words (Ye et al. 2012: the best set
    is always such a prefix).
    """
    order = np.argsort(-likely, kind="stable")
    right, taken = np.cumsum((likely * words)[order]), np.cumsum(words[order])
    main = float((likely * words).sum())
    last = int(np.argmax(right / np.maximum(taken + scale * main, 1e-9)))
    chosen = np.zeros(len(likely), bool)
    chosen[order[: last + 1]] = True
    return chosen, float(2 * right[last] / max(taken[last] + main, 1e-9))


def text_of(tree: PageTree, blocks: Blocks, chosen: Any) -> str:
    """Lines of the chosen blocks in page order; `- ` before list items, `|` between cells."""
    lines: list[str] = []
    row, item = -1, -1
    numbers = np.flatnonzero(chosen)
    around = _around(tree.tag, tree.parent, blocks.parent[numbers], _ROLES)
    for block, (pre, inside, now) in zip(numbers.tolist(), around.tolist(), strict=True):
        text = _block_text(tree, blocks, block, pre >= 0)
        if not text:
            continue
        if now >= 0 and now == row:
            lines[-1] += f" | {text}"
            continue
        row = now
        lines.append(f"- {text}" if inside >= 0 and inside != item else text)
        item = inside
    return "\n".join(lines)


@_compiled
def _around(tag: Any, parent: Any, holders: Any, roles: Any) -> Any:
    """Per holder the nearest <pre>, list item, and row of the nearest cell, itself or around it;
    -1 for none within _LOOK_UP elements."""
    found = np.full((holders.shape[0], 3), -1, np.int32)
    for n in range(holders.shape[0]):
        e = holders[n]
        cell = -1
        for _ in range(_LOOK_UP):
            if e < 0:
                break
            role = roles[tag[e]]
            if role == _PRE and found[n, 0] < 0:
                found[n, 0] = e
            elif role == _ITEM and found[n, 1] < 0:
                found[n, 1] = e
            elif role == _CELL and cell < 0:
                cell = e
            e = parent[e]
        e = cell
        for _ in range(_LOOK_UP):
            if e < 0:
                break
            if roles[tag[e]] == _ROW:
                found[n, 2] = e
                break
            e = parent[e]
    return found


def _block_text(tree: PageTree, blocks: Blocks, block: int, is_pre: bool) -> str:
    parts: list[bytes] = []
    for piece in range(int(blocks.first[block]), int(blocks.first[block + 1])):
        index = blocks.piece_text[piece]
        if blocks.piece_break[piece]:
            parts.append(b"\0")  # a line break: NUL is in no page
        parts.append(tree.source[tree.text_start[index] : tree.text_end[index]].tobytes())
    text = html.unescape(b"".join(parts).decode("utf-8", "replace"))
    if is_pre:
        return text.replace("\0", "\n").strip("\n").rstrip()
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\0"))
    return "\n".join(line for line in lines if line)


def title_of(tree: PageTree) -> str:
    """The text of the first <title> outside of pictures."""
    for element in np.flatnonzero(tree.tag == TAG_IDS["title"]).tolist():
        if tree.tag[tree.parent[element]] in (TAG_IDS["svg"], TAG_IDS["g"]):
            continue
        texts = np.flatnonzero(tree.text_parent == element)
        pieces = [tree.source[tree.text_start[t] : tree.text_end[t]].tobytes() for t in texts]
        return " ".join(html.unescape(b"".join(pieces).decode("utf-8", "replace")).split())
    return ""
