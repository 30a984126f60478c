"""How the judges of a jury answered, each by itself, and how they agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.report.shown import Shown, Table
from rlaif.text import count_of

__all__ = ["jury_shown"]


def jury_shown(statistics: Mapping[str, Any]) -> list[Shown]:
    """Tables of the judges and of every two of them, and a line on what they disagree; nothing where one
    judged."""
    jury = statistics.get("jury")
    if jury is None:
        return []
    comparisons = statistics["comparisons"]
    line = f"the judges disagree on {jury['disagreed']:,} of {count_of(comparisons, 'comparison')}"
    if jury["alpha"] is not None:
        line += f"; Krippendorff's α {jury['alpha']:.2f} (1: they agree in all, 0: as by chance)"
    return [_judges(jury["judges"]), _pairs(jury["pairs"]), line]


def _judges(judges: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        (
            name,
            f"{each['weight']:.3g}",
            f"{each['labelled']:,}",
            f"{each['unlabelled']:,}",
            f"{each['recused']:,}",
            _rate(each["tie_rate"]),
            "-" if each["mean_strength"] is None else f"{each['mean_strength']:.3f}",
            _rate(each["flip_rate"]),
            _rate(each["first_rate"]),
        )
        for name, each in judges.items()
    ]
    header = (
        "judge",
        "weight",
        "labelled",
        "without a label",
        "recused",
        "ties",
        "mean strength",
        "flip rate",
        "first shown wins",
    )
    return Table("the judges of the jury", header, rows)


def _pairs(pairs: list[Mapping[str, Any]]) -> Table:
    rows = [
        (
            " / ".join(each["judges"]),
            f"{each['rows']:,}",
            _rate(each["agreement"]),
            _rate(each["chance"]),
            "-" if each["kappa"] is None else f"{each['kappa']:.2f}",
        )
        for each in pairs
    ]
    header = ("judges", "both decided", "same side", "by chance", "Cohen's κ")
    return Table("agreement of every two", header, rows)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
