"""The settings of stages that train a policy: what it starts from, and what it is held to."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from rlaif.config.settings import Settings, refuse_idle

__all__ = ["ReferenceChoice", "StartSettings"]

ReferenceChoice = Literal["first", "previous"]


class StartSettings(Settings):
    """What a policy starts from."""

    policy: str | None = None
    """Policy that is trained further: an earlier stage that trained one, or the folder of its adapter. A new
    adapter of the model when left out."""

    reference: ReferenceChoice = "first"
    """What the policy is held to, and its KL measured against, where it is trained further: `first` the model
    without any adapter, `previous` the policy that it starts from."""

    @model_validator(mode="after")
    def _starts_somewhere(self) -> StartSettings:
        if self.policy is None:
            refuse_idle(self, "reference", needs="policy")
        return self
