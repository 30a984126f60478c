"""A file of chats: what is written into it and read from it. Used by one thread at a time."""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.chats.records import Answer, Exchange, Flag, Preference, Thumb, Vote, parse_time, written_time
from rlaif.chats.schema import connect
from rlaif.errors import DataError
from rlaif.types import Message

__all__ = ["ChatsFile", "Expired", "RefusedVote", "UnknownChat"]

EXCHANGE = "id, time, user, model, policy, directives, messages, answers, usage, metadata"


class UnknownChat(Exception):
    """No exchange of this id was kept."""

    def __init__(self, id: str) -> None:
        super().__init__(f"no exchange {id!r} was stored, or it was deleted")
        self.id = id


class RefusedVote(Exception):
    """A vote or a preference that means nothing.

    Attributes:
        param: The field that it is about.
    """

    def __init__(self, what: str, *, param: str) -> None:
        super().__init__(what)
        self.param = param


class Expired(NamedTuple):
    """Rows that were too old, and are gone."""

    exchanges: int
    votes: int
    flags: int
    preferences: int


class ChatsFile:
    """Exchanges, votes, flags and preferences in one SQLite file.

    Every method is a transaction of its own: what it has returned from survives a kill.

    Raises:
        DataError: As `schema.connect` does.
        RunError: Likewise.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self._database = connect(path, create=create)
        salt = self._database.execute("SELECT value FROM settings WHERE name = 'salt'").fetchone()
        if salt is None:
            self._database.close()
            raise DataError("the file has lost its salt", where=str(path), remedy="collect into a new file")
        self._salt = bytes(salt[0])

    def close(self) -> None:
        """End it; the write-ahead log goes into the file."""
        self._database.close()

    def __enter__(self) -> ChatsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hashed(self, user: str) -> str:
        """The name under which a user is kept: HMAC-SHA256 with the file's salt, its first 16 hex digits."""
        return hmac.new(self._salt, user.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:16]

    # What is written

    def add(self, exchange: Exchange) -> None:
        """Keep an exchange.

        Raises:
            sqlite3.Error: The file cannot be written, or has an exchange of this id.
        """
        values = (
            exchange.id,
            written_time(exchange.time),
            exchange.user,
            exchange.model,
            exchange.policy,
            exchange.directives,
            json.dumps([message.as_dict() for message in exchange.messages]),
            json.dumps([answer.as_dict() for answer in exchange.answers]),
            None if exchange.usage is None else json.dumps(exchange.usage),
            json.dumps(exchange.metadata),
        )
        with self._writing():
            self._database.execute(
                f"INSERT INTO exchanges ({EXCHANGE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values
            )

    def vote(self, id: str, choice: int, vote: Thumb | None, time: datetime) -> None:
        """Add a vote; the last of a choice counts.

        Raises:
            UnknownChat: There is no such exchange.
            RefusedVote: It has no such choice.
            sqlite3.Error: The file cannot be written.
        """
        with self._writing():
            self._check_choice(id, choice)
            row = (id, choice, vote, written_time(time))
            self._database.execute(
                "INSERT INTO votes (exchange, choice, vote, time) VALUES (?, ?, ?, ?)", row
            )

    def flag(self, id: str, choice: int, text: str, time: datetime) -> None:
        """Add a report; raises as `vote` does."""
        with self._writing():
            self._check_choice(id, choice)
            row = (id, choice, text, written_time(time))
            self._database.execute(
                "INSERT INTO flags (exchange, choice, text, time) VALUES (?, ?, ?, ?)", row
            )

    def prefer(self, chosen: str, rejected: str, time: datetime, *, tie: bool = False) -> None:
        """Add a preference between the first choices of two exchanges; the last of a pair counts.

        Raises:
            UnknownChat: There is no such exchange.
            RefusedVote: Both are one exchange, or they answer different conversations.
            sqlite3.Error: The file cannot be written.
        """
        if chosen == rejected:
            raise RefusedVote("chosen and rejected are the same exchange", param="rejected")
        with self._writing():
            asked = [self._found(id).messages for id in (chosen, rejected)]
            for id in (chosen, rejected):
                self._check_choice(id, 0)
            if asked[0] != asked[1]:
                raise RefusedVote("chosen and rejected answer different conversations", param="rejected")
            self._database.execute(
                "INSERT INTO preferences (chosen, rejected, tie, time) VALUES (?, ?, ?, ?)",
                (chosen, rejected, int(tie), written_time(time)),
            )

    def remove(self, id: str) -> None:
        """Delete an exchange, and every vote, flag and preference about it.

        Raises:
            UnknownChat: There is no such exchange.
            sqlite3.Error: The file cannot be written.
        """
        with self._writing():
            if not self._database.execute("DELETE FROM exchanges WHERE id = ?", (id,)).rowcount:
                raise UnknownChat(id)
        self._forget_log()

    def expire(self, age: timedelta, time: datetime) -> Expired:
        """Delete exchanges that are older than `age` at `time`, with all that is about them.

        Raises:
            sqlite3.Error: The file cannot be written.
        """
        with self._writing():
            before = self.counts()
            oldest = written_time(time - age)
            self._database.execute("DELETE FROM exchanges WHERE time < ?", (oldest,))
            after = self.counts()
        gone = Expired(*(was - now for was, now in zip(before, after, strict=True)))
        if gone.exchanges:
            self._forget_log()
        return gone

    # What is read

    def counts(self) -> Expired:
        """How many rows there are of each kind."""
        tables = Expired._fields
        return Expired(*(self._one(f"SELECT count(*) FROM {table}")[0] for table in tables))

    def exchanges(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Exchange]:
        """Exchanges in the order of time.

        Args:
            until: The first moment that is out of the range.
        """
        low = "" if since is None else written_time(since)
        high = "~" if until is None else written_time(until)
        rows = self._database.execute(
            f"SELECT {EXCHANGE} FROM exchanges WHERE time >= ? AND time < ? ORDER BY time, id", (low, high)
        )
        for row in rows:
            yield self._exchange(row)

    def votes(self) -> list[Vote]:
        """All votes, in the order in which they came."""
        rows = self._all("SELECT exchange, choice, vote, time FROM votes ORDER BY number")
        return [Vote(id, choice, vote, parse_time(time)) for id, choice, vote, time in rows]

    def flags(self) -> list[Flag]:
        """All flags, in the order in which they came."""
        rows = self._all("SELECT exchange, choice, text, time FROM flags ORDER BY number")
        return [Flag(id, choice, text, parse_time(time)) for id, choice, text, time in rows]

    def preferences(self) -> list[Preference]:
        """All preferences, in the order in which they came."""
        rows = self._all("SELECT chosen, rejected, tie, time FROM preferences ORDER BY number")
        return [Preference(chosen, other, bool(tie), parse_time(time)) for chosen, other, tie, time in rows]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside the block everything is read as of one moment, whatever a server writes meanwhile."""
        self._database.execute("BEGIN")
        try:
            yield
        finally:
            self._database.execute("ROLLBACK")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # a full disk may have rolled back by itself
                self._database.execute("ROLLBACK")
            raise

    def _forget_log(self) -> None:
        """Take what was deleted out of the write-ahead log too; a reader may put that off."""
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _found(self, id: str) -> Exchange:
        row = self._one(f"SELECT {EXCHANGE} FROM exchanges WHERE id = ?", (id,))
        if row is None:
            raise UnknownChat(id)
        return self._exchange(row)

    def _check_choice(self, id: str, choice: int) -> None:
        if (found := self._found(id)).answer(choice) is None:
            known = ", ".join(str(answer.choice) for answer in found.answers)
            raise RefusedVote(f"the response has no choice {choice}; it has {known}", param="choice")

    def _exchange(self, row: Sequence[Any]) -> Exchange:
        id, time, user, model, policy, directives, messages, answers, usage, metadata = row
        try:
            return Exchange(
                id=id,
                time=parse_time(time),
                user=user,
                model=model,
                policy=policy,
                directives=directives,
                messages=tuple(Message(each["role"], each["content"]) for each in json.loads(messages)),
                answers=tuple(map(Answer.of, json.loads(answers))),
                usage=None if usage is None else json.loads(usage),
                metadata=json.loads(metadata),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise sqlite3.DatabaseError(f"the exchange {id!r} is damaged ({error})") from error

    def _one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        return self._database.execute(statement, values).fetchone()

    def _all(self, statement: str) -> list[Any]:
        return self._database.execute(statement).fetchall()
