"""What rounds of sampling, labelling and training did, as frozen values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rlaif.audit.cases import plain
from rlaif.results.comparison import interval
from rlaif.results.evaluation import REWARD
from rlaif.stats import Estimate

__all__ = ["Against", "Gain", "Prompts", "Round", "Rounds", "Share"]

Against = Literal["previous", "start"]
Prompts = Literal["fixed", "fresh"]


class Gain(NamedTuple):
    """A policy's difference on held-out prompts, paired by prompt.

    Attributes:
        prompts: `fixed`, the same in every round; or `fresh`, never used before.
    """

    measure: str
    against: Against
    prompts: Prompts
    estimate: Estimate


class Share(NamedTuple):
    """How many of how many, with Wilson's interval; of a judge's, over prompts (`stats.ClusteredShare`)."""

    of: int
    estimate: Estimate


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        policy: Folder of the adapter that it made, below the run's.
        gold: Mean of the gold measure on the fixed prompts; `None` without one.
        kl: To the model without any adapter, nats a completion.
        overfit: The gain over the start on the fixed prompts less that on the fresh ones, gold.
        reward: Share of pairs that reward models rank as the judge does: `fresh`, this round's pairs by the
            model of the round before; `before` and `now`, those of them that were held out, by that model and
            by this round's.
        judge: `flips` between the two orders, `ties`, `invalid` verdicts, on this round's pairs.
    """

    number: int
    policy: str
    measure: str
    gold: Estimate | None
    kl: Estimate | None
    gains: tuple[Gain, ...]
    overfit: Estimate | None = None
    reward: Mapping[str, Share] = field(default_factory=dict)
    judge: Mapping[str, Share] = field(default_factory=dict)

    def gain(self, measure: str, against: Against, prompts: Prompts = "fixed") -> Estimate | None:
        """A difference, if it was measured."""
        key = (measure, against, prompts)
        return next((each.estimate for each in self.gains if each[:3] == key), None)

    @property
    def has_gained(self) -> bool:
        """Whether gold rose over the round before by more than its interval."""
        gain = self.gain(self.measure, "previous")
        return gain is not None and gain.low > 0

    def words(self, before: Round | None) -> Iterator[str]:
        """The answers, a sentence each.

        Args:
            before: The round before this one.
        """
        yield from self._gold()
        yield from self._proxy()
        yield from self._overfit()
        yield from self._reward()
        yield from self._judge(before)

    def _gold(self) -> Iterator[str]:
        last, start = (self.gain(self.measure, against) for against in ("previous", "start"))
        if start is None:
            yield f"Round {self.number}: no gold measure was taken; give `evaluate` a `gold`."
            return
        over = f"{interval(start, signed=True)} over the start ({_verdict(start)})"
        if self.number > 1 and last is not None:
            over = f"{interval(last, signed=True)} over round {self.number - 1} ({_verdict(last)}), {over}"
        yield f"Round {self.number}: {self.measure} {over}."

    def _proxy(self) -> Iterator[str]:
        proxy, gold = (self.gain(name, "previous") for name in (REWARD, self.measure))
        if proxy is not None and gold is not None and proxy.low > 0 and not gold.low > 0:
            yield (
                f"The proxy runs ahead of gold: the reward rose by {interval(proxy, signed=True)} in this "
                f"round, {self.measure} by {interval(gold, signed=True)}."
            )

    def _overfit(self) -> Iterator[str]:
        if self.overfit is not None:
            found = (
                "the gain is of the prompts that every round is measured on"
                if self.overfit.low > 0
                else "no sign that the gain is of the fixed prompts alone"
            )
            yield f"Fixed less fresh prompts: {interval(self.overfit, signed=True)}: {found}."

    def _reward(self) -> Iterator[str]:
        if "fresh" not in self.reward:
            return
        said = f"{_share(self.reward['fresh'])} of {self.reward['fresh'].of} new pairs"
        line = f"The reward model of the round before ranks {said} as the judge does"
        if "now" in self.reward:
            line += (
                f"; of the {self.reward['now'].of} held out {_share(self.reward['before'])}, and the new one "
                f"{_share(self.reward['now'])}"
            )
        yield f"{line}."

    def _judge(self, before: Round | None) -> Iterator[str]:
        if before is None:
            return
        moved = [
            f"{name} {_share(before.judge[name])} → {_share(now)}"
            for name, now in self.judge.items()
            if name in before.judge and _apart(before.judge[name].estimate, now.estimate)
        ]
        if moved:
            yield f"The judge behaves otherwise on the new policy: {', '.join(moved)}."


@dataclass(frozen=True)
class Rounds:
    """A run of several rounds.

    Attributes:
        best: Number of the round whose policy is kept.
        stopped: Why it ended before its last round; empty when it did not.
    """

    rounds: tuple[Round, ...]
    best: int
    stopped: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values, the answers in words too."""
        found: dict[str, Any] = plain(self)
        for number, values in enumerate(found["rounds"]):
            values["answers"] = list(self.words(number))
        return found

    @property
    def kept(self) -> str:
        """Which policy is kept, and whether it is better than the start policy."""
        best = next(each for each in self.rounds if each.number == self.best)
        gain, line = best.gain(best.measure, "start"), f"The policy of round {self.best} is kept"
        if gain is None or gain.low > 0:
            return f"{line}."
        over = f"{interval(gain, signed=True)} over it"
        if gain.high < 0:
            return f"{line}, but the start policy is better: {over}."
        return f"{line}, but it is not told from the start policy: {over}."

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rounds:
        """What `as_dict` gave, back.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: Something is missing, or of the wrong kind.
        """
        rounds = tuple(_round(each) for each in values["rounds"])
        if not rounds:
            raise ValueError("there is no round")
        return cls(rounds, best=int(values["best"]), stopped=str(values["stopped"]))

    def words(self, place: int) -> Iterator[str]:
        """The answers of the round at a place, counted from 0."""
        yield from self.rounds[place].words(self.rounds[place - 1] if place else None)


def _round(values: Mapping[str, Any]) -> Round:
    reward, judge = (
        {name: Share(each["of"], _estimate(each["estimate"])) for name, each in values[shares].items()}
        for shares in ("reward", "judge")
    )
    gold, kl, overfit = (
        None if values[name] is None else _estimate(values[name]) for name in ("gold", "kl", "overfit")
    )
    return Round(
        number=int(values["number"]),
        policy=str(values["policy"]),
        measure=str(values["measure"]),
        gains=tuple(Gain(**{**each, "estimate": _estimate(each["estimate"])}) for each in values["gains"]),
        gold=gold,
        kl=kl,
        overfit=overfit,
        reward=reward,
        judge=judge,
    )


def _estimate(values: Mapping[str, float | None]) -> Estimate:
    """JSON has null for what is not finite."""
    found = (values[name] for name in Estimate._fields)
    return Estimate(*(math.nan if each is None else float(each) for each in found))


def _verdict(gain: Estimate) -> str:
    if gain.low > 0:
        return "improved"
    return "fell" if gain.high < 0 else "not told from no change"


def _share(found: Share) -> str:
    value, low, high = (100 * each for each in found.estimate)
    return f"{value:.0f} % [{low:.0f}, {high:.0f}]"


def _apart(one: Estimate, other: Estimate) -> bool:
    return one.high < other.low or other.high < one.low
