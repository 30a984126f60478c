"""Where the training of a policy starts: at an adapter that an earlier training left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlaif.errors import ModelError
from rlaif.models.shared_base import REFERENCE, LoraSettings, SharedBase

__all__ = ["PREVIOUS", "Start", "begin_adapter"]

PREVIOUS = "previous"
"""The role of the policy that training started from, where it is the reference."""


@dataclass(frozen=True, slots=True)
class Start:
    """An adapter that is trained further.

    Attributes:
        held: Whether the policy that it was is the reference; else the base without adapters is.
    """

    folder: Path
    held: bool = False


def begin_adapter(
    base: SharedBase, role: str, lora: LoraSettings, *, seed: int, start: Start | None = None
) -> str:
    """Add the adapter `role`, to be trained: the one of `start`, or a new one that changes nothing yet.

    Returns:
        The role of the reference, which is added.

    Raises:
        ModelError: The adapter cannot be read, is of another base, or of another rank or alpha than `lora`
            asks for.
    """
    if start is None:
        base.add_adapter(role, lora, seed=seed)
        return REFERENCE
    base.load_adapter(role, start.folder, train=True)
    found = LoraSettings(rank=base.rank(role), alpha=base.alpha(role))
    for what in ("rank", "alpha"):
        own, asked = getattr(found, what), getattr(lora, what)
        if own != asked:
            base.drop_adapter(role)
            raise ModelError(
                f"the policy to start from is an adapter of {what} {own:g}, the settings ask for {asked:g}",
                where=str(start.folder),
                remedy=f"an adapter keeps its {what}: set lora_{what} to {own:g}, or merge it first and "
                "start anew",
            )
    if not start.held:
        return REFERENCE
    if PREVIOUS in base.roles:
        base.drop_adapter(PREVIOUS)  # an earlier training's
    base.load_adapter(PREVIOUS, start.folder)
    return PREVIOUS
