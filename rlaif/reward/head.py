"""Scalar heads: one number from hidden states, for the reward of a completion or the value of each of its
tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rlaif.errors import DataError

__all__ = ["Pooling", "ScalarHead", "pool", "pool_groups"]

Pooling = Literal["last", "mean"]
"""`last`: the state of the completion's last token (the usual one). `mean`: the mean over its tokens, which
needs less data."""


class ScalarHead(nn.Module):
    """A linear map from H standardised features to one number, in fp32 whatever the base computes in.

    w · (x - shift) / scale + bias. Weight and bias start at 0 (Huang et al. 2024, detail 11, for the value);
    a reward head is fitted in closed form or drawn. Standardised, all features learn at one pace: those of a
    language model differ a hundredfold in size.

    Attributes:
        weight: (H,), trained.
        bias: (), trained.
        shift: (H,), fixed; 0 unless `standardise` sets it.
        scale: (H,), fixed; 1 unless `standardise` sets it.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("shift", torch.zeros(hidden_size))
        self.register_buffer("scale", torch.ones(hidden_size))

    def standardise(self, features: Tensor) -> None:
        """Take mean and standard deviation of each feature from (N, H)."""
        wide = features.double()
        self.shift.copy_(wide.mean(dim=0))
        self.scale.copy_(wide.std(dim=0, unbiased=False).clamp(min=1e-6))

    def draw(self, seed: int) -> None:
        """Draw the weight from N(0, 1/(H+1)) (Huang, detail 8; Stiennon et al. 2020); the bias is 0."""
        size = self.weight.numel()
        drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed)) / (size + 1) ** 0.5
        with torch.no_grad():
            self.weight.copy_(drawn)
            self.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """(..., H) -> (...), fp32."""
        scaled: Tensor = (features.float() - self.shift) / self.scale
        return scaled @ self.weight + self.bias


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
