"""Reports of the training stages, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["ppo_markdown", "reward_markdown", "table"]

WAYS = {"length": "length only", "head": "head on frozen features", "lora": "head and adapter", "judge": "the judge's own labels"}
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


def _scored(scored: Mapping[str, Any]) -> list[str]:
    return [_interval(scored), f"{scored['loss']:.4f}", f"{scored['ece']:.3f}"]


def _interval(each: Mapping[str, Any]) -> str:
    return f"{each['accuracy']:.3f} [{each['low']:.3f}, {each['high']:.3f}]"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)
