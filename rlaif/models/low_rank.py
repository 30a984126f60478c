"""A LoRA layer that computes in the base's dtype over fp32 weights.

PEFT computes an adapter in the dtype its weights are kept in: in fp32 a bfloat16 activation is copied to fp32
seven times a decoder layer and the products run at half the speed; in bfloat16 Adam's small steps are rounded
away. Here the weights stay fp32 and are rounded for each product, so optimiser, checkpoints and merging see
fp32 while products and saved activations are those of the base. Registered through PEFT's hook for layer
types of one's own, so that names, files and merging remain PEFT's.

Forward and backward are one autograd function: x Wᵀ + (x Aᵀ)(s B)ᵀ accumulates into one buffer each way,
without the passes that scaling and adding would cost.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["LowRankLinear"]


class LowRankLinear(Linear):
    """A linear layer with at most one active adapter, and a frozen base."""

    rounded: tuple[Tensor, Tensor] | None = None
    """Aᵀ and (s B)ᵀ of the active adapter in the base's dtype, while `SharedBase.held` holds them."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out), in the dtype of `x`."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or not active:
            return self.base_layer(x)  # type: ignore[no-any-return]
        (name,) = active
        base, a, b = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        if self.rounded is not None:
            rows = x.reshape(-1, x.shape[-1])
            held: Tensor = base(rows).addmm_(rows @ self.rounded[0], self.rounded[1])
            return held.view(*x.shape[:-1], -1)
        y: Tensor = _LowRank.apply(x, base.weight, base.bias, a, b, self.scaling[name])  # type: ignore[no-untyped-call]
        return y

    def hold(self) -> None:
        """Round the active adapter's weights once for all passes until `rounded` is `None` again."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if active and not self.disable_adapters and not self.merged:
            (name,) = active
            dtype: torch.dtype = self.get_base_layer().weight.dtype  # type: ignore[assignment]
            a, b = (adapter[name].get_parameter("weight").detach() for adapter in (self.lora_A, self.lora_B))
            self.rounded = (a.to(dtype).t(), (b * self.scaling[name]).to(dtype).t())


class _LowRank(torch.autograd.Function):
    """y = x Wᵀ + bias + s (x Aᵀ) Bᵀ for frozen W (out, in) and bias, trained A (rank, in) and B (out, rank)
    in fp32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.to(x.dtype).t()
        y = torch.nn.functional.linear(rows, weight, bias)
        y.addmm_(low, (b * scale).to(x.dtype).t())
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scale = scale
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None, None]:
        x, low, weight, a, b = ctx.saved_tensors
        need_x, _, _, need_a, need_b, _ = ctx.needs_input_grad
        rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_low = grad @ (b * ctx.scale).to(grad.dtype)
        grad_x = None
        if need_x:
            grad_x = (grad @ weight).addmm_(grad_low, a.to(grad.dtype)).view_as(x)
        grad_a = (grad_low.t() @ rows).to(a.dtype) if need_a else None
        grad_b = (grad.t() @ low).to(b.dtype).mul_(ctx.scale) if need_b else None
        return grad_x, None, None, grad_a, grad_b, None
