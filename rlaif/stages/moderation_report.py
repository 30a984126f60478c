"""What a moderator is worth, on texts that it was not fitted to: beside a bag of words, fitted to the same
texts, a word list, and letting everything pass."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rlaif.config.moderation import ModerationConfig
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.baselines import fit_bag_of_words, listed_words, words_of
from rlaif.moderation.examples import Example, labels_of
from rlaif.moderation.fit import calibrate
from rlaif.moderation.kinds import HeldOut, hard, others_broken
from rlaif.moderation.measures import (
    RankedTexts,
    calibration_error,
    fewest,
    flagged_out_of_fold,
    threshold_at,
)
from rlaif.moderation.train import Fitted, Readable
from rlaif.progress import Progress
from rlaif.results.moderation import RATES, CategoryReport, Figure, ModerationReport, WayReport, in_millions
from rlaif.stats import ClusteredShare, Estimate, Floats, bootstrap
from rlaif.text import count_of

__all__ = ["moderation_report", "thresholds_of"]

RESAMPLES = 1000
SMALL = 1_000_000_000
"""Parameters of a base below which a moderator is a demonstration."""
ONE_TRAINING = "an adapter would have to be trained once more for each principle"
ONE_PRINCIPLE = "there is no other principle with labels enough to learn from"


_Statistic = Callable[[Sequence[RankedTexts], Floats], float]


class _Scored(NamedTuple):
    """What one way to moderate says of the texts of a `HeldOut`; all (n,)."""

    score: Tensor
    peak: Tensor
    unseen: Tensor | None


def moderation_report(
    data: Readable,
    fitted: Fitted,
    held_out: Sequence[HeldOut],
    thresholds: Mapping[str, float],
    *,
    base: SharedBase,
    config: ModerationConfig,
    layers: Sequence[int],
    seed: int,
    progress: Progress,
) -> ModerationReport:
    """The report of a moderator.

    Args:
        fitted: Heads, and what was left out.
        held_out: What the moderator says of texts that it was not fitted to.
        layers: Whose states are read; none by an adapter.
    """
    return ModerationReport(
        kind=config.kind,
        base=base.name,
        parameters=_parameters_of(base),
        measured="out of fold" if config.kind == "probe" else "on prompts held out",
        texts=len(data.examples),
        prompts=len({each.group for each in data.examples}),
        layers=tuple(layers),
        window=config.window,
        readout={reads: heads.readout for reads, heads in fitted.heads.items()},
        ranked={reads: {str(way): each[way] for way in each} for reads, each in fitted.ranked.items()},
        thresholds=dict(thresholds),
        false_positives=config.false_positives,
        categories=_measured(
            data.examples, held_out, fitted.categories, config, seed=seed, progress=progress
        ),
        sources=dict(Counter(each.source for each in data.examples)),
        refused=data.refused,
        left_out=fitted.left_out,
        words=[*_words_of_all(fitted, base), *_words_of_verdicts(data, config)],
    )


def _parameters_of(base: SharedBase) -> int:
    """How many weights the base has, adapters left out."""
    return sum(each.numel() for name, each in base.model.named_parameters() if "lora_" not in name)


def thresholds_of(
    held_out: Sequence[HeldOut], categories: Sequence[str], false_positives: float
) -> dict[str, float]:
    """For each category the lowest threshold that at most that share of the kept texts reach, prompts and
    exchanges together, at their peak (`HeldOut.peak`)."""
    found = {}
    for category in categories:
        kept = [
            each.calibration.probability(each.peak)[~hard(each.broken)]
            for each in held_out
            if each.category == category
        ]
        found[category] = threshold_at(torch.cat(kept).numpy(), false_positives)
    return found


def _measured(
    examples: Sequence[Example],
    held_out: Sequence[HeldOut],
    categories: Sequence[str],
    config: ModerationConfig,
    *,
    seed: int,
    progress: Progress,
) -> list[CategoryReport]:
    """The report of each category and kind of text."""
    progress.begin("measuring", len(held_out))
    labels = labels_of(examples, categories)
    found = []
    for each in held_out:
        found.append(_category_report(examples, labels, list(categories), each, config, seed))
        progress.advance()
    return found


def _category_report(
    examples: Sequence[Example],
    labels: Tensor,
    categories: Sequence[str],
    held: HeldOut,
    config: ModerationConfig,
    seed: int,
) -> CategoryReport:
    own = [examples[at] for at in held.rows.tolist()]
    ways = {
        "moderator": _Scored(held.score, held.peak, held.unseen),
        "bag_of_words": _bag_of_words(examples, labels, categories.index(held.category), held),
        "word_list": _word_list(own, held),
    }
    if held.frozen is not None:
        ways["frozen"] = _Scored(held.frozen, held.frozen, None)
    reports = {name: _way_report(own, held, each, config, seed) for name, each in ways.items()}
    reports["always_pass"] = _always_pass(held, own)
    difference = _bootstrapped(
        own, held, [ways["moderator"].score, ways["bag_of_words"].score], seed, _auroc_difference
    )
    return CategoryReport(
        category=held.category,
        reads=held.reads,
        texts=len(own),
        broken=int(hard(held.broken).sum()),
        prompts=len({each.group for each in own}),
        look_alikes=sum(each.look_alike for each in own),
        ways=reports,
        words=[*_words(held, reports["moderator"], difference), *_gain(own, held, seed)],
    )


def _bag_of_words(examples: Sequence[Example], labels: Tensor, place: int, held: HeldOut) -> _Scored:
    """A bag of words, fitted without each fold; and one of the other categories' union."""
    own = held.rows.tolist()
    if held.learned is not None:
        return _bag_of_learned(examples, labels[:, place], held, held.learned)
    documents = [words_of(examples[at].messages) for at in own]
    weight = torch.tensor([examples[at].weight for at in own])
    score = torch.zeros(len(own), dtype=torch.double)
    for fold in sorted(set(held.fold.tolist())):
        inside, outside = (held.fold != fold).nonzero().squeeze(1), (held.fold == fold).nonzero().squeeze(1)
        bag = fit_bag_of_words([documents[at] for at in inside], held.broken[inside], weight[inside])
        score[outside] = bag.log_odds([documents[at] for at in outside])
    unseen = None if held.unseen is None else _unseen_words(examples, labels, place, held)
    return _Scored(score, score, unseen)


def _bag_of_learned(examples: Sequence[Example], labels: Tensor, held: HeldOut, learned: Tensor) -> _Scored:
    """A bag of words, fitted to the texts that an adapter learned from."""
    bag = fit_bag_of_words(
        [words_of(examples[at].messages) for at in learned.tolist()],
        labels[learned],
        torch.tensor([examples[at].weight for at in learned.tolist()]),
    )
    score = bag.log_odds([words_of(examples[at].messages) for at in held.rows.tolist()])
    return _Scored(score, score, None)


def _unseen_words(examples: Sequence[Example], labels: Tensor, place: int, held: HeldOut) -> Tensor:
    """As `HeldOut.unseen`, by a bag of words."""
    assert held.unseen is not None
    others = others_broken(labels, place)
    same = torch.tensor([each.reads == held.reads for each in examples])
    folds = {examples[at].group: int(fold) for at, fold in zip(held.rows.tolist(), held.fold, strict=True)}
    fold_of = torch.tensor([folds.get(each.group, -1) for each in examples])
    found = torch.full((len(held.rows),), math.nan, dtype=torch.double)
    for fold in sorted(set(held.fold.tolist())):
        rows = (same & ~others.isnan() & (fold_of != fold)).nonzero().squeeze(1)
        bag = fit_bag_of_words(
            [words_of(examples[at].messages) for at in rows.tolist()],
            others[rows],
            torch.tensor([examples[at].weight for at in rows.tolist()]),
        )
        outside = ((held.fold == fold) & ~held.unseen.isnan()).nonzero().squeeze(1)
        found[outside] = bag.log_odds([words_of(examples[int(held.rows[at])].messages) for at in outside])
    return found


def _word_list(own: Sequence[Example], held: HeldOut) -> _Scored:
    score = listed_words([each.messages for each in own])
    unseen = None if held.unseen is None else torch.where(held.unseen.isnan(), math.nan, score)
    return _Scored(score, score, unseen)


def _way_report(
    own: Sequence[Example], held: HeldOut, scored: _Scored, config: ModerationConfig, seed: int
) -> WayReport:
    kept = int((~hard(held.broken)).sum())
    return WayReport(
        auroc=_bootstrapped(own, held, [scored.score], seed, lambda ranked, w: ranked[0].auroc(w)),
        recall={
            str(rate): _recall(own, held, scored, rate, seed)
            if kept >= fewest(rate)
            else Figure(None, why=f"{kept} kept texts are too few to tell {rate:.1%} from none")
            for rate in RATES
        },
        calibration_error=_calibration_error(held, scored.score, [each.weight for each in own]),
        over_refusal=_over_refusal(own, held, scored.peak, config.false_positives),
        unseen=_unseen(own, held, scored.unseen, seed)
        if held.learned is None
        else Figure(None, why=ONE_TRAINING),
    )


def _recall(own: Sequence[Example], held: HeldOut, scored: _Scored, rate: float, seed: int) -> Figure:
    """By bootstrap, and with an interval that is no narrower than that of the share of the broken texts at
    the threshold: where all of a few are flagged, or none, each resample says the same."""
    found = _bootstrapped(own, held, [scored.peak], seed, lambda ranked, w: ranked[0].recall(w, rate))
    if found.low is None or found.high is None:
        return found
    broken = hard(held.broken)
    flagged = scored.peak >= threshold_at(scored.peak[~broken].numpy(), rate)
    share = _share(own, broken.tolist(), flagged.tolist())
    return replace(found, low=min(found.low, share.low), high=max(found.high, share.high))


def _share(own: Sequence[Example], counted: Sequence[bool], flagged: Sequence[bool]) -> Estimate:
    """The share of the texts to be counted that are flagged, with its interval over prompts."""
    by_prompt: dict[str, list[bool]] = defaultdict(list)
    for each, counts, told in zip(own, counted, flagged, strict=True):
        if counts:
            by_prompt[each.group].append(told)
    share = ClusteredShare()
    for prompt in by_prompt.values():
        share.add(sum(prompt), len(prompt))
    return share.estimate()


def _unseen(own: Sequence[Example], held: HeldOut, unseen: Tensor | None, seed: int) -> Figure:
    if unseen is None:
        return Figure(None, why=ONE_PRINCIPLE)
    rows = (~unseen.isnan()).nonzero().squeeze(1)
    part = held._replace(broken=held.broken[rows])
    return _bootstrapped(
        [own[at] for at in rows.tolist()], part, [unseen[rows]], seed, lambda ranked, w: ranked[0].auroc(w)
    )


def _always_pass(held: HeldOut, own: Sequence[Example]) -> WayReport:
    """Nothing is flagged: no ranking, no recall, no over-refusal; the probability is 0."""
    none = Figure(0.0)
    look_alikes = sum(each.look_alike for each in own)
    return WayReport(
        auroc=Figure(0.5),
        recall={str(rate): none for rate in RATES},
        calibration_error=float(hard(held.broken).double().mean()),
        over_refusal=none if look_alikes else Figure(None, why="there are no look-alikes"),
        unseen=Figure(0.5),
    )


def _bootstrapped(
    own: Sequence[Example], held: HeldOut, scores: Sequence[Tensor], seed: int, statistic: _Statistic
) -> Figure:
    """A statistic of rankings with its interval, prompts drawn whole."""
    broken = hard(held.broken).numpy()
    groups = [each.group for each in own]
    if len(set(groups)) < 2:
        return Figure(None, why="fewer than two prompts")
    ranked = [RankedTexts(score.numpy(), broken) for score in scores]
    estimate = bootstrap(lambda w: statistic(ranked, w), groups, resamples=RESAMPLES, seed=seed)
    return Figure.of(estimate)


def _auroc_difference(ranked: Sequence[RankedTexts], weight: Floats) -> float:
    return ranked[0].auroc(weight) - ranked[1].auroc(weight)


def _calibration_error(held: HeldOut, score: Tensor, weight: Sequence[float]) -> float | None:
    """Of probabilities by a calibration that was fitted without the text's fold; `None` where there is but
    one."""
    if len(set(held.fold.tolist())) < 2:
        return None
    found, w = torch.zeros_like(score), torch.tensor(weight, dtype=torch.double)
    for fold in sorted(set(held.fold.tolist())):
        inside = held.fold != fold
        found[~inside] = calibrate(score[inside], held.broken[inside], w[inside]).probability(score[~inside])
    return calibration_error(found.numpy(), hard(held.broken).double().numpy())


def _over_refusal(own: Sequence[Example], held: HeldOut, peak: Tensor, false_positives: float) -> Figure:
    """The share of the look-alikes that are flagged, with its interval over prompts."""
    if not any(each.look_alike for each in own):
        return Figure(None, why="there are no look-alikes")
    flagged = flagged_out_of_fold(peak.numpy(), hard(held.broken).numpy(), held.fold.numpy(), false_positives)
    if flagged is None:
        return Figure(None, why="there are too few kept texts to choose a threshold on others")
    return Figure.of(_share(own, [each.look_alike for each in own], flagged.tolist()))


def _words(held: HeldOut, way: WayReport, difference: Figure) -> list[str]:
    """What the figures of a category come to."""
    kept, broken = int((~hard(held.broken)).sum()), int(hard(held.broken).sum())
    found = []
    if way.auroc.low is None or way.auroc.low <= 0.5:
        found.append("It cannot be told from chance.")
    elif difference.low is None or difference.low <= 0:
        found.append(_beside_words(difference))
    else:
        found.append("It ranks better than a bag of words.")
    untold = [f"{float(rate):.1%}" for rate, figure in way.recall.items() if figure.value is None]
    if untold:
        found.append(
            f"Recall at {' and '.join(untold)} false positives cannot be told from "
            f"{count_of(kept, 'kept text')}."
        )
    if broken < 20:
        found.append(f"{count_of(broken, 'broken text')}: every figure is rough.")
    return found


def _beside_words(difference: Figure) -> str:
    """What to say of a moderator whose lead over a bag of words is not above 0 with all of its interval."""
    if difference.high is not None and difference.high < 0:
        return "It is worse than a bag of words."
    if difference.value is not None and difference.value > 0:
        return "It ranks higher than a bag of words, by no more than chance may."
    return "It is no better than a bag of words."


def _gain(own: Sequence[Example], held: HeldOut, seed: int) -> list[str]:
    """Whether the adapter ranks better than its heads without it."""
    if held.frozen is None:
        return []
    found = _bootstrapped(own, held, [held.score, held.frozen], seed, _auroc_difference)
    better = found.low is not None and found.low > 0
    return [f"The adapter ranks {'better' if better else 'no better'} than its heads without it."]


def _words_of_all(fitted: Fitted, base: SharedBase) -> list[str]:
    found = _words_about_size(base)
    for reads in fitted.heads:
        lent = [name for name, own in fitted.learned.items() if reads not in own]
        if lent:
            found.append(
                f"{', '.join(lent)}: no head for {reads}s was trained, for lack of labels; the other kind's "
                "is used there, and was not measured on them."
            )
    return found


def _words_of_verdicts(data: Readable, config: ModerationConfig) -> list[str]:
    """What a judge's labels stand for, where they are no labels as they are."""
    if config.verdicts == "as-given" or not any(each.source == "judge" for each in data.examples):
        return []
    return [
        "The judge's verdicts were centred: a text counts as broken where the judge finds it worse than "
        "half of "
        "the texts, so a probability says nothing of how many break a principle."
    ]


def _words_about_size(base: SharedBase) -> list[str]:
    """What must be said of a moderator on a small base."""
    size = _parameters_of(base)
    if size >= SMALL:
        return []
    return [
        f"The base has {in_millions(size)} parameters: this is a demonstration of the method, not a guard."
    ]
