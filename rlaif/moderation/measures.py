"""What a moderator is worth: ranking, recall at few false positives, calibration, thresholds.

All take scores (n,), greater where a text is broken more surely, and who is broken (n,), 0 or 1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RankedTexts", "calibration_error", "fewest", "flagged_out_of_fold", "threshold_at"]

Floats = NDArray[np.float64]
ROUNDING = 1e-9
"""By how much a threshold lies above the score that must not reach it: computed again, in another batch, a
score differs in its last digits, and where many texts have one score all of them would be flagged."""


class RankedTexts:
    """Texts in the order of their scores, to measure under many weights; equal scores are one step."""

    def __init__(self, score: ArrayLike, broken: ArrayLike) -> None:
        values = np.asarray(score, dtype=np.float64)
        self._order = np.argsort(-values, kind="stable")
        self._broken = np.asarray(broken, dtype=np.float64)[self._order]
        ranked = values[self._order]
        self._last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        """The last text of each step."""

    def auroc(self, weight: Floats) -> float:
        """The probability that a broken text scores higher than a kept one, ties as a half (Mann–Whitney U);
        NaN where one of the two is missing."""
        hits, misses = self._steps(weight)
        if not (hits[-1] > 0 and misses[-1] > 0):
            return math.nan
        before = np.concatenate([[0.0], hits[:-1]])
        own = np.diff(misses, prepend=0.0)
        return float(((before + hits) / 2 @ own) / (hits[-1] * misses[-1]))

    def recall(self, weight: Floats, false_positives: float) -> float:
        """The greatest share of broken texts that a threshold flags which flags at most `false_positives` of
        the kept ones; NaN where one of the two is missing."""
        hits, misses = self._steps(weight)
        if not (hits[-1] > 0 and misses[-1] > 0):
            return math.nan
        allowed = np.flatnonzero(misses <= false_positives * misses[-1] + 1e-9)
        return float(hits[allowed[-1]] / hits[-1]) if allowed.size else 0.0

    def _steps(self, weight: Floats) -> tuple[Floats, Floats]:
        """Weight of the broken and of the kept texts down to each step."""
        own = np.asarray(weight, dtype=np.float64)[self._order]
        hits, misses = np.cumsum(own * self._broken), np.cumsum(own * (1 - self._broken))
        return hits[self._last], misses[self._last]


def fewest(false_positives: float) -> int:
    """Kept texts below which a share of false positives cannot be measured: one of them would be more."""
    return math.ceil(1 / false_positives - 1e-9)


def threshold_at(kept: ArrayLike, false_positives: float) -> float:
    """The lowest threshold, but for `ROUNDING`, that at most that share of the scores of kept texts reach;
    above 1 where a kept text scores 1 and none may be flagged."""
    scores = np.sort(np.asarray(kept, dtype=np.float64))[::-1]
    allowed = math.floor(false_positives * len(scores) + 1e-9)
    if allowed >= len(scores):
        return 0.0
    last = float(scores[allowed])
    return max(last + ROUNDING, math.nextafter(last, math.inf))


def flagged_out_of_fold(
    score: ArrayLike, broken: ArrayLike, fold: ArrayLike, false_positives: float
) -> NDArray[np.bool_] | None:
    """Which texts reach a threshold that was chosen (`threshold_at`) on the kept texts of the other folds; of
    a threshold that they helped to choose, kept texts would reach no more than the share allowed, whatever
    they are. `None` where the other folds of one hold no kept text.

    Args:
        fold: (n,), the fold of each text.
    """
    values, kept, folds = np.asarray(score, np.float64), ~np.asarray(broken, np.bool_), np.asarray(fold)
    found = np.zeros(len(values), np.bool_)
    for number in np.unique(folds):
        own = folds == number
        others = values[~own & kept]
        if not len(others):
            return None
        found[own] = values[own] >= threshold_at(others, false_positives)
    return found


def calibration_error(probability: ArrayLike, broken: ArrayLike, *, bins: int = 10) -> float:
    """Expected calibration error Σ n_b / n |mean probability_b - share broken_b| over bins of equal width in
    the probability that a text is broken (Guo et al. 2017, 1706.04599, eq. 3)."""
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(broken, dtype=np.float64)
    place = np.minimum((p * bins).astype(int), bins - 1)
    return float(
        sum(abs(p[place == b].sum() - y[place == b].sum()) for b in np.unique(place).tolist()) / len(p)
    )
