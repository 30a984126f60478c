"""The page of a study over seeds, collected from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from rlaif import plot
from rlaif.errors import RunError
from rlaif.report.comparison import NONE
from rlaif.report.page.model import Link, Page, Picture, Section
from rlaif.report.page.reading import read_json
from rlaif.report.shown import Table
from rlaif.report.study import curve_table, measure_title, study_tables
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
    """One for each measure that is compared, after what optimising the proxy did to gold."""
    measures = dict.fromkeys((found.headline, *(each.measure for each in found.differences)))
    shown = [name for name in measures if any(name in each.estimates for each in found.policies)]
    first = [_overoptimization(found)] if found.curves else []
    return [*first, *(_picture(found, name) for name in shown)]


def _overoptimization(found: Study) -> Picture:
    """Proxy and gold against √KL."""
    said = " ".join(one_line(each.words) for each in found.curves)
    return Picture(
        title="Proxy and gold against √KL",
        about="What the seeds gained over the start, in the mean: the trainings as their monitors read them, "
        "and the best of K samples of the start policy. Bars are 95 % intervals over seeds; dashed: the "
        "curves of Gao et al. (2022) through the gains in gold; dotted: where gold stops rising. " + said,
        draw=lambda: plot.overoptimization_over_seeds(found.curves, gold=found.gold or "gold"),
        numbers=(curve_table(found),),
    )


def _picture(found: Study, measure: str) -> Picture:
    title = measure_title(measure, found.gold)
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
