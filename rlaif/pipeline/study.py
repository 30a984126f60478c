"""A study: one recipe under several seeds, and under the settings of a grid, put into one table.

OUT/study.json, study.md   the table and its verdict
OUT/report.html            the same with pictures, on a page
OUT/SETTING-seed-N/        a run, as `rlaif run` leaves it
OUT/recipes/, OUT/logs/    each run's recipe, and what it printed
OUT/rlaif-journal.sqlite   the answers of all
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from filelock import FileLock, Timeout

from rlaif.config import Recipe, load_recipe
from rlaif.digest import digest
from rlaif.errors import ConfigError, RunError
from rlaif.io.tables import read_table
from rlaif.io.writers import write_text
from rlaif.jobs.evaluate import EVALUATION, read_evaluation
from rlaif.pipeline.children import Child, Children
from rlaif.pipeline.report import try_report
from rlaif.pipeline.run import recipe_text
from rlaif.progress import Progress
from rlaif.report.study import study_markdown
from rlaif.results.costs import TrainingCost
from rlaif.results.monitor import READINGS, MonitorReading
from rlaif.results.study import Study
from rlaif.runs.costs import TRAINING, read_cost
from rlaif.runs.disk import run_errors
from rlaif.runs.journal import JOURNAL
from rlaif.stages.study import SeedRun, study
from rlaif.text import count_of

__all__ = [
    "STUDY",
    "Grid",
    "PlannedRun",
    "StudyPlan",
    "StudyResult",
    "default_study_folder",
    "plan_study",
    "run_study",
]

STUDY = "study.json"
UNSAFE = re.compile(r"[^A-Za-z0-9._=-]+")
MOST_RUNS = 1000
"""Of one study; more is taken for a mistake."""

Grid = Mapping[str, Sequence[Any]]
"""Values to try, by the path of a setting, as `stages.ppo.beta`."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        setting: What the grid sets, as `ppo.beta=0.05`; empty without a grid.
    """

    name: str
    setting: str
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class StudyPlan:
    """The runs of a study, by seed and then by setting, and where they lie."""

    name: str
    folder: Path
    runs: tuple[PlannedRun, ...]


class StudyResult(NamedTuple):
    """A finished study.

    Attributes:
        found: `None` where too few runs finished for a table.
        failed: By run, why it did not finish.
    """

    plan: StudyPlan
    found: Study | None
    failed: Mapping[str, str]


def plan_study(
    source: str,
    *,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] | int = 5,
    grid: Grid | None = None,
    out: Path | None = None,
) -> StudyPlan:
    """Read and check every recipe of the study.

    Args:
        source: A recipe's file or the name of a shipped one.
        seeds: How many, counted from the recipe's; or which.

    Raises:
        ConfigError: A recipe is not as it must be, has no evaluation, or the study is too large or too small.
    """
    base = load_recipe(source, overrides)
    chosen = (
        list(range(base.seed, base.seed + seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    )
    if len(chosen) < 2:
        raise ConfigError(
            f"a study of {count_of(len(chosen), 'seed')} shows nothing that a run does not",
            remedy="ask for two or more: --seeds 5",
        )
    if not any(stage.stage == "evaluate" for stage in base.stages):
        raise ConfigError(
            "the recipe has no `evaluate` stage, so its runs have nothing to compare",
            where=source,
            remedy="add one after the stages that train",
        )
    settings = list(_settings(grid or {}))
    if len(settings) * len(chosen) > MOST_RUNS:
        raise ConfigError(
            f"{len(settings) * len(chosen):,} runs are more than a study may have ({MOST_RUNS:,})"
        )
    runs = tuple(
        PlannedRun(
            name=_run_name(setting, seed),
            setting=setting,
            seed=seed,
            recipe=load_recipe(source, [*overrides, *values, f"seed={seed}"]),
        )
        for seed in chosen
        for setting, values in settings
    )
    if any(run.recipe.rounds is not None for run in runs):
        raise ConfigError(
            "a study repeats a single run, and this recipe is run in rounds",
            where=source,
            remedy="leave its rounds out: --set rounds=null",
        )
    return StudyPlan(name=base.name, folder=out or default_study_folder(base), runs=runs)


def default_study_folder(recipe: Recipe, root: Path = Path("studies")) -> Path:
    """`studies/NAME-DIGEST`: the same recipe gives the same folder, whichever seeds and settings are asked
    for, so that a study is made larger by asking for more."""
    settings = recipe.model_dump(mode="json")
    settings["server"]["max_cost"] = None
    del settings["seed"]
    return root / f"{recipe.name}-{digest(settings)[:8]}"


def run_study(plan: StudyPlan, *, jobs: int = 1, progress: Progress) -> StudyResult:
    """Run what has not finished, and put all into one table.

    Every run is a process of its own, so that one that fails, or runs out of memory, takes nothing with it.
    The runs of one seed go one after the other: a stage that the settings of the grid do not touch is
    computed once, and taken over.

    Args:
        jobs: Seeds that run side by side.

    Raises:
        RunError: The folder cannot be written, another process works in it, or no two seeds finished.
        KeyboardInterrupt: The runs were interrupted; the same call goes on with them.
    """
    with _locked(plan.folder), Children(threads=jobs) as children:
        failed = _run_all(plan, jobs, children, progress)
        runs = [_seed_run(plan.folder / run.name, run) for run in plan.runs if run.name not in failed]
        if len({run.seed for run in runs}) < 2:
            return StudyResult(plan, None, failed)
        found = study(runs, name=plan.name, failed=failed)
        write_text(plan.folder / STUDY, json.dumps(found.as_dict(), ensure_ascii=False, indent=1) + "\n")
        write_text(plan.folder / "study.md", study_markdown(found))
        try_report(plan.folder, progress.note)
        return StudyResult(plan, found, failed)


# Settings and names


def _settings(grid: Grid) -> Iterator[tuple[str, list[str]]]:
    """Every combination: its name, and what `--set` would be given."""
    for values in itertools.product(*grid.values()):
        pairs = list(zip(grid, values, strict=True))
        name = ", ".join(f"{path.removeprefix('stages.')}={_flow(value)}" for path, value in pairs)
        yield name, [f"{path}={_flow(value)}" for path, value in pairs]


def _flow(value: object) -> str:
    """A value as YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _run_name(setting: str, seed: int) -> str:
    """A folder's name that no other setting has."""
    if not setting:
        return f"seed-{seed}"
    return f"{UNSAFE.sub('-', setting)[:80]}-{digest(setting)[:6]}-seed-{seed}"


# Running


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with run_errors("make the folder of the study", folder):
        for each in (folder, folder / "recipes", folder / "logs"):
            each.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0.25):
            yield
    except Timeout as error:
        raise RunError(
            "another process is at work on this study",
            where=str(folder),
            remedy="wait until it has ended, or name another folder (--out)",
        ) from error


def _run_all(plan: StudyPlan, jobs: int, children: Children, progress: Progress) -> dict[str, str]:
    """Run every run; why the failed ones did."""
    lanes = [list(lane) for _, lane in itertools.groupby(plan.runs, key=lambda run: run.seed)]
    stages = sum(len(run.recipe.stages) for run in plan.runs)
    progress.begin(f"{count_of(len(plan.runs), 'run')} of study {plan.name}", stages)
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        lanes_done = [pool.submit(_run_lane, plan, lane, children, progress) for lane in lanes]
        try:
            for done in lanes_done:
                failed |= done.result()
        except BaseException:
            children.end()
            for done in lanes_done:
                done.cancel()
            raise
    return failed


def _run_lane(
    plan: StudyPlan, lane: Sequence[PlannedRun], children: Children, progress: Progress
) -> dict[str, str]:
    """The runs of one seed; each may take stages over from others of that seed, earlier studies' among
    them."""
    failed = {}
    for run in lane:
        recipe, folder = plan.folder / "recipes" / f"{run.name}.yaml", plan.folder / run.name
        write_text(recipe, recipe_text(run.recipe))
        words = ["run", str(recipe), "--out", str(folder), "--journal", str(plan.folder / JOURNAL)]
        others = [each for each in sorted(plan.folder.glob(f"*seed-{run.seed}")) if each != folder]
        words += [part for other in others for part in ("--reuse", str(other))]
        child = Child(words, log=plan.folder / "logs" / f"{run.name}.log", folder=folder)
        ended = children.run(child, stages=len(run.recipe.stages), progress=progress)
        if ended.status:
            failed[run.name] = f"{ended.why} (see {child.log})"
        told = f"failed: {ended.why}" if ended.status else f"finished after {ended.seconds:.0f} s"
        progress.note(f"{run.name}: {told}")
    return failed


# Reading


def _seed_run(folder: Path, run: PlannedRun) -> SeedRun:
    """What the last evaluation of a run found, and what it noted of training."""
    name = [stage.name for stage in run.recipe.stages if stage.stage == "evaluate"][-1]
    noted = read_cost(folder / name / TRAINING) or {}
    where = str(folder / name / TRAINING)
    return SeedRun(
        setting=run.setting,
        seed=run.seed,
        evaluation=read_evaluation(folder / name / EVALUATION),
        costs={policy: TrainingCost.from_dict(cost, where=where) for policy, cost in noted.items()},
        readings=_readings(folder, run.recipe),
    )


def _readings(folder: Path, recipe: Recipe) -> dict[str, list[MonitorReading]]:
    """What the monitors of the trainings read, by stage."""
    found = {}
    for stage in recipe.stages:
        path = folder / stage.name / READINGS
        if getattr(stage, "monitor", None) is not None and path.is_file():
            found[stage.name] = [MonitorReading.from_row(row.values) for row in read_table(path).rows]
    return found
