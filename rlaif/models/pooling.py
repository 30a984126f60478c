"""One feature vector of the hidden states of several tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlaif.errors import DataError

__all__ = ["Pooling", "pool", "pool_groups"]

Pooling = Literal["last", "mean"]
"""`last`: the state of the completion's last token (the usual one). `mean`: the mean over its tokens, which
needs less data."""


def pool(hidden: Tensor, is_completion: Tensor, pooling: Pooling) -> Tensor:
    """One feature vector a row: (B, T, H) -> (B, H), fp32.

    Args:
        is_completion: (B, T), True at the completion's tokens, False at prompt and padding (on either side).

    Raises:
        DataError: A row has no completion token.
    """
    rows = torch.arange(len(hidden), device=hidden.device).unsqueeze(1)
    return pool_groups(hidden, torch.where(is_completion, rows, -1), len(hidden), pooling)


def pool_groups(hidden: Tensor, group: Tensor, count: int, pooling: Pooling) -> Tensor:
    """One feature vector a group of tokens: (B, T, H) -> (count, H), fp32.

    Args:
        group: (B, T), which group a token belongs to, -1 for none. What stands at -1 never reaches the
            result.

    Raises:
        DataError: A group has no token.
    """
    flat = group.flatten()
    place = flat.ge(0).nonzero().squeeze(1)
    owner = flat[place]
    sizes = torch.bincount(owner, minlength=count)
    if not bool(sizes.all()):
        raise DataError(
            "a completion has no token, so there is nothing to score", remedy="drop empty completions first"
        )
    states = hidden.flatten(0, 1)
    if pooling == "last":
        last = torch.zeros(count, dtype=torch.long, device=flat.device).scatter_reduce(
            0, owner, place, "amax"
        )
        return states[last].float()
    sums = torch.zeros(count, hidden.shape[2], device=hidden.device).index_add(
        0, owner, states[place].float()
    )
    return sums / sizes.unsqueeze(1)
