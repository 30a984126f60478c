"""Labelling on several machines: each does a shard, `I/N`; the answers of all go into one journal, and the
same command without a shard then finds them there and writes the file that one machine would have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.config import LabelConfig, Recipe, SampleConfig, load_recipe
from rlaif.errors import ConfigError, RunError
from rlaif.jobs.inputs import load_responses, part_of, prompts_digest
from rlaif.jobs.sample import sampled_prompts
from rlaif.progress import NoProgress, Progress
from rlaif.runs.journal import JOURNAL, Journal, JournalMerge
from rlaif.runs.manifest import Manifest
from rlaif.runs.run import RECIPE, read_run
from rlaif.text import count_of

__all__ = ["Parts", "merge_shards"]

Parts = Mapping[str, Mapping[str, str]]
"""What the answers of a stage depend on, by the stage's name, as its manifest has it."""

FREE = {"shard", "max_invalid", "max_refused", "responses", "prompts"}
"""Settings that change no answer, and names of files, whose content is looked at."""
INPUTS = {SampleConfig: "prompts", LabelConfig: "completions"}
"""The part of a stage's key that is of the shard's own share."""
COMPARED_ELSEWHERE = {*INPUTS.values(), "settings", "rlaif"}


def merge_shards(recipe: Recipe, runs: Sequence[Path], into: Path, progress: Progress, *, out: Path) -> Parts:
    """Put the answers of the shards in `runs` into the journal `into`.

    Args:
        out: Folder of the run that goes on with them.

    Returns:
        What the answers depend on: where that run differs from it, it would ask everything anew.

    Raises:
        ConfigError: They are no shards of this recipe, one is missing or there twice, or they are of other
            inputs.
        RunError: One has not finished, or its journal is not there or empty.
    """
    shards = _shards_of(recipe, runs, out=out)
    manifests = {number: _manifests_of(recipe, run) for number, run in shards.items()}
    parts = _parts_of_all(shards, manifests)
    _check_inputs(recipe, shards, manifests)
    with Journal(into) as journal:
        for number, run in sorted(shards.items()):
            taken = journal.merge(_journal_of(run))
            if not taken.answers and any(each.counts.get("verdicts") for each in manifests[number].values()):
                raise RunError(
                    "the journal of this shard is empty: its answers are lost",
                    where=str(run),
                    remedy="put the journal back; or remove the folder and give the shard's command again",
                )
            progress.note(f"shard {number}/{len(shards)}: {_told(taken)}")
    return parts


def _shards_of(recipe: Recipe, runs: Sequence[Path], *, out: Path) -> dict[int, Path]:
    """The runs by their number, all of them there."""
    found: dict[int, Path] = {}
    counts: set[int] = set()
    for run in runs:
        theirs = _recipe_of(run)
        if theirs.shard is None:
            raise ConfigError(
                "this run is not a shard", where=str(run), remedy="name runs made with --shard I/N"
            )
        if run.resolve() == out.resolve():
            raise ConfigError(
                "this is the folder of a shard", where=str(out), remedy="name another folder (--out)"
            )
        _same_work(recipe, theirs, run)
        number, count = map(int, theirs.shard.split("/"))
        counts.add(count)
        if number in found:
            raise ConfigError(
                f"shard {theirs.shard} is given twice: {found[number]} and {run}",
                remedy="name each shard once",
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
    return found


def _recipe_of(run: Path) -> Recipe:
    status = read_run(run).status
    if status != "finished":
        raise RunError(
            f"the shard has not finished: it is {status}",
            where=str(run),
            remedy="run its command again; it continues where it stopped",
        )
    return load_recipe(run / RECIPE)


def _manifests_of(recipe: Recipe, run: Path) -> dict[str, Manifest]:
    """The manifests of a shard, by stage."""
    found = {each.stage: each for each in read_run(run).manifests()}
    if missing := [stage.name for stage in recipe.stages if stage.name not in found]:
        raise RunError(
            f"the shard has no finished stage {missing[0]!r}",
            where=str(run),
            remedy="run its command again; what was answered is in its journal",
        )
    return found


def _parts_of_all(shards: Mapping[int, Path], manifests: Mapping[int, Mapping[str, Manifest]]) -> Parts:
    """What all shards depend on alike."""
    first, *others = sorted(shards)
    expected = {name: _compared(manifest.parts) for name, manifest in manifests[first].items()}
    for number in others:
        for name, mine in expected.items():
            if differing := _differing(mine, _compared(manifests[number][name].parts)):
                raise ConfigError(
                    f"shards {first} and {number} were not made alike; different: {', '.join(differing)}",
                    where=str(shards[number] / name),
                    remedy="make one of them again with what the other had: files, model, and its arithmetic "
                    "(`dtype`)",
                )
    return expected


def _compared(parts: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in parts.items() if name not in COMPARED_ELSEWHERE}


def _check_inputs(
    recipe: Recipe, shards: Mapping[int, Path], manifests: Mapping[int, Mapping[str, Manifest]]
) -> None:
    """Refuse shards of another state of the prompts or completions than there is now."""
    for stage in recipe.stages:
        if not isinstance(stage, SampleConfig | LabelConfig):
            continue
        digests = _digests(recipe, stage, len(shards))
        for number, digest in digests.items():
            if manifests[number][stage.name].parts.get(INPUTS[type(stage)]) != digest:
                raise ConfigError(
                    f"shard {number}/{len(shards)} is not of what {_source(stage)} holds now",
                    where=str(shards[number]),
                    remedy="put back the file that the shards were made of; or leave --merge out, to ask "
                    "about this one",
                )


def _digests(recipe: Recipe, stage: SampleConfig | LabelConfig, count: int) -> dict[int, str]:
    """Digest of each shard's share of what the stage reads; none where it reads what another stage left."""
    places, where = {number: f"{number}/{count}" for number in range(1, count + 1)}, _source(stage)
    if isinstance(stage, SampleConfig):
        prompts = sampled_prompts(stage, seed=recipe.seed if stage.seed is None else stage.seed)
        return {at: prompts_digest(part_of(prompts, shard, where=where)) for at, shard in places.items()}
    if not stage.responses:
        return {}
    completions = load_responses(stage, NoProgress())
    return {at: completions.part(shard, where=where).digest() for at, shard in places.items()}


def _source(stage: SampleConfig | LabelConfig) -> str:
    return stage.prompts if isinstance(stage, SampleConfig) else stage.responses or ""


def _told(taken: JournalMerge) -> str:
    """What was taken over, in words."""
    differing = (
        f"; {count_of(taken.differing, 'other')} differ from what was there, which is kept"
        if taken.differing
        else ""
    )
    return f"{count_of(taken.answers, 'answer')}, {taken.new:,} of them new{differing}"


def _journal_of(run: Path) -> Path:
    """Where a run kept its answers: in its folder, as a shard does, or beside it."""
    places = (run / JOURNAL, run.absolute().parent / JOURNAL)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise RunError(
            "the journal of this shard is not there",
            where=str(places[0]),
            remedy="put it there, whatever it is called where it lies (--journal)",
        )
    return found


def _same_work(mine: Recipe, theirs: Recipe, run: Path) -> None:
    ours, others = _work(mine), _work(theirs)
    if differing := _differing(ours, others):
        raise ConfigError(
            f"the shard is of other work; different: {', '.join(differing)}",
            where=str(run),
            remedy="give the command that the shards were made with, --merge in place of --shard",
        )


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def _work(recipe: Recipe) -> Mapping[str, Any]:
    """What must be the same, flat: `label.judge`, …; machines may differ in where a model is served and on
    what it runs. The arithmetic that `dtype` led to is part of what an answer depends on."""
    values = recipe.model_dump(mode="json", exclude={"server", "servers", "device", "dtype", "stages"})
    for stage in recipe.stages:
        values |= {
            f"{stage.name}.{key}": value
            for key, value in stage.model_dump(mode="json").items()
            if key not in FREE
        }
    return values
