"""Memory that is kept though nobody needs it: freed blocks in the heap, and kernels made for shapes that will
not come again.

glibc keeps what is freed below a block that is still used; `give_back` returns it before a stage begins, so
that a stage's peak does not come on top of the last one's. oneDNN, which multiplies bfloat16 matrices, makes
a kernel for every shape that it sees and keeps 1,024 of them, half a megabyte and more each; `bound_kernels`
lowers that number.
"""

from __future__ import annotations

import ctypes
import gc
import os
from functools import lru_cache

__all__ = ["WIDTH", "bound_kernels", "give_back", "rounded"]

WIDTH = 16
"""Rows of a training pass are padded to a multiple of so many tokens: fewer different shapes, so fewer
kernels and fewer holes."""
KERNELS = 256
"""More than the different products of one pass, so that a pass finds again what the last one of its shape
left."""


def bound_kernels() -> None:
    """Have oneDNN keep `KERNELS` kernels, unless the environment says otherwise; must come before the first
    product of matrices."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))


def give_back() -> None:
    """Return to the system what this process has freed (only glibc can be asked to)."""
    gc.collect()
    _keep_what_stays()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


@lru_cache(maxsize=1)
def _keep_what_stays() -> None:
    """Take what is there before the first stage, half a million objects of imported modules, out of all later
    collections, each of which would take a quarter of a second for them."""
    gc.freeze()


def rounded(tokens: int) -> int:
    """The next multiple of `WIDTH`."""
    return -(-tokens // WIDTH) * WIDTH
