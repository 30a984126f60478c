"""Two corrections to the output layer while the engine runs a model: one for speed, one for precision.

Speed: `logits_to_keep=1` hands the layer a strided slice, for which torch copies the whole weight matrix once
a row. A contiguous copy of the slice (a few kilobytes) avoids that.

Precision: a bfloat16 number has eight significant bits, so a logit of 20 is rounded to a multiple of 0.125,
    and with it the log-odds
of two labels. The few label columns are therefore computed again in float32 from the same hidden state, at
next to no cost. The other columns only enter the softmax's sum and stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["tuned_head"]


@contextmanager
def tuned_head(model: Any, *, fine: Iterable[int] = ()) -> Iterator[None]:
    """Inside the block the output layer of `model` takes contiguous input and gives the logits of the tokens
    `fine` in float32.

    What the model does to its logits afterwards (scaling, soft capping) then happens in float32 too. The
    second correction leaves models alone that compute in float32 already, or whose output layer is no plain
    linear layer (quantised, adapted).
    """
    head = model.get_output_embeddings()
    hooks = [] if head is None else [head.register_forward_pre_hook(_contiguous)]
    columns = sorted(fine)
    if columns and type(head) is torch.nn.Linear and head.weight.dtype in (torch.bfloat16, torch.float16):
        hooks.append(head.register_forward_hook(_Refine(head, columns)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _contiguous(_layer: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(arg.contiguous() for arg in args)


class _Refine:
    """Replaces a few columns of a linear layer's output by their float32 values."""

    def __init__(self, head: torch.nn.Linear, columns: list[int]) -> None:
        self.columns = torch.tensor(columns, device=head.weight.device)
        self.weight = head.weight[self.columns].float()
        self.bias = None if head.bias is None else head.bias[self.columns].float()

    def __call__(
        self, _layer: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        logits = output.float()
        logits[..., self.columns] = torch.nn.functional.linear(args[0].float(), self.weight, self.bias)
        return logits
