"""About how long a model takes to read and write so many tokens, without loading it.

Time comes from a short matrix multiplication in the arithmetic that the model would use: a forward pass costs
about 2 FLOP a parameter and token (the embedding table is a look-up), and engines reach a share of the peak
that was measured once (`PREFILL_SHARE`, `DECODE_SHARE`). Questions that begin alike are read once as far as
they do (`shared`). Good to a factor of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from rlaif.models.load import count_parameters
from rlaif.models.open import is_scripted, is_served
from rlaif.models.probe_files import weights_of
from rlaif.models.speed import matmul_rate

__all__ = ["seconds", "shared"]

PREFILL_SHARE = 0.35
"""Share of the measured matrix peak that reading a batch of prompts reaches."""
DECODE_SHARE = 0.05
"""The same for sampling at the default batch size, which waits for memory."""


def seconds(model: str, *, dtype: str, device: str, read: float, write: float = 0) -> float | None:
    """Seconds for `read` and `write` tokens; `None` for a scripted or a served model."""
    if is_scripted(model) or is_served(model):
        return None
    size = count_parameters(weights_of(model))
    flops_a_token = 2.0 * (size.total - size.embedding)
    return flops_a_token / matmul_rate(dtype, device) * (read / PREFILL_SHARE + write / DECODE_SHARE)


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
