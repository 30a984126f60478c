"""The model card that a training stage leaves in its adapter's folder."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlaif.audit.grade import GRADES
from rlaif.config.labelling import BaseStage
from rlaif.config.rewards import DirectivesPart, JudgePart, ModelPart, RewardPart, RubricPart
from rlaif.io.tables import read_table
from rlaif.io.writers import write_text
from rlaif.jobs.base import AnyJob
from rlaif.jobs.context import RunContext
from rlaif.jobs.merging import CARD, tuned_before
from rlaif.models.alias import ALIASES
from rlaif.models.probe_files import find_judge
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.files import find_moderator
from rlaif.report.model_card import ModelCard, card_markdown
from rlaif.reward.files import find_reward_model, reward_note

__all__ = ["judges_of", "model_folder", "reward_judges", "write_card"]

SOURCES = ("prompts", "preferences", "human labels", "rows", "rewards", "templates")
"""Parts of a stage's key that are digests of what it learned from."""
SILENT = ("stage", "name", "seed", "limit", "skip_bad_rows", "prompt_column", "context_column")


def write_card(
    folder: Path,
    job: AnyJob,
    *,
    base: SharedBase,
    parts: Mapping[str, str],
    judge: str = "",
    results: Mapping[str, Any],
    adapter: bool = True,
    silent: Collection[str] = (),
) -> None:
    """Write `README.md` into the adapter's folder.

    Args:
        parts: Of the stage's key; its data digests go into the card.
        results: Figures that two runs with the same outcome share.
        adapter: Whether the folder is a LoRA adapter.
        silent: Settings that did not act.

    Raises:
        RunError: The disk refuses.
    """
    config, context, alias = job.config, job.context, ALIASES.get(base.name)
    settings = config.model_dump(mode="json", exclude={*SILENT, *silent})
    card = ModelCard(
        name=f"{context.recipe.name}: {config.name}",
        kind=config.stage,
        method=job.method,
        loading=job.loading,
        base=alias.hub if alias else base.name,
        revision=base.revision,
        constitution=(context.constitution.name, context.constitution.digest),
        judge=judge,
        first=tuned_before(config, context.recipe),
        data={name: parts[name] for name in SOURCES if parts.get(name)},
        settings={**settings, "seed": context.seed(config)},
        results=results,
        adapter=adapter,
    )
    write_text(folder / CARD, card_markdown(card))


def model_folder(folder: Path) -> Path | None:
    """The folder of the reward model, the trained judge or the moderator that `folder` is, or that its stage
    left in it, if there is one."""
    return find_reward_model(folder) or find_judge(str(folder)) or find_moderator(folder)


def judges_of(files: Iterable[str]) -> str:
    """Who labelled the preferences, how, and how an audit graded it: what the first row of each file says."""
    found: dict[str, None] = {}
    for file in files:
        row = next((row.values for row in read_table(file).rows), {})
        if row.get("judge"):
            grade = f", audit: {row['audit']}" if row.get("audit") in GRADES else ""
            found[f"{row['judge']}, {row.get('protocol') or 'unknown protocol'}{grade}"] = None
    return "; ".join(found)


def reward_judges(parts: Mapping[str, RewardPart], config: BaseStage, context: RunContext) -> str:
    """The judges behind a reward: those who labelled for its models, and those who are asked directly."""
    found: dict[str, None] = {}
    for part in parts.values():
        if isinstance(part, ModelPart):
            _, folder = context.reward_source(config, part.reward)
            found[reward_note(folder).get("judge", "")] = None
        if isinstance(part, JudgePart | RubricPart | DirectivesPart):
            found[f"{context.engines.card(context.model(part.judge)).label}, asked directly"] = None
    return "; ".join(name for name in found if name)
