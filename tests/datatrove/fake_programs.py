"""Stand-ins for the programs that datatrove starts, as little of them as it needs.

`vllm serve MODEL --port N …` serves it; `sbatch … FILE` runs a job script at once, a task after the other;
`scontrol show hostnames …` knows one machine.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from misbehaving import MisbehavingServer
from spine import environment

__all__ = ["install"]


def install(folder: Path) -> dict[str, str]:
    """Put the programs into `folder`, and an empty package `vllm`, which datatrove looks for; returns the
    environment in which they are found."""
    packages = folder / "packages"
    for file, text in (
        ("vllm/__init__.py", ""),
        ("vllm-0.dist-info/METADATA", "Metadata-Version: 2.1\nName: vllm\nVersion: 0\n"),
    ):
        (packages / file).parent.mkdir(parents=True)
        (packages / file).write_text(text)
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        program.chmod(0o755)
    around = environment()
    return around | {
        "PATH": os.pathsep.join([str(folder), str(Path(sys.executable).parent), around["PATH"]]),
        "PYTHONPATH": os.pathsep.join([around["PYTHONPATH"], str(packages)]),
        "VLLM_COMPILE_LOCK_DIR": str(folder),
    }


def vllm(arguments: list[str]) -> None:
    """Serve until the process is ended."""
    port = int(arguments[arguments.index("--port") + 1])
    with MisbehavingServer(models=[{"id": arguments[1]}], port=port):
        signal.pause()


def sbatch(arguments: list[str]) -> None:
    """Run every task of a job array; one that only merges statistics is left out."""
    script = Path(arguments[-1]).read_text(encoding="utf-8")
    array = re.search(r"#SBATCH --array=(\d+)-(\d+)", script)
    if array and "launch_pickled_pipeline" in script:
        for task in range(int(array[1]), int(array[2]) + 1):
            where = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "localhost", "RUN_OFFSET": "0"}
            subprocess.run(["bash", arguments[-1]], env=os.environ | where, check=True, stdout=sys.stderr)
    print("Submitted batch job 1")


def scontrol(arguments: list[str]) -> None:
    """Name the machines of a job."""
    print("localhost")


PROGRAMS = {"vllm": vllm, "sbatch": sbatch, "scontrol": scontrol}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2:])
