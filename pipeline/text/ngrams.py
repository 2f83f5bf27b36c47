"""Words, word n-grams and how much of a text repeats itself."""

from collections import Counter
from collections.abc import Sequence

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


def top_ngram_char_fraction(tokens: Sequence[str], size: int) -> float:
    """The share of the tokens' characters in the most frequent n-gram, as in Gopher (Rae et al.
    2021, table A1): occurrences x characters; 0 where no n-gram occurs twice. Of equally frequent
    ones the longest counts."""
    total = sum(map(len, tokens))
    counts = Counter(zip(*(tokens[start:] for start in range(size)), strict=False))
    if not counts or not total:
        return 0.0
    most = max(counts.values())
    if most == 1:
        return 0.0
    longest = max(sum(map(len, ngram)) for ngram, count in counts.items() if count == most)
    return min(1.0, most * longest / total)


def duplicate_ngram_char_fraction(tokens: Sequence[str], size: int) -> float:
    """The share of the tokens' characters inside n-grams seen before in the text, as in Gopher:
    each token counts once, however many repeated n-grams cover it."""
    total = sum(map(len, tokens))
    seen: set[tuple[str, ...]] = set()
    repeated = covered = 0
    for start in range(len(tokens) - size + 1):
        ngram = tuple(tokens[start : start + size])
        if ngram in seen:
            repeated += sum(map(len, tokens[max(start, covered) : start + size]))
            covered = start + size
        seen.add(ngram)
    return repeated / total if total else 0.0


def duplicate_fractions(parts: Sequence[str]) -> tuple[float, float]:
    """(share of the parts, share of their characters) that repeat an earlier part."""
    seen: set[str] = set()
    number = characters = 0
    for part in parts:
        if part in seen:
            number += 1
            characters += len(part)
        seen.add(part)
    total = sum(map(len, parts))
    return (number / len(parts) if parts else 0.0, characters / total if total else 0.0)
