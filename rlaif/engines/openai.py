"""The engine behind an OpenAI-compatible API: vLLM, SGLang, the llama.cpp server, or a hosted model.

    engine = open_openai("openai:Qwen/Qwen3-8B", base_urls=["http://localhost:8000/v1"])

Needs `pip install 'rlaif-toolkit[api]'`. Several base URLs share the load. Every request ends in exactly one
result: an answer, or one with the reason why there is none. What failed on the way (a time-out, a full
server, a reply that makes no sense) is asked again, and when all tries are spent its reason begins with
`transient:`, which journals do not keep.

Labels are read from the log-probabilities of the answer's first token. A server that tells none is asked for
sampled answers, which count as votes (`label_reading` says how); the card's `reads` tells which it was, and
so does the manifest.

Neither a greedy answer nor a seed, which is passed on, makes a server deterministic: its batches change the
rounding. The journal does: an answer, once given, stays.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rlaif.engines.api.api_key import ApiKey, read_api_key
from rlaif.engines.api.costs import Budget, Ledger, Usage
from rlaif.engines.api.servers import Server
from rlaif.engines.api.settings import ApiSettings
from rlaif.engines.base import EngineCard, Generation, GenerationRequest, LabelReading, LabelRequest
from rlaif.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from rlaif.engines.api.session import Session

__all__ = ["ApiSettings", "OpenAIEngine", "checked_urls", "open_openai"]

LOCAL_URL = "http://localhost:8000/v1"
"""Where `vllm serve` listens."""


class OpenAIEngine:
    """Asks one model through the API of one or more servers.

    Nothing is sent before the first use of `card`, `generate` or `label_logprobs`; then the servers are asked
    what they serve and, as far as the settings leave it open, how labels can be read (one to three requests
    of a few tokens).

    Args:
        model: The name under which the servers serve it.
        base_urls: Where they listen, mostly ending in `/v1`.
        key: For hosted ones.
        settings: How to talk to them.
        log: Hears what the user should know, a line at a time.
        budget: What may be spent, where several engines or invocations share it; else the settings'
            `max_cost`.

    Raises:
        ConfigError: A base URL is not one, or carries a user name, password or query.
    """

    def __init__(
        self,
        model: str,
        base_urls: Sequence[str] = (LOCAL_URL,),
        *,
        key: ApiKey | None = None,
        settings: ApiSettings | None = None,
        log: Callable[[str], None] | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.model = model
        self.settings = settings or ApiSettings()
        self.ledger = Ledger(self.settings.prices, self.settings.max_cost, budget=budget, model=model)
        self._servers = [Server(url, self.settings.concurrency) for url in checked_urls(base_urls)]
        self._key = key or ApiKey()
        self._log = log or _silent

    def __repr__(self) -> str:
        return f"OpenAIEngine({self.model!r}, {[server.url for server in self._servers]!r})"

    @property
    def usage(self) -> Usage:
        """Tokens and money used so far."""
        return self.ledger.usage

    @property
    def card(self) -> EngineCard:
        """Who answers; `reads` tells how.

        Raises:
            ModelError: No server can be reached, the key is refused, or the servers serve different models.
        """
        return self._session.card

    @property
    def at_once(self) -> int:
        """As many to each server as the settings allow."""
        return self.settings.concurrency * len(self._servers)

    def generate(
        self, requests: Sequence[GenerationRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, Generation]]:
        """As `Engine.generate`; yields completions as they come.

        Raises:
            CostLimitError: The next request could cost more than is left.
            ModelError: The servers stopped answering.
        """
        return self._session.stream(requests, done, ask=self._session.generation, failed=_refused)

    def label_logprobs(
        self, requests: Sequence[LabelRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, LabelReading]]:
        """As `Engine.label_logprobs`; yields and raises as `generate` does."""
        return self._session.stream(requests, done, ask=self._session.reading, failed=_unread)

    @cached_property
    def _session(self) -> Session:
        """What the servers can do, and the questions in the form that they take; made at the first use."""
        session: Session = _api().connect(
            self.model,
            self._servers,
            key=self._key,
            settings=self.settings,
            ledger=self.ledger,
            log=self._log,
        )
        return session


def open_openai(
    name: str,
    *,
    base_urls: Sequence[str] = (),
    api_key_env: str = "",
    api_key_file: Path | None = None,
    settings: ApiSettings | None = None,
    log: Callable[[str], None] | None = None,
    budget: Budget | None = None,
) -> OpenAIEngine:
    """The engine that `openai:MODEL` names, connected.

    Args:
        name: `openai:MODEL`.
        base_urls: Where it is served; `http://localhost:8000/v1` when there are none.
        api_key_env: Environment variable with the key; by default `RLAIF_API_KEY`, for api.openai.com also
            `OPENAI_API_KEY`.
        api_key_file: File with the key on its first line.
        budget: What may be spent, shared with other engines.

    Raises:
        ModelError: The name is none, the extra is not installed, or the servers cannot be used.
    """
    prefix, _, model = name.partition(":")
    if prefix != "openai" or not model:
        raise ModelError(
            f"{name!r} names no served model",
            remedy="write openai:MODEL, with the name that the server serves it under",
        )
    urls = tuple(base_urls) or (LOCAL_URL,)
    hosts = frozenset(urlsplit(url).hostname or "" for url in urls)
    key = read_api_key(hosts=hosts, variable=api_key_env, file=api_key_file)
    engine = OpenAIEngine(model, urls, key=key, settings=settings, log=log, budget=budget)
    _ = engine.card
    return engine


def _api() -> Any:
    """The part that needs the extra; imported late, so that everything else works without it."""
    try:
        return importlib.import_module("rlaif.engines.api.session")
    except ImportError as error:
        if error.name not in ("openai", "tenacity"):
            raise
        raise ModelError(
            f"the openai engine needs the package {error.name}", remedy="pip install 'rlaif-toolkit[api]'"
        ) from None


def checked_urls(urls: Sequence[str], *, where: str = "") -> list[str]:
    """Base URLs without their last slash, each once.

    Args:
        where: The option that names them; by default the address itself, where it can be shown.

    Raises:
        ConfigError: There is none, or one is no address, or carries a user name, a password or a query.
    """
    if not urls:
        raise ConfigError("there is no base URL", remedy=f"give --base-url {LOCAL_URL}")
    for url in urls:
        try:
            parts = urlsplit(url)
            right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # half of an IPv6 address, or a port that is none
            right = False
        if not right:
            raise ConfigError(
                "a base URL is not an http or https address",
                where=where,
                remedy=f"write it in full, as in {LOCAL_URL}",
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            address = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
            raise ConfigError(
                "a base URL may not carry a user name, a password or a query",
                where=where or address,
                remedy="put the key into RLAIF_API_KEY, and leave only the address in the URL",
            )
    return list(dict.fromkeys(url.rstrip("/") for url in urls))


def _refused(reason: str) -> Generation:
    return Generation(text="", finish="refused", tokens=0, reason=reason)


def _unread(reason: str) -> LabelReading:
    return LabelReading(logprobs=(), reason=reason)


def _silent(_text: str) -> None:
    """Nothing is said."""
