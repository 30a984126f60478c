"""The page beside the API of a real `rlaif serve`: it is there without a token, and nothing else of the disk is."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator

import pytest
from tiny import save_tiny

from rlaif.serving.residents import Residents, open_residents
from rlaif.serving.server import ModelServer, ServerSettings

PATIENCE = 30.0
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def residents(tmp_path_factory: pytest.TempPathFactory) -> Residents:
    model = save_tiny(tmp_path_factory.mktemp("page") / "base")
    return open_residents(str(model), [], dtype="float32", device="cpu")


@pytest.fixture(scope="module", params=["", "secret"], ids=["open", "token"])
def server(request: pytest.FixtureRequest, residents: Residents) -> Iterator[ModelServer]:
    running = ModelServer(residents, ServerSettings(port=0, token=request.param), lambda line: None)
    thread = threading.Thread(target=running.run_until_stopped)
    thread.start()
    end = time.monotonic() + PATIENCE
    while not running.started:
        assert time.monotonic() < end
        time.sleep(0.005)
    yield running
    running.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def get(server: ModelServer, path: str, token: str = "") -> tuple[int, str, http.client.HTTPMessage]:
    """The path is sent as it stands here, with all its dots."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), answer.headers
    connection.close()
    return found


def test_the_page_is_there(server: ModelServer) -> None:
    status, text, headers = get(server, "/")
    assert status == 200
    assert text.startswith("<!doctype html>")
    assert headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    assert headers["X-Request-Id"]


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/page/../__init__.py",
        "/page/%2e%2e/guard.py",
        "/page/..%2fguard.py",
        "/page/..%5cguard.py",
        "/page//etc/passwd",
        "//etc/passwd",
        "/page/page.js%00.html",
        "/page/__init__.py",
        "/page/",
    ],
)
def test_no_other_file_is(server: ModelServer, path: str) -> None:
    assert get(server, path)[0] == (401 if server.config.app.settings.token else 404)  # type: ignore[union-attr]
    assert get(server, path, "secret")[0] == 404


def test_what_the_server_has_is_told(server: ModelServer, residents: Residents) -> None:
    status, text, _ = get(server, "/v1/info", "secret")
    assert status == 200
    (name,) = residents.roles
    assert json.loads(text) == {"models": [name], "collect": None, "moderation": None, "directives": None}


def test_a_path_that_is_not_there_is_told_of_the_others(server: ModelServer) -> None:
    _, text, _ = get(server, "/v2", "secret")
    assert "/v1/info" in text
    assert "/metrics, /" in text
