"""What a recipe's training stages need in memory: told by `rlaif memory`, and before each stage is run. No weights are loaded.

Counted for each stage: the base and its adapters, what one pass over a micro-batch keeps, the cache of a rollout, and the other
models that the run holds by then (judges, a base that was fine-tuned, a student). Lengths come from the prompts, which are known,
and from the longest completion that the settings allow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from rlaif.config import Recipe
from rlaif.config.evaluation import EvaluateConfig
from rlaif.config.stages import BaseStage, LabelConfig, ReviseConfig, SampleConfig
from rlaif.config.training import RewardConfig
from rlaif.config.training_ppo import JudgePart, PpoConfig
from rlaif.config.training_sft import BestOfKConfig, DpoConfig, SftConfig
from rlaif.engines.base import TokenCount
from rlaif.models.devices import pick_device
from rlaif.models.engines import is_scripted, is_served, open_token_count
from rlaif.models.memory import (
    MemoryItem,
    MemoryPlan,
    ModelShape,
    Precision,
    available_memory,
    model_shape,
    plan_memory,
    precision_of,
)
from rlaif.pipeline.context import Context
from rlaif.pipeline.jobs import Job
from rlaif.pipeline.making import make_job
from rlaif.pipeline.merging import stage_base
from rlaif.pipeline.plan import Forgetful
from rlaif.progress import Progress, Silent
from rlaif.runs.tables import read_table
from rlaif.types import Message, Prompt

__all__ = ["StageMemory", "recipe_memory", "tell_memory"]

LOOKED_AT = 64
"""Texts, the longest in characters, whose tokens are counted."""
SIDE_BY_SIDE = 64
"""Completions that are sampled at the same time, at most."""
MICRO_TOKENS = {"cpu": 1024, "mps": 2048, "cuda": 8192}
"""What the reward stage takes where its settings leave it open."""
TRAINING = ("reward", "ppo", "best_of_k", "sft", "dpo")


@dataclass(frozen=True)
class StageMemory:
    """A training stage and what it needs."""

    name: str
    kind: str
    plan: MemoryPlan


def recipe_memory(recipe: Recipe, progress: Progress | None = None) -> list[StageMemory]:
    """The plan of every training stage.

    Raises:
        RlaifError: An input cannot be read, or a model's config is not to be had.
    """
    context = Context(recipe, memo=Forgetful(), progress=progress or Silent())
    jobs = [make_job(config, context) for config in recipe.stages]
    return [
        StageMemory(name=job.config.name, kind=job.config.stage, plan=stage_memory(job, jobs, context))
        for job in jobs if job.config.stage in TRAINING
    ]


def tell_memory(job: Job, jobs: Sequence[Job], context: Context) -> None:
    """Print the plan of a stage that is about to train; other stages have none."""
    if job.config.stage in TRAINING:
        context.progress.note(f"{job.config.name}: memory")
        for line in stage_memory(job, jobs, context).lines():
            context.progress.note(f"  {line}")


def stage_memory(job: Job, jobs: Sequence[Job], context: Context) -> MemoryPlan:
    """The plan of one training stage."""
    config, recipe = job.config, context.recipe
    device = pick_device(recipe.device)
    shape, precision = _shape(stage_base(config, recipe)), precision_of(recipe.dtype, recipe.device)
    plan = plan_memory(
        shape, precision=precision, rank=config.lora_rank, checkpointing=config.gradient_checkpointing,  # type: ignore[union-attr]
        available=_free(device), **_work(config, _Lengths(jobs, context), device),
    )
    others = [MemoryItem(f"model {name}", _weights(name, precision), why) for name, why in _others(config, recipe)]
    return replace(plan, items=(*plan.items[:2], *others, *plan.items[2:]))


def _work(config: BaseStage, lengths: _Lengths, device: torch.device) -> dict[str, Any]:
    """What differs between the kinds of stage: who trains, and how many tokens are in a pass and in a cache."""
    match config:
        case RewardConfig():
            trained = ["reward"] if config.keep != "head" else []
            micro = config.micro_tokens or MICRO_TOKENS.get(device.type, 1024)
            return {"trained": trained, "micro_tokens": micro}
        case PpoConfig():
            prompt = lengths.prompts(config.name)
            rows = min(config.episodes, SIDE_BY_SIDE)
            return {
                "trained": ["policy", *(["value"] if config.value == "adapter" else [])], "frozen": ["reward"],
                "micro_tokens": config.micro_batch * (prompt + config.max_new_tokens),
                "logit_tokens": config.micro_batch * config.max_new_tokens, "cache_tokens": rows * (prompt + config.max_new_tokens),
            }
        case BestOfKConfig():
            prompt = lengths.prompts(config.name)
            return {
                "trained": ["policy"], "frozen": ["reward"], "micro_tokens": config.micro_batch * (prompt + config.max_new_tokens),
                "logit_tokens": config.micro_batch * config.max_new_tokens,
                "cache_tokens": SIDE_BY_SIDE * (prompt + config.max_new_tokens),
            }
        case SftConfig() | DpoConfig():
            sides = 2 if isinstance(config, DpoConfig) else 1
            tokens = min(lengths.rows(config), config.max_tokens or 1 << 30)
            return {"trained": ["policy"], "micro_tokens": sides * config.micro_batch * tokens,
                    "logit_tokens": sides * config.micro_batch * tokens}
    raise ValueError(f"{config.name} does not train")


def _others(config: BaseStage, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Models that are resident beside the base of `config` by the time it runs, each with the reason."""
    stages = recipe.stages[: [stage.name for stage in recipe.stages].index(config.name) + 1]
    own = stage_base(config, recipe)
    bases = dict.fromkeys(stage_base(stage, recipe) for stage in stages if stage.stage in TRAINING)
    named = dict.fromkeys(name for stage in stages for name in _engines(stage, recipe))
    answering = [name for name in named if not is_scripted(name) and not is_served(name)]
    tuned = any(stage.stage == "sft" for stage in recipe.stages)
    yield from ((name, "base of another stage") for name in bases if name != own)
    for name in answering:
        if tuned or name not in bases:
            yield name, "answers and judges" + (", as it was before fine-tuning" if name in bases else "")


def _engines(stage: BaseStage, recipe: Recipe) -> list[str]:
    """Models that answer or judge in a stage."""
    match stage:
        case SampleConfig() | ReviseConfig():
            return [stage.policy or recipe.model]
        case LabelConfig() | EvaluateConfig():
            return [stage.judge or recipe.model]
        case PpoConfig() | BestOfKConfig():
            return [part.judge or recipe.model for part in stage.reward.values() if isinstance(part, JudgePart)]
        case SftConfig():
            return [stage.model or recipe.model]
    return []


class _Lengths:
    """Longest prompts and rows, in tokens."""

    def __init__(self, jobs: Sequence[Job], context: Context) -> None:
        self.jobs = {job.config.name: job for job in jobs}
        self.context = context

    def prompts(self, stage: str) -> int:
        """The longest prompt of a stage, as the policy reads it."""
        prompts: Sequence[Prompt] = getattr(self.jobs[stage], "prompts", ())
        longest = sorted(prompts, key=lambda prompt: -sum(len(message.content) for message in prompt.messages))[:LOOKED_AT]
        counter = _counter(stage_base(self.jobs[stage].config, self.context.recipe))
        return max((counter.count(self.context.library.policy(prompt)) for prompt in longest), default=0)

    def rows(self, config: SftConfig | DpoConfig) -> int:
        """The longest row that a stage learns from: of its files, or as long as its source may make one."""
        files = [file if isinstance(file, str) else file.file for file in config.files]
        found = [self._file(file, config) for file in files]
        if config.input or not files:
            found.append(self._source(config))
        return max(found)

    def _file(self, file: str, config: BaseStage) -> int:
        rows = sorted((row.values for row in read_table(file).rows), key=lambda row: -len(str(row)))[:LOOKED_AT]
        counter = _counter(stage_base(config, self.context.recipe))
        return max((counter.count(messages) for row in rows for messages in _conversations(row)), default=0)

    def _source(self, config: SftConfig | DpoConfig) -> int:
        kind = "revise" if isinstance(config, SftConfig) else "label"
        source: Any = self.jobs[self.context.earlier(config, kind, config.input)].config
        if isinstance(source, LabelConfig):
            if source.responses:
                return self._file(source.responses, config)
            source = self.jobs[self.context.earlier(source, "sample", source.input)].config
        return self.prompts(source.name) + int(source.max_new_tokens)


def _conversations(row: Mapping[str, Any]) -> Iterator[list[Message]]:
    """The texts of a row, each as one conversation; what cannot be read is found when the stage reads it."""
    prompt = row.get("prompt") or row.get("messages") or ()
    for name in ("completion", "chosen", "rejected"):
        turns = [turn for turn in [*prompt, *(row.get(name) or ())] if isinstance(turn, dict)]
        if turns:
            yield [Message(role="user", content="\n".join(str(turn.get("content", "")) for turn in turns))]


def _free(device: torch.device) -> int | None:
    """Bytes free, with those that this process holds already: the plan counts them too."""
    free = available_memory(device)
    if free is None or device.type == "mps":
        return free
    if device.type == "cuda":
        return free + int(torch.cuda.memory_reserved(device))
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return free
    return free + pages * os.sysconf("SC_PAGE_SIZE")


@lru_cache(maxsize=8)
def _shape(model: str) -> ModelShape:
    return model_shape(model)


def _weights(model: str, precision: Precision) -> int:
    return round(_shape(model).parameters * precision.weights)


@lru_cache(maxsize=8)
def _counter(model: str) -> TokenCount:
    return open_token_count(model)
