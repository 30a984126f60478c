"""A dry run: what every stage would ask, how many tokens that is, and about how long it takes. No weights are
loaded.

Completions that do not exist yet are counted at their longest. Time is estimated as in `rlaif.jobs.estimate`,
of this machine as busy as it is now.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rlaif.config import Recipe
from rlaif.engines.api.costs import Prices
from rlaif.engines.journaled import NullMemo
from rlaif.jobs.context import RunContext
from rlaif.jobs.planning import StagePlan
from rlaif.jobs.table import make_job
from rlaif.models.open import is_served
from rlaif.progress import NoProgress, Progress

__all__ = ["RunPlan", "plan_recipe"]


@dataclass(frozen=True)
class RunPlan:
    """What a recipe would do, stage by stage."""

    name: str
    stages: tuple[StagePlan, ...]

    @property
    def seconds(self) -> float | None:
        """The estimates together, of the stages that have one; `None` when none has."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return math.fsum(known) if known else None

    @property
    def cost(self) -> float | None:
        """The costs together; `None` when no stage has one."""
        known = [stage.cost for stage in self.stages if stage.cost is not None]
        return math.fsum(known) if known else None


def plan_recipe(recipe: Recipe, progress: Progress | None = None) -> RunPlan:
    """Read the inputs of every stage, and count.

    Raises:
        RlaifError: An input cannot be read, or a tokenizer is not to be had.
    """
    context = RunContext(recipe, memo=NullMemo(), progress=progress or NoProgress())
    jobs = {config.name: make_job(config, context) for config in recipe.stages}
    return RunPlan(
        name=recipe.name, stages=tuple(_priced(job.dry_run(jobs), recipe) for job in jobs.values())
    )


def _priced(plan: StagePlan, recipe: Recipe) -> StagePlan:
    """The plan with what it would cost. A label read from log-probabilities is a token written; votes are
    several."""
    if plan.parts:
        parts = tuple(_priced(part, recipe) for part in plan.parts)
        costs = [part.cost for part in parts if part.cost is not None]
        return replace(plan, parts=parts, cost=math.fsum(costs) if costs else None)
    server = recipe.server_of(plan.model)
    prices = Prices(server.price_input, server.price_output)
    if not is_served(plan.model) or prices == Prices():
        return plan
    return replace(plan, cost=prices.of(plan.read, plan.write + plan.counts.get("questions", 0)))
