"""Intervals of a mean over seeds and prompts, both drawn: what one seed shows, the next need not."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rlaif.errors import DataError
from rlaif.stats import Estimate, student

__all__ = ["crossed_mean"]

Floats = NDArray[np.float64]


def crossed_mean(
    values: Mapping[Hashable, Mapping[Hashable, float]],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean over seeds and prompts with a two-level bootstrap interval.

    Each resample draws as many seeds as there are and, independently, as many prompts as there are, and
    weighs every cell by the product of how often its seed and its prompt were drawn (Owen 2007, 'The
    pigeonhole bootstrap'). Prompts that only some seeds answered are drawn like others.

    Few seeds make that interval too narrow in two ways, and both are mended: deviations of seeds from the
    mean are scaled by √(S / (S − 1)), since a bootstrap of S values has the variance of their population;
    and the distance to either end is multiplied by t / z, quantiles of Student's distribution with the
    degrees of freedom of Satterthwaite (1946) and of the normal one. docs/LOG.md has the coverage measured.
    Where all seeds and prompts agree the interval has no width.

    Args:
        values: By seed, by prompt: one number each, such as the mean over the prompt's completions.

    Raises:
        DataError: Fewer than two seeds or two prompts, or a value is not finite.
    """
    cells, there = _cells(values)
    mean = float(cells.sum() / there.sum())
    rows, columns = there.sum(axis=1), there.sum(axis=0)
    of_seeds, of_prompts = cells.sum(axis=1) / rows - mean, cells.sum(axis=0) / columns - mean
    count = len(of_seeds)
    scaled = cells + (math.sqrt(count / (count - 1)) - 1) * of_seeds[:, None] * there
    draws = _resampled(scaled, there, resamples=resamples, seed=seed)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    stretch = _stretch(of_seeds, of_prompts, confidence)
    return Estimate(
        value=mean, low=mean - (mean - float(low)) * stretch, high=mean + (float(high) - mean) * stretch
    )


def _cells(values: Mapping[Hashable, Mapping[Hashable, float]]) -> tuple[Floats, Floats]:
    """The values, (seeds, prompts), 0 where there is none, and 1 where there is one."""
    prompts = list(dict.fromkeys(prompt for each in values.values() for prompt in each))
    kept = [each for each in values.values() if each]
    if len(kept) < 2 or len(prompts) < 2:
        raise DataError(
            f"an interval over {len(kept)} seeds and {len(prompts)} prompts has no meaning",
            remedy="run at least two seeds, and evaluate on at least two prompts",
        )
    found = np.array([[each.get(prompt, math.nan) for prompt in prompts] for each in kept])
    given = np.array([[prompt in each for prompt in prompts] for each in kept])
    if not np.isfinite(found[given]).all():
        raise DataError("a value is not finite", remedy="drop it and say so")
    return np.where(given, found, 0.0), given.astype(np.float64)


def _resampled(cells: Floats, there: Floats, *, resamples: int, seed: int) -> Floats:
    """Means of `resamples` draws of seeds and prompts; those that drew no cell at all are left out."""
    rng = np.random.default_rng(seed)
    seeds, prompts = cells.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    columns = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    totals = ((rows @ cells) * columns).sum(axis=1)
    weights = ((rows @ there) * columns).sum(axis=1)
    drawn: Floats = totals[weights > 0] / weights[weights > 0]
    return drawn


def _stretch(of_seeds: Floats, of_prompts: Floats, confidence: float) -> float:
    """t / z for the degrees of freedom of a sum of two variances of means (Satterthwaite 1946)."""
    parts = [float(each @ each) / (len(each) - 1) / len(each) for each in (of_seeds, of_prompts)]
    if sum(parts) == 0:
        return 1.0
    squares = sum(part**2 / (len(each) - 1) for part, each in zip(parts, (of_seeds, of_prompts), strict=True))
    freedom = sum(parts) ** 2 / squares
    return student(freedom, confidence) / NormalDist().inv_cdf((1 + confidence) / 2)
