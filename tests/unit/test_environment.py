"""Environment variables of ours with values that cannot be meant: one message that names the variable, before
anything is fetched."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from spine import ROOT, call, environment

ABSURD = {
    "RLAIF_MAX_FILE_MB": ("text", "-1", "0", "1e99", "nan", "9" * 500, "\x1b[2J"),
    "RLAIF_MAX_LINE_MB": ("text", "-1", "0", "1e99", "inf", "1.5", "\udcff"),
    "RLAIF_CACHE": ("/dev/null", "/dev/null/x", "~nosuchuser/x", "a" * 5000, "\x1b[2J/../f"),
    "RLAIF_API_KEY": ("a b", "\x1b[2J", "é", "\udcff"),
}
COMMANDS = {
    "RLAIF_CACHE": ("models", "fetch", "smollm2-135m"),
    "RLAIF_API_KEY": (
        "label",
        "--model",
        "openai:x",
        "--base-url",
        "http://127.0.0.1:9/v1",
        "--limit",
        "1",
        "--out",
        "out",
    ),
}
READ = ("label", "--model", "scripted", "--prompts", "p.jsonl", "--dry-run")


@pytest.mark.parametrize(
    ("variable", "value"), [(name, value) for name, values in ABSURD.items() for value in values]
)
def test_absurd_values(variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, value)
    (tmp_path / "p.jsonl").write_text('{"prompt": "hello"}\n')
    (tmp_path / "f").write_text("a file")
    said = call(*COMMANDS.get(variable, READ))
    assert said.status == 1
    assert said.err.count("error:") == 1
    assert variable in said.err
    assert len(said.err) < 1000
    assert re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", said.err) is None
    assert "downloading" not in said.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_of_the_how_to_are_given_their_script(shell: str) -> None:
    told = (ROOT / "docs" / "how-to" / "shell-completion.md").read_text(encoding="utf-8")
    assert f"_RLAIF_COMPLETE={shell}_source rlaif" in told
    command = [
        sys.executable,
        "-c",
        "import sys; sys.argv[0] = 'rlaif'; from rlaif.cli.main import main; main()",
    ]
    ran = subprocess.run(
        command,
        env=environment() | {"_RLAIF_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0
    assert "_RLAIF_COMPLETE" in ran.stdout


def test_a_command_is_completed() -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; sys.argv[0] = 'rlaif'; from rlaif.cli.main import main; main()",
    ]
    asked = {"_RLAIF_COMPLETE": "bash_complete", "COMP_WORDS": "rlaif au", "COMP_CWORD": "1"}
    ran = subprocess.run(
        command, env=environment() | asked, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout.split() == ["plain,audit"]
