"""A full model from a base and its adapters: what `AutoModelForCausalLM.from_pretrained(folder)` opens
without PEFT and rlaif."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError

from rlaif.errors import ModelError
from rlaif.models.quiet import quiet
from rlaif.models.shared_base import SharedBase

__all__ = ["save_merged"]


def save_merged(
    spec: str,
    adapters: Sequence[Path],
    folder: Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Fold `adapters` into the base of `spec`, one after the other, and write model and tokenizer to
    `folder`, which appears whole.

    Args:
        adapters: In the order in which they were trained, each on the base with the former ones merged.
        dtype: Of the weights that are written; the sums are rounded to it.

    Raises:
        ModelError: Something is in the folder already, it cannot be written, or an adapter is damaged or of
            another base.
    """
    if folder.exists():
        raise ModelError(
            "the folder is there already, and nothing is overwritten",
            where=str(folder),
            remedy="name another one",
        )
    base = SharedBase.load(spec, dtype=dtype, device=device, log=log)
    for adapter in adapters:
        base.load_adapter("merged", adapter)
        base.merge("merged")
    work = folder.with_name(f".tmp-{folder.name}")
    try:
        shutil.rmtree(work, ignore_errors=True)
        with quiet():
            base.model.save_pretrained(work)
            base.tokenizer.save_pretrained(work)
        work.rename(folder)
    except (OSError, SafetensorError) as error:
        remedy = "check space and permissions"
        raise ModelError(
            f"the merged model cannot be written: {error}", where=str(folder), remedy=remedy
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
