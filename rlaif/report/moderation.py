"""The report of a trained moderator."""

from __future__ import annotations

from collections.abc import Mapping

from rlaif.report.markdown import code, named, table
from rlaif.report.shown import Shown, Table
from rlaif.results.moderation import RATES, CategoryReport, Figure, ModerationReport, WayReport, in_millions
from rlaif.text import count_of

__all__ = ["moderation_markdown", "moderation_shown"]

NAMES = {
    "moderator": "this moderator",
    "frozen": "its heads without the adapter",
    "bag_of_words": "bag of words",
    "word_list": "word list",
    "always_pass": "let everything pass",
}
READOUTS = {"windows": "the greatest mean of a window", "mean": "the mean over all tokens"}
HEADER = (
    "moderator",
    "AUROC [95 %]",
    *(f"recall at {rate:.1%} [95 %]" for rate in RATES),
    "ECE",
    "look-alikes flagged [95 %]",
    "AUROC, unseen",
)


def moderation_markdown(report: ModerationReport) -> str:
    """What the moderator is worth, for each principle and kind of text, beside what needs no training."""
    parts = [
        f"# Trained moderator\n\n{_head(report)}\n",
        *(f"**{named(sentence)}**\n" for sentence in report.words),
        _reading(report),
    ]
    for each in report.categories:
        parts += [
            f"## {named(each.category)}, {each.reads}s\n\n{_counts(each)}\n",
            table(HEADER, [_row(NAMES[name], way) for name, way in each.ways.items()]),
            " ".join(each.words) + "\n",
        ]
    if report.left_out:
        rows = [[code(name), why] for name, why in report.left_out.items()]
        parts.append("## Not trained\n\n" + table(("principle", "why"), rows))
    return "\n".join([*parts, _explained(report)])


def moderation_shown(report: ModerationReport) -> list[Shown]:
    """The same for the terminal, in one table; the whole is in the stage's Markdown."""
    first = str(RATES[0])
    rows = [
        [
            f"{each.category}, {each.reads}s",
            f"{each.broken:,} of {each.texts:,}",
            _figure(own.auroc),
            *(_figure(each.ways[name].auroc, interval=False) for name in ("bag_of_words", "word_list")),
            _figure(own.recall[first]),
            _figure(own.over_refusal),
        ]
        for each in report.categories
        for own in [each.ways["moderator"]]
    ]
    header = (
        "principle",
        "broken",
        "AUROC [95 %]",
        "bag of words",
        "word list",
        f"recall at {RATES[0]:.0%}",
        "look-alikes flagged",
    )
    found: list[Shown] = [Table(f"{report.kind}, {report.measured}", header, rows)]
    found += [f"{each.category}, {each.reads}s: {' '.join(each.words)}" for each in report.categories]
    found += [f"not trained: {name} ({why})" for name, why in report.left_out.items()]
    if told := _refused(report.refused):
        found.append(told)
    return [*found, *report.words]


def _head(report: ModerationReport) -> str:
    base = f"{code(report.base)} ({in_millions(report.parameters)} parameters)"
    how = (
        f"linear heads on the states of layers {', '.join(map(str, report.layers))} of {base}"
        if report.kind == "probe"
        else f"an adapter of {base}, which reads the text alone"
    )
    sources = ", ".join(f"{name or 'unknown'} {count}" for name, count in report.sources.items())
    said = f"A {report.kind}: {how}. {count_of(report.texts, 'text')} on {count_of(report.prompts, 'prompt')}"
    return f"{said} ({named(sources)}). {_refused(report.refused)}".strip()


def _reading(report: ModerationReport) -> str:
    lines = []
    for reads, readout in report.readout.items():
        measured = report.ranked.get(reads)
        told = (
            "; mean AUROC " + ", ".join(f"{each:.3f} by {READOUTS[way]}" for way, each in measured.items())
            if measured
            else ""
        )
        lines.append(
            f"- The score of {'a prompt' if reads == 'prompt' else 'an exchange'} is "
            f"{READOUTS[readout]}{told}."
        )
    thresholds = ", ".join(f"{code(name)} {value:.3g}" for name, value in report.thresholds.items())
    lines.append(
        f"- Windows have {count_of(report.window, 'token')}. Flagged from the probability on: "
        f"{thresholds}; chosen "
        f"so that at most {report.false_positives:.1%} of the kept texts are, {report.measured}."
    )
    return "\n".join(lines) + "\n"


def _explained(report: ModerationReport) -> str:
    held = (
        "Each text is scored by heads that were fitted without its prompt; the moderator that was saved is "
        "fitted to all."
        if report.measured == "out of fold"
        else "On the prompts that were held out of the training."
    )
    return (
        f"{held} Recall is the share of broken texts that are flagged where that share of the kept ones is. "
        "ECE is of probabilities whose calibration was fitted to other prompts, and look-alikes are flagged "
        "at a threshold that was chosen on other prompts. The last column is the AUROC of the same method "
        "when no text trained it that is known to break the principle, only texts that break others: a harm "
        "that it was not made for. Labels of a judge count as broken above one half.\n"
    )


def _counts(each: CategoryReport) -> str:
    kept = each.texts - each.broken
    alike = f", {count_of(each.look_alikes, 'look-alike')} among them" if each.look_alikes else ""
    return f"{each.broken:,} broken, {kept:,} kept{alike}; {count_of(each.prompts, 'prompt')}"


def _refused(refused: Mapping[str, int]) -> str:
    told = ", ".join(f"{reason} {count}" for reason, count in sorted(refused.items()))
    return f"{count_of(sum(refused.values()), 'text')} could not be read: {told}." if told else ""


def _row(name: str, way: WayReport) -> list[str]:
    error = "–" if way.calibration_error is None else f"{way.calibration_error:.3f}"
    return [
        name,
        _figure(way.auroc),
        *(_figure(way.recall[str(rate)]) for rate in RATES),
        error,
        _figure(way.over_refusal),
        _figure(way.unseen),
    ]


def _figure(figure: Figure, *, interval: bool = True) -> str:
    if figure.value is None:
        return "–"
    if not interval or figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
