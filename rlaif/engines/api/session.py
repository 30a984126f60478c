"""A connected engine: the loop that asks its servers. Needs `rlaif-toolkit[api]`; see `rlaif.engines.openai`.

The loop runs on a thread of its own, so that answers keep coming while the caller works on one, and so that
it also works where a loop is running already (a notebook).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from concurrent.futures import wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Generic, Literal, TypeVar

from rlaif.apart import apart
from rlaif.engines.api.api_key import ApiKey
from rlaif.engines.api.asker import Asker
from rlaif.engines.api.calls import Rejected, Transient
from rlaif.engines.api.costs import CostLimitError, Ledger
from rlaif.engines.api.handshake import Handshake, no_such_model, shake_hands
from rlaif.engines.api.label_reading import from_top, from_votes
from rlaif.engines.api.label_tokens import LabelTokens
from rlaif.engines.api.servers import QueuedWork, Server, plan_work
from rlaif.engines.api.settings import ApiSettings
from rlaif.engines.base import EngineCard, Generation, GenerationRequest, LabelReading, LabelRequest
from rlaif.errors import ModelError, RlaifError

__all__ = ["Session", "connect"]

Request = TypeVar("Request", GenerationRequest, LabelRequest)
Answer = TypeVar("Answer", Generation, LabelReading)

TRANSIENT = "transient:"


class Session:
    """Asks one model; the three methods that ask are given to `stream`."""

    def __init__(
        self,
        handshake: Handshake,
        open_asker: Callable[[], Asker],
        *,
        settings: ApiSettings,
        log: Callable[[str], None],
    ) -> None:
        self._form = handshake.form
        self._tokens = LabelTokens(handshake.form.model)
        self._open_asker = open_asker
        self._settings = settings
        self._log = log
        self._told: set[str] = set()
        self.turn = Lock()
        """One loop at a time talks to the servers: what they share waits on the loop that it was made in."""
        self.card: EngineCard = handshake.card

    async def generation(self, asker: Asker, request: GenerationRequest, home: int) -> Generation:
        """One completion."""
        reply = await asker.complete(self._form.generation(request), home=home)
        choice = reply.choices[0]
        if choice.finish == "content_filter":
            raise Rejected("content_filter")
        if choice.missing:
            raise Rejected(choice.missing)
        text = choice.text
        for stop in request.sampling.stop:
            text = text.partition(stop)[0]
        finish: Literal["stop", "length"] = "length" if choice.finish == "length" else "stop"
        return Generation(text=text, finish=finish, tokens=reply.counts.get("completion", 0))

    async def reading(self, asker: Asker, request: LabelRequest, home: int) -> LabelReading:
        """One reading, by log-probabilities or by votes."""
        if not self._form.top:
            return await self._votes(asker, request, home)
        tokens = await self._tokens.of(asker, request.labels) if self._form.by_id else ()
        reply = await asker.complete(self._form.label(request, tokens=tokens), home=home)
        # The share is the reader's matter: what is journaled must not depend on a setting of the judge.
        return from_top(
            reply.choices[0].top, request.labels, tokens=reply.counts.get("prompt", 0), least_share=0.0
        )

    async def _votes(self, asker: Asker, request: LabelRequest, home: int) -> LabelReading:
        """A server that gives fewer answers than it was asked for (many ignore `n`) is asked for the rest."""
        texts: list[str] = []
        tokens = 0
        while (missing := self._form.votes - len(texts)) > 0:
            reply = await asker.complete(self._form.vote(request, len(texts), missing), home=home)
            texts += [choice.text for choice in reply.choices[:missing]]
            tokens = reply.counts.get("prompt", 0)
        return from_votes(texts, request.labels, tokens=tokens)

    def stream(
        self,
        requests: Sequence[Request],
        done: Container[int],
        *,
        ask: Callable[[Asker, Request, int], Awaitable[Answer]],
        failed: Callable[[str], Answer],
    ) -> Iterator[dict[int, Answer]]:
        """Ask all `requests` that are not in `done`; yields answers as they come.

        Args:
            ask: `generation` or `reading`.
            failed: Makes the result of a request that got no answer, from its reason.
        """
        todo = [index for index in range(len(requests)) if index not in done]
        if not todo:
            return
        run: _Run[Request, Answer] = _Run(self, requests, todo, ask=ask, failed=failed)
        end = apart(run.main, name="rlaif-openai")
        try:
            while answers := run.arrived():
                yield answers
        finally:
            run.stop()
            wait((end,))
        end.result()
        if run.error is not None:
            raise run.error

    def tell_once(self, reason: str, detail: str) -> None:
        """Log the server's own words for a reason, the first time that it is met."""
        if detail and reason not in self._told:
            self._told.add(reason)
            self._log(f"{reason}: {detail}")


class _Run(Generic[Request, Answer]):
    """One call of `stream`: workers that take requests until none is left or something stops them all."""

    def __init__(
        self,
        session: Session,
        requests: Sequence[Request],
        todo: Sequence[int],
        *,
        ask: Callable[[Asker, Request, int], Awaitable[Answer]],
        failed: Callable[[str], Answer],
    ) -> None:
        self._answers: SimpleQueue[tuple[int, Answer] | None] = SimpleQueue()
        self.error: RlaifError | None = None
        self._session = session
        self._requests: Sequence[Request] = requests
        self._todo = todo
        self._ask: Callable[[Asker, Request, int], Awaitable[Answer]] = ask
        self._failed: Callable[[str], Answer] = failed
        self._loop = asyncio.new_event_loop()
        self._workers: list[asyncio.Task[None]] = []
        self._stopped = False
        self._lost_in_a_row = 0

    def main(self) -> None:
        """Run to the end; on the loop's own thread."""
        try:
            with self._session.turn, asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._all())
        finally:
            self._answers.put(None)

    def arrived(self) -> dict[int, Answer]:
        """The answers that have come, of which there is at least one; none at the end. Waits."""
        arrived: dict[int, Answer] = {}
        with suppress(Empty):
            while (answer := self._answers.get(block=not arrived)) is not None:
                arrived[answer[0]] = answer[1]
            if arrived:
                self._answers.put(None)  # the end is told again, alone
        return arrived

    def stop(self) -> None:
        """End it from another thread; after the end, nothing happens."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._cancel)

    async def _all(self) -> None:
        async with self._session._open_asker() as asker:
            work = plan_work(self._requests, self._todo, [server.url for server in asker.servers])
            each = min(asker.settings.concurrency, len(self._todo))
            homes = [home for home in range(len(asker.servers)) for _ in range(each)]
            self._workers = [asyncio.create_task(self._work(asker, work, home)) for home in homes]
            if self._stopped:
                self._cancel()
            for result in await asyncio.gather(*self._workers, return_exceptions=True):
                if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                    raise result

    def _cancel(self) -> None:
        self._stopped = True
        for worker in self._workers:
            worker.cancel()

    async def _work(self, asker: Asker, work: QueuedWork, home: int) -> None:
        while not self._stopped and (index := work.take(home)) is not None:
            try:
                answer = await self._answer(asker, self._requests[index], home)
            except CostLimitError as error:
                # What is in flight is paid for: let it arrive.
                self.error, self._stopped = self.error or error, True
            except RlaifError as error:
                self.error = self.error or error
                self._cancel()
            else:
                self._answers.put((index, answer))

    async def _answer(self, asker: Asker, request: Request, home: int) -> Answer:
        """The answer, or the result that says why there is none.

        Raises:
            RlaifError: No request can be answered any more.
        """
        try:
            answer: Answer = await self._ask(asker, request, home)
        except Transient as error:
            self._lost_in_a_row += 1
            if self._lost_in_a_row >= asker.settings.give_up_after:
                raise ModelError(
                    f"{self._lost_in_a_row} requests in a row got no answer (the last: {error.reason})",
                    where=", ".join(server.url for server in asker.servers),
                    remedy="check the server and run the same command again: what was answered so far is "
                    "kept",
                ) from None
            return self._failed(TRANSIENT + error.reason)
        except Rejected as error:
            if error.status == 404:
                raise no_such_model(asker, error) from None
            self._session.tell_once(error.reason, error.detail)
            answer = self._failed(error.reason)
        self._lost_in_a_row = 0
        return answer


def connect(
    model: str,
    servers: Sequence[Server],
    *,
    key: ApiKey,
    settings: ApiSettings,
    ledger: Ledger,
    log: Callable[[str], None],
) -> Session:
    """Find out what the servers can do; see `handshake`.

    Raises:
        ModelError: They cannot be used.
    """

    def open_asker() -> Asker:
        return Asker(servers, key=key, settings=settings, ledger=ledger)

    async def greet() -> Handshake:
        async with open_asker() as asker:
            return await shake_hands(asker, model, log)

    handshake = apart(lambda: asyncio.run(greet()), name="rlaif-openai").result()
    return Session(handshake, open_asker, settings=settings, log=log)
