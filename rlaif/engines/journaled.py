"""An engine that remembers: what was answered once is read from a journal, what is new is on record before
anyone sees it.

The key of an answer is a digest of what was asked, of whom (`EngineCard.identity`) and how (`identity` of the
request), so an interrupted command continues where it stopped, and a changed principle file asks only for
what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from rlaif.digest import digest
from rlaif.engines.base import (
    Engine,
    EngineCard,
    Generation,
    GenerationRequest,
    LabelReading,
    LabelRequest,
    is_refusal,
)
from rlaif.text import well_formed

__all__ = ["JournaledEngine", "Memo", "NullMemo", "journal_key"]

Request = TypeVar("Request", GenerationRequest, LabelRequest)
Answer = TypeVar("Answer", Generation, LabelReading)
RequestIn = TypeVar("RequestIn", contravariant=True)
AnswerOut = TypeVar("AnswerOut", covariant=True)

FORMAT = 1
"""Part of every key: raise it when stored answers can no longer be read, or no longer mean the same."""
SERVED_READING = 2
"""Part of the keys of served label readings: version 0.1.0 read a certain judge as undecided, and its
readings must not be reused."""
TRANSIENT = "transient:"
"""Reasons that begin so (a time-out, a full server) are not kept: the next run asks again."""
LOOKUP_CHUNK = 500
"""Requests looked up, and answers yielded, at a time."""


class _Ask(Protocol[RequestIn, AnswerOut]):
    """`Engine.generate` or `Engine.label_logprobs`."""

    def __call__(
        self, requests: Sequence[RequestIn], *, done: Container[int] = ...
    ) -> Iterator[Mapping[int, AnswerOut]]: ...


class Memo(Protocol):
    """An append-only map from key to JSON value; `rlaif.runs.journal.Journal` is one."""

    def get_many(self, keys: Sequence[str]) -> Mapping[str, Any]:
        """The values of those `keys` that are known."""
        ...

    def put_many(self, kind: str, values: Mapping[str, Any]) -> int:
        """Keep `values`, all or none; known keys keep their first value. Returns how many were new."""
        ...


class _Form(NamedTuple, Generic[Answer]):
    """How one kind of answer is named in the journal, and turned into JSON and back."""

    kind: Literal["generation", "reading"]
    read: Callable[[Any], Answer]
    write: Callable[[Answer], Any]
    clean: Callable[[Answer], Answer]


def _read_reading(value: Any) -> LabelReading:
    return LabelReading(
        logprobs=tuple(float(each) for each in value["logprobs"]),
        tokens=value["tokens"],
        reason=value["reason"],
        bounded=tuple(value.get("bounded", ())),
    )


def _clean_generation(generation: Generation) -> Generation:
    """Text that can be written: this is where what a model wrote enters."""
    text = well_formed(generation.text)
    return generation if text is generation.text else replace(generation, text=text)


def _read_generation(value: Any) -> Generation:
    """A row of the journal; one that version 0.1.0 kept may hold half a character."""
    return _clean_generation(Generation(**value))


def _write_reading(reading: LabelReading) -> dict[str, Any]:
    """As JSON values; a field that says nothing is left out, so that the rows of engines in this process are
    what they were."""
    values = asdict(reading)
    return values if reading.bounded else {name: value for name, value in values.items() if name != "bounded"}


GENERATION: _Form[Generation] = _Form(
    kind="generation", read=_read_generation, write=asdict, clean=_clean_generation
)
READING: _Form[LabelReading] = _Form(
    kind="reading", read=_read_reading, write=_write_reading, clean=lambda reading: reading
)


class NullMemo:
    """A memo that keeps nothing."""

    def get_many(self, keys: Sequence[str]) -> dict[str, object]:
        return {}

    def put_many(self, kind: str, values: object) -> int:
        return 0


class JournaledEngine:
    """Wraps an engine and a memo, and is an engine itself.

    Known answers are yielded first. Equal requests of one call are asked once: they carry equal seeds, so the
    answers are equal.

    Attributes:
        asked: How many answers the inner engine gave, by kind (`generation`, `reading`).
        reused: How many requests were answered without it, by kind: from the memo, or as the twin of another
            request.
    """

    def __init__(self, engine: Engine, memo: Memo) -> None:
        self.engine = engine
        self.memo = memo
        self.asked: dict[str, int] = {"generation": 0, "reading": 0}
        self.reused: dict[str, int] = {"generation": 0, "reading": 0}

    @property
    def card(self) -> EngineCard:
        """The inner engine's card."""
        return self.engine.card

    @property
    def at_once(self) -> int:
        """As the inner engine."""
        return self.engine.at_once

    def generate(
        self, requests: Sequence[GenerationRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, Generation]]:
        """As `Engine.generate`; see the class."""
        return self._answer(requests, done, ask=self.engine.generate, form=GENERATION)

    def label_logprobs(
        self, requests: Sequence[LabelRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, LabelReading]]:
        """As `Engine.label_logprobs`; see the class."""
        return self._answer(requests, done, ask=self.engine.label_logprobs, form=READING)

    def _answer(
        self,
        requests: Sequence[Request],
        done: Container[int],
        *,
        ask: _Ask[Request, Answer],
        form: _Form[Answer],
    ) -> Iterator[Mapping[int, Answer]]:
        distinct, askers = self._group(form.kind, requests, done)
        keys = list(askers)
        # Positions in `distinct` that need no asking. The inner engine is shown every distinct request all
        # the same, so that its batches do not depend on what is known.
        settled = {position for position, key in enumerate(keys) if not askers[key]}
        for start in range(0, len(keys), LOOKUP_CHUNK):
            answers = _usable(self.memo.get_many(keys[start : start + LOOKUP_CHUNK]), form)
            settled.update(
                position
                for position in range(start, min(start + LOOKUP_CHUNK, len(keys)))
                if keys[position] in answers
            )
            known = {index: answer for key, answer in answers.items() for index in askers[key]}
            self.reused[form.kind] += len(known)
            if known:
                yield known
        if len(settled) == len(keys):
            return
        for batch in ask(distinct, done=settled):
            answers = self._keep({keys[position]: answer for position, answer in batch.items()}, form)
            told = {index: answer for key, answer in answers.items() for index in askers[key]}
            self.asked[form.kind] += len(answers)
            self.reused[form.kind] += len(told) - len(answers)
            yield told

    def _group(
        self, kind: str, requests: Sequence[Request], done: Container[int]
    ) -> tuple[list[Request], dict[str, list[int]]]:
        """The distinct requests, and for each one's key (in the same order) the indices that still wait for
        its answer."""
        distinct: list[Request] = []
        askers: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            key = journal_key(kind, self.card, request)
            if key not in askers:
                askers[key] = []
                distinct.append(request)
            if index not in done:
                askers[key].append(index)
        return distinct, askers

    def _keep(self, answers: dict[str, Answer], form: _Form[Answer]) -> dict[str, Answer]:
        """Put a batch on record; where another process was first, its answer stands and is the one
        returned."""
        answers = {key: form.clean(answer) for key, answer in answers.items()}
        values = {key: form.write(answer) for key, answer in answers.items() if not is_refusal(answer.reason)}
        if values and self.memo.put_many(form.kind, values) < len(values):
            answers = answers | _usable(self.memo.get_many(list(values)), form)
        return answers


def _usable(found: Mapping[str, Any], form: _Form[Answer]) -> dict[str, Answer]:
    """The answers among the rows that were found.

    Left out, and so asked again: refusals, which version 0.1.0 kept, and rows that are not as they were
    written.
    """
    answers: dict[str, Answer] = {}
    for key, value in found.items():
        try:
            answer = form.read(value)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        if not is_refusal(answer.reason):
            answers[key] = answer
    return answers


def journal_key(kind: str, card: EngineCard, request: GenerationRequest | LabelRequest) -> str:
    """The content key of an answer: what is asked, of which model, under which format."""
    key = {"what": kind, "format": FORMAT, "engine": card.identity(), "request": request.identity()}
    if kind == "reading" and card.kind == "openai":
        key["reading"] = SERVED_READING
    return digest(key)
