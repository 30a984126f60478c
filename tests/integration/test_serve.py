"""`rlaif serve`, asked by the official client over real HTTP: what it answers is what the engine would, alone
and in company; what it refuses, cancels and finishes."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tiny import KINDS, save_tiny, tiny_model, tiny_tokenizer

from rlaif.cli.main import main
from rlaif.engines.base import Generation, GenerationRequest, Sampling
from rlaif.errors import ConfigError, ModelError
from rlaif.models.open import open_engine
from rlaif.models.shared_base import REFERENCE, LoraSettings, SharedBase
from rlaif.reward.files import save_reward_model
from rlaif.reward.head import ScalarHead
from rlaif.reward.model import Member, RewardModel
from rlaif.serving import lane
from rlaif.serving.batcher import Batcher, Limits, QueueFull
from rlaif.serving.lane import Lane, check_joining
from rlaif.serving.metrics import Metrics
from rlaif.serving.residents import Residents, open_residents
from rlaif.serving.server import ModelServer, ServerSettings, read_token
from rlaif.serving.service import Service
from rlaif.serving.stream import TextStream
from rlaif.serving.wire import ChatRequest
from rlaif.serving.work import Delta, Failed, Job, Row, start_rows
from rlaif.text import well_formed
from rlaif.types import Message

PATIENCE = 30.0
"""Seconds after which a test gives up waiting for what must happen."""
QUESTION = (Message("user", "What is the yes in the other?"),)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, an adapter that changes it, and a reward model."""
    root = tmp_path_factory.mktemp("serve")
    save_tiny(root / "base")
    base = SharedBase.load(str(root / "base"), dtype="float32", device="cpu")
    base.add_adapter("policy", LoraSettings(rank=2), seed=1)
    generator = torch.Generator().manual_seed(2)
    for weight in base.trainable("policy"):
        weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    base.save_adapter("policy", root / "policy")
    head = ScalarHead(base.hidden_size)
    head.draw(3)
    reward = RewardModel(base, [Member(REFERENCE, head.requires_grad_(False))], pooling="last")
    save_reward_model(reward, root / "reward" / "model", probes=[[*QUESTION, Message("assistant", "yes")]])
    return root


@pytest.fixture(scope="module")
def residents(folder: Path) -> Residents:
    policies = [f"policy={folder / 'policy'}"]
    return open_residents(str(folder / "base"), policies, folder / "reward", dtype="float32", device="cpu")


@contextmanager
def served(residents: Residents, **settings: Any) -> Iterator[ModelServer]:
    """A server on a free port, in a thread of its own."""
    log: list[str] = []
    server = ModelServer(residents, ServerSettings(port=0, **settings), log.append)
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    try:
        until(lambda: server.started)
        server.told = log  # type: ignore[attr-defined]
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(residents: Residents) -> Iterator[ModelServer]:
    with served(residents, rows=4, most_tokens=64, most_body=4096) as running:
        yield running


def client(server: ModelServer, *, key: str = "none", timeout: float = PATIENCE) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=timeout)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def messages(*turns: Message) -> Any:
    return [turn.as_dict() for turn in turns]


def expected(spec: Path, requests: list[GenerationRequest]) -> list[Generation]:
    """What the engine answers, all in one batch."""
    found: dict[int, Generation] = {}
    for batch in open_engine(str(spec), dtype="float32", device="cpu").generate(requests):
        found |= batch
    return [found[at] for at in range(len(requests))]


@contextmanager
def gated(base: SharedBase) -> Iterator[threading.Event]:
    """Inside the block no pass of the model begins until the event is set."""
    gate, hidden = threading.Event(), base.hidden

    def wait(*inputs: Any, **options: Any) -> Any:
        assert gate.wait(PATIENCE)
        return hidden(*inputs, **options)

    base.hidden = wait  # type: ignore[method-assign]
    try:
        yield gate
    finally:
        gate.set()
        del base.hidden  # type: ignore[method-assign]


def get(server: ModelServer, path: str, **headers: str) -> tuple[int, str, Any]:
    """Status, text and headers of a plain request."""
    return ask(urllib.request.Request(server.url + path, headers=headers))


def post(server: ModelServer, body: bytes, **headers: str) -> tuple[int, str, Any]:
    sent = {"Content-Type": "application/json"} | headers
    return ask(urllib.request.Request(f"{server.url}/v1/chat/completions", data=body, headers=sent))


def ask(request: urllib.request.Request) -> tuple[int, str, Any]:
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def test_many_at_once_answer_as_the_engine_does(server: ModelServer, folder: Path) -> None:
    """Twelve clients, two models, four rows: whatever joins and leaves, each gets the engine's own text."""
    asked = [
        (
            "policy" if at % 3 == 0 else str(folder / "base"),
            GenerationRequest(
                (Message("system", "the " * (at % 4)), Message("user", "other yes " * (1 + at * 5 % 7))),
                Sampling(
                    max_new_tokens=8 + at * 3,
                    temperature=1.0 if at % 2 else 0.0,
                    top_p=0.9 if at % 4 else 1.0,
                    stop=("e", "Zz") if at % 5 == 0 else (),
                ),
                seed=at,
            ),
        )
        for at in range(12)
    ]

    def answer(model: str, request: GenerationRequest) -> Any:
        drawn = request.sampling
        with client(server) as api:
            return api.chat.completions.create(
                model=model,
                messages=messages(*request.messages),
                max_tokens=drawn.max_new_tokens,
                temperature=drawn.temperature,
                top_p=drawn.top_p,
                stop=list(drawn.stop),
                seed=request.seed,
            )

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda each: answer(*each), asked))
    for spec, model in ((folder / "policy", "policy"), (folder / "base", str(folder / "base"))):
        mine = [at for at, (name, _) in enumerate(asked) if name == model]
        wanted = expected(spec, [asked[at][1] for at in mine])
        found = [answers[at] for at in mine]
        assert [each.choices[0].message.content for each in found] == [well_formed(w.text) for w in wanted]
        assert [each.choices[0].finish_reason for each in found] == [w.finish for w in wanted]
        assert [each.usage.completion_tokens for each in found] == [w.tokens for w in wanted]
    assert {each.choices[0].finish_reason for each in answers} == {"stop", "length"}


def test_a_stream_is_the_whole_answer_in_pieces(server: ModelServer) -> None:
    asked: Any = {
        "model": "policy",
        "messages": messages(*QUESTION),
        "max_completion_tokens": 40,
        "seed": 5,
        "n": 2,
    }
    with client(server) as api:
        whole = api.chat.completions.create(**asked)
        pieces = list(
            api.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        )
    assert {piece.object for piece in pieces} == {"chat.completion.chunk"}
    assert pieces[-1].choices == []
    assert pieces[-1].usage == whole.usage
    for choice in whole.choices:
        mine = [piece.choices[0] for piece in pieces[:-1] if piece.choices[0].index == choice.index]
        assert "".join(piece.delta.content or "" for piece in mine) == choice.message.content
        assert [piece.finish_reason for piece in mine if piece.finish_reason] == [choice.finish_reason]
        assert [piece.delta.role for piece in mine if piece.delta.role] == ["assistant"]
    assert len(pieces) > 10
    raw = post(server, json.dumps(asked | {"stream": True}).encode())
    assert raw[1].endswith("\n\ndata: [DONE]\n\n")
    assert raw[2]["Content-Type"].startswith("text/event-stream")


def test_without_a_seed_one_is_drawn(server: ModelServer, residents: Residents) -> None:
    service = Service(residents=residents, batcher=server.batcher, metrics=Metrics())

    def seed(**given: int) -> int:
        body = {"model": "policy", "messages": messages(*QUESTION)} | given
        return service.job(ChatRequest.model_validate(body), print).seed

    assert len({seed() for _ in range(4)}) == 4
    assert seed(seed=-5) == -5


def test_the_best_of_several_by_the_reward_model(server: ModelServer, residents: Residents) -> None:
    asked: Any = {"model": "policy", "messages": messages(*QUESTION), "max_tokens": 12, "seed": 7}
    with client(server) as api:
        every = api.chat.completions.create(**asked, n=4)
        best = api.chat.completions.create(**asked, extra_body={"n_best": 4})
        streamed = list(api.chat.completions.create(**asked, extra_body={"n_best": 4}, stream=True))
    texts = [choice.message.content for choice in every.choices]
    assert residents.reward is not None
    scores = residents.reward.score([[*QUESTION, Message("assistant", text)] for text in texts])
    (choice,) = best.choices
    assert choice.message.content == texts[scores.index(max(scores))]
    assert choice.reward == pytest.approx(max(scores), abs=1e-4)
    assert best.usage == every.usage
    assert streamed[0].choices[0].delta.content == choice.message.content
    assert len(set(texts)) == 4


def test_models_health_and_metrics(server: ModelServer, folder: Path) -> None:
    with client(server) as api:
        assert [model.id for model in api.models.list()] == [str(folder / "base"), "policy"]
        api.chat.completions.create(model="policy", messages=messages(*QUESTION), max_tokens=3, seed=1)
    assert get(server, "/health")[:2] == (200, '{"status":"ok"}')
    status, text, headers = get(server, "/metrics", **{"X-Request-Id": "mine-1"})
    assert status == 200
    assert headers["X-Request-Id"] == "mine-1"
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert int(counts['rlaif_requests_total{path="/v1/chat/completions",status="200"}']) >= 1
    assert int(counts["rlaif_completion_tokens_total"]) >= 3
    assert counts['rlaif_first_token_seconds_bucket{le="+Inf"}'] == counts["rlaif_first_token_seconds_count"]
    assert counts["rlaif_waiting"] == "0"


@pytest.mark.parametrize(
    ("change", "status", "param", "says"),
    [
        ({"model": "nobody"}, 404, "model", "there is no model 'nobody' here"),
        ({"messages": []}, 400, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages", "messages.0.role"),
        ({"max_tokens": 65}, 400, "max_tokens", "at most 64 tokens"),
        ({"max_tokens": "5"}, 400, "max_tokens", "valid integer"),
        ({"messages": [{"role": "user", "content": "x" * 1100}]}, 400, "messages", "context of 1024"),
        ({"tools": []}, 400, "tools", "is not supported here"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "not supported here"),
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"max_completion_tokens": 4}, 400, "max_completion_tokens", "mean the same"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "needs stream"),
        ({"n": 5}, 400, "n", "at most 4 completions"),
        ({"n": 2, "n_best": 2}, 400, "n_best", "do not go together"),
        ({"stop": [""]}, 400, "stop", "at least 1 character"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    server: ModelServer, change: dict[str, Any], status: int, param: str, says: str
) -> None:
    asked = {"model": "policy", "messages": messages(*QUESTION), "max_tokens": 4} | change
    found, text, _ = post(server, json.dumps(asked).encode())
    error = json.loads(text)["error"]
    assert (found, error["param"]) == (status, param)
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_a_top_p_that_no_float_holds_takes_the_likeliest(server: ModelServer) -> None:
    asked: Any = {"model": "policy", "messages": messages(*QUESTION), "max_tokens": 8}
    with client(server) as api:
        least = api.chat.completions.create(**asked, top_p=1e-200)
        assert least.choices == api.chat.completions.create(**asked, temperature=0).choices


def test_bodies_and_paths_that_are_not_requests(server: ModelServer) -> None:
    status, text, _ = post(server, b'{"model"')
    assert status == 400
    assert "the body is not JSON" in text
    status, text, _ = post(server, b"{}", **{"Content-Type": "text/plain"})
    assert status == 400
    assert "Content-Type: application/json" in text
    status, text, _ = post(server, b"[1]")
    assert status == 400
    assert json.loads(text)["error"]["message"].startswith("body: ")
    assert post(server, b"\xff")[0] == 400
    whole = b'{"model": "nobody", "messages": [{"role": "user", "content": ""}], "n": 1.0}'
    assert post(server, whole)[0] == 404  # JSON has one kind of number
    for odd in (b'{"\\ud800": 1}', b'{"messages": {"\\ud800": 1}}', b"[" * 2000, b'{"temperature": NaN}'):
        assert post(server, odd)[0] == 400
    status, text, _ = get(server, "/v2/other")
    assert status == 404
    assert "there is no /v2/other here; there are /v1/chat/completions" in text
    status, _, headers = get(server, "/v1/chat/completions")
    assert (status, headers["Allow"]) == (405, "POST")
    assert get(server, "/health", Host="evil.example")[0] == 400
    status, text, _ = post(server, b'{"model": "' + b"x" * 5000 + b'"}')
    assert status == 413
    assert "4096 bytes at most" in text


def test_a_body_of_unsaid_length_is_bounded_too(server: ModelServer) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    # In one piece: the server need not read to the end, and may have closed the connection by then.
    connection.endheaders(b"".join([b"3e8\r\n" + b"x" * 1000 + b"\r\n"] * 6) + b"0\r\n\r\n")
    assert connection.getresponse().status == 413
    connection.close()


def test_the_log_has_no_texts_unless_asked(server: ModelServer, residents: Residents) -> None:
    def one(running: ModelServer) -> str:
        with client(running) as api:
            api.chat.completions.create(
                model="policy", messages=messages(Message("user", "secret words")), max_tokens=2
            )
        return "\n".join(running.told)  # type: ignore[attr-defined]

    quiet = one(server)
    assert "POST /v1/chat/completions 200" in quiet
    assert "secret" not in quiet
    with served(residents, log_texts=True) as telling:
        assert "secret words" in one(telling)


def test_pieces_do_not_wait_for_acknowledgements(server: ModelServer) -> None:
    """Measured without it: 48 ms more for every answer on a connection that is used again."""
    with socket.create_connection(server._socket.getsockname()) as client:

        def mine() -> list[Any]:
            held = [each.transport for each in list(server.server_state.connections)]
            return [each for each in held if each.get_extra_info("peername") == client.getsockname()]

        until(lambda: bool(mine()))
        assert mine()[0].get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_token_is_asked_for(residents: Residents) -> None:
    with served(residents, token="right") as guarded:
        with client(guarded, key="wrong") as api, pytest.raises(openai.AuthenticationError) as refused:
            api.models.list()
        assert refused.value.code == "invalid_api_key"
        with client(guarded, key="right") as api:
            assert len(list(api.models.list())) == 2
        assert get(guarded, "/metrics")[0] == 401
        assert get(guarded, "/health")[0] == 200


def test_a_full_queue_and_a_graceful_stop(residents: Residents) -> None:
    """One answers, one waits, the third is refused; a stop lets the first two finish."""
    asked: Any = {"model": "policy", "messages": messages(*QUESTION), "max_tokens": 5, "seed": 1}
    with (
        gated(residents.base) as gate,
        served(residents, rows=1, queue=1) as running,
        client(running) as api,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(api.chat.completions.create, **asked)
        until(lambda: len(running.batcher._running) == 1)
        second = pool.submit(api.chat.completions.create, **asked)
        until(lambda: running.batcher.waiting == 1)
        with pytest.raises(openai.RateLimitError) as full:
            api.chat.completions.create(**asked)
        assert int(full.value.response.headers["Retry-After"]) >= 1
        running.batcher.drain()
        with pytest.raises(openai.InternalServerError) as stopping:
            api.chat.completions.create(**asked)
        assert stopping.value.status_code == 503
        assert get(running, "/health")[0] == 503
        running.stop()
        gate.set()
        assert first.result(PATIENCE).usage.completion_tokens == 5
        assert second.result(PATIENCE).choices == first.result().choices


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_is_not_worked_for(residents: Residents, stream: bool) -> None:
    asked = {"model": "policy", "messages": messages(*QUESTION), "max_tokens": 900, "stream": stream}
    with gated(residents.base) as gate, served(residents) as running:
        connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=PATIENCE)
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"}
        )
        until(lambda: len(running.batcher._running) == 1)
        connection.close()
        (job,) = running.batcher._running
        until(lambda: job.cancelled)
        gate.set()
        until(lambda: not running.batcher._running)
        assert running.batcher.rows == 0
        assert job.tokens <= 1
        assert "rlaif_cancelled_total 1" in get(running, "/metrics")[1]


def test_a_failed_step_ends_its_requests_and_no_others(residents: Residents) -> None:
    asked: Any = {"model": "policy", "messages": messages(*QUESTION), "max_tokens": 5, "seed": 1}

    def fail(*_inputs: Any, **_options: Any) -> Any:
        raise RuntimeError("out of memory\nand a long trace")

    with served(residents) as running, client(running) as api:
        residents.base.hidden = fail  # type: ignore[method-assign]
        try:
            with pytest.raises(openai.InternalServerError, match="the model failed"):
                api.chat.completions.create(**asked)
            with pytest.raises(openai.APIError, match="the model failed"):
                list(api.chat.completions.create(**asked, stream=True))
        finally:
            del residents.base.hidden  # type: ignore[method-assign]
        assert api.chat.completions.create(**asked).usage.completion_tokens == 5
        assert "a step of policy-0 failed: out of memory" in running.told  # type: ignore[attr-defined]


def test_what_outlasts_the_grace_is_cancelled(residents: Residents) -> None:
    asked: Any = {"model": "policy", "messages": messages(*QUESTION), "max_tokens": 500, "seed": 1}
    with (
        gated(residents.base) as gate,
        served(residents, grace=0) as running,
        client(running) as api,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(api.chat.completions.create, **asked)
        until(lambda: len(running.batcher._running) == 1)
        (job,) = running.batcher._running
        running.stop()
        until(lambda: job.cancelled)
        gate.set()
        with pytest.raises(openai.APIError):
            answer.result(PATIENCE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_the_decoder_ends_the_server(residents: Residents) -> None:
    """It fails the request that met it, and the program ends with an error instead of refusing for ever."""
    server = ModelServer(residents, ServerSettings(port=0), lambda line: None)
    ends: list[BaseException] = []

    def run() -> None:
        try:
            server.run_until_stopped()
        except ModelError as error:
            ends.append(error)

    def fail(*_inputs: Any, **_options: Any) -> Any:
        raise TypeError("a defect")

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: server.started)
    residents.base.hidden = fail  # type: ignore[method-assign]
    try:
        with client(server) as api, pytest.raises(openai.InternalServerError, match="stopped before"):
            api.chat.completions.create(model="policy", messages=messages(*QUESTION))
    finally:
        del residents.base.hidden  # type: ignore[method-assign]
        server.stop()
        thread.join(PATIENCE)
    assert "the decoder ended by a defect" in str(ends[0])
    assert residents.base.active == REFERENCE


def test_output_that_is_not_finite_is_an_error(residents: Residents) -> None:
    heard: list[Any] = []
    batcher = Batcher(residents.base, Limits.of(residents.base))
    logits_at = residents.base.logits_at
    residents.base.logits_at = lambda state: logits_at(state) * float("nan")  # type: ignore[method-assign]
    batcher.start()
    try:
        batcher.submit(Job(REFERENCE, (5, 6), QUESTION, Sampling(4), 0, heard.append))
        until(lambda: bool(heard))
    finally:
        batcher.stop()
        del residents.base.logits_at  # type: ignore[method-assign]
    (told,) = heard
    assert isinstance(told, Failed)
    assert "not finite" in told.reason


def test_a_stop_fails_what_is_left(residents: Residents) -> None:
    heard: list[Any] = []
    batcher = Batcher(residents.base, Limits(rows=1, queue=2, cache=100, prefill=10))
    with gated(residents.base):
        batcher.start()
        jobs = [Job(REFERENCE, (5, 6), QUESTION, Sampling(200), 0, heard.append) for _ in range(3)]
        batcher.submit(jobs[0])
        until(lambda: len(batcher._running) == 1)
        batcher.submit(jobs[1])
        batcher.submit(jobs[2])
        with pytest.raises(QueueFull):
            batcher.submit(jobs[2])
        batcher.stop(timeout=0)
    until(lambda: sum(isinstance(each, Failed) for each in heard) == 3)
    assert {type(each) for each in heard} <= {Delta, Failed}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_family_can_be_put_together(kind: Any) -> None:
    """Sliding windows and absolute positions too; a wrong place of the second row is noticed."""
    base = SharedBase.from_model(tiny_model(kind), tiny_tokenizer())
    check_joining(base)
    hidden = base.hidden

    def shifted(ids: Any, mask: Any, positions: Any = None, **options: Any) -> Any:
        return hidden(ids, mask, None if positions is None else positions + 3, **options)

    base.hidden = shifted  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="computed otherwise than alone"):
        check_joining(base)


def test_the_cache_is_as_long_as_the_longest_row_in_it() -> None:
    """A long row leaves, and so does its room; a row that joins later brings its own."""
    base = SharedBase.from_model(tiny_model(), tiny_tokenizer())
    one = Lane(base, REFERENCE, frozenset())

    def rows(prompt: int, new: int, samples: int = 1) -> list[Row]:
        ids = tuple(5 + at % 200 for at in range(prompt))
        job = Job(REFERENCE, ids, QUESTION, Sampling(new), 0, lambda told: None, samples)
        return start_rows(job, base.tokenizer, ())

    one.join([*rows(100, 2), *rows(5, 12)])
    assert [one._mask.shape, one._cache.get_seq_length()] == [(2, 100), 100]
    one.step()
    assert [one._mask.shape, one._cache.get_seq_length()] == [(1, 6), 6]
    one.join(rows(30, 2, samples=3))
    assert [one._mask.shape, one._cache.get_seq_length()] == [(4, 30), 30]
    one.step()
    assert [one._mask.shape, one._cache.get_seq_length()] == [(1, 7), 7]
    while one.rows:
        one.step()
    assert one._cache.get_seq_length() == 0


def test_who_joins_in_which_order() -> None:
    """Nobody passes a request that does not fit; one that never fits goes alone."""
    base = SharedBase.from_model(tiny_model(), tiny_tokenizer())
    batcher = Batcher(base, Limits(rows=3, queue=9, cache=60, prefill=20))

    def job(samples: int, prompt: int = 5, new: int = 5) -> Job:
        ids = tuple(range(5, 5 + prompt))
        return Job(REFERENCE, ids, QUESTION, Sampling(new), 0, lambda told: None, samples)

    def admitted(*jobs: Job) -> list[int]:
        batcher._waiting.clear()
        batcher._waiting.extend(jobs)
        taken = {id(row.job) for row in batcher._admit(REFERENCE)}
        return [at for at, each in enumerate(jobs) if id(each) in taken]

    assert admitted(job(1), job(2), job(1)) == [0, 1]
    assert admitted(job(2), job(2), job(1)) == [0]
    assert admitted(job(1, new=500), job(1)) == [0]
    assert admitted(job(1), job(1, new=50), job(1)) == [0]
    assert admitted(job(1), job(1, prompt=15), job(1)) == [0]
    assert batcher._admit("policy") == []


def test_a_cache_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = SharedBase.from_model(tiny_model(), tiny_tokenizer())
    monkeypatch.setattr(lane, "DynamicLayer", dict)
    with pytest.raises(ModelError, match="not one of keys and values alone"):
        check_joining(base)


def test_a_stream_of_tokens_decodes_as_the_whole() -> None:
    tokenizer = tiny_tokenizer()
    generator = torch.Generator().manual_seed(0)
    text = "the other: où, 水, 🙂 yes"
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    drawn = [torch.randint(3, 270, (12,), generator=generator).tolist() for _ in range(50)]
    for tokens in [whole, *drawn]:
        stream = TextStream(tokenizer)
        pieces = [*(stream.push(token) for token in tokens), stream.close()]
        assert "".join(pieces) == well_formed(tokenizer.decode(tokens, skip_special_tokens=True))
    stream = TextStream(tokenizer, ["水, x", ", 水"])
    pieces = [stream.push(token) for token in whole]
    assert "".join(pieces) + stream.close() == "the other: où"
    assert stream.stopped


def test_a_signal_ends_the_program_gracefully(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The program in this process, ended by SIGTERM once it has answered."""
    answers: list[str] = []
    arguments = ["serve", "--policy", str(folder / "policy"), "--port", "0", "--device", "cpu"]

    def ask_and_end() -> None:
        said, end = "", time.monotonic() + PATIENCE
        while "serving http" not in said:
            assert time.monotonic() < end, "it does not serve"
            time.sleep(0.01)
            said += capfd.readouterr().out
        url = said.partition("serving ")[2].split()[0]
        with openai.OpenAI(base_url=url, api_key="none", timeout=PATIENCE) as api:
            made = api.chat.completions.create(
                model=str(folder / "policy"), messages=messages(*QUESTION), max_tokens=3
            )
            answers.append(made.choices[0].finish_reason)
        os.kill(os.getpid(), signal.SIGTERM)

    asker = threading.Thread(target=ask_and_end)
    asker.start()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    asker.join(PATIENCE)
    assert ended.value.code == 0
    assert answers[0] in ("stop", "length")
    assert capfd.readouterr().out.splitlines()[-1] == "stopped"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is nothing to serve"),
        (["--policy", "nowhere"], "there is no policy in 'nowhere'"),
        (["--model", "{root}/policy"], "is an adapter, not a base"),
        (["--model", "openai:x"], "does not run in this process"),
        (["--policy", "{root}/policy", "--policy", "{root}/policy"], "two policies have one name"),
        (["--policy", "{root}/base={root}/policy", "--model", "{root}/base"], "are both called"),
        (["--policy", "{root}/policy", "--reward", "{root}/policy"], "contains no reward model"),
        (["--model", "{root}/base", "--host", "0.0.0.0"], "without a token"),
        (["--model", "{root}/base", "--token-env", "RLAIF_UNSET"], "there is no token"),
        (["--model", "{root}/base", "--host", "192.0.2.1", "--token-file", "{root}/t"], "cannot listen on"),
    ],
)
def test_what_cannot_be_served_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    (folder / "t").write_text("token\n", "utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0", *(each.format(root=folder) for each in arguments)])
    assert ended.value.code == 1
    assert says in capsys.readouterr().err.replace("\n", " ")


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "rlaif.serving.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit):
        main(["serve", "--model", "x"])
    assert "pip install 'rlaif-toolkit[serve]'" in capsys.readouterr().err


def test_a_token_is_one_printable_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("two words\n", "utf-8")
    with pytest.raises(ConfigError, match="there is no token"):
        read_token(tmp_path / "token", None)
    monkeypatch.setenv("RLAIF_TOKEN_HERE", " abc\n")
    assert read_token(None, "RLAIF_TOKEN_HERE") == "abc"
    with pytest.raises(ConfigError, match="named twice"):
        read_token(tmp_path / "token", "RLAIF_TOKEN_HERE")
