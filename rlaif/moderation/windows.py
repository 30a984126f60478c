"""From the log-odds of tokens to the score of a text, so that what is read while a text is written never
rests on what comes later.

A text is scored at each of its tokens. `windows` takes the mean over the last W tokens (the sliding-window
mean of Cunningham et al. 2026, Constitutional Classifiers++, 2601.04603) and the text's score is the greatest
of them; `mean` takes the mean over all tokens so far, and the text's score is the last one. Tokens that are
missing from the first window count as average ones, whose log-odds are 0: a text of two words is never as
surely bad as one of twenty.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["READOUTS", "WINDOW", "Readout", "RunningScore", "of_text", "token_path"]

Readout = Literal["windows", "mean"]
READOUTS: tuple[Readout, ...] = ("windows", "mean")
WINDOW = 16
"""Tokens of a window."""


def token_path(log_odds: Tensor, *, window: int, readout: Readout) -> Tensor:
    """The score of a text at each of its tokens: (T, C) -> (T, C), fp64."""
    total = log_odds.double().cumsum(0)
    if readout == "windows":
        return (total - pad(total, (0, 0, window, 0))[: len(total)]) / window
    count = torch.arange(1, len(total) + 1, dtype=torch.double, device=total.device)
    return total / count.clamp(min=window).unsqueeze(1)


def of_text(path: Tensor, readout: Readout) -> Tensor:
    """The score of the whole text, (T, C) -> (C,); 0 of a text without tokens."""
    if not len(path):
        return path.new_zeros(path.shape[1])
    return path.amax(0) if readout == "windows" else path[-1]


class RunningScore:
    """`token_path`, a token at a time.

    Args:
        window: Tokens of a window, W.
    """

    def __init__(self, *, window: int, readout: Readout) -> None:
        self._window, self._readout = window, readout
        self._last: deque[Tensor] = deque(maxlen=window)
        self._total: Tensor | None = None
        self._count = 0

    def push(self, log_odds: Tensor) -> Tensor:
        """The score at the token whose log-odds these are, (C,) -> (C,), fp64."""
        now = log_odds.double()
        self._count += 1
        if self._readout == "windows":
            self._last.append(now)
            return torch.stack(tuple(self._last)).sum(0) / self._window
        self._total = now if self._total is None else self._total + now
        return self._total / max(self._count, self._window)
