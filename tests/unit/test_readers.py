from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlaif.errors import DataError
from rlaif.io import readers
from rlaif.io.readers import read_prompts, read_responses
from rlaif.types import Message

CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "how are you?"},
]


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_prompts(path, **options)
    return str(caught.value)


# Formats


def test_jsonl_texts_chats_and_extras(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        {
            "id": "one",
            "prompt": "What is it?",
            "context": ["doc 1", "doc 2"],
            "tags": ["task"],
            "category": "closed_qa",
        },
        "",
        {"prompt": CHAT, "context": "a single document"},
        {"id": 7, "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "你好"}]},
    )
    read = read_prompts(path)
    one, two, three = read.items
    assert (one.id, one.context, one.tags) == ("one", ("doc 1", "doc 2"), ("task", "closed_qa"))
    assert one.messages == (Message("user", "What is it?"),)
    assert [message.role for message in two.messages] == ["user", "assistant", "user"]
    assert (two.id, two.context) == (f"p-{two.fingerprint()}", ("a single document",))
    assert (three.id, three.messages[1].content) == ("7", "你好")
    assert (read.rows, read.problems, read.notes) == (3, (), ())


def test_every_format_reads_the_same(tmp_path: Path) -> None:
    rows = [{"prompt": 'plain, "quoted" text\nof two lines', "id": "a"}, {"prompt": CHAT, "id": "b"}]
    expected = read_prompts(write(tmp_path / "p.jsonl", *rows)).items
    (tmp_path / "p.json").write_text("\ufeff" + json.dumps(rows, indent=2), encoding="utf-8")
    write(tmp_path / "lines.json", *rows)
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (tmp_path / f"p{suffix}").open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([["prompt", "id"], [], [rows[0]["prompt"], "a"], [json.dumps(CHAT), "b"]])
    for name in ("p.json", "lines.json", "p.csv", "p.tsv"):
        assert read_prompts(tmp_path / name).items == expected, name
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([rows[1], {"prompt": CHAT[2:], "id": "c"}]), tmp_path / "p.parquet"
    )
    assert read_prompts(tmp_path / "p.parquet").items[0] == expected[1]


def test_text_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("\ufefffirst\r\n\n  \nsecond, with a comma\n".encode())
    assert [prompt.messages[0].content for prompt in read_prompts(str(tmp_path / "p.txt")).items] == [
        "first",
        "second, with a comma",
    ]


def test_long_csv_cells_and_lists_in_cells(tmp_path: Path) -> None:
    long = "word " * 60_000
    with (tmp_path / "p.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [
            ["prompt", "context", "tags"],
            ["q", long, "a, b"],
            ["r", '["x", "y"]', '["c", "d"]'],
            ["s", "", ""],
        ]
        csv.writer(file).writerows(rows)
    limit = csv.field_size_limit()
    q, r, s = read_prompts(tmp_path / "p.csv").items
    assert q.context == (long,)
    assert (q.tags, r.context, r.tags, s.context) == (("a", "b"), ("x", "y"), ("c", "d"), ())
    assert csv.field_size_limit() == limit


def test_text_that_looks_like_a_list_but_is_not(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "context": '["unfinished'}, {"prompt": "r", "context": '["a", 1]'}]
    assert [prompt.context for prompt in read_prompts(write(tmp_path / "p.jsonl", *rows)).items] == [
        ('["unfinished',),
        ('["a", 1]',),
    ]


def test_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*args: str, split: str) -> list[dict[str, str]]:
        asked.append((*args, split))
        return [{"question": "why?"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    read = read_prompts("org/name")
    read_prompts("org/name:test")
    read_prompts("org/name:main:test")
    assert asked == [("org/name", "train"), ("org/name", "test"), ("org/name", "main", "test")]
    assert read.notes == ("no column `prompt`; the prompts are those of `question`",)


def test_hub_dataset_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: str, split: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/name' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert "no such file, and no dataset" in refused("org/name")


def test_empty_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: [])
    assert "is empty" in refused("org/name")


def test_builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(read_prompts("builtin").items) >= 400
    path = write(
        tmp_path / "p.jsonl", {"prompt": "a", "tags": ["task"]}, {"prompt": "b", "tags": ["everyday"]}
    )
    monkeypatch.setattr(readers, "BUILTIN", path)
    assert [prompt.messages[0].content for prompt in read_prompts("builtin:everyday").items] == ["b"]
    assert "no built-in prompt has the tag 'other'" in refused("builtin:other")
    assert "everyday, task" in refused("builtin:other")


# Columns


@pytest.mark.parametrize("column", ["messages", "question", "instruction", "text"])
def test_other_columns_are_taken_and_said(tmp_path: Path, column: str) -> None:
    read = read_prompts(write(tmp_path / "p.jsonl", {column: "why?", "other": "x"}))
    assert read.items[0].messages[0].content == "why?"
    assert read.notes == (
        f"no column `prompt`; the prompts are those of `{column}`",
        "columns that are not read: other",
    )


def test_prompt_wins_over_other_columns(tmp_path: Path) -> None:
    read = read_prompts(write(tmp_path / "p.jsonl", {"prompt": "this", "text": "not this"}))
    assert read.items[0].messages[0].content == "this"


def test_named_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"ask": "this", "docs": ["d"], "text": "not this"})
    assert read_prompts(path, prompt_column="ask", context_column="docs").items[0].context == ("d",)
    assert "did you mean `ask`?" in refused(path, prompt_column="asks")
    assert "name it with --context-column" in refused(path, prompt_column="ask", context_column="documents")


def test_columns_that_do_not_decide(tmp_path: Path) -> None:
    assert "--prompt-column question" in refused(write(tmp_path / "a.jsonl", {"question": "x", "text": "y"}))
    assert "the columns are q, answer" in refused(write(tmp_path / "b.jsonl", {"q": "x", "answer": "y"}))
    assert "the columns are none" in refused(write(tmp_path / "c.jsonl", {}))


# Bad rows


BAD_ROWS: list[tuple[Any, str]] = [
    ('{"prompt": "cut', "not JSON"),
    ("[" * 100_000, "not usable JSON"),
    ('{"prompt": ' + "9" * 5000 + "}", "not usable JSON"),
    (["x"], "the row is a list, not an object"),
    ("null", "the row is null"),
    ("true", "the row is true or false"),
    ('"x"', "the row is a text"),
    ({"other": 1}, "no column `prompt` in this row"),
    ({"prompt": ""}, "`prompt` is empty"),
    ({"prompt": " \n "}, "`prompt` is empty"),
    ({"prompt": None}, "`prompt` is missing"),
    ({"prompt": 3}, "`prompt` is 3, not text"),
    ({"prompt": {"text": "x" * 100}}, "not a message"),
    ({"prompt": []}, "empty list"),
    ({"prompt": ["x"]}, "not a message"),
    ({"prompt": [{"role": "human", "content": "x"}]}, '`prompt[0].role` is "human"'),
    ({"prompt": [{"role": ["user"], "content": "x"}]}, "`prompt[0].role` is"),
    ({"prompt": [{"role": "user"}]}, "`prompt[0].content` is missing"),
    ({"prompt": [{"role": "user", "content": ""}]}, "`prompt[0].content` is empty"),
    ({"prompt": CHAT[:2]}, "a prompt ends with the user's"),
    ('{"prompt": "a\x00b"}', "NUL byte"),
    ({"prompt": "x", "id": [1]}, "`id` is [1]"),
    ({"prompt": "x", "id": True}, "`id` is true"),
    ({"prompt": "x", "id": "a\nb"}, "an id is one line"),
    ({"prompt": "x", "id": "a\x1b[2J"}, "an id is one line"),
    ({"prompt": "x", "id": "a" * 1001}, "an id is one line"),
    ({"prompt": "x", "id": "good"}, "already that of"),
    ({"prompt": "x", "context": 3}, "`context` is 3"),
    ({"prompt": "x", "context": ["d", ""]}, "`context[1]` is empty"),
    ({"prompt": "x", "tags": 3}, "`tags` is 3"),
]


@pytest.mark.parametrize(("row", "said"), BAD_ROWS)
def test_a_bad_row_is_told_with_its_line(tmp_path: Path, row: Any, said: str) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "good", "id": "good"}, row)
    message = refused(path)
    assert f"{path}:2: " in message
    assert said in message
    assert "--skip-bad-rows keeps the other 1" in message
    read = read_prompts(path, skip_bad_rows=True)
    assert len(read.items) == len(read.problems) == 1
    assert read.rows == 2


def test_one_bad_row_of_a_thousand(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": f"prompt {number}"} for number in range(1000)]
    rows[499] = {"prompt": ""}
    path = write(tmp_path / "p.jsonl", *rows)
    message = refused(path)
    assert "1 of 1,000 rows cannot be read" in message
    assert f"{path}:500:" in message
    assert "correct it, or --skip-bad-rows keeps the other 999" in message
    assert len(read_prompts(path, skip_bad_rows=True).items) == 999


def test_many_bad_rows_are_listed_in_order_and_cut(tmp_path: Path) -> None:
    rows = [{"prompt": "good"}, *("{" if number % 2 else {"prompt": ""} for number in range(30))]
    message = refused(write(tmp_path / "p.jsonl", *rows))
    assert "30 of 31 rows" in message
    assert "… and 10 more" in message
    assert message.index("p.jsonl:2:") < message.index("p.jsonl:3:") < message.index("p.jsonl:21:")
    assert "p.jsonl:22:" not in message


def test_not_utf8_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "good"}\n{"prompt": "caf\xe9"}\n')
    assert "p.jsonl:2: the line is not UTF-8 (byte 16)" in refused(tmp_path / "p.jsonl")
    (tmp_path / "p.txt").write_bytes(b"good\ncaf\xe9\n")
    assert "p.txt:2: the line is not UTF-8" in refused(tmp_path / "p.txt")
    (tmp_path / "p.csv").write_bytes(b"prompt\ngood\ncaf\xe9\n")
    assert "p.csv:3: `prompt` is not UTF-8" in refused(tmp_path / "p.csv")


def test_bad_csv_rows(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    rows = (
        'good,1\nthree,cells,here\na\x00b,2\n"[{""role"": '
        'user}]",3\n"two\nlines",4\n"x"y,5\nfine,6\n"open,7\n'
    )
    path.write_text(f"prompt,id\n{rows}", encoding="utf-8")
    read = read_prompts(path, skip_bad_rows=True)
    assert [prompt.id for prompt in read.items] == ["1", "4", "6"]
    assert [problem.where.removeprefix(str(tmp_path)) for problem in read.problems] == [
        "/p.csv:3",
        "/p.csv:4",
        "/p.csv:5",
        "/p.csv:8",
        "/p.csv:10",
    ]
    for problem, said in zip(
        read.problems, ["3 cells", "NUL", "not JSON", "expected after", "unexpected end of data"], strict=True
    ):
        assert said in problem.what


# Files that cannot be used as a whole


def test_whole_file_errors(tmp_path: Path) -> None:
    assert "expected a file, got a folder" in refused(tmp_path)
    assert "no such file" in refused(tmp_path / "absent.jsonl")
    assert "no such file" in refused("nothing")
    for name, said in [("p.docx", "unknown file type '.docx'"), ("p", "no suffix")]:
        assert said in refused(write(tmp_path / name, "x"))
    for name in ("e.jsonl", "e.json", "e.csv", "e.tsv", "e.txt"):
        assert "the file is empty" in refused(write(tmp_path / name, ""))
    assert "the file is empty" in refused(write(tmp_path / "header.csv", "prompt,id"))
    assert "p.csv:1: the header names `prompt` twice" in refused(
        write(tmp_path / "p.csv", "prompt,id,prompt", "a,b,c")
    )
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), tmp_path / "e.parquet"
    )
    assert "the file is empty" in refused(tmp_path / "e.parquet")


def test_no_usable_row_stays_an_error_when_skipping(tmp_path: Path) -> None:
    assert "no usable row among 2" in refused(
        write(tmp_path / "p.jsonl", "{", {"prompt": ""}), skip_bad_rows=True
    )
    assert "no usable row among 1" in refused(write(tmp_path / "q.jsonl", "{"), skip_bad_rows=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'[{"prompt": "x"},\n{"prompt" "y"}]', "p.json:2"),
        (b'{"prompt": "x"}', "holds an object, not a list"),
        (b'["caf\xe9"]', "not UTF-8"),
        (b"[" * 100_000, "not usable JSON"),
    ],
)
def test_broken_json(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "p.json").write_bytes(text)
    assert said in refused(tmp_path / "p.json")


def test_json_items_are_numbered(tmp_path: Path) -> None:
    assert "p.json:item 2: the row is a number" in refused(write(tmp_path / "p.json", [{"prompt": "x"}, 3]))


def test_broken_parquet(tmp_path: Path) -> None:
    assert "not a readable Parquet file" in refused(write(tmp_path / "p.parquet", "not parquet at all"))


def test_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "x"})

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    assert "cannot read the file (Permission denied)" in refused(path)


def test_repeated_prompts_are_kept_once(tmp_path: Path) -> None:
    read = read_prompts(
        write(tmp_path / "p.jsonl", {"prompt": "same thing"}, {"prompt": "same  thing "}, {"prompt": "other"})
    )
    assert len(read.items) == 2
    assert read.notes == ("1 of 3 rows repeat a prompt and were left out",)


# Completions from elsewhere


def test_lists_of_completions(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.jsonl",
        {
            "id": "x",
            "prompt": "hi",
            "completions": ["a", [{"role": "assistant", "content": "b"}]],
            "model": "gpt",
        },
        {"prompt": CHAT, "completions": ["c", "c"]},
        {"prompt": "hi", "completions": ["d"]},
    )
    first, second = read_responses(path).items
    assert [(c.id, c.text, c.model, c.finish) for c in first.completions] == [
        ("x/0", "a", "gpt", "given"),
        ("x/1", "b", "gpt", "given"),
        ("x/2", "d", "given", "given"),
    ]
    assert [c.text for c in second.completions] == ["c", "c"]
    assert all(c.prompt_id == second.prompt.id for c in second.completions)
    assert first.pairs == ()


@pytest.mark.parametrize("column", ["completion", "response"])
def test_one_completion_a_row(tmp_path: Path, column: str) -> None:
    read = read_responses(
        write(
            tmp_path / "r.jsonl", *({"prompt": "hi", column: text, "id": n} for n, text in enumerate("abc"))
        )
    )
    assert [c.text for c in read.items[0].completions] == ["a", "b", "c"]
    assert read.rows == 3


@pytest.mark.parametrize(("a", "b"), [("chosen", "rejected"), ("a", "b")])
def test_pairs_keep_who_met_whom(tmp_path: Path, a: str, b: str) -> None:
    pairs = [("x", "y"), ("x", "z"), ("w", "w")]
    (answered,) = read_responses(
        write(tmp_path / "r.jsonl", *({"prompt": "hi", a: one, b: two} for one, two in pairs))
    ).items
    assert [c.text for c in answered.completions] == ["x", "y", "z", "w", "w"]
    assert answered.pairs == ((0, 1), (0, 2), (3, 4))


def test_conversational_pairs_with_and_without_a_prompt(tmp_path: Path) -> None:
    def answer(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    explicit = {"prompt": CHAT, "chosen": [answer("x")], "rejected": [answer("y")]}
    whole = {"prompt": CHAT, "chosen": [*CHAT, answer("x")], "rejected": [*CHAT, answer("y")]}
    implicit = {"chosen": [*CHAT, answer("x")], "rejected": [*CHAT, answer("y")]}
    expected = read_responses(write(tmp_path / "r.jsonl", explicit)).items
    assert [message.as_dict() for message in expected[0].prompt.messages] == CHAT
    assert read_responses(write(tmp_path / "r.jsonl", whole)).items == expected
    assert read_responses(write(tmp_path / "r.jsonl", implicit)).items == expected


def test_csv_lists_of_completions(tmp_path: Path) -> None:
    with (tmp_path / "r.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["prompt", "responses"], ["hi", '["a", "b"]'], ["ho", "just one"]])
    assert [len(item.completions) for item in read_responses(tmp_path / "r.csv").items] == [2, 1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "chosen": "a", "rejected": " "}, "`rejected` is empty"),
        ({"prompt": "x", "chosen": "a"}, "no column `rejected` in this row"),
        ({"prompt": "x", "chosen": "a", "rejected": CHAT}, "the last turn of `rejected` is the user's"),
        ({"prompt": "x", "chosen": "a", "rejected": CHAT[:2]}, "differ from the prompt"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "id": "good"}, "already that of"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "model": 3}, "`model` is 3"),
        ("{", "not JSON"),
    ],
)
def test_bad_response_rows(tmp_path: Path, row: Any, said: str) -> None:
    path = write(tmp_path / "r.jsonl", {"id": "good", "prompt": "hi", "chosen": "a", "rejected": "b"}, row)
    with pytest.raises(DataError, match="--skip-bad-rows keeps the other 1") as caught:
        read_responses(path)
    assert said in str(caught.value)
    assert len(read_responses(path, skip_bad_rows=True).items) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "answer": "a"}, "no column holds completions; the columns are prompt, answer"),
        (
            {"prompt": "x", "chosen": "a", "rejected": "b", "completions": ["c"]},
            "several columns hold completions",
        ),
        ({"chosen": "a", "rejected": "b"}, "there is no prompt"),
        ({"prompt": "x", "completions": []}, "`completions` is not a list"),
        ({"prompt": "x", "completions": {"a": 1}}, "`completions` is not a list"),
        ({"prompt": "x", "completions": ["a", ""]}, "`completions[1]` is empty"),
        ("{", "no usable row"),
    ],
)
def test_response_files_that_cannot_be_used(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_responses(write(tmp_path / "r.jsonl", row))
    assert said in str(caught.value)
