from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rlaif.cli.constitution import constitution
from rlaif.constitution.load import load_constitution
from rlaif.errors import ConfigError, RlaifError


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(constitution, [str(argument) for argument in arguments])
    if isinstance(result.exception, RlaifError):
        raise result.exception
    return result


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "principles:\n  - {id: 'a', comparison: 'Which response is [b]bolder?', tags: ['[/b]']}\n"
    )
    return path


def test_show_lists_the_principles() -> None:
    output = call("show", "warmth").output
    assert "positive / negative" in output
    assert (
        "warmth: 3 principles, 0 examples, language en, protocol pointwise, digest "
        f"{load_constitution('warmth').digest}" in output
    )


def test_show_prints_markup_as_it_is(mine: Path) -> None:
    assert "[/b]" in call("show", mine).output


def test_show_as_json_holds_everything() -> None:
    loaded = load_constitution("default.zh")
    shown = json.loads(call("show", "default.zh", "--json").output)
    assert shown["digest"] == loaded.digest
    assert shown["principles"][0]["critique"] == loaded.principles[0].critique
    assert shown["principles"][0]["tags"] == ["无害"]
    assert shown["examples"][1]["answer"] == "A"


def test_lint_passes_what_ships() -> None:
    result = call("lint", "default", "concise", "--strict")
    assert result.exit_code == 0
    assert result.output == "default: 20 principles, no warnings\nconcise: 5 principles, no warnings\n"


def test_lint_prints_advice_and_fails_only_when_strict(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("principles: [{id: a, comparison: Better?}]")
    result = call("lint", path)
    assert result.exit_code == 0
    assert f"warning: {path}: principle `a`: `comparison` is very short" in result.output
    assert result.output.endswith("1 principle, 2 warnings\n")
    assert call("lint", path, "--strict").exit_code == 1


def test_lint_goes_on_after_an_error_and_fails(tmp_path: Path, mine: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("principles: []")
    result = call("lint", path, tmp_path / "none.yaml", mine)
    assert result.exit_code == 1
    assert f"error: {path} cannot be used: 1 problem\n  {path}:1: `principles` is empty" in result.stderr
    assert "none.yaml" in result.stderr
    assert result.stdout == f"{mine}: 1 principle, no warnings\n"


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    path = tmp_path / "paper.json"
    path.write_text(json.dumps(["Please choose the gentler response. Options:"]))
    return path


def test_import_prints_yaml_that_can_be_read(tmp_path: Path, paper: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(call("import", paper, "--name", "gentle").output)
    assert load_constitution(path).name == "gentle"


def test_import_writes_a_new_file_only(tmp_path: Path, paper: Path) -> None:
    out = tmp_path / "gentle.yaml"
    result = call("import", paper, "--out", out)
    loaded = load_constitution(out)
    assert loaded.name == "gentle"
    assert result.output == f"{out}: 1 principle, digest {loaded.digest}\n"
    with pytest.raises(ConfigError, match="exists"):
        call("import", paper, "--out", out)
    with pytest.raises(ConfigError, match="cannot be written"):
        call("import", paper, "--out", tmp_path / "none" / "c.yaml")


@pytest.mark.parametrize("command", ["show", "lint", "import", "schema"])
def test_help_has_examples(command: str) -> None:
    assert f"rlaif constitution {command}" in call(command, "--help").output
    assert f"  {command} " in call("--help").output
