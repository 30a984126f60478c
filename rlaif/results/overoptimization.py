"""How far optimising a proxy carries the gold measure: the best of K by the proxy, points along √KL, and Gao
et al.'s curves through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from rlaif.stats import Estimate

__all__ = ["CURVES", "Method", "OptimizationFit", "OptimizationPoint", "best_of_k_weights", "expected_best"]

Method = Literal["best_of_k", "rl"]


@dataclass(frozen=True, slots=True)
class OptimizationPoint:
    """A policy, or the best of K samples, at some distance from the start policy.

    Attributes:
        name: `K = 8`, or a step of training.
        kl: To the start policy, nats per completion.
        proxy, gold: Means, with intervals over prompts.
    """

    name: str
    kl: float
    proxy: Estimate
    gold: Estimate

    @property
    def distance(self) -> float:
        """√KL, the d of Gao et al. 2022."""
        return math.sqrt(max(self.kl, 0.0))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OptimizationPoint:
        """The point of its JSON values."""
        return cls(
            str(values["name"]),
            float(values["kl"]),
            proxy=Estimate(**values["proxy"]),
            gold=Estimate(**values["gold"]),
        )


CURVES: Mapping[Method, Callable[[float], float]] = {
    "best_of_k": lambda d: d,
    "rl": lambda d: math.log(d) if d > 0 else 0.0,
}
"""What β multiplies in R(d) = d (α − β · …): d for best of K, log d for RL (Gao et al. 2022, 2210.10760,
eq. 1 and 2)."""


@dataclass(frozen=True, slots=True)
class OptimizationFit:
    """R(d) = d (α − β d) for best of K, d (α − β log d) for RL: the gain in gold over the start policy.

    Attributes:
        furthest, nearest: The largest and the smallest d above 0 that were measured.
    """

    method: Method
    alpha: float
    beta: float
    furthest: float
    nearest: float = 0.0

    def gain(self, distance: float) -> float:
        """R at √KL = `distance`."""
        return distance * (self.alpha - self.beta * CURVES[self.method](distance))

    @property
    def turning_point(self) -> float | None:
        """Where gold stops rising; `None` where the curve does not turn."""
        if self.beta <= 0 or (self.alpha <= 0 and self.method == "best_of_k"):
            return None
        if self.method == "best_of_k":
            return self.alpha / (2 * self.beta)
        return math.exp(min(self.alpha / self.beta - 1, 700.0))

    @property
    def seen(self) -> bool:
        """Whether it turns within what was measured."""
        return self.turning_point is not None and self.nearest <= self.turning_point < self.furthest

    @classmethod
    def through(cls, method: Method, points: Sequence[tuple[float, float]]) -> OptimizationFit | None:
        """Least squares through (d, gain in gold); `None` for fewer than three distances above 0."""
        known = [(d, gain) for d, gain in points if d > 0]
        if len({d for d, _ in known}) < 3:
            return None
        basis = [(d, -d * CURVES[method](d)) for d, _ in known]
        aa, ab, bb = (math.fsum(x[i] * x[j] for x in basis) for i, j in ((0, 0), (0, 1), (1, 1)))
        ay, by = (math.fsum(x[i] * gain for x, (_, gain) in zip(basis, known, strict=True)) for i in (0, 1))
        determinant = aa * bb - ab * ab
        if determinant <= 1e-12 * aa * bb:
            return None
        return cls(
            method=method,
            alpha=(ay * bb - by * ab) / determinant,
            beta=(by * aa - ay * ab) / determinant,
            furthest=max(d for d, _ in known),
            nearest=min(d for d, _ in known),
        )


def best_of_k_weights(scores: Sequence[float], k: int) -> list[float]:
    """How likely each of n samples is the best of k of them, drawn without replacement; ties share.

    The i-th smallest is the best of C(i − 1, k − 1) of C(n, k) draws (order statistics; Nakano et al. 2021,
    2112.09332, app. I). Samples of one score are the best of as many draws each: which of them is taken says
    nothing, so that no order among them may count.

    Args:
        scores: (n,), n ≥ k.
    """
    total = math.comb(len(scores), k)
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    weights = [0.0] * len(scores)
    below = 0
    for _, tied in groupby(order, key=lambda i: scores[i]):
        group = list(tied)
        draws = math.comb(below + len(group), k) - math.comb(below, k)
        for i in group:
            weights[i] = draws / total / len(group)
        below += len(group)
    return weights


def expected_best(values: Sequence[float], scores: Sequence[float], k: int) -> float:
    """The expected value of the one with the highest score among k of n draws: unbiased for the best of k
    fresh draws. Draws of one score share their place (`best_of_k_weights`).

    Args:
        values, scores: (n,), n ≥ k.
    """
    weights = best_of_k_weights(scores, k)
    return math.fsum(weight * value for weight, value in zip(weights, values, strict=True))
