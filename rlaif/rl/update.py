"""The update of PPO: epochs of minibatches over one rollout, each in micro-batches whose gradients add up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlaif.config.ppo import PpoConfig, PtxSettings
from rlaif.digest import seed_from
from rlaif.models.memory import LOGITS
from rlaif.models.shared_base import REFERENCE, SharedBase
from rlaif.rl import math as formulas
from rlaif.rl.episodes import Episodes, micro_batches, response_states
from rlaif.rl.learner import POLICY, Learner, RunawayError

__all__ = ["Tally", "Targets", "split_by_logits", "response_logprobs", "update"]


@dataclass(frozen=True, slots=True)
class Targets:
    """What the update works towards; (B, T), fp32, where nothing else is said."""

    values: Tensor
    advantages: Tensor
    returns: Tensor
    ref_states: Tensor
    """(B, T, H), of the reference: what the value head reads."""


def update(learner: Learner, episodes: Episodes, targets: Targets, *, step: int) -> dict[str, float]:
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
            learner.policy_optimizer.zero_grad()
            learner.value_optimizer.zero_grad()
            last, logprobs = gradients(learner, episodes, targets, old, rows=rows, turn=(step, turn))
            old = logprobs if old is None else old
            _check_losses(last, config)
            if last.sums.get("update_kl", 0.0) > config.max_update_kl:
                break
            learner.value_optimizer.step()
            if step >= config.value_warmup:
                norm = torch.nn.utils.clip_grad_norm_(learner.policy_weights, config.max_grad_norm)
                if not torch.isfinite(norm):
                    raise RunawayError(
                        f"the norm of the policy's gradient is {norm:.4g}", remedy="use lower learning rates"
                    )
                learner.policy_optimizer.step()
                last.add({"grad_norm": norm})
            tally.add(last.sums)
            tally.count += 1
    ends = {name: value for name, value in last.sums.items() if name.startswith("update_kl")}
    early = tally.count < config.epochs * config.minibatches
    return {**tally.means(), **ends, "optimizer_steps": tally.count, "stopped_early": int(early)}


def gradients(
    learner: Learner,
    episodes: Episodes,
    targets: Targets,
    old: Tensor | None,
    *,
    rows: Sequence[int],
    turn: tuple[int, int],
) -> tuple[Tally, Tensor]:
    """Accumulate the gradients of a minibatch.

    Args:
        old: (B, T), log-probabilities before the update; `None` when this is the first pass, whose own they
            then are.
        turn: Step, and number of the minibatch in it.

    Returns:
        Its losses, and the policy's log-probabilities (B, T), 0 where this minibatch has no row.
    """
    config, losses = learner.config, Tally()
    fresh, count = torch.zeros_like(episodes.logprobs), int(episodes.is_real[list(rows)].sum())
    for micro in micro_batches(episodes.prompt_ids, rows, config.micro_batch):
        losses.add(value_gradient(learner, episodes, targets, rows=micro, count=count))
        if turn[0] >= config.value_warmup:
            found, fresh[micro] = policy_gradient(learner, episodes, targets, old, rows=micro, count=count)
            losses.add(found)
    if turn[0] >= config.value_warmup and config.ptx is not None:
        losses.add(ptx_gradient(learner, config.ptx, seed=seed_from(learner.seed, "ptx", *turn)))
    return losses, fresh


def policy_gradient(
    learner: Learner, episodes: Episodes, targets: Targets, old: Tensor | None, *, rows: list[int], count: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Add a micro-batch's part of the policy's gradient; its losses, and its log-probabilities (b, T)."""
    with learner.base.role(POLICY):
        logprobs = response_logprobs(learner, *episodes.part(rows))
        result = formulas.policy_loss(
            logprobs,
            logprobs.detach() if old is None else old[rows],
            targets.advantages[rows],
            is_real=episodes.is_real[rows],
            clip=learner.config.clip,
            count=count,
        )
        torch.autograd.backward(result.loss)
    losses = {
        "policy_loss": result.loss.detach(),
        "clip_fraction": result.clip_fraction,
        "update_kl": result.kl_k3,
        "update_kl_k1": result.kl_k1,
    }
    return losses, logprobs.detach()


def value_gradient(
    learner: Learner, episodes: Episodes, targets: Targets, *, rows: list[int], count: int
) -> dict[str, Tensor]:
    """Add a micro-batch's part of the value function's gradient."""
    with learner.base.role(learner.value_role):
        if learner.value_role == REFERENCE:
            states = targets.ref_states[rows]
        else:
            states = _trained_states(learner, *episodes.part(rows))
        result = formulas.value_loss(
            learner.head(states),
            targets.values[rows],
            targets.returns[rows],
            is_real=episodes.is_real[rows],
            clip=learner.config.value_clip,
            count=count,
        )
        torch.autograd.backward(result.loss)
    return {"value_loss": result.loss.detach(), "value_clip_fraction": result.clip_fraction}


def ptx_gradient(learner: Learner, settings: PtxSettings, *, seed: int) -> dict[str, Tensor]:
    """Add the gradient of the language-modelling loss on rows drawn from the PPO-ptx data (Ouyang et al.
    2022, eq. 2)."""
    drawn = torch.randint(
        len(learner.ptx), (settings.rows,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    chosen = [learner.ptx[index] for index in drawn]
    count, total = sum(len(row.completion) for row in chosen), torch.zeros((), device=learner.base.device)
    for rows in micro_batches([row.prompt for row in chosen], range(len(chosen)), learner.config.micro_batch):
        part = [chosen[index] for index in rows]
        width = max(len(row.completion) for row in part)
        tokens = torch.tensor(
            [[*row.completion, *[0] * (width - len(row.completion))] for row in part],
            device=learner.base.device,
        )
        lengths = torch.tensor([len(row.completion) for row in part], device=learner.base.device)
        is_real = torch.arange(width, device=learner.base.device) < lengths.unsqueeze(1)
        with learner.base.role(POLICY):
            # A language model's own distribution: temperature 1.
            logprobs = response_logprobs(
                learner, [row.prompt for row in part], tokens, is_real, temperature=1.0
            )
            loss = -formulas.masked_mean(logprobs, is_real, count=count)
            torch.autograd.backward(settings.coefficient * loss)
        total += loss.detach()
    return {"ptx_loss": total}


def response_logprobs(
    learner: Learner,
    prompts: Sequence[Sequence[int]],
    tokens: Tensor,
    is_real: Tensor,
    *,
    temperature: float | None = None,
) -> Tensor:
    """The active role's log-probabilities of completion tokens: (B, T), 0 at padding.

    Logits are formed at real positions only. Where they are many, they are formed some at a time and again on
    the backward pass.
    """
    base, tau = learner.base, learner.config.temperature if temperature is None else temperature
    states = _trained_states(learner, prompts, tokens, is_real)

    def logprobs(x: Tensor, token: Tensor) -> Tensor:
        return formulas.token_logprobs(
            base.logits_at(x).unsqueeze(0), token.unsqueeze(0), temperature=tau
        ).squeeze(0)

    parts = list(
        zip(split_by_logits(base, states[is_real]), split_by_logits(base, tokens[is_real]), strict=True)
    )
    again = len(parts) > 1 and torch.is_grad_enabled()
    found = [checkpoint(logprobs, *part, use_reentrant=False) if again else logprobs(*part) for part in parts]
    whole = torch.zeros(is_real.shape, device=base.device)
    return whole.masked_scatter(is_real, torch.cat(found))


def _trained_states(
    learner: Learner, prompts: Sequence[Sequence[int]], tokens: Tensor, is_real: Tensor
) -> Tensor:
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
def _old_logprobs(learner: Learner, episodes: Episodes) -> Tensor:
    """Log-probabilities (B, T) before the update, by the passes that the update makes."""
    old = torch.zeros_like(episodes.logprobs)
    with learner.base.role(POLICY):
        for rows in micro_batches(episodes.prompt_ids, range(len(episodes)), learner.config.micro_batch):
            old[rows] = response_logprobs(learner, *episodes.part(rows))
    return old


def _minibatches(count: int, learner: Learner, step: int) -> Iterator[list[int]]:
    """The rows in random order, another each epoch (detail 16), in minibatches of nearly one size."""
    for epoch in range(learner.config.epochs):
        seed = seed_from(learner.seed, "shuffle", step, epoch)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        yield from (piece.tolist() for piece in torch.tensor_split(order, learner.config.minibatches))


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


def _check_losses(losses: Tally, config: PpoConfig) -> None:
    for name in ("policy_loss", "value_loss", "ptx_loss"):
        value = losses.sums.get(name, 0.0)
        if not abs(value) <= config.max_loss:
            remedy = "use lower learning rates, or look at the rewards; or raise max_loss"
            raise RunawayError(f"{name} is {value:.4g}, the limit is {config.max_loss:g}", remedy=remedy)
