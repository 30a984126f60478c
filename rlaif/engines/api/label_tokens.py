"""A label's own tokens, where a server tells the log-probability of tokens by their ids.

A server that tells the most probable tokens says nothing of a label that is not among them. vLLM takes
`logprob_token_ids` (pull request #43463): the reply then holds these tokens and the one that was drawn, in
place of the most probable ones. Older servers pass over a field that they do not know, so it is tried out by
content: the log-probabilities of two tokens that nobody would draw come back, or they do not. A reply without
them (of another version behind the same address) is read as from a server that knows no such field.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.engines.api.asker import Asker
from rlaif.engines.api.calls import Rejected, Transient
from rlaif.engines.api.forms import Form
from rlaif.engines.base import LabelRequest

__all__ = ["LabelTokens", "tells_by_id"]

UNLIKELY = (" zyxwv", " qkjhg")
"""Texts whose tokens no model writes after a question."""


async def tells_by_id(asker: Asker, form: Form, probe: LabelRequest, entry: Mapping[str, Any]) -> bool:
    """Whether the servers tell log-probabilities by token ids; asked of vLLM only, which says who it is.

    Args:
        entry: What the server lists under the model's name.
    """
    if not form.top or asker.settings.label_tokens == "never" or entry.get("owned_by") != "vllm":
        return False
    tokens = LabelTokens(form.model)
    try:
        ids = [await tokens.first(asker, text) for text in UNLIKELY]
        body = form.label(probe, tokens=ids) | {"return_tokens_as_token_ids": True}
        reply = await asker.complete(body, home=0)
    except (Rejected, Transient):
        return False
    told = {each.text for each in reply.choices[0].top or ()}
    return {f"token_id:{id}".encode() for id in ids} <= told


class LabelTokens:
    """The first token of labels in each of their spellings, asked of the server once for each."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._first: dict[str, int] = {}
        self._asking: dict[str, asyncio.Future[list[int]]] = {}

    async def of(self, asker: Asker, labels: Sequence[str]) -> list[int]:
        """Ids of the tokens that begin `labels`, with and without the space in front.

        Raises:
            Transient, Rejected: The server does not say.
        """
        spelled = [text for label in labels for text in (label, label.strip(), f" {label.strip()}")]
        return sorted({await self.first(asker, text) for text in dict.fromkeys(spelled)})

    async def first(self, asker: Asker, text: str) -> int:
        """The first token of a text.

        Raises:
            Transient, Rejected: The server does not say.
        """
        if text not in self._first:
            found = await self._asked(asker, text)
            if not found:
                raise Rejected("bad_tokens")
            self._first[text] = found[0]
        return self._first[text]

    async def _asked(self, asker: Asker, text: str) -> list[int]:
        """The server's answer, which all that wait for the same text share."""
        waiting = self._asking.get(text)
        if waiting is None or waiting.get_loop() is not asyncio.get_running_loop():
            waiting = self._asking[text] = asyncio.ensure_future(asker.tokenize(self._model, text))
        try:
            return await asyncio.shield(waiting)
        finally:
            if waiting.done():
                self._asking.pop(text, None)
