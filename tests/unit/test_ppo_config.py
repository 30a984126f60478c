"""PPO's settings: what is refused, and why; and that a step's detail list names code that exists."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
from pydantic import ValidationError

from rlaif.config.kl import KINDS
from rlaif.config.labelling import SettingNotice
from rlaif.config.ppo import PpoConfig
from rlaif.config.rewards import LengthPart, ModelPart, PatternPart
from rlaif.rl.kl import CONTROLLERS, AdaptiveKL, FixedKL, LagrangianKL, open_controller


@pytest.mark.parametrize("changed", [{"top_k": 40}, {"top_p": 0.9}, {"repetition_penalty": 1.1}])
def test_sampling_that_biases_the_kl_is_refused_with_the_reason(changed: dict[str, Any]) -> None:
    (name,) = changed
    with pytest.raises(
        ValidationError,
        match=f"{name} cannot be used with PPO: completions would come from another distribution",
    ):
        PpoConfig(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"episodes": 10, "samples_per_prompt": 4},
            "10 episodes cannot be divided into groups of 4 samples per prompt",
        ),
        ({"episodes": 4, "minibatches": 5}, "4 episodes cannot be cut into 5 minibatches"),
        ({"steps": 3, "value_warmup": 3}, "leaves none of the 3 steps for the policy"),
        ({"temperature": 0.0}, "greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"reward": {}}, "at least 1 item"),
        ({"reward": {"f": {"kind": "function", "function": "no_colon"}}}, "pattern"),
        ({"reward": {"f": {"kind": "format", "pattern": "("}}}, "not a regular expression"),
        ({"reward": {"l": {"kind": "length"}}}, "a length rule needs"),
        (
            {"reward": {"l": {"kind": "length", "min_words": 5, "max_words": 2}}},
            "no completion has at least 5 and at most 2 words",
        ),
    ],
)
def test_settings_that_cannot_be_right_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        PpoConfig(**changed)


def test_defaults_and_parts() -> None:
    parts = {
        "m": {"kind": "model"},
        "l": {"kind": "length", "max_words": 9, "weight": 0.5},
        "x": {"kind": "pattern", "pattern": "x"},
    }
    config = PpoConfig.model_validate({"reward": parts})
    assert config.reward == {
        "m": ModelPart(),
        "l": LengthPart(max_words=9, weight=0.5),
        "x": PatternPart(pattern="x"),
    }
    assert PpoConfig().reward == {"model": ModelPart()}
    assert PpoConfig.model_validate(config.model_dump()) == config
    plain = PpoConfig()
    assert (plain.gamma, plain.lam, plain.clip, plain.kl.beta, plain.adam_eps) == (1.0, 0.95, 0.2, 0.05, 1e-5)


def test_every_field_is_documented() -> None:
    undocumented = [
        name for name, found in PpoConfig.model_fields.items() if not found.description and name != "stage"
    ]
    assert undocumented == []


def test_each_kl_controller_is_built_from_the_settings() -> None:
    assert isinstance(open_controller(PpoConfig().kl, episodes=32), FixedKL)
    adaptive = open_controller(PpoConfig(kl={"kind": "adaptive", "target": 3.0}).kl, episodes=8)
    assert isinstance(adaptive, AdaptiveKL)
    assert (adaptive.target, adaptive.episodes) == (3.0, 8)
    lagrangian = open_controller(PpoConfig(kl={"kind": "lagrangian", "rate": 0.2}).kl, episodes=8)
    assert isinstance(lagrangian, LagrangianKL)
    assert lagrangian.rate == 0.2
    assert set(CONTROLLERS) == set(KINDS)


@pytest.mark.parametrize(
    ("flat", "now"),
    [
        ({"kl": "adaptive", "kl_target": 10.0}, {"kind": "adaptive", "target": 10.0}),
        ({"kl": "lagrangian", "kl_rate": 0.2, "beta": 0.1}, {"kind": "lagrangian", "rate": 0.2, "beta": 0.1}),
        ({"beta": 0.2}, {"kind": "fixed", "beta": 0.2}),
        # As version 0.1.0 wrote a resolved recipe: every default stands in it.
        (
            {"kl": "fixed", "beta": 0.05, "kl_target": 6.0, "kl_horizon": 10_000, "kl_rate": 0.1, "top_k": 0},
            {"kind": "fixed", "beta": 0.05},
        ),
    ],
)
def test_the_flat_spelling_of_version_0_1_0_is_read_with_a_notice(
    flat: dict[str, Any], now: dict[str, Any]
) -> None:
    with pytest.warns(SettingNotice, match="write kl: "):
        assert PpoConfig(**flat) == PpoConfig(kl=now)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"kl": "fixed", "kl_target": 3.0},
            r"kl_target does nothing with the fixed controller: write `kl: {kind: adaptive or lagrangian, target: 3.0}`",
        ),
        ({"kl": {"kind": "adaptive"}, "kl_target": 3.0}, "kl_target: write this inside `kl`, as target"),
        ({"kl": {"kind": "fixed", "target": 3.0}}, "Extra inputs are not permitted"),
        ({"kl": {"kind": "adaptive", "beta": 0}}, "greater than 0"),
    ],
)
def test_a_setting_of_another_controller_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PpoConfig(**given)


def test_the_list_of_details_names_code_that_exists() -> None:
    ppo = importlib.import_module("rlaif.rl.ppo")
    lines = re.findall(r"^ ?(\d+)(?:–(\d+))?  (.+)$", ppo.__doc__, re.MULTILINE)
    numbers = [number for first, last, _ in lines for number in range(int(first), int(last or first) + 1)]
    assert numbers == list(range(1, 22))
    found = 0
    places = {"PpoConfig": "rlaif.config.ppo", "Episodes": "rlaif.rl.episodes", "models": "rlaif"}
    for name in re.findall(r"`([\w.]+)`", "\n".join(text for _, _, text in lines)):
        head, *rest = name.split(".")
        place: Any = importlib.import_module(places.get(head, "rlaif.rl"))
        for part in (head, *rest):
            if not hasattr(place, part) and part in getattr(place, "__annotations__", {}):
                break
            place = getattr(place, part, None) or importlib.import_module(f"{place.__name__}.{part}")
        found += 1
    assert found > 12
