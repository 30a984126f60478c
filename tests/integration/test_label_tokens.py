"""Labels read by their own tokens from a server that tells log-probabilities by id, and from others as
before."""

from __future__ import annotations

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from spine import call, rows
from tiny import save_tiny

from rlaif.engines.base import LabelRequest
from rlaif.engines.hf import HFEngine
from rlaif.engines.openai import ApiSettings, OpenAIEngine
from rlaif.models.load import load_engine
from rlaif.types import Message

pytestmark = pytest.mark.usefixtures("one_thread")
Way = Literal["honours", "ignores", "refuses", "forgets"]
TOP = 3


class Vllm:
    """Serves a model in this process as vLLM does, as far as one token goes.

    Args:
        way: What is done with `logprob_token_ids`; `forgets`: honoured in the handshake, ignored after it.
    """

    def __init__(self, engine: HFEngine, way: Way) -> None:
        self.engine, self.way = engine, way
        self.asked: list[dict[str, Any]] = []
        self.tokenized: list[str] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._lock = threading.Lock()

    def __enter__(self) -> Vllm:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self.engine.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/tokenize":
            self.tokenized.append(body["prompt"])
            return 200, {"tokens": self.tokens(body["prompt"]), "count": 1}
        wanted = body.get("logprob_token_ids")
        if wanted and self.way == "refuses":
            return 400, {"error": {"message": "Extra inputs are not permitted: logprob_token_ids"}}
        probe = "return_tokens_as_token_ids" in body
        if not probe:
            self.asked.append(body)
        messages = [Message(turn["role"], turn["content"]) for turn in body["messages"]]
        with self._lock:
            scores = self._scores(messages)
        best = scores.argsort(descending=True)[
            : body["top_logprobs"] if body["top_logprobs"] < TOP else TOP
        ].tolist()
        honoured = wanted and (self.way == "honours" or (self.way == "forgets" and probe))
        told = dict.fromkeys([best[0], *wanted] if honoured else best)
        entries = [self._entry(token, float(scores[token]), as_id=probe) for token in told]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.engine.tokenizer.decode([best[0]])},
            "finish_reason": "length",
            "logprobs": {"content": [{**entries[0], "top_logprobs": entries}]},
        }
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}

    def _scores(self, messages: list[Message]) -> Any:
        form = self.engine.form
        (ids,) = form.encode([form.render(messages)])
        import torch

        with torch.no_grad():
            logits = self.engine.model(input_ids=torch.tensor([ids])).logits[0, -1]
        return logits.double().log_softmax(-1)

    def _entry(self, token: int, logprob: float, *, as_id: bool) -> dict[str, Any]:
        text = f"token_id:{token}" if as_id else self.engine.tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 512}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._send(*served.reply(self.path.removeprefix("/v1"), body))

            def _send(self, status: int, value: Any) -> None:
                raw = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                return

        return Handler


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    loaded = load_engine(str(save_tiny(tmp_path_factory.mktemp("model"), sharpness=1.0)), dtype="float32")
    assert isinstance(loaded, HFEngine)
    return loaded


def questions(*labels: str) -> list[LabelRequest]:
    return [LabelRequest((Message("user", f"Question {n}?"),), labels) for n in range(6)]


def read(server: Vllm, asked: list[LabelRequest], **settings: Any) -> tuple[OpenAIEngine, list[Any]]:
    client = OpenAIEngine("m", [server.url], settings=ApiSettings(continues=True, retries=0, **settings))
    found = {at: answer for batch in client.label_logprobs(asked) for at, answer in batch.items()}
    return client, [found[at] for at in range(len(asked))]


@pytest.mark.parametrize("labels", [(" A", " B"), ("the", "er"), ("zq", "xk")])
def test_labels_far_from_the_top_are_exact(engine: HFEngine, labels: tuple[str, str]) -> None:
    asked = questions(*labels)
    with Vllm(engine, "honours") as server:
        client, found = read(server, asked)
        assert "of the labels by id" in client.card.reads
        for request, reading in zip(asked, found, strict=True):
            assert reading.reason == ""
            assert reading.bounded == ()
            scores = server._scores(list(request.messages))
            for label, logprob in zip(labels, reading.logprobs, strict=True):
                spelled = {server.tokens(text)[0] for text in (label, label.strip(), f" {label.strip()}")}
                # Every spelling that is the label, or else its own first token.
                whole = [t for t in spelled if engine.tokenizer.decode([t]).strip() == label.strip()]
                exact = math.log(sum(math.exp(float(scores[token])) for token in whole or spelled))
                if whole:
                    assert logprob == pytest.approx(exact, abs=1e-5)
    assert len(server.tokenized) == len(set(server.tokenized)), "a text is tokenised once"


@pytest.mark.parametrize("way", ["ignores", "refuses"])
def test_a_server_that_does_not_know_the_field_is_read_as_before(engine: HFEngine, way: Way) -> None:
    with Vllm(engine, way) as server:
        client, found = read(server, questions(" A", " B"))
        assert "by id" not in client.card.reads
        assert all("logprob_token_ids" not in body for body in server.asked)
        assert {reading.reason for reading in found} <= {"", "labels_not_in_top"}
    with Vllm(engine, "honours") as server:
        client, _ = read(server, questions(" A", " B"), label_tokens="never")
        assert "by id" not in client.card.reads
        assert not server.tokenized


def test_a_server_that_stops_honouring_it_is_never_read_wrongly(engine: HFEngine) -> None:
    asked = questions(" A", " B")
    with Vllm(engine, "forgets") as server:
        _, found = read(server, asked)
    with Vllm(engine, "ignores") as server:
        _, before = read(server, asked)
    assert [each.logprobs for each in found] == [each.logprobs for each in before]
    assert [each.reason for each in found] == [each.reason for each in before]


def test_a_label_run_says_what_it_found(engine: HFEngine, tmp_path: Path) -> None:
    with Vllm(engine, "honours") as server:
        said = call(
            "label", "--judge", "openai:m", "--base-url", server.url, "--server", "continues=true", "--policy", "scripted",
            "--limit", 2, "--k", 2, "--set", "min_label_share=0", "--out", tmp_path / "run",
        )  # fmt: skip
    assert said.status == 0, said.err
    assert "labels are read from their own tokens" in said.out + said.err
    verdicts = rows(tmp_path / "run" / "label" / "verdicts.jsonl")
    assert verdicts
    assert all(row["reason"] == "" for row in verdicts)
