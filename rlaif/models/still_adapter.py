"""An adapter that changes nothing, made without the weights that it is for.

A server is asked as such an adapter for the base: some builds answer requests of the base by its own name as
an adapter that shares their batch (vllm#48421, #49656).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer

from rlaif.models.adapter_files import write_adapter
from rlaif.models.load import ModelSource

__all__ = ["write_still_adapter"]


def write_still_adapter(model: Any, source: ModelSource, folder: Path) -> None:
    """Write an adapter of rank 1 on every linear layer of `model`, with A = B = 0.

    Args:
        model: As `empty_model` makes it, without weights; it is changed.
        folder: PEFT's files are written here.

    Raises:
        ModelError: The disk refuses.
    """
    config = peft.LoraConfig(r=1, lora_alpha=1, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        # PEFT 0.21 asks for it.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = peft.get_peft_model(model, config, low_cpu_mem_usage=True)
    state = {
        f"{name}.{table}.weight": torch.zeros(getattr(layer, table)["default"].weight.shape)
        for name, layer in adapted.named_modules()
        if isinstance(layer, LoraLayer)
        for table in ("lora_A", "lora_B")
    }
    config.base_model_name_or_path = source.name
    write_adapter(folder, config, state, identity=source.revision)
