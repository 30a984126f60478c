"""Runs that are killed again and again end as if they had been left alone. `scripts/reliability.py` does it
hundreds of times."""

from __future__ import annotations

import random

import pytest
from kills import SCENARIOS, Scenario, Yard

CHOSEN = ("served label", "PPO", "a whole recipe")


@pytest.mark.parametrize(
    "scenario", [each for each in SCENARIOS if each.name in CHOSEN], ids=lambda each: each.name
)
def test_a_killed_run_ends_as_if_left_alone(yard: Yard, scenario: Scenario) -> None:
    found = yard.harass(
        scenario, kills=4, rng=random.Random(f"suite {scenario.name}"), name=scenario.name.replace(" ", "-")
    )
    assert not found.wrong, (found.points, found.wrong)
    assert found.kills >= 1, "it was not killed once: the test says nothing"
