"""The texts of one kind, prompts or exchanges: heads for each category, and what they say of texts held
out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlaif.moderation.examples import Example, labels_of
from rlaif.moderation.fit import (
    Calibration,
    Direction,
    axes_of,
    calibrate,
    fit_direction,
    held_out_directions,
    stratified_folds,
)
from rlaif.moderation.measures import RankedTexts
from rlaif.moderation.probe import Reads
from rlaif.moderation.states import StateTable
from rlaif.moderation.windows import READOUTS, Readout, of_text, token_path
from rlaif.reward.fit import FOLDS

__all__ = ["FEWEST", "FittedHead", "HeldOut", "KindFit", "KindOfText", "hard", "others_broken", "why_not"]

FEWEST = 5
"""Prompts that break a principle, and that keep it, below which no head is fitted."""


class HeldOut(NamedTuple):
    """What heads say of texts that they were not fitted to, for one category and kind of text; all (n,)."""

    category: str
    reads: Reads
    rows: Tensor
    """Numbers of the examples."""
    broken: Tensor
    """fp64, 0 to 1."""
    score: Tensor
    """Of the whole text, fp64, before the calibration."""
    peak: Tensor
    """The greatest score while it is written; of an adapter, which is not asked at every token, `score`."""
    fold: Tensor
    """In which the text was held out."""
    calibration: Calibration
    """Fitted to `score` of all of them."""
    unseen: Tensor | None = None
    """Scores by a head that was trained without any text that is known to break this category; NaN at texts
    that break another one only. `None` where there is no such head."""
    learned: Tensor | None = None
    """Numbers of the examples that were learned from, where the others were held out once; `None` where all
    are held out by folds."""
    frozen: Tensor | None = None
    """Scores by the heads without the adapter, where there is one."""


class FittedHead(NamedTuple):
    """A head on all texts, and its calibration on the scores out of fold."""

    direction: Direction
    calibration: Calibration


class KindFit(NamedTuple):
    """What was fitted to texts of one kind.

    Attributes:
        heads: By category.
        ranked: For each way to read a text, the mean AUROC out of fold over the categories.
    """

    heads: dict[str, FittedHead]
    readout: Readout
    ranked: dict[Readout, float]
    held_out: list[HeldOut]


class _Plan(NamedTuple):
    """The heads for one category; `rows` are numbers among the texts of the kind."""

    category: str
    rows: Tensor
    broken: Tensor
    fold: Tensor
    heads: list[Direction]
    """On all texts; without each fold; of other categories, without each fold, or none."""


class _Read(NamedTuple):
    """(N, M) scores of N texts by M heads, whole and at their peak."""

    whole: Tensor
    peak: Tensor


def hard(broken: Tensor) -> Tensor:
    """Which texts count as broken: labels above ½."""
    return broken > 0.5


def others_broken(labels: Tensor, category: int) -> Tensor:
    """(N,): how probable it is that a text breaks any other category, of those known; NaN where none is
    known, or where it breaks this one.

    Args:
        labels: (N, C), NaN where unknown.
    """
    others = torch.cat([labels[:, :category], labels[:, category + 1 :]], dim=1)
    known = ~others.isnan()
    kept = torch.where(known, 1 - others, 1.0).prod(1)
    unusable = ~known.any(1) | hard(labels[:, category].nan_to_num(0.0))
    return torch.where(unusable, math.nan, 1 - kept)


def why_not(groups: Sequence[str], broken: Tensor, reads: Reads) -> str:
    """Why labels (N,), NaN where unknown, are too few to learn from; empty where they are enough."""
    known = (~broken.isnan()).tolist()
    sides = [
        len(
            {
                group
                for group, seen, value in zip(groups, known, broken.tolist(), strict=True)
                if seen and (value > 0.5) == side
            }
        )
        for side in (True, False)
    ]
    if min(sides) >= FEWEST:
        return ""
    return f"{reads}s: {sides[0]} broken and {sides[1]} kept, of {FEWEST} each that are needed"


class KindOfText:
    """Labelled texts of one kind, whose states are read.

    Args:
        rows: Numbers of the examples among all.
        table: Their states.
    """

    def __init__(
        self, examples: Sequence[Example], rows: Sequence[int], categories: Sequence[str], table: StateTable
    ) -> None:
        self.reads: Reads = examples[0].reads
        self.rows = torch.tensor(rows)
        self.categories = tuple(categories)
        self.labels = labels_of(examples, categories)
        self.weight = torch.tensor([each.weight for each in examples], dtype=torch.double)
        self.groups = [each.group for each in examples]
        self._table = table
        means = table.means()
        self._axes = axes_of(means)
        self._coordinates = self._axes.coordinates(means)

    def why_not(self, category: str) -> str:
        """Why a category has too few labels here; empty where it has enough."""
        return why_not(self.groups, self.labels[:, self.categories.index(category)], self.reads)

    def fitted(
        self, categories: Sequence[str], *, window: int, seed: int, readouts: Sequence[Readout] = READOUTS
    ) -> KindFit:
        """Heads of `categories`, which have labels enough, and what they say out of fold."""
        plans = [self._plan(name, seed) for name in categories]
        if not plans:
            return KindFit({}, readouts[0], {}, [])
        read = self._read_out([head for plan in plans for head in plan.heads], window)
        found = {readout: self._out_of_fold(plans, read[readout]) for readout in readouts}
        ranked = {
            readout: float(np.mean([_auroc(each.score, each.broken) for each in held]))
            for readout, held in found.items()
        }
        readout = max(readouts, key=lambda each: ranked[each])
        heads = {
            plan.category: FittedHead(plan.heads[0], each.calibration)
            for plan, each in zip(plans, found[readout], strict=True)
        }
        return KindFit(heads, readout, ranked, found[readout])

    def _plan(self, category: str, seed: int) -> _Plan:
        place = self.categories.index(category)
        rows = (~self.labels[:, place].isnan()).nonzero().squeeze(1)
        broken = self.labels[rows, place]
        fold = stratified_folds(self._groups(rows), broken, seed)
        heads = [
            fit_direction(
                self._axes,
                self._coordinates[rows],
                broken,
                weight=self.weight[rows],
                groups=self._groups(rows),
                seed=seed,
            ),
            *self._held_out(rows, broken, fold, seed),
            *self._of_others(place, dict(zip(self._groups(rows), fold.tolist(), strict=True)), seed),
        ]
        return _Plan(category, rows, broken, fold, heads)

    def _held_out(self, rows: Tensor, broken: Tensor, fold: Tensor, seed: int) -> list[Direction]:
        return held_out_directions(
            self._axes,
            self._coordinates[rows],
            broken,
            fold=fold,
            weight=self.weight[rows],
            groups=self._groups(rows),
            seed=seed,
        )

    def _of_others(self, place: int, folds: Mapping[str, int], seed: int) -> list[Direction]:
        """Heads of the other categories' union, without each fold; none where its labels are too few."""
        labels = others_broken(self.labels, place)
        rows = (~labels.isnan()).nonzero().squeeze(1)
        broken = labels[rows]
        fold = torch.tensor([folds.get(group, -1) for group in self._groups(rows)])
        sides = [hard(broken[fold != number]) for number in range(FOLDS)]
        if any(int(each.sum()) < FEWEST or int((~each).sum()) < FEWEST for each in sides):
            return []
        return self._held_out(rows, broken, fold, seed)

    def _groups(self, rows: Tensor) -> list[str]:
        return [self.groups[at] for at in rows.tolist()]

    def _read_out(self, heads: Sequence[Direction], window: int) -> dict[Readout, _Read]:
        """Every head's scores of every text, for each way to read it."""
        weight = torch.stack([head.weight for head in heads]).t()
        bias = torch.tensor([head.bias for head in heads])
        empty = torch.zeros(len(self.rows), len(heads), dtype=torch.double)
        found = {readout: _Read(empty.clone(), empty.clone()) for readout in READOUTS}
        for at, states in self._table:
            log_odds = states @ weight + bias
            for readout, read in found.items():
                path = token_path(log_odds, window=window, readout=readout)
                read.whole[at], read.peak[at] = of_text(path, readout), path.amax(0)
        return found

    def _out_of_fold(self, plans: Sequence[_Plan], read: _Read) -> list[HeldOut]:
        first, found = 0, []
        for plan in plans:
            column = first + 1 + plan.fold
            score = read.whole[plan.rows, column]
            unseen = None
            if len(plan.heads) > 1 + FOLDS:
                unseen = read.whole[plan.rows, column + FOLDS].clone()
                unseen[self._breaks_another_only(plan)] = math.nan
            found.append(
                HeldOut(
                    category=plan.category,
                    reads=self.reads,
                    rows=self.rows[plan.rows],
                    broken=plan.broken,
                    score=score,
                    peak=read.peak[plan.rows, column],
                    fold=plan.fold,
                    calibration=calibrate(score, plan.broken, self.weight[plan.rows]),
                    unseen=unseen,
                )
            )
            first += len(plan.heads)
        return found

    def _breaks_another_only(self, plan: _Plan) -> Tensor:
        """(n,): which of a plan's texts keep its category and break another."""
        any_broken = hard(self.labels[plan.rows].nan_to_num(0.0)).any(1)
        return any_broken & ~hard(plan.broken)


def _auroc(score: Tensor, broken: Tensor) -> float:
    return RankedTexts(score.numpy(), hard(broken).numpy()).auroc(np.ones(len(score)))
