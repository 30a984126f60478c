"""Prompts of a stage under the priors of directives."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.config.directives import DirectiveSettings
from rlaif.config.labelling import BaseStage
from rlaif.directives.load import load_directives
from rlaif.directives.training import steer
from rlaif.jobs.context import RunContext
from rlaif.types import Prompt

__all__ = ["steered_prompts"]


def steered_prompts(
    settings: DirectiveSettings | None,
    prompts: Sequence[Prompt],
    config: BaseStage,
    context: RunContext,
    *,
    asked: bool,
) -> tuple[Prompt, ...]:
    """The prompts of a stage as its setting `directives` says; `context` keeps which is under what.

    Args:
        asked: Whether a judge has to be able to reward the directives.

    Raises:
        RlaifError: The file cannot be used, or nothing of it.
    """
    if settings is None:
        return tuple(prompts)
    found = steer(
        prompts,
        load_directives(settings.path),
        share=settings.share,
        seed=context.seed(config),
        asked=asked,
        where=settings.path,
    )
    told = f"{len(found.under)} of {len(prompts)} prompts are under the prior of a directive"
    context.progress.note(f"{config.name}: {told}")
    context.steered[config.name] = found
    return found.prompts
