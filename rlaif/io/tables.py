"""Rows from a file or a dataset, whatever its format: each row a dict, each row that cannot be read a
`Problem` with its line.

The format follows from the suffix: `.jsonl`, `.json` (a list of objects), `.csv`, `.tsv`, `.parquet`, `.txt`
(a prompt per line); all but Parquet may be packed (`.jsonl.gz`, `.csv.zst`). What is no file is taken as a
Hugging Face dataset: `org/name`, `org/name:split` or `org/name:config:split`.

Text is made well-formed here, once (`rlaif.text`): rows that held half a character or a NUL are counted in
`DataTable.mended`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from rlaif.errors import DataError, Problem
from rlaif.files import line_limit, open_regular, read_lines
from rlaif.io.compressed import PACKED, inner_suffix, open_data, read_data
from rlaif.io.fields import BadCell
from rlaif.text import well_formed

__all__ = ["Row", "DataTable", "read_table"]

HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(:[^:]+){0,2}$")
OBJECTS = re.compile(
    r"""\s*\[\s*\{\s*["'](role|content|from|value|model|response|principle|tool_calls|annotations)["']\s*:"""
)
"""How a cell begins that is meant as a list of objects which some reader knows, though it is not JSON: as
Python prints it."""
KNOWN = frozenset({"role", "from", "response", "principle"})
"""Keys of messages, of ShareGPT's, of completions and of verdicts: of the lists that a cell may hold."""
MOST_OPENED = 100
"""Quotation marks of one CSV file that may be left open: each is looked for to its end."""
LONGEST_CELL = 1 << 26
"""Characters of the longest CSV cell; Python's own limit of 128 Ki is shorter than a retrieved document may
be."""


class Row(NamedTuple):
    """One row and where it is: `file:line`."""

    where: str
    values: dict[str, Any]


class DataTable(NamedTuple):
    """All rows that could be read as such, and a problem for each that could not.

    Attributes:
        mended: Rows whose text was not well-formed: halves of characters and NULs stand there as U+FFFD now.
    """

    rows: list[Row]
    problems: list[Problem]
    mended: int = 0

    @property
    def notes(self) -> list[str]:
        """What the reader should know, a line each."""
        return (
            [f"{self.mended:,} rows contained half a character or a NUL; it was replaced by U+FFFD"]
            if self.mended
            else []
        )

    @property
    def columns(self) -> list[str]:
        """Every column that some row has, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))


def read_table(source: str | Path) -> DataTable:
    """Read all rows of a file or a hub dataset.

    Raises:
        DataError: There is no such file or dataset, it is a folder, empty, of an unknown format, or broken as
            a whole.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        raise DataError("expected a file, got a folder", where=str(source), remedy="name one file in it")
    table = _read_file(source, path) if path.exists() else _read_hub(str(source), path)
    if not table.rows and not table.problems:
        raise DataError("the file is empty", where=str(source), remedy="give a file with at least one row")
    return table


def _read_file(source: str | Path, path: Path) -> DataTable:
    packed, suffix = path.suffix.lower() in PACKED, inner_suffix(path)
    reader = READERS.get(suffix)
    if reader is None or (packed and reader is _read_parquet):
        shown = "".join(path.suffixes[-2:]) if packed else path.suffix
        raise DataError(
            f"unknown file type {shown!r}" if shown else "the file name has no suffix",
            where=str(source),
            remedy=f"use one of {' '.join(READERS)}; all but .parquet may end in {' or '.join(PACKED)} "
            "besides",
        )
    try:
        return _gather(reader(path))
    except OSError as error:
        what = f"cannot read the file ({error.strerror or error})"
        raise DataError(what, where=str(source), remedy="check its permissions") from error


def _gather(items: Iterator[Row | Problem]) -> DataTable:
    rows: list[Row] = []
    problems: list[Problem] = []
    mended = 0
    for item in items:
        if isinstance(item, Problem):
            problems.append(item)
            continue
        try:
            values = _mended(item.values)
        except RecursionError:
            problems.append(
                Problem(
                    "the row is nested too deeply", where=item.where, remedy="write plain texts and lists"
                )
            )
            continue
        mended += values is not item.values
        rows.append(Row(where=item.where, values=values))
    return DataTable(rows=rows, problems=problems, mended=mended)


def _mended(value: Any) -> Any:
    """`value` with all its text well-formed; the same object where it is already."""
    match value:
        case BadCell():
            return value  # said by who reads the column
        case str():
            return well_formed(value)
        case list():
            items = [_mended(item) for item in value]
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        case dict():
            pairs = [(_mended(name), _mended(each)) for name, each in value.items()]
            same = all(
                new[0] is old[0] and new[1] is old[1] for new, old in zip(pairs, value.items(), strict=True)
            )
            return value if same else dict(pairs)
        case _:
            return value


def _lines(path: Path) -> Iterator[tuple[str, str] | Problem]:
    """`(file:line, text)` of every line that is not blank; NUL bytes and what is not UTF-8 are problems."""
    with open_data(path) as file:
        for number, raw in read_lines(file):
            where = f"{path}:{number}"
            if raw is None:
                yield Problem(
                    "the line is too long", where=where, remedy="raise the limit (RLAIF_MAX_LINE_MB)"
                )
                continue
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if not raw.strip():
                continue
            if b"\0" in raw:
                yield Problem(
                    "the line contains a NUL byte", where=where, remedy="remove it, or save the file as UTF-8"
                )
                continue
            try:
                yield where, raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield Problem(
                    f"the line is not UTF-8 (byte {error.start + 1})",
                    where=where,
                    remedy="save the file as UTF-8",
                )


def _read_txt(path: Path) -> Iterator[Row | Problem]:
    for line in _lines(path):
        yield line if isinstance(line, Problem) else Row(where=line[0], values={"prompt": line[1]})


def _read_jsonl(path: Path) -> Iterator[Row | Problem]:
    for line in _lines(path):
        yield line if isinstance(line, Problem) else _json_row(*line)


def _json_row(where: str, text: str) -> Row | Problem:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return Problem(
            f"not JSON: {error.msg} (column {error.colno})",
            where=where,
            remedy="write one JSON object per line",
        )
    except (ValueError, RecursionError) as error:
        return Problem(
            f"not usable JSON: {error}", where=where, remedy="write one plain JSON object per line"
        )
    return _object_row(where, value)


def _object_row(where: str, value: object) -> Row | Problem:
    if not isinstance(value, dict):
        return Problem(
            f"the row is {_json_type(value)}, not an object", where=where, remedy='write {"prompt": "…"}'
        )
    return Row(where=where, values=value)


def _read_json(path: Path) -> Iterator[Row | Problem]:
    """A list of objects; a file of one object a line is read as such, since many are named so."""
    try:
        text = read_data(path).decode("utf-8-sig")
        value = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _read_jsonl(path)
            return
        raise DataError(
            f"not JSON: {error.msg}", where=f"{path}:{error.lineno}", remedy="write a list of objects"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"the file is not UTF-8 (byte {error.start + 1})", where=str(path), remedy="save it as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not usable JSON: {error}", where=str(path), remedy="write a plain list of objects"
        ) from error
    if not isinstance(value, list):
        raise DataError(
            f"the file holds {_json_type(value)}, not a list",
            where=str(path),
            remedy='write [{"prompt": "…"}, …]',
        )
    for number, item in enumerate(value, start=1):
        yield _object_row(f"{path}:item {number}", item)


def _read_csv(path: Path) -> Iterator[Row | Problem]:
    yield from _read_separated(path, ",")


def _read_tsv(path: Path) -> Iterator[Row | Problem]:
    yield from _read_separated(path, "\t")


def _read_separated(path: Path, delimiter: str) -> Iterator[Row | Problem]:
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        # What is not UTF-8 becomes a lone surrogate, which a valid file cannot hold: so one bad row does not
        # lose the others.
        with (
            open_data(path) as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
        ):
            lines, opened = _Lines(file, where=str(path)), 0
            header: list[str] = []
            while True:
                start = lines.begin()
                where = f"{path}:{start}"
                try:
                    cells = next(csv.reader(lines, delimiter=delimiter, strict=True))
                except StopIteration:
                    return
                except csv.Error as error:
                    # Only the line where the row begins is given up: a quotation mark that is not closed
                    # would take all below it.
                    opened += lines.give_back() > 0
                    if opened > MOST_OPENED:
                        what = f"more than {MOST_OPENED} quotation marks that are not closed"
                        raise DataError(
                            what, where=where, remedy="write the file again, with quotation marks doubled"
                        ) from error
                    yield Problem(
                        str(error),
                        where=where,
                        remedy="close the quotation mark, or double one that is meant",
                    )
                    continue
                if not any(cells):
                    continue
                if not header:
                    header = _header(cells, where)
                    continue
                yield _separated_row(where, header, cells)
    finally:
        csv.field_size_limit(limit)


class _Lines:
    """The lines of a file, of which those of the row that is being read can be given back, all but the
    first."""

    def __init__(self, file: IO[str], *, where: str) -> None:
        self._file, self._where = file, where
        self._most = line_limit()
        self._waiting: deque[str] = deque()
        self._row: list[str] = []
        self._read = 0

    def begin(self) -> int:
        """Begin a row; the number of its first line, from 1."""
        self._row = []
        return self._read + 1

    def give_back(self) -> int:
        """Give back the lines of this row after its first; how many."""
        back = self._row[1:]
        self._waiting.extendleft(reversed(back))
        self._read -= len(back)
        return len(back)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else self._file.readline(self._most + 1)
        if not line:
            raise StopIteration
        if len(line) > self._most:
            what, remedy = "the line is too long", "raise the limit (RLAIF_MAX_LINE_MB)"
            raise DataError(what, where=f"{self._where}:{self._read + 1}", remedy=remedy)
        self._row.append(line)
        self._read += 1
        return line


def _header(cells: Sequence[str], where: str) -> list[str]:
    header = [name.strip() for name in cells]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"the header names `{twice[0]}` twice", where=where, remedy="give each column its own name"
        )
    return header


def _separated_row(where: str, header: Sequence[str], cells: Sequence[str]) -> Row | Problem:
    if len(cells) != len(header):
        return Problem(
            f"the row has {len(cells)} cells, the header names {len(header)}",
            where=where,
            remedy="put cells that hold the separator into double quotes",
        )
    return Row(
        where=where, values={name: _separated_cell(cell) for name, cell in zip(header, cells, strict=True)}
    )


def _separated_cell(cell: str) -> Any:
    """A cell's text, or the list that it writes as JSON where it begins like one of messages, completions or
    verdicts.

    Other text may begin with `[{`, too (a question about JSON, say), and stays text.
    """
    if "\0" in cell:
        return BadCell.of(cell, "holds a NUL byte", remedy="remove it, or save the file as UTF-8")
    if any("\udc80" <= character <= "\udcff" for character in cell):
        return BadCell.of(cell, "is not UTF-8", remedy="save the file as UTF-8")
    if not cell.lstrip().startswith("[{"):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return (
            cell
            if not OBJECTS.match(cell)
            else BadCell.of(
                cell,
                "begins like a list of messages but is not JSON",
                remedy='write [{"role": "user", "content": "…"}]; if it is meant as text, write the file as '
                "JSONL, where text is text",
            )
        )
    return value if any(isinstance(item, dict) and KNOWN & item.keys() for item in value) else cell


def _read_parquet(path: Path) -> Iterator[Row | Problem]:
    import pyarrow
    import pyarrow.parquet

    try:
        with open_regular(path) as raw, pyarrow.parquet.ParquetFile(raw) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(where=f"{path}:row {number}", values=values)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"not a readable Parquet file: {error}", where=str(path), remedy="write it again, or use JSONL"
        ) from error


READERS: dict[str, Callable[[Path], Iterator[Row | Problem]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}


def _read_hub(source: str, path: Path) -> DataTable:
    """All rows of a Hugging Face dataset; its split `train` when none is named."""
    if inner_suffix(path) in READERS or not HUB_NAME.match(source):
        raise DataError(
            "no such file",
            where=source,
            remedy="check the path; `builtin`, or a hub dataset as org/name:split, also work",
        )
    import datasets

    name, *parts = source.split(":")
    split = parts.pop() if parts else "train"
    try:
        rows = datasets.load_dataset(name, *parts, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"no such file, and no dataset from the Hugging Face hub: {error}",
            where=source,
            remedy="check the name and the connection; write org/name:split or org/name:config:split",
        ) from error
    return _gather(
        Row(where=f"{source}:row {number}", values=dict(row)) for number, row in enumerate(rows, start=1)
    )


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"
