"""Any bytes give rows or an `RlaifError`, in bounded time, and no row is lost: rows read and rows refused are
the rows there."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlaif.errors import RlaifError
from rlaif.io.readers import read_prompts, read_responses
from rlaif.io.tables import DataTable, read_table
from rlaif.jobs.learned_rows import read_demonstrations, read_preferences
from rlaif.text import is_well_formed

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".jsonl.gz", ".csv.gz", ".parquet")
READERS: tuple[Callable[[str], Any], ...] = (
    read_prompts,
    read_responses,
    read_preferences,
    read_demonstrations,
)
PIECES = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b":",
    b",",
    b"\n",
    b"\r",
    b"\t",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"\\u0000",
    b"1e999",
    b"NaN",
    b"9" * 400,
    b"prompt",
    b"chosen",
    b"rejected",
    b"completion",
    b"messages",
    b'"role"',
    b'"user"',
    b'"content"',
    b"[{",
    b"\n\nHuman:",
    b"\n\nAssistant:",
    b"null",
    b"true",
    b"-",
    b"\x1f\x8b",
    b"PAR1",
    b"[" * 50,
    b"weight",
    b"id",
    b"p_chosen",
)
KEYS = st.sampled_from(["role", "content", "from", "value", "type", "text", "response", "tool_calls"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["user", "assistant", "tool", "human", "gpt", "\n\nHuman: a\n\nAssistant: b", "\ud800", "\0"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
COLUMNS = st.sampled_from(
    [
        "prompt",
        "chosen",
        "rejected",
        "completion",
        "completions",
        "messages",
        "conversations",
        "instruction",
        "input",
        "output",
        "system",
        "context",
        "id",
        "tags",
        "category",
        "weight",
        "p_chosen",
        "margin",
        "log_odds",
        "a",
        "b",
        "model",
        "text",
        "verdicts",
    ]
)


def in_file(content: bytes, suffix: str, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of a file; `None` where it refuses it in words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(content)
        try:
            return read(path)
        except RlaifError:
            return None


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(
    content=st.binary(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join),
    packed=st.booleans(),
)
def test_any_bytes_give_rows_or_words(content: bytes, packed: bool, suffix: str) -> None:
    content = gzip.compress(content) if packed and suffix.endswith(".gz") else content
    table = in_file(content, suffix, read_table)
    assert table is None or table.rows or table.problems


@given(rows=st.lists(st.dictionaries(COLUMNS, VALUES, max_size=5), min_size=1, max_size=4))
@example(rows=[{"prompt": "x", "completion": "y", "weight": 1e308}])
@example(rows=[{"prompt": "x", "chosen": "a", "rejected": "b", "verdicts": "text", "margin": -1e308}])
def test_any_rows_give_items_or_words(rows: list[dict[str, Any]]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    for read in READERS:
        in_file(content, ".jsonl", lambda path, read=read: read(str(path)))


LINES = st.sampled_from(
    [
        b'{"prompt": "a"}',
        b'{"prompt": ""}',
        b'{"prompt": "\\ud800"}',
        b"[]",
        b"{",
        b"null",
        b"\xff",
        b"3",
        b'{"prompt": "a\0"}',
        b'"',
        b'{"x": 1}',
    ]
)


@given(lines=st.lists(LINES, min_size=1, max_size=12), newline=st.sampled_from([b"\n", b"\r\n"]))
def test_no_line_is_lost(lines: list[bytes], newline: bytes) -> None:
    table: DataTable = in_file(newline.join(lines), ".jsonl", read_table)
    assert len(table.rows) + len(table.problems) == len(lines)
    assert len({item.where for item in (*table.rows, *table.problems)}) == len(lines)
    for row in table.rows:
        assert all(is_well_formed(value) for value in row.values.values() if isinstance(value, str))


CELLS = st.text(alphabet=st.sampled_from("ab,;\"\t\n\r[{}'é "), max_size=6).filter(str.strip)


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
def test_what_a_writer_of_csv_writes_is_read_back(
    rows: list[tuple[str, str]], suffix: str, delimiter: str
) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows([("prompt", "note"), *rows])
    table: DataTable = in_file(file.getvalue().encode(), suffix, read_table)
    assert not table.problems
    assert [(row.values["prompt"], row.values["note"]) for row in table.rows] == rows


@given(
    rows=st.lists(
        st.sampled_from(["a,b", "a", "a,b,c", '"a",b', 'a"b,c', "\0,b", "é,\x1b"]), min_size=1, max_size=8
    )
)
def test_no_row_of_csv_is_lost(rows: list[str]) -> None:
    table: DataTable = in_file("\n".join(["prompt,note", *rows]).encode(), ".csv", read_table)
    assert len(table.rows) + len(table.problems) == len(rows)
