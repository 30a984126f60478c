"""Intervals over seeds and prompts: their coverage, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from rlaif.crossed import crossed_mean
from rlaif.errors import DataError
from rlaif.stats import bootstrap_mean


def named(cells: NDArray[np.float64]) -> dict[int, dict[int, float]]:
    return {seed: dict(enumerate(row.tolist())) for seed, row in enumerate(cells)}


def coverage(*, seeds: int, of_seeds: float, of_prompts: float, tries: int = 200) -> float:
    """Share of intervals that hold the true mean, 0."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(tries):
        cells = rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, of_prompts, (1, 40))
        found = crossed_mean(named(cells + rng.normal(0, 1, (seeds, 40))), resamples=200)
        held += found.low <= 0 <= found.high
    return held / tries


@pytest.mark.parametrize(("seeds", "of_seeds", "of_prompts"), [(5, 1.0, 1.0), (5, 0.0, 1.0), (3, 0.3, 1.0)])
def test_the_interval_holds_the_mean_as_often_as_it_says(
    seeds: int, of_seeds: float, of_prompts: float
) -> None:
    assert coverage(seeds=seeds, of_seeds=of_seeds, of_prompts=of_prompts) >= 0.92


def test_an_interval_over_prompts_alone_would_be_too_narrow() -> None:
    rng = np.random.default_rng(0)
    cells = rng.normal(0, 1, (5, 1)) + rng.normal(0, 0.2, (5, 40))
    found = crossed_mean(named(cells))
    alone = bootstrap_mean(cells.ravel(), [i for _ in range(5) for i in range(40)])
    assert found.value == pytest.approx(alone.value)
    assert found.high - found.low > 4 * (alone.high - alone.low)


def test_prompts_that_only_one_seed_answered_count() -> None:
    found = crossed_mean({0: {"a": 1.0, "b": 3.0}, 1: {"b": 5.0, "c": 7.0}})
    assert found.value == 4.0
    assert found.low < 4 < found.high


def test_the_same_seed_gives_the_same_interval() -> None:
    cells = named(np.random.default_rng(3).normal(size=(3, 10)))
    assert crossed_mean(cells, seed=4) == crossed_mean(cells, seed=4) != crossed_mean(cells, seed=5)


def test_where_all_agree_there_is_no_width() -> None:
    assert crossed_mean({0: {"a": 2.0, "b": 2.0}, 1: {"a": 2.0, "b": 2.0}}) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    "values",
    [{}, {0: {"a": 1.0, "b": 2.0}}, {0: {"a": 1.0}, 1: {"a": 2.0}}, {0: {"a": 1.0, "b": 2.0}, 1: {}}],
)
def test_one_seed_or_one_prompt_has_no_interval(values: dict[int, dict[str, float]]) -> None:
    with pytest.raises(DataError, match="has no meaning"):
        crossed_mean(values)


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        crossed_mean({0: {"a": math.nan, "b": 2.0}, 1: {"a": 1.0, "b": 2.0}})
