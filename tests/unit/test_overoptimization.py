"""The best of K from n samples, against drawing every K of them; and Gao et al.'s curves."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from rlaif.results.evaluation import CompletionRows
from rlaif.results.overoptimization import OptimizationFit, best_of_k_weights, expected_best
from rlaif.stages.overoptimization import best_of_k_curve, fit_best_of_k


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("proxy", [[3.0, 1.0, 2.0, 5.0, 4.0], [1.0, 2.0, 2.0, 2.0, 0.0], [1.0] * 5])
def test_weights_are_how_often_each_sample_is_the_best_of_k(proxy: list[float], k: int) -> None:
    slow = [0.0] * 5
    draws = list(itertools.combinations(range(5), k))
    for drawn in draws:
        most = max(proxy[i] for i in drawn)
        best = [i for i in drawn if proxy[i] == most]
        for i in best:
            slow[i] += 1 / len(best) / len(draws)
    assert best_of_k_weights(proxy, k) == pytest.approx(slow)


@pytest.mark.parametrize("k", range(1, 7))
def test_the_expected_best_is_the_mean_over_all_draws_of_k_and_ties_share(k: int) -> None:
    scores, values = [0.3, -1.0, 2.0, 0.3, 5.0, 0.3], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]

    def best(drawn: tuple[int, ...]) -> float:
        tied = [values[i] for i in drawn if scores[i] == max(scores[j] for j in drawn)]
        return sum(tied) / len(tied)

    every = [best(drawn) for drawn in itertools.combinations(range(6), k)]
    assert expected_best(values, scores, k) == pytest.approx(sum(every) / len(every))
    turned = expected_best(values[::-1], scores[::-1], k)
    assert turned == pytest.approx(expected_best(values, scores, k)), "the order of ties says nothing"


def test_the_expected_best_of_one_is_the_mean_and_of_all_the_maximum() -> None:
    values = [0.5, -0.25, 4.0, 1.0]
    assert expected_best(values, values, 1) == pytest.approx(sum(values) / 4)
    assert expected_best(values, values, 4) == 4.0
    assert expected_best(values, [1.0] * 4, 4) == pytest.approx(sum(values) / 4), "all tied: any of them"


def test_best_of_k_of_a_policy_has_the_one_rule_of_ties() -> None:
    """Both statistics, of a stage and of a comparison, are of the same draws."""
    rows = CompletionRows(
        tuple("aaabbb"), ("",) * 6, {"reward": (1.0, 1.0, 0.0) * 2, "gold": (4.0, 2.0, 9.0) * 2}
    )
    points = best_of_k_curve(rows, proxy="reward", gold="gold", resamples=10)
    assert points[1].gold.value == pytest.approx(expected_best([4.0, 2.0, 9.0], [1.0, 1.0, 0.0], 2))
    assert points[1].gold.value == pytest.approx(3.0)


def test_the_curve_goes_up_on_the_proxy_and_turns_where_gold_does() -> None:
    """Gold follows the proxy until it is too much of a good thing."""
    rng = random.Random(0)
    prompts = [f"p{i}" for i in range(20) for _ in range(16)]
    proxy = [rng.gauss(0, 1) for _ in prompts]
    gold = [x - 0.9 * max(x - 0.5, 0) * 2 for x in proxy]
    rows = CompletionRows(tuple(prompts), ("",) * len(prompts), {"reward": tuple(proxy), "gold": tuple(gold)})
    points = best_of_k_curve(rows, proxy="reward", gold="gold", resamples=100)
    assert [each.name for each in points] == ["K = 1", "K = 2", "K = 4", "K = 8", "K = 16"]
    assert points[0].proxy.value == pytest.approx(math.fsum(proxy) / len(proxy))
    bounds = [0.0, 0.193, 0.636, 1.204, 1.835]  # log K - (K - 1) / K
    assert [each.kl for each in points] == pytest.approx(bounds, abs=5e-4)
    values = [each.proxy.value for each in points]
    assert values == sorted(values)
    fit = fit_best_of_k(points)
    assert fit is not None
    assert fit.seen
    assert fit.turning_point is not None
    assert 0.3 < fit.turning_point < points[-1].distance


def test_completions_without_a_measure_are_left_out() -> None:
    rows = CompletionRows(
        ("a", "a", "b", "b", "c"),
        ("",) * 5,
        {"reward": (1.0, 2.0, 3.0, None, 1.0), "gold": (1.0, 2.0, 3.0, 4.0, 5.0)},
    )
    assert best_of_k_curve(rows, proxy="reward", gold="gold", resamples=10) == ()
    assert best_of_k_curve(rows, proxy="none", gold="gold", resamples=10) == ()


@pytest.mark.parametrize(("method", "alpha", "beta"), [("best_of_k", 1.0, 0.2), ("rl", 0.8, 0.3)])
def test_a_fit_finds_the_curve_that_made_the_points(method: str, alpha: float, beta: float) -> None:
    made = OptimizationFit(method=method, alpha=alpha, beta=beta, furthest=4.0)  # type: ignore[arg-type]
    fit = OptimizationFit.through(made.method, [(d / 4, made.gain(d / 4)) for d in range(17)])
    assert fit is not None
    assert (fit.alpha, fit.beta) == pytest.approx((alpha, beta))
    turn = fit.turning_point
    assert turn is not None
    assert made.gain(turn) > max(made.gain(turn * 0.9), made.gain(turn * 1.1))
    assert fit.seen == (turn < 4.0)


def test_two_points_make_no_curve() -> None:
    assert OptimizationFit.through("rl", [(0.0, 0.0), (1.0, 1.0), (2.0, 1.5)]) is None
