"""Labelling on several machines: each does a shard, `I/N`; the answers of all go into one journal, and the
same command without a shard then finds them there and writes the file that one machine would have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.config import LabelConfig, Recipe, SampleConfig, load_recipe
from rlaif.errors import ConfigError, RunError
from rlaif.progress import Progress
from rlaif.runs.journal import JOURNAL, Journal
from rlaif.runs.run import RECIPE, read_run
from rlaif.text import count_of

__all__ = ["merge_shards", "shard_of"]


def shard_of(recipe: Recipe) -> str | None:
    """The shard that the recipe does, if it does one."""
    sharded = [stage for stage in recipe.stages if isinstance(stage, SampleConfig | LabelConfig)]
    return next((stage.shard for stage in sharded if stage.shard), None)


def merge_shards(recipe: Recipe, runs: Sequence[Path], into: Path, progress: Progress) -> None:
    """Put the answers of the shards in `runs` into the journal `into`.

    Raises:
        ConfigError: They are no shards of this recipe, or one is missing or there twice.
        RunError: One has not finished, or its journal is not there.
    """
    found: dict[int, Path] = {}
    counts: set[int] = set()
    for run in runs:
        theirs = _recipe_of(run)
        shard = shard_of(theirs)
        if shard is None:
            raise ConfigError(
                "this run is not a shard", where=str(run), remedy="name runs made with --shard I/N"
            )
        _same_work(recipe, theirs, run)
        number, count = map(int, shard.split("/"))
        counts.add(count)
        if number in found:
            raise ConfigError(
                f"shard {shard} is given twice: {found[number]} and {run}", remedy="name each shard once"
            )
        found[number] = run
    count = max(counts)
    if len(counts) > 1:
        raise ConfigError(
            f"the shards are of {' and '.join(map(str, sorted(counts)))}", remedy="merge shards of one count"
        )
    if missing := [f"{number}/{count}" for number in range(1, count + 1) if number not in found]:
        raise ConfigError(
            f"of {count} shards {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not named",
            remedy="name the run folder of every shard: --merge RUN --merge RUN …",
        )
    with Journal(into) as journal:
        for number in sorted(found):
            taken = journal.merge(_journal_of(found[number]))
            differing = (
                f"; {count_of(taken.differing, 'other')} differ from what was there, which is kept"
                if taken.differing
                else ""
            )
            progress.note(
                f"shard {number}/{count}: {count_of(taken.answers, 'answer')}, {taken.new:,} of them new"
                f"{differing}"
            )


def _recipe_of(run: Path) -> Recipe:
    status = read_run(run).status
    if status != "finished":
        raise RunError(
            f"the shard has not finished: it is {status}",
            where=str(run),
            remedy="run its command again; it continues where it stopped",
        )
    return load_recipe(run / RECIPE)


def _journal_of(run: Path) -> Path:
    """Where a run kept its answers: in its folder, as a shard does, or beside it."""
    inside = run / JOURNAL
    return inside if inside.is_file() else run.absolute().parent / JOURNAL


def _same_work(mine: Recipe, theirs: Recipe, run: Path) -> None:
    ours, others = _work(mine), _work(theirs)
    differing = sorted(key for key in ours.keys() | others.keys() if ours.get(key) != others.get(key))
    if differing:
        raise ConfigError(
            f"the shard is of other work; different: {', '.join(differing)}",
            where=str(run),
            remedy="give the command that the shards were made with, --merge in place of --shard",
        )


def _work(recipe: Recipe) -> Mapping[str, Any]:
    """What must be the same, flat: `label.judge`, …; machines may differ in where a model is served and on
    what it runs."""
    values = recipe.model_dump(mode="json", exclude={"server", "device", "stages"})
    for stage in recipe.stages:
        values |= {
            f"{stage.name}.{key}": value
            for key, value in stage.model_dump(mode="json").items()
            if key != "shard"
        }
    return values
