"""Which kind of page it is, from the words of its markup and the means of its blocks' features."""

from typing import Any

import numpy as np

PAGE_TYPES = (
    "article", "documentation", "service", "forum", "product", "listing", "collection",
)  # fmt: skip
_MARKUP_SCALE = 30.0  # mean log odds are small


def type_features(features: Any, words: Any, likely: Any, markup: Any, markup_by_type: Any) -> Any:
    """One row: how well the page's markup fits each type (`markup_by_type`: (types, buckets) log
    odds), the means of the blocks' features by words and by likely words, and four totals."""
    columns = features.shape[1]
    row = np.zeros(len(PAGE_TYPES) + 2 * columns + 4)
    present = np.flatnonzero(np.bincount(markup, minlength=markup_by_type.shape[1]))
    if len(present):
        row[: len(PAGE_TYPES)] = _MARKUP_SCALE * markup_by_type[:, present].mean(axis=1)
    if len(features):
        mass = likely * words
        parts = mass / max(1e-6, mass.sum())
        rest = row[len(PAGE_TYPES) :]
        rest[:columns] = (words / max(1.0, words.sum())) @ features
        rest[columns : 2 * columns] = parts @ features
        rest[2 * columns :] = (
            parts.max(), np.count_nonzero(likely > 0.5), mass.sum(), (likely * mass).sum(),
        )  # fmt: skip
    return row
