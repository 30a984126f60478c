"""Every Python block of README and docs is run as it stands, on tiny models under the names that it uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from misbehaving import MisbehavingServer, answer
from spine import ROOT, call
from tiny import save_tiny

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning:transformers"),
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks() -> Iterator[tuple[str, str]]:
    """Every block, under the page's name and its number there."""
    for page in PAGES:
        found = re.findall(
            r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        for number, block in enumerate(found, start=1):
            yield f"{page.relative_to(ROOT)}:{number}", block


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), sharpness=1.0)


@pytest.mark.parametrize(("place", "block"), list(blocks()), ids=lambda value: value.partition("\n")[0][:60])
def test_a_block_runs(
    place: str, block: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = call("label", "--model", "scripted", "--limit", 2, "--k", 2, "--out", "runs/mine")
    assert said.status == 0, said.err
    with MisbehavingServer(always=answer()) as server:
        for name, stands_for in {
            "smollm2-135m": str(model),
            "HuggingFaceTB/SmolLM2-135M-Instruct": str(model),
            "http://localhost:8000/v1": server.url,
            '"quickstart", out': '"quickstart.yaml", out',
            'output_dir="grpo"': 'output_dir="grpo", use_cpu=True, bf16=False, report_to="none", max_completion_length=4',
        }.items():
            block = block.replace(name, stands_for)
        (tmp_path / "quickstart.yaml").write_text(
            "model: scripted\nstages: [{stage: sample, limit: 2, k: 2}, {stage: label}]\n", encoding="utf-8"
        )
        if "runs/p/ppo/adapter" in block:
            from rlaif import SharedBase

            base = SharedBase.load(str(model), dtype="float32")
            base.add_adapter("policy")
            base.save_adapter("policy", tmp_path / "runs/p/ppo/adapter")
        exec(compile(block, place, "exec"), {"__name__": "__main__"})


def test_there_are_blocks_to_run() -> None:
    assert len(list(blocks())) >= 8
