"""The one thread of a server that reads and writes its file of chats, so that nothing else ever waits for a
disk. Rows that are older than may be are deleted at the start and every hour."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import TypeVar

from rlaif.chats.records import now
from rlaif.chats.store import ChatsFile
from rlaif.text import count_of

__all__ = ["ChatKeeper", "KeeperBusy"]

HOUR = 3600.0
WAITING = 1_000
"""Writes that wait for the disk, past which one is refused."""
Result = TypeVar("Result")


class KeeperBusy(Exception):
    """As much waits for the disk as may."""


class ChatKeeper:
    """Does work on a file of chats, in the order in which it was asked, on a thread of its own.

    Args:
        file: Closed by `close`.
        retain: Age at which exchanges are deleted; never where left out.
        clock: The time, for tests.
        every: Seconds between two looks for what is too old.
        log: Told in a line what was deleted.
    """

    def __init__(
        self,
        file: ChatsFile,
        *,
        retain: timedelta | None = None,
        clock: Callable[[], datetime] = now,
        every: float = HOUR,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.retain = retain
        self.clock = clock
        self._file, self._every, self._log = file, every, log
        self._places = threading.BoundedSemaphore(WAITING)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rlaif-chats")
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="rlaif-chats-retention", daemon=True)
        if retain is not None:
            self._pool.submit(self._expire).result()
            self._ticker.start()

    def do(self, work: Callable[[ChatsFile], Result]) -> Future[Result]:
        """Have `work` done on the file.

        Raises:
            KeeperBusy: Too much waits already, or it is closed.
        """
        if not self._places.acquire(blocking=False):
            raise KeeperBusy(f"{WAITING} writes wait for the disk already")
        try:
            promised = self._pool.submit(work, self._file)
        except RuntimeError:
            self._places.release()
            raise KeeperBusy("the file of chats is closed") from None
        promised.add_done_callback(lambda _: self._places.release())
        return promised

    def close(self) -> None:
        """Do what was asked for, and close the file; does nothing the second time."""
        self._closed.set()
        self._pool.shutdown(wait=True)
        self._file.close()

    def _tick(self) -> None:
        while not self._closed.wait(self._every):
            try:
                self._pool.submit(self._expire)
            except RuntimeError:  # closed in the meantime
                return

    def _expire(self) -> None:
        assert self.retain is not None
        try:
            gone = self._file.expire(self.retain, self.clock())
        except sqlite3.Error as error:
            self._log(f"chats: what is too old could not be deleted ({error}); the next try is in an hour")
            return
        if any(gone):
            self._log(
                f"chats: deleted {count_of(gone.exchanges, 'exchange')} older than {_days(self.retain)}, "
                f"with {count_of(gone.votes, 'vote')}, {count_of(gone.flags, 'flag')} and "
                f"{count_of(gone.preferences, 'preference')}"
            )


def _days(age: timedelta) -> str:
    days = age / timedelta(days=1)
    return count_of(int(days), "day") if days == int(days) else f"{age / timedelta(hours=1):g} hours"
