"""The figures hold the numbers that they were given, whatever the names in them are."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure
from reported import readings

from rlaif import plot
from rlaif.errors import DataError
from rlaif.results.evaluation import CompletionRows, Cost, PolicyResult, WinRate
from rlaif.results.overoptimization import OptimizationFit, OptimizationPoint
from rlaif.results.rounds import Gain, Round
from rlaif.results.study import StudyPolicy
from rlaif.stats import Estimate, ReliabilityBin

ODD = "_$x_{1$ \\alpha\n<b>\uffff\x1b"


def around(value: float, half: float = 0.1) -> Estimate:
    return Estimate(value, value - half, value + half)


def policy(name: str, *, tokens: float, rate: float | None) -> PolicyResult:
    win = None
    if rate is not None:
        win = WinRate(8, 5, 2, 1, 0, 0, {}, None, around(rate), around(rate - 0.05), 0.1)
    estimates = {
        "tokens": around(tokens),
        "kl": around(tokens / 10),
        "reward": around(1.0),
        "gold": around(2.0),
    }
    rows = CompletionRows((), (), {})
    return PolicyResult(name, "m", estimates, win, Cost(1, 1, 1.0, 1.0, 1), rows)


def svg(figure: Figure) -> str:
    out = io.StringIO()
    with plot.style():
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def xs(line: Any) -> list[float]:
    return [float(x) for x in line.get_xdata()]


def ys(line: Any) -> list[float]:
    return [float(y) for y in line.get_ydata()]


def test_training_shows_the_columns_that_there_are() -> None:
    steps = [{"step": 0, "reward": 0.5, "kl": 0.0}, {"step": 1, "reward": None, "kl": 0.2}]
    figure = plot.training({"ppo": steps, ODD: steps[:1]})
    assert [axes.get_title() for axes in figure.axes] == ["reward", "KL to the reference (nats)"]
    reward, kl = figure.axes
    assert (xs(reward.lines[0]), ys(reward.lines[0])) == ([1.0], [0.5])
    assert (xs(kl.lines[0]), ys(kl.lines[0])) == ([1.0, 2.0], [0.0, 0.2])
    assert len(reward.get_legend().get_texts()) == 2


def test_over_optimisation_is_drawn_along_the_root_of_the_kl() -> None:
    best = [OptimizationPoint(f"K = {k}", kl, around(kl), around(-kl)) for k, kl in ((1, 0.0), (2, 4.0))]
    trained = plot.policy_points([policy("ppo", tokens=90, rate=None)], "gold")
    assert [(each.name, each.distance) for each in trained] == [("ppo", 3.0)]
    fit = OptimizationFit("best_of_k", alpha=1.0, beta=0.5, furthest=2.0)
    upper, lower = plot.overoptimization(trained, best_of_k=best, gold="gold", fit=fit).axes
    assert xs(upper.lines[0]) == [0.0, 2.0]
    assert ys(lower.lines[0]) == [0.0, -4.0]
    curve = next(line for line in lower.lines if len(line.get_xdata()) > 10)
    assert ys(curve)[-1] == pytest.approx(fit.gain(2.0))


def test_readings_of_a_training_stand_at_the_root_of_their_kl_with_the_curve_and_where_it_turns() -> None:
    points = [each.point for each in readings()]
    fit = OptimizationFit("rl", alpha=0.4, beta=0.3, furthest=3.0)
    upper, lower = plot.readings(points, fits={"gold": fit}, best="step 2").axes
    assert xs(upper.lines[0]) == xs(lower.lines[0]) == [0.0, 0.5, 1.0, 2.0, 3.0]
    assert ys(upper.lines[0]) == [0.0, 0.5, 1.0, 2.0, 3.0]
    lines = {str(line.get_label()): line for line in lower.lines}
    assert ys(lines["fitted curve"])[-1] == pytest.approx(fit.gain(3.0))
    assert xs(lines["gold stops rising"]) == [fit.turning_point] * 2
    assert xs(lines["best: step 2"]) == [1.0]
    still = plot.readings(points, fits={}).axes[1]
    assert not {"fitted curve", "gold stops rising"} & {str(line.get_label()) for line in still.lines}


def test_a_win_rate_stands_at_its_length_with_and_without_the_help_of_length() -> None:
    policies = [policy("start", tokens=40, rate=None), policy("ppo", tokens=80, rate=0.6)]
    (axes,) = plot.win_rate_by_length(policies, start="start").axes
    points = {(xs(line)[0], round(ys(line)[0], 6)) for line in axes.lines if len(line.get_xdata()) == 1}
    assert points == {(80.0, 0.6), (80.0, 0.55)}


def test_the_strength_of_labels_is_counted_over_the_whole_of_its_range() -> None:
    counts = plot.strength_counts([0.5, 0.52, 0.0, 1.0, 0.76])
    assert counts == [2, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    (axes,) = plot.label_strength(counts).axes
    assert [bar.get_height() for bar in axes.patches] == counts


def test_the_principle_that_flips_most_comes_first() -> None:
    (axes,) = plot.flips_by_principle({"calm": 0.1, "kind": 0.7, "alone": None}).axes
    assert [bar.get_width() for bar in axes.patches] == [0.7, 0.1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["kind", "calm"]


def test_calibration_has_a_point_for_each_bin() -> None:
    bins = [ReliabilityBin(0.5, 0.6, 10, 0.55, 0.5), ReliabilityBin(0.9, 1.0, 40, 0.95, 0.8)]
    (axes,) = plot.reward_calibration(bins).axes
    assert axes.collections[0].get_offsets().tolist() == [[0.55, 0.5], [0.95, 0.8]]


def test_a_study_shows_every_seed_and_the_mean() -> None:
    each = StudyPolicy("ppo", (0, 1), {"gold": {0: 0.1, 1: 0.3}}, {"gold": around(0.2)}, (1, 1), None)
    (axes,) = plot.over_seeds([each, each], "gold").axes
    assert xs(axes.lines[0]) == [0.1, 0.3]
    assert xs(axes.lines[1]) == [0.2]
    names = [each.get_text() for each in axes.get_legend().get_texts()]
    assert names == ["one seed", "mean over seeds, 95 %"]


def test_rounds_show_the_gain_over_the_start_on_fixed_and_on_fresh_prompts() -> None:
    gains = [Gain("gold", "start", prompts, around(0.2)) for prompts in ("fixed", "fresh")]  # type: ignore[arg-type]
    rounds = [
        Round(1, "round-1/ppo", "gold", None, None, tuple(gains)),
        Round(2, "round-2/ppo", "gold", None, None, (gains[0]._replace(estimate=around(0.5)),)),
    ]
    (axes,) = plot.over_rounds(rounds).axes
    assert axes.get_xticks().tolist() == [1, 2]
    fixed, fresh = (line for line in axes.lines if line.get_marker() in ("o", "s"))
    assert ys(fixed) == [0.2, 0.5]
    assert ys(fresh) == [0.2]
    assert [each.get_text() for each in axes.get_legend().get_texts()] == [
        "fixed prompts, the same in all rounds",
        "fresh prompts",
    ]


def test_odd_names_are_printed_as_they_are() -> None:
    text = svg(plot.flips_by_principle({ODD: 0.5, "日本語" * 30: 0.2}))
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "$x_{1$" in text
    assert "&lt;b&gt;" in text


def test_the_same_values_give_the_same_bytes_under_any_settings() -> None:
    steps = {"ppo": [{"step": 0, "reward": 1.0}, {"step": 1, "reward": 2.0}]}
    before = svg(plot.training(steps))
    with matplotlib.rc_context({"svg.hashsalt": None, "font.size": 30, "lines.linewidth": 9}):
        assert svg(plot.training(steps)) == before
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot.overoptimization([]),
        lambda: plot.training({"ppo": []}),
        lambda: plot.readings([], fits={}),
        lambda: plot.win_rate_by_length([policy("start", tokens=4, rate=None)], start="start"),
        lambda: plot.over_seeds([], "gold"),
        lambda: plot.over_rounds([Round(1, "round-1/ppo", "gold", None, None, ())]),
        lambda: plot.label_strength([0, 0]),
        lambda: plot.flips_by_principle({"alone": None}),
        lambda: plot.reward_calibration([]),
    ],
)
def test_nothing_to_draw_is_said(draw: Callable[[], object]) -> None:
    with pytest.raises(DataError, match="no "):
        draw()
