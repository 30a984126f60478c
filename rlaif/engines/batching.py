"""Which sequences share a forward pass, and how they are padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from rlaif.engines.labels import Tokens

__all__ = ["Padded", "pad_left", "plan"]


class Padded(NamedTuple):
    """A batch, padded on the left so that the last column is every row's last token. All `(B, T)`.

    `mask` is 1 on real tokens; `positions` counts them from 0 (padding: 0), as models with absolute positions
    need it.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor


def plan(costs: Sequence[int], *, budget: int, rows: int | None = None) -> list[list[int]]:
    """Cut items into batches of similar cost, the dearest first.

    Args:
        costs: Tokens of each item.
        budget: Most tokens that a batch may hold, every row counted as long as the longest; a longer item
            goes alone.
        rows: Most items in a batch; `None` means no limit but the budget.

    Returns:
        Indices, batch by batch. The plan depends on the costs alone. Dearest first: what will not fit fails
        at once.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        batch = batches[-1] if batches else None
        if (
            batch is not None
            and (len(batch) + 1) * costs[batch[0]] <= budget
            and (rows is None or len(batch) < rows)
        ):
            batch.append(index)
        else:
            batches.append([index])
    return batches


def pad_left(sequences: Sequence[Tokens], *, pad: int, device: torch.device) -> Padded:
    """Put sequences of different lengths into one batch."""
    width = max(len(ids) for ids in sequences)
    ids = torch.full((len(sequences), width), pad, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        start = width - len(sequence)
        ids[row, start:] = torch.from_numpy(sequence)
        mask[row, start:] = 1
    positions = (mask.cumsum(1) - 1).clamp_(min=0)
    return Padded(ids=ids.to(device), mask=mask.to(device), positions=positions.to(device))
