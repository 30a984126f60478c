"""The server, asked in this process what its own description allows and what it does not: nothing but what the
description says may be answered, and never a defect.

    RLAIF_FUZZ_EXAMPLES=3000 RLAIF_FUZZ_SEED=7 pytest tests/integration/test_fuzzed_server.py

runs longer, with other requests.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from standin import Dropped, Standin, error, event, piece, story, whole
from tiny import save_tiny

from rlaif.serving.passed import UpstreamSettings
from rlaif.serving.residents import open_residents
from rlaif.serving.server import ModelServer, ServerSettings

EXAMPLES = int(os.environ.get("RLAIF_FUZZ_EXAMPLES", "40"))
SEED = int(os.environ.get("RLAIF_FUZZ_SEED", "0"))
HERE = "http://localhost"
TOKEN = "right"

pytestmark = pytest.mark.usefixtures("one_thread")


def running(served: Any, token: str = "") -> Iterator[ModelServer]:
    """A server whose decoder runs and which is asked without a socket."""
    log: list[str] = []
    settings = ServerSettings(port=0, rows=4, most_tokens=4, most_body=1 << 16, token=token)
    server = ModelServer(served, settings, log.append)
    server.batcher.start()
    try:
        yield server
    finally:
        server.batcher.stop()
        server._socket.close()
    assert [line for line in log if "Traceback" in line] == []


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    folder = save_tiny(tmp_path_factory.mktemp("fuzzed"))
    yield from running(open_residents(str(folder), (), dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def passing() -> Iterator[ModelServer]:
    """Before an upstream that answers, in turn, in every way it can, well and badly."""
    with Standin() as upstream:
        broken = error(500, "broken")
        upstream.answer = lambda body: [
            lambda: upstream.sse(*story("Yes", ".")),
            lambda: upstream.sse(piece("Yes"), Dropped),
            lambda: upstream.sse(piece("Yes"), event({"error": "no memory"})),
            lambda: error(400, "not so", param="x"),
            lambda: error(429, "full", retry_after="60"),
            lambda: upstream.sse(event(whole("Yes"))),
            lambda: broken,
        ][len(upstream.asked) % 7]()
        yield from running(UpstreamSettings(url=upstream.url), TOKEN)


bounds = settings(
    max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def fuzz(server: ModelServer, **headers: str) -> Counter[tuple[str, str, int]]:
    """Ask every operation for what its description allows, and its bodies for what they do not; returns how
    often each answered with which status."""
    answered: Counter[tuple[str, str, int]] = Counter()
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", server.config.app, headers={"Host": "localhost"} | headers
    )
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if operation.body else [])):

            def ask(case: Any) -> None:
                answer = case.call(base_url=HERE, headers=headers)
                answered[case.path, mode.value, answer.status_code] += 1  # noqa: B023
                left_out = [positive_data_acceptance]  # what is allowed may be too long, or contradict itself
                if answer.status_code == 502:  # the upstream's failure, not the server's
                    left_out.append(not_a_server_error)
                if answer.status_code == 413:  # schemathesis does not count it among refusals
                    left_out.append(negative_data_rejection)
                case.validate_response(answer, headers=headers, excluded_checks=left_out)

            seed(SEED)(bounds(given(case=operation.as_strategy(generation_mode=mode))(ask)))()
    return answered


def test_a_server_with_a_model_answers_as_it_says(local: ModelServer) -> None:
    answered = fuzz(local)
    chat = {
        (mode, status): n for (path, mode, status), n in answered.items() if path == "/v1/chat/completions"
    }
    assert {status for _, status in chat} - {413} == {200, 400, 404}
    assert chat["positive", 200] >= EXAMPLES // 4
    assert ("negative", 200) not in chat
    assert {path for path, _, status in answered if status == 200} == {
        "/v1/chat/completions",
        "/v1/models",
        "/v1/info",
        "/health",
        "/metrics",
    }


def test_a_server_before_another_answers_as_it_says(
    passing: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlaif.serving.upstream.BACKOFF", 0.001)
    answered = fuzz(passing, Authorization=f"Bearer {TOKEN}")
    chat = {status for path, _, status in answered if path == "/v1/chat/completions"}
    assert chat - {413} == {200, 400, 401, 429, 502}  # the key is left out, too


def test_the_description_is_of_this_server(local: ModelServer, passing: ModelServer) -> None:
    """Names, bounds and answers are those of the server that is asked."""

    def read(server: ModelServer, **headers: str) -> Any:
        client = schemathesis.python.asgi.get_client(server.config.app)
        with client as asking:
            return json.loads(asking.get(f"{HERE}/openapi.json", headers=headers).content)

    here, there = read(local), read(passing, Authorization=f"Bearer {TOKEN}")
    form = here["components"]["schemas"]["ChatRequest"]
    assert form["additionalProperties"] is False
    assert len(form["properties"]["model"]["enum"]) == 1
    assert form["properties"]["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 4}
    assert form["properties"]["n_best"]["anyOf"][0]["maximum"] == 1
    assert form["properties"]["max_tokens"]["anyOf"][0]["maximum"] == 4
    assert form["properties"]["seed"]["anyOf"][0] == {
        "type": "integer",
        "minimum": -(2**63),
        "maximum": 2**63 - 1,
    }
    assert set(here["paths"]["/v1/chat/completions"]["post"]["responses"]) == {
        "200", "400", "404", "413", "429", "500", "503"
    }  # fmt: skip
    assert "securitySchemes" not in here["components"]
    form = there["components"]["schemas"]["PassedRequest"]
    assert form["additionalProperties"] is True
    assert "enum" not in form["properties"]["model"]
    assert {"401", "502", "504"} < set(there["paths"]["/v1/models"]["get"]["responses"])
    assert "security" not in there["paths"]["/health"]["get"]
    assert not any("Validation" in name for name in here["components"]["schemas"])
