"""The page of a study over seeds, collected from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from rlaif import plot
from rlaif.errors import RunError
from rlaif.report.comparison import LABELS, NONE
from rlaif.report.page.model import Link, Page, Picture, Section
from rlaif.report.page.reading import read_json
from rlaif.report.shown import Table
from rlaif.report.study import study_tables
from rlaif.results.comparison import interval
from rlaif.results.study import Study
from rlaif.text import count_of, one_line

__all__ = ["study_page"]


def study_page(folder: Path, *, report: str) -> Page:
    """What a study found, and links to the pages of its runs.

    Args:
        report: The name of a run's page in its folder.

    Raises:
        RunError: `study.json` is missing or damaged.
    """
    try:
        found = Study.from_dict(read_json(folder / "study.json"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"study.json is not what a study writes ({type(error).__name__}: {error})",
            where=str(folder / "study.json"),
            remedy="give the command `rlaif study` again",
        ) from error
    runs = sorted(path.parent.name for path in folder.glob(f"*/{report}"))
    sections = (
        Section("verdict", "Verdict", lines=found.verdict),
        Section("policies", "Policies", tables=study_tables(found)),
        Section("pictures", "Pictures", pictures=tuple(_pictures(found))),
        Section("runs", "Runs", links=tuple(_link(name, report) for name in runs)),
    )
    return Page(
        title=f"Study {one_line(found.name)}",
        facts=(
            ("policies", str(len(found.policies))),
            ("seeds", ", ".join(map(str, found.seeds))),
            ("held-out prompts", f"{found.prompts:,}"),
        ),
        missing=tuple(f"the run `{name}` did not finish" for name in found.failed),
        sections=tuple(section for section in sections if not section.empty),
    )


def _link(run: str, report: str) -> Link:
    return Link(quote(f"{run}/{report}", safe="/="), one_line(run))


def _pictures(found: Study) -> list[Picture]:
    """One for each measure that is compared."""
    measures = dict.fromkeys((found.headline, *(each.measure for each in found.differences)))
    return [
        _picture(found, name) for name in measures if any(name in each.estimates for each in found.policies)
    ]


def _picture(found: Study, measure: str) -> Picture:
    title = LABELS.get(measure, measure) + (" (gold)" if measure == found.gold else "")
    rows = [
        (
            one_line(each.name),
            interval(each.estimates[measure]),
            *(_figure(each.by_seed.get(measure, {}), seed) for seed in found.seeds),
        )
        for each in found.policies
        if measure in each.estimates
    ]
    header = ("policy", "mean [95 %]", *(f"seed {seed}" for seed in found.seeds))
    return Picture(
        title=one_line(title),
        about=f"The mean over {count_of(len(found.seeds), 'seed')} with an interval over seeds and "
        f"prompts, and each "
        "seed as a stroke.",
        draw=lambda: plot.over_seeds(found.policies, measure),
        numbers=(Table("", header, rows),),
    )


def _figure(values: Mapping[int, float], seed: int) -> str:
    return f"{values[seed]:.3g}" if seed in values else NONE
