"""The judging protocols: which questions one comparison under one principle needs, and what their answers
mean.

Both ask two questions, so that a judge's constant habits cancel in the difference of two log-odds:

- *pairwise* shows both completions and reads the probability of the labels A and B, once in each order (Bai
  et al. 2022, arXiv 2212.08073, section 4.1: normalised P(A), P(B); Lee et al. 2023, arXiv 2309.00267: both
  orders against position bias);
- *pointwise* shows one completion at a time and reads the good and the bad answer of a question. The good
  answer's log-odds are taken as that completion's score, and P(a is better) = sigmoid(score_a − score_b), as
  in a Bradley–Terry model.

A reading whose labels together hold less than a least share of the probability is invalid
(`labels_unlikely`): the judge was about to write something else, and the ratio of what remains is noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple, Self

from rlaif.engines.base import LEAST_SHARE, LabelReading, LabelRequest
from rlaif.judging.aggregate import combine
from rlaif.prompts import LabelPrompt, PromptLibrary
from rlaif.types import Comparison, Completion, Constitution, Message, Order, Principle, Prompt, Verdict

__all__ = [
    "ByWays",
    "Half",
    "JudgingProtocol",
    "Need",
    "Pairwise",
    "Pointwise",
    "Relabelling",
    "WAYS",
    "Ways",
    "log_odds",
]


Half = Literal["comparison", "question"]
Relabelling = Literal["letters", "answers", "none"]
Need = Literal["rubric", "reference"]


class Ways(NamedTuple):
    """How protocols ask that read something of the prompt's own, its rubric or its reference.

    Attributes:
        aggregate: How the answers to a rubric's criteria become a score: `mean`, `min` or `all-pass`.
        constitution_weight: What the constitution's questions weigh beside a rubric, which weighs 1; at 0
            they are not asked.
        plain: Ask about a prompt without that thing as the protocol would do without it; else it is an error.
    """

    aggregate: Literal["mean", "min", "all-pass"] = "mean"
    constitution_weight: float = 0.0
    plain: bool = False


WAYS = Ways()
"""As a protocol asks where nothing is said."""


class JudgingProtocol(ABC):
    """Turns a comparison and a principle into questions, and their readings into verdicts.

    A new one needs a class, a template of its own in `prompts/`, and a row in
    `rlaif.judging.table.PROTOCOLS`.
    """

    name: ClassVar[str]
    half: Half | None
    """The part of a principle that the protocol reads; `None` where it reads no principles."""
    template: ClassVar[str]
    """File in `prompts/`, without its `.j2`."""
    also: ClassVar[tuple[str, ...]] = ()
    """Templates of other protocols that its questions may use."""
    needs: ClassVar[Need | None] = None
    """What a prompt must have to be asked about."""
    beside: bool = True
    """Whether the constitution's principles are asked of a prompt that has criteria of its own."""
    asks: ClassVar[int] = 2
    """Questions about two completions under one principle."""
    orders: ClassVar[bool] = False
    """Whether each pair is read in both orders."""
    reasons: ClassVar[bool] = False
    """Whether the judge reasons before its label is read."""
    commits: ClassVar[bool] = False
    """Whether the judge answers the prompt itself (`own_task`) before it is asked about it."""
    relabelling: ClassVar[Relabelling] = "none"
    """How an audit may rename the labels: the letters of the two sides, the answers of the question, or
    not."""
    parts: ClassVar[tuple[float, ...]] = ()
    """How much of each question's log-odds is in those of `a`: what a judge is trained by. Empty where it is
    not their sum."""
    quoted: ClassVar[tuple[str, ...]] = ()
    """Tags by which a question quotes its responses."""

    @classmethod
    def open(
        cls,
        library: PromptLibrary,
        constitution: Constitution,
        *,
        clamp: float,
        least_share: float,
        ways: Ways = WAYS,
    ) -> Self:
        """The protocol with a run's templates and settings, of which it takes what it reads."""
        return cls(library, constitution, least_share=least_share)  # type: ignore[call-arg]

    @classmethod
    def digest(cls, library: PromptLibrary) -> str:
        """Digest of the templates of its questions."""
        return library.digest(cls.template, *cls.also)

    def criteria(self, prompt: Prompt) -> tuple[Principle, ...]:
        """What is asked about `prompt` before the constitution's principles are."""
        return ()

    def own_task(self, prompt: Prompt) -> tuple[Message, ...]:
        """What the judge is asked to answer itself, where it `commits`."""
        return ()

    def shown(self, comparison: Comparison) -> tuple[Completion, ...]:
        """What the questions about `comparison` are about: its two completions, or all of its cohort."""
        return (comparison.a, comparison.b)

    def asks_about(self, comparison: Comparison) -> int:
        """How many questions `questions` gives."""
        return self.asks

    def label(
        self, comparison: Comparison, verdicts: Sequence[Verdict], weights: Mapping[str, float]
    ) -> float | None:
        """The log-odds of the label that the verdicts on `comparison` give; `None` where they give none.

        Args:
            weights: Of the constitution's principles, by id.
        """
        return combine(verdicts, weights)

    @abstractmethod
    def questions(self, comparison: Comparison, principle: Principle) -> tuple[LabelRequest, ...]:
        """The questions to ask, `asks_about` of them."""

    @abstractmethod
    def verdicts(
        self, comparison: Comparison, principle: Principle, readings: Sequence[LabelReading]
    ) -> tuple[Verdict, ...]:
        """What the readings of those questions, in their order, say."""


class ByWays(JudgingProtocol):
    """Is made of a run's templates and ways, without its constitution."""

    @classmethod
    def open(
        cls,
        library: PromptLibrary,
        constitution: Constitution,
        *,
        clamp: float,
        least_share: float,
        ways: Ways = WAYS,
    ) -> Self:
        """See `JudgingProtocol`."""
        return cls(library, ways=ways, least_share=least_share)  # type: ignore[call-arg]


class Pairwise(JudgingProtocol):
    """Both completions in one question, asked in both orders."""

    name = "pairwise"
    half = "comparison"
    template = "judge_pairwise"
    orders = True
    relabelling: ClassVar[Relabelling] = "letters"
    parts: ClassVar[tuple[float, ...]] = (0.5, -0.5)
    quoted = ("response_a", "response_b")

    def __init__(
        self, library: PromptLibrary, constitution: Constitution, *, least_share: float = LEAST_SHARE
    ) -> None:
        self._library = library
        self._constitution = constitution
        self._least_share = least_share

    def prompt(self, comparison: Comparison, principle: Principle) -> LabelPrompt:
        """The question about `comparison` in the order in which it stands."""
        return self._library.judge_pairwise(comparison, principle, self._constitution)

    def questions(self, comparison: Comparison, principle: Principle) -> tuple[LabelRequest, ...]:
        """The question with `a` first, and with `b` first."""
        return tuple(_request(self.prompt(each, principle)) for each in (comparison, comparison.swap()))

    def verdicts(
        self, comparison: Comparison, principle: Principle, readings: Sequence[LabelReading]
    ) -> tuple[Verdict, ...]:
        """One verdict per order; each is log P(first label) − log P(second), told as log-odds of `a`."""
        found = []
        for order, sign, reading in zip((Order.AB, Order.BA), (1.0, -1.0), readings, strict=True):
            logit = log_odds(reading, self._least_share)
            found.append(
                Verdict(
                    comparison_id=comparison.id,
                    principle_id=principle.id,
                    order=order,
                    logit_a=None if logit is None else sign * logit,
                    reason=_reason(reading, self._least_share),
                    evidence=_evidence("", reading),
                )
            )
        return tuple(found)


class Pointwise(JudgingProtocol):
    """Each completion alone."""

    name = "pointwise"
    half = "question"
    template = "judge_pointwise"
    relabelling: ClassVar[Relabelling] = "answers"
    parts = (1.0, -1.0)
    quoted = ("response",)

    def __init__(self, library: PromptLibrary, *, least_share: float = LEAST_SHARE) -> None:
        self._library = library
        self._least_share = least_share

    @classmethod
    def open(
        cls,
        library: PromptLibrary,
        constitution: Constitution,
        *,
        clamp: float,
        least_share: float,
        ways: Ways = WAYS,
    ) -> Self:
        """See `JudgingProtocol`; the question of a principle needs nothing of the constitution."""
        return cls(library, least_share=least_share)

    def prompt(self, prompt: Prompt, completion: Completion, principle: Principle) -> LabelPrompt:
        """The question about one completion."""
        return self._library.judge_pointwise(prompt, completion, principle)

    def questions(self, comparison: Comparison, principle: Principle) -> tuple[LabelRequest, ...]:
        """The question about `a`, and about `b`."""
        both = (comparison.a, comparison.b)
        return tuple(_request(self.prompt(comparison.prompt, each, principle)) for each in both)

    def verdicts(
        self, comparison: Comparison, principle: Principle, readings: Sequence[LabelReading]
    ) -> tuple[Verdict, ...]:
        """One verdict: the difference of the two scores; invalid when either score is."""
        a, b = readings
        score_a, score_b = log_odds(a, self._least_share), log_odds(b, self._least_share)
        logit = None if score_a is None or score_b is None else score_a - score_b
        return (
            Verdict(
                comparison_id=comparison.id,
                principle_id=principle.id,
                order=Order.ALONE,
                logit_a=logit,
                reason=_reason(a, self._least_share) or _reason(b, self._least_share),
                evidence=_evidence("a_", a) | _evidence("b_", b),
            ),
        )


def log_odds(reading: LabelReading, least_share: float = LEAST_SHARE) -> float | None:
    """log P(first label) − log P(second label), nats; `None` where there is no finite reading, or too little
    probability behind it."""
    if _reason(reading, least_share):
        return None
    return reading.logprobs[0] - reading.logprobs[1]


def _request(prompt: LabelPrompt) -> LabelRequest:
    return LabelRequest(messages=prompt.messages, labels=prompt.labels)


def _reason(reading: LabelReading, least_share: float) -> str:
    """Why the reading cannot count; empty when it can."""
    if reading.reason:
        return reading.reason
    if len(reading.logprobs) != 2 or not math.isfinite(reading.logprobs[0] - reading.logprobs[1]):
        return "not_finite"
    return "" if reading.share >= least_share else "labels_unlikely"


def _evidence(prefix: str, reading: LabelReading) -> dict[str, float]:
    """The log-probability of both labels, first and second as the question listed them, when they are
    finite."""
    names = ("first", "second")
    return {
        f"{prefix}{name}": value
        for name, value in zip(names, reading.logprobs, strict=False)
        if math.isfinite(value)
    }
