"""What optimising the proxy did to gold, over the seeds of a study: readings of monitored trainings, and the
best of K of the start policy, each as the mean of what the seeds gained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlaif.results.evaluation import REWARD, CompletionRows
from rlaif.results.monitor import MonitorReading
from rlaif.results.overoptimization import Method, OptimizationPoint
from rlaif.results.study import StudyCurve
from rlaif.stages.overoptimization import best_of_k_curve
from rlaif.stats import student_mean

__all__ = ["best_of_k_over_seeds", "monitored_over_seeds"]

Points = Sequence[OptimizationPoint]


def monitored_over_seeds(name: str, readings: Mapping[int, Sequence[MonitorReading]]) -> StudyCurve | None:
    """The gains in proxy and gold over the first reading, by seed; a reading that some seed lacks, having
    stopped early, is left out."""
    return _mean_curve(name, "rl", {seed: [each.point for each in found] for seed, found in readings.items()})


def best_of_k_over_seeds(rows: Mapping[int, CompletionRows], gold: str) -> StudyCurve | None:
    """The gains of the best of K samples of the start policy over one sample, by seed."""
    found = {seed: best_of_k_curve(each, proxy=REWARD, gold=gold) for seed, each in rows.items()}
    return _mean_curve("best of K, untrained", "best_of_k", found)


def _mean_curve(name: str, method: Method, by_seed: Mapping[int, Points]) -> StudyCurve | None:
    """`None` for fewer than two seeds with points, or fewer than two points that all of these have."""
    of = {seed: {each.name: each for each in points} for seed, points in sorted(by_seed.items()) if points}
    if len(of) < 2:
        return None
    first = next(iter(of.values()))
    origin = next(iter(first))
    shared = [each for each in first if all(each in points for points in of.values())]
    if len(shared) < 2 or shared[0] != origin:
        return None
    points = [_mean_point([(found[origin], found[each]) for found in of.values()]) for each in shared]
    return StudyCurve(name=name, method=method, seeds=tuple(of), points=tuple(points))


def _mean_point(pairs: Sequence[tuple[OptimizationPoint, OptimizationPoint]]) -> OptimizationPoint:
    """The mean gain over the origin; of each seed its origin and its point."""
    return OptimizationPoint(
        pairs[0][1].name,
        math.fsum(point.kl for _, point in pairs) / len(pairs),
        proxy=student_mean([point.proxy.value - origin.proxy.value for origin, point in pairs]),
        gold=student_mean([point.gold.value - origin.gold.value for origin, point in pairs]),
    )
