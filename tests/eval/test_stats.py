"""The intervals against scipy, against arithmetic by hand, and against their own promise."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from eval.stats import (
    cluster_bootstrap,
    cluster_means,
    mean_interval,
    minimum_detectable_effect,
    paired_difference,
    wilson,
    win_rate,
)


def names(number: int) -> list[str]:
    return [f"{i:04}" for i in range(number)]


def test_one_value_a_cluster_is_scipys_paired_t_test() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(0.3, 1, 25), generator.normal(0, 1, 25)
    found = paired_difference(ours.tolist(), theirs.tolist(), names(25))
    reference = stats.ttest_rel(ours, theirs)
    low, high = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean / found.standard_error == pytest.approx(reference.statistic)


def test_a_cluster_counts_once_however_many_values_it_has() -> None:
    few = mean_interval([1.0, 2.0, 6.0], ["a", "b", "c"])
    many = mean_interval([1.0] * 50 + [2.0] + [5.0, 7.0], ["a"] * 50 + ["b"] + ["c"] * 2)
    assert (many.mean, many.low, many.high) == pytest.approx((few.mean, few.low, few.high))
    assert few.mean == 3
    assert many.num_clusters == 3
    assert many.num_values == 53


def test_cluster_means_by_hand() -> None:
    assert cluster_means([3, 1, 5], ["b", "a", "b"]).tolist() == [1, 4]


def test_all_alike_has_no_width_and_one_cluster_is_refused() -> None:
    found = mean_interval([0.0, 0.0, 0.0], names(3))
    assert (found.low, found.high) == (0, 0)
    with pytest.raises(AssertionError):
        mean_interval([1.0, 2.0], ["a", "a"])


def test_the_interval_covers_the_truth_95_times_in_100_where_a_naive_one_does_not() -> None:
    generator = np.random.default_rng(1)
    clusters = [name for name in names(12) for _ in range(6)]
    covered = naive = 0
    rounds = 2000
    for _ in range(rounds):
        shared = np.repeat(generator.normal(0, 1, 12), 6)
        values = (0.5 + shared + generator.normal(0, 0.5, 72)).tolist()
        found = mean_interval(values, clusters)
        covered += found.low <= 0.5 <= found.high
        plain = mean_interval(values, names(72))
        naive += plain.low <= 0.5 <= plain.high
    assert 0.935 < covered / rounds < 0.965
    assert naive / rounds < 0.8


def test_bootstrap_agrees_with_t_on_many_clusters_and_repeats_with_its_seed() -> None:
    values = np.random.default_rng(2).exponential(1, 400).tolist()
    by_t = mean_interval(values, names(400))
    drawn = [cluster_bootstrap(values, names(400), np.random.default_rng(3)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].low == pytest.approx(by_t.low, abs=0.02)
    assert drawn[0].high == pytest.approx(by_t.high, abs=0.02)


def test_bootstrap_of_two_clusters_is_the_three_means_it_can_draw() -> None:
    found = cluster_bootstrap([0.0, 0.0, 4.0], ["a", "a", "b"], np.random.default_rng(0))
    assert (found.mean, found.low, found.high) == (2, 0, 4)


@pytest.mark.parametrize("number", [8, 20, 100])
def test_minimum_detectable_effect_is_where_the_t_test_has_its_power(number: int) -> None:
    def power(effect: float) -> float:  # exact: the noncentral t distribution
        critical = stats.t.ppf(0.975, number - 1)
        return float(stats.nct.sf(critical, number - 1, effect))

    exact = optimize.brentq(lambda effect: power(effect) - 0.8, 1, 6)
    assert minimum_detectable_effect(1.0, number) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(("wins", "number"), [(0, 10), (3, 10), (10, 10), (55, 90)])
def test_wilson_is_scipys(wins: int, number: int) -> None:
    reference = stats.binomtest(wins, number).proportion_ci(method="wilson")
    assert wilson(wins, number) == pytest.approx((reference.low, reference.high))


def test_win_rate_counts_a_tie_half() -> None:
    found = win_rate([1, 1, 0.5, 0], names(4))
    assert found.mean == 0.625
    assert (found.low, found.high) == wilson(2.5, 4)


def test_win_rate_with_shared_prompts_is_clustered_and_stays_a_rate() -> None:
    outcomes = [1.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    clusters = ["a", "a", "b", "b", "c", "c"]
    found = win_rate(outcomes, clusters)
    by_hand = stats.ttest_1samp([1.0, 1.0, 0.5], 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(2.5 / 3)
    assert found.low == pytest.approx(max(0.0, by_hand.low))
    assert found.high == 1
    assert math.isfinite(found.standard_error)
