"""Find the files that ship with rlaif: constitutions, prompt templates and recipes.

In an installed wheel they lie in `rlaif/_shipped/`; in an editable checkout, beside the package at the root
of the repository. So `constitutions/default.yaml` works as typed from the repository root and from any other
directory.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Literal

from rlaif.errors import ConfigError
from rlaif.suggest import did_you_mean

__all__ = ["Kind", "find", "names", "shipped"]

Kind = Literal["constitutions", "prompts", "recipes"]

SUFFIX: dict[str, str] = {"constitutions": ".yaml", "prompts": ".j2", "recipes": ".yaml"}
PACKAGE = Path(__file__).resolve().parent


def shipped(kind: Kind) -> Path:
    """The folder of the shipped files of one kind."""
    installed = PACKAGE / "_shipped" / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def names(kind: Kind) -> list[str]:
    """The shipped files of one kind as a user may name them, without the suffix: `default`, `zh/critique`."""
    folder, suffix = shipped(kind), SUFFIX[kind]
    return sorted(
        path.relative_to(folder).as_posix().removesuffix(suffix) for path in folder.rglob(f"*{suffix}")
    )


def find(kind: Kind, name: str | Path) -> Path:
    """The file meant by `name`.

    A file that exists as typed wins. Else `default`, `default.yaml` and `constitutions/default.yaml` name a
    shipped file. A folder in the working directory does not hide a shipped file of its name, since a folder
    can never be what is meant.

    Raises:
        ConfigError: There is no such file, or it is a folder.
    """
    typed = os.path.expanduser(name)
    if os.path.exists(typed) and not os.path.isdir(typed):
        return Path(typed)
    ours = _shipped_file(kind, typed)
    if ours is not None:
        return ours
    if os.path.isdir(typed):
        raise ConfigError(f"`{name}` is a folder; expected a file", remedy=_remedy(kind, typed))
    raise ConfigError(
        f"no file `{name}`, here or among the {kind} that ship with rlaif", remedy=_remedy(kind, typed)
    )


def _shipped_file(kind: Kind, typed: str) -> Path | None:
    parts = PurePosixPath(typed.replace("\\", "/")).parts
    if parts[:1] == (kind,):
        parts = parts[1:]
    if not parts or ".." in parts or parts[0].startswith("/"):
        return None
    path = shipped(kind).joinpath(*parts)
    candidates = [path, path.with_name(path.name + SUFFIX[kind])]
    return next((candidate for candidate in candidates if os.path.isfile(candidate)), None)


def _remedy(kind: Kind, typed: str) -> str:
    known = names(kind)
    stem = PurePosixPath(typed.replace("\\", "/")).name.removesuffix(SUFFIX[kind])
    guess = did_you_mean(stem, known)
    return (
        f"{guess}give the path of a file, or a shipped name: "
        f"{', '.join(known) or '(none found; reinstall rlaif)'}"
    )
