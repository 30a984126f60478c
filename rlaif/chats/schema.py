"""The tables of a file of chats, and how such a file is opened: SQLite with a write-ahead log, for its owner
alone, with deleted rows overwritten."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from pathlib import Path

from rlaif.errors import DataError
from rlaif.files import check_regular
from rlaif.runs.disk import run_errors

__all__ = ["VERSION", "connect"]

APPLICATION = 0x726C6331
"""SQLite's `application_id` of our files: `rlc1`."""
VERSION = 1
BUSY_SECONDS = 2.0
"""How long a statement waits for another process's lock."""
PAUSE = 0.01
"""Seconds between two tries where SQLite itself does not wait."""
CREATE = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE exchanges (
    id TEXT PRIMARY KEY, time TEXT NOT NULL, user TEXT, model TEXT NOT NULL, policy TEXT NOT NULL,
    directives TEXT, messages TEXT NOT NULL, answers TEXT NOT NULL, usage TEXT, metadata TEXT NOT NULL
);
CREATE INDEX exchanges_by_time ON exchanges (time);
CREATE TABLE votes (
    number INTEGER PRIMARY KEY, exchange TEXT NOT NULL REFERENCES exchanges ON DELETE CASCADE,
    choice INTEGER NOT NULL, vote TEXT CHECK (vote IN ('up', 'down')), time TEXT NOT NULL
);
CREATE INDEX votes_by_exchange ON votes (exchange);
CREATE TABLE flags (
    number INTEGER PRIMARY KEY, exchange TEXT NOT NULL REFERENCES exchanges ON DELETE CASCADE,
    choice INTEGER NOT NULL, text TEXT NOT NULL, time TEXT NOT NULL
);
CREATE INDEX flags_by_exchange ON flags (exchange);
CREATE TABLE preferences (
    number INTEGER PRIMARY KEY, chosen TEXT NOT NULL REFERENCES exchanges ON DELETE CASCADE,
    rejected TEXT NOT NULL REFERENCES exchanges ON DELETE CASCADE, tie INTEGER NOT NULL, time TEXT NOT NULL
);
CREATE INDEX preferences_by_chosen ON preferences (chosen);
CREATE INDEX preferences_by_rejected ON preferences (rejected);
"""


def connect(path: Path, *, create: bool) -> sqlite3.Connection:
    """Open a file of chats.

    Args:
        create: Whether a new file is made where there is none; otherwise the file is not written to.

    Raises:
        DataError: It is another file, damaged, of a newer version, or not there.
        RunError: The folder or the file cannot be written to.
    """
    check_regular(path)
    if create:
        with run_errors("open the file of chats", path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            path.chmod(0o600)
    elif not path.exists():
        raise DataError("there is no such file of chats", where=str(path), remedy="name what --collect wrote")
    try:
        return _opened(path, create=create)
    except sqlite3.Error as error:
        raise DataError(
            f"this is not a file of chats that can be read ({error})",
            where=str(path),
            remedy="name a file that `rlaif serve --collect` wrote, or a new one; end what locks it",
        ) from error


def _opened(path: Path, *, create: bool) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _check_version(database, path, empty_may_be=create)
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("PRAGMA secure_delete = ON")
        if create:
            _write_ahead(database)
            database.execute("PRAGMA synchronous = FULL")
            _create(database)
        else:
            database.execute("PRAGMA query_only = ON")
    except BaseException:
        database.close()
        raise
    return database


def _write_ahead(database: sqlite3.Connection) -> None:
    """Keep a write-ahead log. Two that begin one at a time do not wait for each other by themselves."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(PAUSE)


def _check_version(database: sqlite3.Connection, path: Path, *, empty_may_be: bool) -> None:
    """Refuse files of other programs, and those that a newer rlaif wrote."""
    database.execute("BEGIN")  # all as of one moment: another server may be making the tables
    try:
        application = database.execute("PRAGMA application_id").fetchone()[0]
        version = database.execute("PRAGMA user_version").fetchone()[0]
        tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    finally:
        database.execute("ROLLBACK")
    if not tables and not application and empty_may_be:
        return
    if application != APPLICATION:
        raise DataError(
            "this is a database of another program, or holds no chats",
            where=str(path),
            remedy="name a file that `rlaif serve --collect` wrote, or a new one",
        )
    if version > VERSION:
        raise DataError(
            f"the file has the form {version}; this rlaif knows forms up to {VERSION}",
            where=str(path),
            remedy="use the rlaif that wrote it, or a newer one",
        )


def _create(database: sqlite3.Connection) -> None:
    """Make the tables, in one transaction, unless another process was first."""
    database.execute("BEGIN IMMEDIATE")
    try:
        if not database.execute("PRAGMA user_version").fetchone()[0]:
            for statement in CREATE.split(";"):
                database.execute(statement)
            database.execute("INSERT INTO settings VALUES ('salt', ?)", (secrets.token_bytes(32),))
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise
