"""Train a policy on preferences without a reward model, with TRL's `DPOTrainer`: a cheap baseline beside PPO
and best of K.

The loss is that of Rafailov et al. 2023 (2305.18290, eq. 7) with the judge's probability as its target: the
implicit reward β log(π / π_ref) goes into the same soft Bradley–Terry loss as a reward model's score (with
one probability for all rows this is the paper's conservative DPO, and TRL's `label_smoothing`). The reference
is the base with its adapters off; its log-probabilities are computed once before training, so there is no
second model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl.trainer.dpo_config import DPOConfig as TrlDpoConfig
from trl.trainer.dpo_trainer import DPOTrainer

from rlaif.config.finetune import DpoConfig
from rlaif.digest import seed_from
from rlaif.errors import DataError
from rlaif.models.cost import Meter
from rlaif.models.finetune import FinetuneStep, NoReference, Resident
from rlaif.models.shared_base import SharedBase
from rlaif.models.start import Start, begin_adapter
from rlaif.progress import NoProgress, Progress
from rlaif.results.costs import TrainingCost
from rlaif.results.informative import check_informative
from rlaif.results.preferences import PreferencePair, split_by_prompt
from rlaif.results.reward import Scored, score_pairs
from rlaif.reward.loss import bradley_terry_loss, label_log_odds
from rlaif.reward.model import TurnFormat
from rlaif.rl.episodes import micro_batches
from rlaif.stages.finetuning import Log, fitting, learn, lora_of
from rlaif.stages.sft import completion_logprobs
from rlaif.text import count_of

__all__ = ["DpoReport", "DpoResult", "train_dpo"]


@dataclass(frozen=True)
class DpoReport:
    """What was learned from, and what it did.

    Attributes:
        overlong: Pairs left out because they are longer than the limit.
        held_out: Implicit rewards β log(π / π_ref) on held-out pairs, measured as a reward model's are.
        train: The same on the pairs learned from.
        margin: Mean implicit reward of the chosen less that of the rejected completion, on held-out pairs.
        chosen_shift, rejected_shift: Mean log(π / π_ref) of either completion on held-out pairs (nats a
        completion). That both fall
            is a known side of DPO.
    """

    pairs: int
    held_out_pairs: int
    overlong: int
    held_out: Scored
    train: Scored
    margin: float
    chosen_shift: float
    rejected_shift: float

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class DpoResult:
    """What the stage made: the adapter is on the base, as `role`."""

    role: str
    report: DpoReport
    steps: list[FinetuneStep]
    cost: TrainingCost = field(compare=False)


class _Pair(NamedTuple):
    """A pair in tokens."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


class _Labelled(NamedTuple):
    """Pairs with their labels; tensors are (N,), on the CPU."""

    pairs: list[_Pair]
    p_chosen: Tensor
    weight: Tensor
    """Mean 1."""
    reference: Tensor
    """(N, 2), the reference's log-probabilities of the chosen and of the rejected completion (nats)."""


def train_dpo(
    pairs: Sequence[PreferencePair],
    *,
    base: SharedBase,
    config: DpoConfig,
    seed: int,
    role: str = "policy",
    start: Start | None = None,
    progress: Progress | None = None,
    log: Log = lambda step: None,
) -> DpoResult:
    """Train the adapter `role` on `pairs`; it is added to `base`, which must not have one yet. Nothing else
    of the base changes.

    Args:
        start: The adapter that is trained further; a new one when left out.
        log: Told of every optimiser step.

    Raises:
        DataError: The pairs cannot be learned from: too few prompts, labels that say nothing, too many that
            are too long.
        ModelError: Training ran away, or the base has an adapter `role`.
    """
    # 1. Check, encode, hold out, and ask the reference.
    progress = progress or NoProgress()
    usable, overlong = _fitting(pairs, base, config)
    check_informative(usable, uninformative=config.uninformative, note=progress.note)
    own, others = split_by_prompt(usable, config.held_out, seed=seed)
    drawn = seed_from(seed, "adapter", role) % (1 << 31)
    reference = begin_adapter(base, role, lora_of(config), seed=drawn, start=start)
    meter, held_out = Meter(), _labelled(others, base, config, reference)
    with meter.on(base):
        train = _labelled(own, base, config, reference)
    # 2. Learn.

    def build(**options: Any) -> _DpoTrainer:
        return _DpoTrainer(data=train, ref_model=NoReference(base.model.config), **options)

    with meter.on(base):
        steps = learn(
            base,
            role,
            config,
            rows=len(train.pairs),
            title=f"DPO on {count_of(len(train.pairs), 'pair')}",
            seed=seed_from(seed, "dpo"),
            trainer=build,
            arguments=TrlDpoConfig,
            collate=lambda numbers: {"row": torch.tensor(numbers)},
            # Dropout is off already, and is to be put back as it was.
            options={"beta": config.beta, "disable_dropout": False},
            progress=progress,
            log=log,
        )
    # 3. Measure what was made.
    return DpoResult(
        role=role,
        report=_report(base, role, config, train=train, held_out=held_out, overlong=overlong),
        steps=steps,
        cost=TrainingCost(tokens=0, seconds=meter.seconds, flops=meter.flops_of_all()),
    )


class _DpoTrainer(Resident, DPOTrainer):
    """TRL's trainer with soft targets and a reference that was asked beforehand."""

    def __init__(self, *, data: _Labelled, **options: Any) -> None:
        self.data = data
        super().__init__(**options)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # rows are numbers: the pairs are in tokens already, read as the policy reads them

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The soft Bradley–Terry loss of the implicit rewards."""
        self.eval_mode()
        batch = inputs["row"].tolist()
        if not (rows := self.own_share(batch)):
            return self.no_loss()
        policy = _logprobs(self.base, [self.data.pairs[row] for row in rows], share=not self.recompute)
        device = policy.device
        reward = self.beta * (policy - self.data.reference[rows].to(device))
        p, weight = self.data.p_chosen[rows].to(device), self.data.weight[rows].to(device)
        # Divided by the rows, not by their weight: every row then counts the same whatever batch it is in.
        loss = bradley_terry_loss(reward[:, 0], reward[:, 1], p, weight=weight) * weight.mean()
        return loss * len(rows) / len(batch)


def _logprobs(base: SharedBase, pairs: Sequence[_Pair], *, share: bool = True) -> Tensor:
    """The active role's log-probabilities of both completions: (N, 2)."""
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    logprobs, _ = completion_logprobs(
        base, prompts, [ids for pair in pairs for ids in (pair.chosen, pair.rejected)], share=share
    )
    return logprobs.sum(1).view(-1, 2)


@torch.no_grad()
def _all_logprobs(base: SharedBase, role: str, pairs: Sequence[_Pair], *, rows: int) -> Tensor:
    """As `_logprobs`, for the role given, `rows` pairs at a time; on the CPU."""
    found = torch.zeros(len(pairs), 2)
    batches = micro_batches([pair.prompt for pair in pairs], range(len(pairs)), rows)

    def read(micro: list[int]) -> Tensor:
        return _logprobs(base, [pairs[index] for index in micro]).cpu()

    with base.role(role):
        for micro, logprobs in zip(batches, base.ranks.spread(batches, read), strict=True):
            found[micro] = logprobs
    return found


def _fitting(
    pairs: Sequence[PreferencePair], base: SharedBase, config: DpoConfig
) -> tuple[list[PreferencePair], int]:
    """The pairs that can be learned from, and how many are longer than the limit.

    Raises:
        DataError: There are none, they all say ½, or too many are too long.
    """
    lengths = [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in _encode(pairs, base)]
    usable, long = fitting(pairs, lengths, base, config, noun="pairs", where=pairs[0].source if pairs else "")
    if config.labels == "soft" and all(abs(pair.p_chosen - 0.5) < 1e-6 for pair in usable):
        raise DataError(
            f"all {len(usable)} labels are ½: they say of no pair which completion is better",
            remedy="check the judge with `rlaif audit`; a judge that prefers nothing teaches nothing",
        )
    return usable, long


def _encode(pairs: Sequence[PreferencePair], base: SharedBase) -> list[_Pair]:
    encoded = TurnFormat(base).encode(
        [pair.conversation(text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    )
    return [
        _Pair(tuple(prompt), tuple(chosen), tuple(rejected))
        for (prompt, chosen), (_, rejected) in zip(encoded[::2], encoded[1::2], strict=True)
    ]


def _labelled(
    pairs: Sequence[PreferencePair], base: SharedBase, config: DpoConfig, reference: str
) -> _Labelled:
    encoded = _encode(pairs, base)
    weight = torch.tensor([pair.weight for pair in pairs])
    log_odds = label_log_odds([pair.log_odds for pair in pairs], hard=config.labels == "hard")
    return _Labelled(
        pairs=encoded,
        p_chosen=log_odds.sigmoid().float(),
        weight=weight / weight.mean(),
        reference=_all_logprobs(base, reference, encoded, rows=config.micro_batch),
    )


def _report(
    base: SharedBase, role: str, config: DpoConfig, *, train: _Labelled, held_out: _Labelled, overlong: int
) -> DpoReport:
    shift = {
        name: _all_logprobs(base, role, part.pairs, rows=config.micro_batch) - part.reference
        for name, part in (("train", train), ("held_out", held_out))
    }
    difference = {name: config.beta * (x[:, 0] - x[:, 1]) for name, x in shift.items()}
    chosen, rejected = shift["held_out"].mean(0).tolist()
    margin = float(difference["held_out"].mean())
    return DpoReport(
        pairs=len(train.pairs),
        held_out_pairs=len(held_out.pairs),
        overlong=overlong,
        held_out=score_pairs(difference["held_out"], held_out.p_chosen),
        train=score_pairs(difference["train"], train.p_chosen),
        margin=margin,
        chosen_shift=chosen,
        rejected_shift=rejected,
    )
