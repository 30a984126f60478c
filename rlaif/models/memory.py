"""What training will need in memory, told before anything is loaded.

Counted from the model's config: weights, adapters with their gradients and Adam's two moments, and what a decoder layer keeps of each
token for the way back. What a layer keeps was read off transformers' Llama layer with SDPA attention and our adapters; layers of
other models differ a little.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from rlaif.models.devices import pick_device, pick_dtype
from rlaif.models.load import resolve
from rlaif.models.quiet import quiet

__all__ = ["MemoryItem", "MemoryPlan", "ModelShape", "Precision", "available_memory", "model_shape", "plan_memory"]

TRAINED_BYTES = 16
"""A trained weight: itself, its gradient and Adam's two moments, all fp32."""

FROZEN_ADAPTER_BYTES = 4
RUNTIME = 440 << 20
"""Resident once torch, transformers and PEFT are imported on a CPU; a CUDA context takes about as much of the GPU."""

OVERHEAD = 1.6
"""Measured on SmolLM2-135M in bfloat16 on a CPU: 1.3 is alive at the peak (copies made on the way), the rest are holes in the heap
between micro-batches of different lengths."""


class ModelShape(NamedTuple):
    """The sizes of a model that memory depends on."""

    name: str
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    attention: int
    """Width of all query heads together."""
    vocabulary: int
    adapter_sizes: int
    """Sum of inputs and outputs over all linear layers but the LM head: an adapter of rank r has r times as many weights."""
    key_values: int = 0
    """Width of all key heads together, where it is less than `attention` (grouped queries)."""


class Precision(NamedTuple):
    """How wide the base's weights and its activations are, in bytes."""

    weights: float
    activations: int


class MemoryItem(NamedTuple):
    """One thing in memory."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True)
class MemoryPlan:
    """What is resident, and the peak.

    Attributes:
        available: Bytes that the device has free, if known.
        advice: What to change when it does not fit.
    """

    items: tuple[MemoryItem, ...]
    available: int | None
    advice: str

    @property
    def peak(self) -> int:
        """Estimated largest number of bytes in use at once."""
        return sum(item.bytes for item in self.items)

    @property
    def fits(self) -> bool:
        """Whether the peak is below what is free; true where that is unknown."""
        return self.available is None or self.peak <= self.available

    def lines(self) -> list[str]:
        """The plan as lines of text."""
        width = max(len(item.name) for item in self.items)
        lines = [f"{item.name:<{width}}  {_size(item.bytes):>8}  {item.why}" for item in self.items]
        free = "" if self.available is None else f"of {_size(self.available)} free"
        lines.append(f"{'peak (estimate)':<{width}}  {_size(self.peak):>8}  {free}".rstrip())
        return lines if self.fits else [*lines, f"This does not fit: {self.advice}"]


def model_shape(spec: str) -> ModelShape:
    """The sizes of a model, from its config: nothing is loaded."""
    source = resolve(spec, weights=False)
    with quiet(), torch.device("meta"):
        config: Any = transformers.AutoConfig.from_pretrained(source.path, local_files_only=True)
        model: Any = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return shape_of(model, name=spec)


def shape_of(model: Any, *, name: str) -> ModelShape:
    """The sizes of a transformers model, loaded or on the meta device."""
    config = model.config.get_text_config(decoder=True)
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    hidden: int = config.hidden_size
    heads: int = config.num_attention_heads
    width: int = getattr(config, "head_dim", None) or hidden // heads
    return ModelShape(
        name=name, parameters=sum(p.numel() for p in model.parameters()), layers=config.num_hidden_layers, hidden=hidden,
        intermediate=getattr(config, "intermediate_size", None) or 4 * hidden,
        attention=heads * width, key_values=(getattr(config, "num_key_value_heads", None) or heads) * width,
        vocabulary=config.vocab_size,
        adapter_sizes=sum(module.in_features + module.out_features for module in linear),
    )


def plan_memory(
    shape: ModelShape, *, precision: Precision, rank: int, trained: Sequence[str], frozen: Sequence[str] = (), micro_tokens: int,
    logit_tokens: int = 0, cache_tokens: int = 0, checkpointing: bool = False, available: int | None = None,
) -> MemoryPlan:
    """The plan for training adapters on one base.

    Args:
        rank: Of every adapter.
        trained: Roles that are trained at the same time.
        frozen: Roles whose adapters are only read.
        micro_tokens: Tokens in one forward and backward pass, padding included.
        logit_tokens: Those of them whose logits are computed.
        cache_tokens: Tokens in the key–value cache of a rollout, all its sequences together.
        available: Bytes free, as `available_memory` says.
    """
    adapter = rank * shape.adapter_sizes
    items = [
        MemoryItem("program", RUNTIME, "torch, transformers and PEFT themselves"),
        MemoryItem("base", round(shape.parameters * precision.weights), f"{shape.name}, frozen, once for all roles"),
    ]
    items += [MemoryItem(f"adapter {role}", adapter * TRAINED_BYTES, "weights, gradient, Adam's moments (fp32)") for role in trained]
    items += [MemoryItem(f"adapter {role}", adapter * FROZEN_ADAPTER_BYTES, "weights (fp32)") for role in frozen]
    kept = round(OVERHEAD * micro_tokens * _kept_per_token(shape, precision.activations, rank, checkpointing))
    items.append(MemoryItem("activations", kept, f"{micro_tokens} tokens a pass{', layers recomputed' if checkpointing else ''}"))
    if logit_tokens:
        # The logits, and their gradient on the way back.
        items.append(MemoryItem("logits", 2 * logit_tokens * shape.vocabulary * precision.activations, f"{logit_tokens} tokens"))
    if cache_tokens:
        cache = 2 * cache_tokens * shape.layers * (shape.key_values or shape.attention) * precision.activations
        items.append(MemoryItem("cache", cache, f"keys and values of {cache_tokens} tokens"))
    smaller = "lower micro_tokens" if checkpointing else "lower micro_tokens, or set gradient_checkpointing: true"
    return MemoryPlan(items=tuple(items), available=available, advice=f"{smaller}; a smaller model, or quantization: 4bit on a GPU")


def precision_of(dtype: str, device: str, *, quantization: str = "none") -> Precision:
    """The widths that a recipe's dtype and device settings come to."""
    width = pick_dtype(dtype, pick_device(device)).itemsize
    return Precision(weights=0.6 if quantization == "4bit" else width, activations=width)


def available_memory(device: torch.device) -> int | None:
    """Bytes free on the device; `None` where it cannot be asked."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        # What Linux calls available counts the page cache, which gives way; SC_AVPHYS_PAGES does not.
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return int(facts["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _kept_per_token(shape: ModelShape, width: int, rank: int, checkpointing: bool) -> int:
    """Bytes that the forward pass keeps of one token.

    A layer keeps: two inputs of norms in fp32 and their outputs (H each); queries, keys and values after rotation and repetition,
    the attention's output and its copy (5 widths of attention); gate, its activation, up and their product (4 I); and the low-rank
    products of its seven adapted layers.
    """
    layer = 2 * 4 * shape.hidden + width * (2 * shape.hidden + 5 * shape.attention + 4 * shape.intermediate + 7 * rank)
    if checkpointing:
        return shape.layers * width * shape.hidden + layer
    return shape.layers * layer


def _size(count: int) -> str:
    return f"{count / (1 << 30):.2f} GB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MB"
