"""The second opinion: before an answer is blocked for a principle, a judge is asked about the exchange.

The judge is asked as in labelling, pointwise, by the principle that the answer was flagged for: its question
about the conversation and the answer so far. It is released where the good answer is the likelier one. An
answer of the judge that cannot be read, or a judge that fails, blocks.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from rlaif.apart import done_by
from rlaif.engines.base import Engine, LabelRequest
from rlaif.errors import ConfigError, RlaifError
from rlaif.judging.protocols import Pointwise, log_odds
from rlaif.prompts import PromptLibrary
from rlaif.serving.decoder import NotServing
from rlaif.serving.hold import Ask, Flag
from rlaif.serving.worker import Worker
from rlaif.types import Completion, Constitution, Message, Principle, Prompt

__all__ = ["Cascade", "Run"]

T = TypeVar("T")


class Run(Protocol):
    """Has work done on the decoder's thread, between two steps."""

    def __call__(self, work: Callable[[], T], /) -> Future[T]: ...


class Cascade:
    """Asks a judge about answers that were flagged.

    Args:
        engine: The judge.
        constitution: Holds the principles that categories are named after; those without a `question`, and
            categories that are no principle, block without being asked about.
        resident: Whether the judge runs on the served base, so that it must be asked on the decoder's thread.
        log: Told in a line that the judge failed.

    Raises:
        ConfigError: No principle has a question.
    """

    def __init__(
        self,
        engine: Engine,
        constitution: Constitution,
        *,
        resident: bool = False,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._engine = engine
        self._protocol = Pointwise(PromptLibrary(constitution.language))
        self._principles = {each.id: each for each in constitution.principles if each.question is not None}
        if not self._principles:
            raise ConfigError(
                f"no principle of `{constitution.name}` has a question to ask a judge",
                where="--constitution",
                remedy="write `question:` for the principles that are moderated by",
            )
        self.resident = resident
        self._log = log
        self._lock = threading.Lock()
        self._asked = self._released = self._failed = 0
        self._pool = None if resident else Worker("rlaif-cascade")
        self._run: Run | None = None
        self._wake: Callable[[], None] = lambda: None

    @property
    def askable(self) -> frozenset[str]:
        """The categories that it can be asked about."""
        return frozenset(self._principles)

    def attach(self, run: Run, wake: Callable[[], None]) -> None:
        """Say how work gets onto the decoder's thread, and who is told that an answer is there."""
        self._run = run if self._pool is None else self._pool.submit
        self._wake = wake

    def close(self) -> None:
        """Ask nothing more."""
        if self._pool is not None:
            self._pool.close()

    def about(self, messages: Sequence[Message]) -> Ask:
        """Asks about one answer to `messages`."""

        def ask(flags: Sequence[Flag], text: str) -> Future[bool] | None:
            found = [self._principles.get(flag.category) for flag in flags]
            principles = [each for each in found if each is not None]
            if len(principles) < len(found) or self._run is None:
                return None
            try:
                answer = self._run(lambda: self._breaks(messages, text, principles))
            except NotServing:
                return None
            answer.add_done_callback(lambda _: self._wake())
            return answer

        return ask

    def lines(self) -> list[str]:
        """What was asked, as Prometheus reads it."""
        with self._lock:
            counts = {"asked": self._asked, "released": self._released, "failed": self._failed}
        return [
            line
            for name, count in counts.items()
            for line in (f"# TYPE rlaif_cascade_{name}_total counter", f"rlaif_cascade_{name}_total {count}")
        ]

    def _breaks(self, messages: Sequence[Message], text: str, principles: Sequence[Principle]) -> bool:
        """Whether the judge finds that the answer `text` breaks one of the principles."""
        read = done_by(lambda: self._odds(messages, text, principles))
        if (error := read.exception()) is not None:
            self._log(f"the judge of the cascade failed, so what was flagged is blocked: {_said(error)}")
        odds = [None] if error is not None else read.result()
        failed = any(each is None for each in odds)
        breaks = any(each is None or each <= 0 for each in odds)
        with self._lock:
            self._asked += 1
            self._released += not breaks
            self._failed += failed
        return breaks

    def _odds(
        self, messages: Sequence[Message], text: str, principles: Sequence[Principle]
    ) -> list[float | None]:
        """For each principle the log-odds that the answer keeps it, nats; None where the judge's cannot be
        read."""
        begun = messages[-1].content if messages[-1].role == "assistant" else ""
        turns = tuple(messages[:-1] if messages[-1].role == "assistant" else messages)
        prompt = Prompt(id="exchange", messages=turns)
        answer = Completion(
            id="exchange/0", prompt_id="exchange", index=0, text=begun + text, finish="given", model=""
        )
        questions = [self._protocol.prompt(prompt, answer, each) for each in principles]
        requests = [LabelRequest(messages=each.messages, labels=each.labels) for each in questions]
        found: dict[int, float | None] = {}
        for batch in self._engine.label_logprobs(requests):
            found |= {at: log_odds(reading) for at, reading in batch.items()}
        return [found[at] for at in range(len(requests))]


def _said(error: BaseException) -> str:
    """What went wrong; of a defect of ours, where."""
    if isinstance(error, RlaifError | RuntimeError):
        return str(error)
    return "".join(traceback.format_exception(error)).strip()
