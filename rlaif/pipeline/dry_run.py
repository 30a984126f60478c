"""A dry run: what every stage would ask, how many tokens that is, and about how long it takes. No weights are loaded.

Completions that do not exist yet are counted at their longest. Time is estimated as in `rlaif.jobs.estimate`, good to a factor of
two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from rlaif.config import Recipe
from rlaif.config.labelling import ServerConfig
from rlaif.engines.api.costs import Prices
from rlaif.engines.base import TokenCount
from rlaif.engines.journaled import Memo
from rlaif.engines.scripted import load_scripted
from rlaif.jobs.audit import AuditJob
from rlaif.jobs.audit_task import plan_questions
from rlaif.jobs.base import Job
from rlaif.jobs.context import Context
from rlaif.jobs.estimate import seconds, shared
from rlaif.jobs.inputs import Completions
from rlaif.jobs.label import LabelJob
from rlaif.jobs.revise import ReviseJob
from rlaif.jobs.sample import SampleJob
from rlaif.jobs.table import make_job
from rlaif.judging.judge import Judge
from rlaif.models.open import is_served, open_token_count
from rlaif.progress import Progress, Silent
from rlaif.stages.label import make_pairs
from rlaif.types import Completion, Message

__all__ = ["Forgetful", "Plan", "StagePlan", "plan_recipe"]

COUNTED = 64
"""Prompts whose tokens are counted; the rest are taken to be as long on average."""
PLACEHOLDER = "word "


@dataclass(frozen=True)
class StagePlan:
    """What one stage would do.

    Attributes:
        counts: How many of what, in reading order.
        read, write: Tokens that models would read and write at most.
        seconds: Estimate; `None` for a scripted model.
        cost: The most that a served model would cost, in the currency of the prices; `None` without prices.
        example: One rendered prompt of each kind, by its name.
    """

    name: str
    kind: str
    model: str
    counts: dict[str, int]
    read: int
    write: int
    seconds: float | None
    example: dict[str, str]
    cost: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a recipe would do, stage by stage."""

    name: str
    stages: tuple[StagePlan, ...]

    @property
    def seconds(self) -> float | None:
        """The estimates together, of the stages that have one; `None` when none has."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return math.fsum(known) if known else None

    @property
    def cost(self) -> float | None:
        """The costs together; `None` when no stage has one."""
        known = [stage.cost for stage in self.stages if stage.cost is not None]
        return math.fsum(known) if known else None


class Forgetful:
    """A memo that keeps nothing: a dry run asks nothing."""

    def get_many(self, keys: Sequence[str]) -> dict[str, object]:
        return {}

    def put_many(self, kind: str, values: object) -> int:
        return 0


def plan_recipe(recipe: Recipe, progress: Progress | None = None) -> Plan:
    """Read the inputs of every stage, and count.

    Raises:
        RlaifError: An input cannot be read, or a tokenizer is not to be had.
    """
    memo: Memo = Forgetful()
    context = Context(recipe, memo=memo, progress=progress or Silent())
    jobs = [make_job(config, context) for config in recipe.stages]
    sampled: dict[str, SampleJob] = {job.config.name: job for job in jobs if isinstance(job, SampleJob)}
    return Plan(name=recipe.name, stages=tuple(_priced(_plan(job, context, sampled), recipe.server) for job in jobs))


def _priced(plan: StagePlan, server: ServerConfig) -> StagePlan:
    """The plan with what it would cost. A label read from log-probabilities is a token written; votes are several."""
    prices = Prices(server.price_input, server.price_output)
    if not is_served(plan.model) or prices == Prices():
        return plan
    return replace(plan, cost=prices.of(plan.read, plan.write + plan.counts.get("questions", 0)))


def _plan(job: Job, context: Context, sampled: dict[str, SampleJob]) -> StagePlan:
    if isinstance(job, SampleJob):
        return _plan_sample(job, context)
    if isinstance(job, ReviseJob):
        return _plan_revise(job, context)
    if isinstance(job, LabelJob):
        return _plan_label(job, context, sampled)
    if isinstance(job, AuditJob):
        return _plan_audit(job, context)
    return _plan_training(job, context)


def _plan_sample(job: SampleJob, context: Context) -> StagePlan:
    config, counter = job.config, _counter(job.policy)
    asked = [context.library.policy(prompt) for prompt in job.prompts]
    read, write = _tokens(counter, asked), len(asked) * config.k * config.max_new_tokens
    return StagePlan(
        name=config.name, kind=config.stage, model=job.policy, read=read, write=write,
        seconds=_seconds(job.policy, context, read, write),
        counts={"prompts": len(asked), "completions": len(asked) * config.k}, example={"policy": counter.render(asked[0])},
    )


def _plan_revise(job: ReviseJob, context: Context) -> StagePlan:
    config, library, counter = job.config, context.library, _counter(job.policy)
    text, principle = PLACEHOLDER * config.max_new_tokens, job.constitution.principles[0]
    answers = [library.policy(prompt) for prompt in job.prompts]
    critiques = [library.critique(prompt, text, principle) for prompt in job.prompts]
    revisions = [library.revise(prompt, text, text, principle) for prompt in job.prompts]
    read = _tokens(counter, answers) + config.rounds * (_tokens(counter, critiques) + _tokens(counter, revisions))
    calls = len(answers) * (1 + 2 * config.rounds)
    write = calls * config.max_new_tokens
    return StagePlan(
        name=config.name, kind=config.stage, model=job.policy, read=read, write=write,
        seconds=_seconds(job.policy, context, read, write),
        counts={"prompts": len(answers), "rounds": config.rounds, "completions": calls},
        example={"critique": counter.render(critiques[0]), "revise": counter.render(revisions[0])},
    )


def _plan_label(job: LabelJob, context: Context, sampled: dict[str, SampleJob]) -> StagePlan:
    config, counter = job.config, _counter(job.judge)
    source = job.source if config.responses else _imagined(sampled[context.earlier(config, "sample", config.input)])
    seed = context.seed(config)
    comparisons = make_pairs(source.prompts, source.completions, pairs=config.pairs, seed=seed, given=source.given).comparisons
    judge = Judge(load_scripted("scripted"), job.protocol, job.constitution, principles=config.principles, seed=seed)
    looked_at = comparisons[:COUNTED]
    groups = [judge.requests(comparison) for comparison in looked_at]
    asked = list(dict.fromkeys(request for group in groups for request in group))
    once = shared([counter.render(request.messages) for request in group] for group in groups)
    share = len(asked) / max(1, len(looked_at) * judge.questions_each)  # pairs of one prompt share pointwise questions
    questions = round(len(comparisons) * judge.questions_each * share)
    read = round(_tokens(counter, [request.messages for request in asked]) / max(1, len(asked)) * questions)
    write = questions * config.reasoning_tokens if job.protocol.name == "cot" else 0
    return StagePlan(
        name=config.name, kind=config.stage, model=job.judge, read=read, write=write,
        seconds=_seconds(job.judge, context, read * once, write), counts={
            "completions": len(source.completions), "comparisons": len(comparisons), "principles": len(job.constitution.principles),
            "questions": questions,
        },
        example={job.protocol.template: counter.render(asked[0].messages)} if asked else {},
    )


def _plan_audit(job: AuditJob, context: Context) -> StagePlan:
    counter = _counter(job.judge)
    plan = plan_questions(job.task, job.inputs, counter)
    read = round(plan.questions * plan.tokens_each)
    return StagePlan(
        name=job.config.name, kind=job.config.stage, model=job.judge, read=read, write=0,
        seconds=_seconds(job.judge, context, read * plan.shared, 0), example={},
        counts={"comparisons": plan.comparisons, "probes": plan.probes, "questions": plan.questions},
    )


def _plan_training(job: Job, context: Context) -> StagePlan:
    """A training stage is not estimated: what it learns from does not exist yet."""
    config = job.config
    wanted = ("epochs", "steps", "episodes", "k", "rounds", "max_new_tokens", "lora_rank")
    counts = {name: value for name, value in config.model_dump().items() if name in wanted and isinstance(value, int)}
    return StagePlan(
        name=config.name, kind=config.stage, model=context.recipe.model, counts=counts, read=0, write=0, seconds=None, example={}
    )


def _imagined(job: SampleJob) -> Completions:
    """Completions as long as they may get, for counting: they do not exist before the run."""
    text = PLACEHOLDER * job.config.max_new_tokens
    completions = [
        Completion(
            id=f"{prompt.id}/{index}", prompt_id=prompt.id, index=index, text=f"{text}{index}", finish="length", model=job.policy
        )
        for prompt in job.prompts
        for index in range(job.config.k)
    ]
    return Completions(prompts=job.prompts, completions=tuple(completions), given={})


@lru_cache(maxsize=4)
def _counter(model: str) -> TokenCount:
    return open_token_count(model)


def _tokens(counter: TokenCount, conversations: Sequence[Sequence[Message]]) -> int:
    """Tokens of all `conversations`, from an even sample of them."""
    if not conversations:
        return 0
    step = max(1, len(conversations) // COUNTED)
    sampled = conversations[::step]
    return round(sum(counter.count(messages) for messages in sampled) / len(sampled) * len(conversations))


def _seconds(model: str, context: Context, read: float, write: int) -> float | None:
    return seconds(model, dtype=context.recipe.dtype, device=context.recipe.device, read=read, write=write)
