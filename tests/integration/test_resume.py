"""A run that is killed, interrupted or starved continues to the same files as one that was left alone, and
asks nothing twice."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from spine import BATCH, asked_of, call, environment, processes, rows, wait_for
from tiny import save_tiny

RECIPE = """
name: killed
constitution: warmth
stages:
  - {{stage: sample, prompts: "builtin:everyday", split: label, limit: 10, k: 3, max_new_tokens: 8}}
  - {{stage: revise, prompts: "builtin:everyday", split: sft, limit: 4, rounds: 2, max_new_tokens: 8}}
  - {{stage: label, principles: all, protocol: {protocol}}}
"""


def recipe(folder: Path, *, protocol: str = "pairwise") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(protocol=protocol), encoding="utf-8")
    return path


def results(run: Path) -> dict[str, bytes]:
    """Every file of the finished stages that does not tell the time."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.glob("*/*"))
        if path.name != "manifest.json" and path.parent.name != "superseded"
    }


def answers(journal: Path) -> int:
    """Answers in a journal that another process is writing; 0 while it does not exist."""
    try:
        with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as connection:
            (count,) = connection.execute("SELECT COUNT(*) FROM answers").fetchone()
    except sqlite3.OperationalError:
        return 0
    return int(count)


@pytest.mark.parametrize("protocol", ["pairwise", "pointwise"])
def test_killed_at_random_moments_it_ends_as_if_left_alone(tmp_path: Path, protocol: str) -> None:
    path = recipe(tmp_path, protocol=protocol)
    said = call("run", path, "--set", "model=scripted:spine:swift", "--out", tmp_path / "calm" / "run")
    assert said.status == 0, said.err
    run, log, asked = tmp_path / "harsh" / "run", tmp_path / "said", tmp_path / "asked"
    arguments = ("run", path, "--set", "model=scripted:spine:slow", "--out", run)
    rng, kills = random.Random(protocol), 0
    for _ in range(6):
        process = processes().start(*arguments, said=log, asked=asked)
        goal = len(asked_of(asked)) + rng.randint(1, 60)
        wait_for(lambda goal=goal: len(asked_of(asked)) >= goal, alive=process)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 4
    process = processes().start(*arguments, said=log, asked=asked)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert results(run) == results(tmp_path / "calm" / "run")
    again = len(asked_of(asked)) - len(set(asked_of(asked)))
    assert again <= kills * BATCH, "more than the batch in flight was asked again"
    assert not list(run.glob(".tmp-*"))


def test_a_killed_run_of_a_torch_model_ends_as_if_left_alone(tmp_path: Path) -> None:
    path, model = recipe(tmp_path), save_tiny(tmp_path / "model", context=4096)
    options = [
        f"--set={each}"
        for each in (f"model={model}", "dtype=float32", "stages.sample.limit=3", "stages.revise.limit=2")
    ]
    log = tmp_path / "said"
    calm = processes().start("run", path, *options, "--out", tmp_path / "calm" / "run", said=log)
    calm.join()
    assert calm.exitcode == 0, log.read_text()
    total, rng = answers(tmp_path / "calm" / "rlaif-journal.sqlite"), random.Random(1)
    journal = tmp_path / "harsh" / "rlaif-journal.sqlite"
    kills = 0
    for share in (0.1, 0.35, 0.6):
        process = processes().start("run", path, *options, "--out", tmp_path / "harsh" / "run", said=log)
        goal = round(total * (share + 0.2 * rng.random()))
        wait_for(lambda goal=goal: answers(journal) >= goal, alive=process)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills == 3
    before = answers(journal)
    assert 0 < before < total
    process = processes().start("run", path, *options, "--out", tmp_path / "harsh" / "run", said=log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert answers(journal) == total
    assert f"asked {total - before} questions" in log.read_text()
    assert results(tmp_path / "harsh" / "run") == results(tmp_path / "calm" / "run")


def test_ctrl_c_says_so_and_the_run_is_listed_as_interrupted(tmp_path: Path) -> None:
    run, asked = tmp_path / "runs" / "run", tmp_path / "asked"
    command = [
        sys.executable,
        "-m",
        "rlaif",
        "run",
        str(recipe(tmp_path)),
        "--set",
        "model=scripted:spine:slow",
        "--out",
        str(run),
    ]
    with subprocess.Popen(
        command, env=environment() | {"RLAIF_TEST_ASKED": str(asked)}, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: len(asked_of(asked)) > 20 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; run the same command again to continue where it stopped" in said
    assert "Traceback" not in said
    listed = call("runs", "list", tmp_path / "runs")
    assert listed.status == 0
    assert "interrupted" in listed.out
    before = len(asked_of(asked))
    assert (
        call("run", tmp_path / "recipe.yaml", "--set", "model=scripted:spine:swift", "--out", run).status == 0
    )
    assert "finished" in call("runs", "list", tmp_path / "runs").out
    assert len(set(asked_of(asked))) == before


def test_no_space_is_one_message_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    path, run, log, asked = (
        recipe(tmp_path),
        tmp_path / "harsh" / "run",
        tmp_path / "said",
        tmp_path / "asked",
    )
    arguments = ("run", path, "--set", "model=scripted:spine:swift", "--out", run)
    process = processes().start(*arguments, said=log, asked=asked, largest_file=50_000)
    process.join()
    said = log.read_text()
    assert process.exitcode == 1, said
    assert said.count("error:") == 1
    assert "Traceback" not in said
    assert "→" in said
    process = processes().start(*arguments, said=log, asked=asked)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert len(asked_of(asked)) - len(set(asked_of(asked))) <= BATCH
    assert rows(run / "label" / "preferences.jsonl")
