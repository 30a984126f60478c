"""Runs of `rlaif` in two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

__all__ = ["KILLED_ONCE", "PPO", "RAISES", "TESTS", "run_in_two", "same_weights", "write_recipe"]

TESTS = Path(__file__).parent
PPO = """
name: ppo
model: {model}
dtype: float32
stages:
  - stage: ppo
    limit: 5
    steps: 4
    episodes: 6
    value: adapter
    max_new_tokens: 6
    lora_rank: 2
    checkpoint_every: 1
    reward: {{own: {{kind: function, function: "{function}"}}}}
"""
KILLED_ONCE = """
import os, signal
from pathlib import Path

calls = []

def reward(prompt, completion):
    calls.append(1)
    if len(calls) == 17 and not Path("killed").exists():  # in the third step
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return len(completion.text) / 10
"""
RAISES = """
def reward(prompt, completion):
    raise ValueError("no reward today")
"""


def run_in_two(recipe: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """`rlaif run` in two processes; the working directory is the recipe's folder."""
    paths = [str(TESTS.parent), str(TESTS), str(recipe.parent)]
    return subprocess.run(
        [sys.executable, "-m", "rlaif", "run", str(recipe), "--processes", "2", "--out", str(out)],
        cwd=recipe.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write_recipe(folder: Path, text: str, **values: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text.format(**values))
    return path


def same_weights(one: Path, two: Path) -> None:
    mine, theirs = load_file(one), load_file(two)
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=1e-5)
