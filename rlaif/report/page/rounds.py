"""The page of a run in rounds, collected from its folder."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from rlaif import plot
from rlaif.errors import RunError
from rlaif.report.comparison import LABELS, NONE
from rlaif.report.page.model import Link, Page, Picture, Section
from rlaif.report.page.reading import read_json, recipe_in
from rlaif.report.rounds import rounds_table
from rlaif.report.shown import Table
from rlaif.results.comparison import interval
from rlaif.results.rounds import Prompts, Round, Rounds
from rlaif.text import count_of, one_line

__all__ = ["rounds_page"]

ABOUT = (
    "Differences are paired by prompt; each interval holds 95 % by itself. Fixed prompts are the same in "
    "every round; fresh ones were not used before. The round that is kept was chosen by gold on the fixed "
    "prompts, which flatters its figures there a little."
)


def rounds_page(folder: Path, *, report: str) -> Page:
    """What each round did, and links to the pages of the rounds.

    Args:
        report: The name of a run's page in its folder.

    Raises:
        RunError: `rounds.json` is missing or damaged.
    """
    try:
        found = Rounds.from_dict(read_json(folder / "rounds.json"))
        tables, picture = (rounds_table(found),), _picture(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"rounds.json is not what a run in rounds writes ({type(error).__name__}: {error})",
            where=str(folder / "rounds.json"),
            remedy="give the command `rlaif run` again",
        ) from error
    places = [f"round-{each.number}/{report}" for each in found.rounds]
    there = [place for place in places if (folder / place).is_file()]
    sections = (
        Section("verdict", "What each round did", lines=_verdict(found)),
        Section("rounds", "Rounds", lines=(ABOUT,), tables=tables),
        Section("pictures", "Pictures", pictures=(picture,) if picture else ()),
        Section("runs", "The rounds' own pages", links=tuple(_link(place) for place in there)),
    )
    return Page(
        title=f"Rounds of {one_line(str(recipe_in(folder).get('name') or 'a run'))}",
        facts=(
            ("rounds", str(len(found.rounds))),
            ("measure", one_line(LABELS.get(found.rounds[0].measure, found.rounds[0].measure))),
            ("kept", f"the policy of round {found.best}"),
        ),
        missing=(
            *_unfinished(found, folder),
            *(f"there is no `{each}`" for each in places if each not in there),
        ),
        sections=tuple(section for section in sections if not section.empty),
    )


def _verdict(found: Rounds) -> tuple[str, ...]:
    lines = [
        one_line(line if at == 0 else f"Round {each.number}: {line}")
        for place, each in enumerate(found.rounds)
        for at, line in enumerate(found.words(place))
    ]
    stopped = [one_line(found.stopped)] if found.stopped else []
    return (found.kept, *stopped, *lines)


def _unfinished(found: Rounds, folder: Path) -> list[str]:
    asked, done = recipe_in(folder).get("rounds"), found.rounds[-1].number
    count = asked.get("count") if isinstance(asked, dict) else None
    if not isinstance(count, int) or found.stopped or done >= count:
        return []
    return [f"{done} of {count_of(count, 'round')} have finished"]


def _link(place: str) -> Link:
    return Link(quote(place, safe="/"), place.partition("/")[0])


def _picture(found: Rounds) -> Picture | None:
    """Gold over rounds; `None` where no round has a gain over the start policy."""
    rows = [
        (str(each.number), _over_start(each, "fixed"), _over_start(each, "fresh")) for each in found.rounds
    ]
    if all(cell == NONE for row in rows for cell in row[1:]):
        return None
    measure = one_line(found.rounds[0].measure)
    return Picture(
        title=f"{measure}, over the start policy, round by round",
        about="The gain over the start policy on the same prompts, with 95 % intervals over prompts. Where "
        "the gain on the fixed prompts rises and that on fresh ones does not, the rounds are fitted to the "
        "prompts that they are measured on.",
        draw=lambda: plot.over_rounds(found.rounds),
        numbers=(Table("", ("round", "fixed prompts", "fresh prompts"), rows),),
    )


def _over_start(each: Round, prompts: Prompts) -> str:
    gain = each.gain(each.measure, "start", prompts)
    return NONE if gain is None else interval(gain, signed=True)
