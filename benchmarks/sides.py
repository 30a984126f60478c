"""Two sides of a benchmark, each in a process of its own: what both are asked, and how they report."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

TEXTS = (
    "I failed my driving test today.",
    "Tell me about your morning.",
    "Write a short review of a restaurant.",
    "My neighbour plays loud music at night.",
    "Describe the city in winter.",
    "I just finished reading a long novel.",
    "What do you think of my new haircut?",
    "My flight got cancelled.",
    "Write a sentence about the sea.",
    "I have to give a speech tomorrow.",
    "My cat is ignoring me.",
    "Write a short note to a colleague.",
    "Describe a rainy day.",
    "I burned the dinner.",
    "How was the football match?",
    "I lost my keys again.",
)


def report(side: str, seconds: float, **more: Any) -> None:
    """One JSON line: seconds per step, the peak resident set in MB, and on a GPU the peak of its tensors."""
    import torch

    if torch.cuda.is_available():
        more["gpu_peak_mb"] = round(torch.cuda.max_memory_allocated() / (1 << 20))
        more["gpu"] = torch.cuda.get_device_name()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024 if sys.platform.startswith("linux") else 1 << 20
    )
    print(
        "RESULT " + json.dumps({"side": side, "seconds": round(seconds, 2), "peak_mb": round(peak), **more}),
        flush=True,
    )


def run(python: str, script: str, *arguments: str) -> dict[str, Any]:
    """What one side reports, run in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RLAIF_BENCHMARK_OUT": place}
        command = [python, script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def alternate(
    parser: argparse.ArgumentParser,
    script: str,
    ours: Callable[[argparse.Namespace], None],
    trl: Callable[[argparse.Namespace], None],
    passed: Sequence[str],
) -> None:
    """Run one side where `--side` names it, else both in turn, and print the ratios.

    Args:
        passed: Options that each side is given.
    """
    parser.add_argument("--model", default="smollm2-135m", help="alias, folder or hub id")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--alternate", type=int, default=1, help="run the pair so many times")
    parser.add_argument("--side", choices=["ours", "trl"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        return ours(chosen) if chosen.side == "ours" else trl(chosen)
    rest = [part for name in passed for part in (f"--{name}", str(getattr(chosen, name.replace("-", "_"))))]
    for _ in range(chosen.alternate):
        mine = run(sys.executable, script, "--side", "ours", "--model", chosen.model, *rest)
        print(_line("ours", mine), mine["parts"], flush=True)
        if chosen.trl_python:
            theirs = run(chosen.trl_python, script, "--side", "trl", "--model", _folder(chosen.model), *rest)
            print(_line("TRL ", theirs), flush=True)
            peak = "gpu_peak_mb" if "gpu_peak_mb" in mine else "peak_mb"
            speed, cpu, memory = (theirs[name] / mine[name] for name in ("seconds", "cpu", peak))
            print(
                f"ours is {speed:.2f}x as fast ({cpu:.2f}x by processor time) at 1/{memory:.2f} of the "
                "memory",
                flush=True,
            )
    return None


def _line(side: str, found: dict[str, Any]) -> str:
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    return (
        f"{side}: {found['seconds']:.1f} s/step ({found['cpu']:.1f} s of processor), peak "
        f"{found['peak_mb']} MB, {threads}"
        + (f", {found['tokens']} tokens" if "tokens" in found else "")
        + (f", {found['gpu_peak_mb']} MB on the {found['gpu']}" if "gpu" in found else "")
    )


def _folder(model: str) -> str:
    """The folder that TRL can open for what `model` names."""
    from rlaif.models.load import resolve

    return str(resolve(model).path)
