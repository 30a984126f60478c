"""Moderators that stages use: as a part of a reward, and to choose prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.config.labelling import PromptFilter
from rlaif.config.rewards import ModerationPart
from rlaif.errors import DataError, ModelError
from rlaif.files import folder_digest
from rlaif.jobs.context import RunContext
from rlaif.labels import log_odds_of
from rlaif.models.open import is_scripted, is_served
from rlaif.models.role_engine import resident_base
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.base import Moderator, Scores, flagged
from rlaif.moderation.files import close_moderator, find_moderator, load_moderator, moderator_note
from rlaif.moderation.scoring import score_each
from rlaif.types import Completion, Message, Prompt

__all__ = [
    "ChosenPrompts",
    "check_moderator",
    "choose_prompts",
    "moderation_score",
    "moderator_digest",
    "open_moderator",
]


SUREST = 20.0
"""Nats; a reward of hundreds would outweigh all others of its batch."""


class ChosenPrompts(NamedTuple):
    """Prompts that a moderator lets pass, and those that it does not; together they are all.

    Attributes:
        dropped: Each with its scores.
        unscored: Of the kept, how many the moderator could not read.
    """

    kept: list[Prompt]
    dropped: list[tuple[Prompt, Scores]]
    unscored: int


def check_moderator(path: str) -> Path:
    """The folder of the moderator that `path` names.

    Raises:
        DataError: There is none.
    """
    found = find_moderator(path)
    if found is None:
        raise DataError(
            "there is no moderator",
            where=path,
            remedy="name a folder that `rlaif moderation train` left, or its model/",
        )
    return found


def moderator_digest(path: str) -> str:
    """Digest of the files of a moderator."""
    return folder_digest(check_moderator(path))


def open_moderator(path: str, context: RunContext) -> Moderator:
    """A moderator on its base: the run's where it is that, else one loaded beside it. It is closed with the
    stage that runs.

    Raises:
        ModelError: Its base is not the one that it was trained on, or does not run in this process.
    """
    folder = check_moderator(path)
    moderator = load_moderator(folder, _base_of(folder, path, context))
    context.opened.callback(close_moderator, moderator)
    return moderator


def _base_of(folder: Path, path: str, context: RunContext) -> SharedBase:
    """The base to put a moderator on."""
    trained, main = moderator_note(folder)["base"], context.recipe.weights_of(context.recipe.model)
    if not (is_scripted(main) or is_served(main)):
        resident = context.bases.get()
        if resident.identity == trained["identity"]:
            return resident
    engine = context.engines.in_process(str(trained["name"]))
    if engine is None:
        raise ModelError(
            f"the base of the moderator, {trained['name']}, does not run in this process",
            where=path,
            remedy="train it on a hub id, a folder or an alias",
        )
    return resident_base(engine)


def moderation_score(
    part: ModerationPart,
    moderator: Moderator,
    context: RunContext,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
) -> list[float]:
    """The reward of each completion: minus how probable it is that it breaks the principle that it breaks
    most surely, or minus the log-odds of that.

    Raises:
        ModelError: A completion is longer than the moderator reads.
    """
    scored = moderator.scores(
        [
            [*context.library.policy(prompt), Message("assistant", completion.text)]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    )
    worst = [max(scores.values()) for scores in scored]
    if part.scale == "probability":
        return [-each for each in worst]
    return [-min(max(log_odds_of(each), -SUREST), SUREST) for each in worst]


def choose_prompts(
    prompts: Sequence[Prompt], settings: PromptFilter, moderator: Moderator, context: RunContext
) -> ChosenPrompts:
    """Divide prompts into those that are kept and those that are flagged.

    Raises:
        DataError: Every prompt is flagged.
    """
    found = score_each(moderator, [context.library.policy(prompt) for prompt in prompts])
    chosen = ChosenPrompts([], [], sum(isinstance(each, str) for each in found))
    for prompt, scores in zip(prompts, found, strict=True):
        if not isinstance(scores, str) and flagged(scores, moderator.thresholds):
            chosen.dropped.append((prompt, scores))
        else:
            chosen.kept.append(prompt)
    if not chosen.kept:
        raise DataError(
            f"the moderator flags all {len(prompts)} prompts",
            where=settings.path,
            remedy="give other prompts, or leave `moderation` out",
        )
    return chosen
