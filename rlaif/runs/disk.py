"""What the disk may refuse, said once: every module here that writes does so under `told`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rlaif.errors import RunError
from rlaif.files import parse_object, read_small

__all__ = ["read_appended", "read_json_object", "run_errors", "write_whole"]

Row = TypeVar("Row")


@contextmanager
def run_errors(what: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `RunError` that says what could not be done, where, why, and the remedy."""
    try:
        yield
    except OSError as error:
        reason, remedy = _explain(error)
        raise RunError(f"cannot {what}: {reason}", where=str(path), remedy=remedy) from error


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a reader, or a crash, never meets half of it."""
    partial = path.with_name(f".{path.name}.tmp")
    with run_errors("write the file", path):
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The object that a small JSON file of ours holds; `None` where there is no such file, or something else
    in it."""
    try:
        return parse_object(read_small(path, error=RunError))
    except (OSError, ValueError, RunError):
        return None


def read_appended(path: Path, read: Callable[[bytes], Row | None], *, what: str, remedy: str) -> list[Row]:
    """The rows of a file that grows by a line at a time; none where there is no such file.

    The last line of a process that was killed may be cut short, and is passed over.

    Args:
        read: The row of a line; `None` where it is none.
        what: What a row is, for the message.

    Raises:
        RunError: The file cannot be read, or a row before the last is not as it was written.
    """
    with run_errors("read the file", path):
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        row = read(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise RunError(f"{what} is damaged", where=f"{path}:{number}", remedy=remedy)
    return rows


def _explain(error: OSError) -> tuple[str, str]:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return (
                "no space left on the disk",
                "free some space and run the same command again: finished work is kept",
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"not allowed ({error.strerror})", "name a folder that you may write to (--out)"
        case errno.ENOTDIR | errno.EEXIST:
            return ("expected a folder, found a file", "name another folder (--out), or move the file away")
        case _:
            return error.strerror or str(error), "check the path and the disk, then run again"
