"""Label logits in float32 from a model that computes in bfloat16.

A bfloat16 number has eight significant bits: a logit of 20 is rounded to a multiple of 0.125, and so is the log-odds of two labels,
which makes soft labels coarse and many of them ties. The few label columns of the output layer are therefore computed again in
float32 from the same hidden state, at next to no cost. The other columns only enter the softmax's sum and stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["fine_head"]


@contextmanager
def fine_head(model: Any, tokens: Iterable[int]) -> Iterator[None]:
    """Inside the block the output layer gives float32 logits, those of `tokens` computed in float32.

    What the model does to its logits afterwards (scaling, soft capping) then happens in float32 too. Nothing changes for a model that
    computes in float32 already, or whose output layer is no plain linear layer (quantised, adapted).
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.dtype not in (torch.bfloat16, torch.float16):
        yield
        return
    columns = torch.tensor(sorted(tokens), device=head.weight.device)
    weight = head.weight[columns].float()
    bias = None if head.bias is None else head.bias[columns].float()

    def refine(_layer: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        logits = output.float()
        logits[..., columns] = torch.nn.functional.linear(args[0].float(), weight, bias)
        return logits

    handle = head.register_forward_hook(refine)
    try:
        yield
    finally:
        handle.remove()
