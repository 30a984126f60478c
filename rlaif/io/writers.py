"""Write rows as JSONL or Parquet, as they come: memory stays flat, and the file is on the disk when the
writer has closed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple

from rlaif.errors import RunError
from rlaif.runs.disk import run_errors, write_whole

__all__ = ["Format", "RowWriter", "WrittenFile", "write_rows", "write_text"]

Format = Literal["jsonl", "parquet"]
CHUNK = 1000
"""Rows of one Parquet row group."""


class WrittenFile(NamedTuple):
    """What was written: how many rows, and the SHA-256 of the file."""

    rows: int
    sha256: str


class RowWriter:
    """Writes rows one by one, as a context manager. Equal rows give equal bytes; JSONL floats come back
    exactly.

    After an error inside the `with` block the file is closed as it is.

    Args:
        path: The file; what is there is replaced.

    Attributes:
        rows: Rows written so far.

    Raises:
        RunError: The disk is full, the folder cannot be written to, or the rows do not fit one Parquet
            schema.
        ValueError: JSONL cannot hold a NaN or an infinity.
    """

    def __init__(self, path: Path, format: Format) -> None:
        self.path = path
        self.rows = 0
        with run_errors("write the file", path), ExitStack() as stack:
            self._file = stack.enter_context(path.open("wb"))
            self._sink: _Jsonl | _Parquet = (
                _Jsonl(self._file) if format == "jsonl" else _Parquet(self._file, path)
            )
            stack.callback(self._sink.close)
            self._open = stack.pop_all()

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        with run_errors("write the file", self.path):
            self._sink.write(dict(row))
        self.rows += 1

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with run_errors("write the file", self.path), self._open:
            if kind is None:
                self._sink.finish()
                self._file.flush()
                os.fsync(self._file.fileno())

    def written(self) -> WrittenFile:
        """Rows and digest of the closed file."""
        with run_errors("read the file", self.path), self.path.open("rb") as file:
            return WrittenFile(rows=self.rows, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], format: Format) -> WrittenFile:
    """Write all of `rows`; see `RowWriter`."""
    with RowWriter(path, format) as writer:
        for row in rows:
            writer.write(row)
    return writer.written()


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole."""
    write_whole(path, text)


class _Jsonl:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    def finish(self) -> None:
        """Every row is there already."""

    def close(self) -> None:
        """Nothing is held."""


class _Parquet:
    """Collects rows in a spool file and writes them at the end: a column may be null in all of the first
    rows, or a struct lack a field, so the schema is not known before."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow, self._writer = pyarrow, pyarrow.parquet.ParquetWriter
        self._file = file
        self._path = path
        self._spool = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed in `close`
        self._schema = pyarrow.schema([])
        self._chunk: list[dict[str, Any]] = []
        self._chunks = 0

    def write(self, row: dict[str, Any]) -> None:
        self._chunk.append(row)
        if len(self._chunk) == CHUNK:
            self._put_away()

    def finish(self) -> None:
        self._put_away()
        self._spool.seek(0)
        try:
            with self._writer(self._file, self._schema) as writer:
                for _ in range(self._chunks):
                    writer.write_table(
                        self._arrow.Table.from_pylist(pickle.load(self._spool), schema=self._schema)
                    )
        except self._arrow.ArrowException as error:
            raise self._misfit(error) from error

    def close(self) -> None:
        self._spool.close()

    def _put_away(self) -> None:
        if not self._chunk:
            return
        try:
            inferred = self._arrow.Table.from_pylist(self._chunk).schema
            self._schema = self._arrow.unify_schemas([self._schema, inferred], promote_options="permissive")
        except self._arrow.ArrowException as error:
            raise self._misfit(error) from error
        pickle.dump(self._chunk, self._spool)
        self._chunk = []
        self._chunks += 1

    def _misfit(self, error: Exception) -> RunError:
        return RunError(
            f"the rows do not fit one Parquet schema: {error}",
            where=str(self._path),
            remedy="write JSONL instead (--format jsonl)",
        )
