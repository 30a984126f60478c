"""What an audit looks at: comparisons, with what people said of them where they did, and the judge's verdicts
on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from math import isfinite
from typing import Any, NamedTuple

from rlaif.digest import unit_from
from rlaif.judging.aggregate import principle_logit
from rlaif.judging.judge import Judge
from rlaif.types import Comparison, Verdict

__all__ = ["Case", "Pair", "judge_pairs", "plain", "turn_half"]


class Pair(NamedTuple):
    """A comparison, and who won it in the eyes of people.

    Attributes:
        a_wins: 1 where `a` is the better one, 0 where `b` is; `None` where nobody has said.
    """

    comparison: Comparison
    a_wins: float | None = None

    @property
    def length_difference(self) -> int:
        """Characters of `a` less those of `b`."""
        return len(self.comparison.a.text) - len(self.comparison.b.text)

    def swap(self) -> Pair:
        """The same pair with `a` and `b` exchanged; its own inverse."""
        return Pair(
            comparison=self.comparison.swap(), a_wins=None if self.a_wins is None else 1 - self.a_wins
        )


@dataclass(frozen=True)
class Case:
    """A pair and how it was judged.

    Attributes:
        logit_a: Log-odds of its label (nats), over all principles asked; `None` when none was valid.
    """

    pair: Pair
    verdicts: tuple[Verdict, ...]
    logit_a: float | None

    @cached_property
    def by_principle(self) -> Mapping[str, float | None]:
        """Log-odds by principle, both orders averaged; `None` where a verdict is invalid."""
        grouped: dict[str, list[Verdict]] = defaultdict(list)
        for verdict in self.verdicts:
            grouped[verdict.principle_id].append(verdict)
        return {name: principle_logit(group) for name, group in grouped.items()}


def turn_half(pairs: Iterable[Pair], *, seed: int) -> list[Pair]:
    """The pairs in their order, every second one of a hash order turned.

    A file of chosen and rejected names the better one first; turned so, "always the first" is right half the
    time, as it should be. The hash decides which ones, so that nothing in the order of the file can matter.
    """
    rows = list(pairs)
    ranked = sorted(range(len(rows)), key=lambda row: (unit_from(seed, "turn", rows[row].comparison.id), row))
    turned = set(ranked[1::2])
    return [pair.swap() if row in turned else pair for row, pair in enumerate(rows)]


def judge_pairs(judge: Judge, pairs: Sequence[Pair]) -> Iterator[Case]:
    """Each pair with its verdicts, in order."""
    for pair, judged in zip(pairs, judge.judge(pair.comparison for pair in pairs), strict=True):
        yield Case(pair=pair, verdicts=judged.verdicts, logit_a=judged.logit_a)


def plain(value: Any) -> Any:
    """`value` as JSON: frozen values become objects by field name, a number that is not finite becomes
    null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
