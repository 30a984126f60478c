"""`rlaif serve --upstream`, asked by the official client over real HTTP: what it sends on, what it makes of what
comes back, and how it ends when the upstream or the client does."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import Response
from fastapi.responses import JSONResponse, PlainTextResponse
from standin import DONE, PATIENCE, Dropped, Standin, error, event, in_a_thread, piece, story, until, whole
from tiny import save_tiny

from rlaif.cli.main import main
from rlaif.engines.api.api_key import ApiKey
from rlaif.engines.api.wire import Malformed
from rlaif.serving import chunks
from rlaif.serving.chunks import event_data
from rlaif.serving.passed import UpstreamSettings
from rlaif.serving.residents import open_residents
from rlaif.serving.server import ModelServer, ServerSettings

QUESTION: Any = [{"role": "user", "content": "Is it?"}]
KEY = "sk-secret-of-the-upstream"


@contextmanager
def running(served: Any, **settings: Any) -> Iterator[ModelServer]:
    """A server on a free port, in a thread of its own; `told` is its log."""
    log: list[str] = []
    server = ModelServer(served, ServerSettings(port=0, **settings), log.append)
    server.told = log  # type: ignore[attr-defined]
    with in_a_thread(server):
        yield server


@pytest.fixture(scope="module")
def standing() -> Iterator[Standin]:
    with Standin() as standin:
        yield standin


@pytest.fixture
def upstream(standing: Standin) -> Standin:
    """As if it were new."""
    standing.reset()
    return standing


@pytest.fixture(scope="module")
def lasting(standing: Standin) -> Iterator[ModelServer]:
    with running(settings(standing)) as serving:
        yield serving


@pytest.fixture
def server(lasting: ModelServer, upstream: Standin) -> ModelServer:
    """One for all tests; those that end it or count what it did have one of their own."""
    return lasting


@pytest.fixture
def fresh(upstream: Standin) -> Iterator[ModelServer]:
    with running(settings(upstream)) as serving:
        yield serving


def settings(upstream: Standin, **change: Any) -> UpstreamSettings:
    return UpstreamSettings(**{"url": upstream.url, "key": ApiKey(KEY), "timeout": PATIENCE} | change)


def client(server: ModelServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="client's", max_retries=0, timeout=PATIENCE)


def post(server: ModelServer, body: bytes) -> tuple[int, Any, Any]:
    """Status, JSON and headers."""
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.loads(answer.read()), answer.headers
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read()), refused.headers


def ask(server: ModelServer, **change: Any) -> tuple[int, Any, Any]:
    return post(server, json.dumps({"model": "big", "messages": QUESTION} | change).encode())


def connected(server: ModelServer, *, stream: bool) -> http.client.HTTPConnection:
    """A request that was sent, whose answer is not read."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    body = json.dumps({"model": "big", "messages": QUESTION, "stream": stream})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection


def test_a_request_is_sent_on_and_its_answer_comes_back(fresh: ModelServer, upstream: Standin) -> None:
    with client(fresh) as api:
        answer = api.chat.completions.create(
            model="big",
            messages=[
                {
                    "role": "developer",
                    "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}],
                },
                {"role": "user", "content": "Is it <|im_end|>?"},
            ],
            n=1,
            seed=4,
            stop=["Z"],
            temperature=0.5,
            presence_penalty=1.5,
            frequency_penalty=None,
            store=True,
            metadata={"a": "b"},
            user="me",
            response_format={"type": "json_object"},
            extra_body={"min_p": 0.1, "chat_template_kwargs": {"enable_thinking": None}},
        )
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "big"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        7,
        2,
        9,
    )
    ((sent, headers),) = upstream.asked
    assert sent == {
        "model": "big",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Is it <\u200b|im_end|>?"},
        ],
        "n": 1,
        "seed": 4,
        "stop": ["Z"],
        "temperature": 0.5,
        "presence_penalty": 1.5,
        "user": "me",
        "response_format": {"type": "json_object"},
        "min_p": 0.1,
        "chat_template_kwargs": {"enable_thinking": None},
        "max_tokens": 1024,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert headers["authorization"] == f"Bearer {KEY}"
    assert "client's" not in str(headers)
    metrics = urllib.request.urlopen(f"{fresh.url}/metrics", timeout=PATIENCE).read().decode()
    assert "rlaif_prompt_tokens_total 7\n" in metrics
    assert "rlaif_completion_tokens_total 2\n" in metrics
    assert "rlaif_first_token_seconds_count 1\n" in metrics


def test_without_a_key_none_is_sent(upstream: Standin) -> None:
    with running(settings(upstream, key=ApiKey())) as serving:
        assert ask(serving, max_completion_tokens=5)[0] == 200
    ((sent, headers),) = upstream.asked
    assert "authorization" not in headers
    assert sent["max_completion_tokens"] == 5
    assert "max_tokens" not in sent


def test_pieces_are_passed_on_as_they_come(server: ModelServer, upstream: Standin) -> None:
    gate = threading.Event()
    upstream.answer = lambda body: upstream.sse(piece("Yes"), b": alive\n\n", gate, *story(", it is."))
    with client(server) as api:
        stream = iter(
            api.chat.completions.create(
                model="big", messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
        )
        first = next(stream)
        assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "Yes")
        gate.set()
        rest = list(stream)
    assert [each.choices[0].delta.content for each in rest[:-1]] == [", it is.", None]
    assert [each.choices[0].delta.role for each in rest[:-1]] == [None, None]
    assert rest[-2].choices[0].finish_reason == "stop"
    assert rest[-1].choices == []
    assert rest[-1].usage is not None
    assert rest[-1].usage.completion_tokens == 1
    assert rest[-1].id == first.id


def test_several_choices_and_no_account(server: ModelServer, upstream: Standin) -> None:
    told = [piece("a"), piece("x", index=1), piece("b", finish="stop"), piece(index=1, finish="length"), DONE]
    upstream.answer = lambda body: upstream.sse(*told)
    status, answer, _ = ask(server, n=2)
    assert status == 200
    assert [each["message"]["content"] for each in answer["choices"]] == ["ab", "x"]
    assert [each["finish_reason"] for each in answer["choices"]] == ["stop", "length"]
    assert answer["usage"] is None


@pytest.mark.parametrize(
    ("texts", "answers"), [(["Yes."], {"object": "chat.completion"}), (["Yes.", "No."], {})]
)
def test_a_server_that_does_not_stream_is_read_too(
    server: ModelServer, upstream: Standin, texts: list[str], answers: dict[str, Any]
) -> None:
    upstream.answer = lambda body: JSONResponse(whole(*texts) | answers)
    status, answer, _ = ask(server, n=2)
    assert status == 200
    assert [each["message"]["content"] for each in answer["choices"]] == texts
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def test_before_another_rlaif_serve(tmp_path: Path) -> None:
    """The answers of the server behind, and its models, under the same names; two of them in a row."""
    save_tiny(tmp_path / "base")
    residents = open_residents(str(tmp_path / "base"), (), dtype="float32", device="cpu")
    asked: Any = {"model": str(tmp_path / "base"), "messages": QUESTION, "max_tokens": 12, "seed": 3, "n": 2}
    with (
        running(residents, rows=4) as behind,
        running(UpstreamSettings(url=f"{behind.url}/v1")) as between,
        running(UpstreamSettings(url=f"{between.url}/v1")) as before,
        client(behind) as near,
        client(before) as far,
    ):
        wanted, found = near.chat.completions.create(**asked), far.chat.completions.create(**asked)
        assert found.choices == wanted.choices
        assert found.usage == wanted.usage
        assert len({choice.message.content for choice in found.choices}) == 2
        pieces = list(far.chat.completions.create(**asked, stream=True))
        for choice in wanted.choices:
            mine = [
                each.choices[0].delta.content or ""
                for each in pieces
                if each.choices[0].index == choice.index
            ]
            assert "".join(mine) == choice.message.content
        assert [each.model_dump(exclude_unset=True) for each in far.models.list()] == [
            each.model_dump(exclude_unset=True) for each in near.models.list()
        ]
        with pytest.raises(openai.BadRequestError, match="pass the model's context of 1024") as refused:
            far.chat.completions.create(**asked | {"messages": [{"role": "user", "content": "x" * 1100}]})
        assert (refused.value.param, refused.value.code) == ("messages", "context_length_exceeded")
        with pytest.raises(openai.NotFoundError, match="there is no model 'nobody'"):
            far.chat.completions.create(**asked | {"model": "nobody"}, stream=True)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("answer", "status", "says", "tries"),
    [
        (
            error(400, "no such thing", param="min_p", code="bad"),
            400,
            "the upstream refuses: no such thing",
            1,
        ),
        (error(422, "not this"), 400, "the upstream refuses: not this", 1),
        (JSONResponse({"detail": "Not here"}, 404), 404, "the upstream refuses: Not here", 1),
        (PlainTextResponse("<html>", 404), 502, "does not answer as an OpenAI-compatible server does", 1),
        (
            error(401, f"wrong key {KEY}"),
            502,
            "refuses this server's key or request: wrong key [key hidden]",
            1,
        ),
        (error(500, "broken"), 502, "the upstream failed: broken", 3),
        (error(503, "loading"), 503, "the upstream is full: loading", 3),
        (error(429, "too many", retry_after="60"), 429, "the upstream is full: too many", 1),
        (Response(status_code=302, headers={"Location": "http://127.0.0.1:1/"}), 502, "with status 302", 1),
        (PlainTextResponse("hello"), 502, "makes no sense: it sent what is not JSON", 1),
        (JSONResponse([]), 502, "makes no sense: it sent what is no object", 1),
        (JSONResponse({"error": "busy"}), 502, "the upstream failed: busy", 1),
    ],
)
def test_an_error_of_the_upstream_is_told_as_such(
    server: ModelServer,
    upstream: Standin,
    monkeypatch: pytest.MonkeyPatch,
    answer: Response,
    status: int,
    says: str,
    tries: int,
    stream: bool,
) -> None:
    """A stream that has not begun is refused with the same status."""
    monkeypatch.setattr("rlaif.serving.upstream.BACKOFF", 0.001)
    monkeypatch.setattr("rlaif.serving.link.SOON", 0)
    upstream.answer = lambda body: answer
    found, body, headers = ask(server, stream=stream)
    assert (found, len(upstream.asked)) == (status, tries)
    assert says in body["error"]["message"]
    assert KEY not in json.dumps(body)
    assert KEY not in "\n".join(server.told)  # type: ignore[attr-defined]
    assert body["error"]["type"] == {429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    assert ("Retry-After" in headers) == (status in (429, 503))
    if status == 429:
        assert headers["Retry-After"] == "60"
    if status == 400 and "no such thing" in says:
        assert (body["error"]["param"], body["error"]["code"]) == ("min_p", "bad")


def test_what_failed_before_the_first_byte_is_asked_again(
    server: ModelServer, upstream: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlaif.serving.upstream.BACKOFF", 0.001)
    answers = iter([error(429, "full", retry_after="0.01"), error(502, "bad"), upstream.sse(*story("Yes"))])
    upstream.answer = lambda body: next(answers)
    status, body, _ = ask(server)
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "Yes"
    assert [sent for sent, _ in upstream.asked] == [upstream.asked[0][0]] * 3


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([piece("Yes"), Dropped], "the upstream's answer was cut off"),
        ([piece("Yes")], "makes no sense: its answer was cut off"),
        ([piece("Yes"), DONE], "makes no sense: its answer was cut off"),
        ([piece("Yes"), b'data: {"choices": [\n\n'], "it sent what is not JSON"),
        ([piece("Yes"), b'data: {"choices": ['], "it sent what is not JSON"),
        ([piece("Yes"), b"data: " + b"[" * 100_000 + b"\n\n"], "it sent what is not JSON"),
        ([piece("Yes"), event([])], "it sent what is no object"),
        ([piece("Yes"), event({"choices": None})], "a piece without choices"),
        ([piece("Yes"), event({"choices": ["x"]})], "a choice that was not asked for"),
        ([piece("Yes"), piece("No", index=1)], "a choice that was not asked for"),
        ([piece("Yes"), piece("No", index=-1)], "a choice that was not asked for"),
        ([piece("Yes"), event({"choices": [{"index": "0"}]})], "a choice that was not asked for"),
        ([piece("Yes"), event({"choices": [{"delta": {"content": 5}}]})], "it sent text that is none"),
        ([piece("Yes"), event({"choices": [{"delta": "x"}]})], "it sent text that is none"),
        ([piece("Yes", finish="stop"), piece("No")], "text after the end of a choice"),
        ([piece("Yes", finish="abort")], "it ended a choice by 'abort'"),
        ([piece("Yes"), event({"error": {"message": f"no memory {KEY}"}})], "failed: no memory [key hidden]"),
        ([piece("Yes"), event({"error": {"code": 3}})], "failed: it does not say why"),
        ([piece("Yes"), b"data: " + b"x" * (1 << 20) + b"x\n"], "an event that is too long"),
    ],
)
def test_after_the_first_byte_an_answer_that_breaks_off_is_an_error(
    server: ModelServer, upstream: Standin, pieces: list[Any], says: str
) -> None:
    """The client has what came before, and is told; nothing is asked again."""
    upstream.answer = lambda body: upstream.sse(*pieces)
    status, body, _ = ask(server)
    assert status == 502
    assert says in body["error"]["message"]
    assert len(upstream.asked) == 1
    heard: list[str | None] = []
    with client(server) as api, pytest.raises(openai.APIError) as broken:
        heard += (
            each.choices[0].delta.content
            for each in api.chat.completions.create(model="big", messages=QUESTION, stream=True)
        )
    assert says in broken.value.message
    assert len(upstream.asked) == 2
    until(lambda: server.batcher.rows == 0)


def test_lone_surrogates_do_no_harm(server: ModelServer, upstream: Standin) -> None:
    upstream.answer = lambda body: upstream.sse(*story("a\ud800b"))
    assert ask(server)[1]["choices"][0]["message"]["content"] == "a\ufffdb"
    upstream.models = [{"id": "x\udfff", "created": True, "owned_by": 5}, {"id": 4}, {"no": "id"}]
    with client(server) as api:
        assert [model.model_dump(exclude_unset=True) for model in api.models.list()] == [
            {"id": "x\ufffd", "object": "model", "created": 0, "owned_by": "upstream"}
        ]
    upstream.answer = lambda body: error(400, "bad \ud800")
    assert ask(server)[1]["error"]["message"] == "the upstream refuses: bad \ufffd"


@pytest.mark.parametrize("before", [True, False])
def test_an_upstream_that_falls_silent(upstream: Standin, before: bool) -> None:
    never = threading.Event()
    upstream.answer = lambda body: upstream.sse(*([never] if before else [piece("Yes"), never]))
    with running(settings(upstream, timeout=0.3)) as serving:
        status, body, _ = ask(serving)
        assert status == 504
        assert body["error"]["message"] == "the upstream said nothing for 0.3 seconds"
        assert len(upstream.asked) == 1


def test_a_slow_upstream_is_waited_for(upstream: Standin) -> None:
    """Silence is what is bounded, not the length of an answer."""
    slow = [part for each in story(*"abcdef") for part in (each, 0.08)]
    upstream.answer = lambda body: upstream.sse(*slow)
    with running(settings(upstream, timeout=0.5)) as serving:
        status, body, _ = ask(serving)
        assert status == 200
        assert body["choices"][0]["message"]["content"] == "abcdef"


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_closes_the_connection_behind(
    fresh: ModelServer, upstream: Standin, stream: bool, begun: bool
) -> None:
    never = threading.Event()
    upstream.answer = lambda body: upstream.sse(*([piece("Yes"), never] if begun else [never]))
    connection = connected(fresh, stream=stream)
    until(lambda: len(upstream.asked) == 1)
    if begun and stream:
        assert connection.getresponse().readline().startswith(b"data: ")
    assert fresh.batcher.rows == 1
    connection.close()
    until(lambda: upstream.left == 1)
    until(lambda: fresh.batcher.rows == 0)
    metrics = urllib.request.urlopen(f"{fresh.url}/metrics", timeout=PATIENCE).read().decode()
    assert "rlaif_cancelled_total 1\n" in metrics
    upstream.answer = lambda body: upstream.sse(*story("Yes"))
    assert ask(fresh)[0] == 200


def test_a_full_queue_and_a_stop(upstream: Standin) -> None:
    """One answers, one waits, the third is refused; one that waits and whose client leaves is never sent; a stop
    fails what is left when the time of grace is over."""
    gate = threading.Event()
    upstream.answer = lambda body: upstream.sse(piece("Yes"), gate, *story("."))
    with ThreadPoolExecutor(2) as pool, running(settings(upstream, rows=1, queue=1), grace=0) as serving:
        first = pool.submit(ask, serving)
        until(lambda: len(upstream.asked) == 1)
        leaving = connected(serving, stream=True)
        until(lambda: serving.batcher.waiting == 1)
        status, body, headers = ask(serving)
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert int(headers["Retry-After"]) >= 1
        leaving.close()
        until(lambda: serving.batcher.waiting == 0)
        second = pool.submit(ask, serving)
        until(lambda: serving.batcher.waiting == 1)
        gate.set()
        assert [first.result()[0], second.result()[0]] == [200, 200]
        assert len(upstream.asked) == 2
        gate.clear()
        last = connected(serving, stream=True)
        answer = last.getresponse()
        assert answer.readline().startswith(b"data: ")
    until(lambda: upstream.left == 1)
    with pytest.raises((http.client.HTTPException, OSError)):
        answer.read()
    last.close()


def test_draining_refuses_what_is_new(fresh: ModelServer, upstream: Standin) -> None:
    fresh.batcher.drain()
    assert ask(fresh)[0] == 503
    for path in ("/health", "/v1/models"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(fresh.url + path, timeout=PATIENCE)
        with refused.value:
            assert refused.value.code == 503
    assert upstream.asked == []


def test_an_upstream_that_is_not_there_is_told_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server starts without it; each request is refused with words, and answered once it is there."""
    monkeypatch.setattr("rlaif.serving.upstream.BACKOFF", 0.001)
    monkeypatch.setattr("rlaif.serving.link.SOON", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with running(UpstreamSettings(url=f"http://127.0.0.1:{port}/v1", timeout=PATIENCE)) as serving:
        until(lambda: "does not tell its models yet" in "\n".join(serving.told))  # type: ignore[attr-defined]
        status, body, headers = ask(serving, stream=True)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "the upstream cannot be reached" in body["error"]["message"]
        assert str(port) not in body["error"]["message"]
        with client(serving) as api, pytest.raises(openai.InternalServerError, match="cannot be reached"):
            api.models.list()
        assert urllib.request.urlopen(f"{serving.url}/health", timeout=PATIENCE).status == 200


def test_a_connection_is_used_again(fresh: ModelServer, upstream: Standin) -> None:
    until(lambda: f"{upstream.url} serves big" in fresh.told)  # type: ignore[attr-defined]
    for _ in range(3):
        assert ask(fresh)[0] == 200
    assert len(upstream.asked) == 3
    assert len(set(upstream.ports)) == 1


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"tools": []}, "tools", "is not supported here"),
        ({"logprobs": True}, "logprobs", "False"),
        ({"n_best": 2}, "n_best", "less than or equal to 1"),
        ({"max_tokens": 1025}, "max_tokens", "at most 1024 tokens"),
        ({"min_p": math.nan}, None, "NaN"),
        ({"max_tokens": 4, "max_completion_tokens": 4}, "max_completion_tokens", "mean the same"),
        ({"model": "small"}, "model", "there is no model 'small' here; there are big, lora"),
    ],
)
def test_what_is_not_sent_on(upstream: Standin, change: dict[str, Any], param: str | None, says: str) -> None:
    with running(settings(upstream, models=("big", "lora"))) as serving:
        status, body, _ = ask(serving, **change)
        assert status == (404 if param == "model" else 400)
        assert body["error"]["param"] == param
        assert says in body["error"]["message"]
        assert upstream.asked == []
        with client(serving) as api:
            assert [(model.id, model.owned_by) for model in api.models.list()] == [
                ("big", "them"),
                ("lora", "upstream"),
            ]


def test_a_defect_fails_the_request_and_no_other(
    server: ModelServer, upstream: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("rlaif.serving.upstream.DONE", None)
        broken.setattr("rlaif.serving.upstream.Chunks", lambda choices: None)
        status, body, _ = ask(server)
    assert (status, body["error"]["message"]) == (500, "the server failed; its log says more")
    assert "AttributeError" in "\n".join(server.told)  # type: ignore[attr-defined]
    assert ask(server)[0] == 200


def test_what_vllm_tells_of_adapters_is_told(fresh: ModelServer, upstream: Standin) -> None:
    lora = {"id": "l", "object": "model", "created": 5, "owned_by": "vllm", "root": "/l", "parent": "big"}
    upstream.models = [*upstream.models, lora | {"max_model_len": 4096, "permission": []}]
    with client(fresh) as api:
        assert [model.model_dump(exclude_unset=True) for model in api.models.list()][1] == lora | {
            "max_model_len": 4096
        }


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_events_are_read_however_they_are_cut(end: str) -> None:
    lines = [
        ": alive",
        "",
        "event: x",
        'data: {"a":',
        'data:"é"}',
        "",
        "",
        "id: 4",
        "data: [DONE]",
        "",
        "data: rest",
    ]
    raw = end.join(lines).encode()

    async def read(size: int) -> list[str]:
        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(raw), size):
                yield raw[at : at + size]

        return [data async for data in event_data(pieces())]

    for size in (1, 2, 3, 7, len(raw)):
        assert asyncio.run(read(size)) == ['{"a":\n"é"}', "[DONE]", "rest"]


def test_an_event_has_a_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LONGEST_EVENT", 10)

    async def read(*raw: bytes) -> list[str]:
        async def pieces() -> AsyncIterator[bytes]:
            for each in raw:
                yield each

        return [data async for data in event_data(pieces())]

    assert asyncio.run(read(b"data: x\n\n" * 5)) == ["x"] * 5
    with pytest.raises(Malformed, match="too long"):
        asyncio.run(read(b"data: 1234\n", b"data: 1234\n", b"data: 1234\n"))


SCRIPT = """
import sys, threading, urllib.request
from rlaif.cli import serve
from rlaif.serving.server import ModelServer

def stop(server):
    print(urllib.request.urlopen(server.url + "/v1/models", timeout=30).read().decode())
    server.stop()

run = ModelServer.run_until_stopped
def run_and_stop(server):
    threading.Timer(0.2, stop, [server]).start()
    run(server)
ModelServer.run_until_stopped = run_and_stop
serve.serve.main(["--upstream", sys.argv[1], "--port", "0", "--upstream-key-env", "THE_KEY"], standalone_mode=False)
print([name for name in ("torch", "transformers", "peft", "datasets") if name in sys.modules])
"""


def test_the_command_loads_no_torch(upstream: Standin) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, upstream.url + "/"],
        env={"THE_KEY": KEY, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"id":"big"' in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    assert KEY not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--upstream", "ftp://x"], "--upstream: a base URL is not an http or https address"),
        (["--upstream", "http://[x/v1"], "--upstream: a base URL is not an http or https address"),
        (["--upstream", "http://x:99999/v1"], "--upstream: a base URL is not an http or https address"),
        (["--upstream", "http://me:pw@x/v1"], "--upstream: a base URL may not carry a user name"),
        (
            ["--upstream", "http://x/v1", "--policy", "p", "--reward", "r"],
            "--policy and --reward: that is for a model",
        ),
        (["--upstream", "http://x/v1", "--device", "cpu"], "--device: that is for a model in this process"),
        (["--upstream", "http://x/v1", "--upstream-key-env", "RLAIF_UNSET"], "RLAIF_UNSET contains no key"),
        (["--model", "a", "--model", "b"], "one base is in memory, and --model names several"),
    ],
)
def test_what_cannot_be_passed_on_to_is_said(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert says in " ".join(said.split())
    assert "pw" not in said


def test_a_proxy_that_is_none_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nonsense://x")
    with pytest.raises(SystemExit):
        main(["serve", "--port", "0", "--upstream", "http://192.0.2.1/v1"])
    assert "the proxy that the environment names cannot be used" in capsys.readouterr().err
