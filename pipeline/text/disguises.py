"""Letters that look like others, and characters that nobody sees between them, taken off a text.

Full-width, mathematical, circled and small letters and digits are compatibility variants of the
plain ones (NFKC, Unicode Standard Annex #15); zero-width characters and soft hyphens are of the
category Cf or ignorable. For comparing texts, where a disguise would make other words of the same.
"""

import functools
import re
import string
import sys
import unicodedata
from collections.abc import Sequence

from pipeline.text.normalise import MOST_MARKS, character_class

# Unicode's Default_Ignorable_Code_Point beyond category Cf; and letters in dark circles and
# squares, which have no plain variant there.
_IGNORABLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0") | {
    chr(point) for low, high in ((0xFE00, 0xFE10), (0xE0100, 0xE01F0)) for point in range(low, high)
}
_UNSEEN = re.compile(
    "(?<!^)\ufeff|[\u200b\u202a-\u202e\u2060-\u2064\u2066-\u2069\u180e\u3164\uffa0\u115f\u1160"
    "\U000e0000-\U000e007f]|(?<![^\x00-\x7f])[\u200c-\u200f](?![^\x00-\x7f])"
)
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f")  # an emoji made of tags
_CIRCLED = {
    chr(base + index): letter
    for base in (0x1F150, 0x1F170)
    for index, letter in enumerate(string.ascii_uppercase)
}


def unseen(text: str) -> set[str]:
    """The code points that nobody sees, as U+200B: zero-width, bidirectional controls and tags,
    where neither a script nor an emoji needs them."""
    if text.isascii():
        return set()
    return {f"U+{ord(one):04X}" for one in _UNSEEN.findall(_FLAG.sub("", text))}


def undisguised(text: str) -> tuple[str, Sequence[int]]:
    """(the plain text, for each of its characters and for its end the place in `text`)."""
    if text.isascii() or not _disguised().search(text):
        return text, range(len(text) + 1)
    plain, variants = list[str](), _variants()
    places: list[int] = []
    num_marks = 0  # in a row
    for place, character in enumerate(text):
        if letter := variants.get(character, character):
            num_marks = num_marks + 1 if _is_mark(letter) else 0
            if num_marks <= MOST_MARKS:  # those that zero-width characters had kept apart
                plain.append(letter)
                places.append(place)
    return "".join(plain), [*places, len(text)]


def _is_mark(letter: str) -> bool:
    first = unicodedata.normalize("NFD", letter)[0]
    return letter > "\u02ff" and unicodedata.combining(first) > 0


@functools.cache
def _variants() -> dict[str, str]:
    """What each stands for: one letter or digit, or nothing."""
    found: dict[str, str] = {}
    for character in map(chr, range(0x80, sys.maxunicode + 1)):
        category = unicodedata.category(character)
        if category == "Cf" or character in _IGNORABLE:
            found[character] = ""
        elif letter := _CIRCLED.get(character):
            found[character] = letter
        elif category[0] in "LNS":  # circled letters count as symbols
            plain = unicodedata.normalize("NFKC", character)
            if (
                len(plain) == 1
                and plain.isalnum()
                and plain != unicodedata.normalize("NFC", character)
            ):
                found[character] = plain
    return found


@functools.cache
def _disguised() -> re.Pattern[str]:
    """Finds all of them, and a few more of rare planes."""
    return re.compile(character_class(map(ord, _variants()), rare_gap=0x1000))
