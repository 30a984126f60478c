"""The settings of `rlaif merge`."""

from __future__ import annotations

from typing import Literal

from rlaif.config.labelling import BaseStage

__all__ = ["MergeConfig"]


class MergeConfig(BaseStage):
    """Write a full model: a policy's adapter, merged into its base."""

    stage: Literal["merge"] = "merge"

    input: str
    """Name of an earlier stage that trained a policy, or the folder of an adapter. Later stages that sample
    may name this stage as their `policy`."""

    def main_model(self, default: str) -> str | None:
        return None
