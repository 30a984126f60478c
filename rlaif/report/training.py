"""Reports of the training stages, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["best_of_k_markdown", "figures_markdown", "ppo_markdown", "reward_markdown", "table"]

WAYS = {"length": "length only", "head": "head on frozen features", "lora": "head and adapter", "judge": "the judge's own labels"}
KEPT_SHOWN = 10
"""Kept completions that are written out."""
PPO_COLUMNS = ("step", "reward", "kl", "beta", "entropy", "length", "ended", "clip_fraction", "explained_variance")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def reward_markdown(report: Mapping[str, Any]) -> str:
    """What the reward model is worth on held-out pairs, beside what needs no model to know."""
    rows = [
        [WAYS.get(name, name) + (" (kept)" if name == report["kept"] else ""), *_scored(scored)]
        for name, scored in report["held_out"].items()
    ]
    parts = [
        f"# Reward model\n\n{report['pairs']} pairs, {report['held_out_pairs']} held out, {report['dropped']} dropped as too long.\n",
        table(("way of scoring", "accuracy [95 %]", "loss (nats)", "ECE"), rows),
    ]
    for title, key in (("principle", "principles"), ("margin", "margins"), ("length", "lengths")):
        groups = [[each["group"], str(each["pairs"]), _interval(each)] for each in report[key]]
        if groups:
            parts.append(f"## By {title}\n\n" + table((title, "pairs", "accuracy [95 %]"), groups))
    if report["human"]:
        parts.append(f"## On people's labels\n\n{_interval(report['human'])} on {report['human']['pairs']} pairs\n")
    spread = f"{report['reward_mean']:.3f} ± {report['reward_std']:.3f}"
    parts.append(f"Raw reward {spread}; scores are given less this mean, over this spread.\n")
    return "\n".join(parts)


def ppo_markdown(history: Sequence[Mapping[str, Any]]) -> str:
    """The steps of a PPO run, the columns that a reader looks at first."""
    columns = [name for name in PPO_COLUMNS if any(name in step for step in history)]
    rows = [[_cell(step.get(name)) for name in columns] for step in history]
    return "# PPO, step by step\n\n" + table(columns, rows) if rows else "# PPO\n\nNo step was run.\n"


def best_of_k_markdown(rounds: Sequence[Mapping[str, Any]], student: Mapping[str, Any], kept: Sequence[Mapping[str, Any]]) -> str:
    """How the best reward grows with K, what was learned, and a few of the completions kept."""
    parts = ["# Best of K\n"]
    for each in rounds:
        columns = list(each["growth"][0])
        rows = [[_cell(value) for value in (point.values() if isinstance(point, Mapping) else point)] for point in each["growth"]]
        names = columns if isinstance(each["growth"][0], Mapping) else [str(number) for number in range(len(columns))]
        parts.append(f"## Round {each['round']}\n\n" + table(names, rows))
    parts.append(figures_markdown("The policy that was made", student, level=2))
    parts.extend(f"> {' '.join(row['completion'][-1]['content'].split())}\n" for row in kept[:KEPT_SHOWN])
    return "\n".join(parts)


def figures_markdown(title: str, report: Mapping[str, Any], *, level: int = 1) -> str:
    """The plain figures of a report, one a line."""
    rows = [[name.replace("_", " "), _cell(value)] for name, value in report.items() if isinstance(value, int | float | str | None)]
    return f"{'#' * level} {title}\n\n" + table(("figure", "value"), rows)


def _scored(scored: Mapping[str, Any]) -> list[str]:
    return [_interval(scored), f"{scored['loss']:.4f}", f"{scored['ece']:.3f}"]


def _interval(each: Mapping[str, Any]) -> str:
    return f"{each['accuracy']:.3f} [{each['low']:.3f}, {each['high']:.3f}]"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)
