"""What each Unicode character means for comparing texts: is it part of a word, and of which?

One table for all 1,114,112 code points, made from `unicodedata` when first asked for (0.3 s).
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

FOLDED = np.uint32((1 << 21) - 1)  # mask: the code point that it is compared as
WORD = np.uint32(1 << 21)  # a letter, mark, digit or underscore: \w, and marks, which \w lacks
ALONE = np.uint32(1 << 22)  # a word by itself: its script puts no blanks between words
SLOW = np.uint32(1 << 23)  # NFC or folding change more than this one code point
NUM_CODE_POINTS = 0x110000

# Unicode 16, blocks of scripts written without blanks between words.
_NO_BLANKS = (
    (0x0E00, 0x0E7F),  # Thai
    (0x0E80, 0x0EFF),  # Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x2E80, 0x2FDF),  # CJK radicals
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA980, 0xA9DF),  # Javanese
    (0xAA00, 0xAADF),  # Cham, Myanmar extended, Tai Viet
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9D),  # half-width Katakana
    (0x1AFF0, 0x1B16F),
    (0x20000, 0x3FFFD),
)
_JAMO = ((0x1161, 0x1175), (0x11A8, 0x11C2))  # they join the Hangul before them


@functools.cache
def table() -> npt.NDArray[np.uint32]:
    """(1114112,): for each code point the code point that it folds to, with WORD, ALONE, SLOW."""
    found = np.arange(NUM_CODE_POINTS, dtype=np.uint32)
    points, letters = _assigned()
    found[points[letters]] |= WORD
    found[ord("_")] |= WORD
    points = points[points >= 0x80]
    characters = list(map(chr, points.tolist()))
    folded = list(map(str.casefold, characters))
    joining = _joining(characters)
    plain = np.fromiter((_is_plain(one, joining) for one in characters), np.bool_, len(points))
    # Folding changes one in a hundred: only those are asked twice.
    pairs = enumerate(zip(characters, folded, strict=True))
    for place in [at for at, (one, two) in pairs if one != two]:
        whole = folded[place]
        plain[place] &= len(whole) == 1 and _is_plain(whole, joining)
        if plain[place]:
            found[points[place]] ^= np.uint32(points[place] ^ ord(whole))
    found[points[~plain]] |= SLOW
    capitals = np.arange(ord("A"), ord("Z") + 1)
    found[capitals] += np.uint32(ord("a") - ord("A"))
    for first, last in _NO_BLANKS:
        block = found[first : last + 1]
        block[(block & WORD) != 0] |= ALONE
    return found


def _assigned() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """(the code points that mean something, which of them are letters, marks or numbers): one in
    eight; to the others no rule of folding or of normal forms applies."""
    categories = "".join(map(unicodedata.category, map(chr, range(NUM_CODE_POINTS))))
    pairs = np.frombuffer(categories.encode(), np.uint8).reshape(-1, 2)
    nothing = (pairs[:, 0] == ord("C")) & np.isin(pairs[:, 1], list(b"nos"))
    points = np.flatnonzero(~nothing)
    return points, np.isin(pairs[points, 0], list(b"LMN"))


def _is_plain(character: str, joining: frozenset[str]) -> bool:
    """Whether NFC leaves it as it is, whatever stands before it."""
    return (
        character not in joining
        and unicodedata.combining(character) == 0
        and unicodedata.is_normalized("NFC", character)
    )


def _joining(characters: Sequence[str]) -> frozenset[str]:
    """Those that may become one with the one before."""
    found = {chr(point) for first, last in _JAMO for point in range(first, last + 1)}
    for parts in map(unicodedata.decomposition, characters):
        first, blank, second = parts.partition(" ")
        if blank and " " not in second and not first.startswith("<"):
            found.add(chr(int(second, 16)))
    return frozenset(found)


def words(text: str) -> list[str]:
    """The words of a text that is normalised already (pipeline/text/normalise.py)."""
    return word_pattern().findall(text)


@functools.cache
def word_pattern() -> re.Pattern[str]:
    flags = table() & (WORD | ALONE)
    alone = "".join(_ranges(flags == (WORD | ALONE)))
    joined = "".join(_ranges(flags == WORD))
    return re.compile(f"[{alone}]|[{joined}]+")


def _ranges(chosen: npt.NDArray[np.bool_]) -> Iterator[str]:
    """As in a regular expression's brackets."""
    edges = np.flatnonzero(np.diff(np.r_[False, chosen, False]))
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        yield f"{chr(first)}-{chr(end - 1)}"
