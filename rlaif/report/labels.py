"""What became of the comparisons of a label stage, and how the judge answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.judging.informative import LabelFacts, doubts
from rlaif.report.shown import Table, Texts

__all__ = [
    "facts_of",
    "grade_of",
    "labelled",
    "labelled_pairs",
    "statistics_line",
    "statistics_table",
    "warnings_about",
]

COLUMNS = (
    "principle",
    "verdicts",
    "invalid",
    "flip rate",
    "first shown wins",
    "mean strength",
    "labels hold",
)


def labelled(counts: Mapping[str, int]) -> str:
    """What became of the comparisons, in a line; only what happened is told."""
    kept, asked = counts["preferences"], counts["comparisons"]
    without = {
        "without a label": counts["unlabelled"],
        "too weak (weak.jsonl)": counts.get("weak", 0),
        "not best against worst": counts["not_best_worst"],
    }
    before = {
        "identical pairs": counts["identical_pairs"],
        "repeated pairs": counts["repeated_pairs"],
        "pairs not drawn": counts["pairs_not_drawn"],
        "rows that cannot be read": counts.get("bad_rows", 0),
    }
    lost = [f"{count:,} {reason}" for reason, count in without.items() if count]
    share = f"{kept:,}" if not lost else f"{kept:,} of {asked:,}"
    line = f"{share} comparison{'' if asked == 1 else 's'} labelled, {', '.join(lost) or 'none left out'}"
    left = [f"{count:,} {reason}" for reason, count in before.items() if count]
    return f"{line}; not judged: {', '.join(left)}" if left else line


def statistics_table(statistics: Mapping[str, Any]) -> Table:
    """The verdicts by principle, and over all of them, under the grade of the judge."""
    rows = [(name, *_cells(row)) for name, row in statistics["principles"].items()]
    grade = grade_of(statistics)
    title = f"grade of the judge: {grade}" if grade else ""
    return Table(title, COLUMNS, [*rows, ("all", *_cells(statistics))], total=True)


def grade_of(statistics: Mapping[str, Any]) -> str:
    """The grade of the judge, or `not audited`; empty in files of versions that did not ask."""
    return str(statistics.get("audit", {}).get("grade", ""))


def facts_of(statistics: Mapping[str, Any]) -> LabelFacts:
    """What the counts of a label stage say of its labels."""
    verdicts = statistics["verdicts"]
    return LabelFacts(
        tie_rate=statistics["tie_rate"],
        flip_rate=statistics["flip_rate"],
        invalid_rate=statistics["invalid"] / verdicts if verdicts else None,
        grade=grade_of(statistics),
    )


def statistics_line(statistics: Mapping[str, Any]) -> str:
    """How many labels are ties, and how strong they are."""
    ties, strength = _rate(statistics["tie_rate"]), _number(statistics["mean_strength"])
    return (
        f"ties {ties} (within 0.005 of one half)   mean label strength {strength} "
        "(|p - 0.5|: 0 is undecided, 0.5 is certain)"
    )


def warnings_about(statistics: Mapping[str, Any]) -> list[str]:
    """What must not be overlooked before one trains on the labels: what the audit said, and what the labels
    themselves show."""
    told = str(statistics.get("audit", {}).get("line", ""))
    return [*([told] if told else []), *(f"warning: {doubt.words}" for doubt in doubts(facts_of(statistics)))]


def labelled_pairs(rows: Sequence[Mapping[str, Any]]) -> list[Texts]:
    """Preferences to read: the prompt, the chosen completion and the rejected one."""
    return [
        Texts(
            row["id"],
            f"p(chosen) = {row['p_chosen']:z.3f}",
            [(name, row[name][-1]["content"]) for name in ("prompt", "chosen", "rejected")],
        )
        for row in rows
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    counts = [str(row["verdicts"]), str(row["invalid"])]
    rates = [_rate(row["flip_rate"]), _rate(row["first_rate"]), _number(row["mean_strength"])]
    return [*counts, *rates, _rate(row.get("mean_label_share"))]


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:z.3f}"
