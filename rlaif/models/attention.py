"""Attention by matrix products, for training and scoring on a CPU.

torch's fused kernel (`scaled_dot_product_attention`) does in bfloat16 on a CPU a third of what plain batched
products do, and less in the backward pass, where it took a fifth of a PPO update. So inside `by_products` a
model that transformers would run with that kernel runs with products: the same attention, as near to float32
(docs/LOG.md), and as frugal, for where the weights are large they are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from rlaif.engines.tree import attention_configs

__all__ = ["by_products", "replaceable"]

NAME = "rlaif_products"
"""In transformers' registries of attention and mask functions."""
KEPT_KEYS = 128
"""Weights over more keys than these are not kept for the backward pass: for a head as wide as 64 they would
be larger than its keys."""


@contextmanager
def by_products(configs: Sequence[Any], device: torch.device) -> Iterator[None]:
    """Inside the block a model with these configs (see `replaceable`) attends by products instead of with
    torch's CPU kernel."""
    fused = (
        [config for config in configs if config._attn_implementation == "sdpa"]
        if device.type == "cpu"
        else []
    )
    try:
        for config in fused:
            config._attn_implementation = NAME
        yield
    finally:
        for config in fused:
            config._attn_implementation = "sdpa"


def replaceable(model: Any) -> list[Any]:
    """The configs that name an attention which can be another one; none where the model has one of its own
    making."""
    return attention_configs(model) if getattr(model, "_supports_attention_backend", False) else []


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: queries (B, heads, T, size), keys and values (B, key heads, S, size); returns
    (B, T, heads, size)."""
    if attention_mask is None or dropout:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return out, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = _Products.apply(query, key, value, attention_mask, scale)  # type: ignore[no-untyped-call]
    return out, None


class _Products(torch.autograd.Function):
    """softmax(s Q Kᵀ + M) V. Query heads that share a key head are rows of one matrix: (B · key heads, G,
    size)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        batch, heads, tokens, size = query.shape
        q = (query * scale).reshape(batch * key.shape[1], -1, size)
        k, v = (each.reshape(-1, *each.shape[2:]) for each in (key, value))
        weights = _weights(q, k, mask, tokens)
        ctx.save_for_backward(q, k, v, mask, weights if k.shape[1] <= KEPT_KEYS else None)
        ctx.shapes, ctx.scale = (query.shape, key.shape, value.shape), scale
        return torch.bmm(weights, v).view(batch, heads, tokens, -1).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, mask, weights = ctx.saved_tensors
        if weights is None:
            weights = _weights(q, k, mask, grad.shape[1])
        out = grad.transpose(1, 2).reshape(*q.shape[:2], -1)
        grad_v = torch.bmm(weights.transpose(1, 2), out)
        scores = torch.bmm(out, v.transpose(1, 2))
        scores = torch.ops.aten._softmax_backward_data(scores, weights, -1, scores.dtype)
        grad_q = torch.bmm(scores, k).mul_(ctx.scale)
        grad_k = torch.bmm(scores.transpose(1, 2), q)
        query, key, value = ctx.shapes
        return grad_q.view(query), grad_k.view(key), grad_v.view(value), None, None


def _weights(q: Tensor, k: Tensor, mask: Tensor, tokens: int) -> Tensor:
    """softmax(Q Kᵀ + M), (B · key heads, G, S)."""
    scores = torch.bmm(q, k.transpose(1, 2))
    scores.view(mask.shape[0], -1, tokens, k.shape[1]).add_(mask)
    return torch.softmax(scores, -1, out=scores)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)
