"""What training a policy took, and how its reward rose with that: frozen values that a stage notes and a
comparison reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from rlaif.errors import DataError

__all__ = ["CurvePoint", "TrainingCost", "curve_of"]


class CurvePoint(NamedTuple):
    """A policy in the middle of its training: what it had taken until then, and how it did."""

    tokens: float
    """Generated until then."""
    seconds: float
    value: float


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """What it took to train a policy, from the start policy on: rollouts or samples, scoring and updates;
    reports are not counted.

    Attributes:
        tokens: Generated.
        flops: Estimated as `rlaif.models.cost` says; `None` where they were not counted.
        peak_bytes: Most memory held; `None` where it was not measured.
        curve: Points in order of cost; empty where there was only one, the start or the end.
        shows: What the curve's values are, in words.
        basis: Digest of what values depend on beside the policy: the reward, and how is sampled. Only curves
            of one basis compare.
    """

    tokens: int
    seconds: float
    flops: float | None = None
    peak_bytes: int | None = None
    curve: tuple[CurvePoint, ...] = ()
    shows: str = ""
    basis: str = ""

    def after(self, before: TrainingCost) -> TrainingCost:
        """This cost, from the start policy on, of training that began where one that took `before` ended: its
        curve begins there."""
        flops = None if self.flops is None or before.flops is None else before.flops + self.flops
        peaks = [each for each in (before.peak_bytes, self.peak_bytes) if each is not None]
        curve = [
            CurvePoint(before.tokens + point.tokens, before.seconds + point.seconds, point.value)
            for point in self.curve
        ]
        return replace(
            self,
            tokens=before.tokens + self.tokens,
            seconds=before.seconds + self.seconds,
            flops=flops,
            peak_bytes=max(peaks, default=None),
            curve=tuple(curve),
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"curve": [point._asdict() for point in self.curve]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "") -> TrainingCost:
        """What `as_dict` gave, back.

        Args:
            where: The file it was read from, for messages.

        Raises:
            DataError: Something is missing, or of the wrong kind.
        """
        try:
            return cls(**{**values, "curve": tuple(CurvePoint(**point) for point in values.get("curve", ()))})
        except (TypeError, AttributeError) as error:
            remedy = "run the stage that wrote it again"
            raise DataError(f"this is not a training cost: {error}", where=where, remedy=remedy) from error


def curve_of(points: Iterable[CurvePoint]) -> tuple[CurvePoint, ...]:
    """The points; none where there is only one, which is no curve."""
    found = tuple(points)
    return found if len(found) > 1 else ()
