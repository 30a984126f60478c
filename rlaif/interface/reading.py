"""Data from files and from the hub, in every form that people have (docs/reference/data-forms.md)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from rlaif.config import Recipe, load_recipe
from rlaif.io import readers
from rlaif.jobs.audit_files import read_audit_pairs as pairs_of
from rlaif.jobs.learned_rows import read_preferences as preferences_of
from rlaif.pipeline.report import reported, try_report
from rlaif.pipeline.run import RunResult, default_folder, run_recipe
from rlaif.progress import NoProgress, Progress
from rlaif.ranks import current
from rlaif.results.preferences import PreferencePair
from rlaif.types import Comparison, Prompt

__all__ = ["DataNotice", "read_pairs", "read_preferences", "read_prompts", "run"]


class DataNotice(UserWarning):
    """A reader read something other than a caller may expect: rows were left out, joined or changed."""


def read_prompts(source: str | Path, *, prompt_column: str = "prompt") -> list[Prompt]:
    """Prompts from a file, a hub dataset, or `builtin` / `builtin:TAG`; equal ones once.

    Warns:
        DataNotice: Rows said the same, or something in them was changed or not read.

    Raises:
        DataError: It cannot be read; every bad row is listed.
    """
    read = readers.read_prompts(source, prompt_column=prompt_column)
    for line in read.notes:
        _notice(source, line)
    return list(read.items)


def read_pairs(source: str | Path, *, prompt_column: str = "prompt") -> list[Comparison]:
    """Pairs of completions to judge: columns `chosen` and `rejected`, `a` and `b`, or lists of completions.

    Warns:
        DataNotice: Pairs of equal completions were left out, or something in a row was changed or not read.

    Raises:
        DataError: It cannot be read; every bad row is listed.
    """
    found = pairs_of(source, prompt_column=prompt_column)
    if found.identical:
        rows = found.identical + len(found.pairs)
        _notice(source, f"{found.identical} of {rows} pairs are left out: both completions are the same text")
    for line in found.read.notes:
        _notice(source, line)
    return [pair.comparison for pair in found.pairs]


def read_preferences(source: str | Path) -> list[PreferencePair]:
    """Labelled pairs to learn from, with soft labels where the file has them.

    Warns:
        DataNotice: Something in a row was changed or not read.

    Raises:
        DataError: It cannot be read, or has rows that cannot be learned from; all are listed.
    """
    return preferences_of(str(source), note=lambda line: warnings.warn(line, DataNotice, stacklevel=4))


def run(
    recipe: str | Path | Recipe,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> RunResult:
    """Run a recipe: its stages in order, each skipped when it has finished before.

    Args:
        recipe: A file, the name of a shipped one, or a `Recipe`.
        out: The run's folder; `runs/NAME-DIGEST` when left out.
        overrides: As `--set`: `stages.label.protocol=pairwise`.

    Raises:
        RlaifError: An input, a model or the disk is not as it must be.
    """
    read = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    folder, heard = Path(out) if out else default_folder(read), progress or NoProgress()
    with reported(folder, heard.note):
        result = run_recipe(read, out=folder, progress=heard)
    if current().first:
        try_report(folder, heard.note)
    return result


def _notice(source: str | Path, line: str) -> None:
    warnings.warn(f"{source}: {line}", DataNotice, stacklevel=3)
