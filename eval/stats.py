"""Intervals for scores that hang together: several answers to one prompt are not independent.

Miller 2024 (arXiv:2411.00640): paired differences, clustered by prompt, with the smallest effect
that the data could have shown. Pure functions.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its confidence limits. `num_clusters` is what the width rests on."""

    mean: float
    low: float
    high: float
    standard_error: float
    num_values: int
    num_clusters: int


def cluster_means(values: Sequence[float], clusters: Sequence[str]) -> np.ndarray:
    """One mean per cluster, in the order of the clusters' names. [G]"""
    assert len(values) == len(clusters), "each value has one cluster"
    _, index = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)
    return np.bincount(index, weights=np.asarray(values, dtype=float)) / np.bincount(index)


def mean_interval(
    values: Sequence[float], clusters: Sequence[str], confidence: float = 0.95
) -> Interval:
    """Student's t on the clusters' means: each cluster counts once, however many values it has.

    Needs two clusters. Clusters that all agree give an interval without width.
    """
    means = cluster_means(values, clusters)
    number = len(means)
    assert number >= 2, "one cluster says nothing about another"
    error = float(means.std(ddof=1)) / math.sqrt(number)
    half = float(stats.t.ppf(0.5 + confidence / 2, number - 1)) * error
    mean = float(means.mean())
    return Interval(mean, mean - half, mean + half, error, len(values), number)


def paired_difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    clusters: Sequence[str],
    confidence: float = 0.95,
) -> Interval:
    """The interval of ours - theirs, item by item: what both find hard cancels."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return mean_interval(differences, clusters, confidence)


def cluster_bootstrap(
    values: Sequence[float],
    clusters: Sequence[str],
    generator: np.random.Generator,
    num_rounds: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Percentiles of the mean of cluster means, whole clusters drawn with replacement."""
    means = cluster_means(values, clusters)
    drawn = generator.integers(0, len(means), size=(num_rounds, len(means)))
    resampled = means[drawn].mean(axis=1)
    low, high = np.quantile(resampled, [0.5 - confidence / 2, 0.5 + confidence / 2])
    error = float(resampled.std(ddof=1))
    return Interval(float(means.mean()), float(low), float(high), error, len(values), len(means))


def minimum_detectable_effect(
    standard_error: float, num_clusters: int, confidence: float = 0.95, power: float = 0.8
) -> float:
    """The true difference that such data show with probability `power`, in the values' unit:
    (t at the confidence + t at the power) standard errors (Miller 2024, section 5, with t)."""
    freedom = num_clusters - 1
    quantiles = stats.t.ppf([0.5 + confidence / 2, power], freedom)
    return float(quantiles.sum()) * standard_error


def wilson(successes: float, number: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a rate, which stays within [0, 1] (Wilson 1927)."""
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    rate = successes / number
    centre = rate + z**2 / (2 * number)
    half = z * math.sqrt(rate * (1 - rate) / number + z**2 / (4 * number**2))
    scale = 1 + z**2 / number
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def win_rate(
    outcomes: Sequence[float], clusters: Sequence[str], confidence: float = 0.95
) -> Interval:
    """Wins, a tie being half (1, 0.5, 0). Wilson's interval where each cluster has one outcome
    (a little too wide with ties), Student's t on cluster means, cut to [0, 1], where not."""
    if len(set(clusters)) == len(outcomes):
        mean = sum(outcomes) / len(outcomes)
        low, high = wilson(sum(outcomes), len(outcomes), confidence)
        error = math.sqrt(mean * (1 - mean) / len(outcomes))
        return Interval(mean, low, high, error, len(outcomes), len(outcomes))
    found = mean_interval(outcomes, clusters, confidence)
    return dataclasses.replace(found, low=max(0.0, found.low), high=min(1.0, found.high))
