"""The settings of `rlaif judge train`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlaif.config.labelling import BaseStage, ProtocolName
from rlaif.config.reward import PreferenceFile

__all__ = ["JudgeConfig"]


class JudgeConfig(BaseStage):
    """Train a judge on preferences: a closed-form head on what the model makes of the judge's questions."""

    stage: Literal["judge"] = "judge"

    input: str | None = None
    """Name of the label stage to learn from; the last one when left out and `files` is empty."""

    files: tuple[PreferenceFile, ...] = ()
    """Files of preferences to learn from: people's, another judge's, or both, each with its weight."""

    skip_bad_rows: bool = False
    """Go on without preferences that cannot be learned from (an identical pair, for one); they are counted
    and the first are named."""

    model: str | None = None
    """Model that the judge reads with, in this process; the recipe's `model` when left out."""

    protocol: ProtocolName | None = None
    """Whose questions it is trained to answer, `pairwise` or `pointwise`; what the constitution was written
    for when left out."""

    principles: Literal["all", "sample"] = "all"
    """`all` asks all principles of each pair, so that the judge learns their weighted mean (what they have in
    common is read once); `sample` asks one, drawn as `rlaif label` draws it: quicker, and noisier where the
    labels are not of that principle."""

    layer: Annotated[int, Field(ge=1)] | None = None
    """Layer whose states are read, counted from 1; two thirds up when left out."""

    compare: bool = True
    """Ask the untrained model the same questions, for the table."""

    def main_model(self, default: str) -> str | None:
        return self.model or default
