"""From a server's reply to the log-probability of each label.

By *log-probabilities*, where the server tells the most probable tokens at the answer's first position. A label is the most probable
token whose text, without leading space, is the label itself or a beginning of it that no other label shares. A label that is not among
the tokens told has at most the probability of the least of them, and gets that bound when another label was found: the log-odds are
then at least as far from zero as told, never farther told than they are.

By *votes*, where it tells none: N sampled answers, or one greedy one, each parsed by `parse_label`; a label's probability is
(votes + ½) / (valid votes + ½ · labels), the Jeffreys estimate, times the share of answers that named a label. One parsed letter thus
counts as 0.75.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rlaif.engines.api.wire import Top
from rlaif.engines.base import LabelReading

__all__ = ["from_top", "from_votes", "parse_label"]

SPACES = (b" ", b"\t", b"\n", b"\r", "▁".encode(), "Ġ".encode(), "Ċ".encode())
"""Leading space, also in the spellings of raw SentencePiece and byte-level BPE tokens, which some servers show."""
IMPOSSIBLE = -9_000.0
"""vLLM writes −9999 for a probability of zero, as JSON has no −inf."""
ROUNDING = 1e-3
"""How far above zero a log-probability may be, by rounding."""
PSEUDO_COUNT = 0.5

THINKING = re.compile(r"^.*</think>", re.DOTALL)
LEAD = re.compile(r"(?:(?:the\s+|my\s+)?(?:final\s+)?answer(?:\s+is)?|答案(?:是|为)?)\s*[:：]?\s*", re.IGNORECASE)
MARKS = " \t\n\r\"'`*_()[]{}<>“”‘’「」（）【】"
ENDS = re.compile(r"[.,:;!?)\]}\"'*`_\n。，：；！？）】」”]|$")


def from_top(top: Sequence[Top] | None, labels: Sequence[str], *, tokens: int) -> LabelReading:
    """A reading from the most probable tokens; its reason is `no_logprobs`, `labels_alike`, `not_finite` or `labels_not_in_top`.

    Args:
        top: Tokens at the first position, the most probable first.
        labels: The request's labels.
        tokens: Length of the prompt, for the record.
    """
    if not top:
        return LabelReading((), tokens, "no_logprobs")
    if len(set(labels)) < len(labels):
        return LabelReading((), tokens, "labels_alike")
    if any(math.isnan(each.logprob) or each.logprob > ROUNDING for each in top):
        return LabelReading((), tokens, "not_finite")
    possible = [each for each in top if each.logprob > IMPOSSIBLE]
    found = [_find(possible, label, [other for other in labels if other != label]) for label in labels]
    if all(logprob is None for logprob in found):
        return LabelReading((), tokens, "labels_not_in_top")
    bound = min(each.logprob for each in possible)
    return LabelReading(tuple(min(0.0, bound if logprob is None else logprob) for logprob in found), tokens)


def from_votes(texts: Sequence[str], labels: Sequence[str], *, tokens: int) -> LabelReading:
    """A reading from answers in words; its reason is `no_label_in_answer` when none of them names a label."""
    if len(set(labels)) < len(labels):
        return LabelReading((), tokens, "labels_alike")
    votes = [parse_label(text, labels) for text in texts]
    valid = sum(vote is not None for vote in votes)
    if not valid:
        return LabelReading((), tokens, "no_label_in_answer")
    whole = (valid + PSEUDO_COUNT * len(labels)) * len(votes) / valid
    return LabelReading(tuple(math.log((votes.count(label) + PSEUDO_COUNT) / whole) for label in labels), tokens)


def parse_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that an answer in words names, or `None` when it names none plainly.

    The answer must be the label, or begin with it (after `Answer:`, quotation marks or brackets) and go on with punctuation: "A." is
    the label A; "A better one is B" names none, since an English sentence may begin with that letter.
    """
    plain = THINKING.sub("", text, count=1).lstrip(MARKS)
    if "<think>" in text and "</think>" not in text:
        return None
    lead = LEAD.match(plain)
    plain = plain[lead.end() :].lstrip(MARKS) if lead else plain
    named = [label for label in labels if plain.startswith(label) and ENDS.match(plain.rstrip(), len(label))]
    return max(named, key=len) if named else None


def _find(top: Sequence[Top], label: str, others: Sequence[str]) -> float | None:
    whole = label.strip().encode()
    rest = [other.strip().encode() for other in others]
    for each in top:
        text = _without_space(each.text)
        if text and whole.startswith(text) and (text == whole or not any(other.startswith(text) for other in rest)):
            return each.logprob
    return None


def _without_space(text: bytes) -> bytes:
    while text.startswith(SPACES):
        text = next(text[len(space) :] for space in SPACES if text.startswith(space))
    return text
