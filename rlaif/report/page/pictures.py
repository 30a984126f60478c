"""The pictures of a page: each a figure of `rlaif.plot`, a sentence on how to read it, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif import plot
from rlaif.report.page.model import Picture
from rlaif.report.shown import Table
from rlaif.results.comparison import interval
from rlaif.results.evaluation import Evaluation, PolicyResult
from rlaif.results.monitor import MonitorReading
from rlaif.results.overoptimization import OptimizationFit, OptimizationPoint
from rlaif.stats import ReliabilityBin
from rlaif.text import one_line

__all__ = [
    "calibration",
    "count_strength",
    "flips",
    "monitor",
    "no_strengths",
    "overoptimization",
    "strength",
    "training",
    "win_rate",
]

NONE = "–"
BINS = 10
MOST_STEPS = 60
"""Rows of the table of steps; of more it has every second, third, …"""


def overoptimization(found: Evaluation, comparison: Mapping[str, Any]) -> Picture | None:
    """Proxy and gold along √KL; `None` where either was not measured."""
    gold = found.gold
    policies = plot.policy_points(found.policies, gold) if gold else []
    best = [OptimizationPoint.from_dict(each) for each in comparison.get("best_of_k") or ()]
    if not gold or not (best or len(policies) > 1):
        return None
    fitted = comparison.get("best_of_k_fit")
    fit = OptimizationFit(**fitted) if fitted else None
    rows = [
        (one_line(each.name), f"{each.distance:.3g}", interval(each.proxy), interval(each.gold))
        for each in (*policies, *best)
    ]
    about = (
        "How far optimising the reward carried gold, the measure that no training signal touched: above the "
        "reward, below gold, against the distance from the start policy. Where the reward rises and gold "
        "falls, "
        "the policy is over-optimised. Bars are 95 % intervals"
        + ("; dashed: the curve of Gao et al. (2022) through the best of K." if fit and best else ".")
    )
    return Picture(
        title="Proxy and gold against √KL",
        about=about,
        draw=lambda: plot.overoptimization(policies, best_of_k=best, gold=gold, fit=fit),
        numbers=(Table("", ("policy", "√KL", "reward (proxy)", f"{one_line(gold)} (gold)"), rows),),
    )


def training(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture | None:
    """Reward, KL, entropy and length over steps; `None` without steps."""
    columns = plot.training_columns(histories)
    if not columns:
        return None
    return Picture(
        title="Training, step by step",
        about="What every rollout was like: its mean reward, how far the policy had moved, how varied its "
        "words "
        "were, and how long its completions. A reward that rises with a length or a KL that runs away "
        "deserves a "
        "look at the samples.",
        draw=lambda: plot.training(histories),
        numbers=tuple(_steps(name, steps, columns) for name, steps in histories.items()),
    )


def _steps(name: str, steps: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    shown = steps[:: max(1, -(-len(steps) // MOST_STEPS))]
    rows = [(str(step["step"] + 1), *(_figure(step.get(column)) for column in columns)) for step in shown]
    return Table(one_line(name), ("step", *columns), rows)


def monitor(stage: str, readings: Sequence[MonitorReading], statistics: Mapping[str, Any]) -> Picture | None:
    """What the monitor of a training read, along √KL; `None` without readings.

    Args:
        statistics: The `monitor` of the stage's `statistics.json`.
    """
    if not readings:
        return None
    points = [each.point for each in readings]
    fits = {
        name: OptimizationFit("rl", *(float(fit[key]) for key in ("alpha", "beta", "furthest", "nearest")))
        for name, fit in statistics["fits"].items()
        if fit is not None
    }
    best = f"step {statistics['best_step']}"
    said = "; ".join(one_line(each) for each in statistics["words"])
    about = (
        "One policy on held-out prompts that it never trains on, from reading to reading: above the reward, "
        "below gold, against the distance from the reference. Bars are 95 % intervals over the prompts"
        + (
            "; dashed: the curve of Gao et al. (2022) through the gains over the first reading"
            if fits
            else ""
        )
        + f". The readings say: {said}."
    )
    header = ("step", "√KL", "reward (proxy)", "gold", "length (tokens)", "distinct-2", "refusals")
    return Picture(
        title=f"Monitor of {one_line(stage)}: proxy and gold against √KL",
        about=about,
        draw=lambda: plot.readings(points, fits=fits, best=best),
        numbers=(Table("", header, [_reading(each) for each in readings]),),
    )


def _reading(found: MonitorReading) -> tuple[str, ...]:
    measured = (found.length, found.distinct_2, found.refusal)
    return (
        str(found.step),
        f"{found.point.distance:.3g}",
        interval(found.proxy),
        interval(found.gold),
        *(f"{each:.3g}" for each in measured),
    )


def calibration(stage: str, report: Mapping[str, Any]) -> Picture | None:
    """Confidence and agreement of a reward model on held-out pairs; `None` where they were not measured."""
    bins = [
        ReliabilityBin(**{name: each[name] for name in ReliabilityBin._fields})
        for each in report["reliability"]
    ]
    if not bins:
        return None
    rows = [
        (f"{each.low:.2f}–{each.high:.2f}", str(each.rows), f"{each.confidence:.3f}", f"{each.accuracy:.3f}")
        for each in bins
    ]
    return Picture(
        title=f"Calibration of the reward model {one_line(stage)}",
        about="On held-out pairs: how often the judge's labels agree with the reward model, against how "
        "sure the "
        "reward model is. Below the dashed line it is surer than it should be. Larger points are of more "
        "pairs.",
        draw=lambda: plot.reward_calibration(bins),
        numbers=(Table("", ("confidence", "pairs", "mean confidence", "agreement"), rows),),
    )


def win_rate(found: Evaluation) -> Picture | None:
    """Win rates against length; `None` without a win rate."""
    shown = [each for each in found.policies if each.win and each.win.rate and "tokens" in each.estimates]
    if not shown:
        return None
    return Picture(
        title="Win rate against length",
        about=f"How often the judge prefers each policy to {one_line(found.start)}, against the mean "
        f"length of its "
        "completions; hollow: as if all answers were of one length. Where the two differ, the judge "
        "rewards length.",
        draw=lambda: plot.win_rate_by_length(found.policies, start=found.start),
        numbers=(
            Table(
                "",
                ("policy", "length (tokens)", "win rate", "at equal length"),
                [_win(each) for each in shown],
            ),
        ),
    )


def _win(policy: PolicyResult) -> tuple[str, ...]:
    rate = policy.win.rate if policy.win else None
    equal = policy.win.length_controlled if policy.win else None
    return (
        one_line(policy.name),
        interval(policy.estimates["tokens"]),
        interval(rate) if rate else NONE,
        interval(equal) if equal else NONE,
    )


def no_strengths() -> list[int]:
    """Counts for `count_strength`, all zero."""
    return plot.strength_counts((), BINS)


def count_strength(counts: list[int], p: float) -> None:
    """Count a label in place."""
    for place, count in enumerate(plot.strength_counts((p,), len(counts))):
        counts[place] += count


def strength(stage: str, counts: Sequence[int]) -> Picture | None:
    """The strengths of labels; `None` without labels."""
    if not sum(counts):
        return None
    width = 0.5 / len(counts)
    rows = [
        (f"{width * place:.2f}–{width * (place + 1):.2f}", f"{count:,}") for place, count in enumerate(counts)
    ]
    return Picture(
        title=f"Strength of the labels of {one_line(stage)}",
        about="How far from one half the labels' probabilities are: at 0 the judge is undecided, at ½ "
        "certain. Labels "
        "that crowd at 0 teach little; all at ½, the judge's doubts are lost.",
        draw=lambda: plot.label_strength(counts),
        numbers=(Table("", ("|p − ½|", "pairs"), rows),),
    )


def flips(stage: str, statistics: Mapping[str, Any]) -> Picture | None:
    """Flips by principle; `None` where no principle was asked in both orders."""
    rates = {name: each["flip_rate"] for name, each in statistics["principles"].items()}
    known = sorted((name for name, rate in rates.items() if rate is not None), key=lambda name: -rates[name])
    if not known:
        return None
    rows = [
        (one_line(name), f"{rates[name]:.1%}", f"{statistics['principles'][name]['judged']:,}")
        for name in known
    ]
    return Picture(
        title=f"Flips by principle in {one_line(stage)}",
        about="Of each principle, the share of questions whose two orders name different winners: there "
        "the judge "
        "answered by position, not by text.",
        draw=lambda: plot.flips_by_principle(rates),
        numbers=(Table("", ("principle", "flips", "comparisons judged"), rows),),
    )


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else NONE
