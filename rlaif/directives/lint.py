"""Advice on a file of directives that can be read, but may not do what was meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

from rlaif.constitution.lint import lint as advice_on
from rlaif.directives.patterns import SEEN, compiled
from rlaif.directives.values import Directive, Directives
from rlaif.errors import Problem
from rlaif.types import Constitution, Principle

__all__ = ["lint", "precedence"]


def lint(directives: Directives, *, on: date, source: str = "") -> list[Problem]:
    """Advice on the directives as they hold on a day; empty when there is none."""
    active = directives.active(on)
    found = [problem for each in directives.directives for problem in _dates(each, on)]
    found += [problem for each in directives.directives for problem in _condition(each)]
    found += [problem for each in directives.directives for problem in _unasked(each)]
    found += _unreachable(active)
    found += _wording(directives)
    return [Problem(p.what, where=": ".join(filter(None, (source, p.where))), remedy=p.remedy) for p in found]


def precedence(directives: Directives, *, on: date) -> list[str]:
    """Which of the directives that can act in each other's place goes first, a line each."""
    active = directives.active(on)
    told = []
    for what, acting in (
        ("a fixed answer", [each for each in active if each.answer]),
        ("both sides", [each for each in active if each.sides]),
    ):
        if len(acting) > 1:
            names = ", ".join(f"`{each.id}`" for each in acting)
            told.append(f"{names} each give {what}; where several apply, the first in file order counts")
    return told


def _where(directive: Directive) -> str:
    return f"directive `{directive.id}`"


def _dates(directive: Directive, on: date) -> Iterator[Problem]:
    if directive.until is not None and directive.until < on:
        what = f"ended on {directive.until} and does nothing any more"
        yield Problem(what, where=_where(directive), remedy="take it out, or move `until`")
    if directive.since is not None and directive.since > on:
        what = f"does nothing before {directive.since}"
        yield Problem(what, where=_where(directive), remedy="nothing to do, if that is meant")


def _condition(directive: Directive) -> Iterator[Problem]:
    when = directive.when
    if when.kind == "regex":
        pattern = compiled(when.text)
        if pattern.found(""):
            what = "its pattern is found in every text, the empty one too"
            yield Problem(what, where=_where(directive), remedy="write `always: true`, or mend the pattern")
        if pattern.seen < SEEN[0]:
            what = f"its pattern is shown the first {pattern.seen} characters of a message only"
            remedy = "use fewer repeats (.* and the like): their time grows with each"
            yield Problem(what, where=_where(directive), remedy=remedy)
    if when.threshold == 0:
        what = "its threshold is 0, which every score reaches"
        yield Problem(what, where=_where(directive), remedy="raise it, or write `always: true`")


def _unasked(directive: Directive) -> Iterator[Problem]:
    if directive.prior and not directive.question:
        what = "has a `prior` and no `question`: nobody can say whether answers comply"
        remedy = "add one: `question: Is the response ...?`; tests and training ask it"
        yield Problem(what, where=_where(directive), remedy=remedy)


def _unreachable(active: Sequence[Directive]) -> Iterator[Problem]:
    """Directives that never act, since another always does in their place."""
    first = next((at for at, each in enumerate(active) if each.answer and each.when.kind == "always"), None)
    for at, each in enumerate(active):
        if first is not None and at != first and not (each.answer and at < first):
            if each.answer or each.sides or each.prior:
                yield _never(each, active[first], "answers every prompt")
            continue
        for before in active[:at]:
            both = (each.answer and before.answer) or (each.sides and before.sides)
            if both and before.when == each.when:
                yield _never(each, before, "has the same condition and comes first")
                break
            if each.sides and before.sides and before.when.kind == "always":
                yield _never(each, before, "shows its two sides for every prompt")
                break


def _never(directive: Directive, other: Directive, why: str) -> Problem:
    what = f"never acts: `{other.id}` {why}"
    return Problem(what, where=_where(directive), remedy="put it before, or narrow the other's condition")


def _wording(directives: Directives) -> Iterator[Problem]:
    """What a constitution's advice says of the questions that a judge is asked."""
    asked = [each.principle() for each in directives.directives if each.question]
    asked += [
        Principle(each.id, question=each.when.text)
        for each in directives.directives
        if each.when.kind == "judge"
    ]
    for principle in asked:
        one = Constitution(directives.name, (principle,), language=directives.language, protocol="pointwise")
        for problem in advice_on(one):
            yield Problem(problem.what, where=f"directive `{principle.id}`", remedy=problem.remedy)
