"""A study from the command line, on a tiny model: shared stages, a run that fails, going on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from spine import call, environment
from tiny import save_tiny

RECIPE = """
name: tiny
model: {model}
dtype: float32
stages:
  - stage: dpo
    files: [{{file: {data}}}]
    epochs: 1
    lora_rank: 2
  - stage: evaluate
    prompts: {prompts}
    samples: 1
    max_new_tokens: 4
    gold: toy_policy:share_of_vowels
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    prompts, data = folder / "prompts.jsonl", folder / "data.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(3)))
    data.write_text(
        "".join(
            json.dumps({"prompt": f"Say {i}?", "chosen": "yes", "rejected": "no"}) + "\n" for i in range(4)
        )
    )
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(model=save_tiny(folder / "model"), data=data, prompts=prompts))
    return path


def test_a_study_tells_what_failed_and_goes_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails does not end the others; the next study in the folder computes no stage again."""
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # the runs read a metric from here
    out = tmp_path / "study"
    blocked = out / "seed-1" / "dpo"  # a folder that is no stage
    blocked.mkdir(parents=True)
    found = call("study", recipe, "--out", out, "--seeds", 2, "--jobs", 2)
    assert found.status == 1
    assert "seed-0: finished after" in found.err
    assert "seed-1 did not finish" in found.out
    assert "not a stage of this run" in found.out
    assert "too few seeds finished" in found.out

    blocked.rmdir()
    found = call("study", recipe, "--out", out, "--seeds", 2, "--grid", "stages.evaluate.rows=4")
    assert found.status == 0, found.err
    (other,) = out.glob("evaluate.rows=4-*-seed-0")
    (weights,) = [each.relative_to(out / "seed-0") for each in (out / "seed-0").rglob("adapter*.safetensors")]
    assert os.path.samefile(out / "seed-0" / weights, other / weights)
    told = json.loads((out / "study.json").read_text())
    assert told["seeds"] == [0, 1]
    assert [each["name"] for each in told["policies"]] == ["start", "dpo"]
    assert "over 2 seeds" in (out / "study.md").read_text()
    page = (out / "report.html").read_text(encoding="utf-8")
    pages = [each.parent.name for each in out.glob("*/report.html")]
    assert len(pages) == 3
    assert all(f'href="{name}/report.html"' in page for name in pages)
