"""Shares and their intervals, in plain Python: what counts verdicts need not load numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from rlaif.errors import DataError

__all__ = ["ClusteredShare", "Estimate", "wilson"]


class Estimate(NamedTuple):
    """A number and the interval around it."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of zero."""
        return self.low > 0 or self.high < 0


# Intervals


def wilson(successes: float, trials: float, *, confidence: float = 0.95) -> Estimate:
    """A proportion with its score interval (Wilson 1927): sound at few trials and near 0 and 1, never outside
    [0, 1].

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        successes: May hold halves, where a tie counts half.
        trials: May be an effective number of them, see `ClusteredShare`.

    Raises:
        DataError: No trials, or more successes than trials.
    """
    if not (trials > 0 and 0 <= successes <= trials):
        raise DataError(
            f"a proportion of {successes} in {trials} has no meaning", remedy="count at least one trial"
        )
    z2 = _z(confidence) ** 2
    p = successes / trials
    centre = p + z2 / (2 * trials)
    half = math.sqrt(z2 * (p * (1 - p) / trials + z2 / (4 * trials**2)))
    scale = 1 + z2 / trials
    low, high = (centre - half) / scale, (centre + half) / scale
    return Estimate(value=p, low=min(max(low, 0.0), p), high=max(min(high, 1.0), p))


@dataclass
class ClusteredShare:
    """A share of trials that come in clusters, such as the questions about one prompt: they are alike, and
    tell less than as many trials by themselves. Only sums are kept, whatever the number of clusters."""

    clusters: int = 0
    trials: int = 0
    successes: int = 0
    trials_squared: int = 0
    products: int = 0
    successes_squared: int = 0

    def add(self, successes: int, trials: int) -> None:
        """Count a cluster; one without trials is none."""
        if not trials:
            return
        self.clusters += 1
        self.trials += trials
        self.successes += successes
        self.trials_squared += trials**2
        self.products += successes * trials
        self.successes_squared += successes**2

    def estimate(self, *, confidence: float = 0.95) -> Estimate:
        """The share with Wilson's interval for the effective number of trials (Korn and Graubard 1998):
        p (1 − p) / v, with v = C / (C − 1) Σ (x − p n)² / N² the variance of a ratio of C clusters of x in n
        (Cochran 1977, eq. 6.13).

        Trials are never counted for more than there are. Where all agree there is no variance to see, and
        each cluster counts for one. One cluster alone leaves the share open from 0 to 1.

        Raises:
            DataError: There are no trials.
        """
        if self.clusters == 1:
            return Estimate(value=self.successes / self.trials, low=0.0, high=1.0)
        if not self.trials:
            raise DataError("a share of no trials has no meaning", remedy="count at least one")
        p = self.successes / self.trials
        residual = self.successes_squared - 2 * p * self.products + p**2 * self.trials_squared
        variance = self.clusters / (self.clusters - 1) * max(residual, 0.0) / self.trials**2
        varied = 0 < p < 1
        trials = min(float(self.trials), p * (1 - p) / variance if variance else math.inf)
        trials = trials if varied else float(self.clusters)
        return wilson(p * trials, trials, confidence=confidence)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
