"""Kill a command at a chosen file operation, or after a chosen time, and compare what is left in the end with
an undisturbed run.

    process = start(arguments, below=folder, said=log, die_at=17)  # SIGKILL right before its 17th operation

A *file operation* is what changes files below the run's folder: opening for writing, renaming, removing,
making or removing a folder, truncating, and fsync. Python tells of all but the last by its audit hooks; what
libraries in other languages do (SQLite's journal, the weights that safetensors writes) is reached by killing
after a time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import spine

__all__ = ["OPERATIONS", "changed_files", "operations", "results", "start", "timeless"]

OPERATIONS = (
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
)
"""Audit events of what changes files; `open` counts when it may write."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
COUNT = "operations"
APART = ("superseded", ".lock", ".owner", "run.json", "tracking", "spending.jsonl")
"""Not compared byte by byte: a run that begins again asks its server again what it can do, and pays for that,
too."""
TIMES = ("seconds", "started", "finished", "peak_bytes", "planned_bytes", "time", "per_second", "memory")
"""Beginnings and endings of the names of values that tell how long or how much a machine took."""


def start(
    arguments: tuple[object, ...],
    *,
    below: Path,
    said: Path,
    asked: Path | None = None,
    die_at: int | None = None,
) -> ForkServerProcess:
    """Start `rlaif ARGUMENTS…` in a process that counts its file operations.

    Args:
        below: Operations on files in this folder count.
        said: File for its output.
        asked: File in which scripted engines note their questions.
        die_at: The operation, from 1, right before which it is killed; `None` lets it live, and the file
            `operations` beside `said` tells how many there were.
    """
    process = spine.processes().context.Process(
        target=_child,
        args=([str(each) for each in arguments], str(below), str(said), str(asked or ""), die_at),
        daemon=True,
    )
    process.start()
    return process


def operations(said: Path) -> int:
    """How many file operations the process had that wrote to `said` and was let live."""
    return int(said.with_name(f"{said.name}.{COUNT}").read_text(encoding="ascii"))


def _child(arguments: list[str], below: str, said: str, asked: str, die_at: int | None) -> None:
    counter = _Counter(os.path.abspath(below), die_at)
    counter.install()
    try:
        spine.child(arguments, said, asked, None)
    finally:
        counter.armed = False
        Path(f"{said}.{COUNT}").write_text(str(counter.count), encoding="ascii")


class _Counter:
    """Counts file operations, and kills the process at the chosen one."""

    def __init__(self, below: str, die_at: int | None) -> None:
        self.count = 0
        self.armed = True
        self._below = below
        self._die_at = die_at

    def install(self) -> None:
        """Hear of every operation from now on; there is no way back."""
        sys.addaudithook(self._heard)
        fsync = os.fsync

        def counted(descriptor: Any) -> None:
            self._one()
            fsync(descriptor)

        os.fsync = counted

    def _heard(self, event: str, details: tuple[Any, ...]) -> None:
        if not self.armed or event not in OPERATIONS or (event == "open" and not (details[2] or 0) & WRITES):
            return
        if any(isinstance(each, (str, bytes, os.PathLike)) and self._is_below(each) for each in details[:2]):
            self._one()

    def _is_below(self, path: Any) -> bool:
        return os.path.abspath(os.fsdecode(path)).startswith(self._below)

    def _one(self) -> None:
        self.count += 1
        if self.armed and self.count == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)


# What is left -----------------------------------------------------------------------------------------------


def results(run: Path) -> dict[str, Any]:
    """Every file of a run's finished stages by its name; what tells the time or the memory that a machine
    took is left out."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run)
        if path.is_file() and name.parts[0] not in APART:
            found[name.as_posix()] = _content(path)
    return found


def _content(path: Path) -> Any:
    raw = path.read_bytes()
    match path.suffix:
        case ".json":
            return timeless(json.loads(raw))
        case ".jsonl":
            return [timeless(json.loads(line)) for line in raw.splitlines()]
        case ".md" | ".html":
            return "a text for people, with times in it"
        case _:
            return raw


def timeless(value: Any) -> Any:
    """`value` without what tells times and memory, at any depth, and without digests and sizes of files that
    do."""
    if isinstance(value, Mapping):
        kept = {name: each for name, each in value.items() if not _tells_time(str(name))}
        if set(kept) >= {"sha256", "bytes"}:
            kept = {name: each for name, each in kept.items() if name not in ("sha256", "bytes")}
        return {name: timeless(each) for name, each in kept.items()}
    if isinstance(value, list):
        return [timeless(each) for each in value]
    return value


def _tells_time(name: str) -> bool:
    return name.startswith(TIMES) or name.endswith(TIMES)


def changed_files(calm: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Files that are missing, too many, or of another content than in the undisturbed run."""
    differ = [f"{name} differs" for name in calm if name in found and calm[name] != found[name]]
    return (
        [f"{name} is missing" for name in calm if name not in found]
        + [f"{name} is too many" for name in found if name not in calm]
        + differ
    )


Check = Callable[[Path], list[str]]
