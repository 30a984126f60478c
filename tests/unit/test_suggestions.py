"""A name that is unknown is answered with the one that was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from spine import call

from rlaif.config.reading import parse_recipe
from rlaif.errors import ConfigError, ConstitutionError, DataError, ModelError
from rlaif.io.readers import read_prompts
from rlaif.models.load import resolve
from rlaif.resources import find
from rlaif.suggest import did_you_mean, nearest

COMMANDS = {
    ("lable",): "did you mean `label`?",
    ("best_of_k",): "did you mean `best-of-k`?",
    ("constitution", "lnit", "x"): "'lint'",
    ("label", "--juge", "x"): "'--judge'",
    ("audit", "--probs"): "'--probes'",
    ("runs", "shwo"): "'show'",
    ("prompts", "render", "--principle", "no-ham", "--model", "none"): "did you mean `no-harm`?",
    ("constitution", "show", "defalt"): "did you mean `default`?",
    ("run", "quickstrat"): "did you mean `quickstart`?",
    ("recipe", "show", "quickstart", "--set", "stages.lable.k=2"): "did you mean `label`?",
    ("recipe", "show", "quickstart", "--set", "modle=x"): "did you mean `model`?",
    ("recipe", "show", "quickstart", "--set", "server.base_url=x"): "did you mean `base_urls`?",
    ("ppo", "--reward", "x", "--set", "clipp=1", "--dry-run"): "did you mean `clip`?",
    ("label", "--server", "continus=true", "--dry-run"): "did you mean `continues`?",
}
RECIPES = {
    "stages: [{stage: sampel}]": "did you mean `sample`?",
    "stages: [{stage: best-of-k, reward: x}]": "did you mean `best_of_k`?",
    "stages: [{stage: sample, temprature: 1}]": "did you mean `temperature`?",
    "stages: [{stage: sample}, {stage: label, protocol: pairwsie}]": "did you mean `pairwise`?",
    "stages: [{stage: sample}]\ndtype: bfloat61": "did you mean `bfloat16`?",
    "stages: [{stage: sample}]\nserver: {raeds: votes}": "did you mean `reads`?",
}


@pytest.mark.parametrize(("arguments", "told"), COMMANDS.items(), ids=lambda value: " ".join(value)[:40])
def test_commands_options_and_names(arguments: tuple[str, ...], told: str) -> None:
    said = call(*arguments)
    assert said.status != 0
    assert told in said.err


@pytest.mark.parametrize(("text", "told"), RECIPES.items())
def test_keys_and_values_of_a_recipe(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_recipe(text, source="r.yaml")
    assert told in str(raised.value)
    assert "r.yaml:" in str(raised.value)
    assert "discriminator" not in str(raised.value)
    assert "Input tag" not in str(raised.value)


def test_a_stage_without_its_kind_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match="the key `stage` is missing") as raised:
        parse_recipe("stages: [{k: 2}]", source="r.yaml")
    assert "best_of_k" in str(raised.value)


def test_models_prompts_and_constitutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="did you mean `smollm2-135m`"):
        resolve("smollm2-135")
    with pytest.raises(DataError, match="did you mean `everyday`"):
        read_prompts("builtin:evryday")
    with pytest.raises(ConfigError, match="did you mean `warmth`"):
        find("constitutions", "wamth.yaml")
    file = tmp_path / "c.yaml"
    file.write_text("protocol: pointwize\nprinciples: [{id: a, question: Is it good?}]")
    from rlaif.constitution.load import load_constitution

    with pytest.raises(ConstitutionError, match="did you mean `pointwise`"):
        load_constitution(file)


def test_nothing_is_guessed_where_nothing_is_near() -> None:
    assert did_you_mean("zebra", ["label", "sample"]) == ""
    assert nearest("x" * 10_000, ["x" * 10_000]) is None
    assert nearest("BEST_OF_K", ["best-of-k"]) == "best-of-k"
