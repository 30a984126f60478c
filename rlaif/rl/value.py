"""The value function: a linear head on hidden states, of the reference or of an adapter of its own.

On the reference's states it costs no forward pass: the KL needs those anyway, they never change within a
rollout, and no gradient runs through the base. Features are shifted and scaled by fixed numbers taken from
the first rollout, so that one learning rate serves every base.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlaif.ranks import Ranks
from rlaif.reward.head import ScalarHead

__all__ = ["ValueHead"]


class ValueHead(nn.Module):
    """V(s) = w · (h - mean) / scale + b, fp32, with w and b 0 at the start (Huang, detail 11)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head = ScalarHead(hidden_size)
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.register_buffer("scale", torch.zeros(hidden_size))

    @property
    def calibrated(self) -> bool:
        """Whether `calibrate` was called."""
        return bool(self.scale.any())

    @torch.no_grad()
    def calibrate(self, states: Tensor, ranks: Ranks | None = None) -> None:
        """Take mean and scale of the features from (N, H) states; of several ranks, from those of all."""
        wide = states.float()
        if ranks is None or ranks.count == 1:
            mean, std = wide.mean(0), wide.std(0)
        else:
            count = sum(ranks.gather(len(wide)))
            mean = ranks.sum(wide.double().sum(0)) / count
            std = (ranks.sum((wide.double() - mean).square().sum(0)) / (count - 1)).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(std.clamp(min=1e-3))

    def forward(self, states: Tensor) -> Tensor:
        """(..., H) -> (...)."""
        values: Tensor = self.head((states.float() - self.mean) / self.scale)
        return values
