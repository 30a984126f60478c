"""A file of directives that may be edited while it is in use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from rlaif.directives.load import parse_directives, read_bytes
from rlaif.directives.values import Directives
from rlaif.errors import RlaifError

__all__ = ["EVERY", "WatchedDirectives"]

EVERY = 1.0
"""Seconds between two looks at the file."""

Stamp = tuple[int, int, int] | None
"""Time, size and inode of a file; None where it is not there."""


class WatchedDirectives:
    """The last good state of a file. It is looked at when it is asked for, once a second at most; an edit
    that cannot be used is logged once, and what held before goes on holding.

    Args:
        check: Raises an `RlaifError` where the directives cannot be used here.
        log: Told in a line of what was read, and of what could not be.
        clock: Seconds that only grow.

    Raises:
        RlaifError: The file cannot be used to begin with.
    """

    def __init__(
        self,
        path: Path,
        *,
        check: Callable[[Directives], None] = lambda directives: None,
        log: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._check, self._log, self._clock = check, log, clock
        self._lock = threading.Lock()
        self._stamp, self._looked = _stamp(path), clock()
        self._bytes = read_bytes(path)
        self._directives = self._parsed(self._bytes)

    def current(self) -> Directives:
        """What holds now; from any thread."""
        with self._lock:
            if self._clock() - self._looked >= EVERY:
                self._looked = self._clock()
                self._look()
            return self._directives

    def _look(self) -> None:
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            return
        self._stamp = stamp  # first: what is wrong with this state of the file is told once
        try:
            found = read_bytes(self.path)
            if found == self._bytes:
                return
            self._directives = self._parsed(found)
        except RlaifError as error:
            self._log(f"directives: the edit is not used, those of before hold: {error}")
            return
        self._bytes = found
        self._log(f"directives: {self.path} was read again, digest {self._directives.digest}")

    def _parsed(self, data: bytes) -> Directives:
        found = parse_directives(data, source=str(self.path))
        self._check(found)
        return found


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
