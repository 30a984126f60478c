"""What a comparison of policies found, as frozen values that say in words what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rlaif.audit.cases import plain
from rlaif.audit.grade import share
from rlaif.config.evaluation import Budget
from rlaif.results.costs import TrainingCost
from rlaif.results.evaluation import WIN, PolicyResult, WinRate
from rlaif.results.monitor import MonitoredTraining
from rlaif.results.overoptimization import OptimizationFit, OptimizationPoint
from rlaif.results.people import PeopleRate
from rlaif.stats import Estimate

__all__ = [
    "AtBudget",
    "PolicyDifference",
    "Finding",
    "Optimisation",
    "PolicyComparison",
    "Reading",
    "difference_words",
    "interval",
    "winner_of",
]

Finding = Literal[
    "over-optimised", "sign of over-optimisation", "not shown to carry over", "carried over", "no gain"
]

UNITS: Mapping[Budget, str] = {"tokens": "generated tokens", "seconds": "seconds"}

UNEQUAL = 1.25
"""Costs further apart than this factor are called unequal."""

COARSE = 0.1
"""A curve whose points around a budget are further apart than this share of it is read between them, and that
is said."""


@dataclass(frozen=True, slots=True)
class PolicyDifference:
    """`policy` less `against` on one measure, paired by prompt.

    Attributes:
        prompts: On which both have the measure.
    """

    policy: str
    against: str
    measure: str
    prompts: int
    estimate: Estimate

    @property
    def ahead(self) -> str | None:
        """The one with the higher mean, if the interval excludes zero."""
        if not self.estimate.excludes_zero:
            return None
        return self.policy if self.estimate.value > 0 else self.against

    @property
    def words(self) -> str:
        """One sentence: who is ahead, and whether the interval excludes zero."""
        return difference_words(self)


@dataclass(frozen=True, slots=True)
class Optimisation:
    """How a policy moved from the start policy on the measure it was trained on (the proxy) and on the gold
    one."""

    policy: str
    proxy_name: str
    gold_name: str
    proxy: Estimate
    gold: Estimate

    @property
    def finding(self) -> Finding:
        """What the two differences say together."""
        if self.proxy.low <= 0:
            return "no gain"
        if self.gold.excludes_zero:
            return "carried over" if self.gold.value > 0 else "over-optimised"
        return "sign of over-optimisation" if self.gold.value < 0 else "not shown to carry over"

    @property
    def words(self) -> str:
        """One sentence that sets proxy and gold side by side."""
        proxy, gold = interval(self.proxy, signed=True), interval(self.gold, signed=True)
        both = f"{self.proxy_name} {proxy}, {self.gold_name} {gold} over the start policy"
        meaning: Mapping[Finding, str] = {
            "over-optimised": "is over-optimised: the proxy went up and gold went down, and both intervals "
            "exclude zero",
            "sign of over-optimisation": "shows a sign of over-optimisation: the proxy went up and gold "
            "down, though gold's interval "
            "includes zero",
            "not shown to carry "
            "over": "gained on the proxy, but gold is not shown to have moved (its interval includes zero)",
            "carried over": "gained on the proxy and on gold, and both intervals exclude zero",
            "no gain": "is not shown to have gained on the proxy it was trained on",
        }
        return f"`{self.policy}` {meaning[self.finding]}: {both}."


class Reading(NamedTuple):
    """A curve read at some cost, on the straight line between two of its points."""

    value: float
    between: tuple[float, float]
    """The cost at either; the same twice where there is a point."""


@dataclass(frozen=True, slots=True)
class AtBudget:
    """Policies at one and the same cost of training, read off their curves.

    Attributes:
        amount: Where the shortest curve ends.
        shows: What the curves show.
        readings: By policy; `None` where its curve begins later.
    """

    budget: Budget
    amount: float
    shows: str
    readings: Mapping[str, Reading | None]

    @property
    def words(self) -> str:
        """One sentence; there is no interval to tell, since a curve has one figure per point."""
        known = {name: reading for name, reading in self.readings.items() if reading is not None}
        late = [f"`{name}` has no point so early" for name in self.readings if name not in known]
        facts = ", ".join([*(f"`{name}` {self._fact(reading)}" for name, reading in known.items()), *late])
        most = max((reading.value for reading in known.values()), default=None)
        best = [name for name, reading in known.items() if reading.value == most]
        leader = f"`{best[0]}` is ahead" if len(best) == 1 and len(known) > 1 else "none is ahead"
        return (
            f"At {self.amount:,.0f} {UNITS[self.budget]} of training, by the {self.shows}: {facts}; "
            f"{leader}. This is the reward in "
            "training, not the held-out measure, and each is a single figure of a curve, without an interval."
        )

    def _fact(self, reading: Reading) -> str:
        """The figure, and where it was read between points that lie far apart."""
        low, high = reading.between
        far = high - low > COARSE * self.amount
        return f"{reading.value:.3g}" + (
            f" (on the line between its points at {low:,.0f} and {high:,.0f})" if far else ""
        )


@dataclass(frozen=True, slots=True)
class PolicyComparison:
    """Which policy won, and at what cost.

    Attributes:
        headline: The measure that decides: the gold one; without one the judge's win rate; without that the
            reward.
        policies: Their results, the start policy first.
        differences: Of every policy to the start policy, then of every other pair, on every measure that is
            compared.
        at_budgets: Empty where only the endpoints are compared.
        endpoints: Which policies are compared at their endpoints only, and why; empty where none is.
        people: How often people prefer a policy to the start policy, where they labelled some pairs.
        best_of_k: Proxy and gold of the best of K of the start policy's own samples, by the proxy; empty
            without both, or with one sample a prompt.
        best_of_k_fit: Gao et al.'s curve through their gains in gold; `None` for fewer than four points.
        monitors: What the monitor of a policy's training read, by policy, where one watched.
    """

    start: str
    gold: str | None
    headline: str
    prompts: int
    policies: tuple[PolicyResult, ...]
    training: Mapping[str, TrainingCost]
    differences: tuple[PolicyDifference, ...]
    optimisations: tuple[Optimisation, ...]
    at_budgets: tuple[AtBudget, ...]
    endpoints: str = ""
    people: tuple[PeopleRate, ...] = ()
    best_of_k: tuple[OptimizationPoint, ...] = ()
    best_of_k_fit: OptimizationFit | None = None
    monitors: Mapping[str, MonitoredTraining] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())

    @property
    def winner(self) -> str | None:
        """The policy that is ahead of every other on the headline measure, each interval excluding zero."""
        return winner_of([each.name for each in self.policies], self.differences, self.headline)

    @property
    def verdict(self) -> tuple[str, ...]:
        """The findings, a sentence each, the most important first."""
        name = "the judge's win rate" if self.headline == WIN else self.headline
        if self.winner is None:
            first = (
                f"No single winner on {name}: no policy is ahead of every other with an interval that "
                "excludes zero."
            )
        else:
            first = (
                f"Winner on {name}: `{self.winner}`, ahead of every other policy, each interval "
                "excluding zero."
            )
        lines = [first, *(each.words for each in self.differences if each.measure == self.headline)]
        lines += [each.words for each in self.optimisations]
        lines += [
            words
            for each in self.policies
            if each.win
            for words in _win_words(each.name, self.start, each.win)
        ]
        lines += [each.words for each in self.people]
        lines += [each.words for each in self.at_budgets]
        if self.best_of_k_fit is not None and self.best_of_k_fit.seen:
            lines.append(_turning(self.best_of_k_fit, self.gold or ""))
        lines += [
            f"The monitor of `{name}`'s training: {'; '.join(each.words)}."
            for name, each in self.monitors.items()
            if each.words
        ]
        return (*lines, *([self.endpoints] if self.endpoints else []), *self._unequal_costs(), *self.notes)

    def as_dict(self) -> dict[str, Any]:
        """JSON values, without the completions: `verdict` and `winner`, and the figures that they rest on."""
        found: dict[str, Any] = plain(self)
        for policy in found["policies"]:
            del policy["rows"]
        said: Mapping[str, Sequence[PolicyDifference | Optimisation | AtBudget]] = {
            "differences": self.differences,
            "optimisations": self.optimisations,
            "at_budgets": self.at_budgets,
        }
        for kind, values in said.items():
            found[kind] = [
                {**each, "words": value.words} for each, value in zip(found[kind], values, strict=True)
            ]
        for each, value in zip(found["optimisations"], self.optimisations, strict=True):
            each["finding"] = value.finding
        for name, monitored in self.monitors.items():
            found["monitors"][name]["turn"] = plain(monitored.turn)
        return {"winner": self.winner, "verdict": list(self.verdict), **found}

    def _unequal_costs(self) -> list[str]:
        spent = sorted(
            (
                (cost.tokens, name)
                for name, cost in self.training.items()
                if cost.tokens > 0 and name != self.start
            )
        )
        if len(spent) < 2 or spent[-1][0] <= UNEQUAL * spent[0][0]:
            return []
        (least, cheap), (most, dear) = spent[0], spent[-1]
        ratio = f"`{dear}` generated {most / least:z.1f} times as many tokens in training as `{cheap}`"
        return [f"{ratio} ({most:,} against {least:,}): their endpoints are not at equal cost."]


def winner_of(names: Sequence[str], differences: Sequence[PolicyDifference], measure: str) -> str | None:
    """The one of `names` that is ahead of every other that it met on `measure`, each interval excluding
    zero."""
    decisive = [each for each in differences if each.measure == measure]
    for name in names:
        met = [each for each in decisive if name in (each.policy, each.against)]
        if met and all(each.ahead == name for each in met):
            return name
    return None


def difference_words(found: PolicyDifference) -> str:
    """Who is ahead, and whether the interval excludes zero."""
    measure = "the judge's win rate" if found.measure == WIN else found.measure
    if found.ahead is None:
        told = f"{interval(found.estimate, signed=True)}, the interval includes zero"
        return f"`{found.policy}` and `{found.against}` cannot be told apart on {measure}: {told}."
    behind = found.against if found.ahead == found.policy else found.policy
    value, low, high = found.estimate
    gap = found.estimate if found.ahead == found.policy else Estimate(value=-value, low=-high, high=-low)
    return (
        f"`{found.ahead}` is ahead of `{behind}` on {measure} by {interval(gap)}: the interval excludes zero."
    )


def interval(estimate: Estimate, *, signed: bool = False) -> str:
    """`0.23 [0.15, 0.31]`; with `signed` a plus before what is above zero."""
    sign = "+" if signed else ""
    return f"{estimate.value:{sign}.3g} [{estimate.low:{sign}.3g}, {estimate.high:{sign}.3g}]"


def _win_words(name: str, start: str, win: WinRate) -> list[str]:
    if win.rate is None or win.length_controlled is None:
        return [f"The judge gave too few valid verdicts on `{name}` for a win rate."]
    half = "excludes" if _off_half(win.rate) else "includes"
    lines = [
        f"The judge prefers `{name}` to `{start}` in {share(win.rate)} of pairs (the interval {half} one "
        f"half; {win.wins} wins, "
        f"{win.losses} losses, {win.ties} ties, {win.invalid} invalid); at equal length in "
        f"{share(win.length_controlled)}."
    ]
    if _off_half(win.rate) and not _off_half(win.length_controlled):
        lines.append(
            f"Length may explain that win rate of `{name}`: controlled for it, the interval includes one "
            "half."
        )
    return lines


def _turning(fit: OptimizationFit, gold: str) -> str:
    where = (fit.turning_point or 0.0) ** 2
    return (
        f"Best of K over-optimises: by the curve of Gao et al. (2022) through its points {gold} stops rising "
        f"at a KL of about {where:.2g} nats, within the K that were tried."
    )


def _off_half(estimate: Estimate) -> bool:
    return estimate.low > 0.5 or estimate.high < 0.5
