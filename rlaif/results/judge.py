"""What a trained judge is worth, beside the untrained one and beside what needs no model to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rlaif.results.reward import Breakdown, Scored

__all__ = ["JudgeReport"]


@dataclass(frozen=True)
class JudgeReport:
    """The report of a judge stage.

    Attributes:
        kind: `probe`, `lora` or `generative`.
        pairs: Learned from; those of `refused` could not be read.
        held_out: Of an adapter: pairs among them that it was measured on, and not trained on.
        layer: Whose states are read, of `layers`.
        found: By way of judging, on the pairs: `trained` out of fold (each pair by a head that was fitted
            without its prompt, penalty and all; an adapter on the pairs held out), `untrained` (the same
            model asked the same questions), `shorter` (the shorter completion wins).
        sources: `trained` by file or stage, where there are several.
        penalty, scale: Of the ridge regression that was saved, and the factor on its predictions; of an
            adapter the factor alone.
        reasonings: Of the kind `generative`: how many were `sampled`, `agreed` with the label, are `kept` to
            learn from; how many questions about a pair were `left_out` as one order or both had none, and
            how many pairs are `undecided`, as their label is ½ or their weight 0.
        invalid: By way of judging: pairs without a valid verdict, which are in no figure of that way.
    """

    pairs: int
    prompts: int
    refused: Mapping[str, int]
    folds: int
    layer: int
    layers: int
    found: Mapping[str, Scored]
    penalty: float
    scale: float
    sources: Sequence[Breakdown] = field(default_factory=tuple)
    kind: str = "probe"
    held_out: int = 0
    reasonings: Mapping[str, int] = field(default_factory=dict)
    invalid: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)
