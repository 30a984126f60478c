from __future__ import annotations

from pathlib import Path

import pytest

from rlaif import resources
from rlaif.errors import ConfigError
from rlaif.resources import find, names, shipped


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_shipped_constitutions_are_listed_without_suffix() -> None:
    assert {"concise", "default", "default.zh", "warmth"} <= set(names("constitutions"))


@pytest.mark.parametrize("kind", ["constitutions", "prompts", "recipes"])
def test_every_kind_has_a_folder(kind: resources.Kind) -> None:
    assert shipped(kind).is_dir()


@pytest.mark.parametrize(
    "typed",
    ["default", "default.yaml", "constitutions/default.yaml", "constitutions/default", "./default.yaml"],
)
def test_a_shipped_file_is_found_from_any_directory(elsewhere: Path, typed: str) -> None:
    assert find("constitutions", typed) == shipped("constitutions") / "default.yaml"


def test_a_name_with_a_dot_is_found(elsewhere: Path) -> None:
    assert find("constitutions", "default.zh").name == "default.zh.yaml"


def test_a_file_in_a_folder_of_the_kind_is_found(elsewhere: Path) -> None:
    assert find("prompts", "zh/critique") == shipped("prompts") / "zh" / "critique.j2"


def test_an_existing_file_wins_over_a_shipped_one(elsewhere: Path) -> None:
    mine = elsewhere / "constitutions" / "default.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert find("constitutions", "constitutions/default.yaml").read_text() == "mine"
    assert find("constitutions", mine) == mine


def test_a_folder_does_not_hide_a_shipped_file(elsewhere: Path) -> None:
    (elsewhere / "warmth").mkdir()
    assert find("constitutions", "warmth").name == "warmth.yaml"


def test_the_home_folder_is_expanded(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    (elsewhere / "mine.yaml").write_text("mine")
    assert find("constitutions", "~/mine.yaml") == elsewhere / "mine.yaml"


def test_a_missing_file_lists_what_ships_and_the_nearest_name(elsewhere: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find("constitutions", "constitutions/defualt.yaml")
    assert "no file `constitutions/defualt.yaml`" in caught.value.what
    assert "did you mean `default`?" in caught.value.remedy
    assert "warmth" in caught.value.remedy


@pytest.mark.parametrize(
    "typed", ["", "..", "../constitutions/default.yaml", "/default.yaml", "a\0b", "x" * 5000]
)
def test_odd_names_find_nothing(elsewhere: Path, typed: str) -> None:
    with pytest.raises(ConfigError):
        find("constitutions", typed)


@pytest.mark.parametrize("typed", [".", "constitutions", "/"])
def test_a_folder_is_not_a_file(elsewhere: Path, typed: str) -> None:
    (elsewhere / "constitutions").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        find("constitutions", typed)


def test_an_installed_wheel_keeps_its_files_inside_the_package(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = elsewhere / "rlaif" / "_shipped" / "recipes"
    folder.mkdir(parents=True)
    (folder / "quickstart.yaml").write_text("")
    monkeypatch.setattr(resources, "PACKAGE", elsewhere / "rlaif")
    assert shipped("recipes") == folder
    assert find("recipes", "recipes/quickstart.yaml") == folder / "quickstart.yaml"
    assert shipped("prompts") == elsewhere / "prompts"
