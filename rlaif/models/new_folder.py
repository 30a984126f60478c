"""A folder that appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlaif.errors import ModelError
from rlaif.files import sync_to_disk

__all__ = ["new_folder"]


@contextmanager
def new_folder(folder: Path, *, what: str) -> Iterator[Path]:
    """A folder to write into, under another name: it gets the name `folder` where the block ends without an
    error, once all of it is on the disk, and is removed where it does not.

    Args:
        folder: Must not exist or be empty.
        what: What is written, for messages.

    Raises:
        ModelError: Something is there already, or the disk refuses.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(
            "the folder is not empty, and nothing is overwritten",
            where=str(folder),
            remedy="name another folder",
        )
    work = folder.with_name(f".tmp-{folder.name}")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        yield work
        for path in (*work.rglob("*"), work):
            sync_to_disk(path)
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
    except OSError as error:
        remedy = "check space and permissions"
        raise ModelError(f"{what} cannot be written: {error}", where=str(folder), remedy=remedy) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
