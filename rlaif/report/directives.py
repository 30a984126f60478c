"""`directives-test-….md`: what directives changed, for a person to read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from rlaif.directives.trial import Answer, Case, Compliance, Trial
from rlaif.report.markdown import code, named, quoted, table

__all__ = ["COMPLIANCE", "compliance_rows", "trial_markdown", "undecided", "word_diff"]

LONGEST_DIFF = 2_000
"""Words of a text that are compared: the time grows with their product."""
COMPLIANCE = (
    "directive",
    "prompts",
    "complied before",
    "after",
    "change, 95 %",
    "mean P before",
    "after",
    "change, 95 %",
    "invalid",
)


def compliance_rows(found: Sequence[Compliance]) -> list[tuple[str, ...]]:
    """How often answers comply, a row for each directive."""
    return [
        (
            each.id,
            str(each.prompts),
            _share(each.before, each.prompts),
            _share(each.after, each.prompts),
            _change(each),
            f"{each.mean_before:.3f}" if each.prompts else "–",
            f"{each.mean_after:.3f}" if each.prompts else "–",
            _mean_change(each),
            str(each.invalid),
        )
        for each in found
    ]


def _share(value: float, prompts: int) -> str:
    return f"{100 * value:.0f} %" if prompts else "–"


def _change(found: Compliance) -> str:
    if found.change is None:
        return "–"
    value, low, high = (100 * each for each in found.change)
    return f"{value:+z.0f} points [{low:+z.0f}, {high:+z.0f}]"


def _mean_change(found: Compliance) -> str:
    if found.mean_change is None:
        return "–"
    value, low, high = found.mean_change
    return f"{value:+z.3f} [{low:+z.3f}, {high:+z.3f}]"


def undecided(trial: Trial) -> list[str]:
    """Of which directives the judge says nothing."""
    return [
        f"directive `{each.id}`: the judge says the same of nearly all answers, so its shares tell nothing; "
        "ask another judge, or word the question so that it names both answers"
        for each in trial.compliance
        if each.prompts and each.undecided
    ]


def trial_markdown(trial: Trial, *, policy: str, judge: str, notes: Sequence[str] = ()) -> str:
    """A trial: the shares first, then every prompt with its answers."""
    prompts = len(trial.cases) + len(trial.untouched)
    parts = [
        f"# Directives {code(trial.directives.name)} ({trial.directives.digest})\n",
        f"Policy {named(policy)}, judge {named(judge)}; a directive applied to {len(trial.cases)} of "
        f"{prompts} prompts.\n",
        "".join(f"- {named(note)}\n" for note in notes),
        table(("directive", "applied to prompts"), [(code(id), n) for id, n in trial.applied().items()]),
        "## Answers that comply, by the judge\n",
        table(COMPLIANCE, compliance_rows(trial.compliance)),
        table(
            ("answers", "tokens", "seconds"),
            [
                (name, spent.tokens, f"{spent.seconds:.1f}")
                for name, spent in (("before", trial.before), ("after", trial.after))
            ],
        ),
        "Answers that were remembered took no time.\n",
        "## Prompts\n",
        *(_case(case) for case in trial.cases),
    ]
    return "\n".join(parts)


def _case(case: Case) -> str:
    applied = ", ".join(code(id) for id in case.plan.applied)
    over = ", ".join(code(id) for id in case.plan.passed_over)
    told = f"applied: {applied}" + (f"; passed over: {over}" if over else "")
    parts = [f"### {named(case.prompt.id)}\n", quoted(case.prompt.messages[-1].content), told + "\n"]
    before = case.before[0]
    parts += [f"before{_said(before)}\n", quoted(before.refused or before.text)]
    seen: set[str] = set()
    for after in case.after:
        if after.label in seen:
            continue
        seen.add(after.label)
        side = f", {named(after.label)}" if after.label else ""
        parts += [f"after{side}{_said(after)}\n", quoted(after.refused or after.text)]
        parts += ["difference\n", quoted(word_diff(before.text, after.text))]
    return "\n".join(parts)


def _said(answer: Answer) -> str:
    """What the judge says of an answer."""
    said = [
        f"{code(id)} {'no valid answer' if value is None else f'{value:.2f}'}"
        for id, value in answer.complies.items()
    ]
    return f" (complies: {', '.join(said)})" if said else ""


def word_diff(before: str, after: str) -> str:
    """Two texts in one, word by word: `[-taken out-] {+put in+}`; without their line breaks."""
    old, new = (text.split()[:LONGEST_DIFF] for text in (before, after))
    parts = []
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    for kind, start, end, first, last in matcher.get_opcodes():
        if kind == "equal":
            parts += old[start:end]
            continue
        gone, come = " ".join(old[start:end]), " ".join(new[first:last])
        parts += [f"[-{gone}-]"] * bool(gone) + [f"{{+{come}+}}"] * bool(come)
    return " ".join(parts)
