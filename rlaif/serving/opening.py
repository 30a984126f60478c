"""Opens what a server moderates with, as the command line names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.engines.base import EngineCard
from rlaif.engines.hf import HFEngine
from rlaif.errors import ConfigError
from rlaif.models.open import open_engine
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.base import Moderator
from rlaif.moderation.blocklist_files import load_block_list
from rlaif.moderation.files import find_moderator, load_moderator, moderator_note
from rlaif.moderation.united import United
from rlaif.serving.cascade import Cascade
from rlaif.serving.moderating import HOLD, Moderation
from rlaif.types import Constitution

__all__ = ["SELF", "ModerationSettings", "open_moderation"]

SELF = "self"
"""The judge that is the served base."""


@dataclass(frozen=True, slots=True)
class ModerationSettings:
    """How a server moderates.

    Attributes:
        moderators: Folders of trained moderators, or of the stages that trained them, and files of block
            lists.
        hold: Tokens of an answer that are held back.
        judge: Asked before an answer is blocked; `self` is the served base; nobody when it is empty.
        constitution: Holds the questions that the judge is asked.

    Raises:
        ConfigError: A setting would have no effect.
    """

    moderators: Sequence[Path]
    hold: int = HOLD
    judge: str = ""
    constitution: Constitution | None = None

    def __post_init__(self) -> None:
        if (self.judge or self.constitution) and not self.moderators:
            raise ConfigError(
                "nothing is moderated, so no judge is asked",
                where="--cascade" if self.judge else "--constitution",
                remedy="name a moderator with --moderation",
            )
        if bool(self.judge) != (self.constitution is not None):
            missing, given = (
                ("--constitution", "--cascade") if self.judge else ("--cascade", "--constitution")
            )
            raise ConfigError(
                f"it needs {missing}: the judge is asked by the principles of a constitution",
                where=given,
                remedy=f"give {missing} as well",
            )


def open_moderation(
    settings: ModerationSettings, base: SharedBase | None, *, log: Callable[[str], None] = lambda line: None
) -> Moderation | None:
    """The moderation of a server; None where it has no moderators.

    Args:
        base: The served one; None before an upstream, where moderators read the text alone.

    Raises:
        ConfigError: A block list cannot be read, or the judge would never be asked.
        ModelError: A moderator or the judge cannot be loaded.
    """
    if not settings.moderators:
        return None
    moderator = United([_moderator(path, base, at) for at, path in enumerate(settings.moderators)])
    cascade = None
    if settings.constitution is not None:
        cascade = _cascade(settings.judge, settings.constitution, base, log)
        _check_askable(moderator, cascade, settings.constitution)
    return Moderation(moderator, hold=settings.hold, cascade=cascade)


def _moderator(path: Path, base: SharedBase | None, number: int) -> Moderator:
    if not path.exists():
        raise ConfigError(
            f"there is nothing at {path}",
            where="--moderation",
            remedy="name the folder that `rlaif moderation train` wrote, or a block list",
        )
    if path.is_dir():
        if find_moderator(path) is None:
            raise ConfigError(
                f"there is no moderator in {path}",
                where="--moderation",
                remedy="name the folder that `rlaif moderation train` wrote, or a block list",
            )
        return load_moderator(path, base or _own_base(path), role=f"moderator-{number}")
    return load_block_list(path)


def _own_base(path: Path) -> SharedBase:
    """The base of a moderator that reads the text alone, where no model is served here.

    Raises:
        ConfigError: It reads the states of the model that answers, which is elsewhere.
    """
    note = moderator_note(path)
    if note["kind"] != "lora":
        raise ConfigError(
            f"the moderator in {path} reads the states of the model that answers, which is on another server",
            where="--moderation",
            remedy="train one with `rlaif moderation train --kind lora`, or use a block list",
        )
    return SharedBase.load(note["base"]["name"])


def _cascade(
    judge: str, constitution: Constitution, base: SharedBase | None, log: Callable[[str], None]
) -> Cascade:
    if judge != SELF:
        return Cascade(open_engine(judge, log=log), constitution, log=log)
    if base is None:
        what = "before an upstream no model is here that could judge itself"
        raise ConfigError(what, where="--cascade", remedy="name a judge")
    card = EngineCard(
        name=base.name,
        revision=base.identity,
        kind="hf",
        dtype=str(base.dtype).removeprefix("torch."),
        context=base.context,
        chat=bool(base.tokenizer.chat_template),
    )
    return Cascade(HFEngine(base.model, base.tokenizer, card), constitution, resident=True, log=log)


def _check_askable(moderator: Moderator, cascade: Cascade, constitution: Constitution) -> None:
    """Refuse a judge that would never be asked.

    Raises:
        ConfigError: No category is a principle with a question.
    """
    if not cascade.askable & set(moderator.categories):
        raise ConfigError(
            f"the judge would never be asked: no category ({', '.join(moderator.categories)}) is a principle "
            f"of `{constitution.name}` with a question",
            where="--constitution",
            remedy="name the constitution that the moderators were trained on, or leave --cascade out",
        )
