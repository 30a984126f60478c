"""What fine-tuning on completions and on preferences have in common: which rows fit, and how an adapter
learns from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from rlaif.config.finetune import FinetuneSettings
from rlaif.errors import DataError, Problem
from rlaif.models.finetune import FinetuneStep, Optimiser, finetune
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.progress import Progress

__all__ = ["Log", "TokenRow", "fitting", "learn", "lora_of"]

Log = Callable[[FinetuneStep], None]
SHOWN = 5
"""Overlong rows that a message names."""


class TokenRow(Protocol):
    """What can be learned from, with a relative weight."""

    @property
    def id(self) -> str:
        """Its name in messages."""
        ...

    @property
    def weight(self) -> float:
        """0 leaves it out."""
        ...


R = TypeVar("R", bound=TokenRow)


def fitting(
    rows: Sequence[R],
    lengths: Sequence[int],
    base: SharedBase,
    settings: FinetuneSettings,
    *,
    noun: str,
    where: str = "",
) -> tuple[list[R], int]:
    """The rows that the limit holds and that have weight, and how many are longer than the limit.

    Args:
        lengths: Tokens of each row.
        noun: What the rows are called in messages.
        where: Where they are from, for messages.

    Raises:
        DataError: There are none, or too many are too long.
    """
    limit = min(settings.max_tokens or base.context, base.context)
    long = [(row, length) for row, length in zip(rows, lengths, strict=True) if length > limit]
    if len(long) > settings.max_overlong * len(rows):
        raise DataError(
            f"{len(long)} of {len(rows)} {noun} are longer than {limit} tokens, the longest {max(lengths)}",
            where=where,
            problems=[Problem(f"{length} tokens", where=row.id) for row, length in long[:SHOWN]],
            remedy="raise `max_overlong` to go on without them, or `max_tokens` if the context allows",
        )
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= limit and row.weight > 0]
    if not kept:
        remedy = "look at what was left out; weights must be above 0"
        raise DataError(f"there are no {noun} to learn from", where=where, remedy=remedy)
    return kept, len(long)


def learn(
    base: SharedBase,
    role: str,
    settings: FinetuneSettings,
    *,
    rows: int,
    title: str,
    seed: int,
    trainer: Callable[..., Any],
    arguments: Callable[..., Any],
    collate: Callable[[Sequence[int]], Any],
    options: Mapping[str, Any],
    progress: Progress,
    log: Log,
) -> list[FinetuneStep]:
    """Train the adapter `role` as the settings say; see `rlaif.models.finetune.finetune`.

    Args:
        title: What `progress` is told.
        collate: A batch from the numbers of its rows.
    """
    optimiser = Optimiser(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        micro_batch=settings.micro_batch,
        learning_rate=settings.learning_rate,
        gradient_checkpointing=settings.gradient_checkpointing,
    )

    def heard(step: FinetuneStep) -> None:
        progress.advance()
        log(step)

    progress.begin(title, optimiser.steps(rows))
    return finetune(
        base,
        role,
        rows=rows,
        lora=lora_of(settings),
        optimiser=optimiser,
        seed=seed,
        trainer=trainer,
        arguments=arguments,
        collate=lambda examples: collate([example["row"] for example in examples]),
        options=options,
        log=heard,
    )


def lora_of(settings: FinetuneSettings) -> LoraSettings:
    """The adapter that the settings ask for."""
    return LoraSettings(rank=settings.lora_rank, alpha=settings.lora_alpha)
