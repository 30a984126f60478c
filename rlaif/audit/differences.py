"""What swapping one constitution for another changes in the labels of one judge, and which principles make
the change.

Both sides are judged on the same comparisons by all of their principles, so that leaving a principle out
needs no new question: the label is the weighted mean of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from rlaif import stats
from rlaif.audit.cases import Case
from rlaif.audit.selection import mean_logit
from rlaif.errors import DataError
from rlaif.labels import sigmoid
from rlaif.types import Comparison, Constitution, Principle

__all__ = ["Change", "Difference", "Influence", "Mover", "Redundant", "Side", "changes", "difference"]

MOVERS = 20
"""Comparisons listed."""
REDUNDANT = 0.9
"""Pearson correlation of log-odds from which two principles of one constitution are called redundant."""
FEWEST = 10
"""Comparisons below which no correlation is told."""


class Side(NamedTuple):
    """One constitution and how it judged."""

    constitution: Constitution
    cases: Sequence[Case]


class Change(NamedTuple):
    """How a principle differs between the two files."""

    id: str
    change: Literal["added", "removed", "changed", "same"]


@dataclass(frozen=True, slots=True)
class Influence:
    """What leaving one principle out does.

    Attributes:
        side: `a`, `b`, or `both` for a principle that is the same in both.
        own_flips: Share of the labels of its own constitution that change without it (the mean of the two for
            `both`).
        drives: Share of flipped labels between A and B, less that share without the principle: above 0, it
            makes them differ.
    """

    id: str
    side: Literal["a", "b", "both"]
    change: str
    own_flips: float
    drives: float


@dataclass(frozen=True, slots=True)
class Mover:
    """A comparison whose label moves: P(first is better) under either constitution, and the principle that
    pulls hardest."""

    comparison_id: str
    prompt: str
    first: str
    second: str
    p_a: float
    p_b: float
    principle: str

    @property
    def flips(self) -> bool:
        """Whether the winner changes."""
        return (self.p_a - 0.5) * (self.p_b - 0.5) < 0


@dataclass(frozen=True, slots=True)
class Redundant:
    """Two principles of one constitution that say the same of these comparisons."""

    side: Literal["a", "b"]
    first: str
    second: str
    correlation: float


@dataclass(frozen=True, slots=True)
class Difference:
    """What swapping constitution A for B changes.

    Attributes:
        comparisons: How many were judged; `both` of them have a label on either side.
        flipped: Share of labels that change their winner, with its 95 % Wilson interval.
        kappa: Cohen's, between the winners.
        shift: Mean change of P(first is better), absolute.
        influences: By principle, what drives the difference most first.
        movers: The comparisons that move most.
    """

    a: str
    b: str
    judge: str
    protocol: str
    comparisons: int
    both: int
    flipped: stats.Estimate
    kappa: float
    shift: float
    correlation: float | None
    changes: tuple[Change, ...]
    influences: tuple[Influence, ...]
    redundant: tuple[Redundant, ...]
    movers: tuple[Mover, ...]


def difference(a: Side, b: Side, *, judge: str = "", protocol: str = "") -> Difference:
    """Compare two sides that judged the same comparisons, in the same order, by all principles.

    Raises:
        DataError: They judged different comparisons, or none has a label on both sides.
    """
    if [case.pair.comparison.id for case in a.cases] != [case.pair.comparison.id for case in b.cases]:
        raise DataError(
            "the two constitutions judged different comparisons",
            remedy="judge the same ones, in the same order",
        )
    rows = [
        (x.logit_a, y.logit_a, x, y)
        for x, y in zip(a.cases, b.cases, strict=True)
        if x.logit_a is not None and y.logit_a is not None
    ]
    if not rows:
        raise DataError(
            f"none of {len(a.cases)} comparisons has a label under both constitutions",
            remedy="see why with rlaif audit",
        )
    winners = [(x > 0, y > 0) for x, y, _, _ in rows]
    flipped = sum(x != y for x, y in winners)
    changed = changes(a.constitution, b.constitution)
    return Difference(
        a=a.constitution.name,
        b=b.constitution.name,
        judge=judge,
        protocol=protocol,
        comparisons=len(a.cases),
        both=len(rows),
        flipped=stats.wilson(flipped, len(rows)),
        kappa=stats.cohen_kappa([x for x, _ in winners], [y for _, y in winners]),
        shift=math.fsum(abs(sigmoid(x) - sigmoid(y)) for x, y, _, _ in rows) / len(rows),
        correlation=_correlation([x for x, _, _, _ in rows], [y for _, y, _, _ in rows]),
        changes=changed,
        influences=_influences(a, b, changed),
        redundant=(*_redundant(a, "a"), *_redundant(b, "b")),
        movers=_movers(a, b, [(x, y) for _, _, x, y in rows]),
    )


def changes(a: Constitution, b: Constitution) -> tuple[Change, ...]:
    """What became of each principle: those of A in their order, then those only in B."""
    ours, theirs = ({each.id: each for each in side.principles} for side in (a, b))
    found = []
    for id, principle in ours.items():
        other = theirs.get(id)
        found.append(
            Change(
                id,
                "removed"
                if other is None
                else "same"
                if other.meaning() == principle.meaning()
                else "changed",
            )
        )
    return (*found, *(Change(id, "added") for id in theirs if id not in ours))


def _influences(a: Side, b: Side, changed: Sequence[Change]) -> tuple[Influence, ...]:
    same = {each.id for each in changed if each.change == "same"}
    kinds = {each.id: each.change for each in changed}
    whole = _labels(a), _labels(b)
    base = _flips(*whole)
    found = []
    for id in kinds:
        sides: list[Literal["a", "b", "both"]] = ["both"] if id in same else []
        if id not in same:
            sides += ["a"] if id in _ids(a) else []
            sides += ["b"] if id in _ids(b) else []
        for side in sides:
            without_a = _labels(a, without=id) if side != "b" else whole[0]
            without_b = _labels(b, without=id) if side != "a" else whole[1]
            own = [_flips(whole[0], without_a)] * (side != "b") + [_flips(whole[1], without_b)] * (
                side != "a"
            )
            found.append(
                Influence(
                    id=id,
                    side=side,
                    change=kinds[id],
                    own_flips=math.fsum(own) / len(own),
                    drives=base - _flips(without_a, without_b),
                )
            )
    return tuple(sorted(found, key=lambda each: (-each.drives, -each.own_flips, each.id, each.side)))


def _labels(side: Side, without: str = "") -> list[float | None]:
    """Log-odds of every label; where a principle is left out and none remains, there is no label."""
    weights = _weights(side.constitution)
    kept = [id for id in weights if id != without]
    return [mean_logit(case, kept, weights) for case in side.cases]


def _flips(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """Share of labels that change their winner, among those that are on both sides; 0 when there are none."""
    both = [(x, y) for x, y in zip(first, second, strict=True) if x is not None and y is not None]
    return sum((x > 0) != (y > 0) for x, y in both) / len(both) if both else 0.0


def _redundant(side: Side, name: Literal["a", "b"]) -> list[Redundant]:
    columns = {id: [case.by_principle.get(id) for case in side.cases] for id in _ids(side)}
    found = []
    for first, second in combinations(columns, 2):
        rows = [
            (x, y)
            for x, y in zip(columns[first], columns[second], strict=True)
            if x is not None and y is not None
        ]
        correlation = _correlation([x for x, _ in rows], [y for _, y in rows])
        if correlation is not None and correlation >= REDUNDANT:
            found.append(Redundant(side=name, first=first, second=second, correlation=correlation))
    return sorted(found, key=lambda each: -each.correlation)


def _correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's; `None` for fewer than `FEWEST` rows, or where a side never varies."""
    if len(first) < FEWEST or np.std(first) < 1e-12 or np.std(second) < 1e-12:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _movers(a: Side, b: Side, rows: Sequence[tuple[Case, Case]]) -> tuple[Mover, ...]:
    found = [_mover(a, b, ours, theirs) for ours, theirs in rows]
    return tuple(sorted(found, key=lambda each: (-abs(each.p_a - each.p_b), each.comparison_id))[:MOVERS])


def _mover(a: Side, b: Side, ours: Case, theirs: Case) -> Mover:
    assert ours.logit_a is not None
    assert theirs.logit_a is not None
    pulls = _pulls(a.constitution, ours, -1.0)
    for id, pull in _pulls(b.constitution, theirs, 1.0).items():
        pulls[id] = pulls.get(id, 0.0) + pull
    # The pulls add up to the whole move; the one that goes furthest its way is the one to read.
    way = 1.0 if theirs.logit_a >= ours.logit_a else -1.0
    comparison = ours.pair.comparison
    return Mover(
        comparison_id=comparison.id,
        prompt=_last_turn(comparison),
        first=comparison.a.text,
        second=comparison.b.text,
        p_a=sigmoid(ours.logit_a),
        p_b=sigmoid(theirs.logit_a),
        principle=max(pulls, key=lambda id: way * pulls[id]),
    )


def _pulls(constitution: Constitution, case: Case, sign: float) -> dict[str, float]:
    """By principle, its share of the label's log-odds, signed."""
    weights = _weights(constitution)
    valid = {id: logit for id, logit in case.by_principle.items() if logit is not None}
    total = math.fsum(weights[id] for id in valid)
    return {id: sign * weights[id] * logit / total for id, logit in valid.items()}


def _last_turn(comparison: Comparison) -> str:
    return comparison.prompt.messages[-1].content


def _weights(constitution: Constitution) -> Mapping[str, float]:
    return {each.id: each.weight for each in constitution.principles}


def _ids(side: Side) -> list[str]:
    principles: tuple[Principle, ...] = side.constitution.principles
    return [each.id for each in principles]
