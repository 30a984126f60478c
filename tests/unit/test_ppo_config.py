"""PPO's settings: what is refused, and why; and that a step's detail list names code that exists."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
from pydantic import ValidationError

from rlaif.config.ppo import LengthPart, ModelPart, PatternPart, PpoConfig
from rlaif.rl.kl import AdaptiveKL, FixedKL, LagrangianKL


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
            "10 episodes cannot be shared out at 4 samples per prompt",
        ),
        ({"episodes": 4, "minibatches": 5}, "4 episodes cannot be cut into 5 minibatches"),
        ({"steps": 3, "value_warmup": 3}, "leaves nothing of 3 steps for the policy"),
        ({"kl": "adaptive", "beta": 0.0}, "must start above 0"),
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
    assert (plain.gamma, plain.lam, plain.clip, plain.beta, plain.adam_eps) == (1.0, 0.95, 0.2, 0.05, 1e-5)


def test_every_field_is_documented() -> None:
    undocumented = [
        name for name, found in PpoConfig.model_fields.items() if not found.description and name != "stage"
    ]
    assert undocumented == []


def test_each_kl_controller_is_built_from_the_settings() -> None:
    controller = importlib.import_module("rlaif.rl.learner").kl_controller
    assert isinstance(controller(PpoConfig()), FixedKL)
    adaptive = controller(PpoConfig(kl="adaptive", kl_target=3.0, episodes=8))
    assert isinstance(adaptive, AdaptiveKL)
    assert (adaptive.target, adaptive.episodes) == (3.0, 8)
    assert isinstance(controller(PpoConfig(kl="lagrangian")), LagrangianKL)


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
