"""Heads in closed form, fitted as a reward head is (`rlaif.reward.fit`), to single texts in place of pairs.

The features of a text are the mean states of its tokens, standardised and put on their principal axes
(without labels), which makes a fit a matter of milliseconds. Whole prompts are held out: what is said of a
head is said of texts that it was not fitted to, and so are its calibration and its threshold.

Broken and kept weigh alike in the fit, so that the log-odds of an average text are 0; the share of broken
texts enters with the calibration.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlaif.digest import unit_from
from rlaif.errors import DataError
from rlaif.reward.fit import FOLDS, fit_head
from rlaif.stats import fit_logistic

__all__ = [
    "Axes",
    "Calibration",
    "Direction",
    "axes_of",
    "calibrate",
    "fit_direction",
    "held_out_directions",
    "stratified_folds",
]

AXES = 256
"""Principal axes that heads are fitted on, at most."""
ROWS_FOR_AXES = 4096
"""Texts from which the axes are found; more tell nothing new and take minutes."""
ROWS = 4096
"""Texts that are worked on at a time in double precision."""
SURE = 1e-6
"""A label of 1 is read as a probability so much below it."""
PRIOR = 1.0
"""Precision of the Gaussian prior on slope and offset: a calibration on twenty texts stays finite."""


class Axes(NamedTuple):
    """Standardised features on their principal axes: u = (x - mean) / scale · axes."""

    mean: Tensor
    """(F,), fp64."""
    scale: Tensor
    """(F,), fp64."""
    axes: Tensor
    """(F, K), fp64, orthonormal columns."""

    def coordinates(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, K), fp64."""
        parts = [
            ((part.double() - self.mean) / self.scale) @ self.axes for part in torch.split(features, ROWS)
        ]
        return torch.cat(parts)


class Direction(NamedTuple):
    """A head on features as they are: log-odds = x · weight + bias."""

    weight: Tensor
    """(F,), fp32."""
    bias: float


class Calibration(NamedTuple):
    """P = σ(slope · score + offset). Both are numbers of single precision, as which heads keep them: a
    threshold that is chosen on P holds for the moderator that is saved."""

    slope: float
    offset: float

    def probability(self, score: Tensor) -> Tensor:
        """(N,) -> (N,), fp64."""
        return torch.sigmoid(self.slope * score.double() + self.offset)


def axes_of(features: Tensor) -> Axes:
    """The axes of features (N, F), through the smaller of the two Gram matrices."""
    mean = features.mean(0, dtype=torch.double)
    squares = [(part.double() - mean).square().sum(0) for part in torch.split(features, ROWS)]
    scale = (torch.stack(squares).sum(0) / len(features)).sqrt().clamp(min=1e-6)
    some = (features[:: max(1, -(-len(features) // ROWS_FOR_AXES))].double() - mean) / scale
    rows, size = some.shape
    values, vectors = torch.linalg.eigh(some @ some.t() if rows <= size else some.t() @ some)
    kept = (values > 1e-9 * values.max().clamp(min=1e-12)).nonzero().squeeze(1)[-AXES:]
    chosen = vectors[:, kept]
    axes = some.t() @ chosen / values[kept].sqrt() if rows <= size else chosen
    return Axes(mean, scale, axes)


def fit_direction(
    axes: Axes, coordinates: Tensor, broken: Tensor, *, weight: Tensor, groups: Sequence[Hashable], seed: int
) -> Direction:
    """Fit a head to texts.

    Args:
        coordinates: (N, K), of the texts' mean states.
        broken: (N,), how probable it is that the principle is broken, 0 to 1.
        weight: (N,), of each text.
        groups: (N,), the prompt of each text; those of one prompt are held out together, to choose the
            penalty.

    Raises:
        DataError: All are broken, or all are kept, or there is one prompt only.
    """
    p = broken.double().clamp(SURE, 1 - SURE)
    even = balanced(p, weight)
    log_odds = torch.logit(p)
    mean = even @ coordinates / even.sum()
    middle = float(even @ log_odds.clamp(-10, 10) / even.sum())
    found = fit_head(coordinates - mean, log_odds - middle, weight=even, prompts=groups, seed=seed)
    head = found.weight.double()
    scaled = axes.axes @ head / axes.scale
    return Direction(scaled.float(), float(-(axes.mean @ scaled) - mean @ head))


def balanced(broken: Tensor, weight: Tensor) -> Tensor:
    """Weights (N,) under which broken and kept texts count alike, and which add up to N.

    Raises:
        DataError: One of the two is missing.
    """
    w = weight.double()
    positive, negative = w * broken, w * (1 - broken)
    if not (float(positive.sum()) > 1e-3 and float(negative.sum()) > 1e-3):
        raise DataError(
            "all labels of a principle say the same, so there is nothing to tell apart",
            remedy="give texts that break it and texts that keep it",
        )
    return len(w) / 2 * (positive / positive.sum() + negative / negative.sum())


def stratified_folds(groups: Sequence[Hashable], broken: Tensor, seed: int) -> Tensor:
    """(N,): the fold that each text is held out in. The texts of a group share one; groups that break the
    principle somewhere and those that do not are dealt out alike, whatever their order."""
    ranked = sorted(set(groups), key=lambda group: unit_from(seed, "fold", str(group)))
    breaking = {group for group, value in zip(groups, broken.tolist(), strict=True) if value > 0.5}
    sides = [[g for g in ranked if g in breaking], [g for g in ranked if g not in breaking]]
    place = {group: at % FOLDS for side in sides for at, group in enumerate(side)}
    return torch.tensor([place[group] for group in groups])


def held_out_directions(
    axes: Axes,
    coordinates: Tensor,
    broken: Tensor,
    *,
    fold: Tensor,
    weight: Tensor,
    groups: Sequence[Hashable],
    seed: int,
) -> list[Direction]:
    """A head for each fold, fitted to the texts of the others; as `fit_direction`.

    Args:
        fold: (N,), in which a text is held out; -1 for one that is in none.
    """
    heads = []
    for number in range(FOLDS):
        inside = (fold != number).nonzero().squeeze(1)
        heads.append(
            fit_direction(
                axes,
                coordinates[inside],
                broken[inside],
                weight=weight[inside],
                groups=[groups[at] for at in inside.tolist()],
                seed=seed,
            )
        )
    return heads


def calibrate(score: Tensor, broken: Tensor, weight: Tensor) -> Calibration:
    """Platt's calibration (1999) of scores (N,), by logistic regression on soft labels with a weak prior; a
    slope below 0 is taken as 0: the scores then say nothing."""
    size = float(score.double().std(unbiased=False)) or 1.0
    x = torch.stack([score.double() / size, torch.ones_like(score, dtype=torch.double)], dim=1)
    weights = weight.double() / weight.double().mean()
    found = fit_logistic(x.numpy(), broken.double().numpy(), weights.numpy(), ridge=PRIOR)
    if found[0] < 0:
        share = float((weights @ broken.double() + 0.5) / (weights.sum() + 1))
        return Calibration(0.0, _single(math.log(share / (1 - share))))
    return Calibration(_single(found[0] / size), _single(found[1]))


def _single(value: float) -> float:
    """The nearest number of single precision."""
    return float(torch.tensor(value, dtype=torch.float32))
