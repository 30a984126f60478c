"""Run a recipe: every stage in order, each skipped when its key is that of the finished one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import yaml

from rlaif import __version__
from rlaif.config import Recipe
from rlaif.config.labelling import BaseStage
from rlaif.digest import digest
from rlaif.errors import ConfigError, RlaifError, RunError
from rlaif.jobs.base import AnyJob
from rlaif.jobs.context import RunContext
from rlaif.jobs.table import make_job
from rlaif.models.heap import bound_kernels, give_back
from rlaif.pipeline.memory import Peak, tell_memory
from rlaif.progress import NoProgress, Progress
from rlaif.ranks import Ranks, current
from rlaif.runs.journal import JOURNAL, Journal
from rlaif.runs.manifest import (
    MANIFEST,
    Manifest,
    changed_parts,
    damaged_outputs,
    describe_outputs,
    stage_key,
)
from rlaif.runs.reuse import take_over
from rlaif.runs.run import RUN, RunFolder, now, remove_abandoned
from rlaif.runs.spending import SPENDING, Spending, Spent

__all__ = ["RunResult", "StageResult", "default_folder", "recipe_text", "run_recipe"]

FIRST_ROUND = "round-1"
"""In the folder of a recipe that is run in rounds."""
RANK = "rlaif-rank-"
"""How the folders of ranks that are not the first begin, among temporary files."""


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its job, where it lies, its manifest, and whether it had been finished before."""

    job: AnyJob
    folder: Path
    manifest: Manifest
    skipped: bool

    @property
    def config(self) -> BaseStage:
        """The stage's settings."""
        return self.job.config  # type: ignore[no-any-return]  # AnyJob


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        asked: Answers that models gave in this run.
        reused: Answers that came from the journal.
        spent: What was used of models behind servers, over all invocations of the run.
        limit: What they may cost, if that is limited for all of them together.
    """

    folder: Path
    journal: Path
    stages: tuple[StageResult, ...]
    seconds: float
    asked: int
    reused: int
    spent: tuple[Spent, ...] = ()
    limit: float | None = None


def default_folder(recipe: Recipe, root: Path = Path("runs")) -> Path:
    """`runs/NAME-DIGEST`: the same settings give the same folder, so that the same command continues or finds
    its run.

    What may be spent is left out: who raises the limit goes on with the run that reached it.
    """
    settings = recipe.model_dump(mode="json")
    for server in (settings["server"], *settings["servers"].values()):
        server["max_cost"] = None
    for name in ("servers", "rounds"):
        if not settings[name]:
            del settings[name]  # folders of recipes without any are named as before
    return root / f"{recipe.name}-{digest(settings)[:8]}"


def recipe_text(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `rlaif run` reads."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
    return text


def run_recipe(
    recipe: Recipe,
    *,
    out: Path,
    journal: Path | None = None,
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
    parts: Mapping[str, Mapping[str, str]] | None = None,
    reuse: Sequence[Path] = (),
) -> RunResult:
    """Run `recipe` in the folder `out`.

    Args:
        journal: Where answers are kept; `rlaif-journal.sqlite` beside `out` when left out, shared by the runs
            there.
        command: The command line, for the record.
        parts: What the answers in the journal depend on, by stage; a stage that depends on something else is
            refused.
        reuse: Folders of other runs: a stage that one of them has finished, and that depends on the same in
            all, is taken over from there.

    Raises:
        RlaifError: An input, a model or the disk is not as it must be. Stages that had finished stay; answers
            are journaled.
    """
    if recipe.rounds is not None:
        raise ConfigError(
            "the recipe is one of several rounds, and this runs its stages once",
            where=f"recipe {recipe.name}",
            remedy="use `rlaif run` (rlaif.pipeline.rounds.run_rounds), or leave `rounds` out",
        )
    progress = progress or NoProgress()
    started = time.monotonic()
    bound_kernels()
    ranks = current()
    place = journal or out.absolute().parent / JOURNAL
    with (
        _opened(recipe, out, ranks, command=command) as run,
        Journal(place) as memo,
        Spending(run.path / SPENDING) as spending,
    ):
        context = RunContext(recipe, memo=memo, progress=progress, path=run.path, spending=spending)
        jobs = [make_job(config, context) for config in recipe.stages]
        stages = []
        for job in jobs:
            stages.append(
                _run_stage(
                    job,
                    run,
                    context,
                    out=out,
                    tell=partial(tell_memory, job, jobs, context),
                    answered=(parts or {}).get(job.config.name, {}),
                    reuse=reuse,
                )
            )
            context.folders[job.config.name] = stages[-1].folder
            job.finished(stages[-1].folder)
        asked = context.engines.asked()
        return RunResult(
            folder=out,
            journal=place,
            stages=tuple(stages),
            seconds=time.monotonic() - started,
            asked=asked["asked"],
            reused=asked["reused"],
            spent=spending.models,
            limit=None if recipe.servers else recipe.server.max_cost,
        )


@contextmanager
def _opened(recipe: Recipe, out: Path, ranks: Ranks, *, command: Sequence[str] | None) -> Iterator[RunFolder]:
    """The run folder; of several ranks the first's. Each other one writes what it must into a folder of its
    own, which goes in the end."""
    if (out / FIRST_ROUND / RUN).is_file():
        raise RunError(
            "this is the folder of a recipe that was run in rounds",
            where=str(out),
            remedy="give the run another folder (--out), or run it in rounds (--rounds)",
        )
    with ExitStack() as stack:
        mine = out if ranks.first else _folder_of_rank(stack)
        run = stack.enter_context(RunFolder.open(mine, name=recipe.name, command=command))
        if ranks.first:
            run.check_own(config.name for config in recipe.stages)
        run.write_recipe(recipe_text(recipe))
        yield run


def _folder_of_rank(stack: ExitStack) -> Path:
    """A folder for a rank that is not the first; those of ranks that were killed go."""
    remove_abandoned(Path(gettempdir()), f"{RANK}*")
    return Path(stack.enter_context(TemporaryDirectory(prefix=RANK)))


def _run_stage(
    job: AnyJob,
    run: RunFolder,
    context: RunContext,
    *,
    out: Path,
    tell: Callable[[], int],
    answered: Mapping[str, str],
    reuse: Sequence[Path],
) -> StageResult:
    """Run a stage unless it has finished; `tell` is called before it begins, and says how many bytes are
    planned.

    Args:
        out: The folder of the run, which `run` is on the first rank only.
        answered: What the answers of shards depend on.
    """
    ranks = current()
    config, planned = job.config, 0
    before = ranks.from_first(lambda: run.manifest(config.name))
    if before is None:
        planned = tell()  # before `parts`, which loads the models
    parts = {"stage": config.stage, "rlaif": __version__, **job.key_parts()}
    ranks.from_first(lambda: _check_answered(config.name, answered, parts))
    work = context.work_folder(config.name)
    why = ranks.from_first(lambda: [] if before is None else _why_again(before, out / config.name, parts))
    if before is not None and not why:
        context.progress.note(f"{config.name}: finished before, nothing to do")
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed when all but this was done
        return StageResult(job=job, folder=out / config.name, manifest=before, skipped=True)
    if before is not None:
        reasons = ", ".join(why)
        context.progress.note(
            f"{config.name}: runs again, since {reasons}; the previous result moves to superseded/"
        )
        planned = tell()
    if (taken := ranks.from_first(lambda: take_over(run, config.name, parts, reuse))) is not None:
        context.progress.note(f"{config.name}: taken over from {taken}, which depends on the same")
        shutil.rmtree(work, ignore_errors=True)
        manifest = ranks.from_first(lambda: Manifest.read_json(run.path / config.name / MANIFEST))
        return StageResult(job=job, folder=out / config.name, manifest=manifest, skipped=True)
    give_back()
    started, clock = now(), time.monotonic()
    with run.stage(config.name) as folder:
        with Peak(context.recipe.device) as peak, _placed(config.name), context.opened:
            outcome = job.execute(folder)
        manifest = Manifest(
            stage=config.name,
            kind=config.stage,
            key=stage_key(parts),
            parts=parts,
            config=config.model_dump(mode="json"),
            models=job.models(),
            started=started,
            finished=now(),
            seconds=round(time.monotonic() - clock, 3),
            counts={**outcome.counts, **context.bad_rows(config.name)},
            outputs=describe_outputs(folder, outcome.rows),
            planned_bytes=planned,
            peak_bytes=peak.bytes,
            gaps=outcome.gaps,
        )
        manifest.write_json(folder / MANIFEST)
    run.record(config.name)
    shutil.rmtree(work, ignore_errors=True)
    manifest = ranks.from_first(lambda: manifest)  # and the files are there
    return StageResult(job=job, folder=out / config.name, manifest=manifest, skipped=False)


@contextmanager
def _placed(stage: str) -> Iterator[None]:
    """Give errors that name no place the name of the stage."""
    try:
        yield
    except RlaifError as error:
        if not error.where:
            error.where = stage
            error.args = (error.render(),)
        raise


def _check_answered(stage: str, answered: Mapping[str, str], parts: Mapping[str, str]) -> None:
    """Refuse to ask anew what shards have answered.

    Raises:
        ConfigError: Their answers are not those that this process would get.
    """
    if differing := sorted(name for name, value in answered.items() if parts.get(name) != value):
        raise ConfigError(
            f"the shards were made with something else; different: {', '.join(differing)}",
            where=stage,
            remedy="go on with the files, the model and the arithmetic (`dtype`) of the shards; or leave "
            "--merge out, to ask everything anew",
        )


def _why_again(before: Manifest, folder: Path, parts: Mapping[str, str]) -> list[str]:
    """Why a finished stage must run again; empty when it need not."""
    if before.key != stage_key(parts) or stage_key(before.parts) != before.key:
        return changed_parts(before.parts, parts) or ["its manifest was changed by hand"]
    if before.gaps:
        return [f"{before.gaps} questions got no answer"]
    return damaged_outputs(folder, before)
