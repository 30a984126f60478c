"""Open files that other people name: regular files only, of a bounded size and with lines of a bounded
length.

A path may lead to a FIFO that nobody writes to, to `/dev/zero`, to a socket, round a loop of links, or to one
line of gigabytes: each would hang a command or fill the memory. Everything that reads a file from outside
opens it here. The limits are generous, and two environment variables raise them: `RLAIF_MAX_FILE_MB` and
`RLAIF_MAX_LINE_MB`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rlaif.digest import digest
from rlaif.errors import ConfigError, DataError, RlaifError

__all__ = [
    "SMALL",
    "check_regular",
    "file_digest",
    "file_limit",
    "folder_digest",
    "line_limit",
    "open_regular",
    "parse_object",
    "read_lines",
    "read_object",
    "read_small",
    "read_whole",
    "sync_to_disk",
]

MB = 1 << 20
SMALL = 32 * MB
"""Bytes of the largest file that is read whole and is not data: a recipe, a constitution, a template, a
manifest."""
FILE_MB = 16_384
LINE_MB = 64
FILE_VARIABLE = "RLAIF_MAX_FILE_MB"
LINE_VARIABLE = "RLAIF_MAX_LINE_MB"


def file_limit() -> int:
    """Bytes of the largest data file that is read.

    Raises:
        ConfigError: `RLAIF_MAX_FILE_MB` is not a whole number above 0.
    """
    return _limit(FILE_VARIABLE, FILE_MB)


def line_limit() -> int:
    """Bytes of the longest line that is read.

    Raises:
        ConfigError: `RLAIF_MAX_LINE_MB` is not a whole number above 0.
    """
    return _limit(LINE_VARIABLE, LINE_MB)


def open_regular(
    path: str | Path, *, error: type[RlaifError] = DataError, limit: int | None = None
) -> IO[bytes]:
    """Open a regular file for reading bytes.

    Args:
        error: The error to raise when it is not a regular file or too large.
        limit: Bytes it may have; `file_limit()` when left out.

    Raises:
        OSError: It is not there, may not be read, or its links go round in a circle.
        RlaifError: As `error` says.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer. Regular files ignore the flag.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise error(
                f"this is {_kind(found.st_mode)}, not a regular file",
                where=str(path),
                remedy="name a regular file",
            )
        most = file_limit() if limit is None else limit
        if found.st_size > most:
            raise error(
                f"the file has {found.st_size / MB:,.0f} MB; at most {most / MB:,.0f} MB are read",
                where=str(path),
                remedy=f"split it, or raise the limit ({FILE_VARIABLE})"
                if limit is None
                else "name the file that was meant",
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_whole(path: str | Path, *, error: type[RlaifError] = DataError, limit: int | None = None) -> bytes:
    """All bytes of a regular file; as `open_regular`, also for a file that grows while it is read."""
    most = file_limit() if limit is None else limit
    with open_regular(path, error=error, limit=limit) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise error(
            f"the file grew beyond {most / MB:,.0f} MB",
            where=str(path),
            remedy="name a file that is complete",
        )
    return content


def read_small(path: str | Path, *, error: type[RlaifError]) -> str:
    """The text of a small UTF-8 file (`SMALL`), a byte order mark taken off.

    Raises:
        OSError: As `open_regular`.
        RlaifError: Of the class `error`: it is not a regular file, too large, or not UTF-8.
    """
    content = read_whole(path, error=error, limit=SMALL)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise error(
            f"the file is not UTF-8 (byte {wrong.start + 1})", where=str(path), remedy="save it as UTF-8"
        ) from wrong


def check_regular(*paths: Path, error: type[RlaifError] = DataError) -> None:
    """Refuse what is no regular file, before a library opens it: it would wait for a FIFO's writer, or read a
    device without end.

    Files that are not there are left to the library.

    Raises:
        RlaifError: Of the class `error`.
    """
    for path in paths:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            continue
        except OSError as wrong:
            raise error(
                f"cannot be read ({wrong.strerror})",
                where=str(path),
                remedy="check its links and permissions",
            ) from wrong
        if not stat.S_ISREG(mode):
            raise error(
                f"this is {_kind(mode)}, not a regular file", where=str(path), remedy="name a regular file"
            )


def read_object(path: str | Path, *, error: type[RlaifError], what: str, remedy: str) -> dict[str, Any]:
    """The JSON object that a small file holds.

    Args:
        error: The error to raise when there is no such file, or another content.
        what: What the file is, for the message: "the manifest".
        remedy: What the reader can do about it.

    Raises:
        RlaifError: Of the class `error`.
    """
    try:
        text = read_small(path, error=error)
    except OSError as wrong:
        raise error(
            f"{what} cannot be read ({wrong.strerror or wrong})", where=str(path), remedy=remedy
        ) from wrong
    try:
        return parse_object(text)
    except ValueError as wrong:
        raise error(f"{what} is damaged ({wrong})", where=str(path), remedy=remedy) from wrong


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object that a text holds.

    Raises:
        ValueError: It is not JSON (also: nested too deep, or with a number of too many digits), or not an
            object.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("it contains no JSON object")
    return found


def read_lines(file: IO[bytes], *, limit: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """The lines of an open file with their numbers from 1; `None` for a line longer than the limit, which is
    passed over."""
    most = line_limit() if limit is None else limit
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) <= most:
            yield number, line
            continue
        while not line.endswith(b"\n") and (line := file.readline(most)):
            pass
        yield number, None


def _limit(variable: str, default: int) -> int:
    told = os.environ.get(variable, "").strip()
    if not told:
        return default * MB
    if not (told.isascii() and told.isdigit() and 0 < len(told) <= 9 and int(told) > 0):
        raise ConfigError(
            f"{variable} is {told[:40]!r}", remedy="give a whole number of megabytes above 0, or unset it"
        )
    return int(told) * MB


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe (FIFO)",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


def folder_digest(folder: Path) -> str:
    """Digest of all files of a folder but Markdown, which is for people and names paths."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
    return digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in files])


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        what = f"the file cannot be read ({error.strerror})"
        raise DataError(what, where=str(path), remedy="check that the path is right") from error


def sync_to_disk(path: Path) -> None:
    """Have a file, or the names in a folder, on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
