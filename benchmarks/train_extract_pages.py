"""WCXB's pages as the training sees them: parsed, in blocks, each with its share of main words."""

import collections
import dataclasses
import html
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numba
import numpy as np
from extract_pages import wcxb, words_of

from pipeline.hidden_text import find_hidden
from pipeline.html_text import decode_html
from pipeline.page_blocks import Blocks, Inherited, find_blocks
from pipeline.page_tree import PageTree, parse_page

GAP = 0.8  # what a break costs in the alignment, where a matched word earns 1
GRAM = 6  # words in a row that tell a moved passage


@dataclasses.dataclass(frozen=True)
class Page:
    """`goal`: per block the share of its words in the gold text. `counts`: its words."""

    name: str
    host: str
    kind: str
    tree: PageTree
    blocks: Blocks
    inherited: Inherited
    goal: np.ndarray
    counts: list[Counter[str]]
    gold: Counter[str]

    @property
    def words(self) -> np.ndarray:
        return self.blocks.own[:, 0]


def read_pages() -> Iterator[Page]:
    for page in wcxb():
        tree = parse_page(decode_html(page.payload, None))
        blocks, inherited = find_blocks(tree, find_hidden(tree).mask)
        texts = [words_of(text) for text in block_texts(tree, blocks)]
        gold = words_of(page.gold)
        counts = [Counter(text) for text in texts]
        goal = label(texts, gold)
        yield Page(
            page.name, page.host, page.kind, tree, blocks, inherited, goal, counts, Counter(gold)
        )


def cached_pages(cache: Path | None) -> list[Page]:
    if cache and cache.exists():
        return pickle.loads(cache.read_bytes())
    pages = list(read_pages())
    if cache:
        cache.write_bytes(pickle.dumps(pages))
    return pages


def block_texts(tree: PageTree, blocks: Blocks) -> Iterator[str]:
    for block in range(len(blocks.parent)):
        pieces = range(blocks.first[block], blocks.first[block + 1])
        parts = [
            b"\n" * int(blocks.piece_break[piece])
            + tree.source[
                tree.text_start[blocks.piece_text[piece]] : tree.text_end[blocks.piece_text[piece]]
            ].tobytes()
            for piece in pieces
        ]
        yield html.unescape(b"".join(parts).decode("utf-8", "replace"))


def label(texts: list[list[str]], gold: list[str]) -> np.ndarray:
    """Per block the share of its words that an alignment of page and gold matches, or that stand
    in the gold text in rows of GRAM words (passages that moved)."""
    numbers: dict[str, int] = collections.defaultdict(lambda: len(numbers))
    page_ids = np.array([numbers[word] for text in texts for word in text], np.int32)
    gold_ids = np.array([numbers[word] for word in gold], np.int32)
    hits = np.zeros(len(page_ids), np.uint8)
    if len(page_ids) * len(gold_ids) < 6e8:
        hits = _aligned(page_ids, gold_ids, GAP)
    grams = set(zip(*(gold[start:] for start in range(GRAM)), strict=False))
    goal = np.zeros(len(texts), np.float32)
    at = 0
    seen: set[tuple[str, ...]] = set()
    for number, text in enumerate(texts):
        if text:
            goal[number] = hits[at : at + len(text)].mean()
            key = tuple(text)
            if len(text) >= GRAM and goal[number] < 0.5 and key not in seen:
                moved = np.zeros(len(text), bool)
                for start in range(len(text) - GRAM + 1):
                    if key[start : start + GRAM] in grams:
                        moved[start : start + GRAM] = True
                goal[number] = max(goal[number], moved.mean())
            seen.add(key)
        at += len(text)
    return goal


@numba.njit
def _aligned(page, gold, gap):
    """Global alignment that prefers long matches: which words of the page are matched."""
    rows, columns = page.shape[0], gold.shape[0]
    steps = np.zeros((rows + 1, columns + 1), np.uint8)
    best = np.zeros(columns + 1, np.float32)
    matched = np.full(columns + 1, -1e9, np.float32)
    for i in range(1, rows + 1):
        best_before, matched_before = np.float32(0), np.float32(-1e9)
        for j in range(1, columns + 1):
            above, matched_above = best[j], matched[j]
            step = 0
            top = above
            if best[j - 1] > top:
                top, step = best[j - 1], 1
            if page[i - 1] == gold[j - 1]:
                goes_on = matched_before >= best_before - gap
                value = max(matched_before, best_before - gap) + 1
                if value >= top:
                    top, step = value, 2
                step |= 4 * goes_on
                matched[j] = value
            else:
                matched[j] = -1e9
            steps[i, j] = step
            best[j] = top
            best_before, matched_before = above, matched_above
    hits = np.zeros(rows, np.uint8)
    i, j, inside = rows, columns, False
    while i > 0 and j > 0:
        step = steps[i, j]
        if inside or (step & 3) == 2:
            hits[i - 1] = 1
            inside = (step & 4) != 0
            i -= 1
            j -= 1
        elif (step & 3) == 0:
            i -= 1
        else:
            j -= 1
    return hits
