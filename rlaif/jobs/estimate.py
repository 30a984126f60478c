"""About how long a model takes to read, write and learn so many tokens, without loading it.

With P the parameters of the decoder layers, E those of the LM head, L layers of width H, and the machine's
speed in matrix products, weights, elements and starts (`rlaif.models.speed`, half a second):

    a token read     2 P / products + `BETWEEN` L H / elements
    a token learned  4 P / products + `LEARNED` L H / elements: forward, and back through a frozen base
    logits of a token
                     2 E / products
    a step of decoding R rows
                     (P + E) / weights + `SMALL` · 2 (P + E) R / products + `OPERATIONS` L / starts

The constants were measured on SmolLM2-135M, in bfloat16 and in float32 with AVX2 alone (docs/LOG.md,
estimates stage by stage). Questions that begin alike are read once as far as they do (`shared`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from rlaif.models.load import empty_model
from rlaif.models.open import is_scripted, is_served
from rlaif.models.probe_files import weights_of
from rlaif.models.speed import machine_speed

__all__ = ["ROWS", "seconds", "shared"]

BETWEEN = 55
"""Numbers that something is done to between the products, for each unit of width in each layer."""
LEARNED = 1000
"""The same forward and back: gradients of norms, positions, gates, attention and adapters."""
SMALL = 1.35
"""How much slower products of a few rows are, attention over a growing cache and the draw among it."""
OPERATIONS = 330
"""Operations in a layer for a step of decoding, and what Python does between them counted as some."""
ROWS = 64
"""Completions sampled side by side where nothing else is said."""


def seconds(
    model: str,
    *,
    dtype: str,
    device: str,
    read: float,
    write: float = 0,
    rows: int = ROWS,
    learned: float = 0,
    logits: float = 0,
) -> float | None:
    """Seconds for `read`, `write` and `learned` tokens; `None` for a scripted or a served model.

    Args:
        write: Tokens that are sampled, `rows` completions side by side.
        learned: Tokens that are read forward and back.
        logits: Tokens whose logits are formed, those that are sampled left out.
    """
    if is_scripted(model) or is_served(model):
        return None
    size, speed = _size(weights_of(model)), machine_speed(dtype, device)
    whole, product = size.decoder + size.head, 2.0 * size.decoder / speed.flops
    units = size.layers * size.width / speed.elements
    step = (
        whole / speed.weights
        + SMALL * 2.0 * whole * rows / speed.flops
        + OPERATIONS * size.layers / speed.starts
    )
    return (
        (product + BETWEEN * units) * read
        + (2 * product + LEARNED * units) * learned
        + 2.0 * size.head / speed.flops * logits
        + step * write / rows
    )


class _Size(NamedTuple):
    """Parameters of the decoder layers and of the LM head; how many layers, and how wide."""

    decoder: int
    head: int
    layers: int
    width: int


@lru_cache(maxsize=4)
def _size(model: str) -> _Size:
    empty = empty_model(model)
    embedding, head = empty.get_input_embeddings().weight, empty.get_output_embeddings().weight
    total = sum(parameter.numel() for parameter in empty.parameters())
    tied = head is embedding
    return _Size(
        decoder=total - embedding.numel() - (0 if tied else head.numel()),
        head=head.numel(),
        layers=empty.config.get_text_config(decoder=True).num_hidden_layers,
        width=embedding.shape[1],
    )


def shared(groups: Iterable[Sequence[str]]) -> float:
    """Share of the text that is read when the texts of a group share their beginnings; 1 where there is none.

    The characters of a group's prefix tree: in sorted order, each text adds what follows its common beginning
    with the one before.
    """
    whole = read = 0
    for group in groups:
        texts = sorted(group)
        whole += sum(map(len, texts))
        read += sum(map(len, texts)) - sum(_common(*pair) for pair in pairwise(texts))
    return read / whole if whole else 1.0


def _common(a: str, b: str) -> int:
    """Characters that `a` and `b` begin with alike."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
