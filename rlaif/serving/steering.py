"""Directives of a server: what they make of a request, and the jobs that answer it.

A fixed answer needs no job, since nothing is decoded. Both sides are two jobs with prompts of their own,
whose events are told as those of one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from rlaif.directives.conditions import Conditions
from rlaif.directives.plan import Plan, plans
from rlaif.directives.values import Directives, today
from rlaif.directives.watched import WatchedDirectives
from rlaif.errors import ConfigError, DataError, ModelError
from rlaif.moderation.base import Moderator
from rlaif.serving.decoder import Decoder
from rlaif.serving.hold import Flag
from rlaif.serving.refusal import Refusal
from rlaif.serving.work import Delta, Ended, Event, Failed, Finished, Job
from rlaif.types import Message

__all__ = ["Steering", "Work", "open_steering"]

Emit = Callable[[Event], None]
MakeJob = Callable[[Emit, Sequence[Message]], Job]


@dataclass(frozen=True)
class Work:
    """What answers one request.

    Attributes:
        jobs: None where the answer is fixed, two where both sides are shown.
        beside: What the answer has beside OpenAI's fields.
        labels: What stands above a choice, by its number.
        plan: What the directives said, where there are any.
        asked: The messages, where no job has them.
        fixed: The events of an answer that is not decoded.
    """

    jobs: tuple[Job, ...]
    beside: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[int, str] = field(default_factory=dict)
    plan: Plan | None = None
    asked: tuple[Message, ...] = ()
    fixed: Callable[[], None] = lambda: None

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was asked, for the log."""
        return self.asked or self.jobs[0].messages

    def submit(self, batcher: Decoder) -> None:
        """Put the jobs into the queue.

        Raises:
            QueueFull: As many wait as may.
            NotServing: No job is taken any more.
        """
        if self.jobs:
            batcher.submit(*self.jobs)
        self.fixed()

    def cancel(self, batcher: Decoder) -> None:
        """Stop working on it; nothing more is heard of it."""
        for job in self.jobs:
            batcher.cancel(job)


@dataclass
class _Joined:
    """Tells the events of several jobs as those of one, which is done when all are; on one thread."""

    emit: Emit
    jobs: int
    choices: int
    _done: list[Finished] = field(default_factory=list)

    def of(self, side: int) -> Emit:
        """Where the job of a side tells its events."""
        first = side * self.choices

        def tell(told: Event) -> None:
            match told:
                case Delta() | Ended():
                    self.emit(replace(told, choice=first + told.choice))
                case Finished():
                    self._finish(told)
                case Failed():
                    self.emit(told)

        return tell

    def _finish(self, told: Finished) -> None:
        self._done.append(told)
        if len(self._done) == self.jobs:
            prompts = sum(each.prompt_tokens for each in self._done)
            completions = sum(each.completion_tokens for each in self._done)
            self.emit(Finished(prompts, completions, counted=all(each.counted for each in self._done)))


class Steering:
    """Applies directives to requests; may be asked by any thread.

    Args:
        day: Today, by which directives begin and end.
    """

    def __init__(
        self, directives: WatchedDirectives, conditions: Conditions, *, day: Callable[[], date] = today
    ) -> None:
        self._directives, self._conditions, self._day = directives, conditions, day
        self._deciding = threading.Lock()  # a judge and moderators answer one thread at a time

    def info(self) -> dict[str, Any]:
        """What `GET /v1/info` says: the digest, and the ids of the directives in force."""
        found = self._directives.current()
        return {"digest": found.digest, "ids": [each.id for each in found.active(self._day())]}

    def plan(self, messages: Sequence[Message]) -> Plan:
        """What the directives make of a conversation.

        Raises:
            Refusal: A moderator cannot read it.
        """
        directives = self._directives.current()
        try:
            with self._deciding:
                (found,) = plans(directives, [messages], self._conditions, on=self._day())
        except (DataError, ModelError) as error:
            raise Refusal(400, error.what, param="messages") from None
        return found

    def work(self, messages: tuple[Message, ...], emit: Emit, job: MakeJob, *, choices: int) -> Work:
        """The jobs that answer a conversation.

        Args:
            job: Makes a job of where it tells its events, and of what the policy reads.
            choices: Choices that are wanted; of each side, where both are shown.

        Raises:
            Refusal: By `job`, or a moderator cannot read it.
        """
        plan = self.plan(messages)
        applied = list(plan.applied)
        told = {"directives": {"digest": plan.digest, "applied": applied}}
        made = Work((), beside=told, plan=plan, asked=messages)
        if plan.answer:
            return replace(made, fixed=lambda: _tell_fixed(plan.answer, choices, emit))
        if not plan.sides:
            return replace(made, jobs=(_telling(plan, applied, job(emit, plan.messages)),))
        joined = _Joined(emit, len(plan.sides), choices)
        return replace(
            made,
            jobs=tuple(
                _telling(plan, applied, job(joined.of(at), side.messages))
                for at, side in enumerate(plan.sides)
            ),
            labels={
                at * choices + number: side.label
                for at, side in enumerate(plan.sides)
                for number in range(choices)
            },
        )


def _telling(plan: Plan, applied: list[str], job: Job) -> Job:
    """The job, which says in place of what is blocked what the directives say.

    Args:
        applied: Gets the id of the directive that spoke.
    """
    moderation = job.moderation
    if moderation is not None:
        otherwise = moderation.message

        def message(flag: Flag) -> str:
            found = plan.blocked(flag.category)
            if found is None:
                return otherwise(flag)
            if found.id not in applied:
                applied.append(found.id)
            return found.message

        job.moderation = replace(moderation, message=message)
    return job


def _tell_fixed(text: str, choices: int, emit: Emit) -> None:
    for choice in range(choices):
        emit(Delta(choice, text))
        emit(Ended(choice, "stop"))
    emit(Finished(prompt_tokens=0, completion_tokens=0))


def open_steering(
    path: Path,
    judge: str | None = None,
    *,
    moderators: Sequence[Moderator] = (),
    dtype: str = "auto",
    device: str = "auto",
    log: Callable[[str], None] = lambda line: None,
) -> Steering:
    """Read the directives of a server, and load the judge that they ask.

    Args:
        judge: A model in this process; needed where a condition is a question.
        moderators: Those of the server.

    Raises:
        RlaifError: The file cannot be used, nobody can decide one of its conditions, or the judge cannot be
            loaded.
    """
    from rlaif.models.open import open_engine  # late: without a judge nothing loads torch

    engine = None if judge is None else open_engine(judge, dtype=dtype, device=device, log=log)
    conditions = Conditions(moderators=moderators, judge=engine)

    def check(found: Directives) -> None:
        if problems := [problem for _, problem in conditions.undecidable(found.directives)]:
            what = f"{path} asks what nobody here can answer"
            remedy = "add --directives-judge MODEL, or take the directives out"
            raise ConfigError(what, remedy=remedy, problems=problems)

    return Steering(WatchedDirectives(path, check=check, log=log), conditions)
