"""What moderators read of a resident base: the hidden states of several layers, at the tokens of a prompt's
last message or of an answer.

Layers are numbered as transformers' `hidden_states`: 0 is the embedding, the last is the state after the
final norm. The states of layers in between are what the layer puts out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from rlaif.engines.batching import plan
from rlaif.engines.chat import ChatFormat
from rlaif.errors import DataError, ModelError
from rlaif.models.heap import rounded
from rlaif.models.memory import STATES_KEPT
from rlaif.models.shared_base import REFERENCE, SharedBase
from rlaif.progress import NoProgress, Progress
from rlaif.types import Message

__all__ = [
    "Encoder",
    "ReadText",
    "StateTable",
    "Tapped",
    "default_layers",
    "layer_count",
    "read_states",
    "tapped",
]

Conversation = Sequence[Message]
DEPTHS = (1 / 3, 2 / 3, 1.0)
CPU_TOKENS, GPU_TOKENS = 2_048, 32_768
"""Tokens in one pass without gradient."""


class ReadText(NamedTuple):
    """A conversation in tokens.

    Attributes:
        ids: All of it.
        start: The first token that is scored; those before it are read only.
    """

    ids: tuple[int, ...]
    start: int


def layer_count(base: SharedBase) -> int:
    """Decoder layers of the base."""
    return len(_layers(base))


def default_layers(base: SharedBase) -> tuple[int, ...]:
    """The layers about a third and two thirds up, and the last; those of them that differ."""
    count = layer_count(base)
    return tuple(sorted({max(1, round(depth * count)) for depth in DEPTHS}))


class Tapped:
    """The states of `layers` of the passes inside `tapped`."""

    def __init__(self, layers: Sequence[int], count: int) -> None:
        self.layers = tuple(layers)
        self._count = count
        self.taken: dict[int, Tensor] = {}

    def states(self, last: Tensor) -> Tensor:
        """Of the latest pass: (B, T, L, H).

        Args:
            last: What `SharedBase.hidden` returned for it, (B, T, H).
        """
        return torch.stack([last if at == self._count else self.taken[at] for at in self.layers], dim=2)


@contextmanager
def tapped(base: SharedBase, layers: Sequence[int]) -> Iterator[Tapped]:
    """Inside the block, passes of `base` leave the states of `layers` in what is yielded; nothing is computed
    twice.

    Raises:
        ModelError: The model has no such layer.
    """
    modules = _layers(base)
    if wrong := [at for at in layers if not 0 < at <= len(modules)]:
        raise ModelError(
            f"layer {wrong[0]} is to be read, and the model has {len(modules)}",
            where=base.name,
            remedy=f"name layers from 1 to {len(modules)}",
        )
    tap = Tapped(layers, len(modules))

    def keeper(at: int) -> Any:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            tap.taken[at] = output[0] if isinstance(output, tuple) else output

        return keep

    handles = [modules[at - 1].register_forward_hook(keeper(at)) for at in tap.layers if at < len(modules)]
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()


class Encoder:
    """Conversations as token ids: prompts up to where the answer begins, exchanges up to the end of the
    answer, whose turn is left open as it is while it is written."""

    def __init__(self, base: SharedBase) -> None:
        self.chat = ChatFormat(base.tokenizer, name=base.name)

    def encode(self, messages: Conversation) -> ReadText:
        """One conversation; an answer is read from its first token, a prompt from where its last message
        begins.

        Raises:
            DataError: There is no message before the answer.
            TemplateRefusal: The chat template does not take its turns.
        """
        if not messages or (len(messages) == 1 and messages[0].role == "assistant"):
            raise DataError(
                "a conversation to moderate has no message before the answer",
                remedy="give the prompt's messages, and then the answer if there is one",
            )
        if messages[-1].role != "assistant":
            return self._prompt(messages)
        (prompt,) = self.chat.encode([self.chat.render(messages[:-1])])
        (answer,) = self.chat.encode_raw([self.chat.inert(messages[-1].content)])
        return ReadText(ids=(*prompt, *answer), start=len(prompt))

    def _prompt(self, messages: Conversation) -> ReadText:
        text = self.chat.render(messages)
        (ids,) = self.chat.encode([text])
        begin = text.rfind(self.chat.inert(messages[-1].content).strip())
        if begin <= 0 or not self.chat.tokenizer.is_fast:
            return ReadText(ids=tuple(ids), start=0)
        spans = self.chat.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        before = sum(end <= begin for _, end in spans)
        return ReadText(ids=tuple(ids), start=len(ids) - len(spans) + before)


def read_states(
    base: SharedBase, texts: Sequence[ReadText], layers: Sequence[int], *, role: str = REFERENCE
) -> Iterator[Mapping[int, Tensor]]:
    """The states of the tokens that are scored, (t, F) fp32 on the CPU with F = L · H, by the number of the
    text; yields a mapping per batch, the longest texts first."""
    device = base.device
    budget = CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
    for batch in plan([rounded(len(text.ids)) for text in texts], budget=budget):
        width = max(len(texts[at].ids) for at in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, at in enumerate(batch):
            ids[row, : len(texts[at].ids)] = torch.tensor(texts[at].ids)
            mask[row, : len(texts[at].ids)] = 1
        with torch.no_grad(), base.role(role), tapped(base, layers) as tap:
            states = tap.states(base.hidden(ids.to(device), mask.to(device)))
        yield {
            at: states[row, texts[at].start : len(texts[at].ids)].flatten(1).float().cpu()
            for row, at in enumerate(batch)
        }


class StateTable:
    """The states of many texts, to go through more than once; they are kept where they fit, and read again
    where they do not.

    Args:
        texts: With at least one token to score each.
        room: Bytes that may be kept.
    """

    def __init__(
        self,
        base: SharedBase,
        texts: Sequence[ReadText],
        layers: Sequence[int],
        *,
        room: int = STATES_KEPT,
        progress: Progress | None = None,
    ) -> None:
        self._progress = progress or NoProgress()
        self.base, self.texts, self.layers = base, texts, tuple(layers)
        tokens = sum(len(text.ids) - text.start for text in texts)
        self.size = len(self.layers) * base.hidden_size
        needed = tokens * self.size * 4
        self.keeps = needed if needed <= room else 0
        """Bytes of states that are kept."""
        self._kept: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Number and states (t, F) of every text, in no particular order."""
        if len(self._kept) == len(self.texts):
            yield from self._kept.items()
            return
        for batch in read_states(self.base, self.texts, self.layers):
            self._progress.advance(len(batch))
            for at, states in batch.items():
                if self.keeps:
                    self._kept[at] = states.clone()
                yield at, states
        self._progress = NoProgress()  # read again, the texts were counted already

    def means(self) -> Tensor:
        """The mean state of each text, (N, F), fp32."""
        found = torch.zeros(len(self.texts), self.size)
        for at, states in self:
            found[at] = states.mean(0)
        return found


def _layers(base: SharedBase) -> list[Any]:
    body = base.model.get_decoder()
    return [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]
