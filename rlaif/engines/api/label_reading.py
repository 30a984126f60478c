"""From a server's reply to the log-probability of each label.

By *log-probabilities*, where the server tells the most probable tokens at the answer's first position. A
label is found as the tokens whose text, without leading space, is the label itself: its spellings ("A", " A")
are added up. Where none is told, the longest beginning of it that no other label shares stands for it. A
label that is not told, or is told as impossible (−inf, or vLLM's −9999), has at most the probability of the
least token told, and at most what the tokens told leave; it gets the lower of the two bounds when another
label was found, and the reading says so. The true log-odds are at least as far from zero as that. Where the
bound is no lower than what was found, nothing is known of the order, and the reading is invalid.

By *votes*, where it tells none: N sampled answers, or one greedy one, each parsed by `parse_label`; a label's
probability is (votes + ½) / (valid votes + ½ · labels), the Jeffreys estimate, times the share of answers
that named a label. One parsed letter thus counts as 0.75.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rlaif.engines.api.wire import Top
from rlaif.engines.base import LEAST_SHARE, LabelReading

__all__ = ["from_top", "from_votes", "parse_label"]

SPACES = (b" ", b"\t", b"\n", b"\r", "▁".encode(), "Ġ".encode(), "Ċ".encode())
"""Leading space, also in the spellings of raw SentencePiece and byte-level BPE tokens, which some servers
show."""
IMPOSSIBLE = -9_000.0
"""vLLM writes −9999 for a probability of zero, as JSON has no −inf."""
ROUNDING = 1e-3
"""How far above zero a log-probability may be, by rounding."""
MASS_ROUNDING = 0.01
"""How far the probabilities told may exceed 1 together, by rounding."""
LOWEST = -25.0
"""Log-probability of a label for which the tokens told leave nothing. The log-odds of a certain judge are so
finite: ±25 at most."""
PSEUDO_COUNT = 0.5

THINKING = re.compile(r"^.*</think>", re.DOTALL)
LEAD = re.compile(
    r"(?:(?:the\s+|my\s+)?(?:final\s+)?answer(?:\s+is)?|答案(?:是|为)?)\s*[:：]?\s*", re.IGNORECASE
)
MARKS = " \t\n\r\"'`*_()[]{}<>“”‘’「」（）【】"
ENDS = re.compile(r"[.,:;!?)\]}\"'*`_\n。，：；！？）】」”]|$")


def from_top(
    top: Sequence[Top] | None, labels: Sequence[str], *, tokens: int, least_share: float = LEAST_SHARE
) -> LabelReading:
    """A reading from the most probable tokens.

    Its reason is `no_logprobs`, `labels_alike`, `not_finite` (a label's own number is none, or all together
    exceed 1), `labels_not_in_top` or `labels_unlikely`. What is told of other tokens and is no
    log-probability is passed over.

    Args:
        top: Tokens at the first position, in any order.
        labels: The request's labels.
        tokens: Length of the prompt, for the record.
        least_share: Least probability of the labels together; 0 leaves that to the reader.
    """
    if not top:
        return LabelReading((), tokens, "no_logprobs")
    plain = [label.strip() for label in labels]
    if len(set(plain)) < len(plain):
        return LabelReading((), tokens, "labels_alike")
    spelled = [_spellings(top, label, [other for other in plain if other != label]) for label in plain]
    if any(not _is_logprob(each.logprob) for tops in spelled for each in tops):
        return LabelReading((), tokens, "not_finite")
    told = [each for each in dict.fromkeys(top) if _is_logprob(each.logprob) and each.logprob > IMPOSSIBLE]
    found = [_sum([each.logprob for each in tops if each.logprob > IMPOSSIBLE]) for tops in spelled]
    if all(logprob is None for logprob in found):
        return LabelReading((), tokens, "labels_not_in_top")
    mass = math.fsum(math.exp(each.logprob) for each in told)
    if mass > 1.0 + MASS_ROUNDING:
        return LabelReading((), tokens, "not_finite")
    bound, how = _bound(told, mass)
    if any(logprob is None for logprob in found) and any(
        logprob is not None and bound >= logprob for logprob in found
    ):
        return LabelReading((), tokens, "labels_not_in_top")
    reading = LabelReading(
        tuple(min(0.0, bound if logprob is None else logprob) for logprob in found),
        tokens,
        bounded=tuple(how if logprob is None else "told" for logprob in found) if None in found else (),
    )
    return reading if reading.share >= least_share else LabelReading((), tokens, "labels_unlikely")


def from_votes(texts: Sequence[str], labels: Sequence[str], *, tokens: int) -> LabelReading:
    """A reading from answers in words; its reason is `no_label_in_answer` when none of them names a label."""
    plain = [label.strip() for label in labels]
    if len(set(plain)) < len(plain):
        return LabelReading((), tokens, "labels_alike")
    votes = [parse_label(text, plain) for text in texts]
    valid = sum(vote is not None for vote in votes)
    if not valid:
        return LabelReading((), tokens, "no_label_in_answer")
    whole = (valid + PSEUDO_COUNT * len(labels)) * len(votes) / valid
    return LabelReading(
        tuple(math.log((votes.count(label) + PSEUDO_COUNT) / whole) for label in plain), tokens
    )


def parse_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that an answer in words names, or `None` when it names none plainly.

    The answer must be the label, or begin with it (after `Answer:`, quotation marks or brackets) and go on
    with punctuation: "A." is the label A; "A better one is B" names none, since an English sentence may begin
    with that letter.
    """
    plain = THINKING.sub("", text, count=1).lstrip(MARKS)
    if "<think>" in text and "</think>" not in text:
        return None
    lead = LEAD.match(plain)
    plain = plain[lead.end() :].lstrip(MARKS) if lead else plain
    plain = plain.rstrip()
    named = [
        label for label in labels if plain.startswith(label.strip()) and ENDS.match(plain, len(label.strip()))
    ]
    return max(named, key=len) if named else None


def _spellings(top: Sequence[Top], label: str, others: Sequence[str]) -> list[Top]:
    """The tokens told that stand for `label`: all that spell it whole, else the longest beginnings that no
    other label has."""
    whole = label.encode()
    texts = [(_without_space(each.text), each) for each in dict.fromkeys(top)]
    spelled = [each for text, each in texts if text == whole]
    if spelled:
        return spelled
    rest = [other.encode() for other in others]
    begun = [
        (text, each)
        for text, each in texts
        if text and whole.startswith(text) and not any(other.startswith(text) for other in rest)
    ]
    longest = max((len(text) for text, _ in begun), default=0)
    return [each for text, each in begun if len(text) == longest]


def _bound(told: Sequence[Top], mass: float) -> tuple[float, str]:
    """The highest log-probability that a token not told can have, and which of the two limits it is."""
    least = min(each.logprob for each in told)
    left = math.log(1.0 - mass) if mass < 1.0 else -math.inf
    return max(LOWEST, min(least, left)), "least" if least <= left else "mass"


def _sum(logprobs: Sequence[float]) -> float | None:
    """log Σ exp, of spellings that exclude each other; `None` of none."""
    if len(logprobs) < 2:
        return logprobs[0] if logprobs else None
    return math.log(math.fsum(math.exp(each) for each in logprobs))


def _is_logprob(value: float) -> bool:
    return value <= ROUNDING  # NaN compares false


def _without_space(text: bytes) -> bytes:
    while text.startswith(SPACES):
        text = next(text[len(space) :] for space in SPACES if text.startswith(space))
    return text
