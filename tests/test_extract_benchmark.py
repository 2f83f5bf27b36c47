"""The article benchmark's measure against its definition, and the mixed crawl's make."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from extract_articles import Measure, evaluate, shingles


def test_shingles_are_runs_of_four_words() -> None:
    assert shingles("A b, c; d (e)") == {("A", "b", "c", "d"): 1, ("b", "c", "d", "e"): 1}
    assert shingles("a b") == {("a", "b"): 1}
    assert shingles("...") == {}


@pytest.mark.long
def test_precision_recall_and_f1_of_shingles() -> None:
    gold = "one two three four five six"  # three shingles
    found = "zero one two three four five"  # three, two of them right
    pages = [(gold, found), (gold, gold), (gold, ""), ("", "x y")]
    measured = evaluate(pages)
    assert measured.precision == pytest.approx((2 / 3 + 1 + 0) / 3)  # the empty one has none
    assert measured.recall == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert Measure(0.5, 1.0).f1 == pytest.approx(2 / 3)
    assert Measure(0.0, 0.0).f1 == 0
    assert evaluate([]).f1 == 0
