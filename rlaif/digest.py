"""Digests of meaning: the same value gives the same hex string on every machine and in every Python."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

__all__ = ["digest", "seed_from", "unit_from"]

SHORT = 16
"""Hex digits kept of a digest that a person may have to read (64 bits)."""


def digest(value: Any) -> str:
    """SHA-256 of `value` as canonical JSON (sorted keys, no spaces, UTF-8), its first 16 hex digits.

    Raises:
        TypeError: `value` holds something that JSON cannot write.
    """
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:SHORT]


def seed_from(*parts: Any) -> int:
    """A 63-bit seed that depends on nothing but `parts`: not on order of work, batch, process or machine."""
    return int(digest(_plain(parts)), 16) >> 1


def unit_from(*parts: Any) -> float:
    """A number in [0, 1) that depends on nothing but `parts` (53 bits)."""
    return (int(digest(_plain(parts)), 16) >> 11) / float(1 << 53)


def _plain(parts: Iterable[Any]) -> list[Any]:
    return list(parts)
