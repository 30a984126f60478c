"""The command line with bad input: one clear message, no traceback, exit status 1 (2 for a wrong command
line). And the wheel."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from spine import ROOT, Said, call, environment, rows

from rlaif.io import writers

QUICK = ("--model", "scripted", "--limit", "2", "--k", "2")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(said: Said, *parts: str, status: int = 1) -> None:
    """One message, with these parts in it, and no traceback."""
    assert said.status == status, said.err
    assert said.err.lower().count("error:") == 1
    assert "Traceback" not in said.err
    for part in parts:
        assert part in said.err


def write(name: str, text: str | bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


# Input files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--prompts", "--responses", "--constitution"])
def test_a_folder_for_a_file(option: str) -> None:
    Path("folder").mkdir()
    refused(call("label", *QUICK, option, "folder"), "folder", "expected a file", "→")


def test_a_folder_for_a_recipe() -> None:
    Path("folder").mkdir()
    refused(call("run", "folder"), "`folder` is a folder; expected a file", "quickstart")


def test_a_folder_for_a_journal() -> None:
    Path("folder").mkdir()
    refused(call("label", *QUICK, "--journal", "folder"), "--journal", "is a directory", status=2)


@pytest.mark.parametrize(
    ("name", "text"), [("p.jsonl", ""), ("p.json", "[]"), ("p.csv", "prompt\n"), ("p.txt", "\n\n")]
)
@pytest.mark.parametrize("option", ["--prompts", "--responses"])
def test_an_empty_file(option: str, name: str, text: str) -> None:
    refused(call("label", *QUICK, option, write(name, text)), f"{name}: the file is empty", "→")


def test_files_that_do_not_exist() -> None:
    refused(call("label", *QUICK, "--prompts", "absent.jsonl"), "absent.jsonl: no such file", "builtin")
    refused(call("label", *QUICK, "--responses", "absent.jsonl"), "absent.jsonl: no such file")
    refused(call("label", *QUICK, "--constitution", "warmht"), "warmht", "did you mean `warmth`?")
    refused(call("run", "quickstrat"), "quickstrat", "did you mean `quickstart`?")
    refused(
        call("label", *QUICK, "--prompts", "builtin:nonsense"), "no built-in prompt has the tag 'nonsense'"
    )


def thousand(bad: str) -> str:
    """1,000 rows; number 457 is `bad`."""
    lines = [json.dumps({"prompt": f"Question {number}?"}) for number in range(1, 1001)]
    lines[456] = bad
    return write("many.jsonl", "\n".join(lines))


@pytest.mark.parametrize(
    "bad", ['{"prompt": ', '{"prompt": 7}', '{"question": "What?"}', '{"prompt": " "}', "[]"]
)
def test_one_bad_row_of_a_thousand_is_told_with_its_number(bad: str) -> None:
    said = call("sample", "--model", "scripted", "--k", "1", "--prompts", thousand(bad), "--out", "run")
    refused(said, "1 of 1,000 rows cannot be read", "many.jsonl:457:", "--skip-bad-rows keeps the other 999")
    assert not Path("run/sample").exists()


def test_the_other_999_rows_are_kept_on_demand() -> None:
    said = call(
        "sample",
        "--model",
        "scripted",
        "--k",
        "1",
        "--prompts",
        thousand('{"prompt": '),
        "--skip-bad-rows",
        "--out",
        "run",
    )
    assert said.status == 0, said.err
    assert "1 of 1000 rows could not be read" in said.err
    assert "many.jsonl:457:" in said.err
    assert len(rows(Path("run/sample/completions.jsonl"))) == 999


def test_bad_rows_of_responses_are_counted() -> None:
    good = [json.dumps({"prompt": f"Q{number}?", "a": "yes", "b": "no"}) for number in range(4)]
    write("pairs.jsonl", "\n".join([*good, '{"prompt": "Q?", "a": "yes"}']))
    refused(
        call("label", *QUICK, "--responses", "pairs.jsonl", "--out", "run"), "pairs.jsonl:5:", "no column `b`"
    )
    said = call(
        "label", "--model", "scripted", "--responses", "pairs.jsonl", "--skip-bad-rows", "--out", "run"
    )
    assert said.status == 0, said.err
    counts = json.loads(Path("run/label/manifest.json").read_text())["counts"]
    assert (counts["bad_rows"], counts["preferences"]) == (1, 4)


def test_a_missing_column() -> None:
    write("p.csv", "promt,id\nWhat?,1\n")
    refused(
        call("label", *QUICK, "--prompts", "p.csv"),
        "no column `prompt`",
        "promt, id",
        "did you mean `promt`?",
        "--prompt-column",
    )
    refused(call("label", *QUICK, "--prompts", "p.csv", "--prompt-column", "x"), "no column `x`")
    write("r.jsonl", '{"prompt": "What?", "answer": "That."}')
    refused(call("label", *QUICK, "--responses", "r.jsonl"), "no column holds completions", "prompt, answer")


# Models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("/no/such/folder", "there is no such file or folder"),
        ("nobody/nothing", "the model is not on this machine"),
        ("folder", "config.json is missing"),
        ("model.bin", "not a GGUF file"),
        ("scripted:no_such_module:make", "No module named"),
        ("broken.gguf", "broken.gguf"),
        ("damaged", "damaged"),
    ],
)
def test_a_model_that_cannot_be_had(model: str, part: str) -> None:
    Path("folder").mkdir()
    write("model.bin", b"x")
    write("broken.gguf", b"not GGUF at all")
    write("damaged/config.json", "{")
    refused(call("label", "--limit", "2", "--k", "2", "--model", model, "--out", "run"), part)


# Places -----------------------------------------------------------------------------------------------------


def test_a_run_folder_that_cannot_be() -> None:
    write("file", "")
    refused(call("label", *QUICK, "--out", "file"), "expected a folder, found a file")
    refused(
        call("label", *QUICK, "--out", "file/run"),
        "file/run: cannot create the run folder: expected a folder, found a file",
    )
    refused(call("label", *QUICK, "--out", "/proc/run"), "/proc/run: cannot create the run folder")
    refused(call("label", *QUICK, "--out", "x" * 300), "File name too long")
    refused(
        call("label", *QUICK, "--out", "run", "--journal", "file/journal"),
        "cannot create the journal's folder",
    )


def test_a_journal_that_is_something_else() -> None:
    write("notes.txt", "These are notes, not a database. " * 50)
    refused(
        call("label", *QUICK, "--out", "run", "--journal", "notes.txt"),
        "notes.txt: this file is not a journal",
        "→",
    )


def test_no_space_for_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    flush = os.fsync

    def full(handle: int) -> None:
        if list(Path("run").glob(".tmp-label-*")):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr(writers.os, "fsync", full)
    refused(call("label", *QUICK, "--out", "run"), "no space left on the disk", "finished work is kept")
    assert sorted(path.name for path in Path("run").iterdir()) == [
        ".lock",
        "recipe.yaml",
        "report.html",
        "run.json",
        "sample",
    ]
    monkeypatch.setattr(writers.os, "fsync", flush)
    assert "asked 0 questions" in call("label", *QUICK, "--out", "run").out


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    refused(
        call("label", *QUICK, "--out", "run"),
        "not allowed (Permission denied)",
        "name a folder that you may write to",
    )


# Recipes, options, templates --------------------------------------------------------------------------------


def test_an_unknown_key_in_a_recipe() -> None:
    write("r.yaml", "name: x\nmodle: scripted\nstages:\n  - stage: sample\n    kk: 3\n")
    refused(
        call("run", "r.yaml"),
        "r.yaml:2: modle: unknown key `modle`",
        "did you mean `model`?",
        "r.yaml:5: stages.0.kk: unknown key `kk`",
        "did you mean `k`?",
    )


def test_an_unknown_setting_on_the_command_line() -> None:
    refused(call("run", "quickstart", "--set", "stages.sampel.k=2"), "no stage is named 'sampel'", "sample")
    refused(call("run", "quickstart", "--set", "sed=1"), "unknown key `sed`", "did you mean `seed`?")


@pytest.mark.parametrize(
    "arguments",
    [
        ("label", "--nope"),
        ("label", "--k", "0"),
        ("label", "--pairs", "some"),
        ("label", "--protocol", "vote"),
        ("nope",),
        ("run",),
        ("runs", "nope"),
        ("sample", "--temperature", "-1"),
        ("label", "--limit", "many"),
        ("memory", "recipes/gpu_70b.yaml", "--processes", "8"),
    ],
)
def test_a_wrong_command_line_is_usage(arguments: tuple[str, ...]) -> None:
    refused(call(*arguments), "Usage: rlaif", status=2)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (b"{% block user %}{% if %}{% endblock %}", "judge_pairwise.j2:1: the template is not valid jinja2"),
        (
            b"{% block user %}{{ nothing }}{% endblock %}{% block labels %}A\nB{% endblock %}",
            "'nothing' is undefined",
        ),
        (
            b"{% block user %}{{ 1 / 0 }}{% endblock %}{% block labels %}A\nB{% endblock %}",
            "division by zero",
        ),
        (b"{% block user %}x{% endblock %}", "the template has no block `labels`"),
        (b"\xff\xfe{% block user %}", "the file is not UTF-8 (byte 1)"),
        (b"{% include 'absent.j2' %}", "there is no template absent.j2"),
        (
            b"{% block user %}{% include 'judge_pairwise.j2' %}{% endblock %}{% block labels %}A\nB{% "
            b"endblock %}",
            "cannot be rendered",
        ),
    ],
)
def test_a_broken_template(source: bytes, part: str) -> None:
    write("mine/judge_pairwise.j2", source)
    refused(call("label", *QUICK, "--prompts-dir", "mine", "--out", "run"), part)


def test_a_template_that_cannot_be_parsed_is_told_before_anything_is_sampled() -> None:
    write("mine/judge_pairwise.j2", "{% block user %}{{ a")
    refused(call("label", *QUICK, "--prompts-dir", "mine", "--out", "run"), "not valid jinja2")
    assert not Path("run/sample").exists()


def test_a_constitution_without_the_half_that_is_needed() -> None:
    write("c.yaml", yaml.safe_dump({"principles": [{"id": "kind", "question": "Is it kind?"}]}))
    refused(
        call("label", *QUICK, "--constitution", "c.yaml", "--protocol", "pairwise", "--out", "run"),
        "c.yaml",
        "comparison",
    )
    refused(
        call("revise", "--model", "scripted", "--limit", "2", "--constitution", "c.yaml", "--out", "run"),
        "c.yaml",
        "critique",
    )


def test_nobody_reads_on() -> None:
    """`rlaif … | head -1` ends without a complaint."""
    command = f"{sys.executable} -m rlaif recipe schema | head -1"
    done = subprocess.run(
        ["bash", "-c", command], env=environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


# The wheel --------------------------------------------------------------------------------------------------


def test_a_wheel_holds_what_it_needs_and_runs_from_anywhere(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)],
        env=clean,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("rlaif_toolkit-*.whl")
    target = tmp_path / "site"
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, env=clean, check=True, timeout=120)
    for kind, suffix in (("constitutions", ".yaml"), ("prompts", ".j2"), ("recipes", ".yaml")):
        ours = {path.relative_to(ROOT / kind) for path in (ROOT / kind).rglob(f"*{suffix}")}
        found = {
            path.relative_to(target / "rlaif/_shipped" / kind)
            for path in (target / "rlaif/_shipped" / kind).rglob(f"*{suffix}")
        }
        assert found == ours
        assert found
    pages = [
        path.relative_to(ROOT)
        for folder in ("report", "serving")
        for path in (ROOT / "rlaif" / folder / "page").iterdir()
        if path.suffix in (".html", ".css", ".js", ".json", ".svg", ".j2")
    ]
    assert len(pages) > 10
    assert [path for path in pages if not (target / path).is_file()] == []

    def installed(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "rlaif", *arguments],
            cwd=tmp_path,
            env=clean | {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "principles" in installed("constitution", "show", "default")
    assert "name: quickstart" in installed("recipe", "show", "quickstart")
    assert "preferences.jsonl" in installed(
        "label", *QUICK, "--constitution", "constitutions/default.yaml", "--out", "run"
    )
    assert len(rows(tmp_path / "run" / "label" / "preferences.jsonl")) == 2
