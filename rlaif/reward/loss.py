"""The loss of a reward model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlaif.labels import MOST_LOG_ODDS
from rlaif.models.shapes import same_shape, wide

__all__ = ["bradley_terry_loss", "label_log_odds"]


def bradley_terry_loss(
    reward_a: Tensor,
    reward_b: Tensor,
    p_a: Tensor,
    *,
    margin: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Soft-target Bradley–Terry loss of a reward model; the mean over rows, weighted by `weight`. All (B,).

    -[p log σ(Δ - m) + (1 - p) log σ(-Δ - m)], Δ = reward_a - reward_b: the cross-entropy of Bai et al. 2022
    (2212.08073) for m = 0, and Llama 2's margin loss (2307.09288, eq. 2) for p = 1. Exchanging a and b (and p
    for 1 - p) changes nothing.

    Args:
        p_a: P(a is better), 0 to 1; 0 or 1 is a hard label.
        margin: By how much the better one should win, at least 0.
        weight: Relative weight of each row, at least 0.
    """
    same_shape(reward_a=reward_a, reward_b=reward_b, p_a=p_a)
    delta, p = wide(reward_a) - wide(reward_b), wide(p_a)
    gap = torch.zeros_like(delta) if margin is None else wide(margin)
    loss = p * torch.nn.functional.softplus(gap - delta) + (1 - p) * torch.nn.functional.softplus(gap + delta)
    if weight is None:
        return loss.mean()
    same_shape(reward_a=reward_a, weight=weight)
    return (wide(weight) * loss).sum() / wide(weight).sum()


def label_log_odds(log_odds: Sequence[float], *, hard: bool) -> Tensor:
    """Labels (N,) as float64; with `hard` each is certain of the side it leans to, of the first one at 0."""
    soft = torch.tensor(log_odds, dtype=torch.double)
    return torch.where(soft >= 0, MOST_LOG_ODDS, -MOST_LOG_ODDS).double() if hard else soft
