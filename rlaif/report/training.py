"""Reports of the training stages, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rlaif.report.markdown import quoted, table
from rlaif.report.shown import Shown, Table
from rlaif.results.best_of_k import BestOfKReport, RoundReport
from rlaif.results.reward import Breakdown, RewardReport, Scored

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "best_of_k_markdown",
    "figures",
    "figures_markdown",
    "growth_table",
    "reward_markdown",
    "reward_shown",
    "reward_ways",
    "step_line",
    "step_table",
    "steps_markdown",
]

WAYS = {
    "length": "length only",
    "head": "head on frozen features",
    "lora": "head and adapter",
    "judge": "the judge's own labels",
}
KEPT_SHOWN = 10
"""Kept completions that are written out."""
STEP_COLUMNS = (
    "step",
    "reward",
    "kl",
    "beta",
    "entropy",
    "length",
    "ended",
    "clip_fraction",
    "explained_variance",
    "equal_groups",
)


def reward_markdown(report: RewardReport) -> str:
    """What the reward model is worth on held-out pairs, beside what needs no model to know."""
    parts = [
        f"# Reward model\n\n{report.pairs} pairs, {report.held_out_pairs} held out, "
        f"{report.dropped} dropped as too long.\n",
        _markdown(reward_ways(report)),
    ]
    groups = {"principle": report.principles, "margin": report.margins, "length": report.lengths}
    for title, found in groups.items():
        rows = [[each.group, str(each.pairs), _interval(each)] for each in found]
        if rows:
            parts.append(f"## By {title}\n\n" + table((title, "pairs", "accuracy [95 %]"), rows))
    if report.human:
        parts.append(f"## On human labels\n\n{_interval(report.human)} on {report.human.pairs} pairs\n")
    spread = f"{report.reward_mean:z.3f} ± {report.reward_std:z.3f}"
    parts.append(f"Raw reward {spread}; scores are given less this mean, over this spread.\n")
    return "\n".join(parts)


def reward_shown(report: RewardReport) -> list[Shown]:
    """The same for the terminal: the ways of scoring, and the accuracy on human labels if there are any."""
    human = report.human
    return [
        reward_ways(report),
        *([f"on human labels: {human.accuracy:.3f} of {human.pairs} pairs"] if human else []),
    ]


def reward_ways(report: RewardReport) -> Table:
    """Every way of scoring, on held-out pairs."""
    rows = [
        [WAYS.get(name, name) + (" (kept)" if name == report.kept else ""), *_scored(scored)]
        for name, scored in report.held_out.items()
    ]
    title = f"on {report.held_out_pairs} held-out pairs"
    return Table(title, ("way of scoring", "accuracy [95 %]", "loss (nats)", "ECE"), rows)


def steps_markdown(history: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """The steps of a run of PPO or GRPO."""
    if not history:
        return f"# {title}\n\nNo step was run.\n"
    return f"# {title}, step by step\n\n" + _markdown(step_table(history))


def step_table(history: Sequence[Mapping[str, Any]], *, title: str = "") -> Table:
    """Steps of PPO or GRPO, the columns that a reader looks at first."""
    columns = [name for name in STEP_COLUMNS if any(name in step for step in history)]
    return Table(title, columns, [[_cell(_numbered(step, name)) for name in columns] for step in history])


def _numbered(step: Mapping[str, Any], name: str) -> Any:
    """A figure of a step; for a reader steps count from 1, as in `step_line`, while `metrics.jsonl` has them
    from 0."""
    return step["step"] + 1 if name == "step" else step.get(name)


def step_line(step: Mapping[str, Any], steps: int) -> str:
    """A step of PPO or GRPO in one line: `step 3 of 14  reward 0.412  kl 1.204  …  12.3 s`."""
    figures = [
        f"{name.replace('_', ' ')} {_cell(step[name])}"
        for name in STEP_COLUMNS[1:]
        if step.get(name) is not None
    ]
    seconds = sum(value for name, value in step.items() if name.startswith("seconds/"))
    return "  ".join([f"step {step['step'] + 1} of {steps}", *figures, f"{seconds:z.1f} s"])


def best_of_k_markdown(report: BestOfKReport, kept: Sequence[Mapping[str, Any]]) -> str:
    """How the best reward grows with K, what was learned, and a few of the completions kept."""
    parts = ["# Best of K\n", *(f"{note}\n" for note in report.notes)]
    parts += [f"## Round {each.round}\n\n" + _markdown(growth_table(each)) for each in report.rounds]
    parts.append(figures_markdown("The policy that was made", report.student, level=2))
    parts.extend(quoted(" ".join(row["completion"][-1]["content"].split())) for row in kept[:KEPT_SHOWN])
    return "\n".join(parts)


def growth_table(round: RoundReport, *, title: str = "") -> Table:
    """How the best reward of a round grows with K."""
    header = ("K", "reward of the best", "standard error", "bound on the KL (nats)")
    return Table(title, header, [[_cell(value) for value in point] for point in round.growth])


def figures_markdown(title: str, report: DataclassInstance, *, level: int = 1) -> str:
    """The plain figures of a report, one per line."""
    return f"{'#' * level} {title}\n\n" + _markdown(figures(report))


def figures(report: DataclassInstance, *, title: str = "") -> Table:
    """The plain figures of a report."""
    plain = {
        name: value for name, value in asdict(report).items() if isinstance(value, int | float | str | None)
    }
    return Table(
        title, ("figure", "value"), [[name.replace("_", " "), _cell(value)] for name, value in plain.items()]
    )


def _markdown(shown: Table) -> str:
    return table(shown.header, shown.rows)


def _scored(scored: Scored) -> list[str]:
    return [_interval(scored), f"{scored.loss:.4f}", f"{scored.ece:z.3f}"]


def _interval(each: Scored | Breakdown) -> str:
    return f"{each.accuracy:z.3f} [{each.low:z.3f}, {each.high:z.3f}]"


def _cell(value: Any) -> str:
    return f"{value:z.3f}" if isinstance(value, float) else "-" if value is None else str(value)
