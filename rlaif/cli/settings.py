"""From a command's options to a recipe of one or two stages.

Recipes are imported when a command runs: its help needs the settings of its own stage only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydantic import BaseModel, ValidationError

from rlaif.config.labelling import BaseStage, ServerConfig
from rlaif.errors import ConfigError, Problem

if TYPE_CHECKING:
    from rlaif.config import Recipe

Stage = TypeVar("Stage", bound=BaseStage)
COMMON = ("model", "constitution", "seed", "dtype", "device")
"""Options of all commands: settings of the recipe, also where a stage has one of that name."""

__all__ = ["journal_of", "make_recipe", "make_stage", "pick", "reward_parts", "weighted_file"]


def pick(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The options called `names`, those that were given."""
    return {name: options[name] for name in names if options.get(name) is not None}


def make_stage(
    kind: type[Stage], options: Mapping[str, Any], *, overrides: Sequence[str] | None = None, **given: Any
) -> Stage:
    """The settings of one stage: every option that has the name of a setting, those `given` beside, and each
    `--set a.b=c` laid over them.

    Args:
        options: Of the command; an option without a value leaves the setting as it is.
        overrides: In place of the command's own `--set`.

    Raises:
        ConfigError: A setting is unknown or cannot be right; every problem is listed.
    """
    from rlaif.config import apply_overrides

    own = [name for name in kind.model_fields if name not in COMMON and name not in BaseStage.model_fields]
    values = {name: options[name] for name in own if options.get(name) not in (None, ())}
    changes = options.get("overrides", ()) if overrides is None else overrides
    try:
        return kind.model_validate(apply_overrides(values | given, changes))
    except ValidationError as error:
        problems = _problems(error, kind)
        what = f"the settings of `{kind.model_fields['stage'].default}` are wrong"
        raise ConfigError(what, problems=problems, remedy="`rlaif recipe schema` lists them all") from error


def journal_of(recipe: Recipe, options: Mapping[str, Any]) -> Path | None:
    """The journal that the options name; a shard's own, in its run folder, where they name none.

    Raises:
        UsageError: Shards cannot be done and merged at once.
    """
    from rlaif.pipeline.run import default_folder
    from rlaif.runs.journal import JOURNAL

    if options["shard"] and options["merge"]:
        raise click.UsageError("give --shard to do a part, or --merge to put the parts together")
    journal: Path | None = options["journal"]
    if journal is None and options["shard"]:
        return (options["out"] or default_folder(recipe)) / JOURNAL
    return journal


def reward_parts(options: Mapping[str, Any]) -> dict[str, Any]:
    """The reward that `--reward` or `--reward-function` names.

    Raises:
        UsageError: Neither or both are given.
    """
    model, function = options["reward"], options["reward_function"]
    if (model is None) == (function is None):
        raise click.UsageError("give either --reward DIR or --reward-function MODULE:NAME")
    return (
        {"model": {"kind": "model", "reward": model}}
        if model
        else {"function": {"kind": "function", "function": function}}
    )


def weighted_file(text: str) -> dict[str, Any]:
    """`FILE` or `FILE=WEIGHT`."""
    name, equals, weight = text.rpartition("=")
    try:
        return {"file": name, "weight": float(weight)} if equals else {"file": text}
    except ValueError:
        return {"file": text}


def _problems(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    from rlaif.config.problems import described, telling

    found = []
    for details in telling(error.errors()):
        what, remedy = described(details, model)
        # Where a value may have several forms, the place names the form, too: `tuple[…]`, `JudgeSeat`.
        place = [str(part) for part in details["loc"] if str(part).islower() or isinstance(part, int)]
        where = ".".join(part for part in place if "[" not in part)
        found.append(Problem(what, where=where, remedy=remedy))
    return found


def make_recipe(name: str, stages: Sequence[BaseStage], options: Mapping[str, Any]) -> Recipe:
    """A recipe of `stages` with the options that are common to all commands.

    Raises:
        ConfigError: The options do not go together.
    """
    from rlaif.config import Recipe, apply_overrides

    common = pick(options, *COMMON)
    if options.get("prompts_dir"):
        common["prompts_dir"] = str(options["prompts_dir"])
    server = pick(options, "api_key_env", "price_input", "price_output", "max_cost")
    if options.get("api_key_file"):
        server["api_key_file"] = str(options["api_key_file"])
    if options.get("base_url"):
        server["base_urls"] = tuple(options["base_url"])
    server = apply_overrides(server, options.get("server_settings") or ())
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "run"
    try:
        served = ServerConfig.model_validate(server)
    except ValidationError as error:
        raise ConfigError(
            "the settings of the server are wrong", problems=_problems(error, ServerConfig)
        ) from error
    try:
        return Recipe(name=plain, stages=tuple(stages), server=served, **common)
    except ValidationError as error:
        raise ConfigError("the options do not go together", problems=_problems(error, Recipe)) from error
