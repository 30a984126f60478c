"""Several seeds in one table: figures by hand, settings of a grid, and what is refused."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from spine import call

from rlaif.cli.study import read_grid, read_seeds
from rlaif.errors import ConfigError, DataError
from rlaif.pipeline.study import plan_study
from rlaif.report.study import study_markdown, study_tables
from rlaif.results.costs import TrainingCost
from rlaif.results.evaluation import CompletionRows, Cost, Evaluation, PolicyResult
from rlaif.results.monitor import MonitorReading
from rlaif.results.overoptimization import OptimizationFit
from rlaif.results.study import Study
from rlaif.stages.study import SeedRun, study
from rlaif.stages.study_curves import monitored_over_seeds
from rlaif.stats import Estimate

PROMPTS = tuple(f"p{i}" for i in range(12))
RECIPE = """
name: small
stages:
  - stage: sample
  - stage: label
  - stage: reward
  - stage: ppo
  - stage: evaluate
    gold: rlaif.metrics:distinct_2
"""


def policy(name: str, gold: Sequence[float], *, word: str = "") -> PolicyResult:
    texts = tuple(f"{name} {word} {i}" for i in range(len(gold)))
    return PolicyResult(
        name=name,
        model=f"tiny {name}",
        estimates={},
        win=None,
        cost=Cost(tokens=1, prompt_tokens=1, flops=1.0, seconds=1.0, peak_bytes=1),
        rows=CompletionRows(prompts=PROMPTS, texts=texts, measures={"gold": tuple(gold)}),
    )


def ran(
    seed: int, gains: Mapping[str, float], *, setting: str = "", noise: float = 0.1, gold: str = "gold"
) -> SeedRun:
    """A run whose trained policies are above the start policy by `gains`, prompt by prompt about alike."""
    rng = random.Random(seed)
    easy = [rng.gauss(0, 1) for _ in PROMPTS]
    policies = [policy("start", easy, word=str(seed))] + [
        policy(name, [value + gain + rng.gauss(0, noise) for value in easy], word=f"{seed} {gain}")
        for name, gain in gains.items()
    ]
    evaluation = Evaluation(
        start="start",
        gold=gold,
        prompts=len(PROMPTS),
        samples=1,
        max_new_tokens=8,
        temperature=1.0,
        seed=seed,
        policies=tuple(policies),
    )
    costs = {name: TrainingCost(tokens=100 * (seed + 1), seconds=2.0, flops=1e9) for name in gains}
    return SeedRun(setting=setting, seed=seed, evaluation=evaluation, costs=costs)


def test_a_policy_that_gains_under_every_seed_wins() -> None:
    found = study([ran(seed, {"ppo": 0.5, "dpo": 0.1}) for seed in range(5)], name="s")
    assert found.winner == "ppo"
    assert found.verdict[0].startswith("Winner on gold over 5 seeds: `ppo`")
    best = found.policies[1]
    assert best.name == "ppo"
    assert best.places == (5, 0, 0)
    mean = math.fsum(best.by_seed["gold"].values()) / 5
    assert best.estimates["gold"].value == pytest.approx(mean)
    assert best.cost is not None
    assert best.cost.tokens == 300
    assert best.cost.peak_bytes is None


def test_a_gain_that_changes_sign_with_the_seed_names_no_winner() -> None:
    """Each seed by itself would name one: its interval over prompts excludes zero."""
    gains = [0.9, -0.7, 0.8, -0.5, 0.6]
    found = study([ran(seed, {"ppo": gain}) for seed, gain in enumerate(gains)], name="s")
    assert found.winner is None
    assert "cannot be told apart" in found.verdict[1]
    assert "higher in 3 of 5 seeds" in found.verdict[1]


def test_a_policy_that_the_grid_does_not_touch_stands_once() -> None:
    runs = [
        ran(seed, {"ppo": gain, "dpo": 0.2}, setting=f"ppo.beta={gain}", noise=0.0)
        for seed in range(3)
        for gain in (0.1, 0.4)
    ]
    found = study(runs, name="s")
    assert [each.name for each in found.policies] == [
        "start",
        "ppo (ppo.beta=0.1)",
        "ppo (ppo.beta=0.4)",
        "dpo",
    ]
    assert found.winner == "ppo (ppo.beta=0.4)"
    header = study_tables(found)[0].header
    assert header[0] == "policy"
    assert header[-1] == "first of 3"


def test_the_table_survives_as_json_and_markdown() -> None:
    found = study([ran(seed, {"ppo": 0.5}) for seed in (3, 8)], name="s", failed={"seed-9": "no memory"})
    told = json.loads(json.dumps(found.as_dict()))
    assert told["winner"] == "ppo"
    assert told["failed"] == {"seed-9": "no memory"}
    text = study_markdown(found)
    assert "seed 3" in text
    assert "seed 8" in text
    assert "no memory" in text
    assert "rest on little" in text


def test_one_seed_is_no_study() -> None:
    with pytest.raises(DataError, match="two finished seeds"):
        study([ran(0, {"ppo": 0.5}), ran(0, {"ppo": 0.6}, setting="x=1")], name="s")


def test_evaluations_that_measure_otherwise_do_not_fit_together() -> None:
    with pytest.raises(DataError, match="differ in `gold`"):
        study([ran(0, {"ppo": 0.5}), ran(1, {"ppo": 0.5}, gold="other")], name="s")


# Planning ---------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_runs_go_by_seed_and_then_by_setting(recipe: str) -> None:
    plan = plan_study(recipe, seeds=[4, 2], grid={"stages.ppo.steps": [3, 4]})
    assert [(run.seed, run.setting) for run in plan.runs] == [
        (4, "ppo.steps=3"),
        (4, "ppo.steps=4"),
        (2, "ppo.steps=3"),
        (2, "ppo.steps=4"),
    ]
    assert [run.recipe.stages[3].steps for run in plan.runs] == [3, 4, 3, 4]  # type: ignore[attr-defined]
    assert len({run.name for run in plan.runs}) == 4


def test_more_seeds_go_on_in_the_same_folder(recipe: str) -> None:
    one, more = plan_study(recipe, seeds=2), plan_study(recipe, seeds=3, grid={"stages.ppo.steps": [2]})
    assert one.folder == more.folder
    assert plan_study(recipe, seeds=2, overrides=["stages.ppo.steps=3"]).folder != one.folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seeds": 1}, "shows nothing"),
        ({"seeds": [7, 7]}, "shows nothing"),
        ({"seeds": 999, "grid": {"stages.ppo.steps": [1, 2]}}, "more than a study"),
        ({"grid": {"stages.ppo.stepps": [1]}}, "problem"),
        ({"grid": {"stages.ppo.steps": ["many"]}}, "problem"),
        ({"overrides": ["rounds=2"]}, "this recipe is run in rounds"),
    ],
)
def test_a_study_that_cannot_be_is_refused(recipe: str, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_study(recipe, **arguments)  # type: ignore[arg-type]


def test_a_recipe_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("stages: [{stage: sample}]")
    with pytest.raises(ConfigError, match="no `evaluate` stage"):
        plan_study(str(path))


def test_seeds_and_grids_are_read_as_they_are_typed() -> None:
    assert read_seeds("5") == 5
    assert read_seeds("0, 1,7") == [0, 1, 7]
    assert read_seeds("7,") == [7]
    assert read_grid(("stages.ppo.beta=0.1,0.2,0.1", "model=a, b")) == {
        "stages.ppo.beta": [0.1, 0.2],
        "model": ["a", "b"],
    }
    for bad in ("", "five", "1.5", "-3", ",1"):
        with pytest.raises(ConfigError, match="--seeds"):
            read_seeds(bad)
    for grid in (("x",), ("=1,2",), ("x=",), ("seed=1,2",), ("x=1", "x=2"), ("x=[1",)):
        with pytest.raises(ConfigError):
            read_grid(grid)


def test_the_dry_run_lists_the_runs_and_writes_nothing(recipe: str, tmp_path: Path) -> None:
    found = call(
        "study", recipe, "--dry-run", "--seeds", 2, "--set", "model=scripted", "--out", tmp_path / "o"
    )
    assert found.status == 0, found.err
    assert "one of 2 runs" in found.out
    assert "seed-1" in found.out
    assert not (tmp_path / "o").exists()


def test_policies_with_one_seed_in_common_are_told_apart_from_those_compared() -> None:
    """A run that failed does not take the table with it, and nobody wins over one that was not met."""
    runs = [ran(seed, {"ppo": 3.0}, setting="a") for seed in (0, 1)]
    runs += [ran(seed, {"ppo": 0.5}, setting="b") for seed in (1, 2)]
    found = study(runs, name="s")
    assert [(each.policy, each.against) for each in found.differences] == [
        ("ppo (a)", "start"),
        ("ppo (b)", "start"),
    ]
    told = "`ppo (a)` and `ppo (b)` are not compared on gold: fewer than two seeds (or prompts) have both."
    assert told in found.verdict
    assert found.winner is None
    assert found.verdict[0].startswith("No single winner")


def reading(step: int, kl: float, proxy: float, gold: float) -> MonitorReading:
    one = {"length": 8.0, "distinct_2": 1.0, "refusal": 0.0, "ended": 1.0}
    return MonitorReading(
        step,
        kl,
        proxy=Estimate(proxy, proxy - 1, proxy + 1),
        gold=Estimate(gold, gold - 1, gold + 1),
        parts={},
        tokens=8,
        seconds=1.0,
        flops=1.0,
        **one,
    )


def test_curves_are_gains_over_the_first_reading_in_the_mean_of_the_seeds() -> None:
    readings = {
        0: [reading(0, 0.0, 1.0, 5.0), reading(2, 1.0, 2.0, 6.0), reading(4, 4.0, 4.0, 6.5)],
        1: [reading(0, 0.0, 0.0, 3.0), reading(2, 3.0, 3.0, 3.0), reading(4, 4.0, 5.0, 4.0)],
        2: [reading(0, 0.0, 0.0, 0.0), reading(2, 2.0, 2.0, 0.5)],  # stopped early
    }
    curve = monitored_over_seeds("ppo", readings)
    assert curve is not None
    assert [(each.name, each.kl) for each in curve.points] == [("step 0", 0.0), ("step 2", 2.0)]
    assert curve.points[0].gold == Estimate(0.0, 0.0, 0.0)
    last = curve.points[1]
    assert last.proxy.value == pytest.approx((1 + 3 + 2) / 3)
    assert last.gold.value == pytest.approx((1 + 0 + 0.5) / 3)
    # t of 2 degrees of freedom is 4.303; the gains 1, 0, 0.5 have a standard error of 0.5 / √3
    assert last.gold.high - last.gold.value == pytest.approx(4.303 * 0.5 / math.sqrt(3), rel=0.02)


def test_one_seed_makes_no_curve() -> None:
    assert monitored_over_seeds("ppo", {0: [reading(0, 0.0, 0.0, 0.0), reading(2, 1.0, 1.0, 1.0)]}) is None


def test_a_training_that_began_elsewhere_has_no_fit() -> None:
    rows = [reading(step, 1.0 + step, float(step), float(step)) for step in range(5)]
    curve = monitored_over_seeds("ppo", {0: rows, 1: rows})
    assert curve is not None
    assert curve.fit is None
    assert "too few distances" not in curve.words


def test_curves_stand_in_the_table_and_come_back_from_json() -> None:
    runs = [
        ran(seed, {"ppo": 0.5})._replace(
            readings={"ppo": [reading(step, float(step), step * 2.0 + seed, 1.0 + step) for step in range(5)]}
        )
        for seed in range(3)
    ]
    found = study(runs, name="s")
    assert [each.name for each in found.curves] == ["ppo"]
    assert found.curves[0].fit is not None
    assert "gold does not turn within what was measured" in study_markdown(found)
    assert "| ppo | step 4 | 4 | +8 [+8, +8] | +4 [+4, +4] |" in study_markdown(found)
    again = Study.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again.curves == found.curves


def test_a_turn_within_what_was_measured_is_told() -> None:
    fit = OptimizationFit(method="rl", alpha=1.0, beta=1.0, furthest=3.0)
    rows = [reading(k, (0.5 * k) ** 2, float(k), fit.gain(0.5 * k)) for k in range(7)]
    curve = monitored_over_seeds("grpo", {0: rows, 1: rows})
    assert curve is not None
    assert "gold stops rising at a KL of about 1 nats" in curve.words
