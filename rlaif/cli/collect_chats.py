"""`rlaif collect export` of a file of chats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.errors import ConfigError

__all__ = ["check_options", "export", "is_database"]

MAGIC = b"SQLite format 3\0"
OF_PAIRS, OF_CHATS = {"labelled": "labels", "limit": "limit", "seed": "seed"}, ("since", "until", "holdout")


def is_database(name: str) -> bool:
    """Whether a name is that of an SQLite file."""
    path = Path(os.path.expanduser(name))
    if not path.is_file():
        return path.suffix in (".sqlite", ".db")
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def check_options(options: Mapping[str, Any], *, of_chats: bool) -> None:
    """Refuse options of the other kind of export.

    Raises:
        ConfigError: There are such.
    """
    names = OF_PAIRS if of_chats else {name: name for name in OF_CHATS}
    given = [option for name, option in names.items() if options[name] is not None]
    if given:
        kinds = ("pairs", "chats") if of_chats else ("chats", "pairs")
        raise ConfigError(
            f"this is an option of {kinds[0]}, and the file holds {kinds[1]}",
            where=", ".join(f"--{name}" for name in given),
            remedy="leave it out",
        )


def export(file: Path, options: Mapping[str, Any]) -> None:
    """Write a file of chats as data, and say what became of every row."""
    from rlaif.chats.export import ExportRange, export_chats
    from rlaif.chats.store import ChatsFile
    from rlaif.cli.echo import tell

    since, until = (options[name] and options[name].date() for name in ("since", "until"))
    wanted = ExportRange(since, until, options["holdout"] or 0.0)
    out = options["out"] or Path("collected")
    with ChatsFile(file.expanduser(), create=False) as chats:
        found = export_chats(chats, out, wanted)
    for line in found.lines:
        tell(line)
    names = ", ".join(f"{name}.jsonl" for name in sorted(path.stem for path in out.glob("*.jsonl")))
    tell(f"{out}: {names}")
