"""The parts of `rlaif serve` where they meet, and where one of them is slow, breaks, or is asked too much."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import JSONResponse
from moderators import Oracle
from standin import DONE, PATIENCE, Dropped, Standin, piece, story, until, whole
from tiny import save_tiny

from rlaif.engines.base import LabelRequest
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import DataError
from rlaif.moderation.base import Scores
from rlaif.serving import chunks
from rlaif.serving.batcher import Batcher, Limits
from rlaif.serving.cascade import Cascade
from rlaif.serving.decoder import NotServing
from rlaif.serving.hold import Flag
from rlaif.serving.moderating import Moderation, blocked_message
from rlaif.serving.passed import UpstreamSettings
from rlaif.serving.residents import Residents, open_residents
from rlaif.serving.server import ModelServer, ServerSettings
from rlaif.serving.steering import open_steering
from rlaif.serving.worker import Worker
from rlaif.types import Answers, Constitution, Message, Principle

NOTICE = blocked_message(Flag("oracle", 0.9))
BOTH = (
    "directives: [{id: both, when: {regex: cats}, both_sides: {a: {label: A, prior: Yes.}, "
    "b: {label: B, prior: No.}}}]"
)
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
def served(served: Any, settings: dict[str, Any] | None = None, **parts: Any) -> Iterator[ModelServer]:
    log: list[str] = []
    server = ModelServer(
        served, ServerSettings(**({"port": 0, "most_tokens": 8} | (settings or {}))), log.append, **parts
    )
    server.told = log  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run_until_stopped, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive()


def before(upstream: Standin, **change: Any) -> UpstreamSettings:
    return UpstreamSettings(url=upstream.url, **change)


def send(server: ModelServer, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON (or text) of an answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if text.startswith("{") else text
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read())


def ask(server: ModelServer, text: str = "Who?", **change: Any) -> tuple[int, Any]:
    messages = [{"role": "user", "content": text}]
    return send(server, "/v1/chat/completions", {"model": "big", "messages": messages} | change)


def connected(server: ModelServer, **change: Any) -> http.client.HTTPConnection:
    """A request that was sent, whose answer is not read."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    body = {"model": "big", "messages": [{"role": "user", "content": "Who?"}]} | change
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


def name_of(residents: Residents) -> str:
    return next(iter(residents.roles))


class Judge:
    """Is asked about answers that hold QZQ; waits for `gate`, and does what `answer` does."""

    def __init__(self, answer: Callable[[], list[float]] = lambda: [-0.1, -3.0]) -> None:
        self.gate = threading.Event()
        self.asked = 0
        self.told: list[str] = []
        self._answer = answer

    def moderation(self, moderator: Oracle | None = None) -> Moderation:
        principle = Principle("oracle", question="Is it calm?", answers=Answers("yes", "no"))
        constitution = Constitution("c", (principle,))
        cascade = Cascade(ScriptedEngine(labels=self._labels), constitution, log=self.told.append)
        return Moderation(moderator or Oracle("QZQ"), hold=2, cascade=cascade)

    def _labels(self, request: LabelRequest) -> list[float]:
        self.asked += 1
        assert self.gate.wait(PATIENCE)
        return self._answer()


class Slow(Oracle):
    """Waits for `gate` where it reads an answer, or a prompt that says `slow`; notes the threads that asked."""

    def __init__(self, word: str = "QZQ") -> None:
        super().__init__(word)
        self.gate, self.reading = threading.Event(), threading.Event()
        self.threads: set[str] = set()

    def wait(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.reading.set()
        assert self.gate.wait(2 * PATIENCE)

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Scores]:
        if any("slow" in turn.content for turns in conversations for turn in turns):
            self.wait()
        self.threads.add(threading.current_thread().name)
        return super().scores(conversations)

    def watch(self, messages: Sequence[Message]) -> Any:
        watch = super().watch(messages)
        push = watch.push

        def waiting(text: str, states: Any) -> Scores:
            self.wait()
            return push(text, states)

        watch.push = waiting  # type: ignore[method-assign]
        return watch


def test_both_sides_of_an_upstream_that_tells_no_usage(upstream: Standin, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text(BOTH)
    upstream.answer = lambda body: upstream.sse(piece("Hm."), piece(finish="stop"), DONE)
    with served(before(upstream), steering=open_steering(tmp_path / "d.yaml")) as server:
        status, answer = ask(server, "cats")
    assert status == 200
    assert len(answer["choices"]) == 2
    assert answer["usage"] is None


def test_both_sides_need_one_place_in_the_queue(residents: Residents, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text(BOTH)
    steering = open_steering(tmp_path / "d.yaml")
    with served(residents, {"queue": 1}, steering=steering) as server:
        found = [ask(server, "cats", model=name_of(residents)) for _ in range(3)]
    assert [(status, len(answer["choices"])) for status, answer in found] == [(200, 2)] * 3


def test_both_sides_at_an_upstream_need_one_place_in_the_queue(upstream: Standin, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text(BOTH)
    steering = open_steering(tmp_path / "d.yaml")
    with served(before(upstream, queue=1, rows=1), steering=steering) as server:
        status, answer = ask(server, "cats")
    assert status == 200
    assert len(answer["choices"]) == 2


def test_what_a_moderator_of_the_directives_cannot_read_is_refused(
    residents: Residents, tmp_path: Path
) -> None:
    class Strict(Oracle):
        def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Scores]:
            if conversations[0][0].role == "assistant":
                raise DataError("there is no message before the answer")
            return super().scores(conversations)

    (tmp_path / "d.yaml").write_text("directives: [{id: d, when: {moderation: oracle}, prior: Hm.}]")
    moderation = Moderation(Strict("QZQ"))
    steering = open_steering(tmp_path / "d.yaml", moderators=[moderation.from_elsewhere])
    with served(residents, moderation=moderation, steering=steering) as server:
        messages = [{"role": "assistant", "content": "I"}]
        status, answer = ask(server, model=name_of(residents), messages=messages)
    assert status == 400
    assert "there is no message before the answer" in answer["error"]["message"]
    assert answer["error"]["param"] == "messages"


# Moderation before an upstream


def test_moderators_of_an_upstream_share_a_thread_and_hold_up_no_connection(upstream: Standin) -> None:
    moderator = Slow()
    with served(before(upstream), moderation=Moderation(moderator, hold=2)) as server:
        asking = connected(server)
        assert moderator.reading.wait(PATIENCE)
        with ThreadPoolExecutor(1) as pool:
            listed = pool.submit(send, server, "/v1/models")
            try:
                assert listed.result(PATIENCE / 3)[0] == 200
            finally:
                moderator.gate.set()
        answer = asking.getresponse()
        assert json.loads(answer.read())["choices"][0]["message"]["content"] == "Hello there."
        asking.close()
        assert send(server, "/v1/moderations", {"input": "slow"})[0] == 200
    assert len(moderator.threads) == 1


@pytest.mark.parametrize("ended", [True, False])
def test_a_judge_with_a_defect_blocks(upstream: Standin, ended: bool) -> None:
    def broken() -> list[float]:
        raise ValueError("a defect")

    judge, rest = Judge(broken), threading.Event()
    texts = [piece(each) for each in "aQZQb"]
    upstream.answer = lambda body: upstream.sse(*texts, rest, piece(finish="stop"), DONE)
    with served(before(upstream), moderation=judge.moderation()) as server:
        asking = connected(server)
        until(lambda: judge.asked == 1)
        if ended:
            rest.set()
            until(lambda: server.batcher.rows == 0)
        judge.gate.set()
        if not ended:
            until(lambda: bool(judge.told))
            rest.set()
        answer = json.loads(asking.getresponse().read())
        asking.close()
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert any("a defect" in line for line in judge.told)


def test_a_judge_with_a_defect_ends_no_server(residents: Residents) -> None:
    def broken() -> list[float]:
        raise ValueError("a defect")

    judge = Judge(broken)
    judge.gate.set()
    with served(residents, moderation=judge.moderation(Anything())) as server:
        status, answer = ask(server, model=name_of(residents))
        assert status == 200
        assert answer["choices"][0]["finish_reason"] == "content_filter"
        assert send(server, "/health")[0] == 200


class Anything(Oracle):
    """Flags every token of an answer, and no prompt."""

    def __init__(self) -> None:
        super().__init__("")

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Scores]:
        return [{self.name: 0.1} for _ in conversations]

    def watch(self, messages: Sequence[Message]) -> Any:
        watch = super().watch(messages)
        watch.push = lambda text, states: {self.name: 0.9}  # type: ignore[method-assign]
        return watch


def test_a_moderator_with_a_defect_fails_its_request_and_no_other(upstream: Standin) -> None:
    def defect(flag: Flag) -> str:
        raise ValueError("a defect")

    judge = Judge(lambda: [-3.0, -0.1])
    found = judge.moderation()
    moderation = Moderation(found.moderator, hold=2, cascade=found.cascade, message=defect)
    texts = [piece(each) for each in "aQZQb"]
    upstream.answer = lambda body: upstream.sse(*texts, piece(finish="stop"), DONE)
    with served(before(upstream), moderation=moderation) as server:
        asking = connected(server)
        until(lambda: judge.asked == 1 and server.batcher.rows == 0)
        judge.gate.set()  # what follows is done when the judge has answered
        answer = asking.getresponse()
        assert answer.status == 500
        assert "its log says more" in json.loads(answer.read())["error"]["message"]
        asking.close()
        upstream.answer = lambda body: upstream.sse(*story("Hello"))
        assert ask(server)[0] == 200
        assert any("a defect" in line for line in server.told)  # type: ignore[attr-defined]


def test_an_upstream_that_drops_what_was_blocked_loses_the_usage_alone(upstream: Standin) -> None:
    upstream.answer = lambda body: upstream.sse(*(piece(each) for each in "abQZQ"), Dropped)
    with served(before(upstream), moderation=Moderation(Oracle("QZQ"), hold=3)) as server:
        status, answer = ask(server)
        upstream.answer = lambda body: upstream.sse(
            piece("QZQ"), piece("a", index=1), piece(finish="stop", index=0), Dropped
        )
        half = ask(server, n=2)
    assert status == 200
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["content"] == f"ab\n\n{NOTICE}"
    assert answer["usage"] is None
    assert half[0] == 502  # the other choice is not whole


def test_moderations_before_an_upstream_wait_in_a_queue(upstream: Standin) -> None:
    moderator = Slow()
    moderation = Moderation(moderator)
    with served(before(upstream, queue=2), moderation=moderation) as server, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(send, server, "/v1/moderations", {"input": "slow"}) for _ in range(2)]
        assert moderator.reading.wait(PATIENCE)
        until(lambda: server.batcher._moderators._calls == 2)  # type: ignore[attr-defined]
        status, answer = send(server, "/v1/moderations", {"input": "slow"})
        moderator.gate.set()
        assert [each.result(PATIENCE)[0] for each in asked] == [200, 200]
        assert send(server, "/v1/moderations", {"input": "a"})[0] == 200
    assert status == 429
    assert answer["error"]["code"] == "queue_full"


def test_a_judge_is_not_asked_for_clients_that_left_an_upstream_s_answer(upstream: Standin) -> None:
    judge, texts = Judge(), [piece(each) for each in "aQZQb"]
    upstream.answer = lambda body: upstream.sse(*texts, piece(finish="stop"), DONE)
    with served(before(upstream), moderation=judge.moderation()) as server:
        waiting: Any = server.batcher._moderators._open  # type: ignore[attr-defined]
        asking = [connected(server) for _ in range(3)]
        until(lambda: judge.asked == 1 and len(waiting) == 3 and server.batcher.rows == 0)
        for each in asking:
            each.close()
        until(lambda: not waiting)
        judge.gate.set()
        assert ask(server)[1]["choices"][0]["message"]["content"] == "aQZQb"
    assert judge.asked == 2


def test_a_judge_is_not_asked_for_clients_that_left(residents: Residents) -> None:
    judge = Judge()
    with served(residents, moderation=judge.moderation(Anything())) as server:
        asking = [connected(server, model=name_of(residents), max_tokens=1, seed=1) for _ in range(3)]
        running = server.batcher._running  # type: ignore[attr-defined]
        until(lambda: judge.asked == 1 and len(running) == 3 and server.batcher.rows == 0)
        for each in asking:
            each.close()
        until(lambda: not running)
        judge.gate.set()
        assert ask(server, model=name_of(residents), max_tokens=1, seed=1)[0] == 200
    assert judge.asked == 2


# What a server is asked too much


@pytest.mark.parametrize(
    ("path", "body", "most"),
    [
        ("/v1/moderations", {"input": [1] * 3000}, 3),
        ("/v1/moderations", {"input": "a"} | {f"x{at}": 1 for at in range(3000)}, 1),
        ("/v1/moderations", {"input": {"messages": [1] * 3000}}, 4),
        ("/v1/chat/completions", {"messages": [1] * 3000}, 2),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [1] * 3000}]}, 3),
        ("/v1/chat/completions", {f"x{at}": 1 for at in range(3000)}, 1),
        ("/v1/chat/completions", {"metadata": {f"x{at}": 1 for at in range(3000)}, "messages": []}, 3),
        ("/v1/feedback", {f"x{at}": 1 for at in range(3000)}, 1),
    ],
)
def test_a_body_has_few_problems_however_many_it_has(
    small: ModelServer, path: str, body: Any, most: int
) -> None:
    """Each problem of a body costs a thousand times what its bytes do, on the thread that all requests share."""
    status, answer = send(small, path, body)
    assert status == 400
    said = answer["error"]["message"]
    assert "more problem" not in said
    assert len(said.split("; ")) <= most


@pytest.fixture(scope="module")
def small(standing: Standin) -> Iterator[ModelServer]:
    with served(before(standing), moderation=Moderation(Oracle("QZQ"))) as server:
        yield server


def test_requests_that_wait_for_directives_are_bounded_and_given_up(
    upstream: Standin, tmp_path: Path
) -> None:
    (tmp_path / "d.yaml").write_text("directives: [{id: d, when: {moderation: oracle}, prior: Hm.}]")
    moderator = Slow("nothing")
    steering = open_steering(tmp_path / "d.yaml", moderators=[moderator])
    slow = [{"role": "user", "content": "slow"}]
    with served(before(upstream, queue=3, rows=1), steering=steering) as server:
        planner = server._service._planner
        asking = [connected(server, messages=slow)]
        assert moderator.reading.wait(PATIENCE)
        for at in (1, 2, 3, 4):
            asking.append(connected(server, messages=slow))
            until(lambda at=at: planner.waiting == at)  # type: ignore[misc]
        status, answer = ask(server)
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert send(server, "/v1/models")[0] == 200
        for each in asking[3:]:
            each.close()
        log: list[str] = server.told  # type: ignore[attr-defined]
        until(lambda: sum(" 499 " in line for line in log) == 2)
        moderator.gate.set()
        assert [each.getresponse().status for each in asking[:3]] == [200, 200, 200]
        for each in asking:
            each.close()
    assert len(upstream.asked) == 3


def test_an_upstream_s_body_has_a_longest(upstream: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LONGEST_BODY", 1000)
    with served(before(upstream)) as server:
        upstream.models = [{"id": "big" * 1000}]
        upstream.answer = lambda body: JSONResponse(whole("a" * 1000))
        assert [ask(server)[0], send(server, "/v1/models")[0]] == [502, 502]
        upstream.models = [{"id": "big"}]
        upstream.answer = lambda body: JSONResponse(whole("a" * 100))
        assert [ask(server)[0], send(server, "/v1/models")[0]] == [200, 200]


# How it ends


def test_a_decoder_that_has_ended_takes_no_urgent_work(residents: Residents) -> None:
    batcher = Batcher(residents.base, Limits(rows=1, queue=2, cache=1000, prefill=100))
    batcher.start()
    batcher.stop()
    with pytest.raises(NotServing):
        batcher.call(lambda: None, urgent=True)


def test_a_server_ends_while_a_moderator_of_the_directives_thinks(upstream: Standin, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("directives: [{id: d, when: {moderation: oracle}, prior: Hm.}]")
    moderator = Slow("nothing")
    steering = open_steering(tmp_path / "d.yaml", moderators=[moderator])
    try:
        with served(before(upstream), {"grace": 0}, steering=steering) as server:
            asking = connected(server, messages=[{"role": "user", "content": "slow"}])
            assert moderator.reading.wait(PATIENCE)
        asking.close()
    finally:
        moderator.gate.set()


def test_a_server_ends_while_a_silent_upstream_is_asked_for_its_models() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as open_now:
        silent.settimeout(PATIENCE)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with served(UpstreamSettings(url=url, timeout=4 * PATIENCE), {"grace": 0}) as server:
            open_now.enter_context(silent.accept()[0])  # it asks who is there when it begins
            asking = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
            asking.request("GET", "/v1/models")
            open_now.enter_context(silent.accept()[0])
        asking.close()


SCRIPT = """
import sys, threading
sys.path[:0] = sys.argv[2:]
from moderators import Oracle
from rlaif.engines.scripted import ScriptedEngine
from rlaif.serving.cascade import Cascade
from rlaif.serving.moderating import Moderation
from rlaif.serving.passed import UpstreamSettings
from rlaif.serving.server import ModelServer, ServerSettings
from rlaif.types import Answers, Constitution, Principle

def think(request):
    print("thinking", flush=True)
    threading.Event().wait()

principle = Principle("oracle", question="Is it calm?", answers=Answers("yes", "no"))
cascade = Cascade(ScriptedEngine(labels=think), Constitution("c", (principle,)))
moderation = Moderation(Oracle("QZQ"), hold=2, cascade=cascade)
settings = ServerSettings(port=0, grace=0)
server = ModelServer(UpstreamSettings(url=sys.argv[1]), settings, lambda line: None, moderation=moderation)
print(server.url, flush=True)
try:
    server.run_until_stopped()
except KeyboardInterrupt:
    pass
"""


def test_the_process_ends_while_a_judge_thinks(upstream: Standin) -> None:
    upstream.answer = lambda body: upstream.sse(*(piece(each) for each in "aQZQb"), piece(finish="stop"))
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", SCRIPT, upstream.url, tests, str(Path(__file__).parents[2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip().removeprefix("http://")
            connection = http.client.HTTPConnection(url, timeout=PATIENCE)
            body = json.dumps({"model": "big", "messages": [{"role": "user", "content": "Who?"}]})
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            assert process.stdout.readline() == "thinking\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
            connection.close()
        finally:
            process.kill()


def test_work_that_is_left_when_a_worker_ends() -> None:
    worker, gate, busy = Worker("test"), threading.Event(), threading.Event()

    def wait() -> bool:
        busy.set()
        return gate.wait(PATIENCE)

    first, second, ended = worker.submit(wait), worker.submit(wait), threading.Event()
    assert busy.wait(PATIENCE)
    assert worker.waiting == 1
    worker.close(ended.set)
    worker.close()
    assert second.cancelled()
    with pytest.raises(NotServing):
        worker.submit(wait)
    assert not ended.is_set()
    gate.set()
    assert first.result(PATIENCE) is True
    assert ended.wait(PATIENCE)
