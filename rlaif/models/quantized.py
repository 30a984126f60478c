"""A frozen base in 4 bits (QLoRA, Dettmers et al. 2023): a quarter of the weights' memory, for adapters that
stay in fp32."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import transformers

from rlaif.errors import ConfigError, ModelError
from rlaif.models.devices import pick_device
from rlaif.models.load import ModelSource
from rlaif.models.quiet import quiet

__all__ = ["check_quantization", "load_quantized"]

LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)


def check_quantization(device: str) -> torch.device:
    """The GPU that 4-bit weights will be on.

    Raises:
        ConfigError: They cannot be used on this machine.
    """
    place = pick_device(device)
    if place.type != "cuda":
        remedy = (
            "set `quantization: none`; to save memory here, use a smaller model or gradient_checkpointing"
        )
        raise ConfigError(
            f"4-bit weights need an NVIDIA GPU, and the device here is {place.type}", remedy=remedy
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "4-bit weights need the package bitsandbytes", remedy="run: pip install bitsandbytes"
        )
    return place


def load_quantized(source: ModelSource, *, device: str) -> Any:
    """Load a causal language model with its linear layers in NF4, computing in bfloat16.

    Raises:
        ConfigError: This machine cannot.
        ModelError: The model cannot be loaded.
    """
    place = check_quantization(device)
    settings: Any = transformers.BitsAndBytesConfig  # not typed
    four_bit = settings(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    try:
        with quiet():
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                source.path,
                quantization_config=four_bit,
                dtype=torch.bfloat16,
                device_map={"": place},
                local_files_only=True,
                trust_remote_code=False,
            )
    except LOAD_ERRORS as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "set `quantization: none`"
        raise ModelError(
            f"the model cannot be loaded in 4 bits: {first}", where=source.name, remedy=remedy
        ) from None
    return model
