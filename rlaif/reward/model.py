"""A trained reward model: scores conversations, is saved whole, and comes back with the same scores.

A score is read over the completion's real tokens and the token that closes its turn, whether the completion
was cut or not, so that it does not depend on padding, batch or neighbours (up to rounding). Raw scores are
normalised to mean 0 and standard deviation 1 over reference completions (Huang et al. 2024, detail 9).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from rlaif.engines.chat import ChatFormat, TemplateRefusal
from rlaif.errors import DataError
from rlaif.models.packing import Ids, Tree, features, same_states
from rlaif.models.pooling import Pooling
from rlaif.models.shared_base import SharedBase
from rlaif.reward.head import ScalarHead
from rlaif.types import Message

__all__ = ["Combine", "Conversation", "Member", "RewardModel", "TurnFormat", "scoring_tokens"]

Conversation = Sequence[Message]
"""Messages that end with the assistant's completion."""

Combine = Literal["mean", "min", "mean-variance"]


@dataclass(frozen=True)
class Member:
    """One model of an ensemble, or the only one.

    Attributes:
        role: The adapter it reads through; `reference` when only its head was trained.
        mean, std: Of its raw scores over the reference completions.
    """

    role: str
    head: ScalarHead
    mean: float = 0.0
    std: float = 1.0


class TurnFormat:
    """Conversations as token ids: the prompt as the policy reads it, and the completion with its turn
    closed."""

    def __init__(self, base: SharedBase) -> None:
        self.chat = ChatFormat(base.tokenizer, name=base.name)
        end = base.tokenizer.eos_token_id
        self.ends = frozenset({*self.chat.turn_end, *([] if end is None else [end])})
        self.close: tuple[int, ...] = self.chat.turn_end or (() if end is None else (int(end),))

    def encode(self, conversations: Sequence[Conversation]) -> list[tuple[Ids, Ids]]:
        """Prompt ids and completion ids of each conversation.

        Raises:
            DataError: A conversation does not end with the assistant's message.
        """
        for number, messages in enumerate(conversations):
            if not messages or messages[-1].role != "assistant":
                what = (
                    f"conversation {number} does not end with the assistant's message, so there is no "
                    "completion to score"
                )
                raise DataError(what, remedy="give the prompt's messages and then the completion")
        prompts = {tuple(messages[:-1]): None for messages in conversations}
        encoded = dict(
            zip(prompts, self.chat.encode([self.chat.render(messages) for messages in prompts]), strict=True)
        )
        texts = self.chat.encode_raw([self.chat.inert(messages[-1].content) for messages in conversations])
        return [
            (encoded[tuple(m[:-1])], self.closed(ids)) for m, ids in zip(conversations, texts, strict=True)
        ]

    def refusals(self, conversations: Sequence[Conversation]) -> dict[int, str]:
        """Conversations whose prompt the chat template refuses, by their place, and what it says."""
        said: dict[Conversation, str] = {}
        for prompt in {tuple(messages[:-1]): None for messages in conversations}:
            try:
                self.chat.render(prompt)
            except TemplateRefusal as error:
                said[prompt] = error.what
        return {
            at: said[tuple(messages[:-1])]
            for at, messages in enumerate(conversations)
            if tuple(messages[:-1]) in said
        }

    def closed(self, completion: Ids) -> tuple[int, ...]:
        """The completion's ids without end tokens, then the token that closes the turn."""
        ids = tuple(completion)
        while ids and ids[-1] in self.ends:
            ids = ids[:-1]
        return ids + self.close


class RewardModel:
    """Scores completions.

    Attributes:
        base: The resident base, whose adapters the members read through.
        members: One, or the models of an ensemble.
        pooling: What the heads read.
        constitution: Digest of the constitution that the labels were given under; empty when they came from
            people.
    """

    def __init__(
        self,
        base: SharedBase,
        members: Sequence[Member],
        *,
        pooling: Pooling,
        combine: Combine = "mean",
        variance_penalty: float = 1.0,
        mean: float = 0.0,
        std: float = 1.0,
        constitution: str = "",
        tokens: int | None = None,
        share_prompt: bool = True,
    ) -> None:
        self.base = base
        self.members = tuple(members)
        self.pooling: Pooling = pooling
        self.combine: Combine = combine
        self.variance_penalty = variance_penalty
        self.mean, self.std = mean, std
        self.constitution = constitution
        self.tokens = tokens or scoring_tokens(base)
        self.share_prompt = share_prompt
        self.format = TurnFormat(base)

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """The normalised reward of each conversation's last message.

        Raises:
            DataError: A conversation does not end with the assistant's message, or is longer than the
                context.
        """
        scores: list[float] = self.score_tokens(self.format.encode(conversations)).tolist()
        return scores

    def score_tokens(self, episodes: Sequence[tuple[Ids, Ids]]) -> Tensor:
        """The normalised rewards (N,), fp32 on the CPU, of prompts and completions as token ids; completions
        are closed here.

        Raises:
            DataError: An episode is longer than the context.
        """
        if not episodes:
            return torch.zeros(0)
        trees = list(
            _trees([(tuple(prompt), self.format.closed(completion)) for prompt, completion in episodes])
        )
        self._check_lengths(trees)
        share = self.share_prompt and same_states(self.base, trees)
        found: dict[str, Tensor] = {}
        for role in dict.fromkeys(member.role for member in self.members):
            with self.base.role(role):
                found[role] = features(
                    self.base, trees, pooling=self.pooling, tokens=self.tokens, share=share
                )
        return self.combined([found[member.role] for member in self.members])

    @torch.no_grad()
    def combined(self, found: Sequence[Tensor]) -> Tensor:
        """The normalised rewards (N,) of each member's features (N, H)."""
        each = torch.stack(
            [
                (member.head(x.cpu()) - member.mean) / member.std
                for member, x in zip(self.members, found, strict=True)
            ]
        )
        return (self._combine(each) - self.mean) / self.std

    def normalised(self, conversations: Sequence[Conversation]) -> RewardModel:
        """This model with mean 0 and standard deviation 1 over `conversations`: each member first, then their
        combination.

        Raises:
            DataError: A member gives all of them one score.
        """
        episodes = self.format.encode(conversations)
        return self._spread_over([each.score_tokens(episodes) for each in self._alone()])

    def normalised_on(self, found: Sequence[Tensor]) -> RewardModel:
        """As `normalised`, from each member's features (N, H) of the completions.

        Raises:
            DataError: A member gives all of them one score.
        """
        return self._spread_over([each.combined([x]) for each, x in zip(self._alone(), found, strict=True)])

    def _alone(self) -> list[RewardModel]:
        """Each member as a model of its own, not normalised."""
        return [self._with([replace(member, mean=0.0, std=1.0)]) for member in self.members]

    def _spread_over(self, alone: Sequence[Tensor]) -> RewardModel:
        """This model, normalised by each member's raw scores (N,)."""
        members = [
            replace(member, mean=mean, std=std)
            for member, (mean, std) in zip(self.members, map(_spread, alone), strict=True)
        ]
        each = torch.stack([(x - m.mean) / m.std for x, m in zip(alone, members, strict=True)])
        mean, std = _spread(self._combine(each)) if len(members) > 1 else (0.0, 1.0)
        return self._with(members, mean=mean, std=std)

    def _with(self, members: Sequence[Member], *, mean: float = 0.0, std: float = 1.0) -> RewardModel:
        return RewardModel(
            self.base,
            members,
            pooling=self.pooling,
            combine=self.combine if len(members) > 1 else "mean",
            variance_penalty=self.variance_penalty,
            mean=mean,
            std=std,
            constitution=self.constitution,
            tokens=self.tokens,
            share_prompt=self.share_prompt,
        )

    def _combine(self, each: Tensor) -> Tensor:
        """(M, N) -> (N,), of normalised scores (Coste et al. 2023: mean, worst case,
        uncertainty-weighted)."""
        match self.combine:
            case "mean":
                return each.mean(dim=0)
            case "min":
                return each.amin(dim=0)
            case "mean-variance":
                return each.mean(dim=0) - self.variance_penalty * each.var(dim=0, unbiased=False)

    def _check_lengths(self, trees: Sequence[Tree]) -> None:
        longest = max(tree.longest for tree in trees)
        if longest > self.base.context:
            raise DataError(
                f"a prompt and its completion are {longest} tokens together, the context of {self.base.name} "
                f"is {self.base.context}",
                remedy="shorten the prompt, or lower max_new_tokens",
            )


def scoring_tokens(base: SharedBase) -> int:
    """Tokens in one forward pass without gradients, by device."""
    return 2048 if base.device.type == "cpu" else 32768


def _trees(episodes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Iterator[Tree]:
    """Neighbours with one prompt as one tree, so that the completions stay in order."""
    for prompt, group in groupby(episodes, key=lambda episode: episode[0]):
        yield Tree(prompt=prompt, completions=tuple(completion for _, completion in group))


def _spread(scores: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of raw scores.

    Raises:
        DataError: They are all alike, or not numbers.
    """
    mean, std = float(scores.double().mean()), float(scores.double().std(unbiased=False))
    if not math.isfinite(std) or std <= 1e-6 * max(1.0, abs(mean)):
        raise DataError(
            f"the reward is the same for all {len(scores)} reference completions ({mean:.4g})"
            if math.isfinite(std)
            else "the reward is not a number",
            remedy="the labels taught nothing: check them with `rlaif audit`, label more pairs, or lower the "
            "learning rate",
        )
    return mean, std
