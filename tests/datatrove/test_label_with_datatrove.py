"""`scripts/label_with_datatrove.py`: the labels of many tasks are those of one process, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_programs import install
from misbehaving import MisbehavingServer, answer, hang_up
from spine import ROOT, Said, call, environment

PAIRS = 21
TASKS = 2
MODELS = [{"id": "toy"}]
FILES = ("preferences.jsonl", "verdicts.jsonl", "unlabelled.jsonl", "statistics.json", "samples.md")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Labels 21 prompts with three completions each, and tries nothing twice."""
    completions = tmp_path / "completions.jsonl"
    table = [
        {"prompt": f"Say {number}.", "completions": [f"Gladly: {number}.", "No.", f"{number}, not more."]}
        for number in range(PAIRS // 3)
    ]
    completions.write_text("".join(json.dumps(row) + "\n" for row in table))
    file = tmp_path / "label.yaml"
    file.write_text(
        "{name: label, model: 'openai:toy', constitution: default, server: {retries: 0, give_up_after: 2}, "
        f"stages: [{{stage: label, responses: '{completions}', audit: false}}]}}"
    )
    return file


def served_by(recipe: Path, server: MisbehavingServer) -> Path:
    """The recipe, with the server's address."""
    file = recipe.with_name("served.yaml")
    file.write_text(recipe.read_text().replace("{retries", f"{{base_urls: ['{server.url}'], retries"))
    return file


def script(*arguments: object, around: dict[str, str] | None = None) -> Said:
    """Run the script in a process of its own, as people do."""
    command = [sys.executable, str(ROOT / "scripts" / "label_with_datatrove.py"), *map(str, arguments)]
    done = subprocess.run(command, env=around or environment(), capture_output=True, text=True, timeout=300)
    return Said(done.returncode, done.stdout, done.stderr)


def label(recipe: Path, server: MisbehavingServer, out: Path) -> str:
    """`rlaif run` in a folder of its own; what it said."""
    said = call("run", recipe, "--out", out, "--set", f"server.base_urls=[{server.url}]")
    assert said.status == 0, said.err
    return said.out


def check_labels(recipe: Path, rows: Path, tmp_path: Path) -> None:
    """Taken over, the answers in `rows` give what one process writes, and nothing is asked again."""
    with MisbehavingServer(models=MODELS) as server:
        taken = script(recipe, "--out", rows, "--journal", tmp_path / "many" / "rlaif-journal.sqlite")
        assert taken.status == 0, taken.err
        assert f"{2 * PAIRS} answers, {2 * PAIRS} of them new" in taken.out
        assert "asked 0 questions" in label(recipe, server, tmp_path / "many" / "run")
        assert server.asked == []
        assert f"asked {2 * PAIRS} questions" in label(recipe, server, tmp_path / "one" / "run")
    for name in FILES:
        one, many = (tmp_path / each / "run" / "label" / name for each in ("one", "many"))
        assert one.read_bytes() == many.read_bytes(), name


def test_tasks_on_this_machine_ask_the_servers_of_the_recipe(tmp_path: Path, recipe: Path) -> None:
    with MisbehavingServer(models=MODELS) as server:
        said = script(served_by(recipe, server), "--out", tmp_path / "rows", "--tasks", TASKS)
        assert said.status == 0, said.err
        assert len(server.asked) == 2 * PAIRS
    check_labels(recipe, tmp_path / "rows", tmp_path)


def test_a_task_that_stopped_is_done_again_and_the_others_are_not(tmp_path: Path, recipe: Path) -> None:
    first = 2 * 3 * (PAIRS // 3 // TASKS + 1)  # the questions of the first task, which has the odd prompt
    work = ("--out", tmp_path / "rows", "--tasks", TASKS, "--set", "workers=1")
    with MisbehavingServer(models=MODELS, always=hang_up()) as server:
        server.misbehave(*[answer()] * first)
        said = script(served_by(recipe, server), *work)
        assert said.status != 0
        assert "requests in a row got no answer" in said.err
    with MisbehavingServer(models=MODELS) as server:
        said = script(served_by(recipe, server), *work)
        assert said.status == 0, said.err
        assert len(server.asked) == 2 * PAIRS - first
    check_labels(recipe, tmp_path / "rows", tmp_path)


def test_what_no_task_asked_is_asked_by_the_run(tmp_path: Path, recipe: Path) -> None:
    journal = tmp_path / "rlaif-journal.sqlite"
    with MisbehavingServer(models=MODELS) as server:
        work = ("--out", tmp_path / "rows", "--tasks", TASKS, "--set", "local_tasks=1")
        said = script(served_by(recipe, server), *work)
        assert said.status == 0, said.err
        done = len(server.asked)
        assert script(recipe, "--out", tmp_path / "rows", "--journal", journal).status == 0
        assert f"asked {2 * PAIRS - done} questions" in label(recipe, server, tmp_path / "run")


def test_a_task_without_a_prompt_has_nothing_to_do(tmp_path: Path, recipe: Path) -> None:
    with MisbehavingServer(models=MODELS) as server:
        said = script(served_by(recipe, server), "--out", tmp_path / "rows", "--tasks", PAIRS // 3 + 2)
        assert said.status == 0, said.err
    check_labels(recipe, tmp_path / "rows", tmp_path)


def test_answers_that_are_not_there_or_cannot_be_read_are_told(tmp_path: Path, recipe: Path) -> None:
    taking = ("--out", tmp_path / "rows", "--journal", tmp_path / "journal")
    said = script(recipe, *taking)
    assert said.status == 1
    assert "there are no answers to take over" in said.err
    assert not (tmp_path / "journal").exists()
    with MisbehavingServer(models=MODELS) as server:
        assert script(served_by(recipe, server), "--out", tmp_path / "rows", "--tasks", TASKS).status == 0
    file = min((tmp_path / "rows" / "rows").glob("*.jsonl"))
    file.write_bytes(file.read_bytes()[:-20])
    said = script(recipe, *taking)
    assert said.status == 0, said.err
    assert "; 1 block cannot be read, and will be asked again" in said.out


def test_tasks_start_servers_of_their_own(tmp_path: Path, recipe: Path) -> None:
    work = ("--out", tmp_path / "rows", "--tasks", TASKS, "--inference", "server_ready_delay_sec=0.2")
    said = script(recipe, *work, around=install(tmp_path / "bin"))
    assert said.status == 0, said.err
    check_labels(recipe, tmp_path / "rows", tmp_path)


def test_tasks_run_as_slurm_jobs(tmp_path: Path, recipe: Path) -> None:
    """What is submitted is a pickled pipeline, which the job loads without this script."""
    slurm = ("--on", "slurm", "--set", "partition=gpu", "--set", "with_srun=false")
    with MisbehavingServer(models=MODELS) as server:
        said = script(
            served_by(recipe, server),
            *("--out", tmp_path / "rows", "--tasks", TASKS),
            *slurm,
            around=install(tmp_path / "bin"),
        )
        assert said.status == 0, said.err
        assert len(server.asked) == 2 * PAIRS
    check_labels(recipe, tmp_path / "rows", tmp_path)


@pytest.mark.parametrize(
    "stages", ["[{stage: sample}, {stage: label}]", "[{stage: label, responses: a.jsonl, judge: scripted}]"]
)
def test_other_recipes_are_refused(tmp_path: Path, stages: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{{name: label, model: 'openai:toy', stages: {stages}}}")
    said = script(file, "--out", tmp_path / "rows")
    assert said.status == 1
    assert "one label stage, of responses, by a served judge" in said.err
    assert not (tmp_path / "rows").exists()
