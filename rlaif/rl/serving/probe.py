"""What is asked of servers before they are trusted with a rollout: do they answer as the adapter that they
are asked for, with the numbers that the trainer has?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlaif.errors import ModelError
from rlaif.rl.episodes import Episodes
from rlaif.rl.rollout import EncodedPrompt
from rlaif.rl.serving.replies import Drawn
from rlaif.types import Message, Prompt

__all__ = ["PROBE", "PROBES", "Probe", "ProbeReplies", "Replies", "distance", "loud"]

PROBE = Prompt(id="probe", messages=(Message("user", "abc"),))
PROBES = 8
"""Completions asked of each server in each way."""

TOLERANCE = 0.1
"""Nats a token. bfloat16 on both sides gives some 0.01, another base or temperature more than this."""

LOUD = 0.05
"""Standard deviation of the weights B of an adapter that is told from none."""

Replies = tuple[list[tuple[EncodedPrompt, int]], list[Drawn]]
"""What was asked, row by row, and the answers."""


class ProbeReplies(NamedTuple):
    """The answers of all servers."""

    alone: Replies
    beside: Replies
    loud: Replies
    base: Replies


@dataclass(frozen=True, slots=True)
class Probe:
    """Mean distances of log-probabilities, server to trainer, in nats a token.

    Attributes:
        alone: Asked as an adapter with B = 0, alone.
        beside: The same, in a batch with another adapter.
        loud: Asked as that other adapter.
        effect: How far that adapter is from none, by the trainer, on the same tokens.
        base_beside: Asked by the base's own name, in the same batch. Nothing here asks so: some builds then
            answer as the adapter.
    """

    alone: float
    beside: float
    loud: float
    effect: float
    base_beside: float

    @property
    def base_is_mixed_up(self) -> bool:
        """Whether the base by its own name answers as an adapter does that runs beside it."""
        return self.base_beside > TOLERANCE

    def refuse_mismatch(self) -> None:
        """Refuse servers that cannot be trained with.

        Raises:
            ModelError: See the words.
        """
        if self.alone > TOLERANCE:
            raise ModelError(
                "the server holds another base than the trainer: log-probabilities differ by "
                f"{self.alone:.3g} nats a token",
                remedy="serve the same base and revision in the same number format, with --logprobs-mode "
                "processed_logprobs --generation-config vllm",
            )
        if self.beside > TOLERANCE:
            raise ModelError(
                f"the server mixes adapters up that run side by side: log-probabilities differ by "
                f"{self.beside:.3g} nats a token",
                remedy="use another version of vLLM",
            )
        if self.loud > max(TOLERANCE / 2, self.effect / 2):
            raise ModelError(
                "the server does not answer as the adapter that it was handed: log-probabilities differ by "
                f"{self.loud:.3g} nats a token",
                remedy="start the server anew, with one replica (no --data-parallel-size), and let it see "
                "the folder of adapters under the same path",
            )


def distance(episodes: Episodes) -> float:
    """Mean |log π_trainer - log π_server| over the tokens."""
    assert episodes.sampler_logprobs is not None
    return float((episodes.logprobs - episodes.sampler_logprobs)[episodes.is_real].abs().mean())


def loud(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter that changes a lot; the same one each time."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (LOUD * torch.randn(x.shape, generator=generator)).to(x.dtype) if "lora_B" in name else x
        for name, x in state.items()
    }
