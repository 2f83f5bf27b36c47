"""The article extraction benchmark's measure: shingles of four words, precision and recall a page.

After Scrapinghub's evaluate.py (article-extraction-benchmark, MIT): words keep their case; a
page's true and false shingles are divided by their sum; F1 is that of the two means.
"""

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SIZE = 4
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Measure:
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """All runs of SIZE words; a shorter text is one shingle, an empty one has none."""
    words = _WORD.findall(text)
    runs = (tuple(words[at : at + SIZE]) for at in range(max(1, len(words) - SIZE + 1)))
    return Counter(run for run in runs if run)


def evaluate(pages: Sequence[tuple[str, str]]) -> Measure:
    """Of (gold text, found text) pairs. Precision is the mean over the pages with anything found,
    recall over those with a gold text."""
    precisions, recalls = [], []
    for gold, found in pages:
        right, got = shingles(gold), shingles(found)
        shared = (right & got).total()
        if got:
            precisions.append(shared / got.total())
        if right:
            recalls.append(shared / right.total())
    return Measure(
        statistics.mean(precisions) if precisions else 0.0,
        statistics.mean(recalls) if recalls else 0.0,
    )


def table(found: Mapping[str, Measure], num_pages: int) -> str:
    lines = [
        f"Article extraction benchmark, {num_pages} pages, shingles of {SIZE} words:",
        "",
        "| engine | F1 | precision | recall |",
        "| --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        lines.append(f"| {name} | {one.f1:.3f} | {one.precision:.3f} | {one.recall:.3f} |")
    return "\n".join(lines)
