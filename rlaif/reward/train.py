"""Training a reward model: an adapter and a scalar head by soft-target Bradley–Terry.

Written out instead of subclassing TRL's trainer (docs/decisions/0003-reward-loop.md). The gradient of a batch
is summed over micro-batches of a fixed number of tokens, so memory depends on that number and not on the
batch or on its longest pair; a pair's prompt is computed once for both completions; no logits are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from rlaif.errors import ModelError
from rlaif.models.packing import Tree, pooled, whole_trees
from rlaif.models.pooling import Pooling
from rlaif.models.shared_base import SharedBase
from rlaif.reward.head import ScalarHead
from rlaif.reward.loss import bradley_terry_loss

__all__ = ["LabelledPairs", "RewardOptimiser", "RewardStep", "train_adapter"]

WARM_UP = 0.05
"""Share of the steps over which the learning rate rises."""

MAX_GRAD_NORM = 1.0


class LabelledPairs(NamedTuple):
    """Encoded pairs and their labels."""

    trees: Sequence[Tree]
    """The prompt with the chosen and the rejected completion, in this order."""
    log_odds: Tensor
    """(N,), of the chosen one being better, in nats; float64."""
    weight: Tensor
    """(N,), relative weight in the loss."""
    margin: Tensor
    """(N,), by how much the chosen one should win; 0 for soft labels."""

    @property
    def p_chosen(self) -> Tensor:
        """(N,), P(the chosen one is better), fp32."""
        return self.log_odds.sigmoid().float()

    def take(self, index: Sequence[int]) -> LabelledPairs:
        """Some of the pairs."""
        at = list(index)
        return LabelledPairs([self.trees[i] for i in at], self.log_odds[at], self.weight[at], self.margin[at])


@dataclass(frozen=True)
class RewardOptimiser:
    """How the adapter and the head are trained; the fields are those of `RewardConfig`."""

    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    micro_tokens: int
    pooling: Pooling
    share_prompt: bool


class RewardStep(NamedTuple):
    """What one optimiser step saw, before it moved."""

    step: int
    loss: float
    accuracy: float
    """Share of pairs (by weight) whose chosen completion scored higher."""
    grad_norm: float
    learning_rate: float
    tokens: int
    """Computed in this step, padding not counted."""


def train_adapter(
    base: SharedBase,
    role: str,
    head: ScalarHead,
    pairs: LabelledPairs,
    options: RewardOptimiser,
    *,
    seed: int,
    log: Callable[[RewardStep], None] = lambda step: None,
) -> list[RewardStep]:
    """Train the adapter `role` and `head` in place on `pairs`; returns every step.

    Raises:
        ModelError: The loss is not a number; the adapter is left as it was before that step.
    """
    base.assert_only_trainable([role])
    adapter, top = base.trainable(role), list(head.to(base.device).parameters())
    groups = [
        {"params": adapter, "lr": options.learning_rate},
        {"params": top, "lr": options.head_learning_rate},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    total = options.epochs * math.ceil(len(pairs.trees) / options.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rise_and_fall(step, total))
    steps: list[RewardStep] = []
    with base.role(role):
        for batch in _batches(len(pairs.trees), options, seed):
            # 1. Sum the gradient of the batch's mean loss over its micro-batches.
            loss, accuracy, tokens = _backward(base, head, pairs.take(batch), options)
            base.ranks.add_up([*adapter, *top])
            # 2. Stop before a step that would spoil the weights.
            norm = float(torch.nn.utils.clip_grad_norm_([*adapter, *top], MAX_GRAD_NORM))
            if not math.isfinite(loss + norm):
                what = f"the reward model's loss is {loss} and its gradient {norm} at step {len(steps) + 1}"
                raise ModelError(what, remedy="lower learning_rate, or use dtype float32")
            # 3. Step, and let the learning rate rise and then fall.
            rate = float(schedule.get_last_lr()[0])
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            schedule.step()
            steps.append(RewardStep(len(steps) + 1, loss, accuracy, norm, rate, tokens))
            log(steps[-1])
    return steps


def _backward(
    base: SharedBase, head: ScalarHead, batch: LabelledPairs, options: RewardOptimiser
) -> tuple[float, float, int]:
    """Add the gradient of the batch's loss; returns loss, accuracy and tokens. The micro-batches' parts add
    up to the whole."""
    whole = float(batch.weight.sum())
    loss, right, tokens = 0.0, 0.0, 0
    micros = whole_trees(
        batch.trees, tokens=options.micro_tokens, share=options.share_prompt, device=base.device
    )
    for micro in islice(micros, base.ranks.index, None, base.ranks.count):
        scores = head(pooled(base, micro, options.pooling))
        chosen, rejected = scores.view(-1, 2).unbind(1)
        index = [number // 2 for number in micro.numbers[::2]]
        p, weight, margin = (x[index].to(scores.device) for x in (batch.p_chosen, batch.weight, batch.margin))
        share = float(weight.sum()) / whole
        part = bradley_terry_loss(chosen, rejected, p, margin=margin, weight=weight) * share
        part.backward()  # type: ignore[no-untyped-call]
        loss += float(part.detach())
        won = (chosen > rejected) == (p >= 0.5)
        right += float((weight * won).sum()) / whole
        tokens += micro.tokens
    parts = base.ranks.gather((loss, right, tokens))
    return sum(each[0] for each in parts), sum(each[1] for each in parts), sum(each[2] for each in parts)


def _batches(count: int, options: RewardOptimiser, seed: int) -> Iterator[list[int]]:
    """Indices of each batch, every epoch in a new order."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(options.epochs):
        order = torch.randperm(count, generator=generator).tolist()
        yield from (order[at : at + options.batch_size] for at in range(0, count, options.batch_size))


def _rise_and_fall(step: int, total: int) -> float:
    """Linear warm-up, then linear to 0."""
    rise = max(1, round(WARM_UP * total))
    return min((step + 1) / rise, (total - step) / max(1, total - rise + 1))
