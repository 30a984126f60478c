"""No control character of a path, a name, a value or an answer reaches the terminal, whatever command shows
it and where."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.table import Table
from spine import call

from rlaif.cli.console import output, say
from rlaif.cli.echo import write_any_text
from rlaif.report.markdown import named
from rlaif.text import escaped_json

ESCAPES = "x\x1b[2J\x1b]0;title\x07\x9b2J\u202e\nsecond\rline"
HALF = "x\udcff"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")

COMMANDS: dict[str, tuple[str, ...]] = {
    "a command": ("{}",),
    "an option": ("label", "--{}"),
    "a value of an option": ("label", "--protocol", "{}"),
    "a number": ("label", "--k", "{}"),
    "a recipe": ("run", "{}.yaml"),
    "a recipe to show": ("recipe", "show", "{}.yaml"),
    "--set": ("recipe", "show", "quickstart", "--set", "{}"),
    "--set of a value": ("recipe", "show", "quickstart", "--set", "seed={}"),
    "--set of a key": ("recipe", "show", "quickstart", "--set", "{}=1"),
    "--set of a stage": ("recipe", "show", "quickstart", "--set", "stages.{}.k=1"),
    "a constitution": ("constitution", "show", "{}.yaml"),
    "a constitution to lint": ("constitution", "lint", "{}.yaml"),
    "a file to import": ("constitution", "import", "{}.json"),
    "a folder of runs": ("runs", "list", "{}"),
    "a run": ("runs", "show", "{}"),
    "a principle": ("prompts", "render", "--principle", "{}", "--model", "none"),
    "a prompt": ("prompts", "render", "--prompt", "{}", "--a", "{}", "--b", "{}", "--model", "none"),
    "a folder of templates": ("prompts", "render", "--prompts-dir", "{}", "--model", "none"),
    "a model": ("prompts", "render", "--model", "./{}"),
    "a model by name": ("models", "fetch", "{}"),
    "a prompt file": ("label", "--model", "scripted", "--prompts", "{}.jsonl", "--dry-run"),
    "a tag": ("label", "--model", "scripted", "--prompts", "builtin:{}", "--dry-run"),
    "responses": ("label", "--model", "scripted", "--responses", "{}.jsonl", "--dry-run"),
    "a column": (
        "label",
        "--model",
        "scripted",
        "--prompt-column",
        "{}",
        "--prompts",
        "builtin",
        "--dry-run",
    ),
    "a judge": ("label", "--model", "scripted", "--judge", "scripted:{}", "--out", "{out}"),
    "an output folder": (
        "label",
        "--model",
        "scripted",
        "--limit",
        "2",
        "--k",
        "2",
        "--dry-run",
        "--out",
        "{}",
    ),
    "a server": ("label", "--model", "openai:x", "--base-url", "http://{}", "--dry-run"),
    "a setting of the server": ("label", "--model", "openai:x", "--server", "{}=1", "--dry-run"),
    "a key variable": ("label", "--model", "openai:x", "--api-key-env", "{}", "--dry-run"),
    "a calibration": ("label", "--model", "scripted", "--calibration", "{}", "--out", "{out}"),
    "a reward": ("ppo", "--model", "scripted", "--reward", "{}", "--out", "{out}"),
    "preferences": ("reward", "--model", "scripted", "--preferences", "{}.jsonl", "--out", "{out}"),
    "pairs": ("audit", "--model", "scripted", "--data", "{}.jsonl"),
    "a device": ("label", "--device", "{}", "--limit", "2", "--out", "{out}"),
    "an adapter": ("push", "{}", "me/x", "--dry-run"),
}


@pytest.mark.parametrize("value", [ESCAPES, HALF], ids=["escapes", "half a character"])
@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_commands_show_what_they_were_given_escaped(
    arguments: tuple[str, ...], value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = call(*(each.replace("{out}", "out").replace("{}", value) for each in arguments))
    assert RAW.search(said.out + said.err) is None, said
    assert said.status in (0, 1, 2)
    assert "Traceback" not in said.err


def test_a_run_on_hostile_rows_shows_them_escaped_and_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{n} {ESCAPES}", "a": f"a {ESCAPES}", "b": f"b {ESCAPES}"} for n in range(3)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = call("label", "--model", "scripted", "--responses", "pairs.jsonl", "--out", f"runs/{ESCAPES}")
    assert said.status == 0, said.err
    assert RAW.search(said.out + said.err) is None
    folder = tmp_path / "runs" / ESCAPES / "label"
    assert RAW.search((folder / "samples.md").read_text(encoding="utf-8")) is None
    assert RAW.search((folder.parent / "report.html").read_text(encoding="utf-8")) is None
    kept = json.loads((folder / "preferences.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert "\x1b[2J" in kept["chosen"][-1]["content"]
    for command in (("runs", "list"), ("runs", "list", "--json"), ("runs", "show", f"runs/{ESCAPES}")):
        said = call(*command)
        assert said.status == 0, said.err
        assert RAW.search(said.out + said.err) is None
    listed = json.loads(call("runs", "list", "--json").out)
    assert listed["run"].endswith(ESCAPES)


def test_tables_and_lines_of_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=ESCAPES)
    table.add_column(ESCAPES)
    table.add_row(ESCAPES)
    output().print(table)
    output().print(ESCAPES, markup=False)
    output().rule(ESCAPES)
    say(ESCAPES)
    said = capsys.readouterr()
    assert RAW.search(said.out + said.err) is None
    assert r"\x1b[2J" in said.out


def test_json_keeps_its_value() -> None:
    text = escaped_json(json.dumps({"a": ESCAPES + HALF}, ensure_ascii=False))
    assert RAW.search(text) is None
    assert json.loads(text) == {"a": ESCAPES + HALF}


def test_a_narrow_encoding_does_not_end_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    write_any_text()
    print("é\ud800", flush=True)
    assert narrow.buffer.getvalue() == b"\\xe9\\ud800\n"  # type: ignore[attr-defined]


def test_names_in_markdown_are_one_line() -> None:
    assert "\n" not in named(ESCAPES)
