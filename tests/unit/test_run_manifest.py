from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlaif import __version__
from rlaif.errors import RunError
from rlaif.runs import manifest as module
from rlaif.runs.manifest import (
    Git,
    Manifest,
    Output,
    changed_parts,
    describe_outputs,
    git_state,
    host_facts,
    stage_key,
    versions,
)

PARTS = {"settings": "1", "prompts": "2", "judge": "3"}


def example(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "stage": "label",
        "kind": "label",
        "key": stage_key(PARTS),
        "parts": PARTS,
        "config": {"k": 4, "pairs": "all"},
        "models": {"judge": "smollm2-135m@abc"},
        "started": "2025-01-01T00:00:00+00:00",
        "finished": "2025-01-01T00:01:00+00:00",
        "seconds": 60.5,
        "counts": {"verdicts": 8, "invalid": 0},
        "outputs": {"preferences.jsonl": Output("ab", 4), "samples.md": Output("cd")},
    }
    return Manifest(**values | changes)


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    for git in (None, Git(revision="f" * 40, dirty=True)):
        written = example(git=git)
        written.write_json(tmp_path / "manifest.json")
        assert Manifest.read_json(tmp_path / "manifest.json") == written
    assert written.rows == 4
    assert example(outputs={}).rows is None


def test_it_says_where_it_was_made() -> None:
    made = example()
    assert made.versions["rlaif"] == __version__
    assert made.host["cpus"] >= 1
    assert set(host_facts()) == {"cpus", "platform", "machine"}


def test_a_newer_key_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    example().write_json(path)
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"invented_later": 1}), encoding="utf-8"
    )
    assert Manifest.read_json(path) == replace(example(), git=Manifest.read_json(path).git)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"outputs": 3}', '{"outputs": {"a": {"size": 1}}}', '{"outputs": {}}']
)
def test_a_damaged_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match="the manifest is damaged"):
        Manifest.read_json(tmp_path / "manifest.json")


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no manifest"):
        Manifest.read_json(tmp_path / "manifest.json")


def test_the_key_is_of_the_parts_not_their_order() -> None:
    assert stage_key(PARTS) == stage_key(dict(reversed(PARTS.items())))
    assert stage_key(PARTS) != stage_key(PARTS | {"judge": "4"})


def test_changes_are_told_in_words() -> None:
    assert changed_parts(PARTS, PARTS) == []
    new = {"settings": "1", "prompts": "9", "seed": "0"}
    assert changed_parts(PARTS, new) == ["prompts changed", "seed was added", "judge was removed"]


def test_outputs_are_described_with_the_main_one_first(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    for name in ("z.jsonl", "a.md", "plots/p.svg", "manifest.json"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    outputs = describe_outputs(tmp_path, {"z.jsonl": 3})
    assert list(outputs) == ["z.jsonl", "a.md", "plots/p.svg"]
    assert outputs["z.jsonl"] == Output(sha256=hashlib.sha256(b"z.jsonl").hexdigest(), rows=3, bytes=7)
    assert outputs["a.md"].rows is None
    with pytest.raises(RunError, match="cannot read the stage's file"):
        describe_outputs(tmp_path, {"absent.jsonl": 3})


def test_versions_need_no_import() -> None:
    code = (
        "import sys; from rlaif.runs.manifest import versions; assert versions()['torch']; print('torch' "
        "in sys.modules)"
    )
    root = str(Path(module.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"


def test_a_missing_package_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("no-such-package-here",))
    assert set(versions()) == {"rlaif", "python"}


def test_git_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where the tests run in a git hook
        monkeypatch.delenv(name, raising=False)
    assert git_state(tmp_path) is None

    def git(*arguments: str) -> None:
        identity = [
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "-c",
            "commit.gpgsign=false",
            "-c",
            "core.hooksPath=",
        ]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "first")
    clean = git_state(tmp_path)
    assert clean is not None
    assert len(clean.revision) == 40
    assert not clean.dirty
    (tmp_path / "new").write_text("", encoding="utf-8")
    assert git_state(tmp_path) == Git(revision=clean.revision, dirty=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
