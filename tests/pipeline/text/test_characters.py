"""The table in bulk against its definition, one code point after the other."""

import re
import unicodedata

import numpy as np
import pytest

from pipeline.text import characters
from pipeline.text.characters import ALONE, FOLDED, NUM_CODE_POINTS, SLOW, WORD


@pytest.fixture(scope="module")
def joining() -> set[str]:
    """What may become one with the character before it: the second halves of decompositions."""
    found = {chr(point) for point in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}
    for point in range(NUM_CODE_POINTS):
        parts = unicodedata.decomposition(chr(point)).split()
        if len(parts) == 2 and "<" not in parts[0]:
            found.add(chr(int(parts[1], 16)))
    return found


def test_every_code_point(joining):
    table = characters.table()
    assert table.dtype == np.uint32
    assert len(table) == NUM_CODE_POINTS
    table = table.tolist()

    def is_plain(character: str) -> bool:
        return (
            character not in joining
            and not unicodedata.combining(character)
            and unicodedata.normalize("NFC", character) == character
        )

    for point in range(NUM_CODE_POINTS):
        character, entry = chr(point), table[point]
        is_word = unicodedata.category(character)[0] in "LMN" or character == "_"
        assert bool(entry & WORD) == is_word, hex(point)
        folded = character.casefold()
        is_simple = point < 0x80 or (len(folded) == 1 and is_plain(character) and is_plain(folded))
        if 0xD800 <= point < 0xE000:
            is_simple, folded = True, character
        assert bool(entry & SLOW) != is_simple, hex(point)
        assert entry & FOLDED == (ord(folded) if is_simple else point), hex(point)
        assert not entry & ALONE or entry & WORD, hex(point)


def test_words_are_those_of_the_re_module_in_scripts_with_blanks():
    text = "Ärger straße_1 d'été, ॐ café naïve №5 x² — don't 3.14"
    plain = [word for word in characters.words(text) if word.isascii()]
    assert plain == [word for word in re.findall(r"\w+", text) if word.isascii()]
    assert characters.words("日本語 is ไทย") == ["日", "本", "語", "is", "ไ", "ท", "ย"]
