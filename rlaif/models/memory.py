"""What a stage will need in memory, told before anything is loaded.

Counted from the model's config: weights, adapters with their gradients and Adam's two moments, and what a
decoder layer keeps of each token for the backward pass. What a layer keeps was read off transformers' Llama
layer with SDPA attention and our adapters; layers of other models differ a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil
import torch
import transformers
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlaif.engines.decoding import GATHERED
from rlaif.errors import ModelError
from rlaif.models.devices import pick_dtype
from rlaif.models.load import LOAD_ERRORS, resolve
from rlaif.models.probe_files import weights_of
from rlaif.models.quiet import quiet

__all__ = [
    "STATES_KEPT",
    "MemoryItem",
    "MemoryPlan",
    "ModelShape",
    "Precision",
    "StageWork",
    "available_memory",
    "model_shape",
    "plan_memory",
    "size",
]

TRAINED_BYTES = 16
"""A trained weight: itself, its gradient and Adam's two moments, all fp32."""

FROZEN_ADAPTER_BYTES = 4
RUNTIME = 450 << 20
"""Resident once torch, transformers, PEFT and TRL are imported on a CPU; a CUDA context takes about as much
of the GPU."""

KERNEL_BYTES = 192 << 20
"""What oneDNN's kernels come to (`heap.KERNELS` of them at most; 0.6 MB each measured), where passes of many
shapes are made; half of it where rows are sampled alone, which has few."""

CACHE_GROWTH = 2.0
"""A cache of keys and values grows by a copy a token, and the heap cannot use what the shorter one left for
the longer one."""

LOGITS = 1 << 24
"""Logits that a training pass forms at once (32 MiB in bfloat16): the LM head is applied to so many positions
that have no more."""

OVERHEAD = 1.6
"""Measured on SmolLM2-135M in bfloat16 on a CPU: 1.3 is alive at the peak (copies made on the way), the rest
are holes in the heap between micro-batches of different lengths."""


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
    """Sum of inputs and outputs over all linear layers but the LM head: an adapter of rank r has r times as
    many weights."""
    key_values: int = 0
    """Width of all key heads together, where it is less than `attention` (grouped queries)."""
    in_layers: int = 0
    """Those of `parameters` that the decoder layers have: what `shard_base` cuts into parts."""

    def held(self, shards: int) -> float:
        """Parameters that one of so many ranks holds, the layers in parts; all of them where it is one."""
        return self.parameters - self.in_layers * (1 - 1 / shards)

    def gathered(self, shards: int) -> float:
        """Parameters of layers that a rank holds whole during a pass, besides."""
        return GATHERED * self.in_layers / self.layers if shards > 1 else 0.0


class Precision(NamedTuple):
    """How wide the base's weights and its activations are, in bytes."""

    weights: float
    activations: int


STATES_KEPT = 1 << 30
"""Bytes of hidden states that are kept; where there are more, the texts are read again."""


class StageWork(NamedTuple):
    """What is done with a model at once, in tokens; 0 where that is not done."""

    micro_tokens: int = 0
    """In one forward and backward pass, padding included."""
    logit_tokens: int = 0
    """Those of them whose logits are computed."""
    sampled_rows: int = 0
    """Completions sampled side by side."""
    row_tokens: int = 0
    """In one of these rows at its longest: the prompt and the completion."""
    new_tokens: int = 0
    """In the longest completion."""
    read_tokens: int = 0
    """In one forward pass without gradient."""
    read_logits: int = 0
    """Positions of that pass whose logits are computed."""
    checkpointing: bool = False
    """Layers are recomputed in the backward pass."""
    kept_states: int = 0
    """Hidden states, one a token and layer, that are kept in fp32 to be gone through again."""


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
        lines = [f"{item.name:<{width}}  {size(item.bytes):>8}  {item.why}" for item in self.items]
        free = "" if self.available is None else f"of {size(self.available)} free"
        lines.append(f"{'peak (estimate)':<{width}}  {size(self.peak):>8}  {free}".rstrip())
        return lines if self.fits else [*lines, f"This does not fit: {self.advice}"]


def model_shape(spec: str) -> ModelShape:
    """The sizes of a model, from its config: nothing is loaded.

    Raises:
        ModelError: There is no such model, or its config cannot be read.
    """
    source = resolve(weights_of(spec), weights=False)
    try:
        with quiet(), torch.device("meta"):
            config: Any = transformers.AutoConfig.from_pretrained(
                source.path, local_files_only=True, trust_remote_code=False
            )
            model: Any = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except LOAD_ERRORS as error:
        raise ModelError(
            f"the config of the model cannot be read: {error}", where=spec, remedy="check its config.json"
        ) from error
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
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=hidden,
        intermediate=getattr(config, "intermediate_size", None) or 4 * hidden,
        attention=heads * width,
        key_values=(getattr(config, "num_key_value_heads", None) or heads) * width,
        vocabulary=config.vocab_size,
        adapter_sizes=sum(module.in_features + module.out_features for module in linear),
        in_layers=sum(
            p.numel()
            for layer in model.modules()
            if isinstance(layer, GradientCheckpointingLayer)
            for p in layer.parameters()
        ),
    )


def plan_memory(
    shape: ModelShape,
    work: StageWork,
    *,
    precision: Precision,
    rank: int = 0,
    trained: Sequence[str] = (),
    frozen: Sequence[str] = (),
    shards: int = 1,
    kernels: int = KERNEL_BYTES,
    available: int | None = None,
) -> MemoryPlan:
    """The plan for running a base with its adapters. What is resident adds up; of the parts of the work, the
    largest counts.

    Args:
        rank: Of every adapter.
        trained: Roles whose adapters learn.
        frozen: Roles whose adapters are only read.
        shards: Ranks that hold a part of each layer; the plan is of one.
        kernels: Bytes of kernels that are made for the shapes of the work; 0 on a GPU.
        available: Bytes free, as `available_memory` says.
    """
    adapter = rank * shape.adapter_sizes
    items = [
        MemoryItem("program", RUNTIME, "torch, transformers, PEFT and TRL themselves"),
        *_base(shape, precision, shards),
    ]
    items += [
        MemoryItem(f"adapter {role}", adapter * TRAINED_BYTES, "weights, gradient, Adam's moments (fp32)")
        for role in trained
    ]
    items += [
        MemoryItem(f"adapter {role}", adapter * FROZEN_ADAPTER_BYTES, "weights (fp32)") for role in frozen
    ]
    if kernels:
        few = not (work.micro_tokens or work.read_tokens)
        items.append(
            MemoryItem("kernels", kernels // 2 if few else kernels, "compiled for the shapes that occur")
        )
    parts = (
        _training(shape, work, precision, rank),
        _sampling(shape, work, precision),
        _reading(shape, work, precision),
    )
    items += max(parts, key=lambda part: sum(item.bytes for item in part))
    smaller = "lower micro_tokens or micro_batch" + (
        "" if work.checkpointing else ", or set gradient_checkpointing: true"
    )
    if not work.micro_tokens:
        smaller = "lower max_new_tokens"
    base = "more processes" if shards > 1 else "on GPUs quantization: 4bit or shard_base: true"
    return MemoryPlan(
        items=tuple(items), available=available, advice=f"{smaller}; a smaller model, or {base}"
    )


def _base(shape: ModelShape, precision: Precision, shards: int) -> list[MemoryItem]:
    """The frozen weights, and what a pass gathers of those of other ranks."""
    if shards == 1:
        weights = round(shape.parameters * precision.weights)
        return [MemoryItem("base", weights, f"{shape.name}, frozen, once for all roles")]
    held, gathered = (round(x * precision.weights) for x in (shape.held(shards), shape.gathered(shards)))
    return [
        MemoryItem("base", held, f"{shape.name}, frozen, once for all roles; 1/{shards} of its layers"),
        MemoryItem("gathered", gathered, "a whole layer, and the buffers of two gathers"),
    ]


def _training(shape: ModelShape, work: StageWork, precision: Precision, rank: int) -> list[MemoryItem]:
    """A forward and backward pass."""
    if not work.micro_tokens:
        return []
    kept = round(
        OVERHEAD * work.micro_tokens * _kept_per_token(shape, precision.activations, rank, work.checkpointing)
    )
    items = [
        MemoryItem(
            "activations",
            kept,
            f"{work.micro_tokens} tokens per pass{', layers recomputed' * work.checkpointing}",
        )
    ]
    if work.logit_tokens:
        # The logits, of which only so many are formed at once, and their gradient in the backward pass.
        logits = min(work.logit_tokens * shape.vocabulary, LOGITS)
        items.append(
            MemoryItem("logits", 2 * logits * precision.activations, f"{work.logit_tokens} tokens, in parts")
        )
    return items


def _sampling(shape: ModelShape, work: StageWork, precision: Precision) -> list[MemoryItem]:
    """Prompts read, and then a token a step for all rows."""
    if not work.sampled_rows:
        return []
    width, tokens = precision.activations, work.sampled_rows * work.row_tokens
    cache = 2 * tokens * shape.layers * (shape.key_values or shape.attention) * width
    prompt = work.sampled_rows * max(1, work.row_tokens - work.new_tokens)
    return [
        MemoryItem(
            "cache",
            round(CACHE_GROWTH * cache),
            f"keys and values of {tokens} tokens, and memory freed as they grow",
        ),
        # Reading the prompts comes before the draws; the draws work on the logits in fp32, three times.
        MemoryItem("pass", prompt * _passing(shape, width), f"{prompt} tokens of prompts read at once"),
        MemoryItem(
            "logits", work.sampled_rows * shape.vocabulary * (width + 3 * 4), f"{work.sampled_rows} rows"
        ),
    ]


def _reading(shape: ModelShape, work: StageWork, precision: Precision) -> list[MemoryItem]:
    """Passes without gradient: a judge's, or a reward model's."""
    if not work.read_tokens:
        return []
    size_of_pass = work.read_tokens * _passing(shape, precision.activations)
    items = [MemoryItem("pass", size_of_pass, f"{work.read_tokens} tokens without gradient")]
    if work.kept_states:
        kept = min(work.kept_states * shape.hidden * 4, STATES_KEPT)
        items.append(MemoryItem("states", kept, "of tokens, to be gone through again"))
    if work.read_logits:
        # In the model's arithmetic; in fp32, to read labels from; a copy of the rows that are wanted; and its
        # exponentials.
        items.append(
            MemoryItem(
                "logits",
                work.read_logits * shape.vocabulary * (precision.activations + 3 * 4),
                f"{work.read_logits} last positions",
            )
        )
    return items


def precision_of(dtype: str, device: torch.device, *, quantization: str = "none") -> Precision:
    """The widths that a recipe's dtype comes to on a device; `auto` is 16 bits on a GPU, which may be one of
    another machine."""
    width = 2 if device.type == "cuda" and dtype == "auto" else pick_dtype(dtype, device).itemsize
    return Precision(weights=0.6 if quantization == "4bit" else width, activations=width)


def available_memory(device: torch.device) -> int | None:
    """Bytes free on the device; `None` where it cannot be asked."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return int(psutil.virtual_memory().available)  # counts the page cache, which gives way
    except (OSError, psutil.Error):
        return None


def _kept_per_token(shape: ModelShape, width: int, rank: int, checkpointing: bool) -> int:
    """Bytes that the forward pass keeps of one token.

    A layer keeps: two inputs of norms in fp32 and their outputs (H each); queries, keys and values after
    rotation and repetition, the attention's output and its copy (5 widths of attention); gate, its
    activation, up and their product (4 I); and the low-rank products of its seven adapted layers.
    """
    layer = 2 * 4 * shape.hidden + width * (
        2 * shape.hidden + 5 * shape.attention + 4 * shape.intermediate + 7 * rank
    )
    if checkpointing:
        return shape.layers * width * shape.hidden + layer
    return shape.layers * layer


def _passing(shape: ModelShape, width: int) -> int:
    """Bytes that a pass without gradient holds of one token, at its widest place.

    In the MLP: the residual and the norm's output (H each, and one more in fp32), gate, its activation, up
    and their product (4 I). In the attention: the residual, queries, keys, values before and after rotation,
    the output (6 widths). Whichever is more.
    """
    mlp = width * (2 * shape.hidden + 4 * shape.intermediate) + 4 * shape.hidden
    attention = width * (2 * shape.hidden + 6 * shape.attention)
    return max(mlp, attention)


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / (1 << 30):.2f} GB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MB"
