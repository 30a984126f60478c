"""What all settings have in common: no unknown ones, and numbers that arithmetic keeps."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

__all__ = ["SettingNotice", "Settings", "refuse_idle"]

SMALLEST, LARGEST = 1e-12, 1e12
"""Sizes between which every number of a setting lies that is not 0. In float32 a product of two such numbers
is still one."""
LARGEST_WHOLE = 2**63


class SettingNotice(FutureWarning):
    """A setting was read that is written another way now."""


class Settings(BaseModel):
    """Settings of any kind: no unknown ones, no NaN, and no number so large or small that arithmetic would
    lose it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _is_in_bounds(cls, value: Any) -> Any:
        if isinstance(value, float) and value and not SMALLEST <= abs(value) <= LARGEST:
            raise ValueError(
                f"{value:g} is out of bounds: 0, or between {SMALLEST:g} and {LARGEST:g} in size"
            )
        if isinstance(value, int) and abs(value) >= LARGEST_WHOLE:
            raise ValueError(f"{str(value)[:20]}… is out of bounds: at most {LARGEST_WHOLE - 1} in size")
        return value


def refuse_idle(settings: Settings, *names: str, needs: str) -> None:
    """Refuse settings that were changed and cannot act as the others are.

    Args:
        needs: What would let them act, as a user writes it.

    Raises:
        ValueError: One of `names` is not at its default.
    """
    changed = [name for name in names if getattr(settings, name) != type(settings).model_fields[name].default]
    if changed:
        acts = "acts" if len(changed) == 1 else "act"
        raise ValueError(f"{', '.join(changed)} {acts} with `{needs}` only: set that too, or leave it out")
