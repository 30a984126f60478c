"""The judges of a jury, as a label stage names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from rlaif.config.protocol import ProtocolName
from rlaif.config.settings import Settings

__all__ = ["JudgeSeat", "NamedJudges", "check_seats", "seats_of"]


class JudgeSeat(Settings):
    """One judge of a jury."""

    model: str = Field(min_length=1)
    """Model that judges: what `judge` can name alone."""

    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """What its label weighs beside the others'; at 0 it is asked and shown, and decides nothing."""

    protocol: ProtocolName | None = None
    """How it is asked; as the stage says when left out."""

    recuse: tuple[str, ...] = ()
    """Policies whose completions it does not judge: patterns as of file names, `Qwen/*`."""

    @property
    def name(self) -> str:
        """Under which its verdicts stand."""
        return self.model if self.protocol is None else f"{self.model}, {self.protocol}"


NamedJudges = str | tuple[str | JudgeSeat, ...] | None
"""One judge, several, or none."""


def check_seats(seats: Sequence[JudgeSeat]) -> None:
    """Refuse a jury in which one judge sits twice, or none has a weight.

    Raises:
        ValueError: It is one.
    """
    names = [seat.name for seat in seats]
    if not names:
        raise ValueError("the list of judges is empty: name a model, or leave `judge` out")
    if double := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"judge {double[0]!r} is named twice; ask it once, or by another `protocol`")
    if not any(seat.weight for seat in seats):
        raise ValueError("no judge has a weight above 0")


def seats_of(judge: NamedJudges, default: str) -> tuple[JudgeSeat, ...]:
    """The judges that a setting names, `default` where it names none."""
    if isinstance(judge, tuple):
        return tuple(JudgeSeat(model=each) if isinstance(each, str) else each for each in judge)
    return (JudgeSeat(model=judge or default),)
