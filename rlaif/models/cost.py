"""What running and training a model takes: floating-point operations, seconds, and memory.

FLOPs are estimated from token counts (Kaplan et al. 2020, 2001.08361, §2.1). With P the parameters of the
decoder layers without embeddings, A those of the role's adapter, and E those of the LM head, a token costs

    forward    2 (P + A), and 2 E where logits are formed
    backward   2 P + 4 A, and 2 E: the base is frozen, so only gradients of activations pass through it;
               the adapter's weights have gradients of their own
    again      2 (P + A), where layers are recomputed in the backward pass

Attention over the context is left out, a few per cent for short texts; so are scalar heads and the optimiser.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from rlaif.models.shared_base import SharedBase
from rlaif.process_memory import peak_since_start
from rlaif.ranks import current

__all__ = ["Meter", "forward_flops", "peak_memory"]


def forward_flops(base: SharedBase, role: str, *, tokens: int, logits: int) -> float:
    """FLOPs of forward passes of `role` over `tokens` tokens, with logits formed at `logits` of them."""
    return 2.0 * ((_layers(base) + _adapter(base, role)) * tokens + _head(base) * logits)


class Meter:
    """Adds up what happens while it is `on`.

    It counts at the model's door: every position that a pass is given, padding too, each with the role that
    is active, and a backward pass wherever one can follow. So it holds whatever shares prefixes, stops early
    or runs in micro-batches. A judge or a reward model counts where it runs through one of the bases.

    Attributes:
        flops: Of this process, estimated as this module says.
        seconds: Wall-clock.
    """

    def __init__(self) -> None:
        self.flops = 0.0
        self.seconds = 0.0

    @contextmanager
    def on(self, *bases: SharedBase) -> Iterator[None]:
        """Count inside the block; a base that is given twice counts once."""
        started = time.perf_counter()
        with ExitStack() as hooks:
            for base in {id(base): base for base in bases}.values():
                hooks.enter_context(base.model.get_decoder().register_forward_hook(self._layers_of(base)))
                hooks.enter_context(
                    base.model.get_output_embeddings().register_forward_hook(self._head_of(base))
                )
            try:
                yield
            finally:
                self.seconds += time.perf_counter() - started

    def flops_of_all(self) -> float:
        """The FLOPs of all ranks; all of them ask."""
        return sum(current().gather(self.flops))

    def _layers_of(self, base: SharedBase) -> Callable[[Any, Any, Any], None]:
        """A hook that counts passes through the decoder layers."""
        layers, adapters = _layers(base), dict[str, int]()

        def count(module: Any, args: Any, out: Any) -> None:
            states: Tensor = out[0]
            if base.active not in adapters:
                adapters[base.active] = _adapter(base, base.active)
            own = adapters[base.active]
            each = 2 * (layers + own)
            if states.requires_grad:
                each += 2 * layers + 4 * own + (2 * (layers + own) if base.recomputes else 0)
            self.flops += float(each * states.shape[:-1].numel())

        return count

    def _head_of(self, base: SharedBase) -> Callable[[Any, Any, Tensor], None]:
        """A hook that counts logits."""
        head = _head(base)

        def count(module: Any, args: Any, logits: Tensor) -> None:
            flops = 2.0 * head * logits.shape[:-1].numel()
            self._add(flops)
            # Where they are formed again in the backward pass, that is a forward pass more and no backward.
            if logits.requires_grad:
                logits.register_hook(lambda grad: self._add(flops))  # type: ignore[no-untyped-call]

        return count

    def _add(self, flops: float) -> None:
        self.flops += flops


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: on the GPU by this process's tensors, elsewhere by the process (0 where the
    system does not say)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_since_start()


def _layers(base: SharedBase) -> int:
    """Parameters of the decoder layers, without embeddings, LM head and adapters."""
    embedding, head = base.model.get_input_embeddings().weight, base.model.get_output_embeddings().weight
    adapters = sum(_adapter(base, role) for role in base.roles)
    return (
        int(base.model.num_parameters(exclude_embeddings=True))
        - adapters
        - (int(head.numel()) if head is not embedding else 0)
    )


def _head(base: SharedBase) -> int:
    return int(base.model.get_output_embeddings().weight.numel())


def _adapter(base: SharedBase, role: str) -> int:
    return sum(weight.numel() for weight in base.trainable(role)) if role in base.roles else 0
