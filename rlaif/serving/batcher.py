"""Continuous batching: one thread owns the model and steps whatever rows there are.

Requests wait in a bounded queue, in the order in which they came. Between two steps those that fit join the
rows that are being sampled, and rows that are done leave. Rows of one role are stepped together; where
several roles have rows, they take turns of a few steps. A request that does not fit yet is not passed by a
later one, so that a large one is not starved by small ones.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rlaif.engines.chat import ChatFormat, end_tokens
from rlaif.engines.decoding import cache_tokens
from rlaif.errors import RlaifError
from rlaif.models.heap import give_back
from rlaif.models.shared_base import REFERENCE, SharedBase
from rlaif.reward.model import RewardModel
from rlaif.serving.decoder import NotServing, QueueFull
from rlaif.serving.lane import Lane
from rlaif.serving.work import Delta, Ended, Failed, Finished, Job, Row, best_row, emit_blocked, start_rows
from rlaif.types import Message

__all__ = ["Batcher", "Limits", "NotServing", "QueueFull"]

T = TypeVar("T")

TURN = 8
"""Steps of one role before another with rows has its turn."""
CPU_ROWS, GPU_ROWS = 32, 256
CPU_PREFILL, GPU_PREFILL = 2_048, 32_768
"""Prompt tokens, padding included, that are read between two steps; others wait for the next."""
CPU_CACHE_BYTES = 1 << 30
TRIM = 128
"""Jobs after which freed memory is given back to the system: caches of ever other lengths leave holes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is held at a time.

    Attributes:
        rows: Completions sampled side by side.
        queue: Requests that wait.
        cache: Tokens in the key-value caches of all rows.
        prefill: Prompt tokens, padding included, that are read between two steps.
    """

    rows: int
    queue: int
    cache: int
    prefill: int

    @classmethod
    def of(cls, base: SharedBase, *, rows: int | None = None, queue: int = 64) -> Limits:
        """Those that fit the device of `base`."""
        on_gpu = base.device.type == "cuda"
        return cls(
            rows=rows or (GPU_ROWS if on_gpu else CPU_ROWS),
            queue=queue,
            cache=cache_tokens(base.model, cpu_bytes=CPU_CACHE_BYTES),
            prefill=GPU_PREFILL if on_gpu else CPU_PREFILL,
        )


class Batcher:
    """Answers jobs, on a thread of its own from `start` to `stop`.

    Args:
        reward: Scores the samples of jobs of which only the best is wanted; on the same base.
        layers: Whose hidden states the moderation of answers reads.
        log: Told in a line what went wrong.
        finished: Told every job that ends, however it ends.
        broken: Called when the thread ends though nobody stopped it, by a defect of ours.
    """

    def __init__(
        self,
        base: SharedBase,
        limits: Limits,
        *,
        reward: RewardModel | None = None,
        layers: Sequence[int] = (),
        log: Callable[[str], None] = lambda line: None,
        finished: Callable[[Job], None] = lambda job: None,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        self.base = base
        self.limits = limits
        self.reward = reward
        self.form = ChatFormat(base.tokenizer, name=base.name)
        self._log = log
        self._finished = finished
        self._broken = broken
        self._ends = end_tokens(base.model, self.form)
        self._lanes = {role: Lane(base, role, self._ends, layers) for role in (REFERENCE, *base.roles)}
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._draining = self._stopping = self._ended = False
        self._seconds_each = 1.0
        self._since_trim = 0
        self._thread = threading.Thread(target=self._run, name="rlaif-decoder", daemon=True)

    # For other threads

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the decoder runs and takes requests."""
        return self._thread.is_alive() and not self._draining

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def rows(self) -> int:
        """Completions that are being sampled."""
        return sum(len(lane.rows) for lane in self._lanes.values())

    def submit(self, *jobs: Job) -> None:
        """Put the jobs of one request into the queue, where they need one place together.

        Raises:
            QueueFull: As many wait as may.
            NotServing: No job is taken any more.
        """
        with self._changed:
            if not self.alive:
                raise NotServing("the server is stopping" if self._draining else "the decoder has ended")
            if len(self._waiting) >= self.limits.queue:
                raise QueueFull(len(self._waiting), self._retry_after())
            self._waiting.extend(jobs)
            self._changed.notify()

    def call(self, work: Callable[[], T], *, urgent: bool = False) -> Future[T]:
        """Have `work` done on the decoder's thread, between two steps; what it raises is the future's.

        Args:
            urgent: Take it however many wait, and while the server stops: rows being sampled need it.

        Raises:
            QueueFull: As many calls wait as requests may.
            NotServing: No work is taken any more.
        """
        done: Future[T] = Future()
        with self._changed:
            refused = self._stopping or not self._thread.is_alive()
            if self._ended or (refused and not urgent):
                raise NotServing("the server is stopping" if self._draining else "the decoder has ended")
            if not urgent and len(self._calls) >= self.limits.queue:
                raise QueueFull(len(self._calls), self._retry_after())
            self._calls.append((work, done))
            self._changed.notify()
        return done

    def wake(self) -> None:
        """Look for work again: a judge has answered."""
        with self._changed:
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Stop working on a job; nothing more is heard of it. Does nothing to one that is done."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
            self._changed.notify()

    def drain(self) -> None:
        """Take no more jobs, and go on with those there are."""
        with self._changed:
            self._draining = True
            self._changed.notify()

    def stop(self, *, timeout: float = 10.0) -> None:
        """End the thread; jobs that are not done fail."""
        with self._changed:
            self._draining = self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _retry_after(self) -> int:
        rounds = (len(self._waiting) + 1) / self.limits.rows
        return max(1, min(60, math.ceil(rounds * self._seconds_each)))

    # On the decoder's thread

    def _run(self) -> None:
        try:
            while self._await_work():
                if self._since_trim >= TRIM:
                    self._since_trim = 0
                    give_back()
                self._do_calls()
                self._settle_judged()
                for lane in self._lanes.values():
                    if lane.rows or self._wants(lane.role):
                        self._turn(lane)
        finally:
            with self._changed:
                self._draining = self._ended = True
                left = [*self._running, *self._waiting]
                self._running, self._waiting = [], deque()
                calls, self._calls = self._calls, deque()
            for _, done in calls:
                if done.set_running_or_notify_cancel():
                    done.set_exception(NotServing("the server has stopped"))
            for job in left:
                self._end(job, Failed("the server stopped before this request was done"))
            for lane in self._lanes.values():
                lane.clear()
            if not self._stopping:
                self._broken()

    def _await_work(self) -> bool:
        """Sleep until there is something to do; False when the server stops."""
        with self._changed:
            while not (self._waiting or self._calls or self._stopping or any(map(_to_do, self._running))):
                self._changed.wait()
            return not self._stopping

    def _do_calls(self) -> None:
        """Do what other threads asked for."""
        with self._changed:
            calls, self._calls = self._calls, deque()
        for work, done in calls:
            if not done.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except (RlaifError, RuntimeError) as error:  # whoever asked has it; the rows go on
                done.set_exception(error)
            except BaseException:  # a defect of ours: nobody may wait for the answer
                done.set_exception(NotServing("the decoder has ended"))
                raise
            else:
                done.set_result(result)

    def _settle_judged(self) -> None:
        """Go on with the rows that a judge has answered about, and end jobs that waited for that alone."""
        for job in self._running:
            for row in job.rows:
                if row.hold is not None and row.hold.answered:
                    row.settle()
        self._settle_those([job for job in self._running if all(row.settled for row in job.rows)])

    def _wants(self, role: str) -> bool:
        with self._changed:
            return any(job.role == role for job in self._waiting)

    def _turn(self, lane: Lane) -> None:
        """A few steps of one role; its jobs that are done are told so."""
        try:
            with self.base.role(lane.role), self.base.held():
                for _ in range(TURN):
                    lane.leave()
                    if joining := self._admit(lane.role):
                        lane.join(joining)
                    if not lane.rows or self._stopping:
                        break
                    lane.step()
                    self._settle_plain(lane.role)
                    if self._calls:
                        break
        except RuntimeError as error:  # of torch: no memory, for one; the other lanes go on
            self._fail_lane(lane, error)
        self._settle(lane.role)

    def _admit(self, role: str) -> list[Row]:
        """Rows of the jobs of `role` that may join now."""
        taken: list[Job] = []
        with self._changed:
            live = [row for lane in self._lanes.values() for row in lane.rows]
            held, longest = len(live), max((row.job.cost for row in live), default=0)
            width = 0
            for job in self._waiting:
                held, longest = held + job.samples, max(longest, job.cost)
                fits = held <= self.limits.rows and held * longest <= self.limits.cache
                if not fits and held > job.samples:
                    break
                if job.role != role:
                    continue
                width = max(width, len(job.ids))
                if taken and (len(taken) + 1) * width > self.limits.prefill:
                    break
                taken.append(job)
            for job in taken:
                self._waiting.remove(job)
            self._running += taken
        return [row for job in taken for row in start_rows(job, self.base.tokenizer, self.form.stops)]

    def _settle_plain(self, role: str) -> None:
        """Tell the jobs that need no scores, between two steps."""
        self._settle_those([job for job in self._done(role) if not job.best_only or job.cancelled])

    def _settle(self, role: str) -> None:
        """Tell all jobs of a role that are done."""
        self._settle_those(self._done(role))

    def _done(self, role: str) -> list[Job]:
        return [job for job in self._running if job.role == role and all(row.settled for row in job.rows)]

    def _settle_those(self, jobs: Sequence[Job]) -> None:
        self._since_trim += len(jobs)
        for job in jobs:
            self._running.remove(job)
            if not job.cancelled:
                self._seconds_each += 0.1 * (time.monotonic() - job.created - self._seconds_each)
                self._conclude(job)
            else:
                for row in job.rows:
                    row.drop()
                self._finished(job)

    def _conclude(self, job: Job) -> None:
        refused = [row for row in job.rows if row.finish == "refused"]
        if refused:
            self._end(job, Failed(refused[0].problem or "the model's output is not finite (NaN or infinity)"))
            return
        if job.best_only:
            try:
                self._choose(job)
            except (RlaifError, RuntimeError) as error:
                self._log(f"a request failed: the reward model cannot score it: {error}")
                self._end(job, Failed("the reward model cannot score the completions"))
                return
        self._end(job, Finished(prompt_tokens=len(job.ids), completion_tokens=job.tokens))

    def _choose(self, job: Job) -> None:
        """Give out the sample that the reward model prefers, of those that are not blocked."""
        assert self.reward is not None
        rows = [row for row in job.rows if row.finish != "content_filter"]
        if not rows:
            emit_blocked(job, 0, next(row.hold.blocked for row in job.rows if row.hold and row.hold.blocked))
            return
        scores = self.reward.score([_conversation(job.messages, row.text) for row in rows])
        best = best_row(rows, scores)
        row = rows[best]
        job.emit(Delta(0, row.text))
        job.emit(Ended(0, "stop" if row.finish == "stop" else "length", reward=scores[best]))

    def _end(self, job: Job, event: Finished | Failed) -> None:
        self._finished(job)  # first: a client that has its answer finds it counted
        job.emit(event)

    def _fail_lane(self, lane: Lane, error: RuntimeError) -> None:
        """End the unfinished jobs of a lane whose step failed."""
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        self._log(f"a step of {lane.role} failed: {first}")
        lane.clear()
        for job in [job for job in self._running if job.role == lane.role]:
            self._running.remove(job)
            self._end(job, Failed("the model failed while it was answering"))


def _to_do(job: Job) -> bool:
    """Whether the decoder can go on with a job; it may also wait for a judge alone."""
    if job.cancelled or all(row.settled for row in job.rows):
        return True
    return any(row.live or (row.hold is not None and row.hold.answered) for row in job.rows)


def _conversation(messages: Sequence[Message], text: str) -> list[Message]:
    """The messages with the completion, which continues the assistant's text where that is open."""
    if messages and messages[-1].role == "assistant":
        return [*messages[:-1], replace(messages[-1], content=messages[-1].content + text)]
    return [*messages, Message("assistant", text)]
