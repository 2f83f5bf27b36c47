"""Disguises of letters against Unicode's own tables."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.disguises import _CIRCLED, undisguised


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", ""),
        ("as it is, Straße, 日本語, é, e\u0301, “x” – y", None),
        ("Ｈｅｌｌｏ　１２", "Hello　12"),
        ("wo\u200brld so\u00adft \u2060\ufeffx", "world soft x"),
        ("𝐛𝐨𝐥𝐝 𝒾𝓉 𝟙 ⓐ", "bold it 1 a"),
        ("a" + ("\u0300" * 30 + "\u200b") * 9, "a" + "\u0300" * 30),  # they would be one run of 270
        ("w\u034fo\ufe0fr\U000e0101d \u3164x 🅐🅱", "word x AB"),
        ("paypal with а Cyrillic а", None),  # no compatibility variant
    ],
)
def test_by_hand(text: str, plain: str | None) -> None:
    assert undisguised(text)[0] == (text if plain is None else plain)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_places_and_nothing_else_changed(text: str) -> None:
    plain, places = undisguised(text)
    assert len(places) == len(plain) + 1
    assert places[len(plain)] == len(text)
    taken = set(places[: len(plain)])
    for place, character in enumerate(text):
        ignorable = unicodedata.category(character) in ("Cf", "Mn", "Me", "Mc", "Lo")
        assert place in taken or ignorable
    for letter, place in zip(plain, places, strict=False):
        known = unicodedata.normalize("NFKC", text[place]) == letter or letter in "".join(
            _CIRCLED.values()
        )
        assert letter == text[place] or known
    assert undisguised(plain)[0] == plain
