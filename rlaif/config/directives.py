"""Directives that a policy is trained to follow."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlaif.config.settings import Settings

__all__ = ["DirectiveSettings"]


class DirectiveSettings(Settings):
    """A share of the prompts is asked under the prior of one directive each. Which ones is drawn by the seed;
    conditions and days play no part."""

    path: str = Field(min_length=1)
    """File of directives (docs/how-to/steer.md)."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the prompts that are asked under a prior."""
