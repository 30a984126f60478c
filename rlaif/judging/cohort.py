"""A cohort: the K completions of one prompt ranked together, from a bounded number of comparisons.

Up to four completions are all compared with each other. Of more, each meets about 2 log₄ K others on either
side of it, on a ring with chords: K ⌈log₂ K / 2⌉ comparisons instead of K (K − 1) / 2 (16: 32 of 120; 64: 192
of 2,016). The labels are then fitted by one strength for each completion (Bradley & Terry 1952), so that what
is learned of a pair also comes from those that both have met.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlaif.digest import unit_from
from rlaif.labels import MOST_LOG_ODDS, sigmoid

__all__ = ["ALL_MEET", "Meeting", "bradley_terry", "connected", "meetings"]

ALL_MEET = 4
"""Completions up to which every two are compared."""
RIDGE = 1e-6
"""Of the strengths, in squared nats: only so that there is a fit where a side won everything."""
STEPS = 100

Floats = NDArray[np.float64]


class Meeting(NamedTuple):
    """A label on two members of a cohort, by their places: the log-odds that `a` is better (nats)."""

    a: int
    b: int
    logit: float


def meetings(count: int, *key: object) -> list[tuple[int, int]]:
    """Which of `count` completions are compared, as pairs (i, j) with i < j, sorted.

    The ring stands in an order that `key` fixes. Its chords lie at distances 1, K^(1/m), K^(2/m), … with
    m = ⌈log₂ K / 2⌉, so that any two are a few comparisons apart. All is fixed before anything is asked.
    """
    if count <= ALL_MEET:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    chords = math.ceil(math.log2(count) / 2)
    distances = {min(count // 2, max(1, round(count ** (i / chords)))) for i in range(chords)}
    ring = sorted(range(count), key=lambda place: unit_from("cohort", *key, place))
    met = {
        tuple(sorted((ring[at], ring[(at + distance) % count])))
        for at in range(count)
        for distance in distances
    }
    return sorted((i, j) for i, j in met)


def bradley_terry(met: Sequence[Meeting], count: int) -> list[float]:
    """Strengths s (nats) that make Σ p log σ(s_a − s_b) + (1 − p) log σ(s_b − s_a) largest, p = σ(logit).

    Bradley & Terry 1952 with soft outcomes; concave, by Newton's method. Strengths are centred on 0 within
    each group of completions that met, directly or by way of others: only there do they compare. One that met
    nobody has 0.

    Args:
        met: Log-odds are taken within ±`MOST_LOG_ODDS`.
        count: Members of the cohort.
    """
    strengths = np.zeros(count)
    if not met:
        return strengths.tolist()
    a, b = (np.array([each[side] for each in met]) for side in (0, 1))
    clipped = [min(max(each.logit, -MOST_LOG_ODDS), MOST_LOG_ODDS) for each in met]
    target = np.array([sigmoid(logit) for logit in clipped])
    now = _loss(strengths, a, b, target)
    for _ in range(STEPS):
        p = _sigmoid(strengths[a] - strengths[b])
        gradient, hessian = RIDGE * strengths, RIDGE * np.eye(count)
        np.add.at(gradient, a, p - target)
        np.add.at(gradient, b, target - p)
        for i, j, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
            np.add.at(hessian, (i, j), sign * p * (1 - p))
        step = np.linalg.solve(hessian, gradient)
        while (then := _loss(strengths - step, a, b, target)) > now and float(np.abs(step).max()) > 1e-12:
            step /= 2
        strengths, now = strengths - step, min(then, now)
        if float(np.abs(step).max()) < 1e-9:
            break
    for group in connected(met, count):
        strengths[group] -= strengths[group].mean()
    found: list[float] = strengths.tolist()
    return found


def connected(met: Sequence[Meeting], count: int) -> list[list[int]]:
    """The members in groups that met, directly or by way of others; one that met nobody is alone."""
    group = list(range(count))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for each in met:
        group[root(each.a)] = root(each.b)
    found: dict[int, list[int]] = {}
    for i in range(count):
        found.setdefault(root(i), []).append(i)
    return list(found.values())


def _loss(strengths: Floats, a: NDArray[np.int_], b: NDArray[np.int_], target: Floats) -> float:
    gap = strengths[a] - strengths[b]
    cross_entropy = np.logaddexp(0, gap) - target * gap
    return float(cross_entropy.sum() + RIDGE / 2 * strengths @ strengths)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)), dtype=np.float64)
