"""Runs in processes of their own: started, watched by what they have finished, ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from rlaif.errors import RunError
from rlaif.progress import Progress
from rlaif.runs.disk import run_errors
from rlaif.runs.run import read_run

__all__ = ["Child", "Children", "Ended"]

LOOK_SECONDS = 0.5
"""Between two looks at what a run has finished."""
PATIENCE_SECONDS = 20.0
"""How long an interrupted run may take to put away its work."""


class Child(NamedTuple):
    """A command `rlaif WORDS`, the file that gets what it prints, and the folder of its run."""

    words: list[str]
    log: Path
    folder: Path


class Ended(NamedTuple):
    """How a process ended: its exit status, why in a line, after how long."""

    status: int
    why: str
    seconds: float


class Children:
    """The processes of a study; left by an error or an interruption, it ends those that still run.

    Args:
        threads: How many run side by side; they share the processors, unless `OMP_NUM_THREADS` is set.
    """

    def __init__(self, *, threads: int) -> None:
        share = max(1, (os.cpu_count() or 1) // threads)
        own = {} if threads == 1 else {"OMP_NUM_THREADS": str(share)}
        self._environment = {**own, **os.environ, "PYTHONUNBUFFERED": "1"}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def run(self, child: Child, *, stages: int, progress: Progress) -> Ended:
        """Run one to its end; `progress` advances by a stage each time that one has finished."""
        started, told = time.monotonic(), 0
        with run_errors("write the log", child.log), child.log.open("ab") as log:
            process = self._start(child, log.fileno())
            while process.poll() is None:
                time.sleep(LOOK_SECONDS)
                done = min(stages, _finished(child.folder))
                progress.advance(done - told)
                told = done
        with self._lock:
            self._running.discard(process)
        progress.advance(stages - told)
        why = "" if process.returncode == 0 else _why(process.returncode, child.log)
        return Ended(process.returncode, why, time.monotonic() - started)

    def _start(self, child: Child, log: int) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._ended:
                raise RunError("the study was interrupted")
            process = subprocess.Popen(
                [sys.executable, "-m", "rlaif", *child.words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
            self._running.add(process)
        return process

    def end(self) -> None:
        """Interrupt what runs, so that it keeps what it has, and end what does not stop."""
        with self._lock:
            self._ended = True
            running = list(self._running)
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def _finished(folder: Path) -> int:
    """How many stages a run has finished; 0 before there is a run."""
    try:
        return len(read_run(folder).stages)
    except RunError:
        return 0


def _why(status: int, log: Path) -> str:
    """Why a process failed: its signal, or the error that it printed."""
    if status < 0:
        return f"it was killed by {signal.Signals(-status).name}; perhaps memory ran out"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    said = [line for line in lines if line.lower().startswith("error")]
    return (said or [line for line in lines if line] or [f"exit status {status}"])[-1]
