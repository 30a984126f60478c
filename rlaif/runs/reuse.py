"""Take a finished stage over from another run, where all that it depends on is the same."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlaif.errors import RunError
from rlaif.runs.disk import run_errors
from rlaif.runs.manifest import MANIFEST, Manifest, damaged_outputs, stage_key
from rlaif.runs.run import RunFolder

__all__ = ["take_over"]


def take_over(run: RunFolder, stage: str, parts: Mapping[str, str], others: Sequence[Path]) -> Path | None:
    """Link the files of the stage of that name into `run` from the first of `others` that has finished it
    with the same `parts`, nothing unanswered and nothing changed since; copied where the disk cannot link.

    Returns:
        The folder that it is from; `None` where there is none.

    Raises:
        RunError: The disk refuses.
    """
    for other in others:
        found = other / stage
        if _is_same(found, stage_key(parts)):
            with run.stage(stage) as folder, run_errors("take over a finished stage", found):
                shutil.copytree(found, folder, copy_function=_link, dirs_exist_ok=True)
            run.record(stage)
            return found
    return None


def _is_same(folder: Path, key: str) -> bool:
    try:
        manifest = Manifest.read_json(folder / MANIFEST)
    except RunError:
        return False
    same = manifest.key == key == stage_key(manifest.parts) and not manifest.gaps
    return same and not damaged_outputs(folder, manifest)


def _link(source: str, target: str) -> None:
    """Stage files are written once and never changed, so that two runs may share them; Markdown is copied,
    since people may add to it."""
    linked = False
    if not source.endswith(".md"):
        with contextlib.suppress(OSError):  # another disk, or one without links
            os.link(source, target)
            linked = True
    if not linked:
        shutil.copy2(source, target)
