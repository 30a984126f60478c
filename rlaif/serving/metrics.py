"""Counts and times of the server, in the text that Prometheus reads."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping

from rlaif.serving.histogram import Histogram
from rlaif.serving.work import Job

__all__ = ["Metrics"]


class Metrics:
    """What happened since the server started; may be told by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._counts: Counter[str] = Counter()
        self._prompt_tokens = self._completion_tokens = self._cancelled = 0
        self._first_token, self._seconds = Histogram(), Histogram()

    def answered(self, path: str, status: int) -> None:
        """Count an HTTP request."""
        with self._lock:
            self._requests[path, status] += 1

    def count(self, name: str) -> None:
        """Add one to a count of that name."""
        with self._lock:
            self._counts[name] += 1

    def finished(self, job: Job) -> None:
        """Count a job that has ended."""
        now = time.monotonic()
        with self._lock:
            self._prompt_tokens += job.prompt_tokens
            self._completion_tokens += job.tokens
            self._cancelled += job.cancelled
            if job.first_token:
                self._first_token.observe(job.first_token - job.created)
            if not job.cancelled:
                self._seconds.observe(now - job.created)

    def text(self, gauges: Mapping[str, int]) -> str:
        """All of it.

        Args:
            gauges: What holds at this moment, by name.
        """
        with self._lock:
            lines = ["# TYPE rlaif_requests_total counter"]
            lines += [
                f'rlaif_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._requests.items())
            ]
            for name, value in (
                ("rlaif_prompt_tokens_total", self._prompt_tokens),
                ("rlaif_completion_tokens_total", self._completion_tokens),
                ("rlaif_cancelled_total", self._cancelled),
                *sorted(self._counts.items()),
            ):
                lines += [f"# TYPE {name} counter", f"{name} {value}"]
            for name, value in gauges.items():
                lines += [f"# TYPE {name} gauge", f"{name} {value}"]
            for name, times in (
                ("rlaif_first_token_seconds", self._first_token),
                ("rlaif_completion_seconds", self._seconds),
            ):
                lines += [f"# TYPE {name} histogram", *times.lines(name)]
        return "\n".join(lines) + "\n"
