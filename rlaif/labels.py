"""The one form of a soft label: log-odds, in nats.

0 says nothing, +x that the first completion (of a stored preference: the chosen one) is better with
probability σ(x). Verdicts, labels and targets of training are log-odds; probabilities stand in files, in
tables and in the loss, where Bradley–Terry's cross-entropy takes them.
"""

from __future__ import annotations

import math

__all__ = ["MOST_LOG_ODDS", "SURE", "log_odds_of", "sigmoid"]

MOST_LOG_ODDS = 700.0
"""A certain label (p = 1) as a finite number: σ(700) is 1 in double precision, and σ(-700) is not yet 0."""

SURE = 0.02
"""How near to 0 or 1 a label may be where its log-odds are a target or a margin: a certain label's have no
end, and a few of them would outweigh all others."""


def sigmoid(log_odds: float) -> float:
    """1 / (1 + exp(−log_odds)), without overflow."""
    if log_odds >= 0:
        return 1.0 / (1.0 + math.exp(-log_odds))
    power = math.exp(log_odds)
    return power / (1.0 + power)


def log_odds_of(p: float) -> float:
    """log(p / (1 − p)) of a probability; ±`MOST_LOG_ODDS` at 1 and 0."""
    if p in (0.0, 1.0):
        return math.copysign(MOST_LOG_ODDS, p - 0.5)
    return math.log(p) - math.log1p(-p)
