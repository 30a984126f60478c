from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import RunError
from rlaif.runs import journal as module
from rlaif.runs.journal import Journal


def test_values_come_back_exactly(tmp_path: Path) -> None:
    values = {"a": {"logprobs": [-0.1, -2.3e-17], "text": "ünï \ud800 \x00 你好"}, "b": [1, None, True]}
    with Journal(tmp_path / "new" / "j.sqlite") as journal:
        assert journal.put_many("generation", values) == 2
    with Journal(tmp_path / "new" / "j.sqlite") as journal:
        assert journal.get_many(["a", "b", "absent"]) == values


def test_first_answer_stands(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        assert journal.put_many("reading", {"k": 1}) == 1
        assert journal.put_many("reading", {"k": 2, "l": 3}) == 1
        assert journal.get_many(["k", "l"]) == {"k": 1, "l": 3}


def test_lookups_go_in_chunks(tmp_path: Path) -> None:
    keys = [f"{number:016x}" for number in range(2 * module.SELECT_CHUNK + 7)]
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.put_many("reading", {key: number for number, key in enumerate(keys)})
        assert journal.get_many(keys) == {key: number for number, key in enumerate(keys)}
        assert journal.get_many([]) == {}


def test_a_batch_is_all_or_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        with pytest.raises(RunError, match="CHECK constraint"):
            journal.put_many("opinion", {"k": 1})
        with pytest.raises(TypeError):
            journal.put_many("reading", {"k": 1, "l": object()})
        assert journal.get_many(["k", "l"]) == {}
        assert journal.put_many("reading", {"k": 1}) == 1


def test_stats_count_by_kind(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.put_many("reading", {"k": 1, "l": 2})
        journal.put_many("generation", {"m": 3})
        stats = journal.stats()
    assert stats.answers == {"generation": 1, "reading": 2}
    assert stats.bytes > 0


def _write_many(path: Path, writer: int) -> None:
    with Journal(path) as journal:
        for batch in range(20):
            journal.put_many("reading", {f"{batch}-{item}": writer for item in range(10)})


def test_processes_share_a_journal(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_write_many, args=(tmp_path / "j.sqlite", number)) for number in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with Journal(tmp_path / "j.sqlite") as journal:
        assert journal.stats().answers == {"reading": 200}


def test_threads_share_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:

        def write(writer: int) -> None:
            for item in range(30):
                journal.put_many("reading", {f"{writer}-{item}": item})
                journal.stats()

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert journal.stats().answers == {"reading": 120}


KILLED = """
import sys
from pathlib import Path
from rlaif.runs.journal import Journal

journal = Journal(Path(sys.argv[1]))
batch = 0
while True:
    journal.put_many("generation", {f"{batch}-{item}": {"text": "x" * 2000, "batch": batch} for item in range(8)})
    print(batch, flush=True)
    batch += 1
"""


@pytest.mark.parametrize("after", [1, 7, 23])
def test_sigkill_loses_no_committed_batch(tmp_path: Path, after: int) -> None:
    path = tmp_path / "j.sqlite"
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= after:
                process.send_signal(signal.SIGKILL)
                break
        committed = max([after, *(int(line) for line in process.stdout)])
    assert process.returncode == -signal.SIGKILL
    with Journal(path) as journal:
        keys = [f"{batch}-{item}" for batch in range(committed + 1) for item in range(8)]
        assert set(journal.get_many(keys)) == set(keys)
        (check,) = journal._connection.execute("PRAGMA integrity_check").fetchone()
        assert check == "ok"
        assert journal.stats().answers["generation"] % 8 == 0  # no half batch
        assert journal.put_many("generation", {"after": 1}) == 1


def test_full_disk_is_one_message_and_keeps_what_was_there(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.put_many("reading", {"k": 1})
        journal._connection.execute("PRAGMA max_page_count = 8")
        with pytest.raises(RunError, match=r"no space left[\s\S]*is kept"):
            journal.put_many("generation", {str(item): "x" * 10_000 for item in range(20)})
        assert journal.get_many(["k", "0"]) == {"k": 1}
        journal._connection.execute("PRAGMA max_page_count = 100000")
        assert journal.put_many("generation", {"0": "x" * 10_000}) == 1


def test_not_a_database(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    path.write_text("these are somebody's notes, " * 100, encoding="utf-8")
    with pytest.raises(RunError, match="not a journal"):
        Journal(path)


def test_somebody_elses_database(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE photos (name TEXT)")
    connection.close()
    with pytest.raises(RunError, match="not an rlaif journal"):
        Journal(path)


def test_newer_format(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path) as journal:
        journal._connection.execute("PRAGMA user_version = 99")
    with pytest.raises(RunError, match="format 99"):
        Journal(path)


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path) as journal:
        journal.put_many("generation", {str(item): "x" * 5000 for item in range(50)})
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    with Journal(path) as journal, pytest.raises(RunError, match="damaged"):
        journal.get_many([str(item) for item in range(50)])


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="cannot create the journal's folder"):
        Journal(tmp_path / "file" / "inner" / "j.sqlite")


def test_folder_in_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot open the journal"):
        Journal(tmp_path)


def test_read_only_file(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path) as journal:
        journal._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(RunError, match="cannot open the journal for writing"):
            journal.put_many("reading", {"k": 1})


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match="Permission denied"):
        Journal(tmp_path / "j.sqlite")


def test_locked_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    with Journal(tmp_path / "j.sqlite") as first, Journal(tmp_path / "j.sqlite") as second:
        first._connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunError, match="another process"):
            second.put_many("reading", {"k": 1})
        first._connection.execute("ROLLBACK")


@pytest.mark.parametrize("lock", ["BEGIN EXCLUSIVE", "BEGIN; SELECT * FROM sqlite_master"])
def test_opening_gives_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str) -> None:
    path = tmp_path / "j.sqlite"
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    holder = _held(path, lock)
    with pytest.raises(RunError, match="another process"):
        Journal(path)
    holder.close()


def test_opening_waits_for_a_reader_that_blocks_the_wal_switch(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    holder = _held(path, "BEGIN; SELECT * FROM sqlite_master")
    release = threading.Timer(0.2, holder.close)
    release.start()
    with Journal(path) as journal:
        assert journal.put_many("reading", {"k": 1}) == 1
    release.join()


def _held(path: Path, lock: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("CREATE TABLE passing (x)")
    connection.execute("DROP TABLE passing")
    for statement in lock.split("; "):
        connection.execute(statement)
    return connection


def test_closed_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    journal.close()
    journal.close()
    with pytest.raises(RunError, match="closed"):
        journal.get_many(["k"])


@pytest.mark.parametrize(
    ("name", "said"), [("SQLITE_IOERR_FSYNC", "disk failed"), ("SQLITE_MISUSE", "journal failed")]
)
def test_rarer_errors_are_explained(name: str, said: str) -> None:
    error = sqlite3.OperationalError("boom")
    error.sqlite_errorname = name
    assert said in module._explain(error)[0]


def test_a_row_that_is_no_json_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.put_many("reading", {"a": 1, "b": 2})
        journal._connection.execute("UPDATE answers SET value = '{broken' WHERE key = 'a'")
        assert journal.get_many(["a", "b"]) == {"b": 2}


@pytest.mark.parametrize("replaced", [False, True])
def test_a_journal_that_goes_away_under_a_run_is_noticed(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path) as journal:
        journal.put_many("reading", {"a": 1})
        path.rename(tmp_path / "elsewhere")
        if replaced:
            path.write_bytes(b"")
        with pytest.raises(RunError, match="deleted, moved or replaced"):
            journal.put_many("reading", {"b": 2})


def test_a_value_whose_bytes_are_no_text_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path) as journal:
        journal.put_many("reading", {"k": "a text", "l": 2})
        journal._connection.execute("UPDATE answers SET value = CAST(x'22962222' AS TEXT) WHERE key = 'k'")
        assert journal.get_many(["k", "l"]) == {"l": 2}


def test_a_schema_that_is_no_text_is_a_damaged_journal(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path) as journal:
        journal.put_many("reading", {"k": 1})
        journal._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw = path.read_bytes()
    at = raw.index(b"CREATE TABLE answers")
    path.write_bytes(raw[: at + 13] + b"\x96\x81\xff" + raw[at + 16 :])
    with pytest.raises(RunError, match="journal"), Journal(path) as journal:
        journal.get_many(["k"])
