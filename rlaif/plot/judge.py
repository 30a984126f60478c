"""Pictures of a judge and of what learned from it: how strong its labels are, where it contradicts itself,
and how far a reward model's confidence can be believed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rlaif.errors import DataError
from rlaif.plot.style import INK, SERIES, name, new_figure, style
from rlaif.stats import ReliabilityBin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["flips_by_principle", "label_strength", "reward_calibration", "strength_counts"]

BINS = 10
MOST_PRINCIPLES = 40
"""Bars of `flips_by_principle`; the others are in its table."""


def strength_counts(p: Iterable[float], bins: int = BINS) -> list[int]:
    """How many labels have a strength |p − ½| in each of `bins` equal parts of 0 to ½."""
    counts = [0] * bins
    for each in p:
        counts[min(int(abs(each - 0.5) * 2 * bins), bins - 1)] += 1
    return counts


def label_strength(counts: Sequence[int]) -> Figure:
    """How strong the labels are, from `strength_counts`: at 0 the judge is undecided, at ½ certain.

    Raises:
        DataError: There is no label.
    """
    if not sum(counts):
        raise DataError("there is no label to draw")
    width = 0.5 / len(counts)
    with style():
        figure = new_figure(6.4, 2.8)
        axes = figure.subplots()
        axes.bar([width * (place + 0.5) for place in range(len(counts))], counts, width=0.9 * width)
        axes.set_xlim(0, 0.5)
        axes.set_xlabel("strength of the label, |p − ½|")
        axes.set_ylabel("pairs")
    return figure


def flips_by_principle(rates: Mapping[str, float | None]) -> Figure:
    """Of each principle, the share of questions whose two orders name different winners, the worst first.

    Args:
        rates: By principle, 0 to 1; those without (asked in one order only) are left out.

    Raises:
        DataError: No principle was asked in both orders.
    """
    known = sorted(
        ((rate, id) for id, rate in rates.items() if rate is not None), key=lambda x: (-x[0], x[1])
    )
    known = known[:MOST_PRINCIPLES]
    if not known:
        raise DataError("no principle was asked in both orders")
    with style():
        figure = new_figure(6.4, 1.0 + 0.3 * len(known))
        axes = figure.subplots()
        axes.barh(range(len(known)), [rate for rate, _ in known], height=0.7)
        axes.set_yticks(range(len(known)), [name(id) for _, id in known])
        axes.set_ylim(len(known) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_xlabel("flips between the two orders (share of questions)")
    return figure


def reward_calibration(bins: Sequence[ReliabilityBin]) -> Figure:
    """How often the labels agree with a reward model, against how sure it is; on the diagonal both are equal.

    Args:
        bins: Of held-out pairs, as `rlaif.stats.calibration` gives them; the size of a point is their rows.

    Raises:
        DataError: There is no bin.
    """
    if not bins:
        raise DataError("there is no held-out pair to draw")
    most = max(each.rows for each in bins)
    with style():
        figure = new_figure(4.6, 4.0)
        axes = figure.subplots()
        axes.plot([0.5, 1], [0.5, 1], "--", color=INK, linewidth=0.8)
        axes.plot([each.confidence for each in bins], [each.accuracy for each in bins], color=SERIES[0])
        axes.scatter(
            [each.confidence for each in bins],
            [each.accuracy for each in bins],
            s=[20 + 120 * each.rows / most for each in bins],
            color=SERIES[0],
        )
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("confidence of the reward model")
        axes.set_ylabel("agreement of the labels")
    return figure
