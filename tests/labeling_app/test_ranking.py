"""Ties said in words."""

import pytest

from labeling_app.ranking import in_words


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ({"A": None, "B": None}, ""),
        ({"A": 2, "B": 1}, "B, then A."),
        ({"A": 1, "B": 2, "C": 2, "D": None}, "A, then B and C tie. D has no rank yet."),
        ({"A": 3, "B": 3, "C": 3, "D": 1}, "D, then A, B and C tie."),
        ({"A": None, "B": 4, "C": None}, "B. A and C have no rank yet."),
    ],
)
def test_in_words(ranks, words):
    assert in_words(ranks) == words
