"""One normal form of text, for comparing and identifying; never for training."""

import functools
import re
import sys
import unicodedata
from collections.abc import Iterable

_SPACE = re.compile(r"\s+")
_NO_ASCII = re.compile(rb"[\x80-\xff]{60}")  # what 31 marks have at least
MOST_MARKS = 30  # one after the other: Unicode Standard Annex #15, 13 (Stream-Safe Text Format)


def normalise(text: str) -> str:
    """NFC, case-folded, runs of white space as one blank, no blank at the ends."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return _SPACE.sub(" ", folded).strip()


def without_long_marks(text: str) -> str:
    """Without what exceeds 30 combining marks in a row: no language has them, and normalisation
    takes the square of their number."""
    if text.isascii() or not _NO_ASCII.search(text.encode("utf-8", "replace")):
        return text
    return _long_marks().sub(r"\1", text)


def character_class(points: Iterable[int], rare_gap: int = 1) -> str:
    """Of ascending code points, for a regular expression. Each range costs time: those beyond
    U+FFFF that are no further apart than `rare_gap` become one, with what is between them."""
    ranges: list[list[int]] = []
    for point in points:
        if ranges and point - ranges[-1][1] <= (1 if point <= 0xFFFF else rare_gap):
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return f"[{''.join(f'{chr(low)}-{chr(high)}' for low, high in ranges)}]"


@functools.cache
def _long_marks() -> re.Pattern[str]:
    """All that begin with a mark when they are decomposed."""
    marks = character_class(
        point
        for point in range(0x300, sys.maxunicode + 1)
        if unicodedata.combining(unicodedata.normalize("NFD", chr(point))[0])
    )
    return re.compile(f"({marks}{{{MOST_MARKS}}}){marks}++")
