"""What running a model takes: floating-point operations, and memory."""

from __future__ import annotations

import sys

import torch

from rlaif.models.shared_base import SharedBase

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

__all__ = ["forward_flops", "peak_memory"]


def forward_flops(base: SharedBase, role: str, *, tokens: int, logits: int) -> float:
    """FLOPs of forward passes over `tokens` tokens: 2 × parameters × tokens (Kaplan et al. 2020, 2001.08361, §2.1).

    The parameters are those of the decoder layers and of the role's adapter, without embeddings; the LM head counts only for the
    `logits` positions that it is applied to. Attention over the context is left out, a few per cent for short texts. A backward
    pass takes about as much again for the activations, and for weights that train once more.
    """
    embedding, head = base.model.get_input_embeddings().weight, base.model.get_output_embeddings().weight
    adapters = {name: sum(weight.numel() for weight in base.trainable(name)) for name in base.roles}
    without = int(base.model.num_parameters(exclude_embeddings=True)) - sum(adapters.values())
    layers: int = without - (head.numel() if head is not embedding else 0) + adapters.get(role, 0)
    return 2.0 * (layers * tokens + int(head.numel()) * logits)


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: on the GPU by this process's tensors, elsewhere by the process (0 where the system does not say)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
