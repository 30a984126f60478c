"""The verdict on a judge in words, by fixed thresholds.

The accuracy is that on human-labelled pairs; without any, that on the built-in probes whose tags the
constitution's principles have (all probes, if none has). Then, the first that fits:

*do not use*: more than 5 % of the verdicts are invalid; or the 95 % interval of the accuracy reaches down to
50 %, so that the judge is not shown to be better than a coin; or the accuracy is not above the best of
always-longer, always-shorter and always-first; or nothing tells the accuracy and the two orders contradict
each other in more than half of the questions.

*use with care*: there are no human pairs, or fewer than 100; or the interval reaches below 60 %, or not above
the best of those rules; or the orders contradict each other in more than 35 % of the questions (PaLM 2 L: 18
%, S: 21 %, XS: 56 %; Lee et al. 2023, arXiv 2309.00267); or the calibration error is above 0.15; or a change
of labels or wording changes more than 25 % of the labels.

*trust*: none of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rlaif import stats
from rlaif.audit.agreement import Agreement, Baselines
from rlaif.audit.biases import Bias
from rlaif.audit.sensitivity import Sensitivity
from rlaif.judging.table import PROTOCOLS

__all__ = ["GRADES", "NOT_AUDITED", "Basis", "Grade", "Judgement", "judgement", "share"]

Grade = Literal["trust", "use with care", "do not use"]
NOT_AUDITED = "not audited"
GRADES: tuple[str, ...] = (*get_args(Grade), NOT_AUDITED)
"""What labels say of their judge in the column `audit`."""

MAX_INVALID = 0.05
COIN = 0.5
SOLID = 0.6
"""Lower end of the accuracy's interval that trust asks for."""
ENOUGH = 100
"""Human pairs that trust asks for."""
MAX_FLIPS = 0.35
SATURATED = 0.5
MAX_ECE = 0.15
MIN_SAME = 0.75

_OPENING: dict[Grade, str] = {
    "trust": "fit to label with",
    "use with care": "label with this only with care",
    "do not use": "do not label with this",
}


@dataclass(frozen=True, slots=True)
class Basis:
    """What an accuracy rests on: `pairs` (people's) or `probes`."""

    kind: Literal["pairs", "probes"]
    found: Agreement
    rules: Baselines


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a judge.

    Attributes:
        words: One sentence: what to do, and the figures that it rests on.
        reasons: Every threshold that was missed, the gravest first.
    """

    grade: Grade
    words: str
    reasons: tuple[str, ...]


def judgement(
    basis: Basis | None, bias: Bias, sensitivities: Sequence[Sensitivity], *, protocol: str
) -> Judgement:
    """Grade a judge by the thresholds above."""
    grave = list(_grave(basis, bias))
    slight = list(_slight(basis, bias, sensitivities))
    grade: Grade = "do not use" if grave else "use with care" if slight else "trust"
    facts = _facts(basis, bias, protocol)
    because = (grave or slight)[0] if grave or slight else ""
    words = f"{_OPENING[grade]}: {facts}" + (f"; {because}" if because else "")
    return Judgement(grade=grade, words=words, reasons=(*grave, *slight))


def share(estimate: stats.Estimate) -> str:
    """`61 % [54, 68]`."""
    value, low, high = (f"{round(100 * each, 0) + 0.0:.0f}" for each in estimate)  # + 0.0: no "-0"
    return f"{value} % [{low}, {high}]"


def _grave(basis: Basis | None, bias: Bias) -> Iterator[str]:
    if bias.invalid_rate > MAX_INVALID:
        yield f"{bias.invalid_rate:.0%} of the verdicts are invalid"
    if basis is None:
        if bias.flip_rate and bias.flip_rate.value > SATURATED:
            yield "the two orders contradict each other in most questions, and nothing tells the accuracy"
        return
    accuracy = basis.found.accuracy
    name, rule = basis.rules.best()
    if accuracy.value <= rule.value:
        yield f"not above {name} ({100 * rule.value:.0f} %)"
    if accuracy.low <= COIN:
        yield "worse than a coin" if accuracy.high < COIN else "not shown to be better than a coin"


def _slight(basis: Basis | None, bias: Bias, sensitivities: Sequence[Sensitivity]) -> Iterator[str]:
    if basis is None or basis.kind == "probes":
        yield "no human pairs were given (--data)"
    if basis:
        yield from _slight_accuracy(basis)
    if bias.flip_rate and bias.flip_rate.value > MAX_FLIPS:
        yield f"the two orders contradict each other in {bias.flip_rate.value:.0%} of the questions"
    for each in sensitivities:
        if each.same_label and each.same_label.value < MIN_SAME:
            yield f"{each.name}: {1 - each.same_label.value:.0%} of the labels change"


def _slight_accuracy(basis: Basis) -> Iterator[str]:
    name, rule = basis.rules.best()
    if basis.kind == "pairs" and basis.found.rows < ENOUGH:
        yield f"only {basis.found.rows} human pairs"
    if COIN < basis.found.accuracy.low < SOLID:
        yield f"the accuracy may be as low as {basis.found.accuracy.low:.0%}"
    if basis.found.accuracy.low <= rule.value < basis.found.accuracy.value:
        yield f"not clearly above {name} ({100 * rule.value:.0f} %)"
    if basis.found.ece > MAX_ECE:
        yield f"badly calibrated (error {basis.found.ece:.2f}; see --save-calibration)"


def _facts(basis: Basis | None, bias: Bias, protocol: str) -> str:
    how = "both-order accuracy" if PROTOCOLS[protocol].orders else f"{protocol} accuracy"
    told = "accuracy unknown"
    if basis:
        what = "pairs" if basis.kind == "pairs" else "built-in probes"
        told = f"{how} {share(basis.found.accuracy)} on {basis.found.rows} {what}"
    flips = f", {100 * bias.flip_rate.value:.0f} % flips between orders" if bias.flip_rate else ""
    return told + flips
