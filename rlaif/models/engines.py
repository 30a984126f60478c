"""Open the engine that a model's name calls for."""

from __future__ import annotations

from collections.abc import Callable

from rlaif.engines.base import Engine, TokenCount
from rlaif.engines.scripted import load_scripted
from rlaif.models.load import load_engine, load_token_count

__all__ = ["is_scripted", "open_engine", "open_token_count"]


def is_scripted(spec: str) -> bool:
    """Whether `spec` names functions instead of a model: `scripted` or `scripted:package.module:attribute`."""
    return spec == "scripted" or spec.startswith("scripted:")


def open_engine(spec: str, *, dtype: str = "auto", device: str = "auto", log: Callable[[str], None] = str) -> Engine:
    """The engine of `spec`: a hub id, folder, GGUF file or alias (torch, in process), or `scripted…`.

    Raises:
        ModelError: It cannot be loaded.
    """
    if is_scripted(spec):
        return load_scripted(spec)
    return load_engine(spec, dtype=dtype, device=device, log=log)


def open_token_count(spec: str) -> TokenCount:
    """Renders and counts as the engine of `spec` would, without its weights.

    Raises:
        ModelError: Its tokenizer cannot be loaded.
    """
    return load_scripted(spec) if is_scripted(spec) else load_token_count(spec)
