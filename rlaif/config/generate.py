"""The settings of the stage `generate`: prompts from the constitution."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rlaif.config.labelling import BaseStage
from rlaif.config.settings import refuse_idle

__all__ = ["GenerateConfig"]


class GenerateConfig(BaseStage):
    """Write prompts that put each principle under strain, and pairs of principles in conflict."""

    stage: Literal["generate"] = "generate"

    per_principle: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Prompts wanted for each principle."""

    conflicts: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of these that put it in conflict with another principle, a different one each time while there
    are enough; our own requests do not."""

    source: Literal["auto", "model", "seeds"] = "auto"
    """Who writes: the `model`; our own list of requests, filled in from the grid (`seeds`); or `auto`, the
    model first, and seeds for what it writes too badly to be kept."""

    writer: str | None = None
    """Model that writes; the recipe's `model` when left out."""

    like: str | None = None
    """Prompts of real use (a file, or a dataset): examples for the writer, and only prompts of such use cases
    are kept."""

    prompt_column: str = "prompt"
    """Column of `like` that holds the prompt."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest prompt that the model may write, in tokens."""

    temperature: Annotated[float, Field(gt=0, le=10)] = 0.8
    """Logits are divided by it."""

    similarity: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of character 5-grams that two prompts have in common (Jaccard) from which they count as the same;
    the built-in prompts count too."""

    block: tuple[str, ...] = ()
    """Regular expressions; prompts in which one is found are left out and counted."""

    max_refused: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The stage fails when more than this share of the prompts could not be asked for."""

    @field_validator("block")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {pattern!r} ({error})") from None
        return patterns

    @model_validator(mode="after")
    def _is_possible(self) -> GenerateConfig:
        if self.source == "seeds":
            refuse_idle(self, "writer", "temperature", "max_new_tokens", needs="source: model")
        return self

    def main_model(self, default: str) -> str | None:
        return None if self.source == "seeds" else self.writer or default

    def answering_models(self, default: str) -> tuple[str, ...]:
        return () if self.source == "seeds" else (self.writer or default,)
