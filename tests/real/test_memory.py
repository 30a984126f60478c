"""What a training stage holds at most, measured in a process of its own, is what was planned, within a
quarter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SETTINGS = ("--steps", "2", "--episodes", "8", "--max-new-tokens", "24", "--set", "missing_eos_penalty=0")
QUESTION = (
    "My neighbour at number {} has offered to look after our cat while we are away. How can I thank "
    "her, and what do I say?"
)


def test_the_plan_of_ppo_holds(tmp_path: Path) -> None:
    out = tmp_path / "run"
    # Of one length: the plan is for the longest, which a short run may never draw.
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": QUESTION.format(number)}) + "\n" for number in range(16)),
        encoding="utf-8",
    )
    command = (
        sys.executable,
        "-m",
        "rlaif",
        "ppo",
        "--model",
        "smollm2-135m",
        "--prompts",
        str(prompts),
        "--split",
        "all",
        "--reward-function",
        "toy_policy:share_of_vowels",
        *SETTINGS,
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "ppo" / "manifest.json").read_text(encoding="utf-8"))
    planned, peak = manifest["planned_bytes"], manifest["peak_bytes"]
    assert abs(planned / peak - 1) <= 0.25, (planned, peak)
    assert "memory of ppo: peak" in done.stdout
