"""What a round did: answers from its evaluations, its reward model's report and its labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.results.evaluation import REWARD, WIN, Evaluation
from rlaif.results.reward import Scored
from rlaif.results.rounds import Gain, Prompts, Round, Share
from rlaif.stages.compare import can_be_paired, paired_difference
from rlaif.stats import ClusteredShare, Estimate

__all__ = ["best_round", "describe_round"]

RESAMPLES = 2000


def describe_round(
    number: int,
    *,
    policy: str,
    made: str,
    former: str | None,
    fixed: Evaluation,
    fresh: Evaluation | None,
    reward: Mapping[str, Scored],
    labels: Mapping[str, Any],
    seed: int,
) -> Round:
    """Answer what a round's files say.

    Args:
        policy: Folder of the policy that it made.
        made, former: Names, in the evaluations, of that policy and of the one before; `None` in the first
            round, where that is the start policy.
        fixed, fresh: On the prompts that all rounds share, and on those of this round alone.
        reward: `RewardReport.previous`.
        labels: What the label stage counted (`statistics.json`).
        seed: Of the bootstrap.
    """
    measure = fixed.gold or (WIN if fixed.policy(made).win is not None else REWARD)
    sets: list[tuple[Prompts, Evaluation]] = [("fixed", fixed), *([("fresh", fresh)] if fresh else [])]  # type: ignore[list-item]
    gains = [gain for name, each in sets for gain in _gains(each, name, made, former, seed=seed)]
    own = fixed.policy(made).estimates
    return Round(
        number=number,
        policy=policy,
        measure=measure,
        gold=own.get(measure),
        kl=own.get("kl"),
        gains=tuple(gains),
        overfit=_overfit(gains, measure),
        reward=_ranked(reward),
        judge=_judged(labels),
    )


def best_round(rounds: Sequence[Round]) -> int:
    """Number of the round whose policy has the highest gold on the fixed prompts, the first of them; the last
    round where gold was not measured."""
    if any(each.gold is None for each in rounds):
        return rounds[-1].number
    return max(rounds, key=lambda each: (each.gold.value if each.gold else 0.0, -each.number)).number


def _gains(found: Evaluation, prompts: Prompts, made: str, former: str | None, *, seed: int) -> list[Gain]:
    gains = []
    for against, other in (("start", found.start), ("previous", former or found.start)):
        ours, theirs = found.policy(made), found.policy(other)
        for measure in (found.gold, WIN, REWARD):
            if measure and can_be_paired(ours, theirs, measure):
                difference = paired_difference(ours, theirs, measure, resamples=RESAMPLES, seed=seed)
                gains.append(Gain(measure, against, prompts, difference.estimate))  # type: ignore[arg-type]
    return gains


def _overfit(gains: Sequence[Gain], measure: str) -> Estimate | None:
    """The gain over the start on fixed prompts less that on fresh ones; the prompts being others, their
    distances to either end add as squares."""
    found = {
        each.prompts: each.estimate for each in gains if each.measure == measure and each.against == "start"
    }
    if len(found) < 2:
        return None
    one, other = found["fixed"], found["fresh"]
    value = one.value - other.value
    return Estimate(
        value=value,
        low=value - math.hypot(one.value - one.low, other.high - other.value),
        high=value + math.hypot(one.high - one.value, other.value - other.low),
    )


def _ranked(reward: Mapping[str, Scored]) -> dict[str, Share]:
    names = {"fresh": "fresh", "held_out": "before", "now": "now"}
    return {
        names[name]: Share(each.pairs, Estimate(each.accuracy, each.low, each.high))
        for name, each in reward.items()
        if not math.isnan(each.accuracy)
    }


def _judged(labels: Mapping[str, Any]) -> dict[str, Share]:
    """Shares of what the label stage counted, with intervals over prompts: the questions about one prompt
    (its pairs, the principles of a pair) are alike."""
    clustered = {name: ClusteredShare(**sums) for name, sums in labels.get("clusters", {}).items()}
    return {name: Share(each.trials, each.estimate()) for name, each in clustered.items() if each.trials}
