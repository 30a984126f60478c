"""Moderation: learn from labelled prompts and exchanges what breaks each principle, and tell what that is
worth.

1. train a probe (`rlaif.moderation.train`) or an adapter (`rlaif.stages.moderation_lora`)
2. a threshold for each category, at the share of false positives that the settings allow, on texts held out
3. measure it beside a bag of words, fitted to the same folds, a word list, and letting everything pass
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlaif.config.moderation import ModerationConfig
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.classifier import LoraModerator
from rlaif.moderation.examples import Example
from rlaif.moderation.probe import ProbeModerator
from rlaif.moderation.states import default_layers
from rlaif.moderation.train import Readable, fit_probe, readable
from rlaif.moderation.windows import READOUTS
from rlaif.progress import NoProgress, Progress
from rlaif.results.moderation import ModerationReport
from rlaif.stages.moderation_report import moderation_report, thresholds_of

__all__ = ["ModerationResult", "probes_of", "train_moderation_probe"]


@dataclass(frozen=True)
class ModerationResult:
    """What the stage made.

    Attributes:
        probes: A few of the texts, to score again when the moderator is opened.
    """

    moderator: ProbeModerator | LoraModerator
    report: ModerationReport
    probes: Sequence[Example]


def train_moderation_probe(
    examples: Sequence[Example],
    categories: Sequence[str],
    *,
    base: SharedBase,
    config: ModerationConfig,
    seed: int,
    progress: Progress | None = None,
) -> ModerationResult:
    """Train a probe on the states of `base`.

    Raises:
        DataError: No text can be read, or no category has labels enough.
        ModelError: The base has no such layer.
    """
    progress = progress or NoProgress()
    layers = config.layers or default_layers(base)
    data = readable(examples, base)
    fitted = fit_probe(
        data,
        base,
        categories,
        layers=layers,
        window=config.window,
        seed=seed,
        readouts=READOUTS if config.readout == "auto" else (config.readout,),
        progress=progress,
    )
    thresholds = thresholds_of(fitted.held_out, fitted.categories, config.false_positives)
    moderator = ProbeModerator(
        base, fitted.categories, thresholds, tuple(layers), fitted.heads, config.window
    )
    report = moderation_report(
        data,
        fitted,
        fitted.held_out,
        thresholds,
        base=base,
        config=config,
        layers=layers,
        seed=seed,
        progress=progress,
    )
    return ModerationResult(moderator, report, probes_of(data))


def probes_of(data: Readable, count: int = 4) -> list[Example]:
    """A few short texts, of both kinds where there are both."""
    short = sorted(range(len(data.texts)), key=lambda at: (len(data.texts[at].ids), at))
    kinds: Mapping[str, list[int]] = {
        reads: [at for at in short if data.examples[at].reads == reads] for reads in ("prompt", "exchange")
    }
    return [data.examples[at] for own in kinds.values() for at in own[: count // 2]]
