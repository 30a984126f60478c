"""Train a probe: read the states of all texts once, fit heads in closed form, hold prompts out.

1. texts that cannot be read (too long, refused by the chat template) are counted and left out
2. for prompts and for exchanges: the mean states of the texts, on their principal axes
3. for each category a head on all texts, and one for each fold that has not seen it; besides, a head of what
   breaks any *other* category, fitted without the texts that break this one
4. the tokens once more: every head's score of every text, whole and at its peak while it is written
5. of the two ways to read a text (`windows`, `mean`) the one that ranks better out of fold, over all
categories
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from rlaif.engines.chat import TemplateRefusal
from rlaif.errors import DataError, Problem
from rlaif.models.memory import STATES_KEPT
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.examples import Example
from rlaif.moderation.kinds import FEWEST, HeldOut, KindFit, KindOfText
from rlaif.moderation.probe import READS, Heads, Reads
from rlaif.moderation.states import Encoder, ReadText, StateTable
from rlaif.moderation.windows import READOUTS, Readout
from rlaif.progress import NoProgress, Progress
from rlaif.text import count_of

__all__ = ["Fitted", "Readable", "fit_probe", "readable"]


class Readable(NamedTuple):
    """The examples that can be read, with their tokens, and how many cannot, by reason."""

    examples: list[Example]
    texts: list[ReadText]
    refused: dict[str, int]


class Fitted(NamedTuple):
    """Heads of every kind of text, and what they are worth.

    Attributes:
        ranked: For each kind and way to read a text, the mean AUROC out of fold over the categories.
        learned: For each category, the kinds of text that it has a head of its own for.
        left_out: Categories without a head, and why.
    """

    heads: dict[Reads, Heads]
    categories: tuple[str, ...]
    held_out: list[HeldOut]
    ranked: dict[Reads, dict[Readout, float]]
    learned: dict[str, tuple[Reads, ...]]
    left_out: dict[str, str]


def readable(examples: Sequence[Example], base: SharedBase) -> Readable:
    """The examples in tokens.

    Raises:
        DataError: None can be read.
    """
    encoder, kept, texts, refused = Encoder(base), [], [], Counter[str]()
    for example in examples:
        try:
            text = encoder.encode(example.messages)
        except TemplateRefusal:
            refused["template_refused"] += 1
            continue
        if text.start >= len(text.ids):
            refused["empty"] += 1
        elif len(text.ids) > base.context:
            refused["too_long"] += 1
        else:
            kept.append(example)
            texts.append(text)
    if not kept:
        told = ", ".join(f"{reason} {count}" for reason, count in refused.items()) or "there are none"
        raise DataError(
            f"none of {len(examples)} texts can be read: {told}",
            remedy="give prompts or exchanges with labels",
        )
    return Readable(kept, texts, dict(refused))


def fit_probe(
    data: Readable,
    base: SharedBase,
    categories: Sequence[str],
    *,
    layers: Sequence[int],
    window: int,
    seed: int,
    readouts: Sequence[Readout] = READOUTS,
    progress: Progress | None = None,
) -> Fitted:
    """Fit heads for those of `categories` that have labels enough.

    Raises:
        DataError: None has.
    """
    kinds = _kinds(data, base, categories, layers, progress or NoProgress())
    learned, left_out = _learnable(kinds, categories)
    found = {
        reads: kind.fitted(
            [name for name, own in learned.items() if reads in own],
            window=window,
            seed=seed,
            readouts=readouts,
        )
        for reads, kind in kinds.items()
    }
    return Fitted(
        heads={reads: _heads(found, reads, learned) for reads in READS},
        categories=tuple(learned),
        held_out=[each for kind in found.values() for each in kind.held_out],
        ranked={reads: kind.ranked for reads, kind in found.items() if kind.ranked},
        learned=learned,
        left_out=left_out,
    )


def _kinds(
    data: Readable, base: SharedBase, categories: Sequence[str], layers: Sequence[int], progress: Progress
) -> dict[Reads, KindOfText]:
    """The texts of each kind that there is, read."""
    progress.begin(f"reading {count_of(len(data.texts), 'text')}", len(data.texts))
    kinds: dict[Reads, KindOfText] = {}
    room = STATES_KEPT
    for reads in READS:
        rows = [at for at, example in enumerate(data.examples) if example.reads == reads]
        if rows:
            texts = [data.texts[at] for at in rows]
            table = StateTable(base, texts, layers, room=room, progress=progress)
            room -= table.keeps
            kinds[reads] = KindOfText([data.examples[at] for at in rows], rows, categories, table)
    return kinds


def _learnable(
    kinds: Mapping[Reads, KindOfText], categories: Sequence[str]
) -> tuple[dict[str, tuple[Reads, ...]], dict[str, str]]:
    """The categories that have labels enough, with the kinds of text where they have; why others are left
    out.

    Raises:
        DataError: None has.
    """
    why = {name: {reads: kind.why_not(name) for reads, kind in kinds.items()} for name in categories}
    learned = {name: tuple(reads for reads, no in own.items() if not no) for name, own in why.items()}
    left_out = {name: "; ".join(why[name].values()) for name, own in learned.items() if not own}
    if len(left_out) == len(learned):
        raise DataError(
            "no principle has labels enough to learn from",
            problems=[Problem(told, where=name) for name, told in left_out.items()],
            remedy=f"give at least {FEWEST} prompts that break one and {FEWEST} that keep it; a judge "
            "that always answers the same is read by rank with verdicts: centred",
        )
    return {name: own for name, own in learned.items() if own}, left_out


def _heads(found: Mapping[Reads, KindFit], reads: Reads, learned: Mapping[str, Sequence[Reads]]) -> Heads:
    """The heads of one kind of text. A category that has none for it takes the head of the other kind, which
    was not measured on it."""
    own = (
        found[reads]
        if reads in found and found[reads].heads
        else next(each for each in found.values() if each.heads)
    )
    chosen = [found[reads if reads in kinds else kinds[0]].heads[name] for name, kinds in learned.items()]
    return Heads(
        direction=torch.stack([each.direction.weight for each in chosen]),
        bias=torch.tensor([each.direction.bias for each in chosen]),
        slope=torch.tensor([each.calibration.slope for each in chosen]),
        offset=torch.tensor([each.calibration.offset for each in chosen]),
        readout=own.readout,
    )
