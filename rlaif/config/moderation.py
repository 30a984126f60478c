"""The settings of `rlaif moderation train`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif.config.finetune import FinetuneSettings, Share
from rlaif.config.labelling import BaseStage
from rlaif.config.reward import PreferenceFile
from rlaif.config.settings import refuse_idle

__all__ = ["ModerationConfig"]


class ModerationConfig(BaseStage, FinetuneSettings):
    """Train a moderator: a classifier of prompts and of exchanges, whose categories are the constitution's
    principles."""

    stage: Literal["moderation"] = "moderation"

    kind: Literal["probe", "lora"] = "probe"
    """`probe` fits linear heads to the model's states in closed form, which a server that decodes with this
    model reads at no cost. `lora` trains an adapter that reads the text alone, on a small model of its
    own."""

    input: str | None = None
    """Name of the label stage to learn from, by a pointwise protocol; the last one when left out and `files`
    is empty."""

    files: tuple[PreferenceFile, ...] = ()
    """Files to learn from, each with its weight: people's labels (prompts, with answers or without, and a
    column for each principle or one `label`: 1 is broken), or the verdicts of a label stage."""

    verdicts: Literal["as-given", "centred"] = "as-given"
    """What a judge's log-odds are read as: the label itself, or how far they are from their median for the
    principle (`centred`). A small judge prefers one answer whatever it is asked; centred, the worse half of
    the texts counts as broken."""

    benign: tuple[str, ...] = ("builtin",)
    """Texts that break no principle and look as if they did: `builtin` (prompts that ship with rlaif), files
    of prompts or exchanges, a revise stage or its folder, whose revisions are taken."""

    skip_bad_rows: bool = False
    """Go on without rows that cannot be read; they are counted and the first is named."""

    model: str | None = None
    """Model that reads, in this process; the recipe's `model` when left out. A probe works on this model
    only."""

    layers: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """`probe` only: layers whose states are read, counted from 1; a third and two thirds up and the last when
    left out."""

    readout: Literal["auto", "windows", "mean"] = "auto"
    """`probe` only: a text's score is the greatest mean over a window of tokens (`windows`), or the mean over
    all so far (`mean`), which thins out what comes late in a long answer; `auto` takes what ranks better out
    of fold."""

    window: Annotated[int, Field(ge=1, le=1024)] = 16
    """Tokens of an answer whose mean is scored while it is written."""

    false_positives: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of the texts that break nothing which a threshold may flag, on texts held out."""

    held_out: Share = 0.3
    """`lora` only: share of the prompts that the adapter is not trained on, to measure it and to choose
    thresholds; a probe is measured out of fold."""

    @model_validator(mode="after")
    def _is_of_its_kind(self) -> ModerationConfig:
        if self.kind == "probe":
            refuse_idle(self, "held_out", *FinetuneSettings.model_fields, needs="kind: lora")
        else:
            refuse_idle(self, "layers", "readout", needs="kind: probe")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("`layers` names a layer twice")
        return self

    def main_model(self, default: str) -> str | None:
        return self.model or default
