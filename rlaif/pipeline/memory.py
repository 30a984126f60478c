"""What a recipe's training stages need in memory: told by `rlaif memory`, and before each stage is run. No
weights are loaded.

Counted for each stage: the base and its adapters, what one pass over a micro-batch keeps, the cache of a
rollout, and the other models that the run holds by then (judges, a base that was fine-tuned, a student).
Lengths come from the prompts, which are known, and from the longest completion that the settings allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import TracebackType
from typing import NamedTuple

import torch

from rlaif.config import Recipe, StageConfig
from rlaif.config.labelling import BaseStage
from rlaif.config.reward import RewardConfig
from rlaif.engines.decoding import GPU_CACHE_SHARE
from rlaif.engines.journaled import NullMemo
from rlaif.jobs.base import AnyJob
from rlaif.jobs.context import RunContext
from rlaif.jobs.lengths import Device, Lengths
from rlaif.jobs.merging import stage_base
from rlaif.jobs.table import make_job
from rlaif.models.devices import pick_device
from rlaif.models.memory import (
    KERNEL_BYTES,
    MemoryItem,
    MemoryPlan,
    ModelShape,
    Precision,
    StageWork,
    available_memory,
    model_shape,
    plan_memory,
    precision_of,
)
from rlaif.models.open import is_scripted, is_served
from rlaif.models.places import known_as
from rlaif.models.probe_files import weights_of
from rlaif.process_memory import PeakWatch, resident_now
from rlaif.progress import NoProgress, Progress
from rlaif.ranks import current
from rlaif.text import count_of

__all__ = ["Machine", "StageMemory", "recipe_memory", "tell_memory"]


LEFT = 45 << 20
"""What a stage leaves in the heap of a CPU's process for those after it, above what it was told to give back:
measured in the quickstart, where it adds up to 0.3 GB by the seventh stage (docs/LOG.md)."""


@dataclass(frozen=True)
class StageMemory:
    """A training stage and what it needs."""

    name: str
    kind: str
    plan: MemoryPlan


class Machine(NamedTuple):
    """What a plan is made for: a device, the bytes free on it, and the processes that have one such each."""

    device: torch.device
    free: int | None
    processes: int

    @classmethod
    def own(cls, device: str) -> Machine:
        """The device that a recipe names, on this machine."""
        place = pick_device(device)
        return cls(place, _free(place), current().count)

    @classmethod
    def gpu(cls, size: float, processes: int = 1) -> Machine:
        """A GPU with so many GB, on any machine."""
        return cls(torch.device("cuda"), round(size * (1 << 30)), processes)


def recipe_memory(
    recipe: Recipe, progress: Progress | None = None, *, machine: Machine | None = None
) -> list[StageMemory]:
    """The plan of every stage that runs a model in this process; of several processes, of each.

    Args:
        machine: What to plan for; this one's device when left out.

    Raises:
        RlaifError: An input cannot be read, or a model's config is not to be had.
    """
    context = RunContext(recipe, memo=NullMemo(), progress=progress or NoProgress())
    jobs = [make_job(config, context) for config in recipe.stages]
    plans = [(job.config, stage_memory(job, jobs, context, machine)) for job in jobs]
    return [
        StageMemory(name=config.name, kind=config.stage, plan=plan)
        for config, plan in plans
        if plan is not None
    ]


def tell_memory(job: AnyJob, jobs: Sequence[AnyJob], context: RunContext) -> int:
    """Print the plan of a stage that is about to train; returns the planned peak in bytes, 0 where there is
    no plan."""
    plan = stage_memory(job, jobs, context)
    if plan is None:
        return 0
    context.progress.note(f"{job.config.name}: memory")
    for line in plan.lines():
        context.progress.note(f"  {line}")
    return plan.peak


class Peak:
    """Measures what the block holds at most, in `bytes`: tensors on a GPU, elsewhere the process.

    Args:
        device: As in a recipe.
    """

    def __init__(self, device: str) -> None:
        self._device = pick_device(device)
        self._watch = PeakWatch()
        self.bytes = 0

    def __enter__(self) -> Peak:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.__exit__(kind, error, trace)
        self.bytes = (
            int(torch.cuda.max_memory_allocated(self._device))
            if self._device.type == "cuda"
            else self._watch.bytes
        )


def stage_memory(
    job: AnyJob, jobs: Sequence[AnyJob], context: RunContext, machine: Machine | None = None
) -> MemoryPlan | None:
    """The plan of one stage; `None` where no model runs in this process."""
    config, recipe = job.config, context.recipe
    main, (device, free, ranks) = config.main_model(recipe.model), machine or Machine.own(recipe.device)
    base = None if main is None else _weights(main, recipe)
    work = job.memory_work(Lengths(jobs, context), Device.of(device, ranks=ranks))
    if work is None or base is None or is_scripted(base) or is_served(base):
        return None
    shards = ranks if recipe.shard_base else 1
    held = precision_of(recipe.dtype, device, quantization=_quantization(base, recipe))
    if device.type == "cuda" and free is not None:
        work = _within_cache(work, _shape(base), held, free, shards)
    precision, adapters = precision_of(recipe.dtype, device), job.adapters()
    plan = plan_memory(
        _shape(base),
        work,
        precision=held,
        rank=adapters.rank,
        trained=list(adapters.trained),
        frozen=list(adapters.read),
        shards=shards,
        kernels=KERNEL_BYTES if device.type == "cpu" else 0,
        available=free,
    )
    others = [
        MemoryItem(f"model {name}", round(_shape(name).held(shards) * precision.weights), why)
        for name, why in _others(config, recipe)
    ]
    if device.type == "cpu" and (before := _model_stages_before(config, recipe)):
        told = f"the heap's, after {count_of(before, 'stage')} that ran a model"
        others.append(MemoryItem("earlier stages", before * LEFT, told))
    advice = plan.advice
    if recipe.shard_base and ranks == 1:
        advice += ", which acts in several processes only (--processes N)"
    return replace(plan, items=(*plan.items[:2], *others, *plan.items[2:]), advice=advice)


def _model_stages_before(config: BaseStage, recipe: Recipe) -> int:
    """Stages before this one that run a model in this process."""
    models = (stage.main_model(recipe.model) for stage in _until(config, recipe)[:-1])
    weights = (_weights(model, recipe) for model in models if model is not None)
    return sum(not is_scripted(each) and not is_served(each) for each in weights)


def _within_cache(
    work: StageWork, shape: ModelShape, precision: Precision, free: int, shards: int
) -> StageWork:
    """With no more rows side by side than the samplers give a GPU's caches room for."""
    a_token = 2 * shape.layers * (shape.key_values or shape.attention) * precision.activations
    room = free - (shape.held(shards) + shape.gathered(shards)) * precision.weights
    most = int(GPU_CACHE_SHARE * room) // (a_token * max(1, work.row_tokens))
    return work._replace(sampled_rows=min(work.sampled_rows, max(1, most)))


def _quantization(base: str, recipe: Recipe) -> str:
    """How the run holds the weights of a base: as the reward stage on it says."""
    rewards = [stage for stage in recipe.stages if isinstance(stage, RewardConfig)]
    bits = {stage.quantization for stage in rewards if (stage.model or recipe.model) == base}
    return "4bit" if "4bit" in bits else "none"


def _until(config: BaseStage, recipe: Recipe) -> list[StageConfig]:
    """The stages up to this one."""
    return list(recipe.stages[: [stage.name for stage in recipe.stages].index(config.name) + 1])


def _others(config: BaseStage, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Models that are resident beside the base of `config` by the time it runs, each with the reason."""
    stages, main = _until(config, recipe), config.main_model(recipe.model)
    own = None if main is None else _weights(main, recipe)
    bases = dict.fromkeys(stage_base(stage, recipe) for stage in stages if stage.holds_base)
    answering = (name for stage in stages for name in stage.answering_models(recipe.model))
    named = dict.fromkeys(_weights(name, recipe) for name in answering)
    tuned = any(stage.stage == "sft" for stage in recipe.stages)
    found = [(name, "base of another stage") for name in bases]
    found += [
        (name, "answers and judges" + (", as it was before fine-tuning" if name in bases else ""))
        for name in named
        if not is_scripted(name) and not is_served(name) and (tuned or name not in bases)
    ]
    at = next((at for at, (name, _) in enumerate(found) if name == own), len(found))
    yield from (*found[:at], *found[at + 1 :])


def _weights(name: str, recipe: Recipe) -> str:
    """The model whose weights answer under a name: of a trained judge its base, which is held once."""
    return known_as(weights_of(recipe.weights_of(name)), [recipe.model])


def _free(device: torch.device) -> int | None:
    """Bytes free, with those that this process holds already: the plan counts them too."""
    free = available_memory(device)
    if free is None or device.type == "mps":
        return free
    if device.type == "cuda":
        return free + int(torch.cuda.memory_reserved(device))
    return free + resident_now()


@lru_cache(maxsize=8)
def _shape(model: str) -> ModelShape:
    return model_shape(model)
