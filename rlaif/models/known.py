"""Open models that are often asked to judge, and how much memory they need: for the advice at the end of
`rlaif label`. Nothing is looked up; whether one of them judges well, an audit decides.

The counts of parameters are those of the model cards (Qwen2.5, arXiv 2412.15115); all of these but the
largest are under Apache-2.0.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KNOWN_JUDGES", "KnownModel", "largest_that_fits"]

BFLOAT16 = 2.0
FOUR_BITS = 0.53
"""Bytes a parameter in a layer of 4 bits: the scales of groups of 128 weights take the rest."""
ROOM = 1.15
"""Beside the weights: states of a batch, logits, the program."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model on the Hugging Face hub.

    Attributes:
        layers: Parameters without the embeddings, which stay in 16 bits where the layers are in 4.
        total: All parameters.
    """

    hub: str
    layers: float
    total: float

    @property
    def bytes_16_bits(self) -> int:
        """Bytes of the weights in bfloat16."""
        return round(BFLOAT16 * self.total)

    @property
    def bytes_4_bits(self) -> int:
        """Bytes of the weights with layers in 4 bits, as AWQ and GPTQ have them."""
        return round(FOUR_BITS * self.layers + BFLOAT16 * (self.total - self.layers))


KNOWN_JUDGES = (
    KnownModel("Qwen/Qwen2.5-1.5B-Instruct", layers=1.31e9, total=1.54e9),
    KnownModel("Qwen/Qwen2.5-7B-Instruct", layers=6.53e9, total=7.61e9),
    KnownModel("Qwen/Qwen2.5-14B-Instruct", layers=13.1e9, total=14.7e9),
    KnownModel("Qwen/Qwen2.5-32B-Instruct", layers=31.0e9, total=32.5e9),
    KnownModel("Qwen/Qwen2.5-72B-Instruct", layers=70.0e9, total=72.7e9),
)
"""The smaller ones first."""


def largest_that_fits(free: int, *, above: float = 0.0) -> KnownModel | None:
    """The largest known model whose bfloat16 weights, with room to run, fit into `free` bytes.

    Args:
        above: Parameters that it must have more than; a judge is not to be exchanged for a smaller one.
    """
    fitting = [each for each in KNOWN_JUDGES if ROOM * each.bytes_16_bits <= free and each.total > above]
    return fitting[-1] if fitting else None
