"""Weights on disk: written whole or not at all, and never with a NaN in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rlaif.errors import ModelError

__all__ = ["check_finite", "write_tensors"]

LEARN_SLOWER = "nothing was saved: lower the learning rate, or train in float32"


def check_finite(
    tensors: Mapping[str, Tensor], *, what: str, where: str = "", remedy: str = LEARN_SLOWER
) -> None:
    """Refuse weights that are NaN or infinite: a model of them answers nonsense, or nothing.

    Args:
        what: What they are, for the message.
        where: The folder they were read from.
        remedy: What the reader can do about it; the default is for weights that were just trained.

    Raises:
        ModelError: Some are; the first is named.
    """
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        said = f"{len(bad)} of {len(tensors)} tensors of {what} are NaN or infinite, first {bad[0]}"
        raise ModelError(said, where=where, remedy=remedy)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file; the same values give the same bytes.

    Args:
        metadata: One key at most: safetensors writes several in an order that differs from run to run.

    Raises:
        OSError: The disk is full or refuses; safetensors tells of it in an error of its own.
    """
    try:
        save_file(
            {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()},
            path,
            metadata=metadata,
        )
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error
