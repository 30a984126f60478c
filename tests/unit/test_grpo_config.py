"""GRPO's settings: what is refused, and why."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from rlaif.config.grpo import GrpoConfig
from rlaif.rl.grpo import LOSS_PER
from rlaif.rl.math import GroupAdvantage


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples_per_prompt": 1}, "greater than or equal to 2"),
        ({"episodes": 20}, "20 episodes cannot be divided into groups of 8 samples per prompt"),
        ({"max_draws": 3}, "max_draws acts with `keep_drawing: true` only"),
        ({"clip_high": 0.1}, "clip_high is 0.1, below clip, which is 0.2"),
        ({"clip_high": 0.28}, "clip_high acts with `epochs: 2 or minibatches: 2` only"),
        ({"clip": 0.1, "max_update_kl": 0.1}, "clip, max_update_kl act with"),
        ({"normalise_parts": True, "advantage": "rloo"}, "which rloo does not do"),
        ({"normalise_parts": True, "kl_in": "reward"}, "put it into the loss"),
        ({"value": "adapter"}, "Extra inputs are not permitted"),
        ({"gamma": 0.9}, "Extra inputs are not permitted"),
        ({"advantage": "gae"}, "Input should be 'grpo', 'dr_grpo' or 'rloo'"),
    ],
)
def test_what_cannot_act_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GrpoConfig(**changed)


@pytest.mark.parametrize("several", [{"epochs": 2}, {"minibatches": 2}])
def test_the_clip_acts_where_a_rollout_is_learned_in_several_steps(several: dict[str, Any]) -> None:
    assert GrpoConfig(clip=0.1, clip_high=0.28, **several).clip_high == 0.28


def test_every_kind_of_advantage_has_its_loss() -> None:
    kinds = set(get_args(GroupAdvantage))
    assert set(LOSS_PER) == kinds == set(get_args(GrpoConfig.model_fields["advantage"].annotation))
