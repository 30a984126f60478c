"""Does the label survive a change that should not matter: other label letters, or the same question in other
words?

The letters are changed in the instruction that follows the quoted responses, in the worked examples and in
what is read; never in quoted text. Questions are reworded by rules, without a model, so only in the languages
that `REWORDINGS` knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from rlaif import stats
from rlaif.audit.agreement import agreement
from rlaif.audit.cases import Case, Pair, judge_pairs
from rlaif.engines.base import LEAST_SHARE, Engine, LabelReading, LabelRequest
from rlaif.judging.protocols import JudgingProtocol, Pairwise, Pointwise
from rlaif.judging.table import PROTOCOLS, OpenJudge, open_judge, open_protocol
from rlaif.labels import sigmoid
from rlaif.progress import Progress
from rlaif.prompts import PromptLibrary, neutralize_fences
from rlaif.types import Answers, Comparison, Constitution, Message, Principle, Verdict

__all__ = ["REWORDINGS", "Sensitivity", "Variant", "measure_variant", "variant_count", "variants"]

Kind = Literal["labels", "wording"]

_SYNONYMS = (
    ("Which response", "Which of the two responses"),
    ("In which response", "In which of the two responses"),
    ("this response", "the response above"),
    ("this text", "the text above"),
)
REWORDINGS: Mapping[str, tuple[tuple[str, Callable[[str], str]], ...]] = {
    "en": (
        ("wording: synonyms", lambda text: _replace_first(text, _SYNONYMS)),
        ("wording: framed", lambda text: f"Think about the following before you answer. {text}"),
    ),
    "zh": (("wording: framed", lambda text: f"回答之前，请先想一想下面的问题。{text}"),),
}
"""By language, the ways to say a question otherwise: a name, and a function of its text."""
_AFTER = "</response_b>"
"""Where the quoted responses of a pairwise question end, and its instruction begins."""


class Variant(NamedTuple):
    """A judge that should answer as the audited one does."""

    name: str
    kind: Kind
    protocol: JudgingProtocol
    constitution: Constitution


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one change does to the labels of single principles.

    Attributes:
        rows: Comparisons that both judge validly.
        same_label: Share of them with the same winner, with its Wilson interval.
        shift: Mean change of P(a), absolute.
        accuracy: Under the change, where people have said who won; `accuracy_before` is that without it.
        note: Why nothing was measured, if nothing was.
    """

    name: str
    kind: Kind
    rows: int = 0
    same_label: stats.Estimate | None = None
    shift: float | None = None
    accuracy: float | None = None
    accuracy_before: float | None = None
    note: str = ""


class Relabelled(Pairwise):
    """Pairwise with other label strings.

    Args:
        mapping: What the template's labels, first and second, become; a space before a label stays.
    """

    def __init__(
        self,
        library: PromptLibrary,
        constitution: Constitution,
        mapping: tuple[str, str],
        *,
        least_share: float = LEAST_SHARE,
    ) -> None:
        super().__init__(library, constitution, least_share=least_share)
        self._mapping = mapping

    def questions(self, comparison: Comparison, principle: Principle) -> tuple[LabelRequest, ...]:
        """As `Pairwise.questions`, relabelled."""
        asked = neutralize_fences(principle.comparison or "")
        return tuple(self._relabel(request, asked) for request in super().questions(comparison, principle))

    def _relabel(self, request: LabelRequest, asked: str) -> LabelRequest:
        names = dict(zip((label.strip() for label in request.labels), self._mapping, strict=True))
        messages = tuple(
            Message(message.role, _relabel_text(message.content, asked, names))
            if message.role == "user"
            else message
            for message in request.messages
        )
        labels = tuple(label.replace(label.strip(), names[label.strip()]) for label in request.labels)
        return LabelRequest(messages=messages, labels=labels)


class ReversedAnswers(Pointwise):
    """Pointwise with the bad answer named first."""

    def questions(self, comparison: Comparison, principle: Principle) -> tuple[LabelRequest, ...]:
        """As `Pointwise.questions`, the answers exchanged."""
        good, bad = (label.strip() for label in super().questions(comparison, principle)[0].labels)
        return super().questions(comparison, replace(principle, answers=Answers(good=bad, bad=good)))

    def verdicts(
        self, comparison: Comparison, principle: Principle, readings: Sequence[LabelReading]
    ) -> tuple[Verdict, ...]:
        """As `Pointwise.verdicts`; the first label is now the bad one, so the sign is turned."""
        found = super().verdicts(comparison, principle, readings)
        return tuple(
            replace(verdict, logit_a=None if verdict.logit_a is None else -verdict.logit_a)
            for verdict in found
        )


def variants(
    name: str,
    *,
    library: PromptLibrary,
    constitution: Constitution,
    sample: Comparison,
    least_share: float = LEAST_SHARE,
) -> Iterator[Variant | Sensitivity]:
    """The variants of protocol `name`; a `Sensitivity` with a note stands for one that this template or
    language does not allow.

    Args:
        sample: Any comparison, to see what the template does with it.
    """
    base = open_protocol(name, library=library, constitution=constitution)
    if base.half is None:
        return
    principle = constitution.principles[0]
    before = base.questions(sample, principle)
    if base.relabelling == "letters":
        first, second = (label.strip() for label in before[0].labels)
        for title, mapping in (
            (f"labels 1/2 for {first}/{second}", ("1", "2")),
            ("labels exchanged", (second, first)),
        ):
            protocol = Relabelled(
                library, _relabel_examples(constitution, mapping), mapping, least_share=least_share
            )
            shown = protocol.questions(sample, principle)[0].messages != before[0].messages
            note = f"the template names no {first} and {second} after `{_AFTER}`"
            yield (
                Variant(title, "labels", protocol, constitution)
                if shown
                else Sensitivity(name=title, kind="labels", note=note)
            )
    if base.relabelling == "answers":
        yield Variant("answers exchanged", "labels", ReversedAnswers(library), constitution)
    rewordings = REWORDINGS.get(constitution.language.partition("-")[0], ())
    if not rewordings:
        yield Sensitivity(
            name="wording",
            kind="wording",
            note=f"no rewording is known for language `{constitution.language}`",
        )
    for title, reword in rewordings:
        changed = _reworded(constitution, base.half, reword)
        yield Variant(
            title,
            "wording",
            open_protocol(name, library=library, constitution=changed, least_share=least_share),
            changed,
        )


def variant_count(name: str) -> int:
    """How many variants protocol `name` has at most; none where it asks no principles."""
    if PROTOCOLS[name].half is None:
        return 0
    relabelled = {"letters": 2, "answers": 1, "none": 0}[PROTOCOLS[name].relabelling]
    return relabelled + max(map(len, REWORDINGS.values()))


def measure_variant(
    variant: Variant,
    cases: Sequence[Case],
    *,
    engine: Engine,
    seed: int,
    progress: Progress,
    opened: OpenJudge = open_judge,
) -> Sensitivity:
    """Judge the pairs of `cases` under `variant`, one principle drawn each, and compare with their
    verdicts."""
    judge = opened(
        engine, variant.protocol, variant.constitution, principles="sample", seed=seed, progress=progress
    )
    pairs: list[Pair] = []
    before: list[float] = []
    after: list[float] = []
    for case, changed in zip(cases, judge_pairs(judge, [case.pair for case in cases]), strict=True):
        ((principle, logit),) = changed.by_principle.items()
        base = case.by_principle.get(principle)
        if base is not None and logit is not None:
            pairs.append(case.pair)
            before.append(base)
            after.append(logit)
    if not pairs:
        return Sensitivity(
            name=variant.name, kind=variant.kind, note="no comparison was judged validly both ways"
        )
    same = sum((x > 0) == (y > 0) for x, y in zip(before, after, strict=True))
    shift = math.fsum(abs(sigmoid(x) - sigmoid(y)) for x, y in zip(before, after, strict=True)) / len(pairs)
    return Sensitivity(
        name=variant.name,
        kind=variant.kind,
        rows=len(pairs),
        same_label=stats.wilson(same, len(pairs)),
        shift=shift,
        accuracy=_accuracy(pairs, after),
        accuracy_before=_accuracy(pairs, before),
    )


def _accuracy(pairs: Sequence[Pair], logits: Sequence[float]) -> float | None:
    rows = [
        (logit, pair.a_wins) for pair, logit in zip(pairs, logits, strict=True) if pair.a_wins is not None
    ]
    found = agreement([logit for logit, _ in rows], [won for _, won in rows])
    return found.accuracy.value if found else None


def _relabel_text(text: str, asked: str, names: Mapping[str, str]) -> str:
    """`text` with its labels renamed after the quoted responses, but for the principle's own question."""
    quoted, fence, rest = text.rpartition(_AFTER)
    if not fence:
        return text
    one = "|".join(re.escape(name) for name in names)
    label = re.compile(rf"(?<![A-Za-z0-9_])(?:{one})(?![A-Za-z0-9_])")
    parts = rest.split(asked) if asked else [rest]
    return quoted + fence + asked.join(label.sub(lambda match: names[match[0]], part) for part in parts)


def _relabel_examples(constitution: Constitution, mapping: tuple[str, str]) -> Constitution:
    names: dict[str, Any] = dict(zip("AB", mapping, strict=True))
    return replace(
        constitution,
        examples=tuple(replace(each, answer=names[each.answer]) for each in constitution.examples),
    )


def _reworded(constitution: Constitution, half: str, reword: Callable[[str], str]) -> Constitution:
    changed = tuple(_with_text(each, half, reword(getattr(each, half))) for each in constitution.principles)
    return replace(constitution, principles=changed)


def _with_text(principle: Principle, half: str, text: str) -> Principle:
    return replace(principle, comparison=text) if half == "comparison" else replace(principle, question=text)


def _replace_first(text: str, replacements: Sequence[tuple[str, str]]) -> str:
    """`text` with the first of `replacements` that it contains; with none, a plain lead-in."""
    for old, new in replacements:
        if old in text:
            return text.replace(old, new, 1)
    return f"Please decide. {text}"
