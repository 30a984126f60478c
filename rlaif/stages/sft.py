"""Fine-tune a policy on completions, with TRL's `SFTTrainer`: the loss is on completions only, and rows may
be weighted.

A row is read as the policy reads its prompt when it samples, and ends with the token that closes the turn.
The loss of a batch is the mean negative log-likelihood of its completion tokens, as in TRL, each times its
row's weight (weights have mean 1). Logits are formed at completion tokens only, and what the prompts of a
pass have in common is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from trl.trainer.sft_config import SFTConfig as TrlSftConfig
from trl.trainer.sft_trainer import SFTTrainer

from rlaif.config.finetune import FinetuneSettings, SftConfig
from rlaif.digest import digest, seed_from, unit_from
from rlaif.errors import DataError, Problem
from rlaif.models.cost import Meter
from rlaif.models.finetune import FinetuneStep, Resident
from rlaif.models.shared_base import SharedBase
from rlaif.progress import NoProgress, Progress
from rlaif.results.costs import TrainingCost
from rlaif.reward.model import TurnFormat
from rlaif.rl.episodes import micro_batches, response_states
from rlaif.rl.update import logprobs_at
from rlaif.stages.finetuning import Log, fitting, learn
from rlaif.text import count_of
from rlaif.types import Message

__all__ = [
    "SftExample",
    "SftReport",
    "SftResult",
    "completion_logprobs",
    "fit_examples",
    "imitation_loss",
    "examples_from_rows",
    "train_sft",
    "without_overlong",
]

SHOWN_PROBLEMS = 20
MEASURED = 256
"""Rows that a loss is measured on at most."""


@dataclass(frozen=True, slots=True)
class SftExample:
    """A completion to imitate, in tokens.

    Attributes:
        weight: Relative weight of the row.
        group: Digest of the prompt: rows of one prompt stay on one side of a split.
    """

    id: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    weight: float = 1.0
    group: str = ""

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class SftReport:
    """What was learned from, and what it did.

    Attributes:
        overlong: Rows left out because they are longer than the limit.
        tokens: Completion tokens in the rows learned from.
        loss_before, loss_after: Weighted negative log-likelihood (nats per completion token) of `measured`
        rows.
        held_out: Whether those rows are of prompts that were not learned from.
    """

    rows: int
    prompts: int
    overlong: int
    tokens: int
    measured: int
    held_out: bool
    loss_before: float
    loss_after: float

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class SftResult:
    """What the stage made: the adapter is on the base, as `role`."""

    role: str
    report: SftReport
    steps: list[FinetuneStep]
    cost: TrainingCost = field(compare=False)


def train_sft(
    rows: Sequence[Mapping[str, Any]],
    *,
    base: SharedBase,
    config: SftConfig,
    seed: int,
    role: str = "policy",
    source: str = "",
    progress: Progress | None = None,
    log: Log = lambda step: None,
    skipped: Callable[[Sequence[Problem]], None] | None = None,
) -> SftResult:
    """Fine-tune the adapter `role` on rows of `prompt` and `completion` (lists of messages) and, if given,
    `weight`.

    The adapter is added to `base`; if it is there, it goes on from its weights. Nothing else of the base
    changes.

    Args:
        source: Where the rows are from, for messages.
        log: Told of every optimiser step.
        skipped: Told of the rows that cannot be learned from, which are then left out; without it they are an
            error.

    Raises:
        DataError: There are no rows, some cannot be read, too many are too long, or all are of one prompt.
        ModelError: Training ran away.
    """
    progress = progress or NoProgress()
    # 1. Read and encode the rows, and hold whole prompts out.
    examples, overlong = without_overlong(
        examples_from_rows(rows, base, source=source, skipped=skipped), base, config, source=source
    )
    train, held_out = _split(examples, config.held_out, seed=seed)
    # 2. Measure, learn, measure.
    measured = _drawn(held_out or train, seed)
    before = imitation_loss(
        base, role if role in base.roles else "reference", measured, rows=config.micro_batch
    )
    meter = Meter()
    with meter.on(base):
        steps = fit_examples(
            base, role, train, config, seed=seed_from(seed, "sft"), progress=progress, log=log
        )
    after = imitation_loss(base, role, measured, rows=config.micro_batch)
    report = SftReport(
        rows=len(train),
        prompts=len({example.group for example in train}),
        overlong=overlong,
        tokens=sum(len(example.completion) for example in train),
        measured=len(measured),
        held_out=bool(held_out),
        loss_before=before,
        loss_after=after,
    )
    return SftResult(
        role=role,
        report=report,
        steps=steps,
        cost=TrainingCost(tokens=0, seconds=meter.seconds, flops=meter.flops_of_all()),
    )


# Rows


def examples_from_rows(
    rows: Iterable[Mapping[str, Any]],
    base: SharedBase,
    *,
    source: str = "",
    skipped: Callable[[Sequence[Problem]], None] | None = None,
) -> list[SftExample]:
    """Rows of `prompt` and `completion`, in TRL's conversational format, in tokens.

    Args:
        skipped: See `train_sft`.

    Raises:
        DataError: Rows that cannot be learned from; the message lists them.
    """
    read: list[tuple[str, tuple[Message, ...], str, float]] = []
    problems: list[Problem] = []
    for number, row in enumerate(rows, start=1):
        try:
            read.append(
                (
                    str(row.get("id", number)),
                    _messages(row["prompt"], "user"),
                    _completion(row["completion"]),
                    _weight(row),
                )
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            said = f"column {error} is missing" if isinstance(error, KeyError) else str(error)
            problems.append(Problem(said, where=f"{source or 'rows'}, row {number}"))
    form = TurnFormat(base)
    refused = form.refusals([(*prompt, Message("assistant", text)) for _, prompt, text, _ in read])
    problems += [Problem(said, where=f"{source or 'rows'}, {read[at][0]}") for at, said in refused.items()]
    read = [row for at, row in enumerate(read) if at not in refused]
    if problems and read and skipped is not None:
        skipped(problems)
    elif problems:
        raise DataError(
            f"{len(problems)} of {len(read) + len(problems)} rows cannot be learned from",
            problems=problems[:SHOWN_PROBLEMS],
            remedy="each needs `prompt` and `completion` as lists of messages, the last of them the user's "
            "and the assistant's; "
            "or go on without them: --skip-bad-rows (skip_bad_rows: true)",
        )
    encoded = form.encode([(*prompt, Message("assistant", text)) for _, prompt, text, _ in read])
    return [
        SftExample(
            id=id,
            prompt=tuple(ids),
            completion=tuple(completion),
            weight=weight,
            group=digest([[message.role, message.content] for message in prompt]),
        )
        for (id, prompt, _, weight), (ids, completion) in zip(read, encoded, strict=True)
    ]


def without_overlong(
    examples: Sequence[SftExample], base: SharedBase, settings: FinetuneSettings, *, source: str = ""
) -> tuple[list[SftExample], int]:
    """The rows that the limit holds, and how many it does not.

    Raises:
        DataError: There are none, or too many are too long.
    """
    return fitting(
        examples, [example.length for example in examples], base, settings, noun="rows", where=source
    )


def _messages(turns: Any, last: str) -> tuple[Message, ...]:
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise ValueError("not a list of messages")
    for turn in turns:
        if turn["role"] not in ("system", "user", "assistant") or not isinstance(turn["content"], str):
            raise ValueError(f"not a chat message: {str(turn)[:80]}")
    messages = tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)
    if messages[-1].role != last:
        raise ValueError(f"the last message is not the {last}'s")
    return messages


def _completion(turns: Any) -> str:
    (message,) = _messages(turns, "assistant")
    if not message.content.strip():
        raise ValueError("the completion is empty")
    return message.content


def _weight(row: Mapping[str, Any]) -> float:
    value = row.get("weight")
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"weight is {value!r}, not a number of at least 0")
    return float(value)


def _split(
    examples: Sequence[SftExample], share: float, *, seed: int
) -> tuple[list[SftExample], list[SftExample]]:
    """Rows to learn and rows held out: `share` of the prompts, at least one of them unless it is 0, drawn by
    hash.

    Raises:
        DataError: All rows are of one prompt.
    """
    groups = sorted(
        {example.group for example in examples}, key=lambda group: unit_from(seed, "held out", group)
    )
    if len(groups) < 2:
        raise DataError(
            f"all {len(examples)} rows are of one prompt: the policy would learn to say the same to anything",
            remedy="give completions of more prompts",
        )
    held = set(groups[: min(len(groups) - 1, max(1, round(share * len(groups))))]) if share else set()
    return [example for example in examples if example.group not in held], [
        example for example in examples if example.group in held
    ]


def _drawn(examples: Sequence[SftExample], seed: int) -> list[SftExample]:
    return sorted(examples, key=lambda example: unit_from(seed, "measured", example.group, example.id))[
        :MEASURED
    ]


# Learning


def fit_examples(
    base: SharedBase,
    role: str,
    examples: Sequence[SftExample],
    settings: FinetuneSettings,
    *,
    seed: int,
    progress: Progress | None = None,
    log: Log = lambda step: None,
) -> list[FinetuneStep]:
    """Fine-tune the adapter `role` of `base` on encoded rows; weights are scaled to mean 1 first.

    Raises:
        ModelError: Training ran away; the adapter is as it was before.
    """
    mean = sum(example.weight for example in examples) / len(examples)
    rows = [replace(example, weight=example.weight / mean) for example in examples]

    def build(**options: Any) -> _SftTrainer:
        return _SftTrainer(examples=rows, **options)

    return learn(
        base,
        role,
        settings,
        rows=len(rows),
        title=f"fine-tuning on {count_of(len(rows), 'completion')}",
        seed=seed,
        trainer=build,
        arguments=TrlSftConfig,
        collate=lambda numbers: _collate(numbers, rows),
        options={"dataset_kwargs": {"skip_prepare_dataset": True}},
        progress=progress or NoProgress(),
        log=log,
    )


class _SftTrainer(Resident, SFTTrainer):
    """TRL's trainer with a loss whose rows are weighted, and formed at completion tokens only."""

    def __init__(self, *, examples: Sequence[SftExample], **options: Any) -> None:
        self.examples = examples
        super().__init__(**options)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Σ over rows of weight · Σ over tokens of -log π, over the completion tokens of the whole batch."""
        self.eval_mode()
        examples = [self.examples[row] for row in self.own_share(inputs["row"].tolist())]
        if not examples:
            return self.no_loss()
        logprobs, _ = completion_logprobs(
            self.base,
            [example.prompt for example in examples],
            [example.completion for example in examples],
            share=not self.recompute,
        )
        weight = torch.tensor([example.weight for example in examples], device=logprobs.device)
        count = (inputs["labels"] != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return -(weight * logprobs.sum(1)).sum() / count


def _collate(numbers: Sequence[int], examples: Sequence[SftExample]) -> dict[str, Tensor]:
    """A batch. Its `labels` are there for the trainer to count completion tokens by, over a whole batch of
    micro-batches: it leaves out the first column, as nothing predicts a row's first token."""
    lengths = torch.tensor([len(examples[number].completion) for number in numbers])
    columns = torch.arange(int(lengths.max()) + 1)
    is_real = (columns > 0) & (columns <= lengths.unsqueeze(1))
    return {"row": torch.tensor(numbers), "labels": torch.where(is_real, 0, -100)}


def completion_logprobs(
    base: SharedBase,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    share: bool = True,
) -> tuple[Tensor, Tensor]:
    """The active role's log-probabilities of completion tokens, at temperature 1.

    Args:
        share: Compute what the prompts begin with once. Must be off where layers are recomputed.

    Returns:
        (B, T), fp32, 0 at padding, which is on the right; and what is real, (B, T).
    """
    width, device = max(map(len, completions)), base.device
    tokens = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in completions], device=device)
    lengths = torch.tensor([len(ids) for ids in completions], device=device)
    is_real = torch.arange(width, device=device) < lengths.unsqueeze(1)
    states = response_states(base, prompts, tokens, is_real, share=share)
    return logprobs_at(base, states, tokens, is_real), is_real


@torch.no_grad()
def imitation_loss(base: SharedBase, role: str, examples: Sequence[SftExample], *, rows: int = 8) -> float:
    """Weighted negative log-likelihood of completions, in nats per token."""

    def read(micro: list[int]) -> float:
        part = [examples[index] for index in micro]
        logprobs, _ = completion_logprobs(
            base, [example.prompt for example in part], [example.completion for example in part]
        )
        weight = torch.tensor([example.weight for example in part], device=logprobs.device)
        return float((weight * logprobs.sum(1)).sum())

    batches = micro_batches([example.prompt for example in examples], range(len(examples)), rows)
    with base.role(role):
        likelihood = sum(base.ranks.spread(batches, read))
    return -likelihood / sum(example.weight * len(example.completion) for example in examples)
