"""A reward head in closed form: ridge regression on features of the frozen base, its penalty chosen by
cross-validation.

A linear head h on features x makes reward differences h · (x_chosen - x_rejected). The soft label says what
that difference should be: its log-odds (Bradley–Terry). So the head is a least-squares fit of log-odds to
differences of standardised features, with a penalty λ |h|². A few hundred labels are enough where gradient
descent through an adapter learns nothing yet.

Penalty and scale come from out-of-fold predictions, whole prompts held out: the λ, and then the factor on the
prediction, with the lowest soft Bradley–Terry loss. The factor undoes the shrinkage and the clipping of the
targets, and is 0 where nothing was learned.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlaif.digest import seed_from, unit_from
from rlaif.errors import DataError
from rlaif.labels import SURE
from rlaif.reward.loss import bradley_terry_loss

__all__ = ["FOLDS", "HeadFit", "bounded", "fit_head", "fit_scale", "folds_of"]

PENALTIES = tuple(10.0 ** (half / 2) for half in range(13))
"""λ from 1 to 10⁶, for features of variance 1."""

FOLDS = 5
BISECTIONS = 40
LARGEST_SCALE = 100.0


class HeadFit(NamedTuple):
    """A head for standardised features, and how it was chosen."""

    weight: Tensor
    """(H,), fp32."""
    penalty: float
    loss: float
    """Soft Bradley–Terry loss (nats) of the out-of-fold predictions; ln 2 is a coin's."""
    scale: float
    """What the ridge's predictions were multiplied by; 0 where they predict nothing."""


def fit_head(
    difference: Tensor,
    log_odds: Tensor,
    *,
    weight: Tensor,
    prompts: Sequence[Hashable],
    seed: int,
    repeats: int = 1,
    centre: Tensor | None = None,
) -> HeadFit:
    """Fit a head to pairs.

    Args:
        difference: (N, H), standardised features of the chosen completion less those of the rejected one.
        log_odds: (N,), soft labels of the chosen completion being better, in nats.
        weight: (N,), relative weight of each pair.
        prompts: (N,), which prompt a pair belongs to; a prompt's pairs are held out together.
        repeats: In how many ways the prompts are cut into folds: the penalty is chosen on the mean loss over
            them, which draws of the folds move less.
        centre: (H,), a head that the fit is drawn towards in place of 0: the penalty is λ |h − centre|². It
            must not have learned from these pairs.

    Raises:
        DataError: Fewer than two prompts: nothing can be held out.
    """
    x, p, w = difference.double(), log_odds.double().sigmoid(), weight.double() / weight.double().mean()
    target = bounded(log_odds.double())
    middle = torch.zeros(x.shape[1], dtype=torch.double) if centre is None else centre.double()
    known = x @ middle  # what the centre says of each pair: the ridge learns the rest
    found = [
        [
            fit_scale(known + prediction, p, w)
            for prediction in _out_of_fold(x, target - known, w, folds_of(prompts, each))
        ]
        for each in (seed, *(seed_from(seed, "folds", repeat) for repeat in range(1, repeats)))
    ]
    losses, scales = (
        [math.fsum(each[at][part] for each in found) / repeats for at in range(len(PENALTIES))]
        for part in (0, 1)
    )
    best = min(range(len(PENALTIES)), key=lambda index: losses[index])
    head = (middle + _ridge(x, target - known, w, (PENALTIES[best],))[0]) * scales[best]
    return HeadFit(weight=head.float(), penalty=PENALTIES[best], loss=losses[best], scale=scales[best])


def _out_of_fold(x: Tensor, target: Tensor, weight: Tensor, fold: Tensor) -> Tensor:
    """(L, N): what the fit of each λ to the other folds predicts of a pair."""
    found = torch.zeros(len(PENALTIES), len(x), dtype=torch.double)
    for number in range(int(fold.max()) + 1):
        inside = fold != number
        found[:, ~inside] = _ridge(x[inside], target[inside], weight[inside]) @ x[~inside].t()
    return found


def bounded(log_odds: Tensor) -> Tensor:
    """Log-odds (N,) as targets or margins: no larger than those of a label that is `SURE`."""
    most = math.log((1 - SURE) / SURE)
    return log_odds.clamp(-most, most)


def folds_of(prompts: Sequence[Hashable], seed: int) -> Tensor:
    """(N,): which fold a pair is held out in. The folds are of one size in prompts, and do not depend on the
    order of pairs."""
    ranked = sorted(set(prompts), key=lambda prompt: unit_from(seed, "fold", str(prompt)))
    if len(ranked) < 2:
        raise DataError(
            f"preferences on {len(ranked)} prompt cannot be cross-validated",
            remedy="label pairs of at least two prompts",
        )
    place = {prompt: index % min(FOLDS, len(ranked)) for index, prompt in enumerate(ranked)}
    return torch.tensor([place[prompt] for prompt in prompts])


def _ridge(x: Tensor, target: Tensor, weight: Tensor, penalties: Sequence[float] = PENALTIES) -> Tensor:
    """argmin_h Σ w (h · x - target)² + λ |h|² for each λ: (L, H), through the smaller of the two Gram
    matrices."""
    root = weight.sqrt()
    x, target = x * root.unsqueeze(1), target * root
    wide = len(x) <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.t() if wide else x.t() @ x)
    along = vectors.t() @ (target if wide else x.t() @ target)
    solved = torch.stack([vectors @ (along / (values.clamp(min=0) + penalty)) for penalty in penalties])
    return solved @ x if wide else solved


def fit_scale(prediction: Tensor, p: Tensor, weight: Tensor) -> tuple[float, float]:
    """The lowest soft Bradley–Terry loss of s · prediction over s ≥ 0, and that s; all (N,).

    The loss is convex in s: its slope is bisected to 0.
    """
    low, high = 0.0, LARGEST_SCALE
    if _slope(prediction, p, weight, low) >= 0:
        high = low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if _slope(prediction, p, weight, middle) >= 0 else (middle, high)
    loss = bradley_terry_loss(high * prediction, torch.zeros_like(prediction), p, weight=weight)
    return float(loss), high


def _slope(prediction: Tensor, p: Tensor, weight: Tensor, scale: float) -> float:
    return float((weight * (torch.sigmoid(scale * prediction) - p) * prediction).sum())
