from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlaif.engines.base import (
    Engine,
    EngineCard,
    Generation,
    GenerationRequest,
    LabelReading,
    LabelRequest,
    Sampling,
)
from rlaif.engines.journaled import LOOKUP_CHUNK, JournaledEngine, Memo, journal_key
from rlaif.engines.scripted import ScriptedCrash, ScriptedEngine
from rlaif.runs.journal import Journal
from rlaif.types import Message


class DictMemo:
    """A memo in memory that also logs what was written."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.writes: list[int] = []

    def get_many(self, keys: Sequence[str]) -> dict[str, Any]:
        return {key: self.values[key] for key in keys if key in self.values}

    def put_many(self, kind: str, values: Mapping[str, Any]) -> int:
        new = {key: value for key, value in values.items() if key not in self.values}
        self.values.update(new)
        self.writes.append(len(new))
        return len(new)


def reads(number: object) -> LabelRequest:
    return LabelRequest(messages=(Message("user", f"question {number}"),), labels=("A", "B"))


def asks(number: object, seed: int = 0) -> GenerationRequest:
    return GenerationRequest(
        messages=(Message("user", f"question {number}"),), sampling=Sampling(max_new_tokens=20), seed=seed
    )


def collect(batches: Iterator[Mapping[int, Any]]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for batch in batches:
        assert not found.keys() & batch.keys(), "an index came twice"
        found.update(batch)
    return found


def test_same_answers_as_the_engine_alone_and_then_none_asked(tmp_path: Path) -> None:
    requests, prompts = [reads(number) for number in range(20)], [asks(number) for number in range(20)]
    alone = ScriptedEngine()
    readings, texts = collect(alone.label_logprobs(requests)), collect(alone.generate(prompts))
    for turn in range(2):
        with Journal(tmp_path / "j.sqlite") as journal:
            engine: Engine = JournaledEngine(ScriptedEngine(), journal)
            assert isinstance(engine, JournaledEngine)
            assert collect(engine.label_logprobs(requests)) == readings
            assert collect(engine.generate(prompts)) == texts
            mine, theirs = (engine.asked, engine.reused) if turn == 0 else (engine.reused, engine.asked)
            assert mine == {"generation": 20, "reading": 20}
            assert theirs == {"generation": 0, "reading": 0}
            assert engine.card == ScriptedEngine().card


def test_a_crash_loses_no_finished_batch_and_the_rest_is_asked_in_the_same_batches() -> None:
    memo = DictMemo()
    requests = [reads(number) for number in range(20)]
    with pytest.raises(ScriptedCrash):
        collect(JournaledEngine(ScriptedEngine(batch_size=3, fail_after=7), memo).label_logprobs(requests))
    assert len(memo.values) == 9
    inner = ScriptedEngine(batch_size=3)
    again = JournaledEngine(inner, memo)
    batches = [list(batch) for batch in again.label_logprobs(requests)]
    assert batches == [list(range(9)), [9, 10, 11], [12, 13, 14], [15, 16, 17], [18, 19]]
    assert (again.reused["reading"], again.asked["reading"], inner.read) == (9, 11, 11)


def test_what_was_seen_is_on_record() -> None:
    memo = DictMemo()
    seen = 0
    for batch in JournaledEngine(ScriptedEngine(batch_size=4), memo).generate(
        [asks(number) for number in range(10)]
    ):
        seen += len(batch)
        assert len(memo.values) == seen
    assert memo.writes == [4, 4, 2]


def test_twins_are_asked_once() -> None:
    inner = ScriptedEngine()
    engine = JournaledEngine(inner, DictMemo())
    answers = collect(engine.label_logprobs([reads(1), reads(2), reads(1), reads(1)]))
    assert answers[0] == answers[2] == answers[3] != answers[1]
    assert inner.read == engine.asked["reading"] == 2
    assert engine.reused["reading"] == 2


def test_done_requests_are_left_out() -> None:
    inner = ScriptedEngine()
    engine = JournaledEngine(inner, DictMemo())
    assert set(collect(engine.generate([asks(1), asks(2), asks(1), asks(3)], done={0, 3}))) == {1, 2}
    assert inner.generated == 2
    assert collect(engine.generate([asks(1)], done=[0])) == {}
    assert collect(engine.generate([])) == {}


def test_many_known_answers_come_in_chunks() -> None:
    memo = DictMemo()
    requests = [reads(number) for number in range(LOOKUP_CHUNK + 1)]
    collect(JournaledEngine(ScriptedEngine(batch_size=1000), memo).label_logprobs(requests))
    batches = list(JournaledEngine(ScriptedEngine(), memo).label_logprobs(requests))
    assert [len(batch) for batch in batches] == [LOOKUP_CHUNK, 1]


def test_refusals_are_asked_again() -> None:
    memo = DictMemo()
    for _ in range(2):
        inner = ScriptedEngine(context=1)
        engine = JournaledEngine(inner, memo)
        assert collect(engine.label_logprobs([reads(1)]))[0].reason == "prompt_too_long"
        assert collect(engine.generate([asks(1)]))[0].finish == "refused"
    assert memo.values == {}
    able = JournaledEngine(ScriptedEngine(), memo)
    assert not collect(able.label_logprobs([reads(1)]))[0].reason


def test_a_refusal_that_an_older_version_kept_is_asked_again() -> None:
    memo = DictMemo()
    engine = JournaledEngine(ScriptedEngine(), memo)
    key = journal_key("generation", engine.card, asks(1))
    memo.values[key] = {"text": "", "finish": "refused", "tokens": 0, "reason": "prompt_too_long"}
    assert collect(engine.generate([asks(1)]))[0].finish != "refused"


@pytest.mark.parametrize(
    "value",
    [{}, [], None, 3, {"text": 1, "finish": "stop", "tokens": 1}, {"text": "a", "unknown": 1}],
    ids=str,
)
def test_a_row_that_is_not_as_it_was_written_is_asked_again(value: Any) -> None:
    memo = DictMemo()
    engine = JournaledEngine(ScriptedEngine(), memo)
    memo.values[journal_key("generation", engine.card, asks(1))] = value
    memo.values[journal_key("reading", engine.card, reads(1))] = value
    assert collect(engine.generate([asks(1)]))[0].finish != "refused"
    assert len(collect(engine.label_logprobs([reads(1)]))[0].logprobs) == 2


def test_half_a_character_of_an_older_journal_is_replaced() -> None:
    memo = DictMemo()
    engine = JournaledEngine(ScriptedEngine(), memo)
    memo.values[journal_key("generation", engine.card, asks(1))] = {
        "text": "a\ud800b",
        "finish": "stop",
        "tokens": 1,
        "reason": "",
    }
    assert collect(engine.generate([asks(1)]))[0].text == "a\ufffdb"


class Flaky:
    """Fails in a way that may pass."""

    @property
    def card(self) -> EngineCard:
        return ScriptedEngine().card

    @property
    def at_once(self) -> int:
        return 1

    def generate(
        self, requests: Sequence[GenerationRequest], *, done: Container[int] = ()
    ) -> Iterator[dict[int, Generation]]:
        full = Generation(text="", finish="refused", tokens=0, reason="transient: server full")
        yield {0: full, 1: Generation(text="hi", finish="stop", tokens=2)}

    def label_logprobs(
        self, requests: Sequence[LabelRequest], *, done: Container[int] = ()
    ) -> Iterator[dict[int, LabelReading]]:
        yield {0: LabelReading(logprobs=(), reason="transient: timed out")}


def test_transient_failures_are_told_but_not_kept() -> None:
    memo = DictMemo()
    engine = JournaledEngine(Flaky(), memo)
    assert collect(engine.label_logprobs([reads(1)]))[0].reason.startswith("transient:")
    assert memo.values == {}
    assert len(collect(engine.generate([asks(1), asks(2)]))) == 2
    assert [value["text"] for value in memo.values.values()] == ["hi"]


def test_where_another_process_was_first_its_answer_is_told() -> None:
    memo: Memo = DictMemo()

    def answer_late(request: LabelRequest) -> list[float]:
        if request == reads(2):  # the other process finishes while this one is at work
            theirs = {"logprobs": [-0.5000001, -1.0], "tokens": 4, "reason": ""}
            memo.put_many("reading", {journal_key("reading", inner.card, request): theirs})
        return [-0.5, -1.0]

    inner = ScriptedEngine(labels=answer_late)
    answers = collect(JournaledEngine(inner, memo).label_logprobs([reads(1), reads(2)]))
    assert answers[0].logprobs == (-0.5, -1.0)
    assert answers[1].logprobs == (-0.5000001, -1.0)


def test_keys_tell_apart_what_matters() -> None:
    card = ScriptedEngine().card
    other = ScriptedEngine(revision="2").card
    keys = {
        journal_key("generation", card, asks(1)),
        journal_key("generation", card, asks(2)),
        journal_key("generation", card, asks(1, seed=1)),
        journal_key("generation", other, asks(1)),
        journal_key("reading", card, reads(1)),
    }
    assert len(keys) == 5
    assert journal_key("generation", ScriptedEngine(name="renamed").card, asks(1)) in keys
