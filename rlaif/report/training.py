"""Reports of the training stages, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlaif.report.markdown import quoted, table

__all__ = [
    "best_of_k_markdown",
    "figures",
    "figures_markdown",
    "growth",
    "ppo_markdown",
    "ppo_steps",
    "reward_markdown",
    "reward_ways",
    "Rows",
    "step_line",
]

WAYS = {
    "length": "length only",
    "head": "head on frozen features",
    "lora": "head and adapter",
    "judge": "the judge's own labels",
}
KEPT_SHOWN = 10
"""Kept completions that are written out."""
PPO_COLUMNS = (
    "step",
    "reward",
    "kl",
    "beta",
    "entropy",
    "length",
    "ended",
    "clip_fraction",
    "explained_variance",
)


class Rows(NamedTuple):
    """A table: the names of its columns, and rows of as many cells."""

    header: Sequence[str]
    cells: Sequence[Sequence[str]]


def reward_markdown(report: Mapping[str, Any]) -> str:
    """What the reward model is worth on held-out pairs, beside what needs no model to know."""
    parts = [
        f"# Reward model\n\n{report['pairs']} pairs, {report['held_out_pairs']} held out, "
        f"{report['dropped']} dropped as too long.\n",
        table(*reward_ways(report)),
    ]
    for title, key in (("principle", "principles"), ("margin", "margins"), ("length", "lengths")):
        groups = [[each["group"], str(each["pairs"]), _interval(each)] for each in report[key]]
        if groups:
            parts.append(f"## By {title}\n\n" + table((title, "pairs", "accuracy [95 %]"), groups))
    if report["human"]:
        parts.append(
            f"## On people's labels\n\n{_interval(report['human'])} on {report['human']['pairs']} pairs\n"
        )
    spread = f"{report['reward_mean']:z.3f} ± {report['reward_std']:z.3f}"
    parts.append(f"Raw reward {spread}; scores are given less this mean, over this spread.\n")
    return "\n".join(parts)


def reward_ways(report: Mapping[str, Any]) -> Rows:
    """Every way of scoring, on held-out pairs."""
    rows = [
        [WAYS.get(name, name) + (" (kept)" if name == report["kept"] else ""), *_scored(scored)]
        for name, scored in report["held_out"].items()
    ]
    return Rows(("way of scoring", "accuracy [95 %]", "loss (nats)", "ECE"), rows)


def ppo_markdown(history: Sequence[Mapping[str, Any]]) -> str:
    """The steps of a PPO run."""
    return (
        "# PPO, step by step\n\n" + table(*ppo_steps(history)) if history else "# PPO\n\nNo step was run.\n"
    )


def ppo_steps(history: Sequence[Mapping[str, Any]]) -> Rows:
    """Steps of a PPO run, the columns that a reader looks at first."""
    columns = [name for name in PPO_COLUMNS if any(name in step for step in history)]
    return Rows(columns, [[_cell(_numbered(step, name)) for name in columns] for step in history])


def _numbered(step: Mapping[str, Any], name: str) -> Any:
    """A figure of a step; for a reader steps count from 1, as in `step_line`, while `metrics.jsonl` has them
    from 0."""
    return step["step"] + 1 if name == "step" else step.get(name)


def step_line(step: Mapping[str, Any], steps: int) -> str:
    """A step of PPO in one line: `step 3 of 14  reward 0.412  kl 1.204  …  12.3 s`."""
    figures = [
        f"{name.replace('_', ' ')} {_cell(step[name])}"
        for name in PPO_COLUMNS[1:]
        if step.get(name) is not None
    ]
    seconds = sum(value for name, value in step.items() if name.startswith("seconds/"))
    return "  ".join([f"step {step['step'] + 1} of {steps}", *figures, f"{seconds:z.1f} s"])


def best_of_k_markdown(
    rounds: Sequence[Mapping[str, Any]], student: Mapping[str, Any], kept: Sequence[Mapping[str, Any]]
) -> str:
    """How the best reward grows with K, what was learned, and a few of the completions kept."""
    parts = ["# Best of K\n"]
    parts += [f"## Round {each['round']}\n\n" + table(*growth(each)) for each in rounds]
    parts.append(figures_markdown("The policy that was made", student, level=2))
    parts.extend(quoted(" ".join(row["completion"][-1]["content"].split())) for row in kept[:KEPT_SHOWN])
    return "\n".join(parts)


def growth(round: Mapping[str, Any]) -> Rows:
    """How the best reward of a round grows with K."""
    header = ("K", "reward of the best", "standard error", "bound on the KL (nats)")
    return Rows(
        header,
        [[_cell(point[name]) for name in ("k", "reward", "error", "kl_bound")] for point in round["growth"]],
    )


def figures_markdown(title: str, report: Mapping[str, Any], *, level: int = 1) -> str:
    """The plain figures of a report, one a line."""
    return f"{'#' * level} {title}\n\n" + table(*figures(report))


def figures(report: Mapping[str, Any]) -> Rows:
    """The plain figures of a report."""
    plain = {name: value for name, value in report.items() if isinstance(value, int | float | str | None)}
    return Rows(
        ("figure", "value"), [[name.replace("_", " "), _cell(value)] for name, value in plain.items()]
    )


def _scored(scored: Mapping[str, Any]) -> list[str]:
    return [_interval(scored), f"{scored['loss']:.4f}", f"{scored['ece']:z.3f}"]


def _interval(each: Mapping[str, Any]) -> str:
    return f"{each['accuracy']:z.3f} [{each['low']:z.3f}, {each['high']:z.3f}]"


def _cell(value: Any) -> str:
    return f"{value:z.3f}" if isinstance(value, float) else "-" if value is None else str(value)
