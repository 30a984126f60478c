"""`report.html`, written into the folder of a run or of a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlaif.errors import RlaifError, RunError
from rlaif.io.writers import write_text
from rlaif.report.page import REPORT, page_html, run_page, study_page
from rlaif.runs.disk import run_errors
from rlaif.runs.run import RUN, read_run
from rlaif.text import one_line

__all__ = ["REPORT", "reported", "try_report", "write_report"]

STUDY = "study.json"


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of the run or study in `folder`; returns where it lies.

    Args:
        out: Another place than `report.html` in the folder.

    Raises:
        RunError: It is no folder of a run or study, or the disk refuses.
    """
    place = out or folder / REPORT
    if (folder / RUN).is_file():
        page = run_page(folder)
    elif (folder / STUDY).is_file():
        page = study_page(folder, report=REPORT)
    else:
        what = (
            "this is the folder of no run and of no study" if folder.is_dir() else "there is no such folder"
        )
        raise RunError(
            what,
            where=str(folder),
            remedy="name a folder that `rlaif run`, `rlaif label` or `rlaif study` wrote: `rlaif runs list`",
        )
    text = page_html(page)
    with run_errors("write the report", place):
        write_text(place, text)
    return place


def try_report(folder: Path, note: Callable[[str], None]) -> Path | None:
    """As `write_report` at the end of a run, which must not fail for its report: why there is none is
    noted."""
    try:
        return write_report(folder)
    except RlaifError as error:
        note(f"{REPORT} was not written: {one_line(str(error).splitlines()[0])}")
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
