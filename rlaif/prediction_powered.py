"""A mean that people's labels tell, sharpened by a judge's labels of many more (Angelopoulos et al. 2023).

The judge's mean over everything is precise and biased; the mean difference between people and judge, on the
pairs that both have labelled, says how biased. Together they give an interval that holds whatever the judge
is worth: a useless judge makes it no narrower, a good one makes few labels count as many. What people label
must be drawn at random from all of it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlaif.errors import DataError
from rlaif.stats import Estimate, student

__all__ = ["Labelled", "PoweredMean", "powered_mean"]

Floats = NDArray[np.float64]


class Labelled(NamedTuple):
    """One item that a judge has labelled, and people may have.

    Attributes:
        judge: The judge's label, a number.
        people: People's, on the same scale; `None` where nobody was asked.
        prompt: Items of one prompt are alike: they count as a cluster.
    """

    judge: float
    people: float | None
    prompt: Hashable


class PoweredMean(NamedTuple):
    """The mean of people's labels over all items, estimated three ways.

    Attributes:
        judge: Of the judge's labels of all items: precise, and biased as the judge is.
        people: Of the n items that people labelled.
        both: Prediction-powered, by both.
        weight: λ, how much of the judge is used, 0 to 1.
        labels: n.
        items: All of them, N + n.
        effective: How many labels of people alone would give an interval as narrow as that of `both`.
    """

    judge: Estimate
    people: Estimate
    both: Estimate
    weight: float
    labels: int
    items: int
    effective: float


def powered_mean(items: Sequence[Labelled], *, confidence: float = 0.95) -> PoweredMean:
    """PPI++ for a mean (Angelopoulos, Duchi & Zrnic 2023, 2311.01453; PPI: Angelopoulos et al. 2023, Science
    382:669):

    θ = λ · mean_N(f) + mean_n(Y − λ f), variance λ² var_N(f) / N + var_n(Y − λ f) / n, with λ = cov_n(Y, f) /
    ((1 + n / N) var(f)), clipped to [0, 1] (their eq. 4 and § 6); N are the items that people did not label.
    Variances are of sums over prompts, so that items of one prompt may be alike, and twice their covariance
    comes on top where people labelled some of a prompt's items and not others; intervals are by Student's
    distribution, with as many degrees of freedom as prompts that people saw, less one.

    With few labels these intervals are too narrow: λ is fitted to the labels that it is used on, and a judge
    that is right on all of 20 pairs is not always right. So λ and the variances are taken with two prompts
    more, one on which people say 1 and the judge 0, and one the other way (as Agresti & Coull 1998 add to a
    proportion); the mean is not. docs/LOG.md has the coverage measured.

    Args:
        items: With labels from 0 to 1.

    Raises:
        DataError: People labelled fewer than two prompts, or a label is not from 0 to 1.
    """
    seen = [(each.judge, each.people, each.prompt) for each in items if each.people is not None]
    rest = [each for each in items if each.people is None]
    if not all(0 <= x <= 1 for each in items for x in (each.judge, each.people or 0.0)):
        raise DataError("a label is not from 0 to 1", remedy="drop it and say so")
    prompts = [prompt for *_, prompt in seen]
    freedom = len(set(prompts)) - 1
    if freedom < 1:
        raise DataError(
            f"people labelled pairs of {len(set(prompts))} prompts, and an interval needs two",
            remedy="label more pairs: rlaif collect labels",
        )
    f, y = (np.array([row[i] for row in seen], dtype=np.float64) for i in (0, 1))
    others, places = np.array([each.judge for each in rest]), [each.prompt for each in rest]
    added = _Added(f, y, prompts)
    weight = _weight(added.judge, added.people, others, places)
    alone = added.variance(added.people)
    people = _estimate(float(y.mean()), alone, freedom, confidence)
    value, variance = float((y - weight * f).mean()), added.variance(added.people - weight * added.judge)
    if weight:
        value += weight * float(others.mean())
        variance += weight**2 * _variance(others, places)
        variance += 2 * weight * _covariance(y - weight * f, prompts, others, places)
    every, whole = np.concatenate([f, others]), [*prompts, *places]
    return PoweredMean(
        judge=_estimate(float(every.mean()), _variance(every, whole), len(set(whole)) - 1, confidence),
        people=people,
        both=_estimate(value, variance, freedom, confidence),
        weight=weight,
        labels=len(seen),
        items=len(items),
        effective=len(seen) * alone / variance,
    )


class _Added:
    """People's items and the judge's, with two prompts more on which they disagree, as large as the mean one
    is."""

    def __init__(self, judge: Floats, people: Floats, prompts: Sequence[Hashable]) -> None:
        size = max(1, round(len(people) / len(set(prompts))))
        self.judge = np.concatenate([judge, np.repeat([0.0, 1.0], size)])
        self.people = np.concatenate([people, np.repeat([1.0, 0.0], size)])
        self._prompts = [
            *((0, prompt) for prompt in prompts),
            *((1, side) for side in (0, 1) for _ in range(size)),
        ]
        self._scale = len(self.people) / len(people)

    def variance(self, values: Floats) -> float:
        """Of the mean over the true items."""
        return self._scale * _variance(values, self._prompts)


def _weight(f: Floats, y: Floats, others: Floats, places: Sequence[Hashable]) -> float:
    """λ; 0 where the judge has nothing to add: fewer than two prompts that people did not see."""
    if len(set(places)) < 2:
        return 0.0
    spread = float(np.concatenate([f, others]).var(ddof=1))
    covariance = float(((f - f.mean()) * (y - y.mean())).sum()) / (len(y) - 1)
    return min(1.0, max(0.0, covariance / ((1 + len(y) / len(others)) * spread)))


def _variance(values: Floats, prompts: Sequence[Hashable]) -> float:
    """Of the mean, prompts as clusters: C / (C − 1) · Σ_c (Σ_{i in c} (x_i − x̄))² / n²."""
    sums = _sums(values, prompts)
    if len(sums) < 2:
        return math.inf
    return len(sums) / (len(sums) - 1) * math.fsum(x * x for x in sums.values()) / len(values) ** 2


def _covariance(
    values: Floats, prompts: Sequence[Hashable], others: Floats, places: Sequence[Hashable]
) -> float:
    """Of the means of two sets of items, which may have prompts in common."""
    one, two = _sums(values, prompts), _sums(others, places)
    return math.fsum(x * two.get(prompt, 0.0) for prompt, x in one.items()) / (len(values) * len(others))


def _sums(values: Floats, prompts: Sequence[Hashable]) -> dict[Hashable, float]:
    """Deviations from the mean, summed by prompt."""
    sums: dict[Hashable, float] = {}
    for value, prompt in zip((values - values.mean()).tolist(), prompts, strict=True):
        sums[prompt] = sums.get(prompt, 0.0) + value
    return sums


def _estimate(value: float, variance: float, freedom: int, confidence: float) -> Estimate:
    half = student(freedom, confidence) * math.sqrt(variance)
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))
