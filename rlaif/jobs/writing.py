"""What a judge writes before its labels are read, reasons or an answer of its own, in a plan of memory."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.engines.base import TokenCount
from rlaif.jobs.lengths import sampled_work
from rlaif.judging.judge import Judge
from rlaif.judging.protocols import JudgingProtocol
from rlaif.models.memory import StageWork
from rlaif.types import Comparison, Message

__all__ = ["written_work"]

LOOKED_AT = 16
"""Comparisons and texts, the longest in characters, whose tokens are counted."""


def written_work(
    judge: Judge,
    protocol: JudgingProtocol,
    comparisons: Sequence[Comparison],
    counter: TokenCount,
    *,
    rows: int,
    tokens: int,
    reasonings: int = 1,
) -> StageWork:
    """The sampling of what `judge` writes about `comparisons`; no work where its protocol asks for nothing.

    Args:
        judge: Asks by `protocol`; its engine is not asked.
        rows: That the device samples side by side.
        tokens: Longest text that it writes.
        reasonings: For a question, where it reasons.
    """
    if not comparisons or not (protocol.reasons or protocol.commits):
        return StageWork()
    asked: list[tuple[Message, ...]]
    if protocol.commits:
        prompts = {each.prompt.fingerprint(): each.prompt for each in comparisons}.values()
        asked, count = [protocol.own_task(prompt) for prompt in prompts], len(prompts)
    else:
        longest = sorted(comparisons, key=_characters, reverse=True)[:LOOKED_AT]
        asked = [request.messages for each in longest for request in judge.requests(each)]
        count = reasonings * sum(map(judge.questions_about, comparisons))
    asked = sorted(asked, key=_length, reverse=True)[:LOOKED_AT]
    return sampled_work(min(rows, count), max(map(counter.count, asked)), tokens)


def _characters(comparison: Comparison) -> int:
    return len(comparison.a.text) + len(comparison.b.text) + _length(comparison.prompt.messages)


def _length(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)
