"""What a moderator is worth, beside letting everything pass, a word list, and a bag of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rlaif.stats import Estimate

__all__ = ["RATES", "WAYS", "CategoryReport", "Figure", "ModerationReport", "WayReport", "in_millions"]

RATES = (0.01, 0.001)
"""Shares of false positives at which recall is told."""
WAYS = ("moderator", "frozen", "bag_of_words", "word_list", "always_pass")
"""Ways to moderate; the first is the one that was trained, the second its heads without the adapter, if it
has one."""


@dataclass(frozen=True)
class Figure:
    """A number with its interval of 95 %, or why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str = ""

    @classmethod
    def of(cls, estimate: Estimate) -> Figure:
        """From an estimate; undefined bounds are left out."""
        value, low, high = (None if each != each else float(each) for each in estimate)
        return cls(value, low, high, "" if value is not None else "undefined")


@dataclass(frozen=True)
class WayReport:
    """One way to moderate, on texts of one category.

    Attributes:
        recall: Share of the broken texts that are flagged at a share of false positives, by that share as
            text.
        calibration_error: Of the calibrated probability, cross-fitted; `None` where there is none.
        over_refusal: Share of the look-alikes that are flagged at a threshold that was chosen on the kept
            texts of the other folds, of the same kind.
        unseen: AUROC after training without any text that is known to break this category, on the others'
            labels.
    """

    auroc: Figure
    recall: Mapping[str, Figure]
    calibration_error: float | None
    over_refusal: Figure
    unseen: Figure


@dataclass(frozen=True)
class CategoryReport:
    """A category on one kind of text.

    Attributes:
        reads: `prompt` or `exchange`.
        texts: With a label, of which `broken` break the category and `look_alikes` are harmless look-alikes.
        ways: By the names in `WAYS`.
        words: What the figures come to, a sentence each.
    """

    category: str
    reads: str
    texts: int
    broken: int
    prompts: int
    look_alikes: int
    ways: Mapping[str, WayReport]
    words: Sequence[str]


@dataclass(frozen=True)
class ModerationReport:
    """The report of a moderation stage.

    Attributes:
        kind: `probe` or `lora`.
        parameters: Of the base.
        measured: How texts were held out: `out of fold`, or `on prompts held out`.
        readout: How the tokens' scores become a text's, by kind of text.
        ranked: The mean AUROC of each way to read a text, by kind of text; what `readout` was chosen by.
        thresholds: By category, the probability from which on a text is flagged.
        false_positives: The share of kept texts that a threshold may flag, out of fold.
        sources: Texts by who labelled them.
        refused: Texts that cannot be read, by reason.
        left_out: Categories that were not trained, and why.
        words: What holds for all categories, a sentence each.
    """

    kind: str
    base: str
    parameters: int
    measured: str
    texts: int
    prompts: int
    layers: Sequence[int]
    window: int
    readout: Mapping[str, str]
    ranked: Mapping[str, Mapping[str, float]]
    thresholds: Mapping[str, float]
    false_positives: float
    categories: Sequence[CategoryReport]
    sources: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    words: Sequence[str] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def in_millions(parameters: int) -> str:
    """How many weights, to read: `135 million`."""
    return f"{parameters / 1e6:,.3g} million" if parameters < 1e9 else f"{parameters / 1e9:,.3g} billion"
