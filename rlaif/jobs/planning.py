"""What a dry run says of one stage, and how its tokens and its time are counted. No weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from rlaif.engines.base import TokenCount
from rlaif.jobs.context import RunContext
from rlaif.jobs.estimate import seconds
from rlaif.jobs.lengths import Device
from rlaif.models.devices import pick_device
from rlaif.models.open import open_token_count
from rlaif.types import Message

__all__ = ["COUNTED", "PLACEHOLDER", "StagePlan", "counter_of", "estimated_seconds", "tokens_of"]

COUNTED = 64
"""Prompts whose tokens are counted; the rest are taken to be as long on average."""
PLACEHOLDER = "word "


@dataclass(frozen=True)
class StagePlan:
    """What one stage would do.

    Attributes:
        counts: How many of what, in reading order.
        read, write: Tokens that models would read and write at most.
        seconds: Estimate; `None` for a scripted model.
        cost: The most that a served model would cost, in the currency of the prices; `None` without prices.
        example: One rendered prompt of each kind, by its name.
        parts: Where several models are asked, the plan of each.
    """

    name: str
    kind: str
    model: str
    counts: dict[str, int]
    read: int
    write: int
    seconds: float | None
    example: dict[str, str]
    cost: float | None = None
    parts: tuple[StagePlan, ...] = ()


@lru_cache(maxsize=4)
def counter_of(model: str) -> TokenCount:
    """Counts tokens as the engine of `model` would."""
    return open_token_count(model)


def tokens_of(counter: TokenCount, conversations: Sequence[Sequence[Message]]) -> int:
    """Tokens of all `conversations`, from an even sample of them."""
    if not conversations:
        return 0
    step = max(1, len(conversations) // COUNTED)
    sampled = conversations[::step]
    return round(sum(counter.count(messages) for messages in sampled) / len(sampled) * len(conversations))


def estimated_seconds(
    model: str,
    context: RunContext,
    read: float,
    write: int,
    *,
    rows: int = 0,
    learned: float = 0,
    logits: float = 0,
) -> float | None:
    """How long the engine of `model` would take; `None` for scripted and served ones. See `seconds`.

    Args:
        rows: Completions side by side; as many as an engine samples on the recipe's device when 0.
    """
    recipe = context.recipe
    return seconds(
        model,
        dtype=recipe.dtype,
        device=recipe.device,
        read=read,
        write=write,
        rows=rows or Device.of(pick_device(recipe.device)).rows,
        learned=learned,
        logits=logits,
    )
