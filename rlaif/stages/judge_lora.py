"""Judge, the kind `lora`: an adapter that answers a judge's questions.

1. ask of every pair what the judge will ask, in tokens; hold prompts out
2. a pair's log-odds are a sum over its questions (`JudgingProtocol.parts`), each the difference of the two
   labels' log-probabilities: train the adapter by soft cross-entropy on the sum
3. measure on the pairs that were held out, beside the untrained model and beside length; fit a temperature
   there
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl.trainer.sft_config import SFTConfig as TrlSftConfig
from trl.trainer.sft_trainer import SFTTrainer

from rlaif.config.judge import JudgeConfig
from rlaif.digest import seed_from
from rlaif.engines.base import LabelRequest
from rlaif.engines.hf import HFEngine
from rlaif.engines.labels import EncodedQuestion, find_labels
from rlaif.errors import DataError
from rlaif.judging.judge import Judge
from rlaif.judging.protocols import JudgingProtocol
from rlaif.models.finetune import Resident
from rlaif.models.shared_base import REFERENCE, SharedBase
from rlaif.progress import NoProgress, Progress
from rlaif.results.judge import JudgeReport
from rlaif.results.preferences import PreferencePair, split_by_prompt
from rlaif.results.reward import by_source, score_pairs
from rlaif.reward.fit import fit_scale
from rlaif.reward.loss import bradley_terry_loss
from rlaif.rl.episodes import micro_batches
from rlaif.stages.finetuning import fitting, learn, lora_of
from rlaif.stages.judge import QUESTIONS, by_length, comparison_of, questions_about
from rlaif.text import count_of

__all__ = ["LoraJudgeResult", "train_lora_judge"]


@dataclass(frozen=True)
class LoraJudgeResult:
    """What the stage made: the adapter is on the base, as `role`.

    Attributes:
        scale: Temperature of its answers.
        questions: A few of the training questions, with the judge's log-odds.
    """

    role: str
    scale: float
    report: JudgeReport
    questions: Sequence[tuple[LabelRequest, float]]


class _Asked(NamedTuple):
    """A pair with its questions in tokens, and how much of each one's log-odds is in the pair's."""

    pair: PreferencePair
    requests: tuple[LabelRequest, ...]
    questions: tuple[EncodedQuestion, ...]
    parts: tuple[float, ...]

    @property
    def id(self) -> str:
        """The pair's."""
        return self.pair.id

    @property
    def weight(self) -> float:
        """The pair's."""
        return self.pair.weight


def train_lora_judge(
    pairs: Sequence[PreferencePair],
    *,
    judge: Judge,
    protocol: JudgingProtocol,
    weights: Mapping[str, float],
    engine: HFEngine,
    base: SharedBase,
    config: JudgeConfig,
    seed: int,
    role: str,
    progress: Progress | None = None,
) -> LoraJudgeResult:
    """Train the adapter `role` of `base` on `pairs`; it is added, and nothing else of the base changes.

    Args:
        judge: The untrained one, which says what is asked of a pair.
        weights: Of the principles, by id.
        engine: Runs `base`; says how questions are put into tokens.

    Raises:
        DataError: The pairs cannot be learned from: too few prompts, labels that all say ½, too many that are
            too long.
        ModelError: Training ran away.
    """
    progress = progress or NoProgress()
    asked, refused = _encoded(pairs, judge, protocol, weights, engine)
    longest = [max(len(each.ids) for each in row.questions) for row in asked]
    rows, overlong = fitting(asked, longest, base, config, noun="pairs")
    if overlong:
        refused["prompt_too_long"] = refused.get("prompt_too_long", 0) + overlong
    if all(abs(row.pair.p_chosen - 0.5) < 1e-6 for row in rows):
        raise DataError(
            f"all {len(rows)} labels are ½: they say of no pair which completion is better",
            remedy="collect labels of people, or use those of a judge that prefers something",
        )
    by_pair = {id(row.pair): row for row in rows}
    own, others = split_by_prompt([row.pair for row in rows], config.held_out, seed=seed)
    train, held = ([by_pair[id(pair)] for pair in part] for part in (own, others))
    base.add_adapter(role, lora_of(config), seed=seed_from(seed, "adapter", role) % (1 << 31))
    learn(
        base,
        role,
        config,
        rows=len(train),
        title=f"training a judge on {count_of(len(train), 'pair')}",
        seed=seed_from(seed, "judge"),
        trainer=lambda **options: _JudgeTrainer(rows=train, **options),
        arguments=TrlSftConfig,
        collate=lambda numbers: {"row": torch.tensor(numbers)},
        options={"dataset_kwargs": {"skip_prepare_dataset": True}},
        progress=progress,
        log=lambda step: None,
    )
    found = {
        "trained": _all_log_odds(base, role, held, config),
        "untrained": _all_log_odds(base, REFERENCE, held, config),
        "shorter": by_length(others),
    }
    p = torch.tensor([pair.p_chosen for pair in others], dtype=torch.double)
    weight = torch.tensor([pair.weight for pair in others], dtype=torch.double)
    _, scale = fit_scale(found["trained"], p, weight)
    report = JudgeReport(
        kind="lora",
        pairs=len(rows),
        prompts=len({pair.group for pair in [*own, *others]}),
        held_out=len(others),
        refused=dict(refused),
        folds=0,
        layer=0,
        layers=0,
        found={name: score_pairs(each, p) for name, each in found.items()},
        penalty=0.0,
        scale=scale,
        sources=by_source(others, found["trained"]),
    )
    return LoraJudgeResult(role, max(scale, 1e-3), report, _remembered(base, role, train, max(scale, 1e-3)))


class _JudgeTrainer(Resident, SFTTrainer):
    """TRL's trainer with the soft Bradley–Terry loss of a pair's log-odds."""

    def __init__(self, *, rows: Sequence[_Asked], **options: Any) -> None:
        self.rows = rows
        super().__init__(**options)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """-[p log σ(d) + (1 - p) log σ(-d)], d the pair's log-odds; divided by the batch's rows."""
        self.eval_mode()
        batch = inputs["row"].tolist()
        if not (numbers := self.own_share(batch)):
            return self.no_loss()
        rows = [self.rows[number] for number in numbers]
        found = _log_odds(self.base, rows)
        p = torch.tensor([row.pair.p_chosen for row in rows], device=found.device)
        weight = torch.tensor([row.weight for row in rows], device=found.device)
        loss = bradley_terry_loss(found, torch.zeros_like(found), p, weight=weight) * weight.mean()
        return loss * len(rows) / len(batch)


def _encoded(
    pairs: Sequence[PreferencePair],
    judge: Judge,
    protocol: JudgingProtocol,
    weights: Mapping[str, float],
    engine: HFEngine,
) -> tuple[list[_Asked], Counter[str]]:
    """Every pair with its questions, and how many cannot be asked, by reason."""
    requests, asked = questions_about([comparison_of(pair) for pair in pairs], judge, protocol, weights)
    encoded = list(find_labels(engine.form, requests))
    found, refused = [], Counter[str]()
    for pair, own in zip(pairs, asked, strict=True):
        questions = tuple(encoded[at] for at in own.questions)
        if reason := next((each.reason for each in questions if each.reason), ""):
            refused[reason] += 1
            continue
        found.append(_Asked(pair, tuple(requests[at] for at in own.questions), questions, own.parts))
    return found, refused


def _log_odds(base: SharedBase, rows: Sequence[_Asked]) -> Tensor:
    """(N,), fp32: each pair's log-odds by the active role."""
    questions = [each for row in rows for each in row.questions]
    longest = max(len(each.ids) for each in questions)
    ids = torch.zeros(len(questions), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, each in enumerate(questions):
        ids[at, : len(each.ids)] = torch.tensor(each.ids.tolist())
        mask[at, : len(each.ids)] = 1
    device = base.device
    states = base.hidden(ids.to(device), mask.to(device))
    last = states[torch.arange(len(questions)), mask.sum(1).to(device) - 1]
    labels = torch.tensor([each.labels for each in questions], device=device)
    logits = base.label_logits(last, labels)
    parts = torch.tensor([part for row in rows for part in row.parts], device=device)
    owner = torch.tensor([at for at, row in enumerate(rows) for _ in row.questions], device=device)
    own = parts * (logits[:, 0] - logits[:, 1])
    return torch.zeros(len(rows), device=device).index_add(0, owner, own)


@torch.no_grad()
def _all_log_odds(base: SharedBase, role: str, rows: Sequence[_Asked], config: JudgeConfig) -> Tensor:
    """As `_log_odds`, for the role given, some pairs at a time; (N,), fp64, on the CPU."""
    found = torch.zeros(len(rows), dtype=torch.double)
    lengths = [tuple(range(max(len(each.ids) for each in row.questions))) for row in rows]
    batches = micro_batches(lengths, range(len(rows)), config.micro_batch)
    with base.role(role):
        read = base.ranks.spread(batches, lambda micro: _log_odds(base, [rows[at] for at in micro]).cpu())
        for micro, values in zip(batches, read, strict=True):
            found[micro] = values.double()
    return found


@torch.no_grad()
def _remembered(
    base: SharedBase, role: str, rows: Sequence[_Asked], scale: float
) -> list[tuple[LabelRequest, float]]:
    """A few questions with the judge's log-odds, to ask again when it is opened."""
    asked = [
        (request, each) for row in rows for request, each in zip(row.requests, row.questions, strict=True)
    ]
    first = asked[:QUESTIONS]
    with base.role(role):
        alone = [_Asked(rows[0].pair, (request,), (each,), (1.0,)) for request, each in first]
        values = _log_odds(base, alone).tolist()
    return [(request, scale * value) for (request, _), value in zip(first, values, strict=True)]
