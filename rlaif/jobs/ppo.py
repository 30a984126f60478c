"""The stage `ppo`: prompts and a reward in, a policy out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.config.ppo import PpoConfig
from rlaif.errors import ModelError
from rlaif.io.tables import read_table
from rlaif.io.writers import write_rows, write_text
from rlaif.jobs.base import Job, Outcome, settings_digest, write_refused
from rlaif.jobs.cards import reward_judges, write_card
from rlaif.jobs.context import RunContext
from rlaif.jobs.inputs import load_prompts, prompts_digest
from rlaif.jobs.learned_rows import read_demonstrations, skipper
from rlaif.jobs.lengths import SIDE_BY_SIDE, Adapters, Device, Lengths, trained_sampling
from rlaif.jobs.rewards import check_rewards, open_reward, rewards_digest, with_curve_named
from rlaif.jobs.tracking import Trackers, check_trackers
from rlaif.models.cost import peak_memory
from rlaif.models.memory import StageWork
from rlaif.report.shown import Shown
from rlaif.report.training import ppo_markdown, ppo_steps, step_line
from rlaif.rl.ppo import StepReport
from rlaif.runs.costs import COST, write_cost
from rlaif.runs.manifest import Manifest
from rlaif.runs.steps import StepLog
from rlaif.stages.ppo import POLICY, PtxRow, ppo_cost, ptx_rows, train_ppo
from rlaif.types import Message

__all__ = ["PpoJob", "SAMPLES_KEPT"]

SAMPLES_KEPT = 4
"""Completions of each PPO step that are written out, to read how the policy changes."""


class PpoJob(Job[PpoConfig]):
    """Prompts and a reward in, a policy out: `adapter/`, `metrics.jsonl`, `completions.jsonl`."""

    method = "PPO"

    def __init__(self, config: PpoConfig, context: RunContext) -> None:
        super().__init__(config, context)
        check_rewards(config.reward, config, context)
        check_trackers(config.trackers)
        self.prompts = load_prompts(
            config,
            own_split="rl",
            seed=context.seed(config),
            progress=context.progress,
            left_out=partial(context.leave_out, config.name),
        )
        context.claim_prompts("rl", self.prompts)

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(
                self.config,
                "prompts",
                "prompt_column",
                "context_column",
                "split",
                "limit",
                "trackers",
                "checkpoint_every",
                "max_refused",
            ),
            "prompts": prompts_digest(self.prompts),
            "base": self.context.bases.get().identity,
            "rewards": rewards_digest(self.config.reward, self.config, self.context),
            "templates": self.context.library.digest("policy"),
            "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"policy": f"{self.context.recipe.model}@{self.context.bases.get().identity}"}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, base = self.context, self.context.bases.get()
        reward = open_reward(self.config.reward, self.config, context)
        context.progress.begin(
            f"PPO, {self.config.steps} steps of {self.config.episodes} episodes", self.config.steps
        )
        work = context.claim_work(self.config.name, self.key_parts())
        metrics, samples = StepLog(work / "metrics.jsonl"), StepLog(work / "completions.jsonl")
        try:
            with self._trackers() as trackers:
                result = train_ppo(
                    self.prompts,
                    base=base,
                    reward=reward,
                    config=self.config,
                    seed=context.seed(self.config),
                    messages=context.library.policy,
                    ptx=self._ptx(),
                    on_step=lambda step: self._told(step, metrics, trackers),
                    on_rollout=lambda report: _keep_samples(report, samples),
                    checkpoint_folder=work,
                )
            if not result.steps:
                raise ModelError(
                    f"PPO ended before its first update: {result.stopped}",
                    where=self.config.name,
                    remedy="lower the learning rate, raise kl_limit or the KL penalty, or look at the reward "
                    "(samples, metrics)",
                )
            base.save_adapter(POLICY, folder / "adapter")
            write_card(
                folder / "adapter",
                self,
                base=base,
                parts=self.key_parts(),
                results=_last(metrics.rows),
                judge=reward_judges(self.config.reward, self.config, context),
            )
        finally:
            if POLICY in base.roles:
                base.drop_adapter(POLICY)
        if result.stopped:
            context.progress.note(f"{self.config.name}: stopped early at {result.stopped}")
        cost = replace(
            with_curve_named(ppo_cost(metrics.rows), self.config, context),
            peak_bytes=peak_memory(base.device),
        )
        write_cost(folder / COST, cost.as_dict())
        write_text(folder / "samples.md", ppo_markdown(metrics.rows))
        write_rows(folder / "metrics.jsonl", metrics.rows, "jsonl")
        write_rows(folder / "completions.jsonl", samples.rows, "jsonl")
        episodes = result.steps * self.config.episodes
        counts = {
            "prompts": len(self.prompts),
            "refused": len(result.refused),
            "steps": result.steps,
            "episodes": episodes,
            "tokens": cost.tokens,
        }
        rows = {"metrics.jsonl": len(metrics.rows), "completions.jsonl": len(samples.rows)}
        rows |= write_refused(folder, result.refused)
        if result.refused:
            first = ": ".join(result.refused[0])
            context.progress.note(
                f"{self.config.name}: {len(result.refused)} prompts left out, the first: {first}"
            )
        return Outcome(counts=counts, rows=rows)

    def _ptx(self) -> Sequence[PtxRow]:
        """The rows of PPO-ptx, if the settings ask for them: of a revise stage, or a file."""
        if self.config.ptx is None:
            return ()
        named = self.config.ptx.data
        source = self.context.folders[named] / "sft.jsonl" if named in self.context.folders else named
        skipped = skipper(self.config, str(source), self.context)
        rows = read_demonstrations(str(source), skipped=skipped, note=self.context.progress.note)
        return ptx_rows(self.context.bases.get(), [_conversation(row) for row in rows])

    def _trackers(self) -> Trackers:
        """Open for the run; what they write stays in the run's folder, beside the stages."""
        config = self.config.model_dump(mode="json")
        return Trackers(
            self.config.trackers,
            project=self.context.recipe.name,
            folder=self.context.path / "tracking",
            config=config,
        )

    def _told(self, step: Mapping[str, Any], metrics: StepLog, trackers: Trackers) -> None:
        metrics.add(step)
        trackers.log(step)
        self.context.progress.note(f"{self.config.name}: {step_line(step, self.config.steps)}")
        self.context.progress.advance()

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        steps = [row.values for row in read_table(folder / "metrics.jsonl").rows]
        return [ppo_steps([steps[0], *steps[1:][-1:]] if steps else [], title="first and last step")]

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        config = self.config
        micro = min(config.micro_batch, -(-config.episodes // config.minibatches))
        return trained_sampling(config, lengths, device, rows=min(config.episodes, SIDE_BY_SIDE), micro=micro)

    def adapters(self) -> Adapters:
        """See `Job`."""
        value = ("value",) if self.config.value == "adapter" else ()
        return Adapters(
            ("policy", *value), tuple(self.context.reward_adapters(self.config)), self.config.lora_rank
        )


def _keep_samples(report: StepReport, samples: StepLog) -> None:
    for row, score in list(zip(report.episodes.rows, report.scores.total, strict=True))[:SAMPLES_KEPT]:
        samples.add(
            {
                "step": report.metrics["step"],
                "prompt_id": row.prompt.id,
                "prompt": [message.as_dict() for message in row.prompt.messages],
                "completion": row.completion.text,
                "score": score,
            }
        )


def _last(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of the last step that do not depend on the clock."""
    if not history:
        return {}
    return {name: value for name, value in history[-1].items() if not name.startswith("seconds/")}


def _conversation(row: Mapping[str, Any]) -> list[Message]:
    """A demonstration as one conversation."""
    return [
        Message(role=turn["role"], content=turn["content"]) for turn in (*row["prompt"], *row["completion"])
    ]
