"""Write rows as JSONL or Parquet, as they come: memory stays flat, and the file is on the disk when the function returns."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from rlaif.errors import RunError
from rlaif.runs.disk import told

__all__ = ["Format", "Written", "write_rows"]

Format = Literal["jsonl", "parquet"]
CHUNK = 1000
"""Rows of one Parquet row group."""


class Written(NamedTuple):
    """What was written: how many rows, and the SHA-256 of the file."""

    rows: int
    sha256: str


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], format: Format) -> Written:
    """Write `rows` to `path`, replacing what is there. Equal rows give equal bytes; floats come back exactly.

    Raises:
        RunError: The disk is full, the folder cannot be written to, or the rows do not fit one Parquet schema.
        ValueError: JSONL cannot hold a NaN or an infinity.
    """
    try:
        with told("write the file", path):
            with path.open("wb") as file:
                source = _told_apart(rows)
                count = _write_jsonl(file, source) if format == "jsonl" else _write_parquet(file, source, path)
                file.flush()
                os.fsync(file.fileno())
            with path.open("rb") as file:
                return Written(rows=count, sha256=hashlib.file_digest(file, "sha256").hexdigest())
    except _RowsFailed as failed:
        raise failed.error from None


class _RowsFailed(Exception):
    """Carries an `OSError` of the rows' maker past `told`, which would blame it on this file."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _told_apart(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    try:
        yield from rows
    except OSError as error:
        raise _RowsFailed(error) from error


def _write_jsonl(file: IO[bytes], rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    for row in rows:
        file.write(json.dumps(dict(row), ensure_ascii=False, allow_nan=False).encode() + b"\n")
        count += 1
    return count


def _write_parquet(file: IO[bytes], rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Two passes over a spool file: a column may be null, or a struct lack a field, in all of the first rows."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([])
    count = 0
    try:
        with tempfile.TemporaryFile(dir=path.parent) as spool:
            for chunk in _chunks(rows):
                inferred = pyarrow.Table.from_pylist(chunk).schema
                schema = pyarrow.unify_schemas([schema, inferred], promote_options="permissive")
                pickle.dump(chunk, spool)
                count += len(chunk)
            spool.seek(0)
            with pyarrow.parquet.ParquetWriter(file, schema) as writer:
                for _ in range(0, count, CHUNK):
                    writer.write_table(pyarrow.Table.from_pylist(pickle.load(spool), schema=schema))
    except pyarrow.ArrowException as error:
        raise RunError(
            f"the rows do not fit one Parquet schema: {error}", where=str(path), remedy="write JSONL instead (--format jsonl)",
        ) from error
    return count


def _chunks(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while chunk := [dict(row) for row in islice(iterator, CHUNK)]:
        yield chunk
