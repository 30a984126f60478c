"""No code of a model's folder is ever run, whatever is typed or piped in."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from spine import environment
from tiny import save_tiny

import rlaif

SOURCES = sorted(Path(rlaif.__file__).parent.rglob("*.py"))
LOADERS = {"from_pretrained", "from_config"}
OURS = {"PeftConfig"}
"""Reads a JSON file and knows no remote code."""


def test_every_loading_call_refuses_remote_code() -> None:
    found, wrong = 0, []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LOADERS
            ):
                continue
            if ast.unparse(node.func.value).split(".")[-1] in OURS:
                continue
            found += 1
            told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            wrong += [f"{path.name}:{node.lineno}"] * (told.get("trust_remote_code") != "False")
    assert wrong == []
    assert found >= 6


def test_a_folder_with_code_of_its_own_is_not_obeyed_when_standard_input_says_yes(tmp_path: Path) -> None:
    folder, trace = save_tiny(tmp_path / "model"), tmp_path / "it-ran"
    (folder / "evil.py").write_text(
        f"open({str(trace)!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n"
    )
    config = json.loads((folder / "config.json").read_text())
    for values, file in [
        (
            config
            | {
                "model_type": "evil",
                "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
            },
            "config.json",
        ),
        (
            json.loads((folder / "tokenizer_config.json").read_text())
            | {"auto_map": {"AutoTokenizer": ["evil.T", None]}},
            "tokenizer_config.json",
        ),
    ]:
        (folder / file).write_text(json.dumps(values))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rlaif",
            "sample",
            "--policy",
            str(folder),
            "--limit",
            "2",
            "--out",
            str(tmp_path / "run"),
        ],
        input="y\n" * 20,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
    )
    assert not trace.exists()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(folder) in done.stderr
