"""The parts that `rlaif serve` opens beside its models: moderators, the file of chats, directives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.chats.keeper import ChatKeeper
    from rlaif.serving.moderating import AskedFromElsewhere, Moderation
    from rlaif.serving.opening import ModerationSettings
    from rlaif.serving.passed import UpstreamSettings
    from rlaif.serving.residents import Residents
    from rlaif.serving.steering import Steering

__all__ = ["consent_of_options", "moderation_of", "moderation_settings", "open_chats", "steering_of"]


def moderation_settings(options: dict[str, Any]) -> ModerationSettings | None:
    """What is moderated, checked before a model is loaded; None where nothing is said of it.

    Raises:
        ConfigError: A setting would have no effect.
    """
    source = options["constitution"]
    if not (options["moderators"] or options["judge"] or source):
        return None
    from rlaif.constitution.load import load_constitution
    from rlaif.serving.opening import ModerationSettings

    return ModerationSettings(
        moderators=options["moderators"],
        hold=options["hold"],
        judge=options["judge"],
        constitution=None if source is None else load_constitution(source),
    )


def moderation_of(
    settings: ModerationSettings | None, served: Residents | UpstreamSettings, log: Callable[[str], None]
) -> Moderation | None:
    """The moderation of the server, its moderators loaded."""
    if settings is None:
        return None
    from rlaif.serving.opening import open_moderation
    from rlaif.serving.passed import UpstreamSettings

    base = None if isinstance(served, UpstreamSettings) else served.base
    return open_moderation(settings, base, log=log)


def consent_of_options(options: dict[str, Any]) -> str:
    """What people are told about `--collect`.

    Raises:
        ConfigError: The file cannot be read, or nothing is collected.
    """
    from rlaif.chats.opening import age_of, consent_of
    from rlaif.errors import ConfigError

    for name in ("consent", "retain"):
        if options[name] is not None and options["collect"] is None:
            raise ConfigError("nothing is collected", where=f"--{name}", remedy="add --collect FILE")
    return consent_of(options["consent"], age_of(options["retain"]))


def open_chats(options: dict[str, Any], log: Callable[[str], None]) -> ChatKeeper | None:
    """The file of `--collect`, open."""
    if options["collect"] is None:
        return None
    from rlaif.chats.keeper import ChatKeeper
    from rlaif.chats.opening import age_of
    from rlaif.chats.store import ChatsFile

    return ChatKeeper(ChatsFile(options["collect"]), retain=age_of(options["retain"]), log=log)


def steering_of(
    options: dict[str, Any], moderators: Sequence[AskedFromElsewhere], log: Callable[[str], None]
) -> Steering | None:
    """The directives of the server.

    Args:
        moderators: Those of the server, which conditions may ask.

    Raises:
        ConfigError: They cannot be used, or a judge is named that nobody asks.
    """
    from rlaif.errors import ConfigError

    if options["directives"] is None:
        if options["directives_judge"] is not None:
            what, remedy = "there are no directives to judge for", "add --directives FILE"
            raise ConfigError(what, where="--directives-judge", remedy=remedy)
        return None
    from rlaif.serving.steering import open_steering

    own = {name: options[name] for name in ("dtype", "device")}
    return open_steering(
        options["directives"], options["directives_judge"], moderators=moderators, log=log, **own
    )
