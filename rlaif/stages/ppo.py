"""Train a policy by PPO against a reward: the loop over steps, with its checkpoints, its limits and its exact
resumption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlaif.config.ppo import PpoConfig
from rlaif.digest import digest, seed_from
from rlaif.errors import ConfigError, DataError, RunError
from rlaif.models.cost import Meter
from rlaif.models.shared_base import SharedBase
from rlaif.results.costs import CurvePoint, TrainingCost, curve_of
from rlaif.reward.functions import RewardFunction
from rlaif.reward.model import Conversation, TurnFormat
from rlaif.rl.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from rlaif.rl.learner import POLICY, Learner, PtxRow, RunawayError
from rlaif.rl.ppo import Metrics, StepReport, ppo_step
from rlaif.rl.rollout import EncodedPrompt
from rlaif.stages.questions import ask_what_can_be_answered
from rlaif.types import Message, Prompt

__all__ = ["POLICY", "PpoResult", "PtxRow", "ppo_cost", "ptx_rows", "train_ppo"]

PATIENCE = 3
"""Rollouts at the start that may have one and the same score throughout before the reward is taken for a
constant."""

FREE = {"checkpoint_every", "max_refused", "name"}
"""Settings that may differ when a run goes on."""


@dataclass(frozen=True)
class PpoResult:
    """What training did. The policy is the adapter `policy` of the base that was given.

    Attributes:
        history: The metrics of the steps that this call ran.
        first_step: Where it began: 0, or the step of the checkpoint it went on from.
        stopped: Why it ended before its last step; empty when it did not.
        refused: Ids of prompts that the policy cannot answer, with the reason; they were left out.
    """

    history: tuple[Metrics, ...]
    first_step: int
    stopped: str = ""
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def steps(self) -> int:
        """Steps done in all, those before a resumption among them."""
        return self.first_step + len(self.history)


def train_ppo(
    prompts: Sequence[Prompt],
    *,
    base: SharedBase,
    reward: RewardFunction,
    config: PpoConfig,
    seed: int,
    messages: Callable[[Prompt], Sequence[Message]] = lambda prompt: prompt.messages,
    ptx: Sequence[PtxRow] = (),
    on_step: Callable[[Metrics], None] = lambda metrics: None,
    on_rollout: Callable[[StepReport], None] = lambda report: None,
    checkpoint_folder: Path | None = None,
) -> PpoResult:
    """Train the adapter `policy` of `base`, which must not have one yet.

    Args:
        messages: What the policy reads of a prompt (its retrieved documents, for one).
        ptx: The data of PPO-ptx, where the settings ask for it.
        on_step: Told the metrics of each step.
        on_rollout: Told the completions and scores of each step.
        checkpoint_folder: Checkpoints are written here, and training goes on from the newest one there.

    Raises:
        ConfigError: The settings need what was not given.
        DataError: There are no prompts, too many cannot be answered, or the reward is a constant.
        RunError: The checkpoint is damaged, or is one of another run.
    """
    _check(prompts, config, ptx)
    learner = Learner(base, config, seed=seed, ptx=ptx)
    with base.role(POLICY):
        asked, refused = ask_what_can_be_answered(
            prompts,
            [learner.sampler],
            messages,
            max_refused=config.max_refused,
            drawn=lambda count: places_drawn(count, config, seed=seed),
        )
    identity = _identity(base, config, asked, seed)
    first = _resume(learner, checkpoint_folder, identity) if checkpoint_folder else 0
    history: list[Metrics] = []
    flat, stopped = first == 0, ""
    for step in range(first, config.steps):
        meter = Meter()
        try:
            with meter.on(base):
                report = ppo_step(
                    learner, draw_prompts(asked, config, seed=seed, step=step), reward, step=step
                )
        except RunawayError as error:
            learner.roll_back()
            stopped = f"step {step}: {error.what}; the last good weights are back"
            break
        history.append(report.metrics | {"flops": meter.flops})
        on_step(history[-1])
        on_rollout(report)
        flat = flat and len(set(report.scores.total)) == 1
        if flat and step + 1 == PATIENCE:
            raise _constant(report)
        if checkpoint_folder and (step + 1) % config.checkpoint_every == 0:
            tensors, state = learner_state(learner)
            save_checkpoint(
                checkpoint_folder, step=step + 1, tensors=tensors, state=state | {"run": identity}
            )
    return PpoResult(history=tuple(history), first_step=first, stopped=stopped, refused=tuple(refused))


def ppo_cost(history: Sequence[Mapping[str, Any]]) -> TrainingCost:
    """What all steps took, those before a resumption too, from their metrics.

    A step's rollouts come from the policy that the steps before it made, so their mean reward stands at what
    those steps had taken.
    """
    curve: list[CurvePoint] = []
    tokens, seconds = 0, 0.0
    for step in history:
        curve.append(CurvePoint(tokens=tokens, seconds=seconds, value=step["reward"]))
        tokens += step["tokens"]
        seconds += sum(value for name, value in step.items() if name.startswith("seconds/"))
    counted = all("flops" in step for step in history)  # a run that an older version began did not
    flops = sum(step["flops"] for step in history) if counted else None
    return TrainingCost(tokens=tokens, seconds=seconds, flops=flops, curve=curve_of(curve))


def ptx_rows(base: SharedBase, conversations: Sequence[Conversation]) -> list[PtxRow]:
    """The data of PPO-ptx in tokens; each conversation ends with the assistant's message, whose turn is
    closed.

    Raises:
        DataError: One does not.
    """
    return [
        PtxRow(prompt=tuple(prompt), completion=tuple(ids))
        for prompt, ids in TurnFormat(base).encode(conversations)
    ]


def draw_prompts(
    asked: Sequence[EncodedPrompt], config: PpoConfig, *, seed: int, step: int
) -> list[EncodedPrompt]:
    """The prompts of a step: all prompts in random order, then all in another order, and so on."""
    per_step = config.episodes // config.samples_per_prompt
    return [
        asked[_order(len(asked), seed, at // len(asked))[at % len(asked)]]
        for at in range(step * per_step, (step + 1) * per_step)
    ]


def places_drawn(count: int, config: PpoConfig, *, seed: int) -> list[int]:
    """Which of `count` prompts all steps together draw, in ascending order."""
    drawn = config.steps * (config.episodes // config.samples_per_prompt)
    return sorted(_order(count, seed, 0)[:drawn])


def learner_state(learner: Learner) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Everything that a step changes, as tensors and JSON values."""
    tensors = _places(learner)
    for name, optimizer in (
        ("policy_adam", learner.policy_optimizer),
        ("value_adam", learner.value_optimizer),
    ):
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": value for key, value in moments.items()}
    return tensors, {"kl": learner.kl.state_dict()}


@torch.no_grad()
def load_learner(learner: Learner, checkpoint: Checkpoint) -> None:
    """Go on from what `learner_state` gave.

    Raises:
        RunError: The tensors are not those of this learner.
    """
    tensors = checkpoint.tensors
    for name, place in _places(learner).items():
        if name not in tensors or tensors[name].shape != place.shape:
            raise RunError(
                f"the checkpoint does not fit the model: {name}",
                remedy="use the base that the run was started with",
            )
        place.copy_(tensors[name])
    for name, optimizer in (
        ("policy_adam", learner.policy_optimizer),
        ("value_adam", learner.value_optimizer),
    ):
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"{name}."):
                _, index, moment = key.split(".")
                moments.setdefault(int(index), {})[moment] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    learner.kl.load_state_dict(checkpoint.state["kl"])


def _places(learner: Learner) -> dict[str, Tensor]:
    """The learner's own tensors by name, but for those of the optimisers."""
    lists: dict[str, Sequence[Tensor]] = {
        "policy": learner.policy_weights,
        "good": learner.good,
        "value": learner.value_weights,
    }
    places = {
        f"{name}.{index}": tensor for name, tensors in lists.items() for index, tensor in enumerate(tensors)
    }
    return places | {f"head.{name}": buffer for name, buffer in learner.head.named_buffers()}


def _resume(learner: Learner, folder: Path, identity: Mapping[str, object]) -> int:
    """Load the newest checkpoint of `folder`, if there is one; the step to go on with."""
    path = newest_checkpoint(folder)
    if path is None:
        return 0
    checkpoint = load_checkpoint(path)
    saved = checkpoint.state["run"]
    if differing := sorted(
        key for key in identity.keys() | saved.keys() if identity.get(key) != saved.get(key)
    ):
        remedy = (
            "go on with the settings, prompts and model that it was started with, or give the new run "
            "a folder of its own"
        )
        raise RunError(
            f"the checkpoint is of another run; different: {', '.join(differing)}",
            where=str(path),
            remedy=remedy,
        )
    load_learner(learner, checkpoint)
    return checkpoint.step


def _identity(
    base: SharedBase, config: PpoConfig, asked: Sequence[EncodedPrompt], seed: int
) -> dict[str, object]:
    """What must be the same for a run to go on, as JSON values."""
    settings = config.model_dump(mode="json", exclude=FREE)
    return {
        **settings,
        "seed": seed,
        "base": base.identity,
        "prompts (as read)": digest([list(question.ids) for question in asked]),
    }


@lru_cache(maxsize=2)
def _order(count: int, seed: int, turn: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed_from(seed, "prompts", turn))
    return tuple(torch.randperm(count, generator=generator).tolist())


def _check(prompts: Sequence[Prompt], config: PpoConfig, ptx: Sequence[PtxRow]) -> None:
    if not prompts:
        raise DataError("there are no prompts to train on", remedy="look at `prompts`, `split` and `limit`")
    if config.ptx and not ptx:
        remedy = "give rows of prompt and completion, or leave `ptx` out"
        raise ConfigError("PPO-ptx has no data", where=config.ptx.data, remedy=remedy)
    if any(not row.completion or not row.prompt for row in ptx):
        raise DataError("a row of the PPO-ptx data has no prompt or no completion", remedy="drop empty rows")


def _constant(report: StepReport) -> DataError:
    score = report.scores.total[0]
    return DataError(
        f"the reward gave {score:g} to every completion of the first {PATIENCE} rollouts: there is nothing "
        "to learn from",
        remedy="look at the completions and at the reward's parts in the metrics; a rule that all keep or "
        "none keeps cannot teach",
    )
