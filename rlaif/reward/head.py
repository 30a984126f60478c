"""Scalar heads: one number from hidden states, for the reward of a completion or the value of each of its
tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ScalarHead"]


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
