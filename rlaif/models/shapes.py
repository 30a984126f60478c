"""What formulas over tensors check and widen first."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["same_shape", "wide"]


def wide(x: Tensor) -> Tensor:
    """`x` in a dtype that a sum over it survives."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def same_shape(**tensors: Tensor) -> None:
    """Broadcasting would hide a forgotten axis: (B, T) against (B, 1) or (T,) is a mistake here.

    Raises:
        ValueError: The shapes differ.
    """
    if len({tuple(x.shape) for x in tensors.values()}) > 1:
        raise ValueError(
            "shapes differ: " + ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        )
