"""What a shell may do to a command: no room for its output, a folder that is gone, no standard streams; one
message each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from spine import call, environment

RLAIF = [sys.executable, "-m", "rlaif"]
SAMPLE = ["sample", "--model", "scripted", "--limit", "2", "--k", "1"]


def shell(line: str, where: Path) -> subprocess.CompletedProcess[str]:
    program = " ".join(RLAIF)
    return subprocess.run(
        ["sh", "-c", line.replace("rlaif", program, 1)],
        cwd=where,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_full_disk_behind_standard_output_is_one_message(tmp_path: Path) -> None:
    said = shell("rlaif runs list . > /dev/full", tmp_path)
    assert said.returncode == 1
    assert said.stderr.startswith("error: ")
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize(
    "line", ["rlaif --help | head -n 1", "rlaif --help <&-", "rlaif --help >&-", "rlaif --help 2>&-"]
)
def test_streams_that_are_closed_are_no_errors(tmp_path: Path, line: str) -> None:
    said = shell(line, tmp_path)
    assert said.returncode == 0, said.stderr
    assert "Traceback" not in said.stderr


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    said = shell(f"rmdir ../gone; rlaif {' '.join(SAMPLE)} --out {tmp_path / 'run'}", tmp_path / "gone")
    assert said.returncode == 1
    assert "the working directory was removed" in said.stderr


def test_a_temporary_folder_that_is_not_there(tmp_path: Path) -> None:
    said = shell(f"TMPDIR=/nowhere rlaif {' '.join(SAMPLE)} --out run", tmp_path)
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize(
    "arguments", [("--policy", "nowhere"), ("--policy", ".", "--gold", "nosuch:measure")]
)
def test_evaluate_looks_for_what_it_names_before_it_loads_a_model(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    said = call(
        "evaluate", *arguments, "--model", "/no/such/model", "--no-win-rate", "--out", tmp_path / "run"
    )
    assert said.status == 1
    assert "loading" not in said.err
    assert "/no/such/model" not in said.err
