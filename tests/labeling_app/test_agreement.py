"""Agreement against published worked examples, scipy and the definitions written out."""

import itertools
import random

import pytest
from scipy.stats import kendalltau

from labeling_app.agreement import (
    alpha,
    alpha_interval,
    mean_interval,
    preferences,
    share_interval,
    tau_b,
)

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", sections C and D: four
# observers, twelve units, a point where one said nothing.
OBSERVERS = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
# The same, sections A and B: two observers, of two values and of five.
BINARY = ("0100000010", "1110010000")
LETTERS = ("aabbdcccedda", "babbbccceddd")


def units_of(observers: tuple[str, ...]) -> list[list[float]]:
    return [
        [float(int(value, 16)) for value in unit if value != "."]
        for unit in zip(*observers, strict=True)
    ]


@pytest.mark.parametrize(
    ("observers", "level", "published"),
    [
        (OBSERVERS, "nominal", 0.743),
        (OBSERVERS, "ordinal", 0.815),
        (OBSERVERS, "interval", 0.849),
        (BINARY, "nominal", 0.095),
        (LETTERS, "nominal", 0.692),
    ],
)
def test_alpha_of_krippendorffs_worked_examples(observers, level, published):
    assert alpha(units_of(observers), level) == pytest.approx(published, abs=0.0005)


def alpha_by_definition(units: list[list[float]], level: str) -> float | None:
    """1 - observed / expected disagreement, over every ordered pair of values."""
    units = [unit for unit in units if len(unit) > 1]
    everything = [value for unit in units for value in unit]

    def distance(one: float, other: float) -> float:
        if level == "nominal":
            return float(one != other)
        if level == "interval":
            return (one - other) ** 2
        low, high = min(one, other), max(one, other)
        between = sum(low <= value <= high for value in everything)
        return (between - (everything.count(low) + everything.count(high)) / 2) ** 2

    num = len(everything)
    observed = sum(
        distance(*pair) / (len(unit) - 1)
        for unit in units
        for pair in itertools.permutations(unit, 2)
    )
    expected = sum(distance(*pair) for pair in itertools.permutations(everything, 2))
    return 1 - observed / num / (expected / num / (num - 1)) if expected else None


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_its_definition_on_random_data(level):
    rng = random.Random(11)
    defined = 0
    for _ in range(200):
        units = [
            [float(rng.choice((1, 2, 3, 7))) for _ in range(rng.randrange(5))]
            for _ in range(rng.randrange(1, 7))
        ]
        by_definition = alpha_by_definition(units, level)
        if by_definition is None:
            assert alpha(units, level) is None
        else:
            defined += 1
            assert alpha(units, level) == pytest.approx(by_definition, abs=1e-12)
    assert defined > 100


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("units", [[], [[]], [[1.0], [2.0]], [[3.0, 3.0], [3.0, 3.0, 3.0]]])
def test_alpha_is_none_where_nothing_can_be_compared(units, level):
    assert alpha(units, level) is None
    assert alpha_interval(units, level) is None


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_of_full_agreement_and_of_the_opposite(level):
    assert alpha([[1, 1], [2, 2, 2], [5, 5]], level) == 1
    assert alpha([[1, 2], [2, 1], [1, 2]], level) < 0
    agreed = alpha_interval([[1, 1], [2, 2, 2], [5, 5]], level)
    assert (agreed.value, agreed.low, agreed.high, agreed.num) == (1, 1, 1, 3)


def test_a_unit_of_one_value_says_nothing():
    units = units_of(OBSERVERS)
    assert alpha([*units, [4.0], [], [9.0]], "ordinal") == alpha(units, "ordinal")
    assert alpha_interval(units, "ordinal").num == 11  # the twelfth has one value


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_interval_of_alpha_is_fixed_by_its_seed_and_holds_the_value(level):
    units = units_of(OBSERVERS)
    found = alpha_interval(units, level, seed=3)
    assert found == alpha_interval(units, level, seed=3)
    assert found != alpha_interval(units, level, seed=4)
    assert found.value == alpha(units, level)
    assert -1 <= found.low < found.value < found.high <= 1


def test_interval_of_alpha_narrows_with_more_units():
    units = units_of(OBSERVERS)
    few, many = (alpha_interval(units * times, "nominal") for times in (1, 16))
    assert many.high - many.low < (few.high - few.low) / 3  # a fourth expected


def test_tau_b_of_kendalls_worked_example():
    # Kendall 1976, "Rank Correlation Methods", example 3.4: S = 34, sqrt(116 x 60), tau = 0.41.
    first = [2.5, 2.5, 2.5, 2.5, 5, 6.5, 6.5, 10, 10, 10, 10, 10, 14, 14, 14, 16, 17]
    second = [1, 1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 2, 2]
    assert tau_b(first, second) == pytest.approx(34 / (116 * 60) ** 0.5)


def test_tau_b_is_scipys_on_random_rankings_with_ties():
    rng = random.Random(5)
    defined = 0
    for _ in range(300):
        size = rng.randrange(2, 10)
        first, second = ([rng.randrange(1, size + 1) for _ in range(size)] for _ in range(2))
        if len(set(first)) == 1 or len(set(second)) == 1:
            assert tau_b(first, second) is None
            continue
        defined += 1
        assert tau_b(first, second) == pytest.approx(kendalltau(first, second).statistic)
    assert defined > 200


def test_tau_b_of_the_same_the_reverse_and_what_is_undefined():
    assert tau_b([1, 2, 2, 4], [1, 2, 2, 4]) == 1
    assert tau_b([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert tau_b([1, 1, 1], [1, 2, 3]) is None
    assert tau_b([1, 2, 3], [2, 2, 2]) is None
    assert tau_b([1], [1]) is None
    assert tau_b([], []) is None
    with pytest.raises(ValueError, match="2 and 3 ranks"):
        tau_b([1, 2], [1, 2, 3])


@pytest.mark.parametrize(
    ("hits", "cases", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17), table I, method 3: Wilson's score interval.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_of_newcombes_table(hits, cases, low, high):
    found = share_interval(hits, cases)
    assert (found.value, found.num) == (hits / cases, cases)
    assert found.low == pytest.approx(low, abs=0.00005)
    assert found.high == pytest.approx(high, abs=0.00005)


def test_a_share_stays_between_nothing_and_all():
    assert share_interval(0, 0) is None
    for cases in (1, 7, 50):
        none, everything = share_interval(0, cases), share_interval(cases, cases)
        assert 0 <= none.low < 1e-12
        assert 1 - 1e-12 < everything.high <= 1
        assert 0 < none.high < 1
        assert everything.low == pytest.approx(1 - none.high)


def test_interval_of_a_mean():
    values = [0.2, 0.4, 0.4, 0.9, 1.0, 0.1, 0.7]
    found = mean_interval(values, seed=1)
    assert found == mean_interval(values, seed=1)
    assert found != mean_interval(values, seed=2)
    assert found.value == pytest.approx(sum(values) / 7)
    assert min(values) <= found.low < found.value < found.high <= max(values)
    assert found.num == 7
    same = mean_interval([0.5, 0.5])
    assert (same.low, same.high) == (0.5, 0.5)
    assert mean_interval([]) is None


def test_preferences_of_a_ranking_with_ties():
    assert preferences([1, 3, 3, 2]) == [-1, -1, -1, 0, 1, 1]
    assert preferences([1]) == []
