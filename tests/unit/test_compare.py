"""Comparing evaluations: differences by hand, the words, equal budgets, and what does not fit together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from pydantic import ValidationError

from rlaif.config.evaluation import CompareConfig, EvaluateConfig
from rlaif.errors import DataError
from rlaif.report.comparison import (
    comparison_markdown,
    comparison_tables,
    evaluation_markdown,
    evaluation_table,
    main_rows,
)
from rlaif.results.comparison import AtBudget, Optimisation, PolicyDifference, Reading
from rlaif.results.costs import CurvePoint, TrainingCost, curve_of
from rlaif.results.evaluation import CompletionRows, Cost, Evaluation, PolicyResult, WinRate, estimates
from rlaif.results.monitor import MonitoredTraining, MonitorReading, MonitorReport
from rlaif.stages.compare import compare
from rlaif.stats import Estimate

SHOWS = "reward-model score of training prompts"
PROMPTS = ("p0", "p0", "p1", "p1", "p2", "p2", "p3", "p3")
COST = Cost(tokens=100, prompt_tokens=40, flops=2.5e9, seconds=1.5, peak_bytes=2_000_000_000)


def policy(
    name: str, *, text: str = "", win: WinRate | None = None, **measures: Sequence[float | None]
) -> PolicyResult:
    rows = CompletionRows(
        prompts=PROMPTS,
        texts=tuple(f"{text or name} {i}" for i in range(8)),
        measures={measure: tuple(values) for measure, values in measures.items()},
    )
    return PolicyResult(
        name=name,
        model="tiny",
        estimates=estimates(rows, resamples=200, seed=0),
        win=win,
        cost=COST,
        rows=rows,
    )


def evaluation(*policies: PolicyResult, gold: str | None = "gold") -> Evaluation:
    return Evaluation(
        start="start",
        gold=gold,
        prompts=4,
        samples=2,
        max_new_tokens=8,
        temperature=1.0,
        seed=0,
        policies=policies,
        notes=(),
    )


# The start policy's prompts differ much; `up` is 0.2 to 0.4 above it on each of them, `same` now above, now
# below.
START = policy("start", gold=(0, 0, 1, 1, 2, 2, 3, 3), reward=[0.0] * 8)
UP = policy("up", gold=(0.2, 0.2, 1.4, 1.4, 2.2, 2.2, 3.4, 3.4), reward=(1, 1, 2, 2, 1, 1, 2, 2))
SAME = policy("same", gold=(0.1, 0.1, 0.9, 0.9, 2.1, 2.1, 2.9, 2.9), reward=[1.0] * 8)
DOWN = policy("down", gold=(-1, -1, 0, 0, 0, 0, 2, 2), reward=(1, 1, 2, 2, 1, 1, 2, 2))


def difference(
    found_differences: Sequence[PolicyDifference], policy: str, against: str, measure: str = "gold"
) -> PolicyDifference:
    return next(
        x for x in found_differences if (x.policy, x.against, x.measure) == (policy, against, measure)
    )


def test_differences_are_paired_by_prompt() -> None:
    found = compare([evaluation(START, UP, SAME)], resamples=500)
    up, same = (difference(found.differences, name, "start") for name in ("up", "same"))
    assert up.estimate.value == pytest.approx(0.3)  # (0.2 + 0.4 + 0.2 + 0.4) / 4
    assert 0.2 <= up.estimate.low < up.estimate.high <= 0.4 + 1e-9, (
        "unpaired, prompts from 0 to 3 would swamp this"
    )
    assert same.estimate.value == pytest.approx(0.0, abs=1e-12)
    assert same.estimate.low < 0 < same.estimate.high
    assert difference(found.differences, "up", "same").estimate.value == pytest.approx(0.3)
    assert len(found.differences) == 6, "three pairs, two measures"


def test_the_verdict_says_who_won_and_whether_the_interval_excludes_zero() -> None:
    found = compare([evaluation(START, UP, SAME)], resamples=500)
    assert found.winner == "up"
    assert (
        found.verdict[0] == "Winner on gold: `up`, ahead of every other policy, each interval excluding zero."
    )
    assert found.verdict[1].startswith(
        "`up` is ahead of `start` on gold by 0.3 [0.2, 0.4]: the interval excludes zero."
    )
    assert found.verdict[2].startswith("`same` and `start` cannot be told apart on gold: ")
    assert "the interval includes zero" in found.verdict[2]
    none = compare([evaluation(START, SAME)], resamples=200)
    assert none.winner is None
    assert none.verdict[0].startswith("No single winner on gold")


def test_a_policy_that_fell_behind_is_told_from_the_other_side() -> None:
    found = compare([evaluation(START, DOWN)], resamples=200)
    words = difference(found.differences, "down", "start").words
    assert found.winner == "start"
    assert words.startswith("`start` is ahead of `down` on gold by 1.25 [1, ")  # mean of 1, 1, 2, 1


@pytest.mark.parametrize(
    ("proxy", "gold", "finding", "words"),
    [
        (
            (1, 0.5, 1.5),
            (-0.3, -0.5, -0.1),
            "over-optimised",
            "the proxy went up and gold went down, and both intervals exclude zero",
        ),
        ((1, 0.5, 1.5), (-0.1, -0.5, 0.3), "sign of over-optimisation", "gold's interval includes zero"),
        ((1, 0.5, 1.5), (0.1, -0.5, 0.3), "not shown to carry over", "gold is not shown to have moved"),
        ((1, 0.5, 1.5), (0.1, 0.05, 0.3), "carried over", "gained on the proxy and on gold"),
        ((1, -0.5, 1.5), (0.1, 0.05, 0.3), "no gain", "not shown to have gained on the proxy"),
    ],
)
def test_proxy_and_gold_beside_each_other(
    proxy: tuple[float, float, float], gold: tuple[float, float, float], finding: str, words: str
) -> None:
    found = Optimisation(
        policy="ppo", proxy_name="reward", gold_name="vader", proxy=Estimate(*proxy), gold=Estimate(*gold)
    )
    assert found.finding == finding
    assert words in found.words
    assert f"reward {proxy[0]:+.3g}" in found.words


def test_over_optimisation_is_found_in_the_rows() -> None:
    found = compare([evaluation(START, DOWN, UP)], resamples=200)
    assert {each.policy: each.finding for each in found.optimisations} == {
        "down": "over-optimised",
        "up": "carried over",
    }
    assert any("`down` is over-optimised" in line for line in found.verdict)


def win_rate(rate: tuple[float, float, float], controlled: tuple[float, float, float]) -> WinRate:
    return WinRate(
        compared=8,
        wins=5,
        losses=1,
        ties=1,
        identical=1,
        invalid=1,
        invalid_reasons={"lost": 1},
        flip_rate=0.25,
        rate=Estimate(*rate),
        length_controlled=Estimate(*controlled),
        length_effect=1.0,
    )


def test_the_judge_decides_where_there_is_no_gold_and_invalid_verdicts_are_left_out() -> None:
    start = policy("start")
    start = replace(
        start,
        rows=replace(start.rows, measures={"win": (0.5,) * 8}),
        estimates={"win": Estimate(0.5, 0.5, 0.5)},
    )
    values = (1, 1, 1, None, 1, 0.5, None, None)
    ours = replace(
        policy("ppo"),
        win=win_rate((0.79, 0.6, 0.9), (0.55, 0.45, 0.7)),
        estimates={"win": Estimate(0.9, 0.7, 1)},
        rows=CompletionRows(prompts=PROMPTS, texts=("x",) * 8, measures={"win": values}),
    )
    found = compare([evaluation(start, ours, gold=None)], resamples=200)
    only = difference(found.differences, "ppo", "start", "win")
    assert found.headline == "win"
    assert only.prompts == 3, "no verdict on p3 was valid"
    assert only.estimate.value == pytest.approx(4.5 / 5 - 0.5)
    assert (
        found.verdict[0]
        == "Winner on the judge's win rate: `ppo`, ahead of every other policy, each interval excluding zero."
    )
    counted = (
        "in 79 % [60, 90] of pairs (the interval excludes one half; 5 wins, 1 losses, 1 ties, 1 invalid)"
    )
    assert any(counted in line for line in found.verdict)
    assert (
        "Length may explain that win rate of `ppo`: controlled for it, the interval includes one half."
        in found.verdict
    )
    assert found.optimisations == ()


# Equal budgets


def cost(tokens: int, *points: tuple[float, float, float], basis: str = "b") -> TrainingCost:
    curve = tuple(CurvePoint(*x) for x in points)
    return TrainingCost(
        tokens=tokens, seconds=60, flops=1e12, peak_bytes=3_000_000_000, curve=curve, shows=SHOWS, basis=basis
    )


def test_curves_are_compared_where_the_shortest_ends() -> None:
    costs = {
        "up": cost(400, (0, 0, 0.0), (200, 20, 0.4), (400, 60, 0.8)),
        "same": cost(300, (100, 10, 0.2), (300, 40, 0.3)),
    }
    found = compare([evaluation(START, UP, SAME)], costs, resamples=200)
    tokens, seconds = found.at_budgets
    assert (tokens.budget, tokens.amount) == ("tokens", 300)
    assert tokens.readings["up"] == (pytest.approx(0.6), (200, 400))  # half way from 0.4 to 0.8
    assert tokens.readings["same"] == (0.3, (300, 300))
    assert (seconds.budget, seconds.amount) == ("seconds", 40)
    assert seconds.readings["up"] == (pytest.approx(0.6), (20, 60))  # half way from 20 s to 60 s
    assert found.endpoints == ""
    assert tokens.words == (
        "At 300 generated tokens of training, by the reward-model score of training prompts: `up` 0.6 (on "
        "the line between its points "
        "at 200 and 400), `same` 0.3; `up` is ahead. This is the reward in training, not the held-out "
        "measure, and each is a single "
        "figure of a curve, without an interval."
    )
    assert {tokens.words, seconds.words} <= set(found.verdict)
    assert any(
        x.startswith("`up` generated 1.3 times as many tokens in training as `same` (400 against 300)")
        for x in found.verdict
    )


def test_a_curve_that_begins_later_has_no_figure_there() -> None:
    costs = {"up": cost(10, (0, 0, 0.1), (10, 1, 0.2)), "same": cost(90, (50, 5, 0.3), (90, 9, 0.3))}
    tokens, _ = compare([evaluation(START, UP, SAME)], costs, resamples=200).at_budgets
    assert tokens.readings == {"up": (0.2, (10, 10)), "same": None}
    assert "`same` has no point so early; none is ahead" in tokens.words


def test_a_tie_at_a_budget_names_nobody() -> None:
    same = Reading(value=1.0, between=(5, 5))
    assert (
        "`a` 1, `b` 1; none is ahead."
        in AtBudget(budget="tokens", amount=5, shows=SHOWS, readings={"a": same, "b": same}).words
    )


def test_points_that_lie_close_need_no_word() -> None:
    near = Reading(value=1.0, between=(96, 105))
    assert "`a` 1;" in AtBudget(budget="tokens", amount=100, shows=SHOWS, readings={"a": near}).words


def test_curves_of_different_rewards_are_not_compared() -> None:
    curve, other = (
        cost(10, (0, 0, 0.1), (10, 1, 0.2)),
        cost(10, (0, 0, 0.1), (10, 1, 0.2), basis="another reward"),
    )
    found = compare([evaluation(START, UP, SAME)], {"up": curve, "same": other}, resamples=200)
    assert found.at_budgets == ()
    assert (
        "the training curve of `up`, `same` shows a reward, or samples, that no other curve does."
        in found.endpoints
    )
    found = compare(
        [evaluation(START, UP, SAME, DOWN)], {"up": curve, "same": curve, "down": other}, resamples=200
    )
    assert list(found.at_budgets[0].readings) == ["up", "same"]
    assert found.endpoints.startswith(
        "Only the endpoint of `down` is compared: the training curve of `down` shows a reward"
    )


def test_a_training_cost_survives_json() -> None:
    found = cost(10, (0, 0, 0.1), (10, 1, 0.2))
    assert TrainingCost.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    assert TrainingCost.from_dict({"tokens": 10, "seconds": 1.5}).curve == ()
    with pytest.raises(DataError, match=r"ppo/cost\.json: this is not a training cost: .*seconds"):
        TrainingCost.from_dict({"tokens": 10}, where="ppo/cost.json")


def test_one_point_is_no_curve() -> None:
    assert curve_of([CurvePoint(0, 0, 0.1)]) == ()
    assert len(curve_of([CurvePoint(0, 0, 0.1), CurvePoint(5, 1, 0.1)])) == 2


def test_only_endpoints_are_compared_where_curves_are_missing() -> None:
    both, curve = [evaluation(START, UP, SAME)], cost(10, (0, 0, 0.1), (10, 1, 0.2))
    words = (
        "Only the endpoints of training are compared, not equal budgets: there is no training curve of "
        "`up`, `same`."
    )
    assert words in compare(both, resamples=200).verdict
    assert "there is no training curve of `same`" in compare(both, {"up": curve}, resamples=200).endpoints
    assert (
        "no budget was asked for"
        in compare(both, {"up": curve, "same": curve}, budgets=(), resamples=200).endpoints
    )
    assert "a single trained policy" in compare([evaluation(START, UP)], resamples=200).endpoints
    three = [evaluation(START, UP, SAME, DOWN)]
    assert compare(three, {"up": curve, "same": curve}, resamples=200).endpoints.startswith(
        "Only the endpoint of `down`"
    )


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(0, 0, 0), (5, 1, math.nan)], "policy up: the training curve has a point that is not a number"),
        ([(5, 0, 0), (4, 1, 0)], "policy up: the training curve goes back"),
    ],
)
def test_a_curve_that_cannot_be_right_is_refused(
    points: list[tuple[float, float, float]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        compare([evaluation(START, UP)], {"up": cost(5, *points)})


# What fits together


def test_several_evaluations_are_joined() -> None:
    found = compare([evaluation(START, UP), evaluation(START, SAME)], resamples=200)
    assert [each.name for each in found.policies] == ["start", "up", "same"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (evaluation(policy("start", text="else", gold=[0.0] * 8)), "other completions of the policy 'start'"),
        (replace(evaluation(START), seed=1), "differ in `seed`: 0 and 1"),
        (replace(evaluation(START), gold="vader"), "differ in `gold`"),
        (
            evaluation(replace(START, rows=replace(START.rows, prompts=("q9", *PROMPTS[1:])))),
            "different prompts: 1 are in one only, the first q9",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(other: Evaluation, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare([evaluation(START, UP), other])


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(DataError, match="no evaluation"):
        compare([])
    with pytest.raises(DataError, match="one policy only"):
        compare([evaluation(START)])
    with pytest.raises(DataError, match="no measure to decide by"):
        compare([evaluation(policy("start", words=[1.0] * 8), policy("up", words=[1.0] * 8), gold=None)])
    with pytest.raises(DataError, match=r"training cost of 'dpo', which was not evaluated\n.*start, up"):
        compare([evaluation(START, UP)], {"dpo": cost(1)})


def test_many_differences_and_few_prompts_bring_reminders() -> None:
    many = [policy(f"x{i}", gold=(0, 0, 1, 1, 2, 2, 3, i)) for i in range(4)]
    notes = compare([evaluation(START, *many)], resamples=100).notes
    assert notes[0].startswith("Each is a 95 % interval by itself")
    assert notes[1].startswith("Intervals over 4 prompts are rough")


def test_rounding_is_no_difference() -> None:
    """0.1 + 0.2 is not 0.3 in floating point, in every draw of prompts alike."""
    ours, base = policy("up", gold=[0.1, 0.2] * 4), policy("start", gold=[0.3, 0.0] * 4)
    only = difference(compare([evaluation(base, ours)], resamples=100).differences, "up", "start")
    assert only.estimate == (0, 0, 0)
    assert not only.estimate.excludes_zero


# As JSON and Markdown


def test_an_evaluation_survives_json() -> None:
    ours = replace(UP, win=win_rate((0.79, 0.6, 0.9), (0.55, 0.45, 0.7)))
    found = evaluation(START, ours)
    assert Evaluation.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    assert "rows" not in found.as_dict(rows=False)["policies"][0]
    with pytest.raises(
        DataError, match=r"evaluation\.json: this is not a complete evaluation: KeyError 'rows'"
    ):
        Evaluation.from_dict(found.as_dict(rows=False), where="evaluation.json")


def test_a_comparison_is_json() -> None:
    found = json.loads(json.dumps(compare([evaluation(START, UP)], resamples=200).as_dict()))
    assert found["winner"] == "up"
    assert found["optimisations"][0]["finding"] == "carried over"
    assert found["differences"][0]["words"] in found["verdict"]
    assert "rows" not in found["policies"][0]


def test_the_tables() -> None:
    ours = replace(UP, win=win_rate((0.79, 0.6, 0.9), (0.55, 0.45, 0.7)))
    both = evaluation(START, ours)
    table = evaluation_table(both)
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.header == ("measure", "start", "up")
    assert rows["gold (gold)"][0].startswith("1.5 [")
    assert rows["judge's win rate"] == ("–", "79 % [60, 90]")
    assert rows["wins / ties / losses / invalid"] == ("–", "5 / 1 / 1 / 1")
    assert rows["sampling FLOPs"] == ("2.5e+09", "2.5e+09")
    assert rows["peak memory (GB)"] == ("2.00", "2.00")
    assert all(len(row) == len(table.header) for row in table.rows)
    found = compare([both], {"up": cost(400)}, resamples=200)
    titles = [table.title for table in comparison_tables(found)]
    assert titles == [
        "Policies",
        "Differences",
        "Best of K samples of start by the reward, without training",
        "Training",
    ]
    text = comparison_markdown(found)
    assert "- Winner on gold: `up`" in text
    assert "| gold | up − start | +0.3 [+0.2, +0.4] | yes | 4 |" in text
    assert "| up | 400 | 1e+12 | 60 | 3.00 |" in text
    assert "| gold (gold) |" in evaluation_markdown(both)


def test_a_comparison_prints_the_short_table_of_policies_and_writes_the_long_one() -> None:
    ours = replace(UP, win=win_rate((0.79, 0.6, 0.9), (0.55, 0.45, 0.7)))
    both = evaluation(START, ours)
    found = compare([both], {}, resamples=200)
    table = evaluation_table(both)
    long, short = ({row[0] for row in each.rows} for each in (table, main_rows(table)))
    assert short < long
    assert {"gold (gold)", "judge's win rate", "wins / ties / losses / invalid"} <= short
    assert {"flips between the two orders", "sampled tokens", "peak memory (GB)"} <= long - short
    assert all(f"| {label} |" in comparison_markdown(found) for label in long)


# Settings


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 0}, "greater than 0"),
        ({"gold": "no_colon"}, "pattern"),
        ({"judged": 5}, "5 of 4 completions"),
        ({"gold": "a:f", "metrics": ["b:f"]}, "two metrics are called f"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluateConfig.model_validate(changed)


def test_compare_settings() -> None:
    assert CompareConfig().name == "compare"
    with pytest.raises(ValidationError, match="budgets"):
        CompareConfig.model_validate({"budgets": ["flops"]})


def test_policies_without_two_prompts_in_common_are_said_not_to_be_compared() -> None:
    first = policy("first", gold=(1, 1, 1, 1, *[None] * 4), reward=[1.0] * 8)
    last = policy("last", gold=(*[None] * 4, 0, 0, 0, 0), reward=[2.0] * 8)
    found = compare([evaluation(START, first, last)], {}, resamples=100, seed=0)
    met = {(each.policy, each.against) for each in found.differences if each.measure == "gold"}
    assert met == {("first", "start"), ("last", "start")}
    assert "`first` and `last` have fewer than two prompts in common on gold" in " ".join(found.notes)
    assert {each.policy for each in found.optimisations} == {"first", "last"}


def monitored(golds: Sequence[float], *, kept: int | None = None) -> MonitoredTraining:
    """A training whose KL is the square of the step."""
    readings = tuple(
        MonitorReading(
            step=step,
            kl=float(step**2),
            proxy=Estimate(step / 10, step / 10 - 0.05, step / 10 + 0.05),
            gold=Estimate(gold, gold - 0.01, gold + 0.01),
            parts={},
            length=8.0,
            distinct_2=0.5,
            refusal=0.0,
            ended=1.0,
            tokens=10,
            seconds=1.0,
            flops=1e6,
        )
        for step, gold in enumerate(golds)
    )
    report = MonitorReport(readings, patience=3, kept=kept)
    written = json.loads(json.dumps([[each.as_row() for each in readings], report.as_dict()]))
    found = MonitoredTraining.from_files(*written)
    assert found is not None
    return found


TURNS = [1.0 + (d * (0.6 - 0.4 * math.log(d)) if d else 0.0) for d in range(12)]
"""Gold of d = √KL with α = 0.6 and β = 0.4: it stops rising at d = e^½."""


def test_what_a_monitor_read_stands_in_the_comparison_with_its_turning_point() -> None:
    watched = {"up": monitored(TURNS), "elsewhere": monitored(TURNS)}
    found = compare([evaluation(START, UP)], monitors=watched, resamples=100)
    assert list(found.monitors) == ["up"], "what was not evaluated is not compared"
    (table,) = [each for each in comparison_tables(found) if "training of up" in each.title]
    assert table.header == ("step", "KL (nats)", "proxy", "gold of the monitor", "")
    shown = [row[0] for row in table.rows]
    assert len(shown) <= 9
    assert (shown[0], shown[-2], shown[-1]) == ("0", "11", "–")
    assert next(row for row in table.rows if row[0] == "2")[4] == "best gold"
    gold = 1.0 + math.sqrt(math.e) * (0.6 - 0.4 * 0.5)
    assert table.rows[-1] == ("–", f"{math.e:.2f}", "–", f"{gold:.3g}", "turns, by the curve")
    stated = json.loads(json.dumps(found.as_dict()))["monitors"]["up"]
    assert stated["turn"] == pytest.approx({"kl": math.e, "gold": gold})
    assert [each["step"] for each in stated["readings"]] == list(range(12))
    said = [line for line in found.verdict if line.startswith("The monitor of `up`'s training: ")]
    assert "gold stops rising at a KL of about 2.7 nats" in said[0]
    assert "## Over-optimisation along the training of up" in comparison_markdown(found)


def test_a_monitor_that_saw_no_turn_names_none_and_says_what_was_kept() -> None:
    found = compare(
        [evaluation(START, UP)], monitors={"up": monitored([1.0, 1.1, 1.3], kept=1)}, resamples=50
    )
    (table,) = [each for each in comparison_tables(found) if "training of up" in each.title]
    assert [row[4] for row in table.rows] == ["", "kept", "best gold"]
    assert found.as_dict()["monitors"]["up"]["turn"] is None
    assert compare([evaluation(START, UP)], resamples=50).monitors == {}


def test_a_monitor_that_read_nothing_is_none() -> None:
    assert MonitoredTraining.from_files([], MonitorReport((), patience=3).as_dict()) is None
