"""The journal: every answer a model gave, kept the moment it exists, so that no answer is ever asked for
twice.

An append-only map from a content key to a JSON value in one SQLite file. Write-ahead logging with
`synchronous=NORMAL`: a batch that was committed survives the death of the process (SIGKILL too); a power cut
may lose the last batches but never breaks the file. Several processes may share it: the first answer to a key
stands, whoever gave it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from rlaif.errors import RunError

__all__ = ["JOURNAL", "Journal", "JournalMerge", "JournalStats"]

JOURNAL = "rlaif-journal.sqlite"
"""The name of a journal's file, where none is given."""

SCHEMA_VERSION = 1
APPLICATION_ID = 0x524C4146
"""`RLAF`: marks the file as ours in its SQLite header."""
DAMAGED = "move it away and run again; the answers in it will be asked again"
SELECT_CHUNK = 500
"""Keys in one SELECT; SQLite's oldest limit is 999 parameters."""
BUSY_SECONDS = 30.0
"""How long a process waits for another one's transaction."""

SCHEMA = """
CREATE TABLE answers (
    key   TEXT PRIMARY KEY,
    kind  TEXT NOT NULL CHECK (kind IN ('generation', 'reading')),
    value TEXT NOT NULL,
    time  REAL NOT NULL
)
"""


class JournalStats(NamedTuple):
    """What a journal holds: answers by kind, and its size on disk in bytes (write-ahead log included)."""

    answers: dict[str, int]
    bytes: int


class JournalMerge(NamedTuple):
    """What was taken over from another journal."""

    answers: int
    """How many it holds."""
    new: int
    """How many of them were not here."""
    differing: int
    """How many of the others are another answer to the same question; the one that was here stands."""


class Journal:
    """An append-only map from content key to JSON value, in one SQLite file.

    May be used from several threads and opened by several processes at once.

    Args:
        path: The file; it and its folder are created when missing.

    Raises:
        RunError: The file cannot be created or opened, is no journal, or was written by a newer rlaif.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot create the journal's folder ({error.strerror})",
                where=str(self.path.parent),
                remedy="name a folder that you may write to",
            ) from error
        with self._told():
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        self._connection.text_factory = _text
        try:
            with self._told():
                self._prepare()
            found = self.path.stat()
            self._file = (found.st_dev, found.st_ino)
        except BaseException:
            self._connection.close()
            raise

    def get_many(self, keys: Sequence[str]) -> dict[str, Any]:
        """The values of those `keys` that are in the journal; one whose content is damaged is as if it were
        not there."""
        found: dict[str, Any] = {}
        with self._lock, self._told():
            for start in range(0, len(keys), SELECT_CHUNK):
                chunk = keys[start : start + SELECT_CHUNK]
                marks = ",".join("?" * len(chunk))
                rows = self._connection.execute(
                    f"SELECT key, value FROM answers WHERE key IN ({marks})", chunk
                )
                found.update(_readable(rows))
        return found

    def put_many(self, kind: str, values: Mapping[str, Any]) -> int:
        """Add `values` in one transaction: all of them are on record when this returns, or none.

        A key that is there already keeps its first value.

        Returns:
            How many were new.

        Raises:
            RunError: The disk is full, the file is read-only, or another process held it for too long.
            TypeError: A value is not JSON.
        """
        now = time.time()
        rows = [(key, kind, json.dumps(value, separators=(",", ":")), now) for key, value in values.items()]
        self._must_be_there()
        with self._lock, self._told(), self._transaction():
            before = self._connection.total_changes
            self._connection.executemany(
                "INSERT INTO answers VALUES (?, ?, ?, ?) ON CONFLICT (key) DO NOTHING", rows
            )
            return self._connection.total_changes - before

    def merge(self, other: Path) -> JournalMerge:
        """Take over the answers of another journal; a key that is there already keeps its value.

        Raises:
            RunError: The other file is not there, or is no journal of ours; or this one cannot be written.
        """
        if not other.is_file():
            raise RunError("there is no journal", where=str(other), remedy="name the file that the run wrote")
        with Journal(other):
            pass  # it is one of ours, and what its write-ahead log holds is in it
        with self._lock, self._told():
            self._connection.execute("ATTACH DATABASE ? AS other", (str(other),))
            try:
                (there,) = self._connection.execute("SELECT COUNT(*) FROM other.answers").fetchone()
                (differing,) = self._connection.execute(
                    "SELECT COUNT(*) FROM other.answers AS theirs JOIN main.answers AS ours USING (key) "
                    "WHERE theirs.value != ours.value"
                ).fetchone()
                with self._transaction():
                    before = self._connection.total_changes
                    self._connection.execute(
                        "INSERT INTO main.answers SELECT * FROM other.answers WHERE true "
                        "ON CONFLICT (key) DO NOTHING"
                    )
                    new = self._connection.total_changes - before
            finally:
                self._connection.execute("DETACH DATABASE other")
        return JournalMerge(answers=there, new=new, differing=differing)

    def stats(self) -> JournalStats:
        """Counts by kind, and bytes on disk."""
        with self._lock, self._told():
            rows = self._connection.execute("SELECT kind, COUNT(*) FROM answers GROUP BY kind ORDER BY kind")
            answers: dict[str, int] = dict(rows)
        files = [self.path, self.path.with_name(self.path.name + "-wal")]
        return JournalStats(
            answers=answers, bytes=sum(file.stat().st_size for file in files if file.exists())
        )

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _must_be_there(self) -> None:
        """Notice a journal that was deleted, moved or replaced: SQLite would go on writing into a file that
        no path leads to."""
        try:
            found = self.path.stat()
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._file:
            raise RunError(
                "the journal was deleted, moved or replaced while this run worked in it",
                where=str(self.path),
                remedy="put it back, or run the same command again: what is not in a journal is asked again",
            )

    def _prepare(self) -> None:
        """Check that the file is ours, or make it so; two processes may do this at once."""
        connection = self._connection
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        self._check_schema()
        self._use_write_ahead_log()
        connection.execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'answers'").fetchone():
                connection.execute(SCHEMA)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _check_schema(self) -> None:
        (tables,) = self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        (owner,) = self._connection.execute("PRAGMA application_id").fetchone()
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if tables and owner != APPLICATION_ID:
            raise RunError(
                "this SQLite file is not an rlaif journal",
                where=str(self.path),
                remedy="name another file, or move this one away",
            )
        if version > SCHEMA_VERSION:
            raise RunError(
                f"the journal has format {version}; this rlaif reads up to {SCHEMA_VERSION}",
                where=str(self.path),
                remedy="use the newer rlaif that wrote it (pip install -U rlaif), or another --out folder",
            )

    def _use_write_ahead_log(self) -> None:
        """Switch to WAL. The switch needs the file for itself; SQLite does not always wait for it (where two
        processes switch at once, waiting could be a deadlock), hence the loop."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # A full disk may already have made SQLite roll back by itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn SQLite's errors into one message with a remedy."""
        try:
            yield
        except UnicodeDecodeError as error:  # a message of SQLite's quotes what the damaged file holds
            what, remedy = "the journal is damaged", DAMAGED
            raise RunError(what, where=str(self.path), remedy=remedy) from error
        except sqlite3.Error as error:
            what, remedy = _explain(error)
            raise RunError(what, where=str(self.path), remedy=remedy) from error


def _text(raw: bytes) -> str:
    """A text of the file; an empty one, which is no JSON, where its bytes are not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _readable(rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Keys and values of the rows that hold JSON."""
    for key, value in rows:
        try:
            yield key, json.loads(value)
        except (ValueError, TypeError, RecursionError):
            continue


def _explain(error: sqlite3.Error) -> tuple[str, str]:
    """What went wrong in a user's words, and what to do about it."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name == "SQLITE_FULL":
        return (
            "no space left for the journal",
            "free some space and run the same command again: what was answered so far is kept",
        )
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
        return f"cannot open the journal for writing ({error})", "name a folder that you may write to (--out)"
    if name == "SQLITE_NOTADB":
        return "this file is not a journal", "name another file, or move this one away"
    if name.startswith("SQLITE_CORRUPT"):
        return f"the journal is damaged ({error})", DAMAGED
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return (
            f"another process kept the journal locked for {BUSY_SECONDS:.0f} s",
            "wait until it has ended, then run again",
        )
    if name.startswith("SQLITE_IOERR"):
        return (
            f"the disk failed under the journal ({name})",
            "check its free space and health, then run again",
        )
    return f"the journal failed ({error})", "if it was closed, open it again; else move it away and run again"
