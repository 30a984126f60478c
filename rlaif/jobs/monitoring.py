"""The monitor of a training as a run has it: its held-out prompts, its gold measure, its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rlaif.config.labelling import PromptSettings
from rlaif.config.monitor import MonitorSettings
from rlaif.config.on_policy import OnPolicyConfig
from rlaif.digest import digest
from rlaif.errors import DataError
from rlaif.io.splits import draw_split, split_of
from rlaif.io.writers import write_rows, write_text
from rlaif.jobs.context import RunContext
from rlaif.jobs.inputs import OWN_SPLIT, passed_over, prompts_digest, read_source
from rlaif.jobs.rewards import check_rewards, check_rubrics, open_reward, rewards_digest
from rlaif.results.monitor import READINGS, MonitorReading, MonitorReport
from rlaif.reward.functions import RewardFunction
from rlaif.stages.monitor import Monitor
from rlaif.types import Prompt

__all__ = ["PURPOSE", "STATISTICS", "held_out", "monitor_digest", "open_monitor", "write_monitor"]

STATISTICS = "statistics.json"
PURPOSE = "monitor"
GOLD = "gold"


def held_out(config: OnPolicyConfig, context: RunContext, trained: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The prompts that the monitor reads, drawn by the stage's seed; none where the settings have no monitor.
    They are put down as the monitor's, so that no other stage takes them.

    Raises:
        DataError: Too few are left that no stage uses.
        RlaifError: The gold measure is not there, or needs rubrics that the prompts have not.
    """
    monitor = config.monitor
    if monitor is None:
        return ()
    check_rewards({GOLD: monitor.gold}, config, context)
    source = monitor.source or config.prompts
    read = read_source(config, source)
    if config.skip_bad_rows:
        context.leave_out(config.name, source, len(read.problems))
    asked = {prompt.fingerprint() for prompt in (*trained, *_used_before(config, context))}
    free = [
        prompt
        for prompt in context.unclaimed(read.items, purpose=PURPOSE)
        if prompt.fingerprint() not in asked
        and (monitor.source is not None or split_of(prompt.fingerprint()) != "eval")
    ]
    drawn = tuple(draw_split(free, monitor.prompts, context.seed(config)))
    if len(drawn) < monitor.prompts:
        raise DataError(
            f"the monitor of {config.name!r} wants {monitor.prompts} prompts, and {len(free)} of the "
            f"{len(read.items)} are free: others are trained on, used by another stage or by "
            "earlier runs (skip), or kept for `evaluate`",
            where=source,
            remedy="name other prompts (monitor.source), lower monitor.prompts, or train on fewer (limit)",
        )
    context.claim_prompts(PURPOSE, drawn)
    check_rubrics({GOLD: monitor.gold}, drawn, config, context)
    return drawn


def _used_before(config: OnPolicyConfig, context: RunContext) -> Iterator[Prompt]:
    """What earlier runs used, in rounds for one: this stage and those before it pass it over (`skip`)."""
    for stage in (*context.before(config), config):
        if isinstance(stage, PromptSettings):
            own_split = OWN_SPLIT.get(stage.stage, "rl")
            yield from passed_over(stage, own_split=own_split, seed=context.seed(stage))


def monitor_digest(
    monitor: MonitorSettings, prompts: Sequence[Prompt], config: OnPolicyConfig, context: RunContext
) -> str:
    """Digest of all that the readings depend on beside the training."""
    settings = monitor.model_dump(mode="json", exclude={GOLD, "prompts", "source"})
    gold = rewards_digest({GOLD: monitor.gold}, config, context)
    return digest([settings, gold, prompts_digest(prompts)])


def open_monitor(
    config: OnPolicyConfig,
    context: RunContext,
    prompts: Sequence[Prompt],
    proxy: RewardFunction,
    on_reading: Callable[[MonitorReading, bool], None],
) -> Monitor | None:
    """The monitor that the settings describe; `None` where they have none.

    Raises:
        RlaifError: As `open_reward`, of the gold measure.
    """
    if config.monitor is None:
        return None
    return Monitor(
        prompts=prompts,
        proxy=proxy,
        gold=open_reward({GOLD: config.monitor.gold}, config, context),
        settings=config.monitor,
        on_reading=on_reading,
    )


def write_monitor(folder: Path, report: MonitorReport) -> dict[str, int]:
    """Write the readings and what they say; the rows by file."""
    rows = [reading.as_row() for reading in report.readings]
    write_rows(folder / READINGS, rows, "jsonl")
    write_text(folder / STATISTICS, json.dumps({"monitor": report.as_dict()}, indent=2) + "\n")
    return {READINGS: len(rows)}
