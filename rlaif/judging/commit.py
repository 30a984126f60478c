"""Commit first: the protocols `commit` (pairwise) and `commit-pointwise`. The judge answers the prompt itself
before it reads what it is to judge, and its answer then stands where a reference would (Zheng et al. 2023,
arXiv 2306.05685, §3.4, "reference-guided judge": without it, GPT-4 follows wrong answers to questions that it
can answer itself).

The answer is written greedily, once for a prompt, as the policy is asked; it is journaled like any other, and
so reused for all pairs of the prompt and by the next run. What a reasoning model thinks before its answer is
left out. A judge that writes nothing has no valid verdict on the prompt (`no_own_answer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from rlaif.engines.base import Engine, Generation, GenerationRequest, LabelReading, LabelRequest, Sampling
from rlaif.judging.judge import Judge, PrincipleMode
from rlaif.judging.protocols import JudgingProtocol, Pointwise
from rlaif.judging.reasoning import REASONING_TOKENS, ReasonedReading
from rlaif.judging.reference import Reference, ReferencePointwise
from rlaif.progress import Progress
from rlaif.text import answer_of
from rlaif.types import Comparison, Constitution, Message, Principle, Prompt, Verdict

__all__ = ["Commit", "CommitPointwise", "CommittedJudge"]

NO_ANSWER = "no_own_answer"
PLACEHOLDER = "word "
"""Stands for a token of an answer that is not written yet."""


class Commit(Reference):
    """The pairwise question, beside the judge's own answer, which a `CommittedJudge` puts in the place of the
    prompt's reference."""

    name = "commit"
    template = "judge_commit"
    needs = None
    commits = True

    def own_task(self, prompt: Prompt) -> tuple[Message, ...]:
        """See `JudgingProtocol`."""
        return self._library.policy(prompt)

    def verdicts(
        self, comparison: Comparison, principle: Principle, readings: Sequence[LabelReading]
    ) -> tuple[Verdict, ...]:
        """As `Pairwise.verdicts`, with the judge's own answer."""
        return _with_answer(super().verdicts(comparison, principle, readings), readings)


class CommitPointwise(ReferencePointwise):
    """The pointwise question, beside the judge's own answer; otherwise as `Commit`."""

    name = "commit-pointwise"
    template = "judge_commit_pointwise"
    also: ClassVar[tuple[str, ...]] = (Pointwise.template,)
    needs = None
    commits = True

    def own_task(self, prompt: Prompt) -> tuple[Message, ...]:
        """See `JudgingProtocol`."""
        return self._library.policy(prompt)

    def verdicts(
        self, comparison: Comparison, principle: Principle, readings: Sequence[LabelReading]
    ) -> tuple[Verdict, ...]:
        """As `Pointwise.verdicts`, with the judge's own answer."""
        return _with_answer(super().verdicts(comparison, principle, readings), readings)


class CommittedJudge(Judge):
    """A judge whose engine answers each prompt before it is asked about it; otherwise as `Judge`.

    Args:
        max_new_tokens: Longest answer of its own in tokens.
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
        self._written: Mapping[str, Generation] = {}
        """By fingerprint, the answers to the prompts of the last chunk: its last prompt may go on."""

    def requests(self, comparison: Comparison) -> list[LabelRequest]:
        """As `Judge.requests`, with an answer as long as it may get: what it will be is not known."""
        return super().requests(_beside(comparison, PLACEHOLDER * self._max_new_tokens))

    def _readings(self, comparisons: Sequence[Comparison]) -> list[LabelReading]:
        """The judge's own answers, then the readings behind them; invalid where it wrote none."""
        self._written = self._answers([comparison.prompt for comparison in comparisons])
        asked: list[LabelRequest] = []
        places: list[tuple[str, int | None]] = []
        for comparison in comparisons:
            answer = answer_of(self._written[comparison.prompt.fingerprint()].text).strip()
            for request in super().requests(_beside(comparison, answer)):
                places.append((comparison.prompt.fingerprint(), len(asked) if answer else None))
                asked += [request] if answer else []
        read = self._read(asked)
        return [
            self._beside_answer(self._written[key], None if place is None else read[place])
            for key, place in places
        ]

    def _answers(self, prompts: Sequence[Prompt]) -> dict[str, Generation]:
        """By fingerprint, what the judge answers to `prompts`; each is asked once."""
        distinct = {prompt.fingerprint(): prompt for prompt in prompts}
        known = {key: self._written[key] for key in distinct if key in self._written}
        keys = [key for key in distinct if key not in known]
        requests = [self._own_request(distinct[key]) for key in keys]
        for batch in self._engine.generate(requests):
            known |= {keys[place]: generation for place, generation in batch.items()}
        return known

    def _own_request(self, prompt: Prompt) -> GenerationRequest:
        sampling = Sampling(max_new_tokens=self._max_new_tokens, temperature=0.0)
        return GenerationRequest(messages=self._protocol.own_task(prompt), sampling=sampling, seed=0)

    def _beside_answer(self, written: Generation, reading: LabelReading | None) -> LabelReading:
        if reading is None:
            self._progress.advance(1)
            return ReasonedReading((), 0, written.reason or NO_ANSWER)
        return ReasonedReading(
            reading.logprobs,
            reading.tokens,
            reading.reason,
            reading.bounded,
            reasoning=answer_of(written.text).strip(),
        )


def _beside(comparison: Comparison, answer: str) -> Comparison:
    return replace(comparison, prompt=replace(comparison.prompt, reference=answer))


def _with_answer(verdicts: tuple[Verdict, ...], readings: Sequence[LabelReading]) -> tuple[Verdict, ...]:
    first = readings[0]
    return tuple(
        replace(verdict, reasoning=first.reasoning if isinstance(first, ReasonedReading) else "")
        for verdict in verdicts
    )
