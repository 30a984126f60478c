"""The report of a trained judge."""

from __future__ import annotations

from rlaif.report.markdown import table
from rlaif.report.shown import Shown, Table
from rlaif.results.judge import JudgeReport
from rlaif.results.reward import Breakdown, Scored
from rlaif.text import count_of

__all__ = ["judge_markdown", "judge_shown", "told_from_chance"]

WAYS = {"trained": "trained", "untrained": "untrained", "shorter": "the shorter one wins"}
MEASURED = {"probe": " (out of fold)", "lora": " (on pairs held out)", "generative": " (on pairs held out)"}
CHANCE = 0.5


def judge_markdown(report: JudgeReport) -> str:
    """What the judge is worth, beside what needs no training."""
    ways = _ways(report)
    how = (
        f"layer {report.layer} of {report.layers} is read"
        if report.kind == "probe"
        else f"an adapter, trained on all but {report.held_out} of them; temperature {report.scale:.3g}"
    )
    measured = (
        "Out of fold: each pair by a head that was fitted without its prompt. The judge that was saved is "
        "fitted to all pairs.\n"
        if report.kind == "probe"
        else "On the pairs held out, before the temperature, which is fitted to them.\n"
    )
    parts = [
        f"# Trained judge\n\n{report.pairs} pairs on {report.prompts} prompts; {how}. {_refused(report)}\n",
        table(ways.header, ways.rows),
        measured,
    ]
    if report.reasonings:
        parts.append(f"Reasonings: {_reasonings(report)}.\n")
    if report.invalid:
        parts.append(f"{_invalid(report).capitalize()}.\n")
    if report.sources:
        rows = [[each.group, str(each.pairs), _interval(each)] for each in report.sources]
        parts.append("## By source\n\n" + table(("source", "pairs", "accuracy [95 %]"), rows))
    return "\n".join(parts)


def judge_shown(report: JudgeReport) -> list[Shown]:
    """The same for the terminal."""
    lines: list[Shown] = [_ways(report)]
    if report.refused:
        lines.append(_refused(report))
    if report.reasonings:
        lines.append(f"reasonings: {_reasonings(report)}")
    if report.invalid:
        lines.append(_invalid(report))
    low, shorter = report.found["trained"].low, report.found["shorter"].accuracy
    if not told_from_chance(report):
        lines.append("not told from chance: collect more labels before you use it")
    elif low <= max(shorter, 1 - shorter):
        lines.append("not told from a rule of length: look at what the labels prefer, or collect more")
    return lines


def told_from_chance(report: JudgeReport) -> bool:
    """Whether the interval of the trained judge's accuracy lies above one half."""
    return report.found["trained"].low > CHANCE


def _ways(report: JudgeReport) -> Table:
    rows = [
        [
            words + (MEASURED[report.kind] if name == "trained" else ""),
            _interval(report.found[name]),
            f"{report.found[name].loss:.4f}",
            f"{report.found[name].ece:.3f}",
        ]
        for name, words in WAYS.items()
        if name in report.found
    ]
    pairs = count_of(report.pairs, "pair")
    title = f"on {pairs} of {count_of(report.prompts, 'prompt')}"
    if report.kind != "probe":
        title = f"on {report.held_out} of {pairs}, whose prompts were held out"
    return Table(title, ("judge", "accuracy [95 %]", "loss (nats)", "ECE"), rows)


def _refused(report: JudgeReport) -> str:
    told = ", ".join(f"{reason} {count}" for reason, count in sorted(report.refused.items()))
    noun = "reasoning" if report.kind == "generative" else "pair"
    return f"{count_of(sum(report.refused.values()), noun)} could not be read: {told}." if told else ""


def _reasonings(report: JudgeReport) -> str:
    found = report.reasonings
    return (
        f"{found['agreed']:,} of {found['sampled']:,} ended with the label given; {found['kept']:,} were "
        f"kept, one in each order of {count_of(found['kept'] // 2, 'question')}; "
        f"{count_of(found['left_out'], 'question')} had none in one order or both"
        + (f"; {count_of(undecided, 'pair')} prefer neither" if (undecided := found["undecided"]) else "")
    )


def _invalid(report: JudgeReport) -> str:
    told = ", ".join(f"{WAYS[name]} {count}" for name, count in report.invalid.items())
    of = report.held_out or report.pairs
    return f"of {count_of(of, 'pair')} without a valid verdict, and in no figure of that judge: {told}"


def _interval(each: Scored | Breakdown) -> str:
    return f"{each.accuracy:.3f} [{each.low:.3f}, {each.high:.3f}]"
