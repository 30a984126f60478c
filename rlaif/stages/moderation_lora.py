"""Moderation, the kind `lora`: an adapter that classifies texts.

1. hold prompts out; fit a head for each category to the mean states of the others, in closed form
2. train the adapter under these heads, which stay, by cross-entropy on the soft labels that are known
3. calibrate, choose thresholds and measure on the prompts that were held out, beside the heads without
   adapter
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from trl.trainer.sft_config import SFTConfig as TrlSftConfig
from trl.trainer.sft_trainer import SFTTrainer

from rlaif.config.moderation import ModerationConfig
from rlaif.digest import seed_from, unit_from
from rlaif.errors import DataError
from rlaif.models.finetune import Resident
from rlaif.models.shared_base import REFERENCE, SharedBase
from rlaif.moderation.classifier import LoraModerator
from rlaif.moderation.examples import Example, labels_of
from rlaif.moderation.fit import calibrate, stratified_folds
from rlaif.moderation.kinds import HeldOut, hard
from rlaif.moderation.probe import READS, Heads, Reads
from rlaif.moderation.states import ReadText, layer_count, read_states
from rlaif.moderation.train import Fitted, Readable, fit_probe, readable
from rlaif.progress import NoProgress, Progress
from rlaif.stages.finetuning import fitting, learn, lora_of
from rlaif.stages.moderation import ModerationResult, probes_of
from rlaif.stages.moderation_report import moderation_report, thresholds_of
from rlaif.text import count_of

__all__ = ["train_moderation_lora"]


class _Row(NamedTuple):
    """A text as `fitting` wants it."""

    id: str
    weight: float
    number: int


class _Data(NamedTuple):
    """Readable texts, and numbers of those that are learned from and of those held out."""

    data: Readable
    learned: list[int]
    held: list[int]


def train_moderation_lora(
    examples: Sequence[Example],
    categories: Sequence[str],
    *,
    base: SharedBase,
    config: ModerationConfig,
    seed: int,
    role: str,
    progress: Progress | None = None,
) -> ModerationResult:
    """Train the adapter `role` of `base`; it is added, and nothing else of the base changes.

    Raises:
        DataError: No text can be read, too many are too long, or no category has labels enough.
        ModelError: Training ran away.
    """
    progress = progress or NoProgress()
    split = _split(readable(examples, base), base, config, seed)
    data, last = split.data, layer_count(base)
    own = Readable([data.examples[at] for at in split.learned], [data.texts[at] for at in split.learned], {})
    fitted = fit_probe(
        own, base, categories, layers=(last,), window=1, seed=seed, readouts=("mean",), progress=progress
    )
    _learn(own, fitted, base, config, role=role, seed=seed, progress=progress)
    held_out, heads = _held_out(split, fitted, base, role, seed)
    thresholds = thresholds_of(held_out, fitted.categories, config.false_positives)
    moderator = LoraModerator(base, role, fitted.categories, thresholds, heads, config.window)
    report = moderation_report(
        data,
        fitted._replace(ranked={}),
        held_out,
        thresholds,
        base=base,
        config=config,
        layers=(),
        seed=seed,
        progress=progress,
    )
    return ModerationResult(moderator, report, probes_of(data))


def _split(data: Readable, base: SharedBase, config: ModerationConfig, seed: int) -> _Data:
    """Whole prompts to learn from, and to hold out."""
    rows = [_Row(each.where or f"text {at + 1}", each.weight, at) for at, each in enumerate(data.examples)]
    kept, overlong = fitting(rows, [len(text.ids) for text in data.texts], base, config, noun="texts")
    if overlong:
        data.refused["too_long"] = data.refused.get("too_long", 0) + overlong
    chosen = [row.number for row in kept]
    part = Readable([data.examples[at] for at in chosen], [data.texts[at] for at in chosen], data.refused)
    groups = [each.group for each in part.examples]
    held = {group for group in set(groups) if unit_from(seed, "moderation", group) < config.held_out}
    return _Data(
        part,
        [at for at, group in enumerate(groups) if group not in held],
        [at for at, group in enumerate(groups) if group in held],
    )


def _learn(
    own: Readable,
    fitted: Fitted,
    base: SharedBase,
    config: ModerationConfig,
    *,
    role: str,
    seed: int,
    progress: Progress,
) -> None:
    """Train the adapter under the heads of `fitted`."""
    base.add_adapter(role, lora_of(config), seed=seed_from(seed, "adapter", role) % (1 << 31))
    learn(
        base,
        role,
        config,
        rows=len(own.texts),
        title=f"training a moderator on {count_of(len(own.texts), 'text')}",
        seed=seed_from(seed, "moderation"),
        trainer=lambda **options: _Trainer(own=own, fitted=fitted, **options),
        arguments=TrlSftConfig,
        collate=lambda numbers: {"row": torch.tensor(numbers)},
        options={"dataset_kwargs": {"skip_prepare_dataset": True}},
        progress=progress,
        log=lambda step: None,
    )


class _Trainer(Resident, SFTTrainer):
    """TRL's trainer with the cross-entropy of the labels that are known, under heads that stay as they
    are."""

    def __init__(self, *, own: Readable, fitted: Fitted, **options: Any) -> None:
        self.own, self.heads = own, fitted.heads
        self.labels = labels_of(own.examples, fitted.categories)
        super().__init__(**options)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """-[p log P + (1 - p) log(1 - P)], the mean over a text's known labels; divided by the batch's
        texts."""
        self.eval_mode()
        batch = inputs["row"].tolist()
        if not (numbers := self.own_share(batch)):
            return self.no_loss()
        means = _mean_states(self.base, [self.own.texts[at] for at in numbers])
        loss = torch.zeros((), device=means.device)
        for mean, at in zip(means, numbers, strict=True):
            example, labels = self.own.examples[at], self.labels[at]
            known = ~labels.isnan()
            if bool(known.any()):
                logits = _logits(self.heads[example.reads], mean)[known]
                wanted = labels[known].to(logits)
                loss = loss + example.weight * binary_cross_entropy_with_logits(logits, wanted)
        return loss / len(batch)


def _logits(heads: Heads, mean: Tensor) -> Tensor:
    """The calibrated log-odds of a text, (H,) -> (C,), fp32."""
    device = mean.device
    score = mean.float() @ heads.direction.to(device).t() + heads.bias.to(device)
    return heads.slope.to(device) * score + heads.offset.to(device)


def _mean_states(base: SharedBase, texts: Sequence[ReadText]) -> Tensor:
    """(B, H), fp32: the mean over the scored tokens of the last states of the active role, with gradient."""
    width = max(len(text.ids) for text in texts)
    ids, mask = torch.zeros(len(texts), width, dtype=torch.long), torch.zeros(len(texts), width).long()
    scored = torch.zeros(len(texts), width)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
        mask[row, : len(text.ids)] = 1
        scored[row, text.start : len(text.ids)] = 1 / (len(text.ids) - text.start)
    states = base.hidden(ids.to(base.device), mask.to(base.device)).float()
    return torch.einsum("bt,bth->bh", scored.to(base.device), states)


def _held_out(
    split: _Data, fitted: Fitted, base: SharedBase, role: str, seed: int
) -> tuple[list[HeldOut], dict[Reads, Heads]]:
    """What adapter and heads say of the texts held out, and the heads calibrated on them.

    Raises:
        DataError: A category has no broken or no kept text there.
    """
    labels = labels_of(split.data.examples, fitted.categories)
    scores = [_scores(split, fitted.heads, base, each) for each in (role, REFERENCE)]
    found, heads = [], dict(fitted.heads)
    for reads in READS:
        slope, offset = heads[reads].slope.clone(), heads[reads].offset.clone()
        for place, category in enumerate(fitted.categories):
            if reads not in fitted.learned[category]:
                continue
            own = _category(
                split, category, reads, labels[:, place], [each[:, place] for each in scores], seed
            )
            slope[place], offset[place] = own.calibration
            found.append(own)
        heads[reads] = Heads(heads[reads].direction, heads[reads].bias, slope, offset, "mean")
    return found, heads


def _category(
    split: _Data, category: str, reads: Reads, labels: Tensor, scores: Sequence[Tensor], seed: int
) -> HeldOut:
    """One category on one kind of text.

    Args:
        labels: (N,), NaN where unknown.
        scores: (N,), with the adapter, and without.
    """
    examples = split.data.examples

    def known(some: Sequence[int]) -> Tensor:
        rows = [at for at in some if examples[at].reads == reads and not bool(labels[at].isnan())]
        return torch.tensor(rows, dtype=torch.long)

    rows = known(split.held)
    broken, score = labels[rows], scores[0][rows]
    _check_both(category, reads, broken)
    weight = torch.tensor([examples[at].weight for at in rows.tolist()])
    groups = [examples[at].group for at in rows.tolist()]
    return HeldOut(
        category=category,
        reads=reads,
        rows=rows,
        broken=broken,
        score=score,
        peak=score,
        fold=stratified_folds(groups, broken, seed),
        calibration=calibrate(score, broken, weight),
        learned=known(split.learned),
        frozen=scores[1][rows],
    )


def _check_both(category: str, reads: Reads, broken: Tensor) -> None:
    sides = int(hard(broken).sum()), int((~hard(broken)).sum())
    if not min(sides):
        raise DataError(
            f"the {reads}s held out have {sides[0]} that break {category!r} and {sides[1]} that keep it, so "
            "nothing can be measured on them",
            remedy="give more labels, raise `held_out`, or train a probe, which is measured out of fold",
        )


def _scores(split: _Data, heads: Mapping[Reads, Heads], base: SharedBase, role: str) -> Tensor:
    """(N, C), fp64: scores of the texts held out under a role; 0 at the others."""
    data = split.data
    count = len(heads["prompt"].bias)
    found = torch.zeros(len(data.examples), count, dtype=torch.double)
    texts = [data.texts[at] for at in split.held]
    for batch in read_states(base, texts, (layer_count(base),), role=role):
        for at, states in batch.items():
            number = split.held[at]
            found[number] = heads[data.examples[number].reads].log_odds(states.mean(0)).double()
    return found
