"""The reasoning judge, `cot`: reasons first, then the label's probability, read behind the reasons and never
inside them.

Per order, two requests (Bai et al. 2022, arXiv 2212.08073, section 4.1, "chain-of-thought prompting"): the
judge writes its reasons, greedily and bounded in length, until it would begin the line of its answer; then
the conversation is continued with these reasons and `Answer:`, and the labels' log-probabilities are read at
that place. Whatever verdict the reasons may hold is not parsed.

Having argued for one side, a judge is nearly certain of it: the labels saturate. The paper clamps the
probability to 40–60 %; here each order's is clamped, so that the mean of both is too, and the evidence keeps
the unclamped log-probabilities.

With several reasonings the judge is asked for that many, sampled at `SAMPLED_TEMPERATURE`, and the labels are
read behind each; the verdict is the probability of a label averaged over the reasonings, P(A) = mean P(A | r)
(self-consistency: Wang et al. 2022, arXiv 2203.11171, §2, marginalise over reasoning paths by a vote of
sampled answers; here their probabilities are known, and are averaged). It is clamped after that. N reasonings
cost N times what one costs, to write and to read; a reasoning that is empty or whose label cannot be read is
left out of the mean.

A reasoning model's `<think>` part is taken out of what the label's question is continued with, since chat
templates treat such a part of an earlier turn in their own ways, and kept for the record. If nothing follows
it (it was cut at the limit), its own text stands for the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from rlaif.engines.base import (
    LEAST_SHARE,
    Engine,
    Generation,
    GenerationRequest,
    LabelReading,
    LabelRequest,
    Sampling,
)
from rlaif.errors import ConfigError
from rlaif.judging.judge import Judge, PrincipleMode
from rlaif.judging.protocols import WAYS, JudgingProtocol, Pairwise, Ways
from rlaif.progress import Progress
from rlaif.prompts import LabelPrompt, PromptLibrary
from rlaif.types import Comparison, Constitution, Message, Principle, Verdict

__all__ = [
    "CLAMP",
    "REASONING_TOKENS",
    "ChainOfThought",
    "Reasoned",
    "ReasonedReading",
    "ReasoningJudge",
    "Reasons",
    "averaged",
    "split_reasons",
]

CLAMP = 0.6
"""Highest probability that a verdict may give to either side (Bai et al. 2022: labels between 40 and 60
%)."""
REASONING_TOKENS = 256
"""Longest reasoning; a reasoning model needs several times that."""

SAMPLED_TEMPERATURE = 0.7
"""Of several reasonings; a single one is greedy."""


class Reasons(NamedTuple):
    """What a judge wrote: its thinking, if it is a model that thinks, its visible reasons, and the one that
    the label follows."""

    thinking: str
    visible: str
    last: str


class Reasoned(NamedTuple):
    """A reasoning, and what is answered behind it.

    Attributes:
        question: The label's question, continued by the reasons; `None` where none were written.
    """

    question: LabelRequest | None
    reading: LabelReading


@dataclass(frozen=True, slots=True)
class ReasonedReading(LabelReading):
    """A reading and the reasoning that it was read behind."""

    reasoning: str = ""


class ChainOfThought(Pairwise):
    """The pairwise question, with reasons before the label.

    Its `questions` hold no reasons yet: they end in the beginning of the label's line, as a `ReasoningJudge`
    expects them.

    Args:
        clamp: Highest probability a verdict may give to either side, above 0.5; 1 leaves it as it is.
    """

    name = "cot"
    template = "judge_cot"
    reasons = True
    relabelling = "none"
    parts = ()

    def __init__(
        self,
        library: PromptLibrary,
        constitution: Constitution,
        *,
        clamp: float = CLAMP,
        least_share: float = LEAST_SHARE,
    ) -> None:
        if not 0.5 < clamp <= 1.0:
            raise ConfigError(
                f"clamp is {clamp}",
                remedy="give the highest probability of either side: above 0.5, 1 for no clamp",
            )
        super().__init__(library, constitution, least_share=least_share)
        self._bound = math.inf if clamp == 1.0 else math.log(clamp / (1.0 - clamp))

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
        return cls(library, constitution, clamp=clamp, least_share=least_share)

    def prompt(self, comparison: Comparison, principle: Principle) -> LabelPrompt:
        """The question about `comparison` in the order in which it stands."""
        return self._library.judge_cot(comparison, principle)

    def verdicts(
        self, comparison: Comparison, principle: Principle, readings: Sequence[LabelReading]
    ) -> tuple[Verdict, ...]:
        """As `Pairwise.verdicts`, clamped, with the reasoning of each order."""
        found = super().verdicts(comparison, principle, readings)
        return tuple(
            self._finished(verdict, reading) for verdict, reading in zip(found, readings, strict=True)
        )

    def _finished(self, verdict: Verdict, reading: LabelReading) -> Verdict:
        reasoning = reading.reasoning if isinstance(reading, ReasonedReading) else ""
        logit = verdict.logit_a
        clamped = None if logit is None else max(-self._bound, min(self._bound, logit))
        return replace(verdict, logit_a=clamped, reasoning=reasoning)


class ReasoningJudge(Judge):
    """A judge whose engine reasons before it is read; otherwise as `Judge`.

    Args:
        max_new_tokens: Longest reasoning in tokens.
        reasonings: Reasonings that are averaged for a question.
    """

    def __init__(
        self,
        engine: Engine,
        protocol: JudgingProtocol,
        constitution: Constitution,
        *,
        principles: PrincipleMode,
        seed: int,
        progress: Progress | None = None,
        max_new_tokens: int = REASONING_TOKENS,
        reasonings: int = 1,
    ) -> None:
        super().__init__(engine, protocol, constitution, principles=principles, seed=seed, progress=progress)
        self._max_new_tokens = max_new_tokens
        self._reasonings = reasonings

    def reasoning_request(self, question: LabelRequest, number: int = 0) -> GenerationRequest:
        """Asks for the reasons; the judge is stopped where it would begin its answer. A single reasoning is
        greedy; of several, the `number` is the seed, so that the first N of more are the same N."""
        *messages, opening = question.messages
        sampling = Sampling(
            max_new_tokens=self._max_new_tokens,
            temperature=0.0 if self._reasonings == 1 else SAMPLED_TEMPERATURE,
            stop=(f"\n{opening.content}",),
        )
        return GenerationRequest(messages=tuple(messages), sampling=sampling, seed=number)

    def _read(self, requests: Sequence[LabelRequest], *, together: int = 1) -> list[LabelReading]:
        """Of each request, the mean of the readings behind its reasonings; invalid where there are none."""
        found = self.reasoned(requests, together=together)
        return [averaged([each.reading for each in own]) for own in found]

    def reasoned(self, requests: Sequence[LabelRequest], *, together: int = 1) -> list[list[Reasoned]]:
        """Of each request its reasonings, `reasonings` of them, and the readings behind them; a request
        without reasons has an invalid reading."""
        times = self._reasonings
        asked = [(request, number) for request in requests for number in range(times)]
        written: dict[int, Generation] = {}
        for batch in self._engine.generate([self.reasoning_request(*each) for each in asked]):
            written.update(batch)
        reasons = [
            split_reasons(written[place].text, request.messages[-1].content)
            for place, (request, _) in enumerate(asked)
        ]
        able = [place for place in range(len(asked)) if reasons[place].last]
        questions = [continued(asked[place][0], reasons[place]) for place in able]
        answers = super()._read(questions, together=times * together)
        self._progress.advance(len(requests) - len(able) // times)
        found = [
            Reasoned(None, ReasonedReading((), 0, written[place].reason or "no_reasoning"))
            for place in range(len(asked))
        ]
        for place, question, answer in zip(able, questions, answers, strict=True):
            found[place] = Reasoned(question, _reasoned(answer, record(reasons[place])))
        return [found[first : first + times] for first in range(0, len(found), times)]


def averaged(readings: Sequence[LabelReading]) -> LabelReading:
    """One reading of several of the same labels, each behind a reasoning of its own: the mean probability of
    each label over the valid ones; the first one where none is valid, and a single one as it is."""
    valid = [each for each in readings if not each.reason and each.logprobs]
    if len(readings) == 1 or not valid:
        return readings[0]
    texts = [each.reasoning for each in readings if isinstance(each, ReasonedReading)]
    shown = [f"({number} of {len(texts)})\n{text}" for number, text in enumerate(texts, start=1)]
    means = (
        math.fsum(math.exp(each.logprobs[label]) for each in valid) / len(valid)
        for label in range(len(valid[0].logprobs))
    )
    return ReasonedReading(
        logprobs=tuple(math.log(mean) if mean else -math.inf for mean in means),
        tokens=sum(each.tokens for each in readings),
        bounded=next((each.bounded for each in valid if each.bounded), ()),
        reasoning="\n\n".join(shown),
    )


def _reasoned(reading: LabelReading, reasoning: str) -> ReasonedReading:
    return ReasonedReading(
        reading.logprobs, reading.tokens, reading.reason, reading.bounded, reasoning=reasoning
    )


def split_reasons(text: str, opening: str) -> Reasons:
    """Take a judge's text apart. What begins with `opening` at the start of a line, and all behind it, is no
    reason any more.

    A thinking part may lack its opening tag (templates write it themselves) or its closing one (it was cut at
    the limit).
    """
    thinking, closed, visible = text.rpartition("</think>")
    if not closed:
        before, opened, thought = text.partition("<think>")
        thinking, visible = (thought, before) if opened else ("", text)
    thinking = thinking.replace("<think>", "").strip()
    visible = _before(f"\n{visible}", f"\n{opening}").strip()
    return Reasons(
        thinking=thinking, visible=visible, last=visible or _before(f"\n{thinking}", f"\n{opening}").strip()
    )


def continued(question: LabelRequest, reasons: Reasons) -> LabelRequest:
    """The question with the reasons in front of the line that its label stands in."""
    *messages, opening = question.messages
    return LabelRequest(
        messages=(*messages, Message("assistant", f"{reasons.last}\n{opening.content}")),
        labels=question.labels,
    )


def record(reasons: Reasons) -> str:
    """Both parts as one text, the thinking between its tags."""
    return (
        f"<think>\n{reasons.thinking}\n</think>\n{reasons.visible}".strip()
        if reasons.thinking
        else reasons.visible
    )


def _before(text: str, mark: str) -> str:
    return text.partition(mark)[0]
