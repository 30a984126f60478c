"""Helpers of the tests of the whole program: call its command line, read its files, and start runs that are
going to be killed.

The engines here are scripted. `swift` and `slow` give the same answers under the same name, so a run that was
killed under `slow` can be compared, byte by byte, with an undisturbed one under `swift`. Both note every
question they answer in the file that the variable `ASKED` names.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from rlaif.cli.main import main
from rlaif.digest import digest
from rlaif.engines.base import GenerationRequest, LabelRequest
from rlaif.engines.scripted import ScriptedEngine, pseudo_answer, pseudo_labels

__all__ = [
    "ASKED",
    "BATCH",
    "ROOT",
    "Said",
    "asked_of",
    "call",
    "child",
    "environment",
    "processes",
    "rows",
    "slow",
    "swift",
    "wait_for",
]

ROOT = Path(__file__).resolve().parents[1]
ASKED = "RLAIF_TEST_ASKED"
BATCH = 4
"""Answers that the engines here give at a time."""
PAUSE = 0.002


class Said(NamedTuple):
    """What a command said, and its exit status."""

    status: int
    out: str
    err: str


def call(*arguments: object) -> Said:
    """Run `rlaif ARGUMENTS…` in this process, as its entry point does."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return Said(int(str(stopped.value.code)), out.getvalue(), err.getvalue())


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def environment() -> dict[str, str]:
    """For subprocesses: the package of this checkout, this folder's helpers, and no network."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "HF_HUB_OFFLINE": "1",
    }


# Engines ----------------------------------------------------------------------------------------------------


def swift() -> ScriptedEngine:
    """Answers at once."""
    return _engine(0.0)


def slow() -> ScriptedEngine:
    """Gives the same answers, and takes its time."""
    return _engine(PAUSE)


def asked_of(path: Path) -> list[str]:
    """A digest of every question that was answered, in order, once for each time."""
    return path.read_text().split() if path.exists() else []


def _engine(pause: float) -> ScriptedEngine:
    def generate(request: GenerationRequest) -> str:
        _note(request, pause)
        return pseudo_answer(request)

    def labels(request: LabelRequest) -> list[float]:
        _note(request, pause)
        return pseudo_labels(request)

    return ScriptedEngine(generate, labels, name="told", revision="1", batch_size=BATCH)


def _note(request: GenerationRequest | LabelRequest, pause: float) -> None:
    time.sleep(pause)
    if path := os.environ.get(ASKED):
        with open(path, "a", encoding="ascii") as file:
            file.write(digest(request.identity()) + "\n")


# Processes --------------------------------------------------------------------------------------------------


class Processes:
    """Starts commands in processes of their own, quickly: they are forked from a server that has imported
    torch once."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["spine", "killing", "rlaif.cli.execute", "rlaif.pipeline.run"])

    def start(
        self, *arguments: object, said: Path, asked: Path | None = None, largest_file: int | None = None
    ) -> ForkServerProcess:
        """Start `rlaif ARGUMENTS…`; its output goes to the file `said`.

        Args:
            asked: Where scripted engines note what they were asked.
            largest_file: Bytes that no file can grow beyond.
        """
        process = self.context.Process(
            target=child,
            args=([str(argument) for argument in arguments], str(said), str(asked or ""), largest_file),
            daemon=True,
        )
        process.start()
        return process


def child(arguments: list[str], said: str, asked: str, largest_file: int | None) -> None:
    """What such a process does."""
    with open(said, "w", buffering=1, encoding="utf-8") as file:
        sys.stdout = sys.stderr = file
        os.environ[ASKED] = asked
        torch.set_num_threads(1)
        if largest_file is not None:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (largest_file, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            )
        try:
            main(arguments)
        except Exception:  # noqa: BLE001 - a defect, whatever it is: it must be seen where the command's output is looked for
            traceback.print_exc()
            sys.exit(70)


def processes() -> Processes:
    """The starter of processes; the server behind it is shared."""
    return Processes()


def wait_for(condition: Any, *, alive: ForkServerProcess | None = None, seconds: float = 120.0) -> None:
    """Wait until `condition()` is true, or the process has ended."""
    deadline = time.monotonic() + seconds
    while not condition() and (alive is None or alive.is_alive()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
