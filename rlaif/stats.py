"""Statistics of judgements and evaluations: intervals, agreement, calibration, and the win rate freed of
length.

Pure functions of numbers. What is drawn at random is drawn from the seed given, so that the same input gives
the same interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlaif.errors import DataError
from rlaif.shares import ClusteredShare, Estimate, wilson

__all__ = [
    "CalibrationCurve",
    "ClusteredShare",
    "Estimate",
    "Floats",
    "LengthControlled",
    "ReliabilityBin",
    "bootstrap",
    "bootstrap_difference",
    "bootstrap_mean",
    "calibration",
    "cohen_kappa",
    "fit_logistic",
    "krippendorff_alpha",
    "length_controlled_win_rate",
    "student",
    "student_mean",
    "wilson",
]

Floats = NDArray[np.float64]
DRAWN_AT_ONCE = 1 << 20
"""Numbers of a bootstrap that are held at once."""
STUDENT_DRAWS = 50_000


@lru_cache(maxsize=256)
def student(freedom: float, confidence: float = 0.95) -> float:
    """The number of standard errors that holds `confidence` of Student's distribution, from a fixed set of
    draws: good to about one in a hundred.

    Args:
        freedom: Degrees of freedom, above 0.
    """
    draws = np.abs(np.random.default_rng(0).standard_t(freedom, STUDENT_DRAWS))
    return float(np.quantile(draws, confidence))


def student_mean(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """The mean of independent numbers with Student's interval: x̄ ± t s / √n, n − 1 degrees of freedom.

    Raises:
        DataError: Fewer than two.
    """
    if len(values) < 2:
        raise DataError("an interval needs two values", remedy="run at least two seeds")
    found = np.asarray(values, dtype=np.float64)
    half = student(len(found) - 1, confidence) * float(found.std(ddof=1)) / math.sqrt(len(found))
    mean = float(found.mean())
    return Estimate(value=mean, low=mean - half, high=mean + half)


def bootstrap(
    statistic: Callable[[Floats], float],
    prompts: Sequence[Hashable],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """`statistic` with its percentile bootstrap interval (Efron 1979), prompts drawn whole.

    The completions of one prompt are alike; drawn one by one they would make the interval too narrow. Instead
    each resample draws as many prompts as there are, with replacement, and all their rows with them.
    Where all prompts agree the interval has no width: it knows nothing of what it has not seen (for a
    proportion, see `wilson`).

    Args:
        statistic: Takes the weight of each row, shape (rows,): all 1 for the value itself, then how often the
            row's prompt was drawn. NaN (a resample that the statistic is undefined on) is left out of the
            interval.
        prompts: Which prompt each row belongs to.

    Raises:
        DataError: Fewer than two prompts: one says nothing about the others.
    """
    index = _places(prompts)
    if len(index) < 2:
        raise DataError(
            f"an interval over {len(index)} prompts has no meaning", remedy="evaluate on at least two prompts"
        )
    row_prompt = np.array([index[prompt] for prompt in prompts])
    draws = np.array(
        [
            statistic(drawn[row_prompt])
            for counts in _drawn(len(index), resamples=resamples, seed=seed)
            for drawn in counts
        ]
    )
    return _interval(float(statistic(np.ones(len(row_prompt)))), draws, confidence)


def _drawn(prompts: int, *, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each prompt is drawn in each resample, (some resamples, prompts) at a time."""
    rng, some = np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // prompts)
    for start in range(0, resamples, some):
        count = min(some, resamples - start)
        places = rng.integers(prompts, size=(count, prompts)) + prompts * np.arange(count)[:, None]
        yield (
            np.bincount(places.ravel(), minlength=count * prompts).reshape(count, prompts).astype(np.float64)
        )


def _interval(value: float, draws: Floats, confidence: float) -> Estimate:
    """Percentiles of the draws that are defined."""
    draws = draws[~np.isnan(draws)]
    low, high = (
        np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
        if draws.size
        else (math.nan, math.nan)
    )
    return Estimate(value=value, low=float(low), high=float(high))


class _Side(NamedTuple):
    """A column by prompts: (prompts,), the sum of the values and the number of rows of each."""

    sums: Floats
    rows: Floats

    @classmethod
    def of(cls, values: Floats, prompts: Sequence[Hashable], index: Mapping[Hashable, int]) -> _Side:
        place = [index[prompt] for prompt in prompts]
        return cls(
            np.bincount(place, weights=values, minlength=len(index)).astype(np.float64),
            np.bincount(place, minlength=len(index)).astype(np.float64),
        )

    def means(self, counts: Floats) -> Floats:
        """Of each resample, (resamples,)."""
        means: Floats = (counts @ self.sums) / (counts @ self.rows)
        return means


def _bootstrap_means(sides: Sequence[_Side], *, resamples: int, confidence: float, seed: int) -> Estimate:
    """As `bootstrap`, of the mean of the first side less that of the second, if there is one: the same draws,
    all at once."""

    def of(counts: Floats) -> Floats:
        first, *others = (side.means(counts) for side in sides)
        return first - others[0] if others else first

    prompts = len(sides[0].rows)
    if prompts < 2:
        raise DataError(
            f"an interval over {prompts} prompts has no meaning", remedy="evaluate on at least two prompts"
        )
    draws = [of(counts) for counts in _drawn(prompts, resamples=resamples, seed=seed)]
    return _interval(float(of(np.ones(prompts))), np.concatenate(draws), confidence)


def bootstrap_mean(
    values: ArrayLike,
    prompts: Sequence[Hashable],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean over rows with its interval, prompts drawn whole. See `bootstrap`.

    Raises:
        DataError: Not one prompt a value, or fewer than two prompts.
    """
    rows, index = _column(values, len(prompts)), _places(prompts)
    side = _Side.of(rows, prompts, index)
    return _bootstrap_means([side], resamples=resamples, confidence=confidence, seed=seed)


def bootstrap_difference(
    values: ArrayLike,
    prompts: Sequence[Hashable],
    base_values: ArrayLike,
    base_prompts: Sequence[Hashable],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """mean(values) - mean(base_values) on the same prompts, with its interval; each prompt is drawn with the
    rows of both sides, so that what makes prompts differ cancels. The two sides may have different numbers of
    rows per prompt.

    Raises:
        DataError: The two sides have different prompts, or fewer than two, or not one prompt a value.
    """
    ours, base = _column(values, len(prompts)), _column(base_values, len(base_prompts))
    if set(prompts) != set(base_prompts):
        odd = sorted(repr(prompt) for prompt in set(prompts) ^ set(base_prompts))
        raise DataError(
            f"the two sides answer different prompts: {len(odd)} are on one side only, the first {odd[0]}",
            remedy="evaluate both on the same prompts",
        )
    index = _places(prompts)
    sides = [_Side.of(ours, prompts, index), _Side.of(base, base_prompts, index)]
    return _bootstrap_means(sides, resamples=resamples, confidence=confidence, seed=seed)


# Agreement


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Agreement of two raters beyond chance (Cohen 1960): (p_o - p_e) / (1 - p_e); NaN when both only ever
    said one same thing.

    Raises:
        DataError: Not the same number of ratings, or none.
    """
    if len(first) != len(second) or not first:
        raise DataError(
            f"{len(first)} ratings against {len(second)}",
            remedy="give both raters' answers to the same items",
        )
    n = len(first)
    observed = sum(x == y for x, y in zip(first, second, strict=True)) / n
    ours, theirs = Counter(first), Counter(second)
    expected = sum(ours[label] * theirs[label] for label in ours) / n**2
    return math.nan if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(
    units: Sequence[Sequence[float | None]], *, level: Literal["nominal", "interval"] = "nominal"
) -> float:
    """Agreement of any number of raters beyond chance, ratings may be missing (Krippendorff 2004, ch. 11): 1
    - D_o / D_e.

    D_o is the mean difference within units, D_e that between any two ratings; the difference is 0 or 1
    (`nominal`) or the squared distance (`interval`). A unit rated once tells nothing and is left out. NaN
    when nothing is left or all ratings are equal.

    Args:
        units: Per item, one rating a rater, `None` where it gave none.
    """
    rated = [[value for value in unit if value is not None] for unit in units]
    rated = [unit for unit in rated if len(unit) > 1]
    everything = [value for unit in rated for value in unit]
    n = len(everything)
    differences = _unequal_pairs if level == "nominal" else _squared_distances
    expected = differences(everything) / (n * (n - 1)) if n else 0.0
    if expected == 0:
        return math.nan
    observed = sum(differences(unit) / (len(unit) - 1) for unit in rated) / n
    return 1 - observed / expected


def _unequal_pairs(values: Sequence[float]) -> float:
    """How many ordered pairs of `values` differ."""
    return len(values) ** 2 - sum(count**2 for count in Counter(values).values())


def _squared_distances(values: Sequence[float]) -> float:
    """Σ (x - y)² over ordered pairs: 2 n Σ (x - mean)²."""
    mean = math.fsum(values) / len(values)
    return 2 * len(values) * math.fsum((value - mean) ** 2 for value in values)


# CalibrationCurve


class ReliabilityBin(NamedTuple):
    """The predictions whose confidence fell into one bin."""

    low: float
    high: float
    rows: int
    confidence: float
    """Mean confidence."""
    accuracy: float


class CalibrationCurve(NamedTuple):
    """How far confidence and accuracy are apart, and where."""

    ece: float
    bins: tuple[ReliabilityBin, ...]
    """Those that are not empty, by confidence."""


def calibration(p_a: ArrayLike, a_won: ArrayLike, *, bins: int = 10) -> CalibrationCurve:
    """Expected calibration error of P(a is better), Σ n_b/n |accuracy_b - confidence_b|, with its reliability
    table (Guo et al. 2017, 1706.04599, eq. 3), bins of equal width over confidence ½ to 1.

    The confidence is that in the answer given, max(p, 1-p), so that it does not matter which completion was
    called a (with the chosen one always first the raw p would be compared with an accuracy of 1). At p = ½ no
    answer was given; it counts half.

    Args:
        p_a: (rows,), 0 to 1.
        a_won: (rows,), 1 where a is better, 0 where b is; a share in between where raters differ.

    Raises:
        DataError: No rows, not one outcome a row, or a value outside [0, 1].
    """
    p = _column(p_a)
    won = _column(a_won, len(p))
    if not (len(p) and all(np.all((x >= 0) & (x <= 1)) for x in (p, won))):
        raise DataError(
            "calibration needs rows, and probabilities and outcomes from 0 to 1",
            remedy="give p, not log-odds",
        )
    confidence = np.maximum(p, 1 - p)
    correct = np.where(p == 0.5, 0.5, np.where(p > 0.5, won, 1 - won))
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    table = tuple(
        ReliabilityBin(
            low=0.5 + b / (2 * bins),
            high=0.5 + (b + 1) / (2 * bins),
            rows=int((place == b).sum()),
            confidence=float(confidence[place == b].mean()),
            accuracy=float(correct[place == b].mean()),
        )
        for b in np.unique(place).tolist()
    )
    return CalibrationCurve(
        ece=sum(b.rows * abs(b.accuracy - b.confidence) for b in table) / len(p), bins=table
    )


# Length


class LengthControlled(NamedTuple):
    """A win rate with and without the help of length."""

    win_rate: Estimate
    """As if both sides' answers were of one length."""
    raw: Estimate
    length_effect: float
    """The coefficient of the length term (log-odds); above 0: the longer answer is preferred."""


def length_controlled_win_rate(
    preferences: ArrayLike,
    lengths: ArrayLike,
    base_lengths: ArrayLike,
    prompts: Sequence[Hashable],
    *,
    ridge: float = 0.01,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> LengthControlled:
    """The share of comparisons won, had length not differed (Dubois et al. 2024, AlpacaEval 2, arXiv
    2404.04475).

    P(win) = σ(θ + φ tanh(Δ / std Δ)), Δ = length - base length, fitted to the (soft) preferences; the answer
    is σ(θ), the length term set to zero. This is `length_controlled_minimal` of alpaca_eval: its default also
    has a term for the difficulty of its own 805 instructions, which other prompts lack. Where it fits by
    cross-validated L1, this is a ridge, small, that keeps the fit finite when one side wins all. The interval
    resamples prompts and fits again.

    Args:
        preferences: (rows,) P(ours is better) or 0, ½, 1.
        lengths, base_lengths: (rows,) in one unit, characters or tokens.
        ridge: Gaussian prior on θ and φ, as 1 / variance.

    Raises:
        DataError: Columns of different lengths, a preference outside [0, 1], NaN, or fewer than two prompts.
    """
    wins = _column(preferences, len(prompts))
    delta = _column(lengths, len(prompts)) - _column(base_lengths, len(prompts))
    if not np.all((wins >= 0) & (wins <= 1)):
        raise DataError("a preference is not between 0 and 1", remedy="drop invalid verdicts before")
    spread = float(delta.std(ddof=1)) if len(delta) > 1 else 0.0
    x = np.column_stack(
        [np.ones_like(delta), np.tanh(delta / spread) if spread > 0 else np.zeros_like(delta)]
    )

    def controlled(weights: Floats) -> float:
        return float(_sigmoid(fit_logistic(x, wins, weights, ridge=ridge)[0]))

    return LengthControlled(
        win_rate=bootstrap(controlled, prompts, resamples=resamples, confidence=confidence, seed=seed),
        raw=bootstrap(
            lambda w: _mean(wins, w), prompts, resamples=resamples, confidence=confidence, seed=seed
        ),
        length_effect=float(fit_logistic(x, wins, np.ones_like(wins), ridge=ridge)[1]),
    )


def fit_logistic(x: Floats, y: Floats, weights: Floats, *, ridge: float) -> Floats:
    """Logistic regression with soft targets by iteratively reweighted least squares, that is Newton's method,
    its step halved while it does not lower the loss. x (rows, k), y and weights (rows,) -> (k,)."""

    def loss(theta: Floats) -> float:
        z = x @ theta
        return float(weights @ (np.logaddexp(0, z) - y * z) + ridge / 2 * theta @ theta)

    theta, now = np.zeros(x.shape[1]), loss(np.zeros(x.shape[1]))
    for _ in range(100):
        p = _sigmoid(x @ theta)
        gradient = x.T @ (weights * (p - y)) + ridge * theta
        hessian = (x.T * (weights * p * (1 - p))) @ x + ridge * np.eye(x.shape[1])
        step = np.linalg.solve(hessian, gradient)
        while (then := loss(theta - step)) > now and float(np.abs(step).max()) > 1e-12:
            step /= 2
        theta, now = theta - step, min(then, now)
        if float(np.abs(step).max()) < 1e-9:
            break
    return theta


# Shared by the above


def _places(prompts: Sequence[Hashable]) -> dict[Hashable, int]:
    return {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}


def _sigmoid(x: ArrayLike) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -np.asarray(x, dtype=np.float64))), dtype=np.float64)


def _mean(values: Floats, weights: Floats) -> float:
    return float(values @ weights / weights.sum())


def _column(values: ArrayLike, rows: int | None = None) -> Floats:
    """`values` as one column of finite numbers, of the length of its neighbours."""
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or (rows is not None and len(column) != rows):
        raise DataError(
            f"a column has shape {column.shape}, not ({rows if rows is not None else 'rows'},)",
            remedy="one value per row",
        )
    if not np.isfinite(column).all():
        row = int(np.argmin(np.isfinite(column)))
        raise DataError(
            f"row {row} is {column[row]}", remedy="drop the rows without a value and say how many they were"
        )
    return column
