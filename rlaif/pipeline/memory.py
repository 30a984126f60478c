"""What a recipe's training stages need in memory: told by `rlaif memory`, and before each stage is run. No weights are loaded.

Counted for each stage: the base and its adapters, what one pass over a micro-batch keeps, the cache of a rollout, and the other
models that the run holds by then (judges, a base that was fine-tuned, a student). Lengths come from the prompts, which are known,
and from the longest completion that the settings allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import TracebackType
from typing import Any

import torch

from rlaif.config import Recipe, StageConfig
from rlaif.config.evaluation import CompareConfig, EvaluateConfig
from rlaif.config.finetune import BestOfKConfig, DpoConfig, SftConfig
from rlaif.config.labelling import AuditConfig, BaseStage, LabelConfig, ReviseConfig, SampleConfig
from rlaif.config.ppo import JudgePart, PpoConfig
from rlaif.config.reward import RewardConfig
from rlaif.engines.base import TokenCount
from rlaif.engines.chat import ChatFormat
from rlaif.engines.hf import CPU_ROWS, CPU_TOKENS, GPU_ROWS, GPU_TOKENS
from rlaif.io.tables import read_table
from rlaif.jobs.base import Job
from rlaif.jobs.context import Context
from rlaif.jobs.merging import stage_base
from rlaif.jobs.table import make_job
from rlaif.models.devices import pick_device
from rlaif.models.heap import rounded
from rlaif.models.memory import (
    KERNEL_BYTES,
    MemoryItem,
    MemoryPlan,
    ModelShape,
    Precision,
    Work,
    available_memory,
    model_shape,
    plan_memory,
    precision_of,
)
from rlaif.models.open import is_scripted, is_served, open_token_count
from rlaif.peaks import PeakWatch, resident_now
from rlaif.pipeline.dry_run import Forgetful
from rlaif.progress import Progress, Silent
from rlaif.rl.episodes import MIN_PREFIX, common_prefix
from rlaif.types import Message, Prompt

__all__ = ["StageMemory", "recipe_memory", "tell_memory"]

LOOKED_AT = 64
"""Texts, the longest in characters, whose tokens are counted."""
SIDE_BY_SIDE = 64
"""Completions that are sampled at the same time, at most."""
MICRO_TOKENS = {"cpu": 1024, "mps": 2048, "cuda": 8192}
"""What the reward stage takes where its settings leave it open."""
TRAINING = ("reward", "ppo", "best_of_k", "sft", "dpo", "evaluate")
"""Kinds of stage that hold the resident base."""
POLICIES = ("ppo", "best_of_k", "dpo")
QUESTION = 16
"""Tokens at least that a judge's question shares with no other: so many tokens of a pass for one row of logits."""
TEMPLATE = 96
"""Tokens of a principle and of the words around it in a request to critique or to revise, about."""


@dataclass(frozen=True)
class StageMemory:
    """A training stage and what it needs."""

    name: str
    kind: str
    plan: MemoryPlan


def recipe_memory(recipe: Recipe, progress: Progress | None = None) -> list[StageMemory]:
    """The plan of every stage that runs a model in this process.

    Raises:
        RlaifError: An input cannot be read, or a model's config is not to be had.
    """
    context = Context(recipe, memo=Forgetful(), progress=progress or Silent())
    jobs = [make_job(config, context) for config in recipe.stages]
    plans = [(job.config, stage_memory(job, jobs, context)) for job in jobs]
    return [StageMemory(name=config.name, kind=config.stage, plan=plan) for config, plan in plans if plan is not None]


def tell_memory(job: Job, jobs: Sequence[Job], context: Context) -> int:
    """Print the plan of a stage that is about to train; returns the planned peak in bytes, 0 where there is no plan."""
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watch.__exit__(kind, error, trace)
        self.bytes = int(torch.cuda.max_memory_allocated(self._device)) if self._device.type == "cuda" else self._watch.bytes


def stage_memory(job: Job, jobs: Sequence[Job], context: Context) -> MemoryPlan | None:
    """The plan of one stage; `None` where no model runs in this process."""
    config, recipe = job.config, context.recipe
    base = _base_of(config, recipe)
    if base is None or is_scripted(base) or is_served(base):
        return None
    device, precision = pick_device(recipe.device), precision_of(recipe.dtype, recipe.device)
    trained, frozen = _adapters(config, jobs)
    plan = plan_memory(
        _shape(base), _work(job, _Lengths(jobs, context), device), precision=precision, rank=getattr(config, "lora_rank", 16),
        trained=trained, frozen=frozen, kernels=KERNEL_BYTES if device.type == "cpu" else 0, available=_free(device),
    )
    others = [MemoryItem(f"model {name}", _weights(name, precision), why) for name, why in _others(config, recipe)]
    return replace(plan, items=(*plan.items[:2], *others, *plan.items[2:]))


def _base_of(config: BaseStage, recipe: Recipe) -> str | None:
    """The model that the stage mainly runs."""
    match config:
        case SampleConfig() | ReviseConfig():
            return config.policy or recipe.model
        case LabelConfig() | AuditConfig():
            return config.judge or recipe.model
        case CompareConfig():
            return None
    return stage_base(config, recipe)


def _adapters(config: BaseStage, jobs: Sequence[Job]) -> tuple[list[str], list[str]]:
    """Adapters that learn in the stage, and those that are only read."""
    names = [job.config.name for job in jobs]
    before = [job.config for job in jobs[: names.index(config.name)]]
    rewards = [stage.name for stage in before if isinstance(stage, RewardConfig) and stage.keep != "head"]
    match config:
        case RewardConfig():
            return (["reward"] if config.keep != "head" else []), rewards
        case PpoConfig():
            return ["policy", *(["value"] if config.value == "adapter" else [])], rewards
        case SftConfig() | BestOfKConfig() | DpoConfig():
            return ["policy"], rewards
        case EvaluateConfig():
            return [], [*rewards, *(config.policies or [stage.name for stage in before if stage.stage in POLICIES])]
    return [], rewards


def _work(job: Job, lengths: _Lengths, device: torch.device) -> Work:
    """What the stage does at once: how many tokens are in a pass, and how many rows are sampled side by side."""
    config, cpu = job.config, device.type == "cpu"
    read, rows = (CPU_TOKENS, CPU_ROWS) if cpu else (GPU_TOKENS, GPU_ROWS)
    asked = read // QUESTION
    match config:
        case SampleConfig():
            return _sampled(min(rows, config.k * lengths.count(config.name)), lengths.prompts(config.name), config.max_new_tokens)
        case ReviseConfig():
            # What is revised is quoted with its critique: three completions beside the prompt, and the template.
            quoted = lengths.prompts(config.name) + 2 * config.max_new_tokens + TEMPLATE
            return _sampled(min(rows, lengths.count(config.name)), quoted, config.max_new_tokens)
        case LabelConfig() | AuditConfig():
            return Work(read_tokens=read, read_logits=asked)
        case RewardConfig():
            micro = config.micro_tokens or MICRO_TOKENS.get(device.type, 1024)
            return Work(
                micro_tokens=micro if config.keep != "head" else 0, read_tokens=read, checkpointing=config.gradient_checkpointing,
            )
        case PpoConfig() | BestOfKConfig():
            prompt, judged = lengths.prompts(config.name), any(isinstance(part, JudgePart) for part in config.reward.values())
            side, micro = SIDE_BY_SIDE, config.micro_batch
            if isinstance(config, PpoConfig):
                side, micro = min(config.episodes, side), min(micro, -(-config.episodes // config.minibatches))
            shared = 0 if config.gradient_checkpointing else lengths.shared(config.name)
            return _sampled(side, prompt, config.max_new_tokens)._replace(
                micro_tokens=shared + micro * rounded(prompt - shared + config.max_new_tokens),
                logit_tokens=micro * config.max_new_tokens, checkpointing=config.gradient_checkpointing,
                read_tokens=read, read_logits=asked if judged else 0,
            )
        case SftConfig() | DpoConfig():
            sides = 2 if isinstance(config, DpoConfig) else 1
            tokens = sides * config.micro_batch * rounded(min(lengths.rows(config), config.max_tokens or 1 << 30))
            return Work(micro_tokens=tokens, logit_tokens=tokens, checkpointing=config.gradient_checkpointing)
        case EvaluateConfig():
            return _sampled(config.rows, lengths.prompts(config.name), config.max_new_tokens)._replace(
                read_tokens=read, read_logits=asked if config.win_rate else 0,
            )
    raise ValueError(f"{config.name} runs no model")


def _sampled(rows: int, prompt: int, new: int) -> Work:
    return Work(sampled_rows=rows, row_tokens=prompt + new, new_tokens=new)


def _until(config: BaseStage, recipe: Recipe) -> list[StageConfig]:
    """The stages up to this one."""
    return list(recipe.stages[: [stage.name for stage in recipe.stages].index(config.name) + 1])


def _others(config: BaseStage, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Models that are resident beside the base of `config` by the time it runs, each with the reason."""
    stages, own = _until(config, recipe), _base_of(config, recipe)
    bases = dict.fromkeys(stage_base(stage, recipe) for stage in stages if stage.stage in TRAINING)
    named = dict.fromkeys(name for stage in stages for name in _engines(stage, recipe))
    tuned = any(stage.stage == "sft" for stage in recipe.stages)
    found = [(name, "base of another stage") for name in bases]
    found += [
        (name, "answers and judges" + (", as it was before fine-tuning" if name in bases else "")) for name in named
        if not is_scripted(name) and not is_served(name) and (tuned or name not in bases)
    ]
    at = next((at for at, (name, _) in enumerate(found) if name == own), len(found))
    yield from (*found[:at], *found[at + 1 :])


def _engines(stage: BaseStage, recipe: Recipe) -> list[str]:
    """Models that answer or judge in a stage."""
    match stage:
        case SampleConfig() | ReviseConfig():
            return [stage.policy or recipe.model]
        case LabelConfig() | EvaluateConfig() | AuditConfig():
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
        counter = _counter(self._model(stage))
        return max((counter.count(self.context.library.policy(prompt)) for prompt in self._longest(stage)), default=0)

    def shared(self, stage: str) -> int:
        """Tokens that the prompts of a stage have in common at their start, which a pass computes once."""
        form = _counter(self._model(stage))
        if not isinstance(form, ChatFormat):
            return 0
        ids = form.encode([form.render(self.context.library.policy(prompt)) for prompt in self._longest(stage)])
        found = common_prefix(ids) if len(ids) > 1 else 0
        return found if found >= MIN_PREFIX else 0

    def count(self, stage: str) -> int:
        """How many prompts a stage has."""
        return len(self._prompts(stage))

    def _prompts(self, stage: str) -> Sequence[Prompt]:
        prompts: Sequence[Prompt] = getattr(self.jobs[stage], "prompts", ())
        return prompts

    def _longest(self, stage: str) -> list[Prompt]:
        return sorted(self._prompts(stage), key=lambda prompt: -sum(len(message.content) for message in prompt.messages))[:LOOKED_AT]

    def _model(self, stage: str) -> str:
        return stage_base(self.jobs[stage].config, self.context.recipe)

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
    return free + resident_now()


@lru_cache(maxsize=8)
def _shape(model: str) -> ModelShape:
    return model_shape(model)


def _weights(model: str, precision: Precision) -> int:
    return round(_shape(model).parameters * precision.weights)


@lru_cache(maxsize=8)
def _counter(model: str) -> TokenCount:
    return open_token_count(model)
