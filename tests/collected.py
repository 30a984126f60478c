"""A server that collects chats, on a free port in a thread of its own, with the official client."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from rlaif.chats.keeper import ChatKeeper
from rlaif.chats.store import ChatsFile
from rlaif.serving.residents import Residents
from rlaif.serving.server import ModelServer, ServerSettings

__all__ = ["ASKED", "PATIENCE", "Collected", "collected"]

PATIENCE = 30.0
ASKED: Any = {"model": "policy", "messages": [{"role": "user", "content": "What is yes?"}], "max_tokens": 6}


class Collected:
    """A server that collects, its file and its log."""

    def __init__(self, server: ModelServer, path: Path, log: list[str]) -> None:
        self.server, self.path, self.log = server, path, log
        self._reader: ChatsFile | None = None
        self.api = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)

    def ask(self, **changed: Any) -> Any:
        return self.api.chat.completions.create(**(ASKED | {"store": True} | changed))

    def send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                text = answer.read().decode()
                return answer.status, json.loads(text) if text.startswith("{") else text
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def kept(self) -> ChatsFile:
        """A reader of its own, which sees what is committed."""
        self._reader = self._reader or ChatsFile(self.path, create=False)
        return self._reader

    def close(self) -> None:
        self.api.close()
        if self._reader is not None:
            self._reader.close()

    def metric(self, name: str) -> int:
        lines = self.send("GET", "/metrics")[1].splitlines()
        return sum(int(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} "))


@contextmanager
def collected(residents: Residents, path: Path | None, **options: Any) -> Iterator[Collected]:
    log: list[str] = []
    chats = None if path is None else ChatKeeper(ChatsFile(path), log=log.append, **options)
    settings = ServerSettings(port=0, rows=4, consent="We keep it.")
    server = ModelServer(residents, settings, log.append, chats=chats)
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    try:
        end = time.monotonic() + PATIENCE
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.002)
        told = Collected(server, path or Path(), log)
        yield told
        told.close()
    finally:
        server.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive()
