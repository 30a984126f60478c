"""How a training on samples is watched: a gold measure that it never learns from, on held-out prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from rlaif.config.rewards import RewardPart, cohorts_in, directed_in
from rlaif.config.settings import Settings

__all__ = ["MonitorSettings"]


class MonitorSettings(Settings):
    """Readings along a training: the policy answers the same held-out prompts, and proxy, gold and KL are
    measured. Nothing is learned from them."""

    gold: RewardPart
    """What is to rise, and is never trained on: a reward of any kind that a part of `reward` may have, but no
    cohort. With a weight below 0 less of it is better."""

    every: Annotated[int, Field(ge=1)] = 5
    """Steps between readings; the first is before training, the last at its end, if it does not run away."""

    prompts: Annotated[int, Field(ge=2)] = 16
    """How many held-out prompts are read, one completion each; the same at every reading."""

    source: str | None = None
    """Where they come from, in any form that `prompts` of the stage has. When left out, the stage's own
    source, less what it trains on, what stages before it use, and the part `eval`."""

    patience: Annotated[int, Field(ge=1)] = 3
    """Readings in a row with proxy above and gold below those of the best gold reading, until the alarm."""

    stop: bool = False
    """At the alarm, stop and return to the policy of the best gold reading."""

    @field_validator("gold")
    @classmethod
    def _measures(cls, gold: RewardPart) -> RewardPart:
        if cohorts_in({"gold": gold}):
            raise ValueError(
                "a cohort compares the completions of one prompt, and their mean is always 0: use mode: alone"
            )
        if directed_in({"gold": gold}):
            raise ValueError("held-out prompts are under no directive: name a gold measure of another kind")
        if not gold.weight:
            raise ValueError("a gold measure of weight 0 is always 0: leave `weight` out")
        return gold
