"""Pictures of policies: what optimising the proxy did to gold, how training went, whether length explains a
win rate, and what holds over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from rlaif.errors import DataError
from rlaif.plot.style import INK, SERIES, errors, legend, name, new_figure, style, whiskers
from rlaif.results.evaluation import REWARD, PolicyResult
from rlaif.results.overoptimization import OptimizationFit, OptimizationPoint
from rlaif.results.rounds import Prompts, Round
from rlaif.results.study import StudyCurve, StudyPolicy
from rlaif.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "over_rounds",
    "over_seeds",
    "overoptimization_over_seeds",
    "overoptimization",
    "policy_points",
    "readings",
    "training",
    "training_columns",
    "win_rate_by_length",
]

PANELS: Mapping[str, str] = {
    "reward": "reward",
    "kl": "KL to the reference (nats)",
    "entropy": "entropy (nats a token)",
    "length": "length (tokens)",
}
"""Columns of `metrics.jsonl` that `training` shows."""
PROMPTS: Mapping[Prompts, str] = {"fixed": "fixed prompts, the same in all rounds", "fresh": "fresh prompts"}
SHIFT = 0.04
"""How far the points of fixed and fresh prompts stand from their round, so that both bars are seen."""
CURVE = 60
"""Points that a fitted curve is drawn with."""


def policy_points(policies: Sequence[PolicyResult], gold: str) -> list[OptimizationPoint]:
    """Policies with a KL, a reward and `gold`, as points of `overoptimization`."""
    return [
        OptimizationPoint(
            each.name, each.estimates["kl"].value, proxy=each.estimates[REWARD], gold=each.estimates[gold]
        )
        for each in policies
        if {"kl", REWARD, gold} <= set(each.estimates)
    ]


def overoptimization(
    policies: Sequence[OptimizationPoint],
    *,
    best_of_k: Sequence[OptimizationPoint] = (),
    gold: str = "gold",
    fit: OptimizationFit | None = None,
) -> Figure:
    """Proxy and gold against √KL, one above the other (Gao et al. 2022, figure 1).

    Args:
        policies: The trained ones and the start policy, as `policy_points` gives them.
        best_of_k: The best of K samples of the start policy.
        fit: The curve through the best of K; drawn through their gold.

    Raises:
        DataError: There is no point.
    """
    if not policies and not best_of_k:
        raise DataError("there is no policy with a KL, a reward and a gold measure to draw")
    with style():
        figure = new_figure(6.4, 5.2)
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, estimates in ((upper, "proxy"), (lower, "gold")):
            _along_distance(axes, best_of_k, estimates, color=SERIES[0], label="best of K, untrained")
            for point, color in zip(policies, cycle(SERIES[1:]), strict=False):
                value = getattr(point, estimates)
                axes.errorbar(
                    [point.distance],
                    [value.value],
                    yerr=[[each] for each in whiskers(value)],
                    fmt="o",
                    color=color,
                    label=name(point.name),
                )
        if fit is not None and best_of_k:
            _curve(lower, fit, best_of_k[0].gold.value)
        upper.set_ylabel("reward (proxy)")
        lower.set_ylabel(name(f"{gold} (gold)"))
        lower.set_xlabel("√KL to the start policy (√nats)")
        legend(upper)
    return figure


def _along_distance(
    axes: Axes, points: Sequence[OptimizationPoint], estimates: str, *, color: str, label: str
) -> None:
    if not points:
        return
    values = [getattr(point, estimates) for point in points]
    axes.errorbar(
        [point.distance for point in points],
        [value.value for value in values],
        yerr=errors(values),
        fmt=".-",
        color=color,
        elinewidth=0.8,
        label=label,
    )


def _curve(
    axes: Axes,
    fit: OptimizationFit,
    start: float,
    *,
    label: str | None = None,
    color: str = INK,
    nearest: float = 0.0,
) -> None:
    """The fitted gains over `start`, from √KL = `nearest` to the furthest that was measured."""
    distances = [nearest + (fit.furthest - nearest) * step / CURVE for step in range(CURVE + 1)]
    gains = [start + fit.gain(d) for d in distances]
    axes.plot(distances, gains, "--", color=color, linewidth=1, label=label)


def readings(
    points: Sequence[OptimizationPoint], *, fits: Mapping[str, OptimizationFit], best: str = ""
) -> Figure:
    """Proxy and gold of one policy along its training, against √KL (Gao et al. 2022, figure 1).

    Args:
        points: In the order in which they were read.
        fits: The curves through the gains over the first point, of `proxy` and `gold`; where$
            gold turns within what was read, a dotted line says so.
        best: Name of the point of the best gold.

    Raises:
        DataError: There is no point.
    """
    if not points:
        raise DataError("there is no reading of a training to draw")
    with style():
        figure = new_figure(6.4, 5.2)
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, measure, color in ((upper, "proxy", SERIES[0]), (lower, "gold", SERIES[1])):
            _along_distance(axes, points, measure, color=color, label="readings, in order")
            fit = fits.get(measure)
            if fit is not None:
                _curve(axes, fit, getattr(points[0], measure).value, label="fitted curve")
            if fit is not None and fit.seen and measure == "gold":
                axes.axvline(fit.turning_point, color=INK, linestyle=":", label="gold stops rising")
        for point in points:
            if point.name == best:
                lower.plot([point.distance], [point.gold.value], "D", color=SERIES[2], label=f"best: {best}")
        upper.set_ylabel("reward (proxy)")
        lower.set_ylabel("gold")
        lower.set_xlabel("√KL to the reference (√nats)")
        legend(lower)
    return figure


def training_columns(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Those of reward, KL, entropy and length that any step has."""
    return [
        column
        for column in PANELS
        if any(step.get(column) is not None for steps in histories.values() for step in steps)
    ]


def training(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Reward, KL, entropy and length over the steps of PPO or GRPO.

    Args:
        histories: By stage, the rows of its `metrics.jsonl`; columns that none has are left out.

    Raises:
        DataError: There is no step.
    """
    columns = training_columns(histories)
    if not columns:
        raise DataError("there is no step of training to draw")
    with style():
        figure = new_figure(6.4, 2.4 * -(-len(columns) // 2))
        grid = figure.subplots(-(-len(columns) // 2), 2, squeeze=False)
        panels = list(grid.flat)
        for axes, column in zip(panels, columns, strict=False):
            for number, (stage, steps) in enumerate(histories.items()):
                known = [step for step in steps if step.get(column) is not None]
                axes.plot(
                    [step["step"] + 1 for step in known],
                    [step[column] for step in known],
                    ".-",
                    color=SERIES[number % len(SERIES)],
                    label=name(stage),
                )
            axes.set_title(PANELS[column])
            axes.set_xlabel("step")
            axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in panels[len(columns) :]:
            axes.remove()
        legend(panels[0])
    return figure


def win_rate_by_length(policies: Sequence[PolicyResult], *, start: str) -> Figure:
    """The judge's win rate over the start policy against mean length; hollow: as if all answers were of one
    length.

    Args:
        policies: With `tokens` among their measures; those without a win rate are left out.
        start: Name of the policy that the others were judged against; its length is the dashed line.

    Raises:
        DataError: No policy has a win rate and a length.
    """
    shown = [each for each in policies if each.win and each.win.rate and "tokens" in each.estimates]
    if not shown:
        raise DataError("no policy has a win rate and a length to draw")
    with style():
        figure = new_figure(6.4, 3.4)
        axes = figure.subplots()
        axes.axhline(0.5, color=INK, linewidth=0.8)
        for policy, color in zip(shown, cycle(SERIES), strict=False):
            win, length = policy.win, policy.estimates["tokens"].value
            for rate, filled in ((win.rate, True), (win.length_controlled, False)) if win else ():
                if rate is not None:
                    axes.errorbar(
                        [length],
                        [rate.value],
                        yerr=[[each] for each in whiskers(rate)],
                        fmt="o",
                        color=color,
                        markerfacecolor=color if filled else "none",
                        elinewidth=1.2 if filled else 0.6,
                        label=name(policy.name + ("" if filled else ", at equal length")),
                    )
        for policy in policies:
            if policy.name == start and "tokens" in policy.estimates:
                axes.axvline(
                    policy.estimates["tokens"].value,
                    color=INK,
                    linewidth=0.8,
                    linestyle="--",
                    label=name(start),
                )
        axes.margins(x=0.2)
        axes.set_ylim(0, 1)
        axes.set_xlabel("mean length (tokens)")
        axes.set_ylabel("judge's win rate")
        legend(axes)
    return figure


def over_seeds(policies: Sequence[StudyPolicy], measure: str) -> Figure:
    """A measure of every policy of a study: its mean with the two-level interval, and each seed.

    Raises:
        DataError: No policy has the measure.
    """
    shown = [each for each in policies if measure in each.estimates]
    if not shown:
        raise DataError(f"no policy has the measure {measure!r}")
    with style():
        figure = new_figure(6.4, 1.2 + 0.45 * len(shown))
        axes = figure.subplots()
        for row, policy in enumerate(shown):
            seeds = list(policy.by_seed.get(measure, {}).values())
            label = "" if row else "one seed"
            axes.plot(seeds, [row] * len(seeds), "|", color=SERIES[0], markersize=9, label=label)
            estimate = policy.estimates[measure]
            axes.errorbar(
                [estimate.value],
                [row],
                xerr=[[each] for each in whiskers(estimate)],
                fmt="o",
                color=SERIES[1],
                label="" if row else "mean over seeds, 95 %",
            )
        axes.set_yticks(range(len(shown)), [name(each.name) for each in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel(name(measure))
        legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def overoptimization_over_seeds(curves: Sequence[StudyCurve], *, gold: str = "gold") -> Figure:
    """What proxy and gold gained along √KL, the mean over the seeds of a study (Gao et al. 2022, figure 1).

    Args:
        curves: Of monitored trainings and of the best of K, as `Study.curves` has them.

    Raises:
        DataError: There is no curve.
    """
    if not curves:
        raise DataError("no training of this study was monitored, and it has no best of K to draw")
    with style():
        figure = new_figure(6.4, 5.2)
        upper, lower = figure.subplots(2, 1, sharex=True)
        for curve, color in zip(curves, cycle(SERIES), strict=False):
            for axes, measure in ((upper, "proxy"), (lower, "gold")):
                _along_distance(axes, curve.points, measure, color=color, label=name(curve.name))
            if (fit := curve.fit) is not None:
                _curve(lower, fit, 0.0, color=color, nearest=fit.nearest)
                if fit.seen:
                    lower.axvline(fit.turning_point, color=color, linestyle=":", linewidth=1)
        upper.set_ylabel("gain in reward (proxy)")
        lower.set_ylabel(name(f"gain in {gold} (gold)"))
        lower.set_xlabel("√KL to the reference (√nats)")
        legend(upper)
    return figure


def over_rounds(rounds: Sequence[Round]) -> Figure:
    """The gain in gold over the start policy, round by round, on the prompts that all rounds share and on
    each round's own.

    Raises:
        DataError: No round has a gain over the start policy.
    """
    gains = {
        prompts: [(each.number, gain) for each in rounds if (gain := _gain_over_start(each, prompts))]
        for prompts in PROMPTS
    }
    if not any(gains.values()):
        raise DataError("no round has a gain over the start policy to draw")
    with style():
        figure = new_figure(6.4, 3.2)
        axes = figure.subplots()
        axes.axhline(0, color=INK, linewidth=0.8)
        for (prompts, found), color, shift in zip(gains.items(), SERIES, (-SHIFT, SHIFT), strict=False):
            if found:
                axes.errorbar(
                    [number + shift for number, _ in found],
                    [gain.value for _, gain in found],
                    yerr=errors([gain for _, gain in found]),
                    fmt="o-" if prompts == "fixed" else "s--",
                    color=color,
                    label=PROMPTS[prompts],
                )
        axes.set_xticks([each.number for each in rounds])
        axes.set_xlabel("round")
        axes.set_ylabel(name(f"{rounds[0].measure}, over the start"))
        legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def _gain_over_start(found: Round, prompts: Prompts) -> Estimate | None:
    return found.gain(found.measure, "start", prompts)
