"""Try directives out: read them, decide which apply, answer and judge behind a journal, write the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import NamedTuple

from rlaif.config.labelling import SampleConfig, ServerConfig
from rlaif.digest import digest
from rlaif.directives.conditions import Conditions
from rlaif.directives.load import load_directives
from rlaif.directives.plan import Plan, plans
from rlaif.directives.trial import Trial, after_requests, before_requests, try_out
from rlaif.directives.values import Directives, today
from rlaif.engines.base import Engine, Sampling
from rlaif.errors import DataError
from rlaif.jobs.audit_files import save_text
from rlaif.jobs.engines import Engines
from rlaif.jobs.inputs import load_prompts
from rlaif.moderation.base import Moderator
from rlaif.progress import Progress
from rlaif.prompts import PromptLibrary
from rlaif.report.directives import trial_markdown, undecided
from rlaif.runs.journal import Journal
from rlaif.runs.spending import Spending
from rlaif.types import Prompt

__all__ = ["TrialPlan", "TrialSettings", "Tried", "plan_trial", "run_trial"]

BUILTIN_LIMIT = 16
"""Built-in prompts that are drawn when no limit is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSettings:
    """What is tried, on which prompts, by which models.

    Attributes:
        source: The file of directives.
        sample: Prompts, how many answers to each, and how they are sampled; `policy` is who answers.
        on: The day as of which directives hold; today when left out.
    """

    source: str
    sample: SampleConfig
    model: str
    judge: str
    out: Path
    journal: Path
    seed: int = 0
    on: date | None = None
    dtype: str = "auto"
    device: str = "auto"
    server: ServerConfig = field(default_factory=ServerConfig)
    prompts_dir: Path | None = None

    @property
    def policy(self) -> str:
        """Who answers."""
        return self.sample.policy or self.model


class TrialPlan(NamedTuple):
    """What a trial would ask, at most.

    Attributes:
        certain: Prompts to which a directive applies whatever a judge says.
        conditions: Questions about prompts.
        completions, questions: Answers to sample, and questions about answers.
        write: Tokens that the policy would write.
    """

    prompts: int
    certain: int
    conditions: int
    completions: int
    questions: int
    write: int


class Tried(NamedTuple):
    """A trial, what there is to say of it, and the files it left."""

    trial: Trial
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def run_trial(settings: TrialSettings, progress: Progress, *, moderators: Sequence[Moderator] = ()) -> Tried:
    """Try directives out; what was asked before is read from the journal.

    Raises:
        RlaifError: An input cannot be read, no directive applies to any prompt, a model cannot be loaded, or
            a file not be written.
    """
    directives, prompts, library = _inputs(settings, progress)
    name = _name(settings, directives)
    account = settings.out / f"spending-{name}.jsonl"
    with Journal(settings.journal) as journal, Spending(account) as spending:
        pool = _engines(settings, journal, spending, progress)
        conditions = Conditions(
            moderators=moderators, judge=_judge_of(settings, directives, pool), templates=settings.prompts_dir
        )
        notes = _notes(directives, conditions, settings.on or today())
        for note in notes:
            progress.note(note)
        planned = _planned(directives, prompts, conditions, settings)
        if not any(plan.applied for plan in planned):
            remedy = "give prompts that a condition holds for; `rlaif directives show` lists the conditions"
            raise DataError(
                f"no directive acts on any of the {len(prompts)} prompts",
                where=settings.source,
                remedy=remedy,
            )
        policy, judge = pool.get(settings.policy), pool.get(settings.judge)
        trial = try_out(
            directives,
            prompts,
            planned,
            policy=policy,
            judge=judge,
            library=library,
            sampling=_sampling(settings.sample),
            k=settings.sample.k,
            seed=settings.seed,
            progress=progress,
        )
        told = pool.asked()
    notes += (
        f"{told['asked']} answers were computed, {told['reused']} came from the journal",
        *undecided(trial),
    )
    base = settings.out / f"directives-test-{name}"
    return Tried(trial, notes, _written(base, trial, notes, policy=policy, judge=judge, seed=settings.seed))


def plan_trial(settings: TrialSettings, progress: Progress) -> TrialPlan:
    """What `run_trial` would ask at most, without a model."""
    directives, prompts, library = _inputs(settings, progress)
    active = directives.active(settings.on or today())
    judged = [each for each in active if each.when.kind == "judge"]
    planned = _planned(directives, prompts, Conditions(), settings)
    certain = [(prompt, plan) for prompt, plan in zip(prompts, planned, strict=True) if plan.applied]
    k, sampling = settings.sample.k, _sampling(settings.sample)
    before = len(before_requests(certain, library, sampling, k=k, seed=0))
    after = len(after_requests(certain, library, sampling, k=k, seed=0))
    known = directives.by_id()
    questions = sum(
        bool(known[id].question) * k * (1 + max(1, len(plan.sides)))
        for _, plan in certain
        for id in plan.applied
    )
    open_ = len(prompts) * bool(judged)
    sides = 2 if any(each.sides for each in judged) else 1
    completions = before + after + open_ * k * (1 + sides)
    asking = sum(bool(each.question) for each in judged)
    return TrialPlan(
        prompts=len(prompts),
        certain=len(certain),
        conditions=len(prompts) * len(judged),
        completions=completions,
        questions=questions + open_ * asking * k * (1 + sides),
        write=completions * settings.sample.max_new_tokens,
    )


def _inputs(
    settings: TrialSettings, progress: Progress
) -> tuple[Directives, tuple[Prompt, ...], PromptLibrary]:
    directives = load_directives(settings.source)
    prompts = load_prompts(
        settings.sample, own_split="eval", own_limit=BUILTIN_LIMIT, seed=settings.seed, progress=progress
    )
    return directives, prompts, PromptLibrary(directives.language, settings.prompts_dir)


def _planned(
    directives: Directives, prompts: Sequence[Prompt], conditions: Conditions, settings: TrialSettings
) -> list[Plan]:
    talks = [prompt.messages for prompt in prompts]
    return plans(directives, talks, conditions, on=settings.on or today())


def _check_some_act(planned: Sequence[Plan], settings: TrialSettings) -> None:
    """Raises:
    DataError: There is nothing to try.
    """
    if not any(plan.applied for plan in planned):
        raise DataError(
            f"no directive acts on any of the {len(planned)} prompts",
            where=settings.source,
            remedy="give prompts that a condition holds for; `rlaif directives show` lists the conditions",
        )


def _notes(directives: Directives, conditions: Conditions, on: date) -> tuple[str, ...]:
    """Directives that take no part, and why."""
    active = directives.active(on)
    idle = [each.id for each in directives.directives if each not in active]
    notes = [f"directive `{id}` is not in force on {on}" for id in idle]
    notes += [
        f"{problem.where} takes no part: {problem.what}" for _, problem in conditions.undecidable(active)
    ]
    return tuple(notes)


def _engines(settings: TrialSettings, journal: Journal, spending: Spending, progress: Progress) -> Engines:
    return Engines(
        journal,
        dtype=settings.dtype,
        device=settings.device,
        server=settings.server,
        note=progress.note,
        spending=spending,
        model=settings.model,
    )


def _judge_of(settings: TrialSettings, directives: Directives, pool: Engines) -> Engine | None:
    """Who is asked about prompts; nobody, where no directive asks."""
    return pool.get(settings.judge) if directives.of_kind("judge") else None


def _sampling(config: SampleConfig) -> Sampling:
    return Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)


def _name(settings: TrialSettings, directives: Directives) -> str:
    """What the files of a trial are called: a digest of what is tried."""
    sample = settings.sample.model_dump(mode="json")
    return digest([directives.digest, settings.policy, settings.judge, sample, settings.seed])[:8]


def _written(
    base: Path, trial: Trial, notes: Sequence[str], *, policy: Engine, judge: Engine, seed: int
) -> tuple[Path, ...]:
    """Write the trial as JSON and Markdown."""
    names = {"policy": policy.card.label, "judge": judge.card.label}
    told = {**names, "seed": seed, "notes": list(notes), **trial.as_dict()}
    files = (base.with_suffix(".json"), base.with_suffix(".md"))
    save_text(files[0], json.dumps(told, ensure_ascii=False, indent=2) + "\n")
    save_text(files[1], trial_markdown(trial, notes=notes, **names))
    return files
