"""Packed data files: read as the raw ones, within the same limits; bombs and damage are refused in words."""

from __future__ import annotations

import gzip
import json
import sys
import types
import zlib
from pathlib import Path

import pytest

from rlaif.errors import ConfigError, DataError
from rlaif.io import compressed
from rlaif.io.readers import read_prompts
from rlaif.io.tables import read_table

ROWS = [{"prompt": f"prompt {number}"} for number in range(50)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = ("prompt\n" + "".join(row["prompt"] + "\n" for row in ROWS)).encode()
CONTENTS = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": json.dumps(ROWS).encode(),
    ".csv": CSV,
    ".tsv": CSV,
    ".txt": CSV[7:],
}


def packed(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content))
    return path


@pytest.mark.parametrize("suffix", CONTENTS)
def test_every_format_may_be_packed(tmp_path: Path, suffix: str) -> None:
    table = read_table(packed(tmp_path / f"rows{suffix}.gz", CONTENTS[suffix]))
    assert [row.values for row in table.rows] == ROWS
    assert not table.problems


def test_several_members_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(JSONL) + gzip.compress(b'{"prompt": "last"}\n'))
    assert len(read_prompts(path).items) == 51


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(JSONL)[:-12],
        gzip.compress(JSONL)[:20] + b"\0" * 50,
        JSONL,
        b"",
        gzip.compress(JSONL)[:-8] + b"\0" * 8,
    ],
    ids=["cut", "damaged", "not packed", "empty", "wrong checksum"],
)
def test_damage_is_said_and_nothing_of_the_file_taken(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged or cut off|the file is empty"):
        read_table(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_a_bomb_is_refused_before_it_unfolds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(compressed, "HARMLESS", 1 << 20)
    path = packed(tmp_path / f"bomb{suffix}.gz", b" " * (1 << 25))
    with pytest.raises(DataError, match="more than 200 times its size"):
        read_table(path)


def test_the_limit_of_a_raw_file_holds_for_what_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLAIF_MAX_FILE_MB", "1")
    path = packed(tmp_path / "rows.jsonl.gz", b'{"prompt": "' + b"x" * (1 << 21) + b'"}\n')
    with pytest.raises(DataError, match="unfolds to more than 1 MB"):
        read_table(path)
    monkeypatch.setenv("RLAIF_MAX_FILE_MB", "10")
    monkeypatch.setenv("RLAIF_MAX_LINE_MB", "1")
    assert "too long" in str(read_table(path).problems[0])


def test_parquet_and_unknown_formats_are_not_packed(tmp_path: Path) -> None:
    for name in ("rows.parquet.gz", "rows.xlsx.gz", "rows.gz"):
        with pytest.raises(DataError, match="unknown file type"):
            read_table(packed(tmp_path / name, JSONL))


def test_without_a_reader_of_zstandard_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"rlaif-toolkit\[zstd\]"):
        read_table(path)


class Frame:
    """A decoder of one frame, as the package's: here of zlib, so that the test needs no package."""

    def __init__(self) -> None:
        self._frame = zlib.decompressobj()

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data

    def decompress(self, data: bytes) -> bytes:
        return self._frame.decompress(data)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package `zstandard`."""
    decoder = types.SimpleNamespace(decompressobj=Frame)
    module = types.ModuleType("zstandard")
    module.ZstdError = zlib.error  # type: ignore[attr-defined]
    module.ZstdDecompressor = lambda max_window_size: decoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "zstandard", module)


@pytest.mark.usefixtures("package")
def test_frames_follow_each_other_and_a_cut_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(zlib.compress(JSONL) + zlib.compress(b'{"prompt": "last"}\n'))
    assert len(read_prompts(path).items) == 51
    path.write_bytes(zlib.compress(JSONL)[:-9])
    with pytest.raises(DataError, match="damaged or cut off"):
        read_table(path)
    path.write_bytes(b"\0" * 30)
    with pytest.raises(DataError, match="damaged or cut off"):
        read_table(path)
