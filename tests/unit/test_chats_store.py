"""The file of chats: what is kept survives a kill, what is deleted is gone from the disk, and old rows leave by
the clock."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rlaif.chats.keeper import WAITING, ChatKeeper, KeeperBusy
from rlaif.chats.opening import age_of, consent_of
from rlaif.chats.records import Answer, Exchange
from rlaif.chats.schema import VERSION
from rlaif.chats.store import ChatsFile, RefusedVote, UnknownChat
from rlaif.errors import ConfigError, DataError, RunError
from rlaif.types import Message

DAY = datetime(2026, 11, 28, 12, tzinfo=UTC)
PATIENCE = 30.0


def exchange(id: str, *, text: str = "an answer", prompt: str = "a prompt", time: datetime = DAY) -> Exchange:
    return Exchange(
        id=id,
        time=time,
        model="m",
        messages=(Message("user", prompt),),
        answers=(Answer(0, text, "stop"), Answer(1, "other", "length", {"reward": 0.5})),
        user="u",
        policy="abcd",
        directives="dir",
        usage={"total_tokens": 3},
        metadata={"page": "a"},
    )


@pytest.fixture
def file(tmp_path: Path) -> ChatsFile:
    return ChatsFile(tmp_path / "chats.sqlite")


def on_disk(path: Path) -> bytes:
    return b"".join(each.read_bytes() for each in path.parent.glob(f"{path.name}*"))


def test_what_is_kept_comes_back_as_it_was(file: ChatsFile) -> None:
    kept = exchange("one", text="half \ud800 a character\x00", prompt="语言 ✓")
    file.add(kept)
    file.add(replace(exchange("two", time=DAY + timedelta(hours=1)), user=None, usage=None, directives=None))
    first, second = file.exchanges()
    assert first == kept
    assert (second.user, second.usage, second.directives) == (None, None, None)
    assert [each.id for each in file.exchanges(since=DAY + timedelta(minutes=1))] == ["two"]
    assert [each.id for each in file.exchanges(until=DAY + timedelta(minutes=1))] == ["one"]
    assert first.answer(1) == kept.answers[1]
    assert first.answer(2) is None


def test_the_file_is_its_owners_alone_and_users_are_hashed_with_its_salt(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        one, two = ChatsFile(tmp_path / "a.sqlite"), ChatsFile(tmp_path / "b.sqlite")
        one.add(exchange("one"))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert one.hashed("ada") == one.hashed("ada")
    assert one.hashed("ada") != two.hashed("ada")
    assert one.hashed("ada") != one.hashed("bob")
    one.close()
    assert ChatsFile(tmp_path / "a.sqlite").hashed("ada") != two.hashed("ada")


def test_votes_are_all_kept_and_name_what_there_is(file: ChatsFile) -> None:
    file.add(exchange("one"))
    for at, vote in enumerate(("up", "down", None, "up")):
        file.vote("one", 1, vote, DAY + timedelta(minutes=at))  # type: ignore[arg-type]
    assert [each.vote for each in file.votes()] == ["up", "down", None, "up"]
    assert file.votes()[3].time == DAY + timedelta(minutes=3)
    file.flag("one", 0, "wrong", DAY)
    assert [each.text for each in file.flags()] == ["wrong"]
    with pytest.raises(UnknownChat, match="'two'"):
        file.vote("two", 0, "up", DAY)
    with pytest.raises(RefusedVote, match="no choice 2; it has 0, 1"):
        file.vote("one", 2, "up", DAY)
    with pytest.raises(RefusedVote, match="no choice 7"):
        file.flag("one", 7, "wrong", DAY)
    assert file.counts() == (1, 4, 1, 0)


def test_preferences_are_between_answers_to_one_conversation(file: ChatsFile) -> None:
    for id, prompt in (("one", "same"), ("two", "same"), ("three", "another")):
        file.add(exchange(id, prompt=prompt))
    file.prefer("one", "two", DAY)
    file.prefer("two", "one", DAY, tie=True)
    assert [(each.chosen, each.tie) for each in file.preferences()] == [("one", False), ("two", True)]
    with pytest.raises(RefusedVote, match="the same exchange"):
        file.prefer("one", "one", DAY)
    with pytest.raises(RefusedVote, match="different conversations"):
        file.prefer("one", "three", DAY)
    with pytest.raises(UnknownChat, match="'four'"):
        file.prefer("one", "four", DAY)
    assert file.counts().preferences == 2


def test_what_is_removed_is_gone_from_the_disk_with_all_that_is_about_it(file: ChatsFile) -> None:
    file.add(exchange("one", text="SECRETANSWER" * 50))
    file.add(exchange("two"))
    file.vote("one", 0, "up", DAY)
    file.flag("one", 0, "SECRETFLAG", DAY)
    file.prefer("two", "one", DAY)
    assert b"SECRETANSWER" in on_disk(file.path)
    file.remove("one")
    assert file.counts() == (1, 0, 0, 0)
    assert b"SECRET" not in on_disk(file.path)
    with pytest.raises(UnknownChat):
        file.remove("one")


def test_an_id_is_used_once(file: ChatsFile) -> None:
    file.add(exchange("one", text="first"))
    with pytest.raises(sqlite3.IntegrityError):
        file.add(exchange("one", text="second"))
    assert [each.answers[0].text for each in file.exchanges()] == ["first"]
    file.add(exchange("two"))  # the transaction that failed was ended


def test_old_rows_leave_at_the_start_and_by_the_clock(file: ChatsFile) -> None:
    clock, log = [DAY], list[str]()
    for days in (40, 31, 29, 0):
        file.add(exchange(f"{days} days", time=DAY - timedelta(days=days), text=f"OLD{days}OLD"))
    file.vote("40 days", 0, "up", DAY)
    keeper = ChatKeeper(file, retain=timedelta(days=30), clock=lambda: clock[0], every=0.005, log=log.append)

    def left() -> list[str]:
        return keeper.do(lambda file: [each.id for each in file.exchanges()]).result(PATIENCE)

    assert left() == ["29 days", "0 days"]
    assert log == ["chats: deleted 2 exchanges older than 30 days, with 1 vote, 0 flags and 0 preferences"]
    clock[0] = DAY + timedelta(days=2)
    end = time.monotonic() + PATIENCE
    while left() != ["0 days"]:
        assert time.monotonic() < end, "it was not deleted"
    assert b"OLD40OLD" not in on_disk(file.path)
    assert b"OLD29OLD" not in on_disk(file.path)
    keeper.close()


def test_a_locked_file_is_told_and_tried_again(file: ChatsFile, tmp_path: Path) -> None:
    log: list[str] = []
    file.add(exchange("one", time=DAY - timedelta(days=9)))
    file._database.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(file.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    keeper = ChatKeeper(file, retain=timedelta(days=1), clock=lambda: DAY, every=0.005, log=log.append)
    assert "could not be deleted (database is locked)" in log[0]
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        keeper.do(lambda file: file.add(exchange("two"))).result(PATIENCE)
    other.execute("ROLLBACK")
    other.close()
    end = time.monotonic() + PATIENCE
    while keeper.do(lambda file: file.counts()).result(PATIENCE).exchanges:
        assert time.monotonic() < end, "it was not tried again"
    keeper.close()


def test_work_is_done_in_order_on_one_thread_and_refused_when_too_much_waits(file: ChatsFile) -> None:
    keeper, gate, done = ChatKeeper(file), threading.Event(), list[object]()
    keeper.do(lambda _: gate.wait(PATIENCE))
    for at in range(WAITING - 1):
        keeper.do(lambda _, at=at: done.append((at, threading.current_thread().name)))  # type: ignore[misc]
    with pytest.raises(KeeperBusy, match="wait for the disk"):
        keeper.do(lambda _: None)
    gate.set()
    keeper.close()
    keeper.close()
    assert [at for at, _ in done] == list(range(WAITING - 1))  # type: ignore[misc]
    assert len({name for _, name in done}) == 1  # type: ignore[misc]
    with pytest.raises(KeeperBusy, match="closed"):
        keeper.do(lambda _: None)


def test_many_threads_and_a_reader_beside_them(file: ChatsFile) -> None:
    """Nothing is lost, and another process's reader sees a moment as it was."""
    keeper = ChatKeeper(file)

    def work(at: int) -> None:
        keeper.do(lambda file: file.add(exchange(f"{at}"))).result(PATIENCE)
        keeper.do(lambda file: file.vote(f"{at}", 0, "up", DAY)).result(PATIENCE)

    reader = ChatsFile(file.path, create=False)
    with ThreadPoolExecutor(8) as pool:
        promised = [pool.submit(work, at) for at in range(60)]
        while not all(each.done() for each in promised):
            with reader.reading():
                first = reader.counts()
                assert first.votes <= first.exchanges
                assert reader.counts() == first
        for each in promised:
            each.result()
    keeper.close()
    assert reader.counts() == (60, 60, 0, 0)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.vote("1", 0, "up", DAY)


WRITER = """
import itertools, sys
from datetime import UTC, datetime
from pathlib import Path
from rlaif.chats.records import Answer, Exchange
from rlaif.chats.store import ChatsFile
from rlaif.types import Message
file = ChatsFile(Path(sys.argv[1]))
for at in itertools.count():
    answers = (Answer(0, "x" * 3000, "stop"),)
    file.add(Exchange(f"{at}", datetime.now(UTC), "m", (Message("user", "p"),), answers))
    print(at, flush=True)
"""


def test_a_kill_in_the_middle_keeps_what_was_told(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().split(b"\n")[:-1]]
    assert process.returncode == -signal.SIGKILL
    file = ChatsFile(path)
    found = {each.id: each.answers[0].text for each in file.exchanges()}
    assert {str(at) for at in told} <= found.keys()
    assert len(found) <= len(told) + 1
    assert set(found.values()) == {"x" * 3000}
    assert file._one("PRAGMA integrity_check") == ("ok",)
    file.add(exchange("after"))


def test_files_that_hold_no_chats_are_refused(tmp_path: Path) -> None:
    text, other, newer = (tmp_path / name for name in ("notes.txt", "other.sqlite", "newer.sqlite"))
    text.write_text("these are my notes, and no database" * 100)
    with pytest.raises(DataError, match="not a file of chats"):
        ChatsFile(text)
    assert text.read_text().startswith("these are my notes")
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    with pytest.raises(DataError, match="another program"):
        ChatsFile(other)
    ChatsFile(newer).close()
    with sqlite3.connect(newer) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    with pytest.raises(DataError, match=f"form {VERSION + 1}; this rlaif knows forms up to {VERSION}"):
        ChatsFile(newer)
    with pytest.raises(DataError, match="no such file of chats"):
        ChatsFile(tmp_path / "none.sqlite", create=False)
    assert not (tmp_path / "none.sqlite").exists()
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(DataError, match="holds no chats"):
        ChatsFile(tmp_path / "empty.sqlite", create=False)
    ChatsFile(tmp_path / "empty.sqlite").close()
    with pytest.raises(RunError, match="cannot open the file of chats"):
        ChatsFile(tmp_path / "no folder" / "chats.sqlite")


def test_a_file_without_its_salt_and_a_damaged_row_are_told(file: ChatsFile) -> None:
    file.add(exchange("one"))
    file._database.execute("UPDATE exchanges SET messages = '{'")
    with pytest.raises(sqlite3.DatabaseError, match="the exchange 'one' is damaged"):
        list(file.exchanges())
    file._database.execute("DELETE FROM settings")
    file.close()
    with pytest.raises(DataError, match="lost its salt"):
        ChatsFile(file.path)


def test_ages_and_consent(tmp_path: Path) -> None:
    assert age_of("30d") == timedelta(days=30)
    assert age_of("12h") == timedelta(hours=12)
    assert age_of("2w") == timedelta(days=14)
    assert age_of(None) is None
    for wrong in ("30", "0d", "-1d", "1.5d", "", "30days"):
        with pytest.raises(ConfigError, match="is no age"):
            age_of(wrong)
    assert "for 30 days" in consent_of(None, timedelta(days=30))
    assert "for" not in consent_of(None, None).split("votes")[1].split(".")[0]
    (tmp_path / "consent.txt").write_text("  We keep it. \n")
    assert consent_of(tmp_path / "consent.txt", None) == "We keep it."
    (tmp_path / "consent.txt").write_text("\n")
    with pytest.raises(ConfigError, match="0 characters"):
        consent_of(tmp_path / "consent.txt", None)
    with pytest.raises(ConfigError, match="cannot be read"):
        consent_of(tmp_path / "none.txt", None)


def test_servers_that_begin_one_file_of_chats_at_once(tmp_path: Path) -> None:
    def begin(path: Path, all_there: threading.Barrier) -> None:
        all_there.wait(PATIENCE)
        ChatsFile(path).close()

    with ThreadPoolExecutor(4) as pool:
        for number in range(40):
            path, barrier = tmp_path / f"{number}.sqlite", threading.Barrier(4)
            for begun in [pool.submit(begin, path, barrier) for _ in range(4)]:
                begun.result(PATIENCE)
