from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rlaif.cli.runs import runs
from rlaif.errors import RunError
from rlaif.runs import run as run_module
from rlaif.runs.manifest import MANIFEST, Git, Manifest, Output
from rlaif.runs.run import RunFolder


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(runs, [str(argument) for argument in arguments])


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run with one finished stage."""
    path = tmp_path / "runs" / "quick"
    with RunFolder.open(path, command=["rlaif", "label", "--prompts", "my file.csv"]) as run:
        run.write_recipe("stages: []\n")
        manifest = Manifest(
            stage="label",
            kind="label",
            key="ab12",
            parts={},
            config={},
            models={"judge": "smollm2-135m@abc"},
            started="",
            finished="",
            seconds=61.04,
            counts={"verdicts": 1200, "invalid": 0},
            git=Git(revision="f" * 40, dirty=True),
            outputs={"preferences.jsonl": Output("cd", 1234), "samples.md": Output("ef")},
        )
        with run.stage("label") as folder:
            manifest.write_json(folder / MANIFEST)
        run.record("label")
    return path


def test_list(finished: Path) -> None:
    with RunFolder.open(finished.parent / "empty"):
        pass
    result = call("list", finished.parent)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].split() == ["run", "status", "stages", "rows", "when", "(UTC)", "seconds"]
    (row,) = [line for line in lines if "quick" in line]
    assert {"finished", "label", "1,234", "61.0"} <= set(row.split())
    (row,) = [line for line in lines if "empty" in line]
    assert row.split().count("-") == 3


def test_list_as_json(finished: Path) -> None:
    (line,) = call("list", finished.parent, "--json").output.splitlines()
    found = json.loads(line)
    assert (found["name"], found["rows"], found["seconds"], found["stages"]) == (
        "quick",
        1234,
        61.04,
        ["label"],
    )


def test_one_damaged_run_does_not_hide_the_others(finished: Path) -> None:
    (finished / "label" / MANIFEST).write_text("{", encoding="utf-8")
    assert "finished" in call("list", finished.parent).output
    result = call("show", finished)
    assert isinstance(result.exception, RunError)
    assert "the manifest is damaged" in str(result.exception)


def test_nothing_to_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no runs in" in call("list", tmp_path).output
    monkeypatch.chdir(tmp_path)
    assert "no runs in runs" in call("list").output
    assert isinstance(call("list", "absent").exception, RunError)


def test_show(finished: Path) -> None:
    output = call("show", finished).output
    for said in (
        "quick: finished",
        "rlaif label --prompts 'my file.csv'",
        f"{finished}/recipe.yaml",
        "label (label), 61.0 s, key ab12",
        "smollm2-135m@abc",
        "verdicts 1,200, invalid 0",
        "ffffffffffff with uncommitted changes",
        f"{finished}/label/preferences.jsonl (1,234 rows)",
        f"{finished}/label/samples.md\n",
    ):
        assert said in output


def test_show_as_json(finished: Path) -> None:
    found = json.loads(call("show", finished, "--json").output)
    assert found["manifests"][0]["counts"] == {"verdicts": 1200, "invalid": 0}
    assert found["manifests"][0]["outputs"]["preferences.jsonl"]["rows"] == 1234


def test_show_a_run_that_has_only_begun(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "r"):
        output = call("show", tmp_path / "r").output
    assert "r: running" in output
    assert "none yet" in output


def test_show_what_is_no_run(tmp_path: Path) -> None:
    assert "this is not a run folder" in str(call("show", tmp_path).exception)


@pytest.mark.parametrize("arguments", [[], ["list"], ["show"]])
def test_help_has_examples(arguments: list[str]) -> None:
    assert "Examples:\n" in call(*arguments, "--help").output


def test_importing_the_command_is_light() -> None:
    code = (
        "import sys, rlaif.cli.runs; print({'torch', 'transformers', 'datasets', 'pyarrow', 'rich'} & "
        "set(sys.modules))"
    )
    root = Path(run_module.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "set()"


def test_show_names_the_journal_in_one_word_and_one_row_in_the_singular(finished: Path) -> None:
    (finished.parent / "rlaif-journal.sqlite").touch()
    manifest = finished / "label" / MANIFEST
    manifest.write_text(manifest.read_text().replace("1234", "1"))
    output = call("show", finished).output
    assert f"\n  journal   {finished.parent}/rlaif-journal.sqlite\n" in output
    assert "preferences.jsonl (1 row)\n" in output
