from __future__ import annotations

import math
from pathlib import Path

import pytest

from rlaif.engines.base import Engine, GenerationRequest, LabelRequest, Sampling, TokenCount
from rlaif.engines.scripted import LABEL_MASS, ScriptedCrash, ScriptedEngine, load_scripted
from rlaif.errors import ModelError
from rlaif.types import Message


def asks(text: str, *, seed: int = 0, words: int = 50, stop: tuple[str, ...] = ()) -> GenerationRequest:
    return GenerationRequest(
        messages=(Message("user", text),), sampling=Sampling(max_new_tokens=words, stop=stop), seed=seed
    )


def reads(text: str, labels: tuple[str, ...] = ("A", "B")) -> LabelRequest:
    return LabelRequest(messages=(Message("user", text),), labels=labels)


def test_is_an_engine_and_counts_tokens() -> None:
    engine: Engine = ScriptedEngine()
    counter: TokenCount = ScriptedEngine()
    assert engine.card.kind == "scripted"
    assert counter.render([Message("user", "one two")]) == "user: one two\nassistant:"
    assert (
        counter.render([Message("user", "one"), Message("assistant", "well")]) == "user: one\nassistant: well"
    )
    assert counter.count([Message("user", "one two")]) == 4


def test_defaults_depend_on_the_request_alone() -> None:
    requests = [asks("hello", seed=seed) for seed in range(20)]
    texts = {
        index: answer.text for batch in ScriptedEngine().generate(requests) for index, answer in batch.items()
    }
    again = {
        index: answer.text
        for batch in ScriptedEngine(batch_size=3).generate(requests)
        for index, answer in batch.items()
    }
    assert texts == again
    assert len(set(texts.values())) == 20
    assert sorted(texts) == list(range(20))


def test_default_labels_hold_the_stated_mass() -> None:
    (batch,) = ScriptedEngine().label_logprobs([reads("x"), reads("y", ("yes", "no", "maybe"))])
    for reading in batch.values():
        assert math.fsum(map(math.exp, reading.logprobs)) == pytest.approx(LABEL_MASS)


def test_batches_leave_out_what_is_done() -> None:
    engine = ScriptedEngine(batch_size=2)
    batches = list(engine.label_logprobs([reads(str(number)) for number in range(6)], done={0, 2, 3}))
    assert [list(batch) for batch in batches] == [[1], [4, 5]]
    assert (engine.read, engine.generated, engine.calls) == (3, 0, 1)


def test_text_is_cut_at_stops_and_at_the_limit() -> None:
    engine = ScriptedEngine(generate=lambda request: "one two three. END four")
    (batch,) = engine.generate([asks("x"), asks("x", words=2), asks("x", stop=("END", "three"))])
    assert [(a.text, a.finish, a.tokens) for a in batch.values()] == [
        ("one two three. END four", "stop", 6),
        ("one two", "length", 2),
        ("one two ", "stop", 3),
    ]


def test_what_cannot_be_answered_has_a_reason() -> None:
    engine = ScriptedEngine(context=5, labels=lambda request: [math.nan, -1.0])
    (texts,) = engine.generate([asks("far too long a prompt")])
    assert (texts[0].finish, texts[0].reason) == ("refused", "prompt_too_long")
    (readings,) = engine.label_logprobs([reads("far too long a prompt"), reads("x", ("A", "A")), reads("x")])
    assert [reading.reason for reading in readings.values()] == [
        "prompt_too_long",
        "labels_alike",
        "not_finite",
    ]
    assert all(reading.logprobs == () for reading in readings.values())


def test_wrong_number_of_labels() -> None:
    with pytest.raises(ModelError, match="1 log-probabilities for 2 labels"):
        list(ScriptedEngine(labels=lambda request: [-1.0]).label_logprobs([reads("x")]))


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ModelError, match="batch_size is 0"):
        ScriptedEngine(batch_size=0)


def test_fails_when_told_to() -> None:
    engine = ScriptedEngine(batch_size=4, fail_after=6)
    with pytest.raises(ScriptedCrash, match="after 6"):
        list(engine.label_logprobs([reads(str(number)) for number in range(20)]))
    assert engine.read == 8


def test_other_functions_are_another_revision() -> None:
    assert ScriptedEngine().card.revision == ScriptedEngine(batch_size=2).card.revision
    assert ScriptedEngine(labels=lambda request: [0.0, 0.0]).card.revision != ScriptedEngine().card.revision
    assert ScriptedEngine(revision="7").card.label == "scripted@7"


def test_load_default_and_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_judge.py").write_text(
        "from rlaif.engines.scripted import ScriptedEngine\n"
        "def make():\n    return ScriptedEngine(name='mine')\n"
        "ready = ScriptedEngine(name='ready')\nnumber = 7\n",
        encoding="utf-8",
    )
    (tmp_path / "my_broken.py").write_text("def (", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_scripted("scripted").card.name == "scripted"
    assert load_scripted("scripted:my_judge:make").card.name == "mine"
    assert load_scripted("scripted:my_judge:ready").card.name == "ready"
    with pytest.raises(ModelError, match="number is a int"):
        load_scripted("scripted:my_judge:number")
    with pytest.raises(ModelError, match="has no attribute"):
        load_scripted("scripted:my_judge:absent")
    with pytest.raises(ModelError, match="invalid syntax"):
        load_scripted("scripted:my_broken:make")
    with pytest.raises(ModelError, match="No module named"):
        load_scripted("scripted:no_such_module_here:make")


@pytest.mark.parametrize(
    "name", ["scripted:", "scripted:module", "scripted::attribute", "other:module:attribute"]
)
def test_load_needs_module_and_attribute(name: str) -> None:
    with pytest.raises(ModelError, match="names no scripted engine"):
        load_scripted(name)
