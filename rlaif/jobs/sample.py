"""The stage `sample`: prompts in, K completions each out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rlaif.config import SampleConfig
from rlaif.digest import digest
from rlaif.engines.base import Engine
from rlaif.io.writers import write_rows, write_text
from rlaif.jobs.base import (
    BUILTIN_LIMIT,
    TO_READ,
    AnyJob,
    Job,
    Outcome,
    settings_digest,
    transient_among,
    write_refused,
)
from rlaif.jobs.context import RunContext
from rlaif.jobs.directives import steered_prompts
from rlaif.jobs.inputs import Completions, load_prompts, prompts_digest, with_others
from rlaif.jobs.lengths import Adapters, Device, Lengths, sampled_work
from rlaif.jobs.moderators import check_moderator, choose_prompts, moderator_digest, open_moderator
from rlaif.jobs.planning import PLACEHOLDER, StagePlan, counter_of, estimated_seconds, tokens_of
from rlaif.models.memory import StageWork
from rlaif.models.policy_files import find_policy
from rlaif.progress import NoProgress, Progress
from rlaif.report.samples import completions_markdown, spread
from rlaif.results.rows import columns_for_judges, completion_row, dropped_row
from rlaif.stages.rollouts import served_note
from rlaif.stages.sample import check_refused_rate, sample
from rlaif.types import Completion, Prompt

__all__ = ["SampleJob", "sampled_prompts"]


DROPPED = "dropped.jsonl"
"""Prompts that a moderator did not let pass."""


class _Dropped(NamedTuple):
    """Counts and rows, for the manifest."""

    counts: dict[str, int]
    rows: dict[str, int]


def sampled_prompts(
    config: SampleConfig,
    *,
    seed: int,
    progress: Progress | None = None,
    left_out: Callable[[str, int], None] | None = None,
) -> tuple[Prompt, ...]:
    """The prompts of a sample stage, or of its shard, and those of further files; see `load_prompts`."""
    drawn = load_prompts(
        config,
        own_split="label",
        own_limit=BUILTIN_LIMIT,
        seed=seed,
        progress=progress or NoProgress(),
        left_out=left_out,
        shard=config.shard,
    )
    return with_others(drawn, config.also, config, progress or NoProgress())


class SampleJob(Job[SampleConfig]):
    """Prompts in, K completions each out: `completions.jsonl`."""

    def __init__(self, config: SampleConfig, context: RunContext) -> None:
        super().__init__(config, context)
        self.prompts: tuple[Prompt, ...] = sampled_prompts(
            config,
            seed=context.seed(config),
            progress=context.progress,
            left_out=partial(context.leave_out, config.name),
        )
        self.policy = context.policy(config.policy)
        self._weights = context.recipe.weights_of(context.model(config.policy))
        if config.rollout is not None:
            context.bases.check_servable(self.policy)
        if config.moderation is not None:
            check_moderator(config.moderation.path)
        context.claim_prompts("label", self.prompts)
        self.prompts = steered_prompts(config.directives, self.prompts, config, context, asked=False)
        context.sampled[config.name] = self.prompts

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        card = self._engine().card
        return {
            "settings": settings_digest(
                self.config,
                "policy",
                "prompts",
                "prompt_column",
                "context_column",
                "split",
                "limit",
                "shard",
                "directives",
                "rollout",
                "also",
                "moderation",
            ),
            "prompts": prompts_digest(self.prompts),
            "policy": digest([self.context.policy_name(self.config.policy), card.identity()]),
            "templates": self.context.library.digest("policy"),
            "seed": str(self.context.seed(self.config)),
            **self._moderated_by(),
        }

    def _moderated_by(self) -> dict[str, str]:
        """Digest of the moderator, where there is one."""
        chosen = self.config.moderation
        return {} if chosen is None else {"moderation": f"{moderator_digest(chosen.path)}, {chosen.drop}"}

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"policy": self._engine().card.label}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        prompts, dropped = self._chosen(folder)
        samples = sample(
            prompts,
            policy=self._engine(),
            library=self.context.library,
            config=self.config,
            seed=self.context.seed(self.config),
            progress=self.context.progress,
        )
        reasons = [reason for _, reason in samples.refused]
        check_refused_rate(reasons, len(prompts) * self.config.k, self.config.max_refused)
        by_id = {prompt.id: prompt for prompt in self.prompts}
        columns = columns_for_judges(self.prompts)
        rows = [completion_row(each, by_id[each.prompt_id], columns) for each in samples.completions]
        written = {"completions.jsonl": write_rows(folder / "completions.jsonl", rows, "jsonl").rows}
        written |= write_refused(folder, samples.refused) | dropped.rows
        rollout = self.config.rollout
        note = served_note(rollout, {}) if rollout else ""
        write_text(folder / "samples.md", completions_markdown(spread(rows, TO_READ), note=note))
        return Outcome(
            counts={"prompts": len(prompts), **dropped.counts, **samples.counts()},
            rows=written,
            gaps=transient_among(reasons),
        )

    def _chosen(self, folder: Path) -> tuple[Sequence[Prompt], _Dropped]:
        """The prompts that the moderator lets pass; the others are written to `dropped.jsonl`."""
        settings = self.config.moderation
        if settings is None:
            return self.prompts, _Dropped({}, {})
        moderator = open_moderator(settings.path, self.context)
        chosen = choose_prompts(self.prompts, settings, moderator, self.context)
        rows = [dropped_row(prompt, scores, moderator.thresholds) for prompt, scores in chosen.dropped]
        written = {DROPPED: write_rows(folder / DROPPED, rows, "jsonl").rows} if rows else {}
        counts = {"prompts_dropped": len(rows), "prompts_not_scored": chosen.unscored}
        return chosen.kept, _Dropped(counts, written)

    def _engine(self) -> Engine:
        """Who answers: this process, or servers."""
        context, config = self.context, self.config
        if config.rollout is None:
            return context.bases.policy(self.policy)
        return context.bases.served_policy(config.policy, config.rollout, context.work_folder(config.name))

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        config, context, counter = self.config, self.context, counter_of(self._weights)
        asked = [context.library.policy(prompt) for prompt in self.prompts]
        read, write = tokens_of(counter, asked), len(asked) * config.k * config.max_new_tokens
        return StagePlan(
            name=config.name,
            kind=config.stage,
            model=context.model(config.policy),
            read=read,
            write=write,
            seconds=None if config.rollout else estimated_seconds(self._weights, context, read, write),
            counts={"prompts": len(asked), "completions": len(asked) * config.k},
            example={"policy": counter.render(asked[0])},
        )

    def imagined(self) -> Completions:
        """Completions as long as they may get, for counting: they do not exist before the run."""
        text = PLACEHOLDER * self.config.max_new_tokens
        completions = [
            Completion(
                id=f"{prompt.id}/{index}",
                prompt_id=prompt.id,
                index=index,
                text=f"{text}{index}",
                finish="length",
                model=self.policy,
            )
            for prompt in self.prompts
            for index in range(self.config.k)
        ]
        return Completions(prompts=self.prompts, completions=tuple(completions), given={})

    def adapters(self) -> Adapters:
        """See `Job`."""
        named, found = self.config.policy, super().adapters()
        is_adapter = named is not None and (
            self.context.recipe.policy_stage(named) is not None or find_policy(self.policy) is not None
        )
        return found._replace(read=(*found.read, str(named))) if is_adapter else found

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        config = self.config
        if config.rollout is not None:
            return None
        rows = min(device.rows, config.k * lengths.count(config.name))
        return sampled_work(rows, lengths.prompts(config.name), config.max_new_tokens)
