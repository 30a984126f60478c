"""A run: a folder that holds all of one piece of work, locked by the process that works in it.

RUN/run.json          name, command line, status, times, stages
RUN/recipe.yaml       the resolved recipe: `rlaif run RUN/recipe.yaml` does it again
RUN/../rlaif-journal.sqlite   every answer a model gave, shared by the runs beside each other
RUN/STAGE/            a finished stage, with its manifest
RUN/superseded/       finished stages that a later one replaced
RUN/report.html       all of it on one page, for a person
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from rlaif import __version__
from rlaif.errors import RlaifError, RunError, interruption
from rlaif.files import parse_object, read_small
from rlaif.runs.disk import run_errors, write_whole
from rlaif.runs.folders import remove_leftovers, stage_folder
from rlaif.runs.manifest import MANIFEST, Manifest, first_problem

__all__ = ["RUN", "RunFolder", "RunInfo", "Status", "list_runs", "now", "read_run", "remove_abandoned"]

Status = Literal["running", "finished", "failed", "interrupted", "damaged"]
"""`damaged` is never written: it stands in lists for a `run.json` that cannot be read."""
RUN, LOCK, RECIPE = "run.json", ".lock", "recipe.yaml"
OWNER = ".owner"
"""Holds the number of the process that works in the folder; it stays where one was killed."""
LOCK_SECONDS = 0.25
"""`list_runs` holds the lock for an instant to see whether a run is alive; that must not turn a new run
away."""


@dataclass(frozen=True)
class RunInfo:
    """What `run.json` says.

    Attributes:
        started: When the latest command in this folder began; UTC, ISO 8601.
        finished: When it ended; empty while it runs, and when it was killed.
        stages: Finished stages, in the order they finished.
        version: rlaif's version.
    """

    name: str
    command: tuple[str, ...]
    status: Status
    started: str
    finished: str = ""
    stages: tuple[str, ...] = ()
    version: str = __version__
    path: Path = Path()

    def manifests(self) -> list[Manifest]:
        """The manifests of its finished stages that are still there."""
        paths = [self.path / stage / MANIFEST for stage in self.stages]
        return [Manifest.read_json(path) for path in paths if path.exists()]


class RunFolder:
    """A run folder that this process works in. Use `open`, as a context manager: the way it is left sets the
    status. A new folder in which nothing was begun goes again, where an error of ours ends it: a mistyped
    name leaves nothing behind.

    Args:
        new: The folder was made for this.
    """

    def __init__(self, path: Path, lock: FileLock, info: RunInfo, *, new: bool = False) -> None:
        self.path = path
        self.info = info
        self.cleared = remove_leftovers(path)
        self._lock = lock
        self._idle = new

    @classmethod
    def open(cls, path: Path, *, name: str = "", command: Sequence[str] | None = None) -> RunFolder:
        """Create the folder, or continue in it, and lock it.

        Args:
            name: Shown in lists; the folder's name when empty.
            command: The command line; that of this process when `None`.

        Raises:
            RunError: The path is a file, cannot be written to, or another process works in it.
        """
        path = Path(path)
        new = not path.exists()
        with run_errors("create the run folder", path):
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        try:
            before = _stages_there(path, _read(path).stages if (path / RUN).exists() else ())
            info = RunInfo(
                name=name or path.resolve().name,
                command=tuple(sys.argv if command is None else command),
                status="running",
                started=now(),
                stages=before,
                path=path,
            )
            run = cls(path, lock, info, new=new)
            run._save()
        except BaseException:
            lock.release()
            raise
        return run

    def write_recipe(self, text: str) -> None:
        """Keep the resolved recipe."""
        write_whole(self.path / RECIPE, text)

    def manifest(self, stage: str) -> Manifest | None:
        """The manifest of a finished stage; `None` when it has not finished, or its manifest cannot be
        read."""
        try:
            return Manifest.read_json(self.path / stage / MANIFEST)
        except RunError:
            return None

    def check_own(self, stages: Iterable[str]) -> None:
        """Refuse to work where a folder that is none of this run's has the name of a stage: it would be moved
        aside.

        Raises:
            RunError: There is one.
        """
        for name in stages:
            folder = self.path / name
            if name not in self.info.stages and folder.exists() and not (folder / MANIFEST).is_file():
                raise RunError(
                    f"there is a folder {name}/ that is not a stage of this run",
                    where=str(folder),
                    remedy="move it away, or give the run another folder (--out)",
                )

    def stage(self, name: str) -> AbstractContextManager[Path]:
        """A folder to write a stage's files and manifest into; see `stage_folder`. Call `record` when it is
        there."""
        self._idle = False
        return stage_folder(self.path, name)

    def record(self, stage: str) -> None:
        """Note in `run.json` that a stage has finished."""
        stages = (*(name for name in self.info.stages if name != stage), stage)
        self.info = replace(self.info, stages=stages)
        self._save()

    def close(self, status: Status) -> None:
        """Note how the run ended, and let go of the folder."""
        self.info = replace(self.info, status=status, finished=now())
        try:
            self._save()
        finally:
            (self.path / OWNER).unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close(_status(error))
        except RunError:
            # On a full disk the status cannot be written either; the error that is under way says so already.
            if kind is None:
                raise
        if self._idle and isinstance(error, RlaifError):
            self._remove()

    def _remove(self) -> None:
        """Take away a folder that holds nothing but what every run folder holds."""
        own = {RUN, LOCK, RECIPE, OWNER}
        with contextlib.suppress(OSError):
            if {each.name for each in self.path.iterdir()} <= own:
                for each in self.path.iterdir():
                    each.unlink()
                self.path.rmdir()

    def _save(self) -> None:
        values = {name: value for name, value in asdict(self.info).items() if name != "path"}
        write_whole(self.path / RUN, json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def list_runs(root: Path) -> list[RunInfo]:
    """The runs in the folders of `root` (and `root` itself, when it is one), each round of those that are run
    in rounds, the latest first; damaged ones last.

    Raises:
        RunError: `root` is no folder, or cannot be read.
    """
    with run_errors("list the runs", root):
        folders = [root, *(path for path in root.iterdir() if path.is_dir())]
        folders += [each for path in folders[1:] for each in path.glob("round-*") if each.is_dir()]
    runs = [_listed(folder) for folder in folders if (folder / RUN).exists()]
    return sorted(runs, key=lambda info: (info.started, info.name), reverse=True)


def read_run(path: Path) -> RunInfo:
    """What is known of one run.

    Raises:
        RunError: It is no run folder, or `run.json` is damaged.
    """
    info = _read(path)
    # A killed process leaves `running` behind, and its lock goes with it.
    return replace(info, status="interrupted") if info.status == "running" and not _locked(path) else info


def remove_abandoned(folder: Path, pattern: str) -> list[Path]:
    """Remove the run folders directly in `folder`, of this user and with names as in `pattern`, whose process
    was killed; returns what was removed.

    A process holds the lock of its folder from before `run.json` is there, and the system lets go of it: a
    folder without that file may be one that is being made.
    """
    removed, me = [], os.getuid() if hasattr(os, "getuid") else 0  # as `stat` says where there are no numbers
    for path in sorted(folder.glob(pattern)):
        with contextlib.suppress(OSError):  # another process may remove it, too
            if path.is_symlink() or path.stat().st_uid != me or not (path / RUN).is_file():
                continue
            with contextlib.suppress(Timeout), FileLock(path / LOCK, timeout=0):
                shutil.rmtree(path)
                removed.append(path)
    return removed


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _listed(folder: Path) -> RunInfo:
    try:
        return read_run(folder)
    except RunError:
        return RunInfo(name=folder.name, command=(), status="damaged", started="", path=folder)


def _read(path: Path) -> RunInfo:
    try:
        values = parse_object(read_small(path / RUN, error=RunError))
        known = {each.name: values[each.name] for each in fields(RunInfo) if each.name in values}
        return TypeAdapter(RunInfo).validate_python(known | {"path": path})
    except OSError as error:
        raise RunError(
            f"this is not a run folder ({error.strerror})",
            where=str(path / RUN),
            remedy="see `rlaif runs list`",
        ) from error
    except ValueError as error:
        remedy = "remove this file; the stages and the journal remain valid"
        raise RunError(
            f"{RUN} is damaged ({first_problem(error)})", where=str(path / RUN), remedy=remedy
        ) from error


def _lock(path: Path) -> FileLock:
    """Take the folder for this process; the system lets go of it when the process ends, however it ends."""
    lock, owner = FileLock(path / LOCK), path / OWNER
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise RunError(
            f"process {_owner(owner)} is at work in this run folder",
            where=str(path),
            remedy="wait until it has ended, stop it, or name another folder (--out)",
        ) from error
    try:
        owner.write_text(str(os.getpid()), encoding="ascii")
    except BaseException:
        lock.release()
        raise
    return lock


def _owner(file: Path) -> str:
    try:
        return read_small(file, error=RunError).strip() or "unknown"
    except (OSError, RunError):
        return "unknown"


def _stages_there(path: Path, noted: Sequence[str]) -> tuple[str, ...]:
    """The stages noted, and those that a process finished and was killed before it noted them."""
    # A killed process leaves `.tmp-STAGE-…` behind, perhaps with its manifest: that is no finished stage.
    found = sorted(each.parent.name for each in path.glob(f"[!.]*/{MANIFEST}"))
    return (*noted, *(name for name in found if name not in noted))


def _locked(path: Path) -> bool:
    """Whether a process is at work in the folder."""
    if not (path / LOCK).is_file():
        return False
    try:
        with FileLock(path / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _status(error: BaseException | None) -> Status:
    if error is None:
        return "finished"
    return "interrupted" if interruption(error) else "failed"
