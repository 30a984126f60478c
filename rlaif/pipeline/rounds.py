"""Rounds: one recipe run several times, each from the policy of the time before and on fresh prompts.

OUT/recipe.yaml            the recipe, with its `rounds`
OUT/round-N/               a run, as `rlaif run` leaves it
OUT/rounds.json, rounds.md what each round did, in words and figures
OUT/policy/                the adapter of the best round
OUT/feedback/              what each round took from elsewhere
OUT/report.html            the same answers with pictures, and links to the page of each round
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config import Recipe
from rlaif.config.evaluation import CompareConfig, EvaluateConfig
from rlaif.config.finetune import DpoConfig
from rlaif.config.labelling import BaseStage, LabelConfig, PromptSettings, SampleConfig
from rlaif.config.reward import PreferenceFile, RewardConfig
from rlaif.config.rounds import RoundsConfig
from rlaif.config.start import StartSettings
from rlaif.engines.journaled import NullMemo
from rlaif.errors import ConfigError, DataError
from rlaif.io.splits import check_disjoint
from rlaif.io.writers import write_text
from rlaif.jobs.base import read_result, read_typed
from rlaif.jobs.context import RunContext
from rlaif.jobs.evaluate import EVALUATION, START, read_evaluation
from rlaif.jobs.inputs import OWN_SPLIT, load_prompts
from rlaif.jobs.monitoring import PURPOSE as MONITOR
from rlaif.jobs.table import make_job
from rlaif.pipeline.feedback import NO_FEEDBACK, Feedback, take_feedback
from rlaif.pipeline.report import reported, try_report
from rlaif.pipeline.run import RunResult, recipe_text, run_recipe
from rlaif.progress import NoProgress, Progress
from rlaif.ranks import current
from rlaif.report.rounds import rounds_markdown
from rlaif.results.evaluation import Evaluation
from rlaif.results.reward import RewardReport
from rlaif.results.rounds import Round, Rounds
from rlaif.runs.disk import run_errors
from rlaif.runs.journal import JOURNAL
from rlaif.stages.rounds import best_round, describe_round
from rlaif.types import Prompt

__all__ = ["Former", "ROUNDS", "check_rounds", "recipe_of_round", "run_rounds"]

ROUNDS, POLICY = "rounds.json", "policy"
EVAL = "eval"
"""What evaluations put their prompts down for."""
FRESH = "fresh"
"""What the name of the evaluation on fresh prompts ends with."""


class Former(NamedTuple):
    """What a round takes from the rounds before it.

    Attributes:
        policy: The adapter of the last one.
        reward: Its reward model, if it trained one.
        preferences: What each labelled, and took from elsewhere, the first round first.
    """

    policy: Path
    reward: Path | None
    preferences: tuple[tuple[PreferenceFile, ...], ...]


def run_rounds(
    recipe: Recipe,
    *,
    out: Path,
    journal: Path | None = None,
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
    on_round: Callable[[RunResult, Rounds], None] = lambda result, rounds: None,
) -> Rounds:
    """Run all rounds of `recipe`; one that has finished is skipped, one that was killed goes on.

    Args:
        journal: Where answers are kept; `rlaif-journal.sqlite` in `out` when left out.
        on_round: Told of each round when it has finished.

    Raises:
        RlaifError: The recipe cannot be run in rounds, prompts run out, or a round fails.
    """
    check_rounds(recipe)
    settings, progress, ranks = _settings(recipe), progress or NoProgress(), current()
    if ranks.first:
        with run_errors("make the folder of the rounds", out):
            out.mkdir(parents=True, exist_ok=True)
        write_text(out / "recipe.yaml", recipe_text(recipe))
    former: Former | None = None
    found, stopped = list[Round](), ""
    for number in range(1, settings.count + 1):
        progress.note(f"round {number} of {settings.count}")
        feedback = ranks.from_first(
            partial(take_feedback, settings.feedback, out / "feedback", number, progress)
        )
        own, folder = recipe_of_round(recipe, number, former, feedback), _folder(out, number)
        with reported(folder, progress.note) if ranks.first else nullcontext():
            result = run_recipe(
                own,
                out=folder,
                journal=journal or out / JOURNAL,
                command=command,
                progress=progress,
                reuse=[_folder(out, number - 1)] if number > 1 else (),
            )
        found.append(ranks.from_first(partial(_described, recipe, own, folder, number)))
        stopped = _why_stopped(found[-1], settings)
        rounds = Rounds(tuple(found), best_round(found), stopped)
        if ranks.first:
            _write(out, rounds)
            for place in (folder, out):
                try_report(place, progress.note)
            on_round(result, rounds)
        former = _former(recipe, folder, former, feedback)
        del result  # and with it the models
        gc.collect()
        if stopped:
            break
    return rounds


def _why_stopped(last: Round, settings: RoundsConfig) -> str:
    if settings.stop_when == "never" or last.has_gained or last.number == settings.count:
        return ""
    return (
        f"Stopped after round {last.number} of {settings.count}: {last.measure} did not rise over the round "
        "before by more than its interval."
    )


def check_rounds(recipe: Recipe) -> None:
    """Refuse a recipe that cannot be run in rounds, prompts that will run out, and those that are trained on
    in one round and evaluated on in the same or a later one.

    Raises:
        ConfigError: A stage has no limit, trains what no later round can start from, or one is missing.
        DataError: Prompts run out before the last round, and how many are missing; or sets overlap.
    """
    settings = _settings(recipe)
    _evaluation(recipe)
    for stage in recipe.stages:
        if stage.stage == "sft":
            raise ConfigError(
                "an `sft` stage merges its policy into the model, and a later round would start from another "
                "model",
                where=stage.name,
                remedy="fine-tune first, merge (--merge) and name the result as `model`; in rounds use "
                "best_of_k",
            )
        if isinstance(stage, LabelConfig) and stage.responses:
            raise ConfigError(
                "each round labels what its policy answers, and this stage labels a file",
                where=stage.name,
                remedy="put a `sample` stage before it, and leave `responses` out",
            )
        if _draws(stage) and stage.limit is None:  # type: ignore[attr-defined]
            raise ConfigError(
                "rounds take fresh prompts each time, so the stage must say how many",
                where=stage.name,
                remedy="set its `limit`",
            )
    trained: dict[str, Prompt] = {}
    for number in range(1, settings.count + 1):
        own = recipe_of_round(recipe, number, None)
        for stage in own.stages:
            if isinstance(stage, PromptSettings) and stage.skip:
                _check_supply(stage, recipe, number)
        _check_disjoint(own, number, trained)


def _check_disjoint(own: Recipe, number: int, trained: dict[str, Prompt]) -> None:
    """Have the stages of a round put down their prompts, and add those that it trains on to `trained`."""
    context = RunContext(own, memo=NullMemo(), progress=NoProgress())
    try:
        for stage in own.stages:
            if isinstance(stage, PromptSettings):
                make_job(stage, context)
        for purpose, claimed in context.claimed.items():
            if purpose not in (EVAL, MONITOR):
                trained.update(claimed)
        if not own.allow_prompt_overlap:
            held_out = list(context.claimed.get(EVAL, {}).values())
            check_disjoint({"trained on so far": list(trained.values()), EVAL: held_out})
    except DataError as error:
        raise DataError(
            f"in round {number}: {error.what}",
            where=error.where,
            remedy=error.remedy,
            problems=error.problems,
        ) from None


def _check_supply(stage: PromptSettings, recipe: Recipe, number: int) -> None:
    assert isinstance(stage, BaseStage)
    seed = recipe.seed if stage.seed is None else stage.seed
    try:
        load_prompts(stage, own_split=OWN_SPLIT.get(stage.stage, "rl"), seed=seed, progress=NoProgress())
    except DataError as error:
        raise DataError(
            f"prompts run out in round {number}: {error.what}",
            where=f"{stage.name}: {error.where}",
            remedy=error.remedy,
        ) from None


# One round


def recipe_of_round(
    recipe: Recipe, number: int, former: Former | None, feedback: Feedback = NO_FEEDBACK
) -> Recipe:
    """The recipe of a round, counted from 1: its prompts are others, its policies start from the one before,
    and it learns from the preferences that it shall remember."""
    settings = _settings(recipe)
    stages = []
    for stage in recipe.stages:
        stages.append(_own(stage, recipe, number, former, feedback))
        if isinstance(stage, EvaluateConfig) and stage is _evaluation(recipe) and settings.fresh:
            stages.append(_on_fresh_prompts(stages[-1], settings.fresh, number))
    return recipe.model_copy(
        update={"name": f"{recipe.name}-round-{number}"[:100], "stages": tuple(stages), "rounds": None}
    )


def _own(stage: BaseStage, recipe: Recipe, number: int, former: Former | None, feedback: Feedback) -> Any:
    settings, changed = _settings(recipe), dict[str, Any]()
    if _draws(stage):
        changed["skip"] = stage.skip + (number - 1) * stage.limit  # type: ignore[attr-defined]
    if isinstance(stage, CompareConfig) and not stage.evaluations and settings.fresh:
        changed["evaluations"] = (_evaluation(recipe).name,)
    if isinstance(stage, SampleConfig) and feedback.prompts:
        changed["also"] = (*stage.also, *feedback.prompts)
    if isinstance(stage, RewardConfig | DpoConfig):
        changed |= _remembering(stage, recipe, former.preferences if former else (), feedback)
    if former is not None:
        starts = isinstance(stage, SampleConfig | StartSettings)
        if starts and stage.policy is None:  # type: ignore[attr-defined]
            changed["policy"] = str(former.policy)
            if isinstance(stage, StartSettings):
                changed["reference"] = settings.reference
        if isinstance(stage, RewardConfig) and former.reward is not None:
            changed["previous"] = str(former.reward)
        if isinstance(stage, EvaluateConfig):
            before = [each.name for each in _before(stage, recipe) if each.trains_policy]
            changed["policies"] = (str(former.policy), *(stage.policies or before))
    return stage.model_copy(update=changed)


def _remembering(
    stage: RewardConfig | DpoConfig,
    recipe: Recipe,
    earlier: Sequence[tuple[PreferenceFile, ...]],
    feedback: Feedback,
) -> dict[str, Any]:
    """The label stage that a stage reads, the preferences of earlier rounds, and those from elsewhere."""
    if stage.files and stage.input is None:  # it learns from files alone
        return {"files": (*stage.files, *feedback.preferences)}
    memory = _settings(recipe).memory
    if memory == "all":
        kept = earlier
    else:
        count = 0 if memory == "last" else memory - 1
        kept = earlier[max(0, len(earlier) - count) :]
    remembered = [file for files in kept for file in files]
    if not remembered and not feedback.preferences:
        return {}
    labelled = [each.name for each in _before(stage, recipe) if isinstance(each, LabelConfig)]
    own = stage.input or (labelled[-1] if labelled else None)
    return {"files": (*stage.files, *remembered, *feedback.preferences), "input": own}


def _on_fresh_prompts(stage: EvaluateConfig, count: int, number: int) -> EvaluateConfig:
    assert stage.limit is not None
    skip = stage.skip + stage.limit + (number - 1) * count
    return stage.model_copy(update={"name": f"{stage.name}-{FRESH}", "limit": count, "skip": skip})


def _draws(stage: BaseStage) -> bool:
    """Whether a stage takes fresh prompts each round; evaluation has the same each time."""
    return isinstance(stage, PromptSettings) and not isinstance(stage, EvaluateConfig) and _prompted(stage)


def _prompted(stage: BaseStage) -> bool:
    return stage.stage in ("sample", "revise", "ppo", "grpo", "best_of_k")


def _before(stage: BaseStage, recipe: Recipe) -> Sequence[BaseStage]:
    return recipe.stages[: [each.name for each in recipe.stages].index(stage.name)]


def _settings(recipe: Recipe) -> RoundsConfig:
    return recipe.rounds or RoundsConfig(count=1)


def _policy_stage(recipe: Recipe) -> BaseStage:
    """The stage whose policy goes on."""
    named = _settings(recipe).policy
    found = [each for each in recipe.stages if each.trains_policy and named in (None, each.name)]
    if not found:
        what = "a stage that trains a policy" if named is None else f"no stage {named!r} that trains a policy"
        raise ConfigError(
            f"rounds need {what}" if named is None else f"there is {what}",
            where="rounds",
            remedy="add ppo, grpo, best_of_k or dpo, and name it in `rounds.policy` where there are several",
        )
    return found[-1]


def _evaluation(recipe: Recipe) -> EvaluateConfig:
    """The evaluation on the prompts that all rounds share."""
    after = recipe.stages[[each.name for each in recipe.stages].index(_policy_stage(recipe).name) :]
    found = [each for each in after if isinstance(each, EvaluateConfig)]
    if not found:
        raise ConfigError(
            "rounds need an `evaluate` stage after the policy that goes on",
            where="rounds",
            remedy="add one with a `limit`, and a `gold` measure that no training signal touches",
        )
    if found[0].limit is None and _settings(recipe).fresh:
        raise ConfigError(
            "the prompts that all rounds are evaluated on, and the fresh ones, must be told apart",
            where=found[0].name,
            remedy="set its `limit`, or `rounds: {fresh: null}`",
        )
    return found[0]


# Reading and writing


def _folder(out: Path, number: int) -> Path:
    return out / f"round-{number}"


def _described(recipe: Recipe, own: Recipe, folder: Path, number: int) -> Round:
    stage, evaluation = _policy_stage(recipe), _evaluation(recipe)
    fixed = read_evaluation(folder / evaluation.name / EVALUATION)
    fresh = folder / f"{evaluation.name}-{FRESH}" / EVALUATION
    rewards = [each.name for each in own.stages if isinstance(each, RewardConfig)]
    labels = [each.name for each in own.stages if isinstance(each, LabelConfig)]
    return describe_round(
        number,
        policy=f"{folder.name}/{stage.name}",
        made=stage.name,
        former=_former_name(fixed, own) if number > 1 else None,
        fixed=fixed,
        fresh=read_evaluation(fresh) if fresh.is_file() else None,
        reward=read_typed(folder / rewards[-1] / "report.json", RewardReport).previous if rewards else {},
        labels=read_result(folder / labels[-1] / "statistics.json") if labels else {},
        seed=own.seed,
    )


def _former_name(found: Evaluation, own: Recipe) -> str:
    """What the evaluation calls the policy of the round before."""
    known = {START, *(each.name for each in own.stages)}
    return next(each.name for each in found.policies if each.name not in known)


def _former(recipe: Recipe, folder: Path, before: Former | None, feedback: Feedback) -> Former:
    labels = [each.name for each in recipe.stages if isinstance(each, LabelConfig)]
    rewards = [each.name for each in recipe.stages if isinstance(each, RewardConfig)]
    written = [path for name in labels[-1:] for path in sorted((folder / name).glob("preferences.*"))]
    learned = (*(PreferenceFile(file=str(path)) for path in written[:1]), *feedback.preferences)
    return Former(
        policy=folder / _policy_stage(recipe).name / "adapter",
        reward=folder / rewards[-1] / "model" if rewards else None,
        preferences=(*(before.preferences if before else ()), learned),
    )


def _write(out: Path, rounds: Rounds) -> None:
    write_text(out / ROUNDS, json.dumps(rounds.as_dict(), ensure_ascii=False, indent=1) + "\n")
    write_text(out / "rounds.md", rounds_markdown(rounds))
    best = next(each for each in rounds.rounds if each.number == rounds.best)
    with run_errors("keep the best policy", out):
        work = out / f".tmp-{POLICY}"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(out / best.policy / "adapter", work)
        shutil.rmtree(out / POLICY, ignore_errors=True)
        work.rename(out / POLICY)
