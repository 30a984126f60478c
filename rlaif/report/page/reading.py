"""Files of a run folder, read so that one that is missing or damaged takes nothing else with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import yaml

from rlaif.errors import RlaifError, RunError
from rlaif.files import read_object, read_small
from rlaif.runs.manifest import MANIFEST, Manifest
from rlaif.runs.run import RunInfo
from rlaif.text import one_line

__all__ = ["Missing", "Stage", "finished_stages", "read_json", "recipe_in", "unfinished_stages"]

Found = TypeVar("Found")
Given = ParamSpec("Given")


class Stage(NamedTuple):
    """A finished stage and its folder."""

    manifest: Manifest
    folder: Path

    @property
    def name(self) -> str:
        """Of the stage and its folder."""
        return self.manifest.stage


class Missing:
    """What is not on the page, in words."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def attempt(
        self, what: str, read: Callable[Given, Found], *given: Given.args, **named: Given.kwargs
    ) -> Found | None:
        """What `read` gives; `None` where it cannot, which is noted as the lack of `what`."""
        try:
            return read(*given, **named)
        except RlaifError as error:
            reason = str(error).partition("\n")[0]
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except (KeyError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            reason = f"{type(error).__name__}: {error}"
        self.lines.append(
            f"{what} is left out, since its file is damaged or of another version ({one_line(reason)})"
        )
        return None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small file of JSON.

    Raises:
        RunError: It is missing or damaged.
    """
    return read_object(path, error=RunError, what=path.name, remedy="run the stage again")


def finished_stages(info: RunInfo, missing: Missing) -> list[Stage]:
    """The finished stages that are there, in the recipe's order where that is known."""
    found = []
    for name in info.stages:
        folder = info.path / name
        if not folder.is_dir():
            missing.lines.append(f"the folder of stage `{one_line(name)}` is gone")
            continue
        manifest = missing.attempt(f"stage `{name}`", Manifest.read_json, folder / MANIFEST)
        if manifest is not None:
            found.append(Stage(manifest, folder))
    order = {name: place for place, name in enumerate(_recipe_stages(info.path))}
    return sorted(found, key=lambda stage: order.get(stage.name, len(order)))


def unfinished_stages(info: RunInfo) -> list[str]:
    """Stages of the recipe that have not finished."""
    return [name for name in _recipe_stages(info.path) if name not in info.stages]


def _recipe_stages(folder: Path) -> list[str]:
    """The names of the stages in `recipe.yaml`; none where it cannot be read."""
    try:
        return [str(each.get("name") or each["stage"]) for each in recipe_in(folder)["stages"]]
    except (KeyError, TypeError, AttributeError):
        return []


def recipe_in(folder: Path) -> Mapping[str, Any]:
    """What `recipe.yaml` says; nothing where it cannot be read."""
    try:
        found = yaml.safe_load(read_small(folder / "recipe.yaml", error=RunError))
    except (OSError, RunError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
