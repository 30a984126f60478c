"""The settings of `rlaif judge train`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif.config.finetune import FinetuneSettings, Share
from rlaif.config.labelling import BaseStage, ProtocolName
from rlaif.config.reward import PreferenceFile
from rlaif.config.settings import refuse_idle

__all__ = ["JudgeConfig"]


class JudgeConfig(BaseStage, FinetuneSettings):
    """Train a judge on preferences: a closed-form head on what the model makes of the judge's questions, an
    adapter that answers them, or one that reasons first."""

    stage: Literal["judge"] = "judge"

    kind: Literal["probe", "lora", "generative"] = "probe"
    """`probe` fits a head to the model's states in closed form: seconds, and the first choice for hundreds of
    labels. `lora` trains an adapter on the two labels' probabilities: for thousands. `generative` trains an
    adapter on the model's own reasonings that ended with the label given: for models that can reason."""

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
    for when left out. A `generative` judge is asked by `cot`."""

    principles: Literal["all", "sample"] = "all"
    """`all` asks all principles of each pair, so that the judge learns their weighted mean (what they have in
    common is read once); `sample` asks one, drawn as `rlaif label` draws it: quicker, and noisier where the
    labels are not of that principle."""

    layer: Annotated[int, Field(ge=1)] | None = None
    """Layer whose states are read, counted from 1; two thirds up when left out."""

    compare: bool = True
    """`probe` only: ask the untrained model the same questions, for the table; an adapter is always measured
    beside it."""

    reasonings: Annotated[int, Field(ge=1, le=64)] = 4
    """`generative` only: reasonings that are sampled for each question, of which one that agrees with the
    label is learned from."""

    reasoning_tokens: Annotated[int, Field(ge=1)] = 256
    """`generative` only: longest reasoning in tokens."""

    micro_batch: Annotated[int, Field(ge=1)] = 2
    """Pairs in one forward and backward pass, each with all its questions, which are long (`generative`:
    reasonings); sets the memory needed and changes results by rounding only."""

    held_out: Share = 0.2
    """Share of the prompts that an adapter is not trained on, to measure the judge and to fit its
    temperature; a probe is measured out of fold."""

    @model_validator(mode="after")
    def _is_of_its_kind(self) -> JudgeConfig:
        if self.kind == "probe":
            refuse_idle(self, "held_out", *FinetuneSettings.model_fields, needs="kind: lora")
        else:
            refuse_idle(self, "layer", "compare", needs="kind: probe")
        if self.kind != "generative":
            refuse_idle(self, "reasonings", "reasoning_tokens", needs="kind: generative")
        return self

    def asked_by(self, default: str) -> str:
        """The protocol that the judge is trained for.

        Args:
            default: The constitution's.
        """
        return self.protocol or ("cot" if self.kind == "generative" else default)

    def main_model(self, default: str) -> str | None:
        return self.model or default
