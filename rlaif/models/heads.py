"""Scalar heads: one number from hidden states, for the reward of a completion or the value of each of its tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rlaif.errors import DataError

__all__ = ["Pooling", "ScalarHead", "pool"]

Pooling = Literal["last", "mean"]
"""`last`: the state of the completion's last token (the usual one). `mean`: the mean over its tokens, which needs less data."""


class ScalarHead(nn.Module):
    """A linear map from H features to one number, in fp32 whatever the base computes in.

    Weight and bias start at 0 (Huang et al. 2024, detail 11, for the value); a reward head is fitted in closed form or drawn by
    `draw`.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(()))

    def draw(self, seed: int) -> None:
        """Draw the weight from N(0, 1/(H+1)) (Huang, detail 8; Stiennon et al. 2020); the bias is 0."""
        size = self.weight.numel()
        drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed)) / (size + 1) ** 0.5
        with torch.no_grad():
            self.weight.copy_(drawn)
            self.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """(..., H) -> (...), fp32."""
        return torch.mv(features.float().flatten(0, -2), self.weight).view(features.shape[:-1]) + self.bias


def pool(hidden: Tensor, is_completion: Tensor, pooling: Pooling) -> Tensor:
    """One feature vector a row: (B, T, H) -> (B, H), fp32.

    Args:
        is_completion: (B, T), True at the completion's tokens, False at prompt and padding (on either side).

    Raises:
        DataError: A row has no completion token.
    """
    if not bool(is_completion.any(dim=1).all()):
        raise DataError("a completion has no token, so there is nothing to score", remedy="drop empty completions first")
    if pooling == "last":
        last = is_completion.shape[1] - 1 - is_completion.flip(1).int().argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    weights = is_completion.float() / is_completion.sum(dim=1, keepdim=True)
    return torch.einsum("bt,bth->bh", weights, hidden.float())
