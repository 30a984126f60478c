"""Episodes: prompts, the completions that a policy sampled for them, and the forward pass over both.

A forward pass is over rows that are padded on the right: under causal attention nothing real ever looks at
padding, so no mask is needed, and positions count from 0 in each row (Huang et al. 2024, 2403.17031, detail
3). What the rows of a pass have in common at their start (the system turn of a chat template; with several
samples per prompt, the prompt) is computed once and its keys and values are shared, with gradients: they are
sums over the rows, as they would be otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from rlaif.models.heap import rounded
from rlaif.models.shared_base import SharedBase
from rlaif.ranks import Ranks
from rlaif.types import Completion, Prompt

__all__ = [
    "Episodes",
    "EpisodeRow",
    "common_prefix",
    "joined",
    "Rollout",
    "micro_batches",
    "prefill",
    "prefix_to_share",
    "response_states",
    "rollout",
    "together",
]

MIN_PREFIX = 8
"""A shorter common prefix is not worth a pass of its own."""


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """What one completion belongs to."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completion: Completion


@dataclass(frozen=True, slots=True)
class Episodes:
    """Completions of one rollout. B rows; T, the longest completion in tokens; H, the width of the base.

    Attributes:
        tokens: (B, T), 0 at padding, which is on the right.
        is_real: (B, T), True at sampled tokens, the end token included.
        has_eos: (B,), True where the policy ended its turn by itself.
        states: (B, T, H), the policy's hidden states that the tokens were drawn from.
        logprobs: (B, T), fp32, log-probabilities of the tokens under the policy that sampled them, from
            `states`.
        sampler_logprobs: (B, T), fp32, the same by the server that sampled, where one did.
    """

    rows: tuple[EpisodeRow, ...]
    tokens: Tensor
    is_real: Tensor
    has_eos: Tensor
    states: Tensor
    logprobs: Tensor
    sampler_logprobs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def prompt_ids(self) -> list[tuple[int, ...]]:
        """The prompt of each row, in tokens."""
        return [row.prompt_ids for row in self.rows]

    def part(self, rows: Sequence[int]) -> tuple[list[tuple[int, ...]], Tensor, Tensor]:
        """What a forward pass over `rows` takes: prompts, tokens and `is_real`."""
        index = list(rows)
        return [self.rows[row].prompt_ids for row in index], self.tokens[index], self.is_real[index]

    def take(self, rows: Sequence[int]) -> Episodes:
        """Some of the rows."""
        index = list(rows)
        return Episodes(
            rows=tuple(self.rows[row] for row in index),
            tokens=self.tokens[index],
            is_real=self.is_real[index],
            has_eos=self.has_eos[index],
            states=self.states[index],
            logprobs=self.logprobs[index],
            sampler_logprobs=None if self.sampler_logprobs is None else self.sampler_logprobs[index],
        )

    def without_states(self) -> Episodes:
        """The same without the hidden states, which an update makes anew: they are the largest part."""
        return replace(self, states=self.states[:, :0])

    def to(self, device: torch.device) -> Episodes:
        """The same on another device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            is_real=self.is_real.to(device),
            has_eos=self.has_eos.to(device),
            states=self.states.to(device),
            logprobs=self.logprobs.to(device),
            sampler_logprobs=None if self.sampler_logprobs is None else self.sampler_logprobs.to(device),
        )


def joined(parts: Sequence[Episodes]) -> Episodes:
    """Episodes of several rollouts in one, as wide as the longest completion; without states where none has
    them."""
    width = max(part.tokens.shape[1] for part in parts)
    longest = max((int(part.is_real.sum(1).max()) for part in parts if part.rows), default=1)

    def wide(x: Tensor) -> Tensor:
        padding = x.new_zeros(x.shape[0], width - x.shape[1], *x.shape[2:])
        return (torch.cat([x, padding], dim=1) if width > x.shape[1] else x)[:, :longest]

    kept = [part.states for part in parts]
    served = [part.sampler_logprobs for part in parts if part.sampler_logprobs is not None]
    return Episodes(
        rows=tuple(row for part in parts for row in part.rows),
        tokens=torch.cat([wide(part.tokens) for part in parts]),
        is_real=torch.cat([wide(part.is_real) for part in parts]),
        has_eos=torch.cat([part.has_eos for part in parts]),
        states=torch.cat([wide(x) if any(each.shape[1] for each in kept) else x for x in kept]),
        logprobs=torch.cat([wide(part.logprobs) for part in parts]),
        sampler_logprobs=torch.cat([wide(x) for x in served]) if len(served) == len(parts) else None,
    )


@dataclass(frozen=True, slots=True)
class Rollout:
    """What was sampled.

    Attributes:
        episodes: The completions of all ranks, in the order of what was asked. Of several ranks, without
            states.
        own: This rank's, with their states; as wide as the others.
        places: Their rows in `episodes`.
    """

    episodes: Episodes
    own: Episodes
    places: tuple[int, ...]
    ranks: Ranks

    def whole(self, x: Tensor) -> Tensor:
        """(B, …) for all `episodes`, from (b, …) for this rank's."""
        if self.ranks.count == 1:
            return x
        whole = x.new_zeros(len(self.episodes), *x.shape[1:])
        for places, part in self.ranks.gather((self.places, x.cpu())):
            whole[list(places)] = part.to(x.device)
        return whole


def rollout(own: Episodes, ranks: Ranks) -> Rollout:
    """What all ranks drew together, of which this one drew `own`."""
    if ranks.count == 1:
        return Rollout(own, own, tuple(range(len(own))), ranks)
    drawn = ranks.gather(_without_states(own))
    episodes = joined([each for each in drawn if each.rows]).to(own.tokens.device)
    before = sum(map(len, drawn[: ranks.index]))
    return _with_own(episodes, own.states, tuple(range(before, before + len(own))), ranks)


def together(draws: Sequence[Rollout]) -> Rollout:
    """Several draws as one rollout."""
    if len(draws) == 1:
        return draws[0]
    ranks, own = draws[0].ranks, joined([draw.own for draw in draws])
    if ranks.count == 1:
        return Rollout(own, own, tuple(range(len(own))), ranks)
    episodes = joined([draw.episodes for draw in draws])
    starts = accumulate(len(draw.episodes) for draw in draws[:-1])
    places = tuple(
        start + place for start, draw in zip((0, *starts), draws, strict=True) for place in draw.places
    )
    return _with_own(episodes, own.states, places, ranks)


def _with_own(episodes: Episodes, states: Tensor, places: tuple[int, ...], ranks: Ranks) -> Rollout:
    """A rollout of which this rank has the rows at `places`, with their states (b, T', H), T' at most T."""
    wide = pad(states, (0, 0, 0, episodes.tokens.shape[1] - states.shape[1]))
    return Rollout(episodes, replace(episodes.take(places), states=wide), places, ranks)


def _without_states(episodes: Episodes) -> Episodes:
    return episodes.without_states().to(torch.device("cpu"))


def micro_batches(prompts: Sequence[Sequence[int]], rows: Sequence[int], size: int) -> list[list[int]]:
    """Cut `rows` into groups of at most `size`, those with the most alike prompts together, so that they
    share a prefix."""
    order = sorted(rows, key=lambda row: (tuple(prompts[row]), row))
    return [order[start : start + size] for start in range(0, len(order), size)]


def prefix_to_share(base: SharedBase, prompts: Sequence[Sequence[int]], longest: int) -> int:
    """How many tokens at the start of all prompts are worth computing once; 0 where the model cannot share
    them.

    A sliding window shorter than the `longest` row counts columns, and shared columns are not next to those
    that follow them.
    """
    window = getattr(base.model.config.get_text_config(decoder=True), "sliding_window", None)
    if len(prompts) < 2 or (window and longest >= window):
        return 0
    shared = common_prefix(prompts)
    return shared if shared >= MIN_PREFIX else 0


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts have in common at their start; at least the last token of each stays
    out."""
    # In lexicographic order every other one lies between the first and the last.
    ordered = sorted(map(tuple, prompts))
    first, last, limit = ordered[0], ordered[-1], min(map(len, ordered)) - 1
    return next((at for at in range(limit) if first[at] != last[at]), max(limit, 0))


def prefill(base: SharedBase, ids: Sequence[int], copies: int) -> DynamicCache:
    """The active role's keys and values of `ids`, computed once and shared by `copies` rows."""
    cache = DynamicCache(config=base.model.config)
    if ids:
        row = torch.tensor([list(ids)], device=base.device)
        base.hidden(row, torch.ones_like(row), past_key_values=cache)
        if copies > 1:
            cache.batch_repeat_interleave(copies)
    return cache


def response_states(
    base: SharedBase, prompts: Sequence[Sequence[int]], tokens: Tensor, is_real: Tensor, *, share: bool = True
) -> Tensor:
    """The active role's hidden states that predict each token of the completions.

    Args:
        prompts: Token ids of each row's prompt.
        tokens: (B, T), padded on the right.
        is_real: (B, T).
        share: Compute a common prefix of the prompts once. Must be off where layers are recomputed (they take
            no cache). Of a sharded base nothing is shared with gradient: see `models.sharding`.

    Returns:
        (B, T, H); what is at padding has no meaning.
    """
    share = share and not (base.sharded and torch.is_grad_enabled())
    shared = prefix_to_share(base, prompts, max(map(len, prompts)) + tokens.shape[1]) if share else 0
    # The last token of a completion predicts nothing that is needed.
    completions = [
        ids[: length - 1] for ids, length in zip(tokens.tolist(), is_real.sum(1).tolist(), strict=True)
    ]
    inputs = [[*ids[shared:], *completion] for ids, completion in zip(prompts, completions, strict=True)]
    width = min(rounded(max(map(len, inputs))), base.context - shared)
    rows = torch.tensor([ids + [0] * (width - len(ids)) for ids in inputs], device=base.device)
    positions = torch.arange(shared, shared + width, device=base.device).expand(len(inputs), -1)
    mask = torch.ones(len(inputs), shared + width, dtype=torch.long, device=base.device)
    cache = {"past_key_values": prefill(base, prompts[0][:shared], len(prompts))} if shared else {}
    states = base.hidden(rows, mask, positions, **cache)
    # The state at the prompt's last token predicts the first of the completion.
    start = torch.tensor([len(ids) - shared - 1 for ids in prompts], device=base.device)
    at = (start.unsqueeze(1) + torch.arange(tokens.shape[1], device=base.device)).clamp(max=width - 1)
    return states.gather(1, at.unsqueeze(2).expand(-1, -1, states.shape[2]))
