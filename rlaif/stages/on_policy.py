"""Train a policy on its own samples: the loop over steps that PPO and GRPO share, with its checkpoints, its
limits and its exact resumption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlaif.config.on_policy import OnPolicyConfig
from rlaif.digest import digest, seed_from
from rlaif.errors import ConfigError, DataError, RunError
from rlaif.files import folder_digest
from rlaif.models.cost import Meter
from rlaif.models.shared_base import LoraSettings
from rlaif.results.costs import CurvePoint, TrainingCost, curve_of
from rlaif.results.monitor import MonitorReport
from rlaif.rl.checkpoint import Checkpoint, checksum, load_checkpoint, newest_checkpoint, save_checkpoint
from rlaif.rl.learner import POLICY, Config, Learner, RunawayError
from rlaif.rl.rollout import EncodedPrompt
from rlaif.rl.step import Metrics, StepReport
from rlaif.stages.monitor import Monitor, Watch
from rlaif.stages.questions import ask_what_can_be_answered
from rlaif.stages.rollouts import served_sampler
from rlaif.types import Message, Prompt

__all__ = [
    "OnPolicyResult",
    "Step",
    "check_prompts",
    "draw_prompts",
    "load_learner",
    "learner_state",
    "on_policy_cost",
    "places_drawn",
    "prompt_queue",
    "train_on_policy",
]

PATIENCE = 3
"""Rollouts at the start that may have one and the same score throughout before the reward is taken for a
constant."""

FREE = {"checkpoint_every", "max_refused", "name", "rollout", "policy", "reference", "directives"}
"""Settings that may differ when a run goes on: servers come and go, and what directives made of the prompts
is in the prompts."""

Reader = Callable[[Prompt], Sequence[Message]]
"""What the policy reads of a prompt."""

Step = Callable[[Sequence[EncodedPrompt], int], StepReport]
"""A rollout and an update, of all prompts and the number of the step."""


@dataclass(frozen=True)
class OnPolicyResult:
    """What training did. The policy is the adapter `policy` of the base that was given.

    Attributes:
        history: The metrics of the steps that this call ran.
        first_step: Where it began: 0, or the step of the checkpoint it went on from.
        stopped: Why it ended before its last step; empty when it did not.
        refused: Ids of prompts that the policy cannot answer, with the reason; they were left out.
        monitor: What was read along the way, where a monitor was given.
    """

    history: tuple[Metrics, ...]
    first_step: int
    stopped: str = ""
    refused: tuple[tuple[str, str], ...] = ()
    monitor: MonitorReport | None = None

    @property
    def steps(self) -> int:
        """Steps done in all, those before a resumption among them."""
        return self.first_step + len(self.history)


def train_on_policy(
    prompts: Sequence[Prompt],
    learner: Learner[Config],
    take_step: Step,
    *,
    drawn: Callable[[int], Sequence[int]],
    messages: Reader,
    on_step: Callable[[Metrics], None],
    on_rollout: Callable[[StepReport], None],
    checkpoint_folder: Path | None,
    monitor: Monitor | None = None,
) -> OnPolicyResult:
    """Run the steps of the learner's settings.

    Args:
        drawn: Of so many prompts, the places of those that the steps draw.
        messages: What the policy reads of a prompt (its retrieved documents, for one).
        on_step: Told the metrics of each step.
        on_rollout: Told the completions and scores of each step.
        checkpoint_folder: Checkpoints are written here, and training goes on from the newest one there.
        monitor: Looks at the policy along the way, as the settings say.

    Raises:
        ConfigError: The settings ask for a monitor, and none was given.
        DataError: Too many prompts cannot be answered, or the reward is a constant.
        RunError: The checkpoint is damaged, or is one of another run.
    """
    config, folder = learner.config, checkpoint_folder
    with _sampling(learner, folder):
        with learner.base.role(POLICY):
            asked, refused = ask_what_can_be_answered(
                prompts, [learner.sampler], messages, max_refused=config.max_refused, drawn=drawn
            )
        watch = _watch(learner, monitor, messages)
        identity = _identity(learner, asked)
        first = _resume(learner, watch, folder, identity) if folder else 0
        history: list[Metrics] = []
        flat, stopped = first == 0, ""
        watch.look(first)
        for step in range(first, config.steps):
            meter = Meter()
            try:
                with meter.on(learner.base):
                    report = take_step(asked, step)
            except RunawayError as error:
                learner.roll_back()
                watch.rolled_back(learner.good_steps)
                stopped = f"step {step}: {error.what}; the last good weights are back"
                break
            history.append(report.metrics | {"flops": meter.flops_of_all()})
            on_step(history[-1])
            on_rollout(report)
            flat = flat and len(set(report.scores.total)) == 1
            if flat and step + 1 == PATIENCE:
                raise _constant(report)
            if stopped := watch.look(step + 1, last=step + 1 == config.steps):
                break
            if folder and (step + 1) % config.checkpoint_every == 0:
                _save(learner, watch, folder, identity, steps=step + 1)
    return OnPolicyResult(tuple(history), first, stopped, tuple(refused), watch.report)


def _watch(learner: Learner[Config], monitor: Monitor | None, messages: Reader) -> Watch[Config]:
    """The readings to be, of prompts that the policy can answer.

    Raises:
        ConfigError: The settings ask for a monitor, and none was given.
        DataError: Too many of its prompts cannot be answered.
    """
    if monitor is None:
        if learner.config.monitor is not None:
            raise ConfigError(
                "the settings have a monitor, and no held-out prompts were given to it",
                where=learner.config.name,
                remedy="give `monitor` beside the settings (rlaif.stages.monitor.Monitor), or leave it out",
            )
        return Watch(learner, None)
    with learner.base.role(POLICY):
        questions, refused = ask_what_can_be_answered(
            monitor.prompts, [learner.sampler], messages, max_refused=learner.config.max_refused
        )
    return Watch(learner, monitor, questions, refused)


@contextmanager
def _sampling(learner: Learner[Config], folder: Path | None) -> Iterator[None]:
    """Have the learner sample on servers inside the block, where its settings name some."""
    with ExitStack() as servers:
        config = learner.config
        if config.rollout is not None:
            learner.sampler = servers.enter_context(
                served_sampler(
                    learner.base,
                    config.rollout,
                    folder,
                    max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature,
                    lora=LoraSettings(rank=config.lora_rank, alpha=config.lora_alpha),
                )
            )
        yield


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Refuse to train on nothing.

    Raises:
        DataError: There are no prompts.
    """
    if not prompts:
        raise DataError("there are no prompts to train on", remedy="look at `prompts`, `split` and `limit`")


def on_policy_cost(history: Sequence[Mapping[str, Any]]) -> TrainingCost:
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


def draw_prompts(
    asked: Sequence[EncodedPrompt], config: OnPolicyConfig, *, seed: int, step: int
) -> list[EncodedPrompt]:
    """The prompts of a step: all prompts in random order, then all in another order, and so on."""
    per_step = config.episodes // config.samples_per_prompt
    return [
        asked[_order(len(asked), seed, at // len(asked))[at % len(asked)]]
        for at in range(step * per_step, (step + 1) * per_step)
    ]


def places_drawn(count: int, config: OnPolicyConfig, *, seed: int) -> list[int]:
    """Which of `count` prompts all steps together draw, in ascending order."""
    drawn = config.steps * (config.episodes // config.samples_per_prompt)
    return sorted(_order(count, seed, 0)[:drawn])


def prompt_queue(
    asked: Sequence[EncodedPrompt], config: OnPolicyConfig, *, seed: int, step: int
) -> Iterator[EncodedPrompt]:
    """The prompts of a step, and after them all others in an order of the step's own."""
    own = draw_prompts(asked, config, seed=seed, step=step)
    yield from own
    taken = {id(question) for question in own}
    order = _order(len(asked), seed_from(seed, "further", step), 0)
    yield from (asked[at] for at in order if id(asked[at]) not in taken)


def learner_state(learner: Learner[Config]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Everything that a step changes, as tensors and JSON values."""
    tensors = dict(learner.tensors())
    for name, (optimizer, _) in learner.optimizers().items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}_adam.{index}.{key}": value for key, value in moments.items()}
    return tensors, {"kl": learner.kl.state_dict()}


@torch.no_grad()
def load_learner(learner: Learner[Config], checkpoint: Checkpoint) -> None:
    """Go on from what `learner_state` gave.

    Raises:
        RunError: The tensors are not those of this learner.
    """
    tensors = checkpoint.tensors
    for name, place in learner.tensors():
        if name not in tensors or tensors[name].shape != place.shape:
            raise RunError(
                f"the checkpoint does not fit the model: {name}",
                remedy="use the base that the run was started with",
            )
        place.copy_(tensors[name])
    for name, (optimizer, _) in learner.optimizers().items():
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"{name}_adam."):
                _, index, moment = key.split(".")
                moments.setdefault(int(index), {})[moment] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    learner.kl.load_state_dict(checkpoint.state["kl"])
    # A step keeps the weights that it begins with.
    learner.good_steps = max(0, checkpoint.step - 1)


def _resume(
    learner: Learner[Config], watch: Watch[Config], folder: Path, identity: Mapping[str, object]
) -> int:
    """Load the newest checkpoint of `folder`, if there is one; the step to go on with."""
    found = learner.base.ranks.from_first(lambda: _newest(folder))
    if found is None:
        return 0
    path, checkpoint = found
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
    watch.load(checkpoint)
    return checkpoint.step


def _save(
    learner: Learner[Config],
    watch: Watch[Config],
    folder: Path,
    identity: Mapping[str, object],
    *,
    steps: int,
) -> None:
    """Write a checkpoint; of several ranks, the first does, when all hold the same."""
    ranks = learner.base.ranks
    tensors, state = learner_state(learner)
    ranks.check_same(lambda: checksum(tensors), what="weights")
    watched, readings = watch.state()
    ranks.from_first(
        lambda: save_checkpoint(
            folder, step=steps, tensors=tensors | watched, state=state | readings | {"run": identity}
        )
    )


def _newest(folder: Path) -> tuple[Path, Checkpoint] | None:
    path = newest_checkpoint(folder)
    return None if path is None else (path, load_checkpoint(path))


def _identity(learner: Learner[Config], asked: Sequence[EncodedPrompt]) -> dict[str, object]:
    """What must be the same for a run to go on, as JSON values."""
    settings, start = learner.config.model_dump(mode="json", exclude=FREE), learner.start
    return {
        **settings,
        "seed": learner.seed,
        "base": learner.base.identity,
        "prompts (as read)": digest([list(question.ids) for question in asked]),
        **({"start": [folder_digest(start.folder), start.held]} if start else {}),
    }


@lru_cache(maxsize=2)
def _order(count: int, seed: int, turn: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed_from(seed, "prompts", turn))
    return tuple(torch.randperm(count, generator=generator).tolist())


def _constant(report: StepReport) -> DataError:
    score = report.scores.total[0]
    return DataError(
        f"the reward gave {score:g} to every completion of the first {PATIENCE} rollouts: there is nothing "
        "to learn from",
        remedy="look at the completions and at the reward's parts in the metrics; a rule that all keep or "
        "none keeps cannot teach",
    )
