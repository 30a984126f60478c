"""Which device and which arithmetic a model runs in."""

from __future__ import annotations

import torch

from rlaif.errors import ModelError
from rlaif.ranks import current

__all__ = ["DTYPES", "pick_device", "pick_dtype"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str) -> torch.device:
    """The device that a setting names.

    Raises:
        ModelError: It is not a device, or this machine has none such.
    """
    if device == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        # Ranks have a GPU each.
        own = f":{torch.cuda.current_device()}" if kind == "cuda" and current().count > 1 else ""
        return torch.device(kind + own)
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ModelError(f"{device!r} is not a device", remedy="use auto, cpu, cuda, cuda:N or mps") from None
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not there.get(place.type, False) or (
        place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count()
    ):
        raise ModelError(f"this machine has no {device}", remedy="use --device auto, or cpu")
    return place


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The arithmetic that a setting names, on this device.

    Raises:
        ModelError: There is no such dtype.
    """
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise ModelError(f"{dtype!r} is not a dtype", remedy=f"use auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.bfloat16
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Whether matrix products in bfloat16 run on the processor's own instructions (elsewhere they are slower
    than float32)."""
    checks = (
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(check() for check in checks if check is not None)
