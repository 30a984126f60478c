"""The parts of a server together: moderation before an upstream, read from the socket; directives that ask the
server's moderators and speak for them; what is kept of a blocked answer."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from moderators import Oracle
from standin import DONE, PATIENCE, Standin, error, event, in_a_thread, piece, story, until, usage, whole
from tiny import save_tiny

from rlaif.chats.keeper import ChatKeeper
from rlaif.chats.store import ChatsFile
from rlaif.engines.base import LabelRequest
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import ConfigError
from rlaif.serving.cascade import Cascade
from rlaif.serving.hold import Flag
from rlaif.serving.moderating import Moderation, blocked_message
from rlaif.serving.opening import ModerationSettings, open_moderation
from rlaif.serving.passed import UpstreamSettings
from rlaif.serving.residents import Residents, open_residents
from rlaif.serving.server import ModelServer, ServerSettings
from rlaif.serving.steering import open_steering
from rlaif.types import Answers, Constitution, Principle

NOTICE = blocked_message(Flag("oracle", 0.9))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def residents(tmp_path_factory: pytest.TempPathFactory) -> Residents:
    folder = tmp_path_factory.mktemp("base")
    save_tiny(folder)
    return open_residents(str(folder), (), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def standing() -> Iterator[Standin]:
    with Standin() as standin:
        yield standin


@pytest.fixture
def upstream(standing: Standin) -> Standin:
    standing.reset()
    return standing


@contextmanager
def served(served: Any, **parts: Any) -> Iterator[ModelServer]:
    log: list[str] = []
    settings = ServerSettings(port=0, most_tokens=32, consent="We keep it.")
    server = ModelServer(served, settings, log.append, **parts)
    server.told = log  # type: ignore[attr-defined]
    with in_a_thread(server):
        yield server


def before(upstream: Standin) -> UpstreamSettings:
    return UpstreamSettings(url=upstream.url)


def wire(server: ModelServer, question: str = "Who?", **change: Any) -> bytes:
    """All bytes that the server sent for a request."""
    messages = [{"role": "user", "content": question}]
    body = json.dumps({"model": "big", "messages": messages} | change).encode()
    host, port = server.url.removeprefix("http://").split(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        while some := connection.recv(4096):
            found += some
    return found


def events(raw: bytes) -> list[dict[str, Any]]:
    lines = [line for line in raw.split(b"\n") if line.startswith(b"data: ")]
    assert lines[-1] == DONE.strip()
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


def choices(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice for each in told for choice in each["choices"]]


def spoken(told: Sequence[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in choices(told))


def ended(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (choice for choice in choices(told) if choice["finish_reason"])
    return found


def with_notice(text: str) -> str:
    return f"{text}\n\n{NOTICE}" if text else NOTICE


# Before an upstream


@pytest.mark.parametrize("hold", [1, 4, 16])
@pytest.mark.parametrize("word", ["QZQ", "禁"])
def test_of_an_upstream_s_answer_nothing_that_is_held_goes_out(
    upstream: Standin, word: str, hold: int
) -> None:
    around = list("abcdefgh")
    inside = list(word)
    with served(before(upstream), moderation=Moderation(Oracle(word), hold=hold)) as server:
        for place in range(len(around) + 1):
            texts = [*around[:place], *inside, *around[place:]]
            upstream.answer = lambda body, texts=texts: upstream.sse(*story(*texts))
            raw = wire(server, stream=True, stream_options={"include_usage": True})
            told = events(raw)
            released = "".join(texts[: max(0, place + len(inside) - hold)])
            assert spoken(told) == with_notice(released)
            assert ended(told)["finish_reason"] == "content_filter"
            assert ended(told)["moderation"] == {"category": "oracle", "score": 0.9}
            assert told[-1]["usage"]["completion_tokens"] == len(texts)  # it is read to its end
            if hold >= len(inside):
                assert word.encode() not in raw
                assert json.dumps(word).strip('"').encode() not in raw


def test_an_answer_without_it_is_passed_on_whole(upstream: Standin) -> None:
    upstream.answer = lambda body: upstream.sse(*story("No", "thing", " to", " see."))
    with served(before(upstream), moderation=Moderation(Oracle("QZQ"))) as server:
        told = events(wire(server, stream=True))
        assert (spoken(told), ended(told)["finish_reason"]) == ("Nothing to see.", "stop")
        answer = json.loads(wire(server).split(b"\r\n\r\n", 1)[1])
        assert answer["choices"][0]["message"]["content"] == "Nothing to see."
        assert answer["usage"]["completion_tokens"] == 4


def test_an_upstream_that_answers_in_one_piece_is_scored_whole(upstream: Standin) -> None:
    upstream.answer = lambda body: upstream.sse(event(whole("all of QZQ at once", "fine")))
    with served(before(upstream), moderation=Moderation(Oracle("QZQ"))) as server:
        raw = wire(server, n=2)
    first, second = json.loads(raw.split(b"\r\n\r\n", 1)[1])["choices"]
    assert first["message"]["content"] == NOTICE
    assert first["finish_reason"] == "content_filter"
    assert second["message"]["content"] == "fine"
    assert second["finish_reason"] == "stop"
    assert b"at once" not in raw


def test_a_prompt_that_is_flagged_is_not_sent_on(upstream: Standin) -> None:
    with served(before(upstream), moderation=Moderation(Oracle("QZQ"))) as server:
        told = events(wire(server, "What is QZQ?", stream=True))
        said = [line for line in server.told if "blocked" in line]  # type: ignore[attr-defined]
    assert spoken(told) == NOTICE
    assert ended(told)["finish_reason"] == "content_filter"
    assert upstream.asked == []
    assert len(said) == 1
    assert "blocked prompt oracle 0.900" in said[0]


def test_an_upstream_that_drops_an_answer_in_the_middle_tells_nothing_that_was_held(
    upstream: Standin,
) -> None:
    upstream.answer = lambda body: upstream.sse(piece("QZ"), event({"error": "no memory"}))
    with served(before(upstream), moderation=Moderation(Oracle("QZQ"), hold=4)) as server:
        raw = wire(server, stream=True)
    assert b"QZ" not in raw
    assert b"no memory" in raw


@pytest.mark.parametrize("calm", [True, False])
def test_a_judge_is_asked_about_an_upstream_s_answer(upstream: Standin, calm: bool) -> None:
    gate = threading.Event()

    def answered(request: LabelRequest) -> list[float]:
        assert gate.wait(PATIENCE)
        return [-0.1, -3.0] if calm else [-3.0, -0.1]

    principle = Principle("oracle", question="Is it calm?", answers=Answers("yes", "no"))
    cascade = Cascade(ScriptedEngine(labels=answered), Constitution("c", (principle,)))
    moderation = Moderation(Oracle("QZQ"), hold=4, cascade=cascade)
    texts = [*"abQZQcd"]
    upstream.answer = lambda body: upstream.sse(*story(*texts))
    with served(before(upstream), moderation=moderation) as server:
        found: list[bytes] = []
        asking = threading.Thread(target=lambda: found.append(wire(server, stream=True)))
        asking.start()
        until(lambda: server.batcher.rows == 0 and bool(upstream.asked))
        assert not found  # the upstream has ended; the judge has not
        gate.set()
        asking.join(PATIENCE)
    told = events(found[0])
    assert spoken(told) == ("abQZQcd" if calm else with_notice("a"))
    assert ended(told)["finish_reason"] == ("stop" if calm else "content_filter")


def test_before_an_upstream_a_moderator_must_read_the_text_alone(tmp_path: Path) -> None:
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "moderation.json").write_text('{"format": 1, "kind": "probe"}')
    with pytest.raises(ConfigError, match="reads the states of the model that answers"):
        open_moderation(ModerationSettings((tmp_path / "guard",)), None)
    names = tmp_path / "names.yaml"
    names.write_text("name: names\nentries:\n  - {word: Ada}\n")
    found = open_moderation(ModerationSettings((names,)), None)
    assert found is not None
    assert found.moderator.categories == ("names",)


def test_directives_reach_the_upstream(upstream: Standin, tmp_path: Path) -> None:
    path = tmp_path / "directives.yaml"
    path.write_text("directives:\n  - {id: kind, when: {always: true}, prior: Be kind.}\n")
    with served(before(upstream), steering=open_steering(path)) as server:
        told = events(wire(server, stream=True))
    assert upstream.asked[0][0]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert [each["directives"]["applied"] for each in told if "directives" in each] == [["kind"]]
    upstream.answer = lambda body: error(400, "not so")


# Directives and moderators


RULES = """
directives:
  - {id: help, when: {moderation: oracle}, answer: Please call 112.}
"""
SPEAKS = """
directives:
  - {id: says, when: {moderation: oracle}, blocked_message: We do not name them.}
"""


def guarded(residents: Residents, path: Path, moderation: Moderation, **parts: Any) -> Any:
    steering = open_steering(path, moderators=(moderation.from_elsewhere,))
    return served(residents, moderation=moderation, steering=steering, **parts)


def test_a_fixed_answer_goes_before_the_block(residents: Residents, tmp_path: Path) -> None:
    path = tmp_path / "directives.yaml"
    path.write_text(RULES)
    (name,) = residents.roles
    with guarded(residents, path, Moderation(Oracle("QZQ"))) as server:
        told = events(wire(server, "I took QZQ", model=name, stream=True))
        assert spoken(told) == "Please call 112."
        assert ended(told)["finish_reason"] == "stop"
        info = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x").get("/info", cast_to=object)
    assert info["moderation"] == {"categories": ["oracle"]}  # type: ignore[index]
    assert info["directives"]["ids"] == ["help"]  # type: ignore[index]


def test_directives_speak_for_what_is_blocked_and_it_is_kept_so(residents: Residents, tmp_path: Path) -> None:
    path = tmp_path / "directives.yaml"
    path.write_text(SPEAKS)
    (name,) = residents.roles
    chats = ChatKeeper(ChatsFile(tmp_path / "chats.sqlite"))
    with guarded(residents, path, Moderation(Oracle("QZQ")), chats=chats) as server:
        answer = json.loads(wire(server, "What is QZQ?", model=name, store=True).split(b"\r\n\r\n", 1)[1])
        (choice,) = answer["choices"]
        assert choice["message"]["content"] == "We do not name them."
        assert choice["finish_reason"] == "content_filter"
        assert answer["directives"]["applied"] == ["says"]
        assert answer["stored"] is True
    with ChatsFile(tmp_path / "chats.sqlite", create=False) as kept:
        (exchange,) = kept.exchanges()
    assert exchange.directives == answer["directives"]["digest"]
    assert exchange.answers[0].finish == "content_filter"


def test_usage_is_told_beside_a_stand_in_that_tells_it_late(upstream: Standin) -> None:
    upstream.answer = lambda body: upstream.sse(
        piece("Q"), piece("ZQ"), piece(" more"), piece(finish="stop"), usage(3, 9), DONE
    )
    with served(before(upstream), moderation=Moderation(Oracle("QZQ"), hold=2)) as server:
        told = events(wire(server, stream=True, stream_options={"include_usage": True}))
    assert spoken(told) == NOTICE
    assert told[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
