"""How far people agree: Krippendorff's alpha, Kendall's tau-b, and what chance does to them.

Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011); Kendall, "The treatment of ties
in ranking problems" (Biometrika 1945); percentile bootstrap (Efron 1979); Wilson (1927).
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Level = Literal["nominal", "ordinal", "interval"]
Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
NUM_BOOTSTRAPS = 1000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """`low` and `high`: a 95% interval. `num`: the units, or cases, that it stands on."""

    value: float
    low: float
    high: float
    num: int


def alpha(units: Sequence[Sequence[float]], level: Level) -> float | None:
    """Krippendorff's alpha of units, each with the values that its coders gave; a unit of fewer
    than two values says nothing. 1 is full agreement, 0 is chance.

    None: there is nothing to compare, or all values are alike, where alpha is not defined.
    """
    tables, counts, values = _coincidences(units)
    if not len(tables):
        return None
    return _alpha(_sum(counts, tables), values, level)


def alpha_interval(
    units: Sequence[Sequence[float]], level: Level, seed: int = 0, num: int = NUM_BOOTSTRAPS
) -> Estimate | None:
    """The same with a bootstrap interval over units."""
    tables, counts, values = _coincidences(units)
    if not len(tables):
        return None
    value = _alpha(_sum(counts, tables), values, level)
    if value is None:
        return None
    draws = (_alpha(_sum(drawn, tables), values, level) for drawn in _resampled(counts, seed, num))
    low, high = _percentiles([each for each in draws if each is not None], value)
    return Estimate(value, low, high, int(counts.sum()))


def tau_b(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rankings of the same things, ties allowed; -1 to 1.

    None where one of them ties everything: then tau-b is not defined.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} ranks; tau-b compares as many")
    return _tau_b(tuple(first), tuple(second))


@functools.lru_cache(maxsize=1 << 16)  # of a few answers there are few rankings
def _tau_b(first: tuple[float, ...], second: tuple[float, ...]) -> float | None:
    x, y = np.asarray(first, float), np.asarray(second, float)
    upper = np.triu_indices(len(x), 1)
    dx, dy = np.sign(x[:, None] - x)[upper], np.sign(y[:, None] - y)[upper]
    scale = math.sqrt(float(np.abs(dx).sum()) * float(np.abs(dy).sum()))
    return float((dx * dy).sum()) / scale if scale else None


def mean_interval(
    values: Sequence[float], seed: int = 0, num: int = NUM_BOOTSTRAPS
) -> Estimate | None:
    """A mean with a bootstrap interval."""
    if not values:
        return None
    data, counts = np.unique(np.asarray(values, float), return_counts=True)
    mean = float(np.mean(values))
    draws = _resampled(counts, seed, num) @ data / len(values)
    low, high = _percentiles(draws.tolist(), mean)
    return Estimate(mean, low, high, len(values))


def share_interval(hits: int, cases: int) -> Estimate | None:
    """A share with Wilson's 95% interval."""
    if not cases:
        return None
    z, p = 1.959963984540054, hits / cases
    middle = (p + z * z / (2 * cases)) / (1 + z * z / cases)
    half = z * math.sqrt(p * (1 - p) / cases + z * z / (4 * cases * cases)) / (1 + z * z / cases)
    return Estimate(p, max(0.0, middle - half), min(1.0, middle + half), cases)


def preferences(ranks: Sequence[int]) -> list[int]:
    """Of each two answers i < j: -1 if i is better, 1 if j is, 0 for a tie."""
    return [
        (ranks[i] > ranks[j]) - (ranks[i] < ranks[j])
        for i in range(len(ranks))
        for j in range(i + 1, len(ranks))
    ]


def _coincidences(units: Sequence[Sequence[float]]) -> tuple[Array, Counts, Array]:
    """Of each kind of pairable unit its table of coincidences (kinds, V, V); how many units are of
    each kind (kinds,); and the V values, sorted. Units of the same values are of one kind."""
    kinds = collections.Counter(tuple(sorted(unit)) for unit in units if len(unit) > 1)
    values = np.array(sorted({value for unit in kinds for value in unit}), float)
    place = {value: at for at, value in enumerate(values.tolist())}
    tables = np.zeros((len(kinds), len(values), len(values)))
    for number, unit in enumerate(sorted(kinds)):
        counts = np.zeros(len(values))
        for value in unit:
            counts[place[float(value)]] += 1
        tables[number] = (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    return tables, np.array([kinds[unit] for unit in sorted(kinds)], np.int64), values


def _resampled(counts: Counts, seed: int, num: int) -> Counts:
    """(num, kinds): how often each kind is drawn, where as many as there are, are, with
    replacement."""
    total = int(counts.sum())
    return np.random.default_rng(seed).multinomial(total, counts / total, size=num)


def _sum(counts: Counts, tables: Array) -> Array:
    return np.tensordot(counts.astype(float), tables, 1)


def _alpha(table: Array, values: Array, level: Level) -> float | None:
    totals = table.sum(0)
    num = float(totals.sum())
    if num <= 1:
        return None
    distance = _DISTANCES[level](totals, values)
    expected = float((np.outer(totals, totals) * distance).sum()) / (num - 1)
    return 1 - float((table * distance).sum()) / expected if expected > 0 else None


def _nominal(totals: Array, _values: Array) -> Array:
    return 1.0 - np.eye(len(totals))


def _ordinal(totals: Array, _values: Array) -> Array:
    """(sum of the totals from one value to the other, less half of the two ends) squared."""
    middles = np.cumsum(totals) - totals / 2
    return (middles[:, None] - middles) ** 2


def _interval(_totals: Array, values: Array) -> Array:
    return (values[:, None] - values) ** 2


_DISTANCES: dict[Level, Callable[[Array, Array], Array]] = {
    "nominal": _nominal,
    "ordinal": _ordinal,
    "interval": _interval,
}


def _percentiles(draws: Sequence[float], value: float) -> tuple[float, float]:
    if not draws:
        return value, value
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
