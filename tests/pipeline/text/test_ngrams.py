import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.ngrams import (
    duplicate_fractions,
    duplicate_ngram_char_fraction,
    jaccard,
    shingles,
    top_ngram_char_fraction,
    words,
)


def test_words_are_compared_in_normal_form():
    assert words("Straße,  CAFE\u0301 x_1!") == ["strasse", "café", "x_1"]


def test_shingles_by_hand():
    assert shingles("a rose is a rose is a rose", 4) == {
        "a rose is a",
        "rose is a rose",
        "is a rose is",
    }


def test_short_texts_are_alike_only_if_equal():
    assert shingles("One two!", 5) == {"one two"} == shingles("one  TWO", 5)
    assert shingles("one three", 5) == {"one three"}
    assert shingles("!!!", 5) == {"!!!"} != shingles("???", 5)
    assert shingles(" \n", 5) == frozenset()


def test_jaccard_by_hand():
    assert jaccard(frozenset("abc"), frozenset("bcd")) == 0.5
    assert jaccard(frozenset(), frozenset()) == 0.0


def test_top_ngram_by_hand():
    tokens = ["ab", "cd", "ab", "cd", "ab", "cd", "x"]  # "ab cd" three times: 12 of 13 characters
    assert top_ngram_char_fraction(tokens, 2) == 12 / 13
    assert top_ngram_char_fraction(["all", "words", "differ", "here"], 2) == 0.0
    assert top_ngram_char_fraction([], 2) == 0.0


def brute_force_duplicates(tokens: list[str], size: int) -> float:
    covered = set()
    for start in range(len(tokens) - size + 1):
        ngram = tokens[start : start + size]
        if any(tokens[before : before + size] == ngram for before in range(start)):
            covered |= set(range(start, start + size))
    return sum(len(tokens[index]) for index in covered) / sum(map(len, tokens))


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), min_size=1, max_size=30), st.integers(1, 5))
def test_duplicate_ngrams_are_what_brute_force_finds(tokens: list[str], size: int):
    expected = brute_force_duplicates(tokens, size)
    assert duplicate_ngram_char_fraction(tokens, size) == pytest.approx(expected)


def test_duplicate_fractions_by_hand():
    assert duplicate_fractions(["aa", "b", "aa", "aa"]) == (0.5, 4 / 7)
    assert duplicate_fractions([]) == (0.0, 0.0)
