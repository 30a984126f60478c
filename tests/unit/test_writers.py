from __future__ import annotations

import errno
import hashlib
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest

from rlaif.errors import RunError
from rlaif.files import sync_to_disk
from rlaif.io import writers
from rlaif.io.writers import CHUNK, RowWriter, write_rows, write_text
from rlaif.runs.disk import run_errors, write_whole

ROWS = [
    {
        "prompt": [{"role": "user", "content": "“你好” \u2028"}],
        "p": 0.1 + 0.2,
        "n": 1,
        "none": None,
        "s": "a\nb",
    },
    {"prompt": [{"role": "user", "content": "x"}], "p": 5e-324, "n": 2, "none": None, "s": ""},
]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_rows_come_back_exactly_and_the_digest_is_the_file_s(tmp_path: Path, format: writers.Format) -> None:
    path = tmp_path / f"rows.{format}"
    path.write_text("what was there before, and longer than what comes " * 100, encoding="utf-8")
    written = write_rows(path, iter(ROWS), format)
    assert written == (2, hashlib.sha256(path.read_bytes()).hexdigest())
    loader = "json" if format == "jsonl" else "parquet"
    found = datasets.load_dataset(
        loader, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert found.to_list() == ROWS
    assert write_rows(path, ROWS, format) == written
    assert os.listdir(tmp_path / "cache")


def test_jsonl_is_plain_utf8_with_floats_by_repr(tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", ROWS[:1], "jsonl")
    text = (tmp_path / "r.jsonl").read_text(encoding="utf-8")
    assert "“你好”" in text
    assert "0.30000000000000004" in text
    assert json.loads(text.split("\n")[0]) == ROWS[0]


def test_jsonl_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(tmp_path / "r.jsonl", [{"p": float("nan")}], "jsonl")


def test_parquet_columns_may_begin_with_nulls_and_gain_fields(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"why": None, "by": {"a": 1}, "n": 1}] * CHUNK
    rows.append({"why": "late", "by": {"b": 0.5}, "n": 1.5, "new": 1})
    assert write_rows(tmp_path / "r.parquet", rows, "parquet").rows == CHUNK + 1
    found = pyarrow.parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert found[0] == {"why": None, "by": {"a": 1, "b": None}, "n": 1.0, "new": None}
    assert found[-1] == {"why": "late", "by": {"a": None, "b": 0.5}, "n": 1.5, "new": 1}


def test_parquet_rows_of_two_minds(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="do not fit one Parquet schema"):
        write_rows(tmp_path / "r.parquet", [{"x": 1}] * CHUNK + [{"x": [1]}], "parquet")
    with pytest.raises(RunError, match="--format jsonl"):
        write_rows(tmp_path / "r.parquet", [{"x": 1}, {"x": "one"}], "parquet")
    with pytest.raises(RunError, match="no child field"):
        write_rows(tmp_path / "r.parquet", [{"x": {}}], "parquet")


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_no_rows(tmp_path: Path, format: writers.Format) -> None:
    assert write_rows(tmp_path / "r", [], format).rows == 0


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_memory_stays_flat(tmp_path: Path, format: writers.Format) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        write_rows(tmp_path / "r", ({"text": f"{number:0500d}"} for number in range(count)), format)
        (_, most) = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)  # imports
    assert peak(8 * CHUNK) < 1.5 * peak(2 * CHUNK)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EACCES, "not allowed"),
        (errno.EROFS, "not allowed"),
        (errno.EIO, "check the path"),
    ],
)
def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    for write in (
        lambda: write_rows(tmp_path / "r.jsonl", ROWS, "jsonl"),
        lambda: write_whole(tmp_path / "r.json", "x"),
    ):
        with pytest.raises(RunError, match=said):
            write()


def test_errors_of_the_rows_are_not_blamed_on_the_file(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"x": 1}
        raise ConnectionError("the server went away")

    for format in ("jsonl", "parquet"):
        with pytest.raises(ConnectionError, match="went away"):
            write_rows(tmp_path / "r", rows(), format)


def test_a_file_where_a_folder_is_due(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="expected a folder, found a file"):
        write_rows(tmp_path / "file" / "r.jsonl", ROWS, "jsonl")


def test_write_whole_leaves_no_trace_and_replaces(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_whole(tmp_path / "f.json", text)
        assert (tmp_path / "f.json").read_text(encoding="utf-8") == text
    assert os.listdir(tmp_path) == ["f.json"]
    sync_to_disk(tmp_path)


def test_error_without_a_number(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="odd thing"), run_errors("read it", tmp_path):
        raise OSError("odd thing")


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_an_error_in_the_block_passes_and_closes_the_file(tmp_path: Path, format: writers.Format) -> None:
    writer = RowWriter(tmp_path / "r", format)

    def stumble() -> None:
        with writer:
            writer.write({"x": 1})
            raise KeyError("x")

    with pytest.raises(KeyError):
        stumble()
    assert writer.rows == 1
    with pytest.raises(ValueError, match="closed file"):
        writer._file.write(b"more")


def test_text_is_written_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "samples.md", "# “读”\n")
    assert (tmp_path / "samples.md").read_text(encoding="utf-8") == "# “读”\n"
