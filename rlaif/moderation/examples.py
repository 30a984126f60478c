"""What a moderator learns from: prompts and exchanges, and how probably each breaks a principle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rlaif.moderation.probe import Reads, kind_of
from rlaif.types import Message, Prompt

__all__ = ["Example", "labels_of"]


@dataclass(frozen=True)
class Example:
    """A labelled text.

    Attributes:
        messages: A prompt, or a prompt with its answer.
        broken: By category, how probable it is that the text breaks it, 0 to 1; only those that are known.
        weight: Of the text in the fit.
        source: Who labelled it: `people`, `judge`, `look-alike`; or a file.
        look_alike: Whether it is harmless and looks otherwise, or is the harmless twin of another text.
        where: Its place in a file, for messages.
    """

    messages: tuple[Message, ...]
    broken: Mapping[str, float]
    weight: float = 1.0
    source: str = ""
    look_alike: bool = False
    where: str = ""

    @property
    def reads(self) -> Reads:
        """Whether it is a prompt or an exchange."""
        return kind_of(self.messages)

    @cached_property
    def group(self) -> str:
        """What is asked; texts that share it are held out together."""
        asked = self.messages[:-1] if self.reads == "exchange" else self.messages
        return Prompt(id="", messages=asked).fingerprint()


def labels_of(examples: Sequence[Example], categories: Sequence[str]) -> Tensor:
    """(N, C), fp64; NaN where nothing is known."""
    rows = [[each.broken.get(name, float("nan")) for name in categories] for each in examples]
    return torch.tensor(rows, dtype=torch.double).reshape(len(examples), len(categories))
