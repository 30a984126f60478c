"""Does everything that computes give on this machine's GPU what it gives on its processor, and how fast?

    python scripts/check_gpu.py [--model smollm2-135m] [--out gpu-check]

Runs one small recipe of all stages three times: on the CPU and on the GPU in float32, whose labels, samples
and adapters are held beside each other, and on the GPU in bfloat16, for seconds and memory. Exit status 1 if
a label differs by more than 0.02 nats, or an adapter by more than 1e-3.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

RECIPE = """
name: gpu-check
model: {model}
device: {device}
dtype: {dtype}
constitution: warmth
stages:
  - {{stage: sample, prompts: "builtin:everyday", limit: 12, k: 4, max_new_tokens: 32}}
  - {{stage: label}}
  - {{stage: reward, keep: lora}}
  - {{stage: best_of_k, name: best-of-k, limit: 8, k: 4, max_new_tokens: 32}}
  - {{stage: ppo, limit: 8, steps: 3, episodes: 16, max_new_tokens: 32}}
  - {{stage: grpo, limit: 8, steps: 3, episodes: 16, samples_per_prompt: 4, max_new_tokens: 32}}
  - {{stage: dpo}}
  - {{stage: evaluate, limit: 8, samples: 2, max_new_tokens: 32}}
"""
MOST_LABEL, MOST_WEIGHT = 0.02, 1e-3


def run(model: str, device: str, dtype: str, out: Path) -> Path:
    """Run the recipe; the run's folder."""
    folder = out / f"{device}-{dtype}"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model, device=device, dtype=dtype))
    command = [sys.executable, "-m", "rlaif", "run", str(recipe), "--out", str(folder / "run")]
    with (folder / "log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return folder / "run"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def compare(cpu: Path, gpu: Path) -> bool:
    """Print how far the two are from each other; whether it is near enough."""
    mine, theirs = (rows(run / "sample" / "completions.jsonl") for run in (cpu, gpu))
    same = sum(a["completion"] == b["completion"] for a, b in zip(mine, theirs, strict=True))
    print(f"sample: {same} of {len(mine)} completions are the same")
    labels = [
        {row["id"]: row["log_odds"] for row in rows(run / "label" / "preferences.jsonl")}
        for run in (cpu, gpu)
    ]
    shared = labels[0].keys() & labels[1].keys()
    # A pair whose completions differ is another pair; its id is not.
    furthest = max(abs(abs(labels[0][id]) - abs(labels[1][id])) for id in shared)
    print(f"label: {len(shared)} labels, at most {furthest:.2g} nats apart")
    near = same < len(mine) or furthest <= MOST_LABEL
    for name in ("reward/model/adapter-0", "best-of-k/adapter", "ppo/adapter", "grpo/adapter", "dpo/adapter"):
        a, b = (load_file(run / name / "adapter_model.safetensors") for run in (cpu, gpu))
        apart = max(float((a[key] - b[key]).abs().max()) for key in a)
        print(f"{name}: weights at most {apart:.2g} apart")
        near = near and (same < len(mine) or apart <= MOST_WEIGHT)
    return near


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"))
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this machine has no GPU that torch can use")
    print(torch.cuda.get_device_name(), torch.__version__)
    cpu = run(chosen.model, "cpu", "float32", chosen.out)
    gpu = run(chosen.model, "cuda", "float32", chosen.out)
    near = compare(cpu, gpu)
    fast = run(chosen.model, "cuda", "bfloat16", chosen.out)
    print(f"{'stage':12} {'cpu fp32':>10} {'gpu fp32':>10} {'gpu bf16':>10}   peak of bf16")
    for manifest in sorted(fast.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime):
        found = [
            json.loads((run / manifest.parent.name / "manifest.json").read_text()) for run in (cpu, gpu, fast)
        ]
        seconds = " ".join(f"{each['seconds']:>9.1f}s" for each in found)
        print(f"{manifest.parent.name:12} {seconds}   {found[2]['peak_bytes'] / (1 << 20):,.0f} MiB")
    sys.exit(0 if near else 1)


if __name__ == "__main__":
    main()
