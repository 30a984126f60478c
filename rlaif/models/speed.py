"""How fast this machine runs what models are made of: the units of every estimate of time.

Four of them, since none follows from another: matrix products of many rows, which most of the time goes to;
products of one row, which wait for the weights themselves (to come from memory, and to be laid out anew where
the arithmetic wants that); what is done to each number between the products; and starting an operation.
Decoding a few rows waits for the second and the last. What else runs on the machine counts: all are means
over their share of half a second, not its best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from itertools import cycle
from typing import NamedTuple

import torch

from rlaif.models.devices import pick_device, pick_dtype

__all__ = ["Speed", "machine_speed"]

ROWS, INNER, COLUMNS = 512, 576, 1536
"""About the shape of a small model's widest layer over a batch of tokens: 0.9 GFLOP."""
LAYERS = 32
"""Weights in turn, more than a cache holds: a model's come from memory too."""
BATCH = 100
"""Operations on a few numbers between two looks at the clock."""
SECONDS = 0.5
PRODUCTS, THIN, ELEMENTWISE, STARTS = 0.4, 0.2, 0.2, 0.2
"""Shares of `SECONDS`."""


class Speed(NamedTuple):
    """What the machine does in a second."""

    flops: float
    """Floating-point operations of matrix products of many rows."""
    weights: float
    """Weights that one row is multiplied by."""
    elements: float
    """Numbers to which something is done one by one, in the arithmetic of the products."""
    starts: float
    """Operations on so few numbers that only starting them takes time."""


@lru_cache(maxsize=4)
def machine_speed(dtype: str, device: str) -> Speed:
    """Time each for its share of half a second, after a warm-up.

    Args:
        dtype: `auto` or a torch dtype's name, as for loading a model: that of products and elements.
        device: `auto` or a torch device.

    Raises:
        ModelError: There is no such dtype or device.
    """
    place = pick_device(device)
    a = torch.ones(ROWS, INNER, dtype=pick_dtype(dtype, place), device=place)
    layers = cycle([torch.ones(COLUMNS, INNER, dtype=a.dtype, device=place) for _ in range(LAYERS)])
    few = torch.ones(ROWS, device=place)

    def start() -> torch.Tensor:
        for _ in range(BATCH - 1):
            torch.add(few, 1.0)
        return torch.add(few, 1.0)

    return Speed(
        flops=2.0
        * ROWS
        * INNER
        * COLUMNS
        * _rate(lambda: torch.nn.functional.linear(a, next(layers)), PRODUCTS),
        weights=float(INNER) * COLUMNS * _rate(lambda: torch.nn.functional.linear(a[:1], next(layers)), THIN),
        elements=a.numel() * _rate(lambda: torch.mul(a, a), ELEMENTWISE),
        starts=BATCH * _rate(start, STARTS),
    )


def _rate(work: Callable[[], torch.Tensor], share: float) -> float:
    """How often a second `work` is done, with the device waited for."""
    float(work().flatten()[0])  # reading one number waits for the device
    begun, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < SECONDS * share or not done:
        float(work().flatten()[0])
        done += 1
    return done / max(passed, 1e-9)
