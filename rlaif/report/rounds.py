"""`rounds.md`, and the same table for the terminal."""

from __future__ import annotations

from rlaif.report.comparison import LABELS, NONE
from rlaif.report.markdown import sentence, table
from rlaif.report.shown import Shown, Table
from rlaif.results.comparison import interval
from rlaif.results.rounds import Round, Rounds
from rlaif.stats import Estimate
from rlaif.text import count_of

__all__ = ["rounds_markdown", "rounds_shown", "rounds_table"]


def rounds_markdown(found: Rounds) -> str:
    """The answers of every round, then the figures."""
    parts = [
        f"# {count_of(len(found.rounds), 'round')}; the policy of round {found.best} is kept\n",
        f"{found.kept}\n",
    ]
    for place, each in enumerate(found.rounds):
        answers = "\n".join(f"- {sentence(line)}" for line in found.words(place))
        parts.append(f"## Round {each.number}\n\n{answers}\n")
    if found.stopped:
        parts.append(f"{sentence(found.stopped)}\n")
    figures = rounds_table(found)
    parts.append(f"## {figures.title}\n\n{table(figures.header, figures.rows)}")
    parts.append(
        "Differences are paired by prompt; each interval holds 95 % by itself. Fixed prompts are the same in "
        "every round; fresh ones were not used before.\n"
    )
    return "\n".join(parts)


def rounds_shown(found: Rounds, *, last: bool = False) -> list[Shown]:
    """The same for the terminal; with `last`, of the last round alone."""
    if last:
        return [f"• {line}" for line in found.words(len(found.rounds) - 1)]
    lines = [f"• {line}" for place in range(len(found.rounds)) for line in found.words(place)]
    stopped = [found.stopped] if found.stopped else []
    return [rounds_table(found), *lines, *stopped, found.kept]


def rounds_table(found: Rounds) -> Table:
    """A row a round: gold, its gains, KL, and how the judge answered."""
    measure = found.rounds[0].measure
    name = LABELS.get(measure, measure)
    header = (
        "round",
        name,
        "over the round before",
        "over the start",
        "fresh prompts, over the start",
        LABELS["kl"],
        "labels: flips, ties",
    )
    rows = [(_name(each, found), *_cells(each)) for each in found.rounds]
    return Table(title="Rounds", header=header, rows=rows)


def _name(each: Round, found: Rounds) -> str:
    return f"{each.number} (kept)" if each.number == found.best else str(each.number)


def _cells(each: Round) -> tuple[str, ...]:
    rates = [each.judge[name].estimate.value if name in each.judge else None for name in ("flips", "ties")]
    return (
        NONE if each.gold is None else interval(each.gold),
        _signed(each.gain(each.measure, "previous")),
        _signed(each.gain(each.measure, "start")),
        _signed(each.gain(each.measure, "start", "fresh")),
        NONE if each.kl is None else interval(each.kl),
        ", ".join(NONE if rate is None else f"{100 * rate:.0f} %" for rate in rates),
    )


def _signed(gain: Estimate | None) -> str:
    return NONE if gain is None else interval(gain, signed=True)
