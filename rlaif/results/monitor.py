"""What a monitor read along a training: proxy, gold and KL on held-out prompts, how the texts drift, and
whether the proxy was over-optimised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rlaif.results.overoptimization import OptimizationFit, OptimizationPoint
from rlaif.stats import Estimate

__all__ = ["READINGS", "MonitorReading", "MonitorReport", "MonitoredTraining", "best_reading", "is_alarming"]

READINGS = "monitor.jsonl"
"""The file of a stage that has them, a row each."""
PLAIN = ("step", "kl", "length", "distinct_2", "refusal", "ended", "tokens", "seconds", "flops")
ESTIMATES = ("proxy", "gold")
PART = "part/"


@dataclass(frozen=True, slots=True)
class MonitorReading:
    """One look at a policy.

    Attributes:
        step: Steps of training done.
        kl: Exact KL to the reference, nats per completion.
        proxy, gold: Means over the prompts, with intervals over them.
        parts: The mean of each part of the reward, before its weight.
        length: Tokens per completion.
        distinct_2: Different pairs of neighbouring words over all such pairs, of all completions together.
        refusal: Share of completions that `metrics.refusal` finds: a word list, no judge.
        ended: Share that ended their turn themselves.
        tokens, seconds, flops: What the reading itself took; in no cost of the training.
    """

    step: int
    kl: float
    proxy: Estimate
    gold: Estimate
    parts: Mapping[str, float]
    length: float
    distinct_2: float
    refusal: float
    ended: float
    tokens: int
    seconds: float
    flops: float

    def as_row(self) -> dict[str, Any]:
        """Flat JSON values: a row of `monitor.jsonl`."""
        row: dict[str, Any] = {"step": self.step, "kl": self.kl}
        for name in ESTIMATES:
            value, low, high = getattr(self, name)
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        row |= {PART + name: value for name, value in self.parts.items()}
        return row | {name: getattr(self, name) for name in PLAIN[2:]}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> MonitorReading:
        """The reading of a row."""
        values: dict[str, Any] = {name: row[name] for name in PLAIN}
        for name in ESTIMATES:
            values[name] = Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"])
        parts = {name.removeprefix(PART): value for name, value in row.items() if name.startswith(PART)}
        return cls(**values, parts=parts)

    @property
    def point(self) -> OptimizationPoint:
        """Where it stands along √KL."""
        return OptimizationPoint(f"step {self.step}", self.kl, proxy=self.proxy, gold=self.gold)


def best_reading(readings: Sequence[MonitorReading]) -> MonitorReading:
    """The one of the highest gold, the earliest of several."""
    return max(readings, key=lambda each: (each.gold.value, -each.step))


def is_alarming(readings: Sequence[MonitorReading], patience: int) -> bool:
    """Whether at each of the last `patience` readings proxy was above, and gold below, what both were at the
    best gold reading, which is before them."""
    best = best_reading(readings)
    later = [each for each in readings if each.step > best.step][-patience:]
    return len(later) == patience and all(
        each.proxy.value > best.proxy.value and each.gold.value < best.gold.value for each in later
    )


@dataclass(frozen=True, slots=True)
class MonitorReport:
    """All readings of a training, with what they say.

    Attributes:
        patience: Readings in a row until the alarm.
        kept: The step whose policy was returned to, at the alarm or where training ran away; `None` where the
            last one stands.
        refused: Ids of held-out prompts that the policy cannot answer, with the reason; they are not read.
        further: Training began at another policy than the reference.
    """

    readings: tuple[MonitorReading, ...]
    patience: int
    kept: int | None = None
    refused: tuple[tuple[str, str], ...] = ()
    further: bool = False

    @property
    def alarms(self) -> tuple[int, ...]:
        """The steps at which the alarm began."""
        found = [is_alarming(self.readings[: end + 1], self.patience) for end in range(len(self.readings))]
        return tuple(
            each.step
            for each, now, before in zip(self.readings, found, [False, *found], strict=False)
            if now and not before
        )

    def fit(self, measure: str = "gold") -> OptimizationFit | None:
        """d (α − β log d) through the gains of `gold` or `proxy` over the first reading, d = √KL (Gao et al.
        2022, 2210.10760, eq. 2); `None` where training began elsewhere than at d = 0, or for too few
        readings."""
        if self.further:
            return None
        start = getattr(self.readings[0], measure).value
        # The first is the curve's origin; what its KL is not 0 by is rounding.
        later = self.readings[1:]
        gains = [(each.point.distance, getattr(each, measure).value - start) for each in later]
        return OptimizationFit.through("rl", gains)

    @property
    def words(self) -> tuple[str, ...]:
        """What the readings say, a sentence each."""
        if not self.readings:
            return ()
        found = [f"alarm at step {step}: {self._change_until(step)}" for step in self.alarms]
        if self.kept is not None:
            found.append(f"stopped early; the policy is that of step {self.kept}, {self._kept_words()}")
        return (*found, self._curve_words())

    def _kept_words(self) -> str:
        best = self.kept == best_reading(self.readings).step
        return "the best gold reading" if best else "which is not the best gold reading"

    def _curve_words(self) -> str:
        """Whether, and where, gold turns."""
        fit, curve = self.fit(), "by the curve of Gao et al. (2022) gold"
        if self.further:
            first = self.readings[0].kl
            return f"no curve: training began at a KL of {first:.2g} nats, and gold was not read at 0"
        if fit is None:
            return "no curve: it needs three readings at different KL above 0"
        if fit.turning_point is not None and fit.turning_point < fit.nearest:
            return f"{curve} falls throughout what was read"
        if fit.turning_point is None or not fit.seen:
            return f"{curve} does not turn within what was read"
        told = f"{curve} stops rising at a KL of about {fit.turning_point**2:.2g} nats, within what was read"
        golds = [each.gold for each in self.readings]
        if max(each.low for each in golds) <= min(each.high for each in golds):
            told += "; the intervals of all readings overlap, so that this may be chance"
        return told

    def _change_until(self, step: int) -> str:
        """How proxy and gold moved from the best reading before `step` to the one at it."""
        known = [each for each in self.readings if each.step <= step]
        return change_words(best_reading(known), known[-1])

    def as_dict(self) -> dict[str, Any]:
        """JSON values for `statistics.json`, without the readings, which are in `monitor.jsonl`."""
        fits = {measure: self.fit(measure) if self.readings else None for measure in ESTIMATES}
        return {
            "readings": len(self.readings),
            "best_step": best_reading(self.readings).step if self.readings else None,
            "kept_step": self.kept,
            "alarms": list(self.alarms),
            "refused": dict(self.refused),
            "fits": {name: _fitted(fit) for name, fit in fits.items()},
            "drift": self._drift(),
            "tokens": sum(each.tokens for each in self.readings),
            "seconds": sum(each.seconds for each in self.readings),
            "flops": sum(each.flops for each in self.readings),
            "words": list(self.words),
        }

    def _drift(self) -> dict[str, float]:
        """The last reading less the first."""
        if not self.readings:
            return {}
        cost = ("step", "tokens", "seconds", "flops")
        first, last = (self.readings[at].as_row() for at in (0, -1))
        return {
            name: last[name] - first[name]
            for name in first
            if name not in cost and not name.endswith(("_low", "_high"))
        }


class Turn(NamedTuple):
    """Where gold stops rising, by a curve."""

    kl: float
    """Nats per completion."""
    gold: float


@dataclass(frozen=True, slots=True)
class MonitoredTraining:
    """A training's readings as its stage left them: proxy and gold against √KL.

    Attributes:
        kept: The step whose policy was returned to; `None` where the last one stands.
        fit: Gao et al.'s curve through the gains in gold; `None` where there is none.
        words: What the readings say, a sentence each.
    """

    readings: tuple[MonitorReading, ...]
    kept: int | None
    fit: OptimizationFit | None
    words: tuple[str, ...]

    @classmethod
    def from_files(
        cls, rows: Sequence[Mapping[str, Any]], statistics: Mapping[str, Any]
    ) -> MonitoredTraining | None:
        """Of the rows of `monitor.jsonl` and the `monitor` of `statistics.json`; `None` without readings.

        Raises:
            KeyError, TypeError, ValueError: Something is missing, or of the wrong kind.
        """
        if not rows:
            return None
        return cls(
            readings=tuple(MonitorReading.from_row(row) for row in rows),
            kept=statistics["kept_step"],
            fit=_curve(statistics["fits"]["gold"]),
            words=tuple(map(str, statistics["words"])),
        )

    @property
    def turn(self) -> Turn | None:
        """Where gold stops rising by the curve, if that was read; else `None`."""
        if self.fit is None or self.fit.turning_point is None or not self.fit.seen:
            return None
        at = self.fit.turning_point
        return Turn(kl=at**2, gold=self.readings[0].gold.value + self.fit.gain(at))


def change_words(best: MonitorReading, last: MonitorReading) -> str:
    """How proxy and gold moved from one reading to another."""
    moved = (
        f"{name} {getattr(best, name).value:.3f} → {getattr(last, name).value:.3f}" for name in ESTIMATES
    )
    return f"proxy up, gold down since step {best.step}: {', '.join(moved)}"


def _curve(values: Mapping[str, Any] | None) -> OptimizationFit | None:
    """What `_fitted` wrote, back."""
    if values is None:
        return None
    return OptimizationFit("rl", *(float(values[name]) for name in ("alpha", "beta", "furthest", "nearest")))


def _fitted(fit: OptimizationFit | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    turning = fit.turning_point
    return {
        **{name: value for name, value in asdict(fit).items() if name != "method"},
        "curve": "d (alpha - beta log d), d = sqrt(KL)",
        "turning_point": turning,
        "turning_kl": None if turning is None else turning**2,
        "seen": fit.seen,
    }
