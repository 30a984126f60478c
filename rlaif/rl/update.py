"""The update of PPO and GRPO: epochs of minibatches over one rollout, each in micro-batches whose gradients
add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlaif.config.on_policy import OnPolicyConfig
from rlaif.digest import seed_from
from rlaif.models.memory import LOGITS
from rlaif.models.shared_base import SharedBase
from rlaif.ranks import Ranks
from rlaif.rl import math as formulas
from rlaif.rl.episodes import Episodes, micro_batches, response_states
from rlaif.rl.learner import POLICY, Config, Learner, RunawayError

__all__ = [
    "Gradient",
    "Tally",
    "importance",
    "logprobs_at",
    "own_share",
    "response_logprobs",
    "split_by_logits",
    "trained_states",
    "update",
]


Gradient = Callable[[Sequence[int], Tensor | None, tuple[int, int]], tuple["Tally", Tensor]]
"""Accumulates the gradients of this rank's part of a minibatch.

Of the minibatch's rows; the log-probabilities (B, T) before the update, `None` when this is the first pass,
whose own they then are; the step and the number of the minibatch in it. Returns the part's losses, and the
policy's log-probabilities (B, T), 0 where the part has no row.
"""


def update(
    learner: Learner[Config], episodes: Episodes, gradient: Gradient, *, step: int
) -> dict[str, float]:
    """Epochs of minibatches; ends early when the policy has moved too far from the one that sampled.

    Returns:
        Means over the optimiser's steps; `update_kl`, KL(sampled ‖ now) by k3 in nats per token, as last
        seen.

    Raises:
        RunawayError: A loss is too large or no number, or a gradient is none.
    """
    config, tally, last = learner.config, Tally(), Tally()
    old = _old_logprobs(learner, episodes) if config.minibatches > 1 else None
    with _recomputing(learner.base, config.gradient_checkpointing):
        for turn, rows in enumerate(_minibatches(len(episodes), learner, step)):
            learner.zero_grad()
            own, logprobs = gradient(rows, old, (step, turn))
            last = _of_all_ranks(own, learner.base.ranks)
            old = logprobs if old is None else old
            _check_losses(last, config)
            if last.sums.get("update_kl", 0.0) > config.max_update_kl:
                break
            last.add(learner.descend(step))
            tally.add(last.sums)
            tally.count += 1
    ends = {name: value for name, value in last.sums.items() if name.startswith("update_kl")}
    early = tally.count < config.epochs * min(config.minibatches, len(episodes))
    return {**tally.means(), **ends, "optimizer_steps": tally.count, "stopped_early": int(early)}


def response_logprobs(
    learner: Learner[Config],
    prompts: Sequence[Sequence[int]],
    tokens: Tensor,
    is_real: Tensor,
    *,
    temperature: float | None = None,
) -> Tensor:
    """The active role's log-probabilities of completion tokens: (B, T), 0 at padding."""
    tau = learner.config.temperature if temperature is None else temperature
    states = trained_states(learner, prompts, tokens, is_real)
    return logprobs_at(learner.base, states, tokens, is_real, temperature=tau)


def logprobs_at(
    base: SharedBase, states: Tensor, tokens: Tensor, is_real: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities (B, T), fp32, of the tokens (B, T) after the states (B, T, H); 0 at padding.

    Logits are formed at real positions only. Where they are many, they are formed some at a time, and again
    on the backward pass.
    """

    def logprobs(x: Tensor, token: Tensor) -> Tensor:
        return formulas.token_logprobs(
            base.logits_at(x).unsqueeze(0), token.unsqueeze(0), temperature=temperature
        ).squeeze(0)

    parts = list(
        zip(split_by_logits(base, states[is_real]), split_by_logits(base, tokens[is_real]), strict=True)
    )
    again = len(parts) > 1 and torch.is_grad_enabled()
    found = [checkpoint(logprobs, *part, use_reentrant=False) if again else logprobs(*part) for part in parts]
    whole = torch.zeros(is_real.shape, device=states.device)
    return whole.masked_scatter(is_real, torch.cat(found))


def trained_states(
    learner: Learner[Config], prompts: Sequence[Sequence[int]], tokens: Tensor, is_real: Tensor
) -> Tensor:
    """The active role's states (B, T, H) that predict the tokens, with gradient."""
    recomputes = learner.config.gradient_checkpointing and torch.is_grad_enabled()
    return response_states(learner.base, prompts, tokens, is_real, share=not recomputes)


@dataclass
class Tally:
    """Sums of named numbers, and their means over `count`."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, numbers: Mapping[str, Tensor | float]) -> None:
        """Add each number to its name."""
        for name, number in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(number)

    def means(self) -> dict[str, float]:
        """The sums over `count`; nothing when it is 0."""
        return {name: value / self.count for name, value in self.sums.items()} if self.count else {}


def split_by_logits(base: SharedBase, x: Tensor) -> tuple[Tensor, ...]:
    """(N, ...) in pieces that have at most `LOGITS` logits."""
    return torch.split(x, max(1, LOGITS // base.model.get_output_embeddings().weight.shape[0]))


@torch.no_grad()
def _old_logprobs(learner: Learner[Config], episodes: Episodes) -> Tensor:
    """Log-probabilities (B, T) before the update, by the passes that the update makes."""
    old = torch.zeros_like(episodes.logprobs)
    batches = micro_batches(episodes.prompt_ids, range(len(episodes)), learner.config.micro_batch)

    def read(rows: list[int]) -> Tensor:
        return response_logprobs(learner, *episodes.part(rows))

    with learner.base.role(POLICY):
        for rows, found in zip(batches, learner.base.ranks.spread(batches, read), strict=True):
            old[rows] = found
    return old


def own_share(learner: Learner[Config], prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> list[int]:
    """Of a minibatch, the rows that this rank learns; those of a prompt stay together where they can."""
    order = sorted(rows, key=lambda row: (tuple(prompts[row]), row))
    return [order[at] for at in learner.base.ranks.share(len(order))]


def importance(learner: Learner[Config], episodes: Episodes, rows: Sequence[int]) -> Tensor | None:
    """What the losses of tokens that a server sampled are multiplied by; `None` where this process
    sampled."""
    settings, theirs = learner.config.rollout, episodes.sampler_logprobs
    if settings is None or theirs is None:
        return None
    index = list(rows)
    return formulas.truncated_importance(
        episodes.logprobs[index], theirs[index], episodes.is_real[index], cap=settings.cap
    )


def _of_all_ranks(own: Tally, ranks: Ranks) -> Tally:
    """The losses of a minibatch, of which each rank has its rows' part."""
    whole = Tally(count=own.count)
    for sums in ranks.gather(own.sums):
        whole.add(sums)
    return whole


def _minibatches(count: int, learner: Learner[Config], step: int) -> Iterator[list[int]]:
    """The rows in random order, another each epoch (detail 16), in minibatches of nearly one size; fewer of
    them where there are fewer rows."""
    for epoch in range(learner.config.epochs):
        seed = seed_from(learner.seed, "shuffle", step, epoch)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        yield from (
            piece.tolist() for piece in torch.tensor_split(order, min(learner.config.minibatches, count))
        )


@contextmanager
def _recomputing(base: SharedBase, enabled: bool) -> Iterator[None]:
    """Recompute layers inside the block. Only there: a layer that recomputes takes no cache, and sampling
    needs one."""
    if enabled:
        base.checkpoint_layers(True)
    try:
        yield
    finally:
        if enabled:
            base.checkpoint_layers(False)


def _check_losses(losses: Tally, config: OnPolicyConfig) -> None:
    for name in ("policy_loss", "value_loss", "ptx_loss", "kl_loss"):
        value = losses.sums.get(name, 0.0)
        if not abs(value) <= config.max_loss:
            remedy = "use lower learning rates, or look at the rewards; or raise max_loss"
            raise RunawayError(f"{name} is {value:.4g}, the limit is {config.max_loss:g}", remedy=remedy)
