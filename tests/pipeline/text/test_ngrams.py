from pipeline.text.ngrams import jaccard, shingles, words


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
