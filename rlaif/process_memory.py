"""The most memory that a part of a run held, as the system counts it: the process's resident set.

The system keeps one peak for the whole life of a process. Where a part of the run sets a new one, that is the
part's; else the part stayed below an earlier one, and its own peak is the largest that was seen by looking
every `EVERY` seconds. The system's mark could be reset instead, but then whoever watches the process from
outside (`time -v`) would be told less than it held.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType

import psutil

if sys.platform != "win32":
    import resource

__all__ = ["PeakWatch", "peak_since_start", "resident_now"]

EVERY = 0.05
"""Seconds between two looks; what is over sooner and no new peak of the process is missed."""
PROCESS = psutil.Process()


def peak_since_start() -> int:
    """Most bytes that were resident at once since the process began; 0 where the system does not say."""
    if sys.platform == "win32":
        return int(PROCESS.memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def resident_now() -> int:
    """Bytes that are resident; 0 where the system does not say."""
    try:
        return int(PROCESS.memory_info().rss)
    except psutil.Error:
        return 0


class PeakWatch:
    """Measures the block that it is entered for.

    Attributes:
        bytes: The peak, after the block; where the resident set cannot be looked at, that of the process
            until then.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._before = 0
        self._seen = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="peak-watch", daemon=True)

    def __enter__(self) -> PeakWatch:
        self._before, self._seen = peak_since_start(), resident_now()
        if self._seen:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        after = peak_since_start()
        self.bytes = after if after > self._before or not self._seen else max(self._seen, resident_now())

    def _look(self) -> None:
        while not self._over.wait(EVERY):
            self._seen = max(self._seen, resident_now())
