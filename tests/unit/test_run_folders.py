from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import RunError
from rlaif.runs import folders
from rlaif.runs.folders import remove_leftovers, stage_folder
from rlaif.runs.manifest import MANIFEST, Manifest


def finish(run: Path, text: str, key: str = "") -> None:
    """A finished stage that holds `text`."""
    with stage_folder(run, "label") as folder:
        (folder / "rows.jsonl").write_text(text, encoding="utf-8")
        (folder / "plots").mkdir()
        (folder / "plots" / "one.svg").write_text("<svg/>", encoding="utf-8")
        if key:
            manifest(key).write_json(folder / MANIFEST)


def manifest(key: str) -> Manifest:
    return Manifest(
        stage="label",
        kind="label",
        key=key,
        parts={},
        config={},
        models={},
        started="",
        finished="",
        seconds=0.0,
        counts={},
        outputs={},
    )


def content(folder: Path) -> str:
    return (folder / "rows.jsonl").read_text(encoding="utf-8")


def test_the_folder_appears_whole(tmp_path: Path) -> None:
    with stage_folder(tmp_path, "label") as folder:
        (folder / "rows.jsonl").write_text("x", encoding="utf-8")
        assert not (tmp_path / "label").exists()
    assert content(tmp_path / "label") == "x"
    assert os.listdir(tmp_path) == ["label"]


def test_an_error_leaves_nothing_new(tmp_path: Path) -> None:
    finish(tmp_path, "old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), stage_folder(tmp_path, "label"):
            raise error
    assert content(tmp_path / "label") == "old"
    assert os.listdir(tmp_path) == ["label"]


def test_what_was_finished_is_moved_never_deleted(tmp_path: Path) -> None:
    for text, key in [("1", "aa"), ("2", "aa"), ("3", "aa"), ("4", ""), ("5", "bb"), ("6", "cc")]:
        finish(tmp_path, text, key)
    assert content(tmp_path / "label") == "6"
    old = {path.name: content(path) for path in (tmp_path / "superseded").iterdir()}
    assert old == {
        "label-aa": "1",
        "label-aa-2": "2",
        "label-aa-3": "3",
        "label-unknown": "4",
        "label-bb": "5",
    }


def test_leftovers_of_the_dead_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid(), os.getpid(), 10**30):
        (tmp_path / f".tmp-label-{pid}").mkdir()
    (tmp_path / ".tmp-notes").mkdir()
    (tmp_path / f".tmp-file-{dead.pid}").write_text("", encoding="utf-8")
    removed = {f".tmp-label-{pid}" for pid in (dead.pid, os.getpid(), 10**30)}
    assert set(remove_leftovers(tmp_path)) == removed
    assert set(os.listdir(tmp_path)) == {f".tmp-label-{os.getppid()}", ".tmp-notes", f".tmp-file-{dead.pid}"}


def test_a_process_that_is_not_ours_counts_as_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (tmp_path / ".tmp-label-1").mkdir()
    monkeypatch.setattr(os, "kill", forbid)
    assert remove_leftovers(tmp_path) == []


def test_a_leftover_with_our_own_number_is_emptied(tmp_path: Path) -> None:
    stale = tmp_path / f".tmp-label-{os.getpid()}"
    stale.mkdir()
    (stale / "half").write_text("x", encoding="utf-8")
    with stage_folder(tmp_path, "label") as folder:
        assert os.listdir(folder) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from rlaif.runs.folders import stage_folder

with stage_folder(Path(sys.argv[1]), "label") as folder:
    (folder / "rows.jsonl").write_text("half", encoding="utf-8")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_no_stage(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(folders.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment)
    assert done.returncode == -signal.SIGKILL
    (leftover,) = os.listdir(tmp_path)
    assert leftover.startswith(".tmp-label-")
    assert remove_leftovers(tmp_path) == [leftover]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [("mkdir", "make the stage's folder: no space"), ("rename", "finish the stage's folder: no space")],
)
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(RunError, match=said):
        finish_plainly(tmp_path)
    assert os.listdir(tmp_path) == []


def finish_plainly(run: Path) -> None:
    with stage_folder(run, "label") as folder:
        (folder / "rows.jsonl").write_text("x", encoding="utf-8")
