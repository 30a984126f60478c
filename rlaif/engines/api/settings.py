"""How to talk to OpenAI-compatible servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlaif.engines.api.costs import Prices
from rlaif.errors import ConfigError

__all__ = ["UNKNOWN_CONTEXT", "ApiSettings"]

UNKNOWN_CONTEXT = 1 << 30
"""Context of a server that does not tell: no limit on our side."""


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """How to talk to the servers.

    Attributes:
        api: `chat` (the server applies the chat template) or `completions` (base models, in the plain form).
        reads: `logprobs`, `votes`, or `auto`: log-probabilities where the server tells them, else votes.
        votes: Sampled answers per label; 1 takes one greedy answer.
        top_logprobs: Most probable tokens to ask for; vLLM allows 20 and other servers down to 5.
        label_tokens: Whether labels are asked for by their token ids where the server can (vLLM), or `never`.
        continues: Whether the server continues an assistant's turn (vLLM, SGLang); `None` finds out.
        concurrency: Requests at once to one server, at most.
        timeout: Seconds for one request.
        retries: Tries after the first.
        backoff: Seconds before the first of them; doubled each time, with jitter.
        give_up_after: Stop when so many requests in a row failed all their tries.
        prices: Price of a million tokens.
        max_cost: Stop before more than this is spent.
        extra_body: Fields added to every request (`{"chat_template_kwargs": {"enable_thinking": False}}`);
            they replace ours.
    """

    api: Literal["chat", "completions"] = "chat"
    reads: Literal["auto", "logprobs", "votes"] = "auto"
    votes: int = 8
    top_logprobs: int = 20
    label_tokens: Literal["auto", "never"] = "auto"
    continues: bool | None = None
    concurrency: int = 16
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 0.5
    give_up_after: int = 64
    prices: Prices = field(default_factory=Prices)
    max_cost: float | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        for name in ("votes", "top_logprobs", "concurrency", "give_up_after", "timeout"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", remedy="give a number above 0")
        if self.retries < 0 or self.backoff < 0:
            raise ConfigError(
                f"retries is {self.retries}, backoff {self.backoff}", remedy="give numbers from 0"
            )
