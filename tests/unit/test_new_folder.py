"""Folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.errors import ModelError
from rlaif.models.new_folder import new_folder


def test_it_gets_its_name_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with new_folder(folder, what="the model") as work:
        (work / "inner").mkdir()
        (work / "inner" / "weights").write_text("1")
        assert not folder.exists()
    assert (folder / "inner" / "weights").read_text() == "1"
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-model").mkdir()
    (tmp_path / ".tmp-model" / "old").write_text("1")
    (tmp_path / "model").mkdir()
    with new_folder(tmp_path / "model", what="the model") as work:
        (work / "new").write_text("2")
    assert [each.name for each in (tmp_path / "model").iterdir()] == ["new"]


def test_nothing_stays_of_what_failed(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "model", what="the model") as work:
            (work / "half").write_text("1")
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write()
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("1")
    with (
        pytest.raises(ModelError, match="nothing is overwritten"),
        new_folder(tmp_path / "model", what="the model"),
    ):
        raise AssertionError("the block was entered")
    assert (tmp_path / "model" / "mine").read_text() == "1"


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    with (
        pytest.raises(ModelError, match=r"the model cannot be written"),
        new_folder(tmp_path / "file" / "model", what="the model"),
    ):
        raise AssertionError("the block was entered")
