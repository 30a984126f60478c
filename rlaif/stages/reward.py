"""Reward: learn from preferences to score completions.

1. check and encode the pairs, and hold whole prompts out
2. fit the head in closed form on the frozen base's features
3. let an adapter continue from that head by soft-target Bradley–Terry
4. measure both on the held-out pairs, beside length alone and the labels themselves, and keep the
   better one
5. normalise to mean 0 and standard deviation 1 on reference completions
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rlaif.config.reward import RewardConfig
from rlaif.digest import seed_from, unit_from
from rlaif.errors import ConfigError, DataError, Problem
from rlaif.models.packing import Tree, features, merged, same_states
from rlaif.models.shared_base import REFERENCE, LoraSettings, SharedBase
from rlaif.progress import NoProgress, Progress
from rlaif.results.informative import check_informative
from rlaif.results.preferences import PreferencePair, split_by_prompt
from rlaif.results.reward import (
    RewardReport,
    Scored,
    against_gold,
    by_length,
    by_margin,
    by_principle,
    gold_differences,
    length_differences,
    reliability,
    score_pairs,
)
from rlaif.reward.fit import HeadFit, bounded, fit_head
from rlaif.reward.head import ScalarHead
from rlaif.reward.loss import label_log_odds
from rlaif.reward.model import Conversation, Member, RewardModel, TurnFormat, scoring_tokens
from rlaif.reward.train import LabelledPairs, RewardOptimiser, RewardStep, train_adapter

__all__ = ["Gold", "RewardResult", "encode_pairs", "train_reward"]

Gold = Callable[[Sequence[dict[str, str]], str], float]
"""A metric that no training signal touches: of the prompt's messages and a completion."""

MICRO_TOKENS = {"cpu": 1024, "mps": 2048, "cuda": 8192}
REFERENCES = 256
"""Completions that the normalisation is measured on at most."""

PROBES = 8


@dataclass(frozen=True)
class RewardResult:
    """What the stage made.

    Attributes:
        model: The kept reward model, normalised; its adapters are on the base.
        steps: Every optimiser step of every member, in order.
        probes: Held-out conversations, whose scores are stored with the model and compared when it is loaded.
    """

    model: RewardModel
    report: RewardReport
    steps: list[RewardStep]
    probes: Sequence[Conversation]


class _Part(NamedTuple):
    """Pairs of one side of the split, encoded."""

    pairs: list[PreferencePair]
    labelled: LabelledPairs

    def lengths(self) -> tuple[Tensor, Tensor]:
        """Tokens of the chosen and of the rejected completions (N,)."""
        both = torch.tensor(
            [[len(ids) for ids in tree.completions] for tree in self.labelled.trees], dtype=torch.double
        )
        return both[:, 0], both[:, 1]


@dataclass
class _Work:
    """What the steps of one run share."""

    base: SharedBase
    config: RewardConfig
    train: _Part
    held_out: _Part
    share: bool
    progress: Progress
    log: Callable[[RewardStep], None]
    steps: list[RewardStep] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    frozen: Tensor | None = None
    """(N, 2, H): the frozen base's features of the training pairs, once they were read."""

    def tell(self, step: RewardStep) -> None:
        """One optimiser step is done."""
        self.progress.advance()
        self.log(step)

    def features(self, trees: Sequence[Tree], role: str) -> Tensor:
        """(N, 2, H): of the chosen and the rejected completion. One that several pairs have is read once."""
        once, places = merged(trees)
        share = self.config.share_prompt and same_states(self.base, once)
        with self.base.role(role):
            found = features(
                self.base, once, pooling=self.config.pooling, tokens=scoring_tokens(self.base), share=share
            )
        return found[places].view(len(trees), 2, -1)

    def differences(self, part: _Part, role: str, head: ScalarHead) -> Tensor:
        """Reward differences (N,) of a part's pairs."""
        with torch.no_grad():
            scores: Tensor = head.cpu()(self.features(part.labelled.trees, role))
        return scores[:, 0] - scores[:, 1]


def train_reward(
    pairs: Sequence[PreferencePair],
    *,
    base: SharedBase,
    config: RewardConfig,
    seed: int,
    role: str = "reward",
    human: Sequence[PreferencePair] = (),
    previous: RewardModel | None = None,
    fresh: str = "",
    reference: Sequence[Conversation] = (),
    gold: Gold | None = None,
    constitution: str = "",
    progress: Progress | None = None,
    log: Callable[[RewardStep], None] = lambda step: None,
) -> RewardResult:
    """Train a reward model on `pairs`; its adapter, if it is kept, is on `base` as `role` (an ensemble's:
    `ROLE-0`, …).

    Args:
        human: Pairs that people labelled, for the report only.
        previous: An earlier reward model on `base`, for the report: how it ranks the pairs whose source is
            `fresh`. With `config.further` it is what is trained further.
        reference: Completions of the reference policy that scores are normalised on; those of the training
            pairs when left out.
        gold: For the report: how often each way of scoring orders held-out pairs as this metric does.
        constitution: Digest of the constitution that the labels were given under.
        log: Told of every optimiser step.

    Raises:
        DataError: The pairs cannot be learned from: too few prompts, labels that say nothing, completions
            longer than the context.
        ModelError: Training ran away, or the base cannot do what the settings ask.
    """
    progress = progress or NoProgress()
    # 1. Check, encode, hold out.
    usable, dropped = _fitting(pairs, base, config)
    _check_labels(usable, config, progress)
    train, held_out = (
        _Part(part, encode_pairs(part, base, config))
        for part in split_by_prompt(usable, config.held_out, seed=seed)
    )
    share = config.share_prompt and same_states(base, train.labelled.trees)
    work = _Work(
        base=base, config=config, train=train, held_out=held_out, share=share, progress=progress, log=log
    )
    # 2, 3. Each member: the head, then the adapter that continues from it.
    base.checkpoint_layers(config.gradient_checkpointing)
    heads, adapters = _train_members(work, role, seed, _beginning(previous, config))
    # 4. Measure both, keep one.
    found = _measure(work, heads, adapters)
    kept = _choose(
        config,
        {
            name: score_pairs(found[name], held_out.labelled.p_chosen).loss
            for name in ("head", "lora")
            if name in found
        },
    )
    for member in adapters if kept == "head" else []:
        base.drop_adapter(member.role)
    # 5. Normalise.
    raw = RewardModel(
        base,
        heads if kept == "head" else adapters,
        pooling=config.pooling,
        combine=config.ensemble.combine,
        variance_penalty=config.ensemble.variance_penalty,
        constitution=constitution,
        share_prompt=config.share_prompt,
    )
    for member in raw.members:
        member.head.requires_grad_(False)
        if member.role != REFERENCE:
            base.train_role(member.role, False)
    model = _normalised(work, raw, kept, reference, seed=seed)
    report = _report(work, model, found, kept=kept, dropped=dropped, human=human, gold=gold)
    if previous is not None:
        report = replace(report, previous=_beside(work, previous, found[kept], fresh))
    return RewardResult(
        model=model, report=report, steps=work.steps, probes=_both(held_out.pairs[: PROBES // 2])
    )


# 1


def _fitting(
    pairs: Sequence[PreferencePair], base: SharedBase, config: RewardConfig
) -> tuple[list[PreferencePair], int]:
    """The pairs that the context holds, and how many it does not."""
    limit = min(config.max_tokens or base.context, base.context)
    trees = _trees(pairs, base)
    long = [pair for pair, tree in zip(pairs, trees, strict=True) if tree.longest > limit]
    if long and config.overlong == "refuse":
        longest = max(tree.longest for tree in trees)
        raise DataError(
            f"{len(long)} of {len(pairs)} pairs are longer than {limit} tokens, the longest {longest}",
            where=long[0].source,
            remedy="set `overlong: drop` to go on without them, or raise `max_tokens`",
            problems=[Problem("prompt and completion are too long", where=pair.id) for pair in long[:5]],
        )
    gone = {id(pair) for pair in long}
    return [pair for pair in pairs if id(pair) not in gone], len(long)


def _check_labels(pairs: Sequence[PreferencePair], config: RewardConfig, progress: Progress) -> None:
    """Refuse labels that nothing can be learned from, and those that say nothing unless they are allowed."""
    if not pairs:
        raise DataError(
            "there are no preferences to learn from",
            remedy="label some pairs first, or look at what was left out",
        )
    if all(abs(pair.p_chosen - 0.5) < 1e-6 or not pair.weight for pair in pairs):
        raise DataError(
            f"all {len(pairs)} labels are ½ or of weight 0: they say of no pair which completion is better",
            remedy="check the judge with `rlaif audit`; a judge that prefers nothing teaches nothing",
        )
    check_informative(pairs, uninformative=config.uninformative, note=progress.note)


def _both(pairs: Sequence[PreferencePair]) -> list[Conversation]:
    """Each pair's chosen and then its rejected conversation."""
    return [pair.conversation(text) for pair in pairs for text in (pair.chosen, pair.rejected)]


def _trees(pairs: Sequence[PreferencePair], base: SharedBase) -> list[Tree]:
    encoded = TurnFormat(base).encode(_both(pairs))
    return [
        Tree(prompt=prompt, completions=(chosen, rejected))
        for (prompt, chosen), (_, rejected) in zip(encoded[::2], encoded[1::2], strict=True)
    ]


def encode_pairs(pairs: Sequence[PreferencePair], base: SharedBase, config: RewardConfig) -> LabelledPairs:
    """The pairs as token ids with the labels that the settings ask for."""
    log_odds = [pair.log_odds for pair in pairs]
    return LabelledPairs(
        trees=_trees(pairs, base),
        log_odds=label_log_odds(log_odds, hard=config.labels == "hard"),
        weight=torch.tensor([pair.weight for pair in pairs]),
        margin=config.margin * bounded(label_log_odds(log_odds, hard=False)).abs().float(),
    )


# 2, 3


def _beginning(previous: RewardModel | None, config: RewardConfig) -> Member | None:
    """The member that is trained further, if one is.

    Raises:
        ConfigError: The earlier model is not of the form that the settings ask for.
    """
    if not config.further:
        return None
    assert previous is not None
    found = previous.members[0]
    if len(previous.members) > 1:
        what = f"`further` trains one model, and `previous` is an ensemble of {len(previous.members)}"
    elif previous.pooling != config.pooling:
        what = f"the head of `previous` was fitted with pooling {previous.pooling}, not {config.pooling}"
    elif found.role == REFERENCE and not config.warm_start:
        what = "`previous` is a head on the frozen base, and `warm_start: false` fits none to be drawn to it"
    elif found.role != REFERENCE and config.keep == "head":
        what = "`previous` scores through an adapter, and `keep: head` trains none"
    elif found.role != REFERENCE and (form := _form(previous.base, found.role)) != (
        asked := (config.lora_rank, config.lora_alpha)
    ):
        what = f"the adapter of `previous` has rank and alpha {form}, the settings ask for {asked}"
    else:
        return found
    raise ConfigError(what, where="further", remedy="give the settings of the earlier model, or begin anew")


def _form(base: SharedBase, role: str) -> tuple[int, float]:
    """An adapter's rank and alpha."""
    return base.rank(role), base.alpha(role)


def _centre(before: Member | None, head: ScalarHead) -> Tensor | None:
    """The earlier head on the frozen base as weights for the features as `head` standardises them."""
    if before is None or before.role != REFERENCE:
        return None
    earlier = before.head.cpu()
    return (earlier.weight.detach() / earlier.scale * head.scale).cpu()


def _train_members(
    work: _Work, role: str, seed: int, before: Member | None
) -> tuple[list[Member], list[Member]]:
    """The members with a head on the frozen base, and those with an adapter; either list may be empty.

    Args:
        before: What is trained further.
    """
    config, count = work.config, work.config.ensemble.members
    frozen = work.features(work.train.labelled.trees, REFERENCE) if config.warm_start else None
    work.frozen = frozen
    heads, adapters = [], []
    for number in range(count):
        own = seed_from(seed, "reward member", number)
        head = ScalarHead(work.base.hidden_size)
        if frozen is None:
            head.draw(own)
        else:
            head.standardise(frozen.flatten(0, 1))
            fit = _fit(work, head, frozen, seed=own, resample=count > 1, centre=_centre(before, head))
            work.figures |= {"ridge_penalty": fit.penalty, "ridge_loss": fit.loss, "ridge_scale": fit.scale}
            heads.append(Member(role=REFERENCE, head=head))
        if config.keep != "head":
            name = role if count == 1 else f"{role}-{number}"
            adapters.append(_train_adapter(work, name, copy.deepcopy(head), seed=own, before=before))
    return heads, adapters


def _fit(
    work: _Work, head: ScalarHead, frozen: Tensor, *, seed: int, resample: bool, centre: Tensor | None
) -> HeadFit:
    """Give `head` the closed-form fit; with `resample`, to prompts drawn with replacement."""
    prompts = [pair.group for pair in work.train.pairs]
    weight = work.train.labelled.weight
    if resample:
        weight = weight * torch.tensor(_times_drawn(prompts, seed))
    difference = (frozen[:, 0] - frozen[:, 1]) / head.scale
    log_odds = work.train.labelled.log_odds
    fit = fit_head(difference, log_odds, weight=weight, prompts=prompts, seed=seed, centre=centre)
    with torch.no_grad():
        head.weight.copy_(fit.weight)
    return fit


def _times_drawn(prompts: Sequence[str], seed: int) -> list[float]:
    """How often each pair's prompt is drawn when as many prompts as there are are drawn with replacement."""
    names = sorted(set(prompts))
    drawn = [names[int(unit_from(seed, "resample", draw) * len(names))] for draw in range(len(names))]
    times = {name: float(drawn.count(name)) for name in names}
    return [times[prompt] for prompt in prompts]


def _train_adapter(work: _Work, role: str, head: ScalarHead, *, seed: int, before: Member | None) -> Member:
    config, base, train = work.config, work.base, work.train.labelled
    base.add_adapter(role, LoraSettings(rank=config.lora_rank, alpha=config.lora_alpha), seed=seed)
    if before is not None and before.role != REFERENCE:
        base.set_adapter_state(role, base.adapter_state(before.role))
        head = copy.deepcopy(before.head)
        head.requires_grad_(True)
    others = {name: name in base.training for name in base.roles if name != role}
    for name in others:
        base.train_role(name, False)
    total = config.epochs * -(-len(train.trees) // config.batch_size)
    work.progress.begin(f"training the reward model on {len(train.trees)} pairs", total)
    start = time.perf_counter()
    steps = train_adapter(
        base,
        role,
        head,
        train,
        RewardOptimiser(
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            head_learning_rate=config.head_learning_rate,
            micro_tokens=config.micro_tokens or MICRO_TOKENS.get(base.device.type, 1024),
            pooling=config.pooling,
            share_prompt=work.share,
        ),
        seed=seed,
        log=work.tell,
    )
    seconds = time.perf_counter() - start
    for name, trains in others.items():
        base.train_role(name, trains)
    work.steps += steps
    work.figures |= {
        "seconds": seconds,
        "pairs_per_second": config.epochs * len(train.trees) / seconds,
        "tokens_per_second": sum(step.tokens for step in steps) / seconds,
    }
    return Member(role=role, head=head)


# 4


def _measure(work: _Work, heads: Sequence[Member], adapters: Sequence[Member]) -> dict[str, Tensor]:
    """Reward differences on the held-out pairs by way of scoring; an ensemble's are averaged."""
    train, held_out = work.train, work.held_out
    found = {
        "length": length_differences(
            train.lengths(), train.labelled.p_chosen, train.labelled.weight, held_out.lengths()
        ),
        "judge": held_out.labelled.log_odds,
    }
    for name, members in (("head", heads), ("lora", adapters)):
        if members:
            found[name] = torch.stack(
                [work.differences(held_out, member.role, member.head) for member in members]
            ).mean(dim=0)
    return found


def _choose(config: RewardConfig, losses: dict[str, float]) -> str:
    """`head` or `lora`: what the settings say, else what has the lower held-out loss."""
    return min(losses, key=lambda name: losses[name]) if config.keep == "best" else config.keep


# 5


def _normalised(
    work: _Work, raw: RewardModel, kept: str, reference: Sequence[Conversation], *, seed: int
) -> RewardModel:
    """`raw` normalised on `reference`, or on completions of the training pairs, whose features the head knows
    already."""
    if reference:
        return raw.normalised(reference)
    pairs, places = work.train.pairs, _references(work.train.pairs, seed)
    if kept == "head" and work.frozen is not None:
        found = work.frozen[[pair for pair, _ in places], [side for _, side in places]]
        return raw.normalised_on([found] * len(raw.members))
    return raw.normalised(
        [pairs[at].conversation((pairs[at].chosen, pairs[at].rejected)[side]) for at, side in places]
    )


def _references(pairs: Sequence[PreferencePair], seed: int) -> list[tuple[int, int]]:
    """Distinct completions of the pairs, `REFERENCES` of them drawn by hash, neighbours of one prompt
    together: the number of a pair, and 0 for its chosen, 1 for its rejected one."""
    every = {
        (pair.group, text): (at, side)
        for at, pair in enumerate(pairs)
        for side, text in enumerate((pair.chosen, pair.rejected))
    }
    drawn = sorted(every, key=lambda key: unit_from(seed, "reference", *key))[:REFERENCES]
    return [every[key] for key in sorted(drawn)]


def _report(
    work: _Work,
    model: RewardModel,
    found: dict[str, Tensor],
    *,
    kept: str,
    dropped: int,
    human: Sequence[PreferencePair],
    gold: Gold | None,
) -> RewardReport:
    held_out, p = work.held_out, work.held_out.labelled.p_chosen
    calibrated = reliability(found[kept], p)
    return RewardReport(
        pairs=len(work.train.pairs),
        held_out_pairs=len(held_out.pairs),
        dropped=dropped,
        kept=kept,
        held_out={name: score_pairs(difference, p) for name, difference in found.items()},
        principles=by_principle(held_out.pairs, found[kept]),
        margins=by_margin(held_out.pairs, found[kept]),
        lengths=by_length(held_out.pairs, found[kept], held_out.lengths()),
        reliability=[row._asdict() for row in calibrated.bins],
        reward_mean=model.members[0].mean,
        reward_std=model.members[0].std,
        gold=against_gold(found, gold_differences(held_out.pairs, gold)) if gold else {},
        human=measured(model, human) if human else None,
        training=work.figures,
    )


def _beside(work: _Work, previous: RewardModel, difference: Tensor, fresh: str) -> dict[str, Scored]:
    """How an earlier model ranks the fresh pairs, and the kept one those of them that were held out.

    Args:
        difference: The kept model's, on the held-out pairs.
    """
    every = [pair for part in (work.train, work.held_out) for pair in part.pairs if pair.source == fresh]
    places = [at for at, pair in enumerate(work.held_out.pairs) if pair.source == fresh]
    if not places:
        return {"fresh": measured(previous, every)} if every else {}
    held_out = [work.held_out.pairs[at] for at in places]
    return {
        "fresh": measured(previous, every),
        "held_out": measured(previous, held_out),
        "now": score_pairs(difference[places], work.held_out.labelled.p_chosen[places]),
    }


def measured(model: RewardModel, pairs: Sequence[PreferencePair]) -> Scored:
    """The model on labelled pairs; differences in units of raw reward, which the loss is about."""
    scores = torch.tensor(model.score(_both(pairs))).view(-1, 2)
    raw = model.members[0].std if len(model.members) == 1 else 1.0
    return score_pairs(raw * (scores[:, 0] - scores[:, 1]), torch.tensor([pair.p_chosen for pair in pairs]))
