"""Recipes: every problem at once, each with its line; overrides; the schema that ships."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlaif.config import LabelConfig, SampleConfig, load_recipe, parse_recipe, recipe_schema
from rlaif.errors import ConfigError
from rlaif.pipeline.run import recipe_text
from rlaif.resources import shipped

GOOD = """
name: quick
stages:
  - stage: sample
    k: 2
  - stage: label
    pairs: best-worst
"""


def test_a_recipe_is_typed_and_complete() -> None:
    recipe = parse_recipe(GOOD, source="a.yaml")
    sample, label = recipe.stages
    assert isinstance(sample, SampleConfig)
    assert isinstance(label, LabelConfig)
    assert (sample.k, sample.name, label.name, label.principles) == (2, "sample", "label", "sample")


def test_every_problem_is_told_at_once_with_its_line() -> None:
    text = GOOD.replace("    k: 2", "    k: 0\n    kk: 1").replace("best-worst", "best") + "seed: x\n"
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text, source="a.yaml")
    message = str(caught.value)
    places = (
        "a.yaml:5: stages.0.k:",
        "a.yaml:6: stages.0.kk: unknown key `kk`",
        "did you mean `k`?",
        "a.yaml:8:",
        "a.yaml:9: seed:",
    )
    assert [place for place in places if place not in message] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: []", "`stages` is empty"),
        ("stages:\n  - stage: label\n", "nothing to judge"),
        ("stages:\n  - stage: sample\n  - stage: sample\n", "two stages are named sample"),
        ("stages:\n  - stage: sample\n  - stage: label\n    input: other\n", "reads from 'other'"),
        ("stages:\n  - stage: sampel\n", "sampel"),
        ("name: [", "not valid YAML"),
        ("- 1", "a recipe is a mapping"),
        ("name: x", "`stages` is missing"),
    ],
)
def test_what_cannot_be_run_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe(text, source="a.yaml")


def test_overrides_reach_a_stage_by_its_name_and_are_read_as_yaml() -> None:
    overrides = ["stages.sample.k=7", "seed=3", "stages.label.max_invalid=0.5", "stages.sample.limit=null"]
    recipe = parse_recipe(GOOD, source="a.yaml", overrides=overrides)
    assert (recipe.stages[0].k, recipe.seed, recipe.stages[1].max_invalid) == (7, 3, 0.5)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.sample", "not of the form a.b=c"),
        ("stages.smaple.k=2", "no stage is named 'smaple'"),
        ("seed.x=1", "names no setting|inside a plain value"),
        ("stages.sample.kk=2", "unknown key `kk`"),
        ("seed=[", "not valid YAML"),
        ("name.a.b=1", "inside a plain value"),
    ],
)
def test_a_wrong_override_is_told_plainly(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe(GOOD + "seed: 1\n", source="a.yaml", overrides=[override])


def test_unreadable_recipes(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="no file"):
        load_recipe("nothing-of-the-kind")


def test_every_recipe_that_ships_loads() -> None:
    recipes = sorted(shipped("recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        recipe = load_recipe(path)
        assert recipe.stages
        assert recipe.name == path.stem
        assert path.read_text(encoding="utf-8").startswith(
            "# yaml-language-server: $schema=../docs/reference/recipe.schema.json\n"
        )
        text = path.read_text(encoding="utf-8")
        assert f"rlaif run recipes/{path.name}" in text
        assert "pip install 'rlaif[" not in text, "the package is rlaif-toolkit"


def test_the_schema_file_is_that_of_the_code() -> None:
    path = Path(__file__).parents[2] / "docs" / "reference" / "recipe.schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == recipe_schema()


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        (
            "{stage: label, responses: x, protocol: pointwise, clamp: 0.7}",
            "clamp acts with `protocol: cot` only",
        ),
        (
            "{stage: label, responses: x, reasoning_tokens: 9, clamp: 1}",
            "clamp, reasoning_tokens act with `protocol: cot`",
        ),
        ("{stage: best_of_k, weight_temperature: 0.1}", "weight_temperature acts with `keep: weighted` only"),
        ("{stage: evaluate, win_rate: false, judge: x}", "judge acts with `win_rate: true` only"),
        (
            "{stage: reward, ensemble: {variance_penalty: 2}}",
            "variance_penalty acts with `combine: mean-variance` only",
        ),
        ("{stage: reward, ensemble: {combine: min}}", "combine acts with `members: 2 or more` only"),
        ("{stage: ppo, kl: fixed, kl_target: 3}", "kl_target does nothing with the fixed controller"),
        (
            "{stage: sample, rollout: {base_urls: ['http://a'], max_ratio: 2, max_difference: 1}}",
            "max_ratio, max_difference act in stages that compare log-probabilities",
        ),
        ("{stage: sample, rollout: {base_urls: ['http://a'], cap: 3}}", "cap acts in `ppo` and `grpo` only"),
        (
            "{stage: evaluate, rollout: {base_urls: ['http://a'], cap: 3}}",
            "cap acts in `ppo` and `grpo` only",
        ),
        ("{stage: best_of_k, rollout: {base_urls: ['http://a'], cap: 3}}", "cap acts in `ppo` and `grpo`"),
        ("{stage: ppo, kl: {target: 3}}", "the key `kind` is missing"),
        ("{stage: ppo, kl: {kind: adaptiv}}", "did you mean `adaptive`?"),
        ("{stage: ppo, reward: {a: {kind: modle}}}", "did you mean `model`?"),
    ],
)
def test_a_setting_that_cannot_act_is_refused_with_what_would_let_it(stage: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        parse_recipe(f"stages: [{stage}]", source="r.yaml")


def test_the_recipe_of_a_run_is_read_as_it_was_written_out() -> None:
    recipe = parse_recipe("stages: [{stage: ppo}, {stage: best_of_k}, {stage: evaluate}]", source="r.yaml")
    assert parse_recipe(recipe_text(recipe), source="again.yaml") == recipe
