"""`report.html`, written into the folder of a run, of a run in rounds, or of a study."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlaif.errors import RlaifError, RunError
from rlaif.io.writers import write_text
from rlaif.report.inspect_logs import inspect_logs
from rlaif.report.page import REPORT, page_html, rounds_page, run_page, save_pictures, study_page
from rlaif.report.page.model import Page
from rlaif.report.page.reading import read_json
from rlaif.results.evaluation import Evaluation
from rlaif.runs.disk import run_errors
from rlaif.runs.run import RUN, read_run
from rlaif.text import one_line

__all__ = ["REPORT", "reported", "try_report", "write_inspect", "write_pictures", "write_report"]

STUDY, ROUNDS, EVALUATION = "study.json", "rounds.json", "evaluation.json"
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of the run, rounds or study in `folder`; returns where it lies.

    Args:
        out: Another place than `report.html` in the folder.

    Raises:
        RunError: It is no folder of a run, of rounds or of a study, or the disk refuses.
    """
    place = out or folder / REPORT
    text = page_html(_page(folder))
    with run_errors("write the report", place):
        write_text(place, text)
    return place


def _page(folder: Path) -> Page:
    """What there is to tell of the run, rounds or study in `folder`."""
    if (folder / RUN).is_file():
        return run_page(folder)
    if (folder / STUDY).is_file():
        return study_page(folder, report=REPORT)
    if (folder / ROUNDS).is_file():
        return rounds_page(folder, report=REPORT)
    what = "this is the folder of no run and of no study" if folder.is_dir() else "there is no such folder"
    raise RunError(
        what,
        where=str(folder),
        remedy="name a folder that `rlaif run`, `rlaif label` or `rlaif study` wrote: `rlaif runs list`",
    )


def write_pictures(folder: Path, out: Path) -> list[Path]:
    """Write every picture of the page of `folder` as a PNG file named by its title; returns where they lie.

    Raises:
        RunError: As `write_report`.
        ConfigError: matplotlib is not installed.
        DataError: The numbers of one cannot be drawn.
    """
    return save_pictures(_page(folder), out)


def write_inspect(folder: Path) -> list[Path]:
    """Write the last evaluation of the run in `folder` as logs for `inspect view`, one a policy, into
    `inspect/` there; returns where they lie.

    Raises:
        RunError: It is no run folder, the run has no evaluation, or the disk refuses.
        ConfigError: inspect_ai is not installed.
    """
    info = read_run(folder)
    found = [each for each in info.manifests() if each.kind == "evaluate"]
    if not found:
        remedy = "name a run with a finished stage `evaluate`"
        raise RunError("this run has no evaluation to write as logs", where=str(folder), remedy=remedy)
    stage = folder / found[-1].stage
    evaluation = Evaluation.from_dict(read_json(stage / EVALUATION), where=str(stage / EVALUATION))
    logs = inspect_logs(evaluation, stage, name=info.name, created=found[-1].finished)
    home, places = folder / "inspect", list[Path]()
    for name, log in logs.items():
        # Inspect knows a log by a name that begins with a time.
        words = (log.eval.created, name[:60], log.eval.eval_id)
        places.append(home / f"{'_'.join(UNSAFE.sub('-', word) for word in words)}.json")
        with run_errors("write the log", places[-1]):
            home.mkdir(exist_ok=True)
            write_text(places[-1], log.model_dump_json(indent=1, exclude_none=True) + "\n")
    return places


def try_report(folder: Path, note: Callable[[str], None]) -> Path | None:
    """As `write_report` at the end of a run, which must not fail for its report: why there is none is
    noted."""
    try:
        return write_report(folder)
    except RlaifError as error:
        why = str(error).splitlines()[0]
    except (OSError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
    note(f"{REPORT} was not written: {one_line(why)}")
    return None


@contextmanager
def reported(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """A run that an error of ours ends inside leaves a page of the stages that had finished."""
    try:
        yield
    except RlaifError:
        with suppress(RlaifError):
            info = read_run(folder)
            if info.stages and info.status != "running":  # another process's
                try_report(folder, note)
        raise
