"""What a study over seeds found, as frozen values that say in words what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rlaif.audit.cases import plain
from rlaif.results.comparison import PolicyDifference, difference_words, winner_of
from rlaif.results.evaluation import WIN
from rlaif.results.overoptimization import Method, OptimizationFit, OptimizationPoint
from rlaif.stats import Estimate
from rlaif.text import count_of

__all__ = ["MeanCost", "SeedDifference", "Study", "StudyCurve", "StudyPolicy"]


AT_START = 0.5
"""Nats of KL up to which the first reading of a training stands for none: rounding makes a little."""


@dataclass(frozen=True, slots=True)
class MeanCost:
    """What training took, the mean over seeds; `None` where a seed did not count it.

    Attributes:
        tokens: Generated.
    """

    tokens: float
    seconds: float
    flops: float | None
    peak_bytes: float | None


@dataclass(frozen=True, slots=True)
class StudyPolicy:
    """One policy of one setting, over seeds.

    Attributes:
        seeds: Those whose runs have it.
        by_seed: By measure and seed, the mean over prompts of the mean over a prompt's completions.
        estimates: By measure, the mean over seeds with its two-level interval.
        places: How often it was first, second, … on the headline measure, of the seeds in which every policy
            was measured; equal policies share the better place.
    """

    name: str
    seeds: tuple[int, ...]
    by_seed: Mapping[str, Mapping[int, float]]
    estimates: Mapping[str, Estimate]
    places: tuple[int, ...]
    cost: MeanCost | None


@dataclass(frozen=True, slots=True)
class SeedDifference(PolicyDifference):
    """`policy` less `against` on one measure, paired by seed and prompt.

    Attributes:
        seeds: In which both have the measure.
        above: Seeds in which `policy` had the higher mean.
    """

    seeds: int = 0
    above: int = 0

    @property
    def words(self) -> str:
        """One sentence, with the number of seeds that agree."""
        said = difference_words(self).removesuffix(".")
        return f"{said}; `{self.policy}` was higher in {self.above} of {count_of(self.seeds, 'seed')}."


@dataclass(frozen=True, slots=True)
class StudyCurve:
    """What optimising the proxy did to gold, the mean over seeds: along a training, as its monitor read it,
    or for the best of ever more samples of the start policy.

    Attributes:
        seeds: Those whose runs have all points.
        points: Proxy and gold are gains over the first point, with Student's interval over seeds; the KL is
            the mean over seeds.
    """

    name: str
    method: Method
    seeds: tuple[int, ...]
    points: tuple[OptimizationPoint, ...]

    @property
    def fit(self) -> OptimizationFit | None:
        """Gao et al.'s curve through the mean gains in gold; `None` where training began elsewhere than at
        the reference."""
        if self.points[0].kl > AT_START:
            return None
        return OptimizationFit.through(
            self.method, [(each.distance, each.gold.value) for each in self.points[1:]]
        )

    @property
    def words(self) -> str:
        """Whether gold turns, in a sentence."""
        fit, last = self.fit, self.points[-1]
        gains = f"proxy {last.proxy.value:+.3g}, gold {last.gold.value:+.3g} at a KL of {last.kl:.3g} nats"
        if self.points[0].kl > AT_START:
            return f"`{self.name}`: {gains}; no curve: training began elsewhere than at the reference."
        if fit is None:
            return f"`{self.name}`: {gains}; too few distances for a curve."
        turning = fit.turning_point
        if turning is not None and turning < fit.nearest:
            return f"`{self.name}`: {gains}; gold falls throughout."
        if turning is None or not fit.seen:
            return f"`{self.name}`: {gains}; gold does not turn within what was measured."
        return f"`{self.name}`: {gains}; gold stops rising at a KL of about {turning**2:.2g} nats."


@dataclass(frozen=True, slots=True)
class Study:
    """Which policy won over seeds, and at what cost.

    Attributes:
        headline: The measure that decides.
        start: The policy that training starts from.
        seeds: Those of which a run finished.
        prompts: Different held-out prompts, over all seeds.
        policies: The start policy first.
        differences: Of every policy to the start policy, then of every other pair, of those that two seeds
            or more have in common.
        failed: Runs that did not finish, each with its reason.
        curves: Of trainings that were monitored under two seeds or more, and of the best of K.
    """

    name: str
    headline: str
    gold: str | None
    start: str
    seeds: tuple[int, ...]
    prompts: int
    policies: tuple[StudyPolicy, ...]
    differences: tuple[SeedDifference, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    curves: tuple[StudyCurve, ...] = ()

    @property
    def winner(self) -> str | None:
        """The policy that is ahead of every other on the headline measure, each two-level interval excluding
        zero."""
        found = winner_of([each.name for each in self.policies], self.differences, self.headline)
        decisive = [each for each in self.differences if each.measure == self.headline]
        met = sum(found in (each.policy, each.against) for each in decisive)
        return found if met == len(self.policies) - 1 else None

    @property
    def verdict(self) -> tuple[str, ...]:
        """The findings, a sentence each, the most important first."""
        measure = "the judge's win rate" if self.headline == WIN else self.headline
        over = count_of(len(self.seeds), "seed")
        if self.winner is None:
            first = (
                f"No single winner on {measure} over {over}: no policy is ahead of every other with an "
                "interval over seeds and prompts that excludes zero."
            )
        else:
            first = (
                f"Winner on {measure} over {over}: `{self.winner}`, ahead of every other policy, each "
                "interval over seeds and prompts excluding zero."
            )
        told = [each.words for each in self.differences if each.measure == self.headline]
        failed = [f"The run {name} did not finish: {why}" for name, why in self.failed.items()]
        return (first, *told, *failed, *self.notes)

    def as_dict(self) -> dict[str, Any]:
        """JSON values: `verdict` and `winner`, and the figures that they rest on."""
        found: dict[str, Any] = plain(self)
        for each, value in zip(found["differences"], self.differences, strict=True):
            each["words"] = value.words
        return {"winner": self.winner, "verdict": list(self.verdict), **found}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Study:
        """What `as_dict` gave, back.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: Something is missing, or of the wrong kind.
        """
        known = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        return cls(
            **{
                **known,
                "seeds": tuple(values["seeds"]),
                "policies": tuple(_policy(each) for each in values["policies"]),
                "differences": tuple(_difference(each) for each in values["differences"]),
                "notes": tuple(values["notes"]),
                "curves": tuple(_study_curve(each) for each in values.get("curves", ())),
            }
        )


def _policy(values: Mapping[str, Any]) -> StudyPolicy:
    return StudyPolicy(
        name=values["name"],
        seeds=tuple(values["seeds"]),
        by_seed={
            measure: {int(seed): value for seed, value in by_seed.items()}
            for measure, by_seed in values["by_seed"].items()
        },
        estimates={measure: Estimate(**each) for measure, each in values["estimates"].items()},
        places=tuple(values["places"]),
        cost=MeanCost(**values["cost"]) if values["cost"] else None,
    )


def _study_curve(values: Mapping[str, Any]) -> StudyCurve:
    points = tuple(OptimizationPoint.from_dict(each) for each in values["points"])
    return StudyCurve(values["name"], values["method"], tuple(values["seeds"]), points)


def _difference(values: Mapping[str, Any]) -> SeedDifference:
    known = {each.name: values[each.name] for each in fields(SeedDifference)}
    return SeedDifference(**{**known, "estimate": Estimate(**values["estimate"])})
