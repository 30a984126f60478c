"""How requests are written for one served model: the bodies of the API's requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlaif.digest import digest, seed_from
from rlaif.engines.api.wire import chat_turns, fold_turns, render_plain
from rlaif.engines.base import GenerationRequest, LabelRequest
from rlaif.engines.chat import HUMAN
from rlaif.types import Message

__all__ = ["Form"]

VOTE_TOKENS = 8
"""Tokens of a sampled answer: enough for `**Answer: A**`."""
SEED_BITS = 31
"""Servers take seeds of different sizes; all take these."""


@dataclass(frozen=True, slots=True)
class Form:
    """What one served model takes.

    Attributes:
        top: Most probable tokens to ask for; 0 when labels are read by votes.
        votes: Sampled answers per label, when they are.
        by_id: Whether the server tells log-probabilities by token ids (`logprob_token_ids`).
        continues: Whether the server continues an assistant's turn when told to, as vLLM and SGLang do.
        limit: Name of the field that bounds the new tokens.
        extra: Fields added to every body.
    """

    model: str
    api: Literal["chat", "completions"]
    top: int
    votes: int
    continues: bool
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra: Mapping[str, Any] = field(default_factory=dict)
    by_id: bool = False

    def describe(self) -> str:
        """For the card: all of the form that an answer depends on."""
        way = (
            f"top {self.top} log-probabilities{', of the labels by id' * self.by_id}"
            if self.top
            else f"{self.votes} votes"
            if self.votes > 1
            else "parsed answer"
        )
        folded = ", turns folded" if self.api == "chat" and not self.continues else ""
        return f"{self.api}, {way}{folded}" + (f", extra {digest(dict(self.extra))}" if self.extra else "")

    def label(self, request: LabelRequest, *, tokens: Sequence[int] = ()) -> dict[str, Any]:
        """Asks for the most probable tokens at one position. Greedy: the token that is drawn is then one of
        them.

        Args:
            tokens: Ids to ask for in their place; the number of the most probable ones goes along for a
                server that does not know the field.

        Servers that tell log-probabilities after their sampling settings (SGLang) tell the model's own for a
        greedy request.
        """
        asked = {"logprobs": True, "top_logprobs": self.top} if self.api == "chat" else {"logprobs": self.top}
        by_id = {"logprob_token_ids": list(tokens)} if tokens else {}
        return self._body(request.messages, tokens=1, temperature=0.0, **asked, **by_id)

    def vote(self, request: LabelRequest, asked: int, wanted: int) -> dict[str, Any]:
        """Asks for `wanted` answers in words, after `asked` were asked for; a single vote is greedy."""
        if self.votes == 1:
            return self._body(request.messages, tokens=VOTE_TOKENS, temperature=0.0)
        seed = _seed(seed_from("vote", asked, request.identity()))
        return self._body(request.messages, tokens=VOTE_TOKENS, temperature=1.0, seed=seed, n=wanted)

    def generation(self, request: GenerationRequest) -> dict[str, Any]:
        """Asks for one completion."""
        sampling = request.sampling
        stop = [*sampling.stop, HUMAN] if self.api == "completions" else list(sampling.stop)
        body = self._body(
            request.messages,
            tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=_seed(request.seed),
        )
        return {"stop": stop} | body if stop else body

    def _body(
        self, messages: tuple[Message, ...], *, tokens: int, temperature: float, **more: Any
    ) -> dict[str, Any]:
        common = {"model": self.model, self.limit: tokens, "temperature": temperature, "top_p": 1.0}
        return common | self._question(messages) | more | dict(self.extra)

    def _question(self, messages: tuple[Message, ...]) -> dict[str, Any]:
        if self.api == "completions":
            return {"prompt": render_plain(messages)}
        if not self.continues:
            return {"messages": chat_turns(fold_turns(messages))}
        flags = (
            {"add_generation_prompt": False, "continue_final_message": True}
            if messages[-1].role == "assistant"
            else {}
        )
        return {"messages": chat_turns(messages), **flags}


def _seed(seed: int) -> int:
    return seed % (1 << SEED_BITS)
