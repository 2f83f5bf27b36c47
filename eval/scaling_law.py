"""L(N, D) = E + A / N^alpha + B / D^beta, fitted to runs, with intervals: numbers alone.

Hoffmann et al. 2022 (arXiv:2203.15556), approach 3: the Huber loss of ln L, from many starts. As
Besiroglu et al. 2024 (arXiv:2404.10102) mend it: a sum, where the mean was so small that the
optimizer stopped before its time, and let run to the end. BFGS with all of its memory: of five
numbers there is none to limit, and SciPy's L-BFGS-B, as slow as its BLAS wakes threads, ends alike.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

from pipeline.core.errors import UserError

DELTA = 1e-3  # where the Huber loss turns from square to straight
MIN_RUNS, MIN_KINDS, MIN_SPAN, MAX_CORRELATION = 7, 3, 4.0, 0.95
_LOW, _HIGH = 0.01, 3.0  # of either exponent
_STARTS = np.geomspace(0.05, 2.0, 12)  # of either exponent
_ENDS = 4  # so many of the best starts are followed
_LEAST = 1e-3  # of the smallest loss: a term that small is not told from none
_OPTIONS = {"maxiter": 5000, "gtol": 1e-9}

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Point:
    """One run to its end: parameters, tokens trained on, held-out loss in nats a token."""

    parameters: float
    tokens: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Law:
    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law, and the laws of as many resamples of the runs. `residuals` of ln L are as large as
    runs not fitted would have them: times sqrt(n / (n - 5)). `at_bound`: what was not found."""

    law: Law
    replicates: tuple[Law, ...]
    residuals: Floats
    at_bound: tuple[str, ...]

    @property
    def noise(self) -> float:
        """Root mean square of the residuals: what ln L of one run is uncertain by."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def interval(self, of: Callable[[Law], float], level: float) -> tuple[float, float]:
        """Percentiles over the replicates of what `of` reads from a law."""
        return _percentiles([of(law) for law in self.replicates], level)

    def prediction(
        self, parameters: float, tokens: float, level: float, seed: int = 0
    ) -> tuple[float, float, float]:
        """(loss, low, high) of one more run: the law's uncertainty and a run's own noise."""
        noise = np.random.default_rng(seed).choice(self.residuals, len(self.replicates))
        losses = np.array([law.loss(parameters, tokens) for law in self.replicates])
        return self.law.loss(parameters, tokens), *_percentiles(losses * np.exp(noise), level)


def check_design(sizes: Sequence[tuple[float, float]]) -> None:
    """Raises UserError for (N, D) pairs that cannot tell the five numbers apart: fewer than 7, of
    fewer than 3 sizes or token counts, spanning less than 4 times, or in step with each other."""
    logs = np.log(np.array(sizes, dtype=float).reshape(-1, 2))
    wanting: list[str] = []
    if len(logs) < MIN_RUNS:
        wanting.append(f"{len(logs)} runs for five numbers, where {MIN_RUNS} are the least")
    for what, values in zip(("sizes", "token counts"), logs.T, strict=True):
        kinds = len(np.unique(values.round(1)))  # what differs by a tenth is another
        if kinds < MIN_KINDS:
            wanting.append(f"{kinds} {what}, where {MIN_KINDS} are the least")
        elif (span := math.exp(np.ptp(values))) < MIN_SPAN:
            wanting.append(f"{what} that span {span:.1f} times, where {MIN_SPAN:g} is the least")
    if not wanting and abs(np.corrcoef(logs.T)[0, 1]) > MAX_CORRELATION:
        wanting.append("tokens in step with the parameters, so that their effects are one")
    if wanting:
        raise UserError(
            f"no law can be read from {'; '.join(wanting)}: give more scaling.depths and"
            " scaling.num_tokens"
        )


def fit_law(points: Sequence[Point]) -> Law:
    """The law that fits best. Raises UserError as `check_design` does, and for a loss that is no
    positive number."""
    runs = _Runs.of(points)
    return runs.law(runs.best(np.ones(len(points)), runs.starts(_ENDS)))


def fit_with_intervals(points: Sequence[Point], replicates: int, seed: int) -> Fit:
    """`fit_law`, and the same for runs drawn with replacement. On 12 simulated runs the intervals
    of 80% held the truth in 88 to 91% of cases, those of 95% in 98%: rather too wide."""
    runs, number = _Runs.of(points), len(points)
    theta = runs.best(np.ones(number), runs.starts(_ENDS))
    residuals = (runs.log_loss_n - runs.predicted(theta)[0]) * math.sqrt(number / (number - 5))
    random = np.random.default_rng(seed)
    draws = random.multinomial(number, np.full(number, 1 / number), size=replicates)
    found = [runs.best(weights_n.astype(float), [theta]) for weights_n in draws]
    return Fit(runs.law(theta), tuple(map(runs.law, found)), residuals, runs.stuck(theta))


def compute_optimal(law: Law, flops: float) -> tuple[float, float]:
    """(parameters, tokens) of the least loss with 6 N D = flops (Hoffmann et al. 2022, eq. 4)."""
    ratio = (law.alpha * law.A) / (law.beta * law.B)
    scale = ratio ** (1 / (law.alpha + law.beta))
    parameters = scale * (flops / 6) ** (law.beta / (law.alpha + law.beta))
    return parameters, flops / 6 / parameters


@dataclasses.dataclass(frozen=True)
class _Runs:
    """ln N and ln D apart from their means: then A and alpha do not pull against each other."""

    x_n: Floats
    y_n: Floats
    log_loss_n: Floats
    mean_x: float
    mean_y: float

    @staticmethod
    def of(points: Sequence[Point]) -> "_Runs":
        for point in points:
            if not (math.isfinite(point.loss) and point.loss > 0):
                raise UserError(f"a loss of {point.loss} is none to fit; look at the run {point}")
        check_design([(point.parameters, point.tokens) for point in points])
        x_n = np.log([float(point.parameters) for point in points])
        y_n = np.log([float(point.tokens) for point in points])
        loss_n = np.log([point.loss for point in points])
        means = float(x_n.mean()), float(y_n.mean())
        return _Runs(x_n - means[0], y_n - means[1], loss_n, *means)

    def law(self, theta: Floats) -> Law:
        e, a, b = np.maximum(theta[:3], self.least)
        alpha, beta = map(float, _exponents(theta[3:]))
        return Law(
            math.exp(e),
            math.exp(a + alpha * self.mean_x),
            math.exp(b + beta * self.mean_y),
            alpha,
            beta,
        )

    def stuck(self, theta: Floats) -> tuple[str, ...]:
        """The names of what the runs do not tell: a term that is none, an exponent at an end."""
        exponents = _exponents(theta[3:])
        at_end = [*(theta[:3] <= self.least), *((exponents < 2 * _LOW) | (exponents > 0.9 * _HIGH))]
        names = [field.name for field in dataclasses.fields(Law)]
        return tuple(name for name, found in zip(names, at_end, strict=True) if found)

    @property
    def least(self) -> float:
        return math.log(_LEAST) + float(self.log_loss_n.min())

    def predicted(self, theta: Floats) -> tuple[Floats, Floats]:
        """ln L at each run, and its slopes by theta: ln E, ln A and ln B at the mean run, and what
        `_exponents` makes alpha and beta of. [n], [5, n]"""
        (e, a, b), (alpha, beta) = theta[:3], _exponents(theta[3:])
        terms = np.stack([np.full_like(self.x_n, e), a - alpha * self.x_n, b - beta * self.y_n])
        top = terms.max(axis=0)
        parts = np.exp(terms - top)
        total = parts.sum(axis=0)
        shares = parts / total
        by_exponent = -shares[1:] * np.stack([self.x_n, self.y_n])
        alpha_beta = np.array([[alpha], [beta]])
        inner = (alpha_beta - _LOW) * (_HIGH - alpha_beta) / (_HIGH - _LOW)
        return top + np.log(total), np.concatenate([shares, by_exponent * inner])

    def objective(self, theta: Floats, weights_n: Floats) -> tuple[float, Floats]:
        """The sum of Huber losses, in units of DELTA squared, and its gradient."""
        value, slopes = self.predicted(theta)
        z = (value - self.log_loss_n) / DELTA
        huber = np.where(np.abs(z) <= 1, z * z / 2, np.abs(z) - 0.5)
        return float(weights_n @ huber), slopes @ (weights_n * np.clip(z, -1, 1)) / DELTA

    def best(self, weights_n: Floats, starts: Sequence[Floats]) -> Floats:
        """Theta at the best of the ends that the starts lead to."""
        ends = [
            minimize(self.objective, x, (weights_n,), method="BFGS", jac=True, options=_OPTIONS)
            for x in starts
        ]
        return min(ends, key=lambda end: end.fun).x

    def starts(self, number: int) -> list[Floats]:
        """For each pair of exponents on a grid the law is linear in E, A and B: least squares with
        none below 0 finds them (arXiv:2603.22339). The best ones."""
        loss_n = np.exp(self.log_loss_n)
        once_n = np.ones_like(loss_n)
        found: list[tuple[float, Floats]] = []
        for alpha in _STARTS:
            for beta in _STARTS:
                terms = np.stack([once_n, np.exp(-alpha * self.x_n), np.exp(-beta * self.y_n)], 1)
                sizes = nnls(terms / loss_n[:, None], once_n)[0]
                logs = np.log(np.maximum(sizes, _LEAST * loss_n.min()))
                theta = np.array([*logs, *_unbounded(np.array([alpha, beta]))])
                found.append((self.objective(theta, once_n)[0], theta))
        return [theta for _, theta in sorted(found, key=lambda one: one[0])[:number]]


def _exponents(free: Floats) -> Floats:
    """Between their bounds, whatever the number."""
    return _LOW + (_HIGH - _LOW) / (1 + np.exp(-np.clip(free, -50, 50)))


def _unbounded(exponents: Floats) -> Floats:
    return np.log((exponents - _LOW) / (_HIGH - exponents))


def _percentiles(values: Sequence[float] | Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(np.asarray(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
