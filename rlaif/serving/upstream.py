"""An OpenAI-compatible server behind this one: requests are sent on, and its pieces come back as events.

Until the first byte of an answer a request that met a full, failing or unreachable upstream is sent again, a
few times, after what `Retry-After` asks for; from then on never, for what a client has read is not taken
back. A connection is closed as soon as nobody waits for its answer. Needs `rlaif-toolkit[api]`.
"""

from __future__ import annotations

import asyncio
import random
import threading
import traceback
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import openai

from rlaif.engines.api.http import http_library
from rlaif.engines.api.wire import Malformed
from rlaif.serving.chunks import DONE, Chunks, UpstreamError, event_data, whole_body
from rlaif.serving.decoder import NotServing, QueueFull
from rlaif.serving.link import SOON, Link, Lost, model_entry
from rlaif.serving.passed import PassedJob, UpstreamSettings, pass_on
from rlaif.serving.refusal import Refusal, refusal_of
from rlaif.serving.wire import ChatRequest
from rlaif.serving.withheld import ModeratorThread, Withheld
from rlaif.serving.work import Event, Failed, Finished, Job
from rlaif.types import Message

if TYPE_CHECKING:
    from rlaif.serving.moderating import Moderation

__all__ = ["Upstream"]

Result = TypeVar("Result")

RETRIES = 2
BACKOFF = 0.25
LONGEST_WAIT = 5.0
"""Seconds of `Retry-After` that are waited for here; a longer pause is told to the client."""
LINGER = 0.5
"""Seconds in which the connection must end an answer whose last event has come."""


class Upstream:
    """Answers jobs by another server, on a thread of its own from `start` to `stop`.

    Args:
        log: Told in a line what went wrong.
        finished: Told every job that ends, however it ends.

    Raises:
        ConfigError: The environment names a proxy that is none.
    """

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        log: Callable[[str], None] = lambda line: None,
        finished: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self.limits = settings
        self._settings = settings
        self._log = log
        self._finished = finished
        self._waiting: deque[PassedJob] = deque()
        self._running: dict[PassedJob, asyncio.Task[None]] = {}
        self._lock = threading.Lock()
        self._draining = False
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._link = Link(settings)
        self._moderators = ModeratorThread(settings.queue, log)
        self._thread = threading.Thread(target=self._main, name="rlaif-upstream", daemon=True)

    # For other threads

    def start(self) -> None:
        """Begin to answer; the upstream need not be there yet."""
        self._thread.start()
        self._ready.wait()

    @property
    def alive(self) -> bool:
        """Whether requests are taken; the upstream is not asked."""
        return self._thread.is_alive() and not self._draining

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def rows(self) -> int:
        """Completions that are open at the upstream."""
        with self._lock:
            return sum(job.samples for job in self._running)

    def job(
        self,
        body: ChatRequest,
        messages: Sequence[Message],
        emit: Callable[[Event], None],
        *,
        most_tokens: int,
        moderation: Moderation | None = None,
    ) -> PassedJob:
        """What a request asks of the upstream; see `pass_on`.

        Args:
            moderation: Decides what of the answer may go out.

        Raises:
            Refusal: It may not be sent on.
        """
        self.check(body)
        job = pass_on(body, messages, emit, most_tokens=most_tokens)
        if moderation is not None:
            job.moderation = moderation
            job.withheld = Withheld(job, moderation)
        return job

    def check(self, body: ChatRequest) -> None:
        """Refuse a model that may not be asked for.

        Raises:
            Refusal: It is another than those that were named.
        """
        known = self._settings.models
        if known and body.model not in known:
            what = f"there is no model {body.model!r} here; there are {', '.join(known)}"
            raise Refusal(404, what, param="model", code="model_not_found")

    @property
    def names(self) -> tuple[str, ...]:
        """The models that may be asked for, as far as they were named."""
        return self._settings.models

    def call(self, work: Callable[[], Result], *, urgent: bool = False) -> Future[Result]:
        """Have `work` done on a thread of its own, one at a time.

        Raises:
            QueueFull: As much waits as may.
            NotServing: No work is taken any more.
        """
        return self._moderators.call(work, urgent=urgent)

    def wake(self) -> None:
        """A judge has answered: let what was held for it go, or block it."""
        self._moderators.wake()

    async def models(self) -> list[dict[str, Any]]:
        """What `GET /v1/models` lists: the upstream's models, those that may be asked for.

        Raises:
            Refusal: The upstream does not say.
        """
        if not self.alive:
            raise Refusal(503, "the server is stopping", retry_after=SOON)
        asked = asyncio.run_coroutine_threadsafe(self._link.models(), self._loop)
        try:
            listed = await asyncio.wrap_future(asked)
        except Lost as lost:
            raise refusal_of(lost.failed) from None
        names = self._settings.models
        known = {model["id"]: model for model in listed}
        return [known.get(name, model_entry({"id": name})) for name in names] if names else listed

    def submit(self, *jobs: Job) -> None:
        """Put the jobs of one request into the queue, where they need one place together.

        Raises:
            QueueFull: As many wait as may.
            NotServing: No job is taken any more.
        """
        passed = [job for job in jobs if isinstance(job, PassedJob)]
        with self._lock:
            if not self.alive:
                raise NotServing("the server is stopping")
            if len(self._waiting) >= self._settings.queue:
                raise QueueFull(len(self._waiting), SOON)
            self._waiting.extend(passed)
        self._loop.call_soon_threadsafe(self._begin)

    def cancel(self, job: Job) -> None:
        """Stop waiting for a job's answer, and close its connection. Does nothing to one that is done."""
        assert isinstance(job, PassedJob)
        if job.withheld is not None:
            self._moderators.drop(job.withheld)
        with self._lock:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                return
            task = self._running.get(job)
            if task is not None:
                self._loop.call_soon_threadsafe(task.cancel)

    def drain(self) -> None:
        """Take no more jobs, and go on with those there are."""
        self._draining = True

    def stop(self, *, timeout: float = 10.0) -> None:
        """End the thread; jobs that are not done fail."""
        self._draining = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(timeout)
        self._moderators.close(_stopped())

    # On the loop's thread

    def _main(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        async with self._link:
            self._ready.set()
            greeting = asyncio.create_task(self._greet())
            await self._stopping.wait()
            greeting.cancel()
            with self._lock:
                left, tasks = list(self._waiting), list(self._running.values())
                self._waiting.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for job in left:
                self._end(job, _stopped())

    async def _greet(self) -> None:
        """Tell who is there."""
        try:
            names = [model["id"] for model in await self._link.models()]
        except Lost as lost:
            self._log(f"{self._settings.url} does not tell its models yet: {lost}")
        else:
            self._log(f"{self._settings.url} serves {', '.join(names)}")

    def _begin(self) -> None:
        """Send on what fits, in the order in which it came."""
        with self._lock:
            rows = sum(job.samples for job in self._running)
            while self._waiting and (not rows or rows + self._waiting[0].samples <= self._settings.rows):
                job = self._waiting.popleft()
                rows += job.samples
                task = self._running[job] = asyncio.create_task(self._answer(job))
                task.add_done_callback(partial(self._done, job))

    def _done(self, job: PassedJob, task: asyncio.Task[None]) -> None:
        with self._lock:
            del self._running[job]
        if job.cancelled:
            self._finished(job)
        elif task.cancelled():
            self._end(job, _stopped())
        elif (error := task.exception()) is None:
            assert job.used is not None
            self._end(job, job.used)
        elif isinstance(error, Lost):
            self._end(job, error.failed)
        else:  # a defect of ours
            self._log("".join(traceback.format_exception(error)).strip())
            self._end(job, Failed("the server failed; its log says more"))
        self._begin()

    def _end(self, job: PassedJob, event: Finished | Failed) -> None:
        self._finished(job)  # first: a client that has its answer finds it counted
        if job.withheld is None:
            job.emit(event)
            return
        with suppress(NotServing):
            self._moderators.tell(job.withheld, event)

    async def _answer(self, job: PassedJob) -> None:
        """Send a job on, and tell its pieces; again where it got no answer yet and may be sent again.

        Raises:
            Lost: There is no answer, or no whole one.
        """
        for attempt in range(RETRIES + 1):
            try:
                async with self._link.asked("POST", "/chat/completions", job.body) as response:
                    await self._tell(job, response)
                return
            except Lost as lost:
                wait = max(lost.pause, BACKOFF * 2**attempt * random.uniform(1, 2))
                if not lost.again or attempt == RETRIES or wait > LONGEST_WAIT:
                    self._log(f"the upstream did not answer a request: {lost}")
                    raise
            await asyncio.sleep(wait)

    async def _tell(self, job: PassedJob, response: Any) -> None:
        """Pass the pieces of an answer on.

        Raises:
            Lost: It is not whole.
        """
        chunks = Chunks(job.samples)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        read = event_data if kind == "text/event-stream" else _whole
        try:
            async with aclosing(response.aiter_bytes()) as raw, aclosing(read(raw)) as pieces:
                async for data in pieces:
                    if data.strip() == DONE:
                        break
                    for told in chunks.read(data):
                        job.first_token = job.first_token or self._loop.time()
                        if job.withheld is None:
                            job.emit(told)
                        else:
                            await asyncio.wrap_future(self._moderators.tell(job.withheld, told))
                job.used = chunks.finish()
                await _read_out(raw)
        except Malformed as error:
            raise Lost(502, f"the upstream makes no sense: {error.reason}") from None
        except UpstreamError as error:
            said = self._link.told(str(error)) or "it does not say why"
            raise Lost(502, f"the upstream failed: {said}") from None


async def _whole(pieces: AsyncIterator[bytes]) -> AsyncGenerator[str]:
    """The body of a server that does not stream, in one piece."""
    yield (await whole_body(pieces)).decode("utf-8", "replace")


async def _read_out(pieces: AsyncIterator[bytes]) -> None:
    """Read what follows the last event, mostly nothing: else the connection could not be used again."""
    with suppress(TimeoutError, http_library().HTTPError, openai.OpenAIError):
        async with asyncio.timeout(LINGER):
            async for _ in pieces:
                pass


def _stopped() -> Failed:
    return Failed("the server stopped before this request was done", status=503, retry_after=SOON)
