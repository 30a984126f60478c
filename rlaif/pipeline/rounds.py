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

from rlaif.config import Recipe
from rlaif.config.labelling import LabelConfig
from rlaif.config.reward import PreferenceFile, RewardConfig
from rlaif.config.rounds import RoundsConfig
from rlaif.errors import RunError
from rlaif.io.writers import write_text
from rlaif.jobs.base import read_result, read_typed
from rlaif.jobs.evaluate import EVALUATION, START, read_evaluation
from rlaif.pipeline.feedback import Feedback, take_feedback
from rlaif.pipeline.report import reported, try_report
from rlaif.pipeline.round_recipes import (
    FRESH,
    Former,
    check_rounds,
    evaluation_of,
    learns_from_feedback_alone,
    policy_stage_of,
    recipe_of_round,
    rounds_of,
)
from rlaif.pipeline.run import RunResult, recipe_text, run_recipe
from rlaif.progress import NoProgress, Progress
from rlaif.ranks import current
from rlaif.report.rounds import rounds_markdown
from rlaif.results.evaluation import Evaluation
from rlaif.results.reward import RewardReport
from rlaif.results.rounds import Round, Rounds
from rlaif.runs.disk import run_errors
from rlaif.runs.journal import JOURNAL
from rlaif.runs.run import RUN
from rlaif.stages.rounds import best_round, describe_round

__all__ = ["Former", "ROUNDS", "check_rounds", "recipe_of_round", "run_rounds"]

ROUNDS, POLICY = "rounds.json", "policy"


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
    _check_folder(out)
    check_rounds(recipe)
    settings, progress, ranks = rounds_of(recipe), progress or NoProgress(), current()
    if ranks.first:
        with run_errors("make the folder of the rounds", out):
            out.mkdir(parents=True, exist_ok=True)
        write_text(out / "recipe.yaml", recipe_text(recipe))
    former: Former | None = None
    found, stopped = list[Round](), ""
    for number in range(1, settings.count + 1):
        progress.note(f"round {number} of {settings.count}")
        feedback = ranks.from_first(
            partial(
                take_feedback,
                settings.feedback,
                out / "feedback",
                number,
                progress,
                needed=learns_from_feedback_alone(recipe),
            )
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
    over = "the start" if last.number == 1 else "the round before"
    return (
        f"Stopped after round {last.number} of {settings.count}: {last.measure} did not rise over {over} by "
        "more than its interval."
    )


def _check_folder(out: Path) -> None:
    if (out / RUN).is_file():
        raise RunError(
            "this is the folder of a single run, and rounds are several",
            where=str(out),
            remedy="give the rounds another folder (--out)",
        )


# Reading and writing


def _folder(out: Path, number: int) -> Path:
    return out / f"round-{number}"


def _described(recipe: Recipe, own: Recipe, folder: Path, number: int) -> Round:
    stage, evaluation = policy_stage_of(recipe), evaluation_of(recipe)
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
        policy=folder / policy_stage_of(recipe).name / "adapter",
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
