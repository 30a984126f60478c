"""Listwise: all completions of a prompt in one question, `A` to `P`, asked in several orders.

Read as a choice of the best (Plackett 1975, Luce 1959): log P(i) − log P(j) are the log-odds that i is better
than j. What a judge gives a place for the place's own sake is the larger the longer the list, so the list is
shown from the first on, from the middle on, and both backwards: the mean place of each completion is the
middle, and every two stand twice in either order. A prompt thus takes 4 questions a principle, whatever the
number of its pairs. A single pair is asked about in both orders, as `pairwise` does.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from rlaif.digest import unit_from
from rlaif.engines.base import LEAST_SHARE, LabelReading, LabelRequest
from rlaif.errors import DataError
from rlaif.judging.protocols import JudgingProtocol
from rlaif.prompts import LETTERS, PromptLibrary
from rlaif.types import Comparison, Completion, Constitution, Order, Principle, Verdict

__all__ = ["ORDERS", "Listwise"]

ORDERS = 4
"""In which a list of three or more is shown."""


class Listwise(JudgingProtocol):
    """Which of all completions is best, in several orders; labels are differences of log-probabilities."""

    name = "listwise"
    half = "comparison"
    template = "judge_listwise"
    orders = True

    def __init__(
        self, library: PromptLibrary, constitution: Constitution, *, least_share: float = LEAST_SHARE
    ) -> None:
        self._library = library
        self._least_share = least_share

    def shown(self, comparison: Comparison) -> tuple[Completion, ...]:
        """See `JudgingProtocol`; the two alone where they have no cohort."""
        return comparison.cohort or (comparison.a, comparison.b)

    def asks_about(self, comparison: Comparison) -> int:
        """See `JudgingProtocol`."""
        return ORDERS if len(self.shown(comparison)) > self.asks else self.asks

    def questions(self, comparison: Comparison, principle: Principle) -> tuple[LabelRequest, ...]:
        """One for each order; the same for all comparisons of a cohort.

        Raises:
            DataError: The cohort is larger than there are letters.
        """
        prompts = [
            self._library.judge_listwise(comparison.prompt, order, principle)
            for order in self._orders(comparison)
        ]
        return tuple(LabelRequest(messages=each.messages, labels=each.labels) for each in prompts)

    def verdicts(
        self, comparison: Comparison, principle: Principle, readings: Sequence[LabelReading]
    ) -> tuple[Verdict, ...]:
        """One verdict for the orders that show `a` before `b`, and one for the others: the mean of
        log P(a is best) − log P(b is best) over those with a valid reading."""
        gaps, shares = defaultdict[Order, list[float]](list), defaultdict[Order, list[float]](list)
        reasons = dict[Order, str]()
        for order, reading in zip(self._orders(comparison), readings, strict=True):
            a, b = (_place(order, each) for each in (comparison.a, comparison.b))
            side = Order.AB if a < b else Order.BA
            if reason := self._reason(reading, len(order), (a, b)):
                reasons.setdefault(side, reason)
            else:
                gaps[side].append(reading.logprobs[a] - reading.logprobs[b])
                shares[side].append(reading.share)
        return tuple(
            Verdict(
                comparison_id=comparison.id,
                principle_id=principle.id,
                order=side,
                logit_a=_mean(gaps[side]) if gaps[side] else None,
                reason="" if gaps[side] else reasons[side],
                evidence={"orders": float(len(gaps[side])), **_share(shares[side])},
            )
            for side in (Order.AB, Order.BA)
        )

    def _orders(self, comparison: Comparison) -> list[list[Completion]]:
        members, prompt = self.shown(comparison), comparison.prompt
        if len(members) > len(LETTERS):
            raise DataError(
                f"{len(members)} completions are more than a list may hold, {len(LETTERS)}",
                where=f"prompt {prompt.id}",
                remedy="sample fewer, or compare two at a time: protocol pairwise with pairs cohort",
            )
        key = prompt.fingerprint()
        ring = sorted(members, key=lambda each: unit_from("listwise", key, each.text))
        half = len(ring) // 2
        forward = [ring] if len(ring) <= self.asks else [ring, ring[half:] + ring[:half]]
        return [*forward, *(order[::-1] for order in forward)]

    def _reason(self, reading: LabelReading, count: int, places: tuple[int, int]) -> str:
        """Why the reading says nothing of the completions at `places`; empty where it does."""
        if reading.reason:
            return reading.reason
        a, b = (reading.logprobs[place] if place < len(reading.logprobs) else math.nan for place in places)
        if len(reading.logprobs) != count or not math.isfinite(a - b):
            return "not_finite"
        return "" if reading.share >= self._least_share else "labels_unlikely"


def _place(order: Sequence[Completion], completion: Completion) -> int:
    """Where a completion stands; of a cohort's with the same text, one stands for all."""
    ids = [each.id for each in order]
    if completion.id in ids:
        return ids.index(completion.id)
    text = completion.text.strip()
    return next(at for at, each in enumerate(order) if each.text.strip() == text)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _share(shares: Sequence[float]) -> dict[str, float]:
    return {"share": _mean(shares)} if shares else {}
