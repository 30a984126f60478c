"""What lets TRL's trainers work on the resident base: one adapter of it learns, and nothing else of it is
another afterwards.

TRL trains a model that it owns: it turns dropout on, replaces `forward`, aligns configs with the tokenizer,
seeds every generator of the process, prints, writes, and for DPO loads the model again as its reference. Here
the trainer is given the model that is in memory, with the role's adapter active, and everything but that
adapter's weights is put back; the base's weights are checked.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback

from rlaif.errors import ModelError
from rlaif.models.quiet import quiet
from rlaif.models.sharding import own_part
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.ranks import Ranks

__all__ = ["FinetuneStep", "NoReference", "Optimiser", "Resident", "finetune"]

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What a launcher sets for each process that it starts."""

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises; none where there are fewer than 20."""


@dataclass(frozen=True)
class Optimiser:
    """How an adapter is trained; the fields are those of `FinetuneSettings`."""

    epochs: int
    batch_size: int
    micro_batch: int
    learning_rate: float
    gradient_checkpointing: bool = False

    def steps(self, rows: int) -> int:
        """Optimiser steps on so many rows."""
        return self.epochs * math.ceil(rows / self.batch_size)


class FinetuneStep(NamedTuple):
    """What one optimiser step saw, before it moved."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float


class Resident:
    """Mixed into a TRL trainer: its model is `base.model`, and stays without dropout while it is trained.

    Args:
        base: Whose active role is trained.
        recompute: Recompute layers in the backward pass instead of keeping their activations.
    """

    def __init__(self, *, base: SharedBase, recompute: bool, **options: Any) -> None:
        self.base, self.recompute = base, recompute
        super().__init__(**options)

    def eval_mode(self) -> None:
        """Undo the training mode that the trainer sets before every pass: what is trained is the policy that
        samples."""
        self.base.model.eval()
        if self.recompute:
            self.base.checkpoint_layers(True)

    def own_share(self, rows: Sequence[int]) -> Sequence[int]:
        """Of a micro-batch, the rows that this rank learns. Every rank's trainer goes through the same
        batches, as if it were alone; the loss is its rows' part of the batch's."""
        share = self.base.ranks.share(len(rows))
        return rows[share.start : share.stop]

    def no_loss(self) -> Tensor:
        """The part of no rows: 0, with gradients of 0."""
        return sum((weight.sum() * 0.0 for weight in self.base.trainable(self.base.active)), torch.zeros(()))

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip what the ranks' parts add up to."""
        self.base.ranks.add_up(self.base.trainable(self.base.active))
        return super()._clip_grad_norm(model)  # type: ignore[misc]  # the trainer's


class NoReference(nn.Module):
    """Stands where `DPOTrainer` wants a reference model, which it would load a second time: ours is the base,
    asked beforehand."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Never called.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("the reference's log-probabilities are computed before training")


def finetune(
    base: SharedBase,
    role: str,
    *,
    rows: int,
    lora: LoraSettings,
    optimiser: Optimiser,
    seed: int,
    trainer: Callable[..., Any],
    arguments: Callable[..., Any],
    collate: Callable[[Sequence[Mapping[str, int]]], Any],
    options: Mapping[str, Any],
    log: Callable[[FinetuneStep], None] = lambda step: None,
) -> list[FinetuneStep]:
    """Train the adapter `role` with a TRL trainer; it is added if the base has none, and goes on from its
    weights if there is.

    Args:
        rows: How many there are; the trainer's dataset holds their numbers only, in the column `row`.
        trainer: A `Resident` trainer class.
        arguments: TRL's settings class for it.
        collate: A batch from examples `{"row": number}`.
        options: Further settings of `arguments`.

    Returns:
        Every optimiser step.

    Raises:
        ModelError: The loss is not a number (the adapter is then as it was before), weights moved that must
            not, or the base is quantised (TRL would round the adapter to bfloat16).
    """
    if getattr(base.model, "is_quantized", False):
        raise ModelError(
            f"{base.name} is quantised: TRL's trainers cannot fine-tune it in place",
            remedy="set quantization to none",
        )
    if role not in base.roles:
        base.add_adapter(role, lora, seed=seed)
    before = base.adapter_state(role)
    listener = _Listener(log, base.ranks)
    with (
        tempfile.TemporaryDirectory(prefix="rlaif-") as folder,
        _silence(),
        _alone(base.ranks),
        _own_random(base),
        _only(base, role),
        base.role(role),
    ):
        made = trainer(
            base=base,
            recompute=optimiser.gradient_checkpointing,
            model=base.model,
            processing_class=copy.deepcopy(base.tokenizer),
            train_dataset=Dataset.from_dict({"row": list(range(rows))}),
            data_collator=collate,
            callbacks=[listener],
            args=_on_one_device(
                arguments(**_arguments(base, optimiser, rows=rows, seed=seed, folder=folder), **options)
            ),
        )
        made.remove_callback(PrinterCallback)
        try:
            made.train()
        except _NotANumberError as error:
            base.set_adapter_state(role, before)
            raise ModelError(str(error), remedy="lower learning_rate, or use dtype float32") from None
        finally:
            made.accelerator.free_memory()
    return listener.steps


def _arguments(
    base: SharedBase, optimiser: Optimiser, *, rows: int, seed: int, folder: str
) -> dict[str, Any]:
    """The settings that all trainers share."""
    # Of all ranks together: where a batch is cut short, rows weigh by the size of their micro-batch, and so
    # another size would be another training.
    micro = min(optimiser.micro_batch, optimiser.batch_size)
    return {
        "output_dir": folder,
        "seed": seed % (1 << 31),
        "num_train_epochs": optimiser.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": optimiser.batch_size // micro,
        "learning_rate": optimiser.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": int(WARM_UP * optimiser.steps(rows)),
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "use_cpu": base.device.type == "cpu",
        "dataloader_pin_memory": base.device.type == "cuda",
        "remove_unused_columns": False,
        "max_length": None,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def _on_one_device(arguments: Any) -> Any:
    """The trainer's settings, for the model where it is: a trainer that sees several GPUs would put a copy on
    each."""
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


class _NotANumberError(Exception):
    """Ends training from inside a callback."""


class _Listener(TrainerCallback):
    """Hears of every optimiser step, and stops before a loss that is no number spoils more."""

    def __init__(self, log: Callable[[FinetuneStep], None], ranks: Ranks) -> None:
        self.steps: list[FinetuneStep] = []
        self._log = log
        self._ranks = ranks

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """One optimiser step, or the trainer's summary, which has no loss."""
        if not logs or "loss" not in logs:
            return
        step = FinetuneStep(
            step=state.global_step,
            loss=sum(self._ranks.gather(float(logs["loss"]))),
            grad_norm=float(logs.get("grad_norm", math.nan)),
            learning_rate=float(logs["learning_rate"]),
        )
        if not math.isfinite(step.loss + step.grad_norm):
            raise _NotANumberError(
                f"the loss is {step.loss} and its gradient {step.grad_norm} at step {step.step}"
            )
        self.steps.append(step)
        self._log(step)


@contextmanager
def _only(base: SharedBase, role: str) -> Iterator[None]:
    """Let the adapter `role` alone learn, and put everything else about the model back.

    Raises:
        ModelError: Other weights were written to or replaced.
    """
    training = base.training
    kept = _attributes(base.model)
    for name in base.roles:
        base.train_role(name, name == role)
    base.assert_only_trainable([role])
    frozen = _versions(base, role)
    try:
        yield
    finally:
        for holder, attributes in kept:
            holder.__dict__.clear()
            holder.__dict__.update(attributes)
        base.checkpoint_layers(False)
        base.model.eval()
        for parameter in base.trainable(role):
            parameter.grad = None
        for name in base.roles:
            base.train_role(name, name in training)
    moved = [name for name, state in _versions(base, role).items() if frozen.get(name) != state]
    if moved:
        raise ModelError(
            f"training {role!r} wrote to {len(moved)} other weights, first {moved[0]}",
            remedy="report this as a bug",
        )


def _attributes(model: Any) -> list[tuple[Any, dict[str, Any]]]:
    """What trainers change beside weights: the attributes of the model itself and of all its configs."""
    configs = [getattr(module, "config", None) for module in model.modules()] + [
        getattr(model, "generation_config", None)
    ]
    holders = {id(holder): holder for holder in (model, *configs) if hasattr(holder, "__dict__")}
    return [(holder, dict(holder.__dict__)) for holder in holders.values()]


def _versions(base: SharedBase, role: str) -> dict[str, tuple[int, int]]:
    """Where each weight but the adapter's own lies, and how often it was written to."""
    own = {id(parameter) for parameter in base.trainable(role)}
    return {
        name: (own_part(p).data_ptr(), own_part(p)._version)
        for name, p in base.model.named_parameters()
        if id(p) not in own
    }


@contextmanager
def _alone(ranks: Ranks) -> Iterator[None]:
    """Let Accelerate, and so the trainer, take this process for the only one: it would wrap the model, and
    hand each rank other rows. The ranks' parts are added up by `Resident`."""
    if ranks.count == 1:
        yield
        return
    hidden = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.update(hidden)


@contextmanager
def _own_random(base: SharedBase) -> Iterator[None]:
    """Put the process's random generators back, which trainers seed."""
    python, numeric = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numeric)


@contextmanager
def _silence() -> Iterator[None]:
    """Hold back what TRL and Accelerate say below an error, and what transformers tells TRL's authors of
    coming changes."""
    loggers = [logging.getLogger(name) for name in ("trl", "accelerate", "transformers.trainer")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
