from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlaif.cli.main import cli, main
from rlaif.errors import ConfigError, ModelError, RunError
from rlaif.runs import disk
from rlaif.runs import run as module
from rlaif.runs.run import RunFolder, list_runs, read_run, remove_abandoned


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "quick"
    with RunFolder.open(path, command=["rlaif", "run", "a b.yaml"]) as run:
        assert read_run(path).status == "running"
        assert run.manifest("label") is None
        run.write_recipe("stages: []\n")
        with run.stage("label") as folder:
            (folder / "rows.jsonl").write_text("", encoding="utf-8")
        run.record("label")
        run.record("label")
    info = read_run(path)
    assert (info.name, info.status, info.stages, info.command) == (
        "quick",
        "finished",
        ("label",),
        ("rlaif", "run", "a b.yaml"),
    )
    assert info.started <= info.finished
    assert info.manifests() == []
    assert (path / "recipe.yaml").read_text(encoding="utf-8") == "stages: []\n"


@pytest.mark.parametrize(("error", "status"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_the_way_it_ends_is_noted(tmp_path: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), RunFolder.open(tmp_path):
        raise error
    assert read_run(tmp_path).status == status


def test_an_error_while_an_interruption_is_under_way_is_the_interruption(tmp_path: Path) -> None:
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise ValueError("half done")

    with pytest.raises(ValueError, match="half done"), RunFolder.open(tmp_path):
        interrupted()
    assert read_run(tmp_path).status == "interrupted"


def test_an_error_out_of_a_signal_ends_the_command_as_the_signal_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(**_options: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            raise ModelError("an adapter is active")

    monkeypatch.setattr(cli, "main", ended)
    with pytest.raises(SystemExit) as caught:
        main(["label"])
    assert caught.value.code == 128 + signal.SIGTERM


def test_a_second_command_continues(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path) as run:
        run.record("sample")
    (tmp_path / f".tmp-label-{os.getpid()}").mkdir()
    with RunFolder.open(tmp_path, name="named") as run:
        assert run.cleared == [f".tmp-label-{os.getpid()}"]
        assert run.info.stages == ("sample",)
        assert run.info.command == tuple(sys.argv)
        run.record("label")
    assert read_run(tmp_path).stages == ("sample", "label")
    assert read_run(tmp_path).name == "named"


HOLDS = """
import sys, time
from pathlib import Path
from rlaif.runs.run import RunFolder

with RunFolder.open(Path(sys.argv[1])):
    print("open", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2])}
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert read_run(tmp_path).status == "running"
        with pytest.raises(RunError, match=f"process {process.pid} is at work"):
            RunFolder.open(tmp_path)
        process.send_signal(signal.SIGKILL)
    assert read_run(tmp_path).status == "interrupted"
    with RunFolder.open(tmp_path):
        assert read_run(tmp_path).status == "running"


def test_places_where_no_run_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(RunError, match=r"cannot create the run folder: expected a folder, found a file"):
            RunFolder.open(path)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=r"not allowed \(Permission denied\)"):
        RunFolder.open(tmp_path / "new")


def test_no_space_at_the_start_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = RunFolder.open(tmp_path / "run")
    monkeypatch.setattr(disk.os, "fsync", refuse)
    with pytest.raises(RunError, match="no space left"):
        RunFolder.open(tmp_path / "other")
    with pytest.raises(ZeroDivisionError), run:
        _ = 1 / 0
    monkeypatch.undo()
    assert read_run(tmp_path / "run").status == "interrupted"
    run = RunFolder.open(tmp_path / "run")
    monkeypatch.setattr(disk.os, "fsync", refuse)
    with pytest.raises(RunError, match="no space left"), run:
        pass


def test_runs_are_listed_the_latest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, started in [
        ("b", "2025-02-01T00:00:00+00:00"),
        ("a", "2025-01-01T00:00:00+00:00"),
        ("c", "2025-03-01T00:00:00+00:00"),
    ]:
        monkeypatch.setattr(module, "now", lambda started=started: started)
        with RunFolder.open(tmp_path / name):
            pass
    (tmp_path / "not a run").mkdir()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "run.json").write_text("{", encoding="utf-8")
    assert [(info.name, info.status) for info in list_runs(tmp_path)] == [
        ("c", "finished"),
        ("b", "finished"),
        ("a", "finished"),
        ("d", "damaged"),
    ]
    assert [info.path for info in list_runs(tmp_path / "a")] == [tmp_path / "a"]
    with pytest.raises(RunError, match="cannot list the runs"):
        list_runs(tmp_path / "absent")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": "x", "command": 3, "stages": []}'])
def test_a_damaged_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        read_run(tmp_path)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        RunFolder.open(tmp_path)


def test_no_run_and_no_lock(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="this is not a run folder"):
        read_run(tmp_path)
    with RunFolder.open(tmp_path):
        pass
    values = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    (tmp_path / "run.json").write_text(
        json.dumps(values | {"status": "running", "later": 1}), encoding="utf-8"
    )
    (tmp_path / ".lock").unlink()
    assert read_run(tmp_path).status == "interrupted"


def test_a_folder_of_somebody_elses_is_not_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / "mine.txt").write_text("mine")
    with RunFolder.open(tmp_path) as run:
        with pytest.raises(RunError, match=r"label/ that is not a stage of this run(.|\n)*--out"):
            run.check_own(["sample", "label"])
        run.check_own(["sample"])
        run.record("label")
        run.check_own(["label"])
    assert (tmp_path / "label" / "mine.txt").read_text() == "mine"


def test_a_mistake_before_anything_began_leaves_no_folder(tmp_path: Path) -> None:
    def mistyped() -> None:
        with RunFolder.open(tmp_path / "new") as run:
            run.write_recipe("stages: []\n")
            raise ConfigError("no such constitution")

    with pytest.raises(ConfigError):
        mistyped()
    assert not (tmp_path / "new").exists()

    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError), RunFolder.open(tmp_path / "there"):
        raise ConfigError("no such constitution")
    assert read_run(tmp_path / "there").status == "failed", "a folder that was there stays"

    with pytest.raises(ConfigError), RunFolder.open(tmp_path / "begun") as run, run.stage("sample"):
        raise ConfigError("the server refuses the key")
    assert read_run(tmp_path / "begun").status == "failed", "a stage had begun"


# Temporary run folders of ranks


KILLED = """
import os, signal, sys
from pathlib import Path
from rlaif.runs.run import RunFolder

RunFolder.open(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_folders_of_killed_processes_go_and_no_others(tmp_path: Path) -> None:
    killed, alive, begun, other = (tmp_path / name for name in ("rank-1", "rank-2", "rank-3", "mine"))
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2])}
    for path in (killed, other):
        assert (
            subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, env=environment).returncode
            == -signal.SIGKILL
        )
        (path / "sample").mkdir()
    begun.mkdir()
    (begun / ".lock").touch()
    (tmp_path / "rank-4").symlink_to(other)
    with RunFolder.open(alive):
        assert remove_abandoned(tmp_path, "rank-*") == [killed]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "rank-2", "rank-3", "rank-4"]
    assert (other / "run.json").is_file()
    assert remove_abandoned(tmp_path / "nosuch", "rank-*") == []


def test_folders_of_other_users_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.open(tmp_path / "rank-1"):
        pass
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert remove_abandoned(tmp_path, "rank-*") == []
    assert (tmp_path / "rank-1").is_dir()
