"""Files that other people name: regular ones only, bounded in size and in the length of their lines."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from rlaif.errors import ConfigError, DataError, RunError
from rlaif.files import file_limit, line_limit, open_regular, read_lines, read_small, read_whole


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo")
    assert read_whole(path) == b"\xef\xbb\xbfone\ntwo"
    assert read_small(path, error=RunError) == "one\ntwo"
    with open_regular(path) as file:
        assert [line for _, line in read_lines(file)] == [b"\xef\xbb\xbfone\n", b"two"]


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path, kind in [(tmp_path / "fifo", "pipe"), (Path("/dev/zero"), "device"), (tmp_path, "folder")]:
            with pytest.raises(RunError, match=kind):
                open_regular(path, error=RunError)
        with pytest.raises(OSError, match=r"socket|No such device"):
            open_regular(tmp_path / "socket")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match=r"Too many levels|loop"):
        open_regular(tmp_path / "loop")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(40 << 20)  # sparse
    with pytest.raises(ConfigError, match="40 MB; at most 32 MB"):
        read_small(path, error=ConfigError)


def test_text_that_is_not_utf8_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="not UTF-8 \\(byte 4\\)"):
        read_small(tmp_path / "latin", error=ConfigError)


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"short\n" + b"x" * 100 + b"\nlast\n" + b"y" * 64)
    with path.open("rb") as file:
        assert list(read_lines(file, limit=10)) == [(1, b"short\n"), (2, None), (3, b"last\n"), (4, None)]


def test_the_limits_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLAIF_MAX_FILE_MB", "1")
    monkeypatch.setenv("RLAIF_MAX_LINE_MB", "2")
    assert (file_limit(), line_limit()) == (1 << 20, 2 << 20)
    path = tmp_path / "data"
    with path.open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(DataError, match="RLAIF_MAX_FILE_MB"):
        open_regular(path)
    monkeypatch.setenv("RLAIF_MAX_FILE_MB", "0")
    with pytest.raises(ConfigError, match="RLAIF_MAX_FILE_MB is '0'"):
        file_limit()
