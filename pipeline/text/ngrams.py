"""Words and word n-grams of one text, in Python: what the compiled loops are held against."""

from pipeline.text import characters
from pipeline.text.normalise import normalise


def words(text: str) -> list[str]:
    """The runs of letters, marks, digits and underscores of the normalised text, for comparing
    texts; in scripts written without blanks each character for itself."""
    return characters.words(normalise(text))


def shingles(text: str, size: int) -> frozenset[str]:
    """The set of word `size`-grams, each joined by blanks.

    A text of fewer words is one shingle of all its words, and a text without any word is one
    shingle of its normal form: short texts are then alike only if they are equal. Only a blank
    text has none.
    """
    tokens = words(text)
    if not tokens:
        whole = normalise(text)
        return frozenset([whole]) if whole else frozenset()
    last = max(1, len(tokens) - size + 1)
    return frozenset(" ".join(tokens[start : start + size]) for start in range(last))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """|left ∩ right| / |left ∪ right|; 0 for two empty sets, which share nothing."""
    shared = len(left & right)
    union = len(left) + len(right) - shared
    return shared / union if union else 0.0
