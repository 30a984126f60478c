"""What the stages that train a policy share: the adapter while it is trained, and the files it leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rlaif.config.start import StartSettings
from rlaif.io.writers import write_rows, write_text
from rlaif.jobs.context import RunContext
from rlaif.models.cost import peak_memory
from rlaif.models.shared_base import SharedBase
from rlaif.models.start import PREVIOUS
from rlaif.report.training import figures_markdown
from rlaif.results.costs import TrainingCost
from rlaif.rl.learner import POLICY
from rlaif.runs.costs import COST, read_cost, write_cost
from rlaif.stages.dpo import DpoResult
from rlaif.stages.sft import SftResult

__all__ = ["held_role", "policy_models", "trained_adapter", "whole_cost", "write_results"]


@contextmanager
def trained_adapter(base: SharedBase, folder: Path) -> Iterator[None]:
    """Save the adapter that the block trains, and take it off the base again, however the block ends."""
    try:
        yield
        base.save_adapter(POLICY, folder / "adapter")
    finally:
        for role in {POLICY, PREVIOUS} & set(base.roles):
            base.drop_adapter(role)


def write_results(
    result: SftResult | DpoResult, folder: Path, base: SharedBase, *, title: str
) -> dict[str, int]:
    """Write what training took, its steps and its report; rows by file."""
    report = result.report.as_dict()
    write_cost(folder / COST, replace(result.cost, peak_bytes=peak_memory(base.device)).as_dict())
    write_rows(folder / "metrics.jsonl", (step._asdict() for step in result.steps), "jsonl")
    write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    write_text(folder / "samples.md", figures_markdown(title, result.report))
    return {"report.json": 1, "metrics.jsonl": len(result.steps)}


def whole_cost(cost: TrainingCost, config: StartSettings, context: RunContext) -> TrainingCost:
    """What a stage's training took, and all training before it where a policy is trained further. Where that
    is not noted there is no curve, which would begin too early."""
    start = context.start_of(config)
    if start is None:
        return cost
    place = start.folder.parent / COST
    noted = read_cost(place)
    if noted is None:
        context.progress.note(
            f"what training the policy in {start.folder} took is not noted: {COST} is of this stage alone, "
            "without a curve"
        )
        return replace(cost, curve=())
    return cost.after(TrainingCost.from_dict(noted, where=str(place)))


def held_role(config: StartSettings) -> tuple[str, ...]:
    """The frozen adapter that a policy is held to, if it is one."""
    return (PREVIOUS,) if config.reference == "previous" else ()


def policy_models(context: RunContext, named: str | None) -> dict[str, str]:
    return {"policy": f"{context.model(named)}@{context.bases.get(named).identity}"}
