"""`audit.md` and `difference.md`: what was found about a judge, or about two constitutions, for a person to
read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlaif.audit.agreement import Agreement
from rlaif.audit.biases import Bias
from rlaif.audit.cases import Case
from rlaif.audit.differences import Difference, Mover
from rlaif.audit.grade import share
from rlaif.audit.report import AuditReport, PrincipleAudit, ProbeAudit, ProtocolAudit
from rlaif.audit.sensitivity import Sensitivity
from rlaif.labels import sigmoid
from rlaif.report.markdown import code, named, quoted, sentence, table

__all__ = [
    "audit_lines",
    "audit_markdown",
    "bias_rows",
    "cases_markdown",
    "difference_markdown",
    "figure",
    "percent",
    "sensitivity_rows",
]

EXCERPT = 300
"""Characters of a text that a table of comparisons shows."""
WORST = 6
"""Comparisons of a protocol that are written out from each end: the surest mistakes, and the surest right
answers."""


def audit_markdown(report: AuditReport) -> str:
    """An audit, the verdict first."""
    parts = [f"# Audit of {named(report.judge)} under {code(report.constitution)}\n"]
    parts += [f"- **{each.protocol}**: {sentence(each.judgement.words)}." for each in report.protocols]
    if report.suggestion:
        parts.append(f"- **suggestion** ({report.suggestion.pairs}): {sentence(report.suggestion.words)}.")
    parts.append("\n" + _about(report))
    if report.rules:
        rows = [(f"always-{name}", share(value)) for name, value in report.rules._asdict().items()]
        parts += ["## Rules that do not read the text\n", table(("rule", "accuracy"), rows)]
    for each in report.protocols:
        parts += _protocol(each)
    return "\n".join(parts)


def cases_markdown(judged: Mapping[str, Sequence[Case]]) -> str:
    """Audited comparisons to read, by protocol: the ones with a known answer that the judge was furthest
    from, and nearest to."""
    parts = ["# Audited comparisons to read\n"]
    for protocol, cases in judged.items():
        known = sorted(
            (case for case in cases if case.pair.a_wins is not None and case.logit_a is not None), key=_right
        )
        ends = [("furthest from the right answer", known[:WORST]), ("nearest to it", known[WORST:][-WORST:])]
        for title, chosen in ends if known else [("some comparisons", cases[: 2 * WORST])]:
            parts += [f"## {protocol}: {title}\n", *(_case(case) for case in chosen)]
    return "\n".join(parts)


def difference_markdown(found: Difference) -> str:
    """What swapping one constitution for another changes."""
    changed = {
        kind: [each.id for each in found.changes if each.change == kind]
        for kind in ("added", "removed", "changed")
    }
    parts = [
        f"# From constitution {code(found.a)} to {code(found.b)}\n",
        f"Judge {named(found.judge)}, {found.protocol}, {found.both} of {found.comparisons} comparisons with "
        "a label under both.\n",
        f"- flipped labels: {share(found.flipped)}",
        f"- agreement (Cohen's κ): {figure(found.kappa)}",
        f"- mean change of P(first): {found.shift:z.3f}",
        f"- correlation of log-odds: {figure(found.correlation)}",
    ]
    parts += [f"- principles {kind}: {named(', '.join(ids)) or 'none'}" for kind, ids in changed.items()]
    influences = [
        (each.id, each.side, each.change, percent(each.own_flips), f"{100 * each.drives:+z.1f}")
        for each in found.influences
    ]
    header = ("principle", "in", "change", "own labels that flip without it", "flips caused (points)")
    parts += ["\n## Principles, by the flips they cause\n", table(header, influences)]
    redundant = [(each.side, each.first, each.second, f"{each.correlation:z.2f}") for each in found.redundant]
    parts += [
        "## Redundant principles\n",
        table(("in", "one", "other", "correlation"), redundant) if redundant else "None found.\n",
    ]
    parts += [
        f"## The {len(found.movers)} comparisons that change most\n",
        *(_mover(each) for each in found.movers),
    ]
    return "\n".join(parts)


def percent(value: float | None) -> str:
    """`37 %`, or a dash where there is nothing."""
    return "–" if value is None else f"{100 * value:.0f} %"


def figure(value: float | None) -> str:
    """A figure with two digits, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:z.2f}"


def bias_rows(bias: Bias) -> list[tuple[str, str]]:
    """The habits that were measured, a name and a figure each."""
    rates = (
        ("flips between the two orders", bias.flip_rate),
        ("chose the one shown first", bias.first_rate),
        ("chose the longer one", bias.longer_rate),
        ("people chose the longer one", bias.human_longer_rate),
        (f"chose its own ({bias.own_rows})", bias.own_rate),
    )
    rows = [(name, share(value)) for name, value in rates if value]
    figures = (
        ("correlation with length (Spearman)", bias.length_correlation),
        ("agreement between principles (Krippendorff's α)", bias.agreement),
        ("the same, on P", bias.agreement_interval),
    )
    rows += [(name, f"{value:z.2f}") for name, value in figures if value is not None]
    rows.append(("probability of the two labels together", percent(bias.label_mass)))
    rows.append(("ties (P within 0.005 of ½)", percent(bias.tie_rate)))
    reasons = ", ".join(f"{reason} {count}" for reason, count in bias.invalid_reasons.items())
    return [*rows, ("invalid verdicts", percent(bias.invalid_rate) + (f" ({reasons})" if reasons else ""))]


def sensitivity_rows(found: Iterable[Sensitivity]) -> list[tuple[str, ...]]:
    """Each change: how many labels stay, by how much P moves, and the accuracy before and after."""
    return [
        (each.name, each.note)
        if each.note
        else (
            each.name,
            f"{share(each.same_label) if each.same_label else '–'} of {each.rows}",
            figure(each.shift),
            f"{percent(each.accuracy_before)} → {percent(each.accuracy)}"
            if each.accuracy is not None
            else "–",
        )
        for each in found
    ]


def _about(report: AuditReport) -> str:
    probes = next((each.probes.rows for each in report.protocols if each.probes), 0)
    told = (
        [f"{named(report.data)}: {report.pairs} comparisons, {report.labelled} with a human label"]
        if report.pairs
        else []
    )
    told += [f"{probes} built-in probes"] if probes else []
    asked = "all principles" if report.principles == "all" else "one principle drawn per comparison"
    return (
        f"On {' and '.join(told)}; {asked}; seed {report.seed}; rlaif {report.version}. Intervals are 95 % "
        f"intervals.\n"
    )


def _protocol(found: ProtocolAudit) -> list[str]:
    parts = [f"## {found.protocol}\n", f"Grade: **{found.judgement.grade}**."]
    parts += ["", *(f"- {sentence(reason)}" for reason in found.judgement.reasons)]
    if found.ensemble:
        parts += ["\n### Against human labels\n", *_against_people(found, found.ensemble)]
    parts += ["\n### Biases\n", table(("habit", "figure"), bias_rows(found.bias))]
    if found.sensitivity:
        header = ("change", "same label", "shift of P", "accuracy")
        parts += ["### Changes that should not matter\n", table(header, sensitivity_rows(found.sensitivity))]
    if found.probes:
        parts += ["### Probes\n", *_probes(found.probes)]
    return [*parts, "### By principle\n", _principles(found.principles)]


def _against_people(found: ProtocolAudit, ensemble: Agreement) -> list[str]:
    facts = [
        ("accuracy of the labels", share(ensemble.accuracy)),
        ("accuracy of one principle alone, mean", percent(found.one_principle)),
        ("accuracy in one order alone, mean", percent(found.one_order)),
        ("Cohen's κ", figure(ensemble.kappa)),
        ("calibration error (ECE)", figure(ensemble.ece)),
        ("negative log-likelihood (0.69 is chance)", figure(ensemble.nll)),
        ("pairs without a label", str(ensemble.unlabelled)),
    ]
    reliability = [
        (f"{each.low:z.2f}–{each.high:z.2f}", each.rows, f"{each.confidence:z.3f}", f"{each.accuracy:z.3f}")
        for each in ensemble.reliability
    ]
    return [
        table((f"on {ensemble.rows} pairs", "figure"), facts),
        "Reliability:\n",
        table(("confidence", "pairs", "mean confidence", "accuracy"), reliability),
    ]


def _probes(probes: ProbeAudit) -> list[str]:
    name, rule = probes.rules.best()
    scope = (
        f"with the tags {named(', '.join(probes.scope))}"
        if probes.scope
        else "in total, as no tag is the constitution's"
    )
    told = (
        share(probes.in_scope.accuracy) + f" on the {probes.in_scope.rows}"
        if probes.in_scope
        else "no label on those"
    )
    rows = [
        (tag, share(value), share(probes.own_principles[tag]) if tag in probes.own_principles else "–")
        for tag, value in probes.by_tag.items()
    ]
    return [
        f"{probes.rows} comparisons with an obvious right answer: {told} {scope} ({name}: "
        f"{100 * rule.value:.0f} %).\n",
        table(("tag", "all principles", "principles with this tag"), rows),
    ]


def _principles(found: Sequence[PrincipleAudit]) -> str:
    rows = [
        (
            each.id,
            share(each.accuracy.accuracy) if each.accuracy else "–",
            figure(each.accuracy.ece if each.accuracy else None),
            figure(each.accuracy.kappa if each.accuracy else None),
            share(each.probes) if each.probes else "–",
            percent(each.flip_rate),
            percent(each.first_rate),
            each.invalid,
        )
        for each in found
    ]
    return table(("principle", "accuracy", "ECE", "κ", "probes", "flips", "first", "invalid"), rows)


def _right(case: Case) -> float:
    """Log-odds of the right answer."""
    return (case.logit_a or 0.0) * (2 * (case.pair.a_wins or 0.0) - 1)


def _case(case: Case) -> str:
    """A comparison written out, the better completion first where that is known."""
    pair = case.pair.swap() if case.pair.a_wins == 0 else case.pair
    logit = -(case.logit_a or 0.0) if case.pair.a_wins == 0 else case.logit_a
    names = ("first", "second") if pair.a_wins is None else ("the better", "the worse")
    said = "no valid verdict" if logit is None else f"P({names[0]}) = {sigmoid(logit):z.2f}"
    last = pair.comparison.prompt.messages[-1]
    texts = (
        (last.role, last.content),
        (names[0], pair.comparison.a.text),
        (names[1], pair.comparison.b.text),
    )
    return "\n".join(
        [f"### {named(pair.comparison.prompt.id)}: {said}\n", *(_quoted(name, text) for name, text in texts)]
    )


def _mover(mover: Mover) -> str:
    flips = ", flips" if mover.flips else ""
    head = (
        f"### {named(mover.comparison_id)}: P(first) {mover.p_a:z.2f} → {mover.p_b:z.2f}{flips}, by "
        f"{code(mover.principle)}\n"
    )
    return "\n".join(
        [head, _quoted("user", mover.prompt), _quoted("first", mover.first), _quoted("second", mover.second)]
    )


def _quoted(name: str, text: str) -> str:
    short = text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
    return f"**{named(name)}**\n\n{quoted(short)}"


def audit_lines(found: Mapping[str, Any]) -> list[str]:
    """A line for each protocol of an audit's file, and the suggestion."""
    lines = [
        f"audit ({part['key']['protocol']}): {part['judgement']['words']}" for part in found["protocols"]
    ]
    suggestion = found["suggestion"]
    return [*lines, *([f"suggestion ({suggestion['pairs']}): {suggestion['words']}"] if suggestion else [])]
