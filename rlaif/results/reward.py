"""What a reward model is worth: accuracy, calibration and loss on held-out pairs, beside what needs no model
to know."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rlaif.results.preferences import PreferencePair
from rlaif.reward.fit import fit_scale
from rlaif.reward.loss import bradley_terry_loss
from rlaif.stats import CalibrationCurve, calibration, wilson

__all__ = [
    "Breakdown",
    "RewardReport",
    "Scored",
    "by_length",
    "by_margin",
    "by_principle",
    "by_source",
    "length_differences",
    "score_pairs",
]

MARGINS = ((0.5, 0.6), (0.6, 0.75), (0.75, 0.9), (0.9, 1.0))
LENGTH_BINS = 4


@dataclass(frozen=True)
class Scored:
    """One way to score, measured on pairs.

    Attributes:
        accuracy: Share of the pairs whose better completion scored higher (ties count half; labels of ½ are
            left out), with its Wilson 95 % interval in `low` and `high`.
        loss: Soft Bradley–Terry loss in nats; ln 2 = 0.693 is a coin's.
        ece: Expected calibration error of σ(difference) against the labels.
    """

    pairs: int
    accuracy: float
    low: float
    high: float
    loss: float
    ece: float


@dataclass(frozen=True)
class Breakdown:
    """Accuracy on one group of pairs, with its Wilson 95 % interval."""

    group: str
    pairs: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class RewardReport:
    """The report of a reward stage.

    Attributes:
        held_out: By way of scoring, on held-out pairs: `length` (the length difference alone), `head` (fitted
            on the frozen base), `lora` (adapter and head), `judge` (the labels themselves: its loss is the
            lowest possible).
        gold: The same ways, and their accuracy against a gold metric on the same pairs, if one was given.
        human: The kept model on pairs that people labelled, if there are any.
        previous: An earlier reward model, if one was given: on the label stage's pairs (`fresh`) and on the
            held-out pairs of that stage (`held_out`); the kept model on the latter (`now`).
        kept: `head` or `lora`: whichever has the lower held-out loss, unless the settings decide. Where both
            were measured, the better of the two figures is a little flattered by the choice.
        reward_mean, reward_std: Of raw scores over reference completions; the saved normalisation.
    """

    pairs: int
    held_out_pairs: int
    dropped: int
    kept: str
    held_out: Mapping[str, Scored]
    principles: Sequence[Breakdown]
    margins: Sequence[Breakdown]
    lengths: Sequence[Breakdown]
    reliability: Sequence[Mapping[str, float]]
    reward_mean: float
    reward_std: float
    gold: Mapping[str, Breakdown] = field(default_factory=dict)
    human: Scored | None = None
    previous: Mapping[str, Scored] = field(default_factory=dict)
    training: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def score_pairs(difference: Tensor, p: Tensor) -> Scored:
    """Reward differences (N,), chosen less rejected, against labels p (N,)."""
    right, count = _right(difference, p)
    share = wilson(right, count) if count else None
    loss = float(bradley_terry_loss(difference.double(), torch.zeros(len(p), dtype=torch.double), p.double()))
    return Scored(
        pairs=len(p),
        accuracy=share.value if share else math.nan,
        low=share.low if share else 0.0,
        high=share.high if share else 1.0,
        loss=loss,
        ece=reliability(difference, p).ece,
    )


def reliability(difference: Tensor, p: Tensor) -> CalibrationCurve:
    """How confident σ(difference) is, and how often the labels agree."""
    return calibration(torch.sigmoid(difference.double()).tolist(), p.double().tolist())


def length_differences(
    train: tuple[Tensor, Tensor], p: Tensor, weight: Tensor, held_out: tuple[Tensor, Tensor]
) -> Tensor:
    """Reward differences of the length-only baseline on held-out pairs: s (chosen - rejected length), s
    fitted on the training pairs, below 0 where the shorter one tends to be chosen. All (N,) or pairs of
    (N,)."""
    gap = (train[0] - train[1]).double()
    fits = [fit_scale(sign * gap, p.double(), weight.double()) for sign in (1, -1)]
    scale = fits[0][1] if fits[0][0] <= fits[1][0] else -fits[1][1]
    return scale * (held_out[0] - held_out[1]).double()


def against_gold(differences: Mapping[str, Tensor], gold: Tensor) -> dict[str, Breakdown]:
    """Of each way of scoring, how often it orders a pair as the gold metric does; `gold` (N,) is chosen less
    rejected."""
    return {
        name: _breakdown(name, difference, torch.sigmoid(gold)) for name, difference in differences.items()
    }


def by_principle(pairs: Sequence[PreferencePair], difference: Tensor) -> list[Breakdown]:
    """Accuracy by principle; a pair judged by several counts for each."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        for principle in pair.principles:
            groups[principle].append(index)
    return _broken_down(sorted(groups.items()), pairs, difference)


def by_source(pairs: Sequence[PreferencePair], difference: Tensor) -> list[Breakdown]:
    """Accuracy by where the pairs are from; nothing where they are all from one source."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        groups[pair.source].append(index)
    return _broken_down(sorted(groups.items()), pairs, difference) if len(groups) > 1 else []


def by_margin(pairs: Sequence[PreferencePair], difference: Tensor) -> list[Breakdown]:
    """Accuracy by how sure the judge was."""
    sure = [max(pair.p_chosen, 1 - pair.p_chosen) for pair in pairs]
    groups = [
        (f"p {low}–{high}", [i for i, p in enumerate(sure) if low <= p < high or p == high == 1.0])
        for low, high in MARGINS
    ]
    return _broken_down(groups, pairs, difference)


def by_length(
    pairs: Sequence[PreferencePair], difference: Tensor, lengths: tuple[Tensor, Tensor]
) -> list[Breakdown]:
    """Accuracy by the completions' mean length in tokens, in quarters of the pairs."""
    mean = ((lengths[0] + lengths[1]) / 2).tolist()
    order = sorted(range(len(pairs)), key=lambda index: (mean[index], index))
    cuts = [round(part * len(order) / LENGTH_BINS) for part in range(LENGTH_BINS + 1)]
    parts = [order[a:b] for a, b in pairwise(cuts) if b > a]
    return _broken_down(
        [(f"{mean[part[0]]:.0f}–{mean[part[-1]]:.0f} tokens", part) for part in parts], pairs, difference
    )


def gold_differences(
    pairs: Sequence[PreferencePair], gold: Callable[[Sequence[dict[str, str]], str], float]
) -> Tensor:
    """Gold of the chosen less that of the rejected completion (N,)."""
    found = []
    for pair in pairs:
        prompt = [message.as_dict() for message in pair.prompt]
        found.append(gold(prompt, pair.chosen) - gold(prompt, pair.rejected))
    return torch.tensor(found, dtype=torch.double)


def _broken_down(
    groups: Iterable[tuple[str, Sequence[int]]], pairs: Sequence[PreferencePair], difference: Tensor
) -> list[Breakdown]:
    p = torch.tensor([pair.p_chosen for pair in pairs])
    return [_breakdown(name, difference[list(index)], p[list(index)]) for name, index in groups if index]


def _breakdown(group: str, difference: Tensor, p: Tensor) -> Breakdown:
    right, count = _right(difference, p)
    if not count:
        return Breakdown(group=group, pairs=0, accuracy=math.nan, low=0.0, high=1.0)
    share = wilson(right, count)
    return Breakdown(group=group, pairs=count, accuracy=share.value, low=share.low, high=share.high)


def _right(difference: Tensor, p: Tensor) -> tuple[float, int]:
    """How many pairs are ordered as their labels say, and how many labels say anything."""
    sides = torch.sign(difference.double()) * torch.sign(p.double() - 0.5)
    told = p != 0.5
    return float(((sides[told] + 1) / 2).sum()), int(told.sum())
