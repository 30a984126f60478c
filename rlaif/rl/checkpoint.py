"""Checkpoints of a training run: folders that are whole or not there, and are checked when they are read.

A checkpoint is `step-000010/` with `tensors.safetensors`, `state.json` and `manifest.json`, which states the
size and SHA-256 of the other two. It is written under a temporary name, synced to disk and renamed; so a run
that dies while writing leaves the ones before.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rlaif.errors import RunError
from rlaif.files import check_regular, parse_object, sync_to_disk
from rlaif.models.tensor_files import write_tensors

__all__ = ["Checkpoint", "checksum", "load_checkpoint", "newest_checkpoint", "save_checkpoint"]

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
FORMAT = 1
NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was saved after `step` steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, *, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write `folder/step-NNNNNN` and remove all but the newest `keep`.

    Raises:
        RunError: It cannot be written.
    """
    final = folder / f"step-{step:06d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder))
        try:
            write_tensors(work / TENSORS, tensors)
            (work / STATE).write_text(json.dumps({"step": step, **state}, indent=1) + "\n", "utf-8")
            files = {name: _identity(work / name) for name in (TENSORS, STATE)}
            (work / MANIFEST).write_text(
                json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n", "utf-8"
            )
            for path in (*work.iterdir(), work):
                sync_to_disk(path)
            # Of a run that was cut off after it, or a damaged one that was replaced on purpose.
            if final.exists():
                shutil.rmtree(final)
            work.rename(final)
            sync_to_disk(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        for old in _all(folder)[:-keep]:
            shutil.rmtree(old)
    except OSError as error:
        remedy = "free space on the disk, or give the run another folder"
        raise RunError(
            f"the checkpoint cannot be written: {error}", where=str(final), remedy=remedy
        ) from error
    return final


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """One digest of the bytes of all tensors, in the order of their names."""
    sums = hashlib.sha256()
    for name in sorted(tensors):
        sums.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step, if there is any; whether it is whole is seen when it is loaded."""
    found = _all(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        RunError: A file is missing, cut short or changed, or the format is another one.
    """
    try:
        manifest = parse_object((path / MANIFEST).read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise _damaged(
                path / MANIFEST, f"its format is {manifest['format']}, this version reads {FORMAT}"
            )
        for name, wanted in manifest["files"].items():
            found = _identity(path / name)
            if found["bytes"] != wanted["bytes"]:
                raise _damaged(path / name, f"it has {found['bytes']} bytes instead of {wanted['bytes']}")
            if found != wanted:
                raise _damaged(path / name, "its content was changed after it was written")
        state = parse_object((path / STATE).read_text("utf-8"))
        check_regular(path / TENSORS, error=RunError)
        tensors = load_file(path / TENSORS)
        return Checkpoint(step=int(state.pop("step")), tensors=tensors, state=state)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        SafetensorError,
    ) as error:
        # All that JSON of another shape can lead to: a list for an object, a number without end for a step.
        raise _damaged(path, str(error) or type(error).__name__) from error


def _damaged(where: Path, why: str) -> RunError:
    return RunError(
        f"the checkpoint is damaged: {why}",
        where=str(where),
        remedy=f"delete the folder {where if where.is_dir() else where.parent} to go on from the checkpoint "
        "before it",
    )


def _all(folder: Path) -> list[Path]:
    """Checkpoint folders, the oldest step first."""
    found = [
        (int(match[1]), path)
        for path in folder.glob("step-*")
        if (match := NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def _identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
