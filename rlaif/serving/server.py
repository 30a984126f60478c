"""The server as a process: where it listens, who may ask, and how it stops.

SIGINT or SIGTERM ends it gracefully: no new request is taken, those under way are finished within the time
of grace, and what is left then is cancelled.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from rlaif.chats.keeper import ChatKeeper
from rlaif.errors import ConfigError, ModelError
from rlaif.files import read_small
from rlaif.serving.app import Service, create_app
from rlaif.serving.collecting import Collecting
from rlaif.serving.decoder import Decoder
from rlaif.serving.guard import Guard, GuardSettings
from rlaif.serving.metrics import Metrics
from rlaif.serving.moderating import Moderation
from rlaif.serving.passed import UpstreamSettings
from rlaif.serving.steering import Steering

if TYPE_CHECKING:
    from rlaif.serving.batcher import Batcher
    from rlaif.serving.residents import Residents
    from rlaif.serving.upstream import Upstream

__all__ = ["ModelServer", "ServerSettings", "check_may_listen", "read_token"]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How it serves.

    Attributes:
        host: Address to listen on.
        port: 0 takes any that is free.
        token: What clients must know; needed where others than this machine can ask.
        rows: Completions sampled side by side; by device when left out.
        queue: Requests that wait, past which one is refused.
        most_tokens: Longest completion.
        most_body: Bytes of a request's body.
        grace: Seconds that requests under way have when the server stops.
        log_texts: Whether the log holds what was asked and answered.
        consent: What people are told before an exchange is kept.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    rows: int | None = None
    queue: int = 64
    most_tokens: int = 1024
    most_body: int = 1 << 20
    grace: int = 30
    log_texts: bool = False
    consent: str = ""


class ModelServer(uvicorn.Server):
    """Serves residents, or an upstream; `run_until_stopped` returns after a signal or `stop`.

    Args:
        served: The models in this process, or where the server is that answers.
        log: Told a line for every request.
        moderation: Decides what is decoded and what of it goes out.
        chats: Keeps the exchanges that agree to it; closed when the server ends.
        steering: Directives that every answer follows.

    Raises:
        ConfigError: The address is taken or may not be listened on.
    """

    def __init__(
        self,
        served: Residents | UpstreamSettings,
        settings: ServerSettings,
        log: Callable[[str], None],
        *,
        moderation: Moderation | None = None,
        chats: ChatKeeper | None = None,
        steering: Steering | None = None,
    ) -> None:
        check_may_listen(settings.host, settings.token)
        self._broken = False
        metrics, self._chats = Metrics(), chats
        self.batcher: Decoder
        upstream = residents = None
        if isinstance(served, UpstreamSettings):
            self.batcher = upstream = _upstream(served, log, metrics)
        else:
            residents = served
            layers = () if moderation is None else moderation.moderator.layers
            self.batcher = _batcher(served, settings, log, metrics, self._decoder_broke, layers)
        revisions = {} if residents is None else residents.revisions
        self._socket = _listening(settings.host, settings.port)
        service = Service(
            residents=residents,
            batcher=self.batcher,
            upstream=upstream,
            metrics=metrics,
            moderation=moderation,
            most_tokens=settings.most_tokens,
            log=log,
            log_texts=settings.log_texts,
            chats=Collecting.of(chats, revisions, settings.consent, metrics, log),
            steering=steering,
        )
        self._moderation, self._service = moderation, service
        if moderation is not None:
            moderation.attach(partial(self.batcher.call, urgent=True), self.batcher.wake)
        guard = GuardSettings(token=settings.token, most_body=settings.most_body)
        super().__init__(_config(create_app(service, guard), settings.grace))

    @property
    def url(self) -> str:
        """Where clients find it: their `base_url` is this and `/v1`."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run_until_stopped(self) -> None:
        """Answer requests until a signal or `stop` ends it.

        Raises:
            ModelError: The decoder ended by itself.
        """
        self.batcher.start()
        try:
            self.run(sockets=[self._socket])
        finally:
            self.batcher.stop()
            self._service.close()
            if self._moderation is not None:
                self._moderation.close()
            self._socket.close()
            if self._chats is not None:
                self._chats.close()
        if self._broken:
            raise ModelError(
                "the decoder ended by a defect, and the server with it",
                remedy="the traceback above says where: please report it; start the server again",
            )

    def stop(self) -> None:
        """End it gracefully, from any thread."""
        self.batcher.drain()
        self.should_exit = True

    def _decoder_broke(self) -> None:
        self._broken = True
        self.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: as `stop`, and at once when it comes twice."""
        self.batcher.drain()
        super().handle_exit(sig, frame)


def _upstream(settings: UpstreamSettings, log: Callable[[str], None], metrics: Metrics) -> Upstream:
    """The decoder that is another server."""
    from rlaif.serving.upstream import Upstream  # late: it needs the extra `api`

    return Upstream(settings, log=log, finished=metrics.finished)


def _batcher(
    residents: Residents,
    settings: ServerSettings,
    log: Callable[[str], None],
    metrics: Metrics,
    broken: Callable[[], None],
    layers: tuple[int, ...],
) -> Batcher:
    """The decoder of models in this process."""
    from rlaif.serving.batcher import Batcher, Limits  # late: before an upstream nothing loads torch

    return Batcher(
        residents.base,
        Limits.of(residents.base, rows=settings.rows, queue=settings.queue),
        reward=residents.reward,
        layers=layers,
        log=log,
        finished=metrics.finished,
        broken=broken,
    )


def _config(app: Guard, grace: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
    )


def check_may_listen(host: str, token: str) -> None:
    """Refuse to answer other machines without a token.

    Raises:
        ConfigError: The address is not this machine's own, and there is no token.
    """
    if not token and not _is_loopback(host):
        raise ConfigError(
            f"others than this machine could ask {host} without a token",
            where="--host",
            remedy="give --token-file or --token-env, or listen on 127.0.0.1",
        )


def read_token(file: Path | None, variable: str | None) -> str:
    """The token from a file or from an environment variable; empty when neither is named.

    Raises:
        ConfigError: Both are named, or what is named holds no token.
    """
    if file is not None and variable:
        raise ConfigError("the token is named twice", remedy="give --token-file or --token-env, not both")
    if file is None and not variable:
        return ""
    where = f"--token-file {file}" if file is not None else f"--token-env {variable}"
    text = read_small(file, error=ConfigError) if file is not None else os.environ.get(variable or "", "")
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            "there is no token: it is one line of printable ASCII without spaces",
            where=where,
            remedy='make one: python -c "import secrets; print(secrets.token_urlsafe(32))"',
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: It cannot.
    """
    try:
        found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        listening = socket.create_server(address[:2], family=family, backlog=1024)
        # Connections inherit it. Else each answer in pieces waits for the client's delayed acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen on {host}, port {port} ({said})",
            where="--host, --port",
            remedy="name another port (0 for any that is free), or an address of this machine",
        ) from None
