"""What an evaluation found, as frozen values; each completion's numbers are kept, to compare policies prompt
by prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlaif.audit.cases import plain
from rlaif.errors import DataError
from rlaif.stats import Estimate, bootstrap_mean

__all__ = [
    "OWN_MEASURES",
    "REWARD",
    "RUBRIC",
    "WIN",
    "Cost",
    "Evaluation",
    "PolicyResult",
    "CompletionRows",
    "WinRate",
    "estimates",
    "pair_id",
]

REWARD = "reward"
"""The measure of the reward model."""
RUBRIC = "rubric"
"""The measure of the prompts' rubrics."""

WIN = "win"
"""The measure of the judge: 1, ½ or 0 against the start policy's completion of the same prompt and number."""

OWN_MEASURES = (
    REWARD,
    RUBRIC,
    WIN,
    "kl",
    "tokens",
    "words",
    "ended",
    "distinct_1",
    "distinct_2",
    "repetition",
    "refusal",
    "boilerplate",
)
"""Measures that every evaluation has, where they could be taken; no metric may have the name of one."""


@dataclass(frozen=True, slots=True)
class CompletionRows:
    """One entry a completion, sorted by prompt.

    Attributes:
        prompts: Prompt ids.
        texts: What was answered.
        measures: By name, a number for each completion; `None` where there is none (an invalid verdict, a
            completion not judged). `distinct_1` and `distinct_2` are of all completions of the prompt
            together, repeated for each.
    """

    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    measures: Mapping[str, tuple[float | None, ...]]

    def measured(self, name: str) -> dict[str, list[float]]:
        """The numbers that there are of measure `name`, by prompt."""
        found: dict[str, list[float]] = defaultdict(list)
        for prompt, value in zip(self.prompts, self.measures.get(name, ()), strict=False):
            if value is not None:
                found[prompt].append(value)
        return dict(found)


@dataclass(frozen=True, slots=True)
class WinRate:
    """How the judge found a policy's completions against the start policy's.

    Attributes:
        compared: Pairs: wins, losses, ties and invalid ones together.
        ties: Labels within `rlaif.judging.aggregate.TIE` of ½, and pairs with the same text (`identical`),
            which were not asked.
        invalid: Pairs without any valid verdict; they are left out of the rates.
        flip_rate: Share of questions whose two orders name different winners, where both orders are asked.
        rate: (wins + ties / 2) / (wins + losses + ties); `None` where fewer than two prompts have a valid
            pair.
        length_controlled: The same as if both sides' answers were of one length in characters (Dubois et al.
            2024).
        length_effect: Log-odds; above 0 the judge prefers the longer answer.
    """

    compared: int
    wins: int
    losses: int
    ties: int
    identical: int
    invalid: int
    invalid_reasons: Mapping[str, int]
    flip_rate: float | None
    rate: Estimate | None
    length_controlled: Estimate | None
    length_effect: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """What sampling a policy's completions took; measuring them is not counted.

    Attributes:
        tokens: Generated.
        prompt_tokens: Read, each prompt once for all its samples.
        flops: Of the forward passes; see `rlaif.models.cost.forward_flops`.
        seconds: Wall-clock.
        peak_bytes: Most memory held until then: of the device where there is a GPU, of the whole process
            elsewhere.
    """

    tokens: int
    prompt_tokens: int
    flops: float
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """One policy.

    Attributes:
        model: Base and role, for the record.
        estimates: By measure, the mean over completions with its bootstrap 95 % interval, prompts drawn
            whole.
        win: `None` for the start policy, and without a judge.
    """

    name: str
    model: str
    estimates: Mapping[str, Estimate]
    win: WinRate | None
    cost: Cost
    rows: CompletionRows


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Policies on the same held-out prompts with the same seed.

    Attributes:
        start: Name of the policy that the others are judged against.
        gold: Name of the measure that no training signal touched, if one was given.
        policies: The start policy first.
        notes: What the reader should know.
    """

    start: str
    gold: str | None
    prompts: int
    samples: int
    max_new_tokens: int
    temperature: float
    seed: int
    policies: tuple[PolicyResult, ...]
    notes: tuple[str, ...] = ()

    def policy(self, name: str) -> PolicyResult:
        """The policy called `name`.

        Raises:
            KeyError: There is none.
        """
        for each in self.policies:
            if each.name == name:
                return each
        raise KeyError(name)

    def as_dict(self, *, rows: bool = True) -> dict[str, Any]:
        """JSON values, an interval as an object of `value`, `low` and `high`; without `rows`, a summary."""
        found: dict[str, Any] = plain(self)
        if not rows:
            for policy in found["policies"]:
                del policy["rows"]
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "") -> Evaluation:
        """What `as_dict` gave, back.

        Args:
            where: The file it was read from, for messages.

        Raises:
            DataError: Something is missing, or of the wrong kind.
        """
        try:
            policies = tuple(_policy(each) for each in values["policies"])
            found = cls(**{**values, "policies": policies, "notes": tuple(values["notes"])})
            found.policy(found.start)
        except (KeyError, TypeError, AttributeError) as error:
            what = f"this is not a complete evaluation: {type(error).__name__} {error}"
            raise DataError(
                what, where=where, remedy="give a file that `rlaif evaluate` wrote, with its rows"
            ) from error
        return found


def pair_id(policy: str, prompt: str, number: int) -> str:
    """Names a policy's completion of a prompt against the start policy's, for people who label it."""
    return f"{policy}/{prompt}/{number}"


def estimates(rows: CompletionRows, *, resamples: int, seed: int) -> dict[str, Estimate]:
    """The mean of every measure that at least two prompts have, with its interval."""
    found = {}
    for name in rows.measures:
        by_prompt = rows.measured(name)
        if len(by_prompt) > 1:
            prompts = [prompt for prompt, values in by_prompt.items() for _ in values]
            found[name] = bootstrap_mean(
                [value for values in by_prompt.values() for value in values],
                prompts,
                resamples=resamples,
                seed=seed,
            )
    return found


# Reading back


def _policy(values: Mapping[str, Any]) -> PolicyResult:
    rows = values["rows"]
    return PolicyResult(
        name=values["name"],
        model=values["model"],
        cost=Cost(**values["cost"]),
        win=_win(values["win"]),
        estimates={name: Estimate(**each) for name, each in values["estimates"].items()},
        rows=CompletionRows(
            prompts=tuple(rows["prompts"]),
            texts=tuple(rows["texts"]),
            measures={name: tuple(column) for name, column in rows["measures"].items()},
        ),
    )


def _win(values: Mapping[str, Any] | None) -> WinRate | None:
    if values is None:
        return None
    intervals = {name: values[name] for name in ("rate", "length_controlled")}
    return WinRate(
        **{**values, **{name: Estimate(**each) if each else None for name, each in intervals.items()}}
    )
