"""How fast this machine multiplies matrices: the unit of every estimate of time."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from rlaif.models.devices import pick_device, pick_dtype

__all__ = ["matmul_rate"]

ROWS, INNER, COLUMNS = 1024, 1024, 4096
"""About the shape of a small model's widest layer over a batch of tokens: 8.6 GFLOP."""
TRIES = 3


@lru_cache(maxsize=4)
def matmul_rate(dtype: str, device: str) -> float:
    """FLOP a second of one matrix product, the best of three after a warm-up; takes well under a second.

    Args:
        dtype: `auto` or a torch dtype's name, as for loading a model.
        device: `auto` or a torch device.
    """
    place = pick_device(device)
    a = torch.ones(ROWS, INNER, dtype=pick_dtype(dtype, place), device=place)
    b = torch.ones(INNER, COLUMNS, dtype=a.dtype, device=place)
    best = float("inf")
    for attempt in range(TRIES + 1):
        start = time.perf_counter()
        float((a @ b)[0, 0])  # reading one number waits for the device
        if attempt:
            best = min(best, time.perf_counter() - start)
    return 2.0 * ROWS * INNER * COLUMNS / best
