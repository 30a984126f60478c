"""The reasoning judge, `cot`: reasons first, then the label's probability, read behind the reasons and never
inside them.

Per order, two requests (Bai et al. 2022, arXiv 2212.08073, section 4.1, "chain-of-thought prompting"): the
judge writes its reasons, greedily and bounded in length, until it would begin the line of its answer; then
the conversation is continued with these reasons and `Answer:`, and the labels' log-probabilities are read at
that place. Whatever verdict the reasons may hold is not parsed.

Having argued for one side, a judge is nearly certain of it: the labels saturate. The paper clamps the
probability to 40–60 %; here each order's is clamped, so that the mean of both is too, and the evidence keeps
the unclamped log-probabilities.

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
from rlaif.judging.protocols import JudgingProtocol, Pairwise
from rlaif.progress import Progress
from rlaif.prompts import LabelPrompt, PromptLibrary
from rlaif.types import Comparison, Constitution, Message, Principle, Verdict

__all__ = [
    "CLAMP",
    "REASONING_TOKENS",
    "ChainOfThought",
    "ReasonedReading",
    "ReasoningJudge",
    "Reasons",
    "split_reasons",
]

CLAMP = 0.6
"""Highest probability that a verdict may give to either side (Bai et al. 2022: labels between 40 and 60
%)."""
REASONING_TOKENS = 256
"""Longest reasoning; a reasoning model needs several times that."""


class Reasons(NamedTuple):
    """What a judge wrote: its thinking, if it is a model that thinks, its visible reasons, and the one that
    the label follows."""

    thinking: str
    visible: str
    last: str


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
        cls, library: PromptLibrary, constitution: Constitution, *, clamp: float, least_share: float
    ) -> Self:
        """See `JudgingProtocol`."""
        return cls(library, constitution, clamp=clamp, least_share=least_share)

    def prompt(self, comparison: Comparison, principle: Principle) -> LabelPrompt:
        """The question about `comparison` in the order in which it stands."""
        return self._library.judge_cot(comparison, principle)

    def questions(self, comparison: Comparison, principle: Principle) -> tuple[LabelRequest, ...]:
        """The question with `a` first, and with `b` first."""
        prompts = (self.prompt(each, principle) for each in (comparison, comparison.swap()))
        return tuple(LabelRequest(messages=prompt.messages, labels=prompt.labels) for prompt in prompts)

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
    ) -> None:
        super().__init__(engine, protocol, constitution, principles=principles, seed=seed, progress=progress)
        self._max_new_tokens = max_new_tokens

    def reasoning_request(self, question: LabelRequest) -> GenerationRequest:
        """Asks for the reasons; the judge is stopped where it would begin its answer. Greedy, so the seed
        says nothing."""
        *messages, opening = question.messages
        sampling = Sampling(
            max_new_tokens=self._max_new_tokens, temperature=0.0, stop=(f"\n{opening.content}",)
        )
        return GenerationRequest(messages=tuple(messages), sampling=sampling, seed=0)

    def _read(self, requests: Sequence[LabelRequest]) -> list[LabelReading]:
        """Reasons for all `requests`, then the readings behind them; a request without reasons has an invalid
        reading."""
        written: dict[int, Generation] = {}
        for batch in self._engine.generate([self.reasoning_request(request) for request in requests]):
            written.update(batch)
        reasons = [
            split_reasons(written[number].text, request.messages[-1].content)
            for number, request in enumerate(requests)
        ]
        able = [number for number in range(len(requests)) if reasons[number].last]
        answers = super()._read([continued(requests[number], reasons[number]) for number in able])
        readings: dict[int, LabelReading] = {
            number: ReasonedReading(
                answer.logprobs,
                answer.tokens,
                answer.reason,
                answer.bounded,
                reasoning=record(reasons[number]),
            )
            for number, answer in zip(able, answers, strict=True)
        }
        for number in range(len(requests)):
            if number not in readings:
                readings[number] = ReasonedReading((), 0, written[number].reason or "no_reasoning")
                self._progress.advance(1)
        return [readings[number] for number in range(len(requests))]


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
