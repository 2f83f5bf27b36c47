"""Disguises of letters against Unicode's own tables."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.disguises import undisguised


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", ""),
        ("as it is, Straße, 日本語, é, e\u0301, “x” – y", None),
        ("Ｈｅｌｌｏ　１２", "Hello　12"),
        ("wo\u200brld so\u00adft \u2060\ufeffx", "world soft x"),
        ("𝐛𝐨𝐥𝐝 𝒾𝓉 𝟙 ⓐ", "bold it 1 a"),
        ("a" + ("\u0300" * 30 + "\u200b") * 9, "a" + "\u0300" * 30),  # they would be one run of 270
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
        mark = unicodedata.combining(character)
        assert place in taken or unicodedata.category(character) == "Cf" or mark
    for letter, place in zip(plain, places, strict=False):
        assert letter in (text[place], unicodedata.normalize("NFKC", text[place]))
    assert undisguised(plain)[0] == plain
