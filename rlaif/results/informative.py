"""Whether preferences that were read say enough to learn from, by `rlaif.judging.informative`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

from rlaif.errors import DataError
from rlaif.judging.informative import LabelFacts, doubts
from rlaif.results.preferences import PreferencePair

__all__ = ["Uninformative", "check_informative", "facts_of"]

Uninformative = Literal["refuse", "allow"]


def facts_of(pairs: Sequence[PreferencePair]) -> LabelFacts:
    """Ties, flips and invalid verdicts of the pairs that have a weight."""
    said = [pair.said for pair in pairs if pair.weight]
    grades = {each.grade for each in said}
    return LabelFacts(
        tie_rate=_rate(sum(each.tie for each in said), len(said)),
        flip_rate=_rate(sum(each.flips for each in said), sum(each.both_orders for each in said)),
        invalid_rate=_rate(sum(each.invalid for each in said), sum(each.verdicts for each in said)),
        grade=grades.pop() if len(grades) == 1 else "",
    )


def check_informative(
    pairs: Sequence[PreferencePair], *, uninformative: Uninformative, note: Callable[[str], None]
) -> None:
    """Refuse labels that say nothing, each source by itself: good labels beside them do not mend them.

    Args:
        note: Told what is doubtful of labels that are learned from.

    Raises:
        DataError: A source's labels say nothing, and `uninformative` is `refuse`.
    """
    sources: dict[str, list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        sources[pair.source].append(pair)
    for source, own in sources.items():
        facts = facts_of(own)
        found = doubts(facts)
        grave = [doubt.words for doubt in found if doubt.grave]
        if grave and uninformative == "refuse":
            raise DataError(
                f"these labels say nothing: {grave[0]}",
                where=source or "preferences",
                remedy="label with a judge that `rlaif audit` does not advise against, or go on all the "
                "same: --uninformative allow (uninformative: allow)",
            )
        prefix = f"warning: {source}: " if source else "warning: "
        for doubt in found:
            note(f"{prefix}{doubt.words}")
        if facts.grade == "do not use" and not grave:
            note(f"{prefix}an audit graded the judge of these labels: do not use")


def _rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None
