"""Directives of a server, asked by the official client over real HTTP: priors, fixed answers, both sides, and
edits while it serves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from tiny import save_tiny

from rlaif.cli.main import main
from rlaif.directives.conditions import Conditions
from rlaif.directives.load import load_directives
from rlaif.directives.watched import WatchedDirectives
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import ConfigError, ModelError
from rlaif.serving.residents import Residents, open_residents
from rlaif.serving.server import ModelServer, ServerSettings
from rlaif.serving.steering import Steering, open_steering
from rlaif.types import Message

PATIENCE = 30.0
pytestmark = pytest.mark.usefixtures("one_thread")
RULES = r"""
directives:
  - {id: kind, when: {regex: kindly}, prior: Be kind.}
  - {id: hours, when: {regex: (?i)opening hours}, answer: "From 9 to 17."}
  - {id: also, when: {regex: hours}, answer: never}
  - id: pets
    when: {regex: cat or dog}
    both_sides: {a: {label: Cat, prior: For cats.}, b: {label: Dog, prior: For dogs and other pets.}}
  - {id: over, when: {always: true}, answer: gone, until: 2020-01-01}
"""


@pytest.fixture(scope="module")
def residents(tmp_path_factory: pytest.TempPathFactory) -> Residents:
    folder = tmp_path_factory.mktemp("base")
    save_tiny(folder)
    return open_residents(str(folder), (), dtype="float32", device="cpu")


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


@contextmanager
def served(residents: Residents, steering: Steering | None, **settings: Any) -> Iterator[openai.OpenAI]:
    """A client of a server on a free port."""
    log: list[str] = []
    server = ModelServer(residents, ServerSettings(port=0, **settings), log.append, steering=steering)
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    try:
        until(lambda: server.started)
        with openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE
        ) as api:
            api.log = log  # type: ignore[attr-defined]
            api.batcher = server.batcher  # type: ignore[attr-defined]
            yield api
    finally:
        server.stop()
        thread.join(PATIENCE)


def written(folder: Path, text: str = RULES) -> Path:
    path = folder / "directives.yaml"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("rules"))


@pytest.fixture(scope="module")
def api(residents: Residents, rules: Path) -> Iterator[openai.OpenAI]:
    with served(residents, open_steering(rules), rows=8, most_tokens=32, log_texts=True) as running:
        yield running


@pytest.fixture(scope="module")
def plain(residents: Residents) -> Iterator[openai.OpenAI]:
    with served(residents, None, rows=8, most_tokens=32) as running:
        yield running


def ask(api: openai.OpenAI, text: str, *, system: str = "", **more: Any) -> Any:
    (model,) = api.models.list()
    turns = [{"role": "system", "content": system}] if system else []
    asked: Any = {"model": model.id, "messages": [*turns, {"role": "user", "content": text}]}
    return api.chat.completions.create(**{"max_tokens": 12, "seed": 3, **asked, **more})


def directives_of(answer: Any) -> Any:
    return answer.model_extra["directives"]


def test_what_applies_to_no_directive_is_answered_as_without(
    api: openai.OpenAI, plain: openai.OpenAI, rules: Path
) -> None:
    found, wanted = ask(api, "yes"), ask(plain, "yes")
    assert found.choices == wanted.choices
    assert directives_of(found) == {"digest": load_directives(rules).digest, "applied": []}
    assert "directives" not in wanted.model_extra


def test_a_prior_is_what_the_policy_reads(api: openai.OpenAI, plain: openai.OpenAI) -> None:
    found = ask(api, "kindly, yes", system="Own.")
    wanted = ask(plain, "kindly, yes", system="Be kind.\n\nOwn.")
    assert found.choices == wanted.choices
    assert found.usage == wanted.usage
    assert directives_of(found)["applied"] == ["kind"]


def test_a_fixed_answer_costs_nothing(api: openai.OpenAI) -> None:
    asked = "What are the opening hours, kindly?"
    found = ask(api, asked, n=2, max_tokens=1)
    assert [choice.message.content for choice in found.choices] == ["From 9 to 17."] * 2
    assert {choice.finish_reason for choice in found.choices} == {"stop"}
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (0, 0)
    assert directives_of(found)["applied"] == ["hours"]
    assert "From 9 to 17." in "\n".join(api.log)  # type: ignore[attr-defined]
    pieces = list(ask(api, asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(each.choices[0].delta.content or "" for each in pieces if each.choices) == "From 9 to 17."
    assert [each.choices[0].finish_reason for each in pieces if each.choices][-1] == "stop"
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-1].usage.completion_tokens == 0
    assert directives_of(pieces[-1]) == directives_of(found)


def test_a_fixed_answer_is_given_by_models_that_are_there(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        ask(api, "opening hours", model="nobody")
    with pytest.raises(openai.BadRequestError, match="mean the same"):
        ask(api, "opening hours", max_completion_tokens=3)


@pytest.mark.parametrize("n", [1, 2])
def test_both_sides_are_choices_of_one_answer(api: openai.OpenAI, plain: openai.OpenAI, n: int) -> None:
    asked = "kindly: cat or dog?"
    found = ask(api, asked, n=n)
    sides = [ask(plain, asked, n=n, system=f"Be kind.\n\n{each}") for each in PRIORS]
    texts = [choice.message.content for side in sides for choice in side.choices]
    assert [choice.message.content for choice in found.choices] == texts
    assert [choice.index for choice in found.choices] == list(range(2 * n))
    assert [choice.model_extra["label"] for choice in found.choices] == ["Cat"] * n + ["Dog"] * n
    assert directives_of(found)["applied"] == ["kind", "pets"]
    assert found.usage.total_tokens == sum(side.usage.total_tokens for side in sides)


PRIORS = ("For cats.", "For dogs and other pets.")


def test_both_sides_are_streamed_side_by_side(api: openai.OpenAI) -> None:
    whole = ask(api, "cat or dog?")
    pieces = list(ask(api, "cat or dog?", stream=True))
    for choice in whole.choices:
        mine = [each.choices[0] for each in pieces if each.choices[0].index == choice.index]
        assert "".join(piece.delta.content or "" for piece in mine) == choice.message.content
        assert {piece.model_extra["label"] for piece in mine} == {choice.model_extra["label"]}
        assert [piece.delta.role for piece in mine if piece.delta.role] == ["assistant"]
        assert mine[-1].finish_reason == choice.finish_reason
    assert directives_of(pieces[-1]) == directives_of(whole)


def test_both_sides_find_room_together_or_none(residents: Residents, rules: Path) -> None:
    with served(residents, open_steering(rules), rows=1, queue=1) as api:
        batcher = api.batcher  # type: ignore[attr-defined]
        gate, hidden = threading.Event(), residents.base.hidden

        def wait(*inputs: Any, **options: Any) -> Any:
            assert gate.wait(PATIENCE)
            return hidden(*inputs, **options)

        residents.base.hidden = wait  # type: ignore[method-assign]
        try:
            first = threading.Thread(target=lambda: ask(api, "yes"))
            first.start()
            until(lambda: len(batcher._running) == 1)
            second = threading.Thread(target=lambda: ask(api, "yes"))
            second.start()
            until(lambda: batcher.waiting == 1)
            with pytest.raises(openai.RateLimitError):
                ask(api, "cat or dog?")
            assert batcher.waiting == 1
        finally:
            gate.set()
            del residents.base.hidden  # type: ignore[method-assign]
            first.join(PATIENCE)
            second.join(PATIENCE)


def test_a_model_that_fails_fails_both_sides(residents: Residents, rules: Path) -> None:
    def fail(*_inputs: Any, **_options: Any) -> Any:
        raise RuntimeError("out of memory")

    with served(residents, open_steering(rules)) as api:
        residents.base.hidden = fail  # type: ignore[method-assign]
        try:
            with pytest.raises(openai.InternalServerError, match="the model failed"):
                ask(api, "cat or dog?")
        finally:
            del residents.base.hidden  # type: ignore[method-assign]
        assert len(ask(api, "cat or dog?").choices) == 2


def test_an_edit_holds_from_the_next_request_on(residents: Residents, tmp_path: Path) -> None:
    path, log, now = written(tmp_path), [""], [0.0]
    watched = WatchedDirectives(path, log=log.append, clock=lambda: now[0])
    steering = Steering(watched, Conditions())
    with served(residents, steering) as api:
        before = directives_of(ask(api, "yes"))
        path.write_text("directives: [{id: new, when: {always: true}, answer: Edited.}]", "utf-8")
        assert directives_of(ask(api, "yes")) == before
        now[0] = 1.0
        after = ask(api, "yes")
        assert after.choices[0].message.content == "Edited."
        assert directives_of(after)["digest"] == load_directives(path).digest
        assert steering.info() == {"digest": load_directives(path).digest, "ids": ["new"]}
        path.write_text("directives: [", "utf-8")
        now[0] = 2.0
        assert ask(api, "yes").choices == after.choices
    assert len(log) == 3


class Rude:
    """A moderator made on the spot."""

    categories, thresholds, layers, digest = ("rude",), {"rude": 0.5}, (), "rude"

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Mapping[str, float]]:
        if len(conversations[0][-1].content) > 100:
            raise ModelError("the conversation is longer than the moderator reads")
        return [{"rude": float("idiot" in talk[-1].content)} for talk in conversations]

    def watch(self, messages: Sequence[Message]) -> Any:
        raise AssertionError("nothing is watched here")


def test_moderators_and_a_judge_decide(residents: Residents, tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
directives:
  - {id: rude, when: {principle: rude}, answer: Let us stay calm.}
  - {id: war, when: {judge: Is it about war?}, answer: No comment.}
""",
    )
    judge = ScriptedEngine(
        labels=lambda request: (-0.1, -3.0) if "the war" in request.messages[1].content else (-3.0, -0.1)
    )
    watched = WatchedDirectives(path)
    with served(residents, Steering(watched, Conditions(moderators=[Rude()], judge=judge))) as api:
        assert ask(api, "you idiot").choices[0].message.content == "Let us stay calm."
        assert ask(api, "the war").choices[0].message.content == "No comment."
        assert directives_of(ask(api, "peace"))["applied"] == []
        with pytest.raises(openai.BadRequestError, match="longer than the moderator reads"):
            ask(api, "x" * 101)


def test_what_nobody_can_decide_is_refused_at_the_start(tmp_path: Path) -> None:
    path = written(tmp_path, "directives: [{id: war, when: {judge: Is it about war?}, answer: No comment.}]")
    with pytest.raises(ConfigError, match="there is no judge to ask its question"):
        open_steering(path)
    assert open_steering(path, "scripted").info()["ids"] == ["war"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--directives-judge", "scripted"], "there are no directives to judge for"),
        (["--directives", "{folder}/none.yaml"], "there is no file"),
    ],
)
def test_options_that_do_not_go_together(
    residents: Residents, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    base = next(iter(residents.roles))
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0", "--model", base, *(each.format(folder=tmp_path) for each in arguments)])
    assert ended.value.code == 1
    assert says in capsys.readouterr().err


def test_the_wire_has_the_directives_beside_openais_fields(api: openai.OpenAI) -> None:
    raw = api.chat.completions.with_raw_response.create(
        model=next(iter(api.models.list())).id, messages=[{"role": "user", "content": "opening hours"}]
    )
    body = json.loads(raw.text)
    assert set(body["directives"]) == {"digest", "applied"}
    assert "label" not in body["choices"][0]
