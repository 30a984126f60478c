"""A stage's folder appears whole or not at all, and replaces an older one without losing it.

Files are written into `RUN/.tmp-STAGE-PID`, made durable, and renamed to `RUN/STAGE` in one step. A finished
folder that stands there moves to `RUN/superseded/STAGE-KEY`; nothing that was finished is ever deleted.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from rlaif.errors import RunError
from rlaif.files import sync_to_disk
from rlaif.runs.disk import run_errors
from rlaif.runs.manifest import Manifest

__all__ = ["SUPERSEDED", "move_aside", "remove_leftovers", "stage_folder"]

SUPERSEDED = "superseded"
LEFTOVER = re.compile(r"^\.tmp-.+-(\d+)$")


@contextmanager
def stage_folder(run: Path, stage: str) -> Iterator[Path]:
    """An empty folder to write the stage's files into; it becomes `run / stage` when the block ends without
    an error.

    Raises:
        RunError: The disk is full or refuses.
    """
    partial = run / f".tmp-{stage}-{os.getpid()}"
    with run_errors("make the stage's folder", partial):
        if partial.exists():  # of an earlier process with our number
            shutil.rmtree(partial)
        partial.mkdir()
    try:
        yield partial
        with run_errors("finish the stage's folder", run / stage):
            _make_durable(partial)
            _move_away(run, stage)
            partial.rename(run / stage)
            sync_to_disk(run)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_leftovers(run: Path) -> list[str]:
    """Remove the partial folders of processes that have died; returns their names. What they had answered is
    in the journal.

    To be called before this process makes its first one: a folder with our own number is that of an earlier
    process.
    """
    removed = []
    with run_errors("clear the run folder", run):
        for path in sorted(run.glob(".tmp-*")):
            found = LEFTOVER.match(path.name)
            if found and path.is_dir() and not _at_work(int(found.group(1))):
                shutil.rmtree(path)
                removed.append(path.name)
    return removed


def _make_durable(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with (Path(root) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_to_disk(Path(root))


def _move_away(run: Path, stage: str) -> None:
    finished = run / stage
    if finished.exists():
        move_aside(run, finished, f"{stage}-{_key(finished)}")


def move_aside(run: Path, folder: Path, name: str) -> Path:
    """Move `folder` to `superseded/NAME`, numbered where that is taken; returns where it lies now."""
    home = run / SUPERSEDED
    home.mkdir(exist_ok=True)
    taken = (home / f"{name}{suffix}" for suffix in _suffixes())
    place = next(path for path in taken if not path.exists())
    folder.rename(place)
    sync_to_disk(home)
    return place


def _suffixes() -> Iterator[str]:
    yield ""
    yield from (f"-{number}" for number in count(2))


def _key(folder: Path) -> str:
    try:
        return Manifest.read_json(folder / "manifest.json").key
    except RunError:
        return "unknown"


def _at_work(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
