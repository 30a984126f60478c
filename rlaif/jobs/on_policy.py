"""What the stages `ppo` and `grpo` have in common: prompts and a reward in, a policy out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rlaif.config.on_policy import OnPolicyConfig
from rlaif.errors import ModelError
from rlaif.io.tables import read_table
from rlaif.io.writers import write_rows, write_text
from rlaif.jobs.base import AnyJob, Job, Outcome, Passes, settings_digest, write_refused
from rlaif.jobs.cards import reward_judges, write_card
from rlaif.jobs.context import RunContext
from rlaif.jobs.inputs import load_prompts, prompts_digest
from rlaif.jobs.lengths import Adapters, Device, Lengths, trained_sampling
from rlaif.jobs.planning import StagePlan
from rlaif.jobs.rewards import check_rewards, check_rubrics, open_reward, rewards_digest, with_curve_named
from rlaif.jobs.tracking import Trackers, check_trackers
from rlaif.models.cost import peak_memory
from rlaif.models.memory import StageWork
from rlaif.report.shown import Shown
from rlaif.report.training import step_line, step_table, steps_markdown
from rlaif.reward.functions import RewardFunction
from rlaif.rl.learner import POLICY, VALUE
from rlaif.rl.rollout import rows_side_by_side
from rlaif.rl.step import StepReport
from rlaif.runs.costs import COST, write_cost
from rlaif.runs.manifest import Manifest
from rlaif.runs.steps import StepLog
from rlaif.stages.on_policy import OnPolicyResult, on_policy_cost
from rlaif.text import count_of

__all__ = ["SAMPLES_KEPT", "OnPolicyJob", "Training"]

SAMPLES_KEPT = 4
"""Completions of each step that are written out, to read how the policy changes."""

Config = TypeVar("Config", bound=OnPolicyConfig)


class Training(NamedTuple):
    """What a training is given beside prompts, base, reward and settings."""

    on_step: Callable[[Mapping[str, Any]], None]
    on_rollout: Callable[[StepReport], None]
    checkpoint_folder: Path


class OnPolicyJob(Job[Config]):
    """Prompts and a reward in, a policy out: `adapter/`, `metrics.jsonl`, `completions.jsonl`."""

    @abstractmethod
    def train(self, reward: RewardFunction, training: Training) -> OnPolicyResult:
        """Train the adapter `policy` of the resident base."""

    def __init__(self, config: Config, context: RunContext) -> None:
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
        check_rubrics(config.reward, self.prompts, config, context)

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
                "rollout",
            ),
            "prompts": prompts_digest(self.prompts),
            "base": self.context.bases.get().identity,
            "rewards": rewards_digest(self.config.reward, self.config, self.context),
            "templates": self.context.library.digest("policy"),
            "seed": str(self.context.seed(self.config)),
            # Which server samples changes nothing that is meant; that one does, and the cap, do.
            **({"rollout": f"served, cap {rollout.cap:g}"} if (rollout := self.config.rollout) else {}),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"policy": f"{self.context.recipe.model}@{self.context.bases.get().identity}"}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, base = self.context, self.context.bases.get()
        reward = open_reward(self.config.reward, self.config, context)
        context.progress.begin(
            f"{self.method}, {count_of(self.config.steps, 'step')} of {self.config.episodes} episodes",
            self.config.steps,
        )
        work = context.claim_work(self.config.name, self.key_parts())
        metrics, samples = StepLog(work / "metrics.jsonl"), StepLog(work / "completions.jsonl")
        try:
            with self._trackers() as trackers:
                result = self.train(
                    reward,
                    Training(
                        on_step=lambda step: self._told(step, metrics, trackers),
                        on_rollout=lambda report: _keep_samples(report, samples),
                        checkpoint_folder=work,
                    ),
                )
            if not result.steps:
                raise ModelError(
                    f"{self.method} ended before its first update: {result.stopped}",
                    where=self.config.name,
                    remedy="lower the learning rate, raise max_kl or the KL penalty, or look at the reward "
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
            for role in {POLICY, VALUE} & set(base.roles):
                base.drop_adapter(role)
        if result.stopped:
            context.progress.note(f"{self.config.name}: stopped early at {result.stopped}")
        cost = replace(
            with_curve_named(on_policy_cost(metrics.rows), self.config, context),
            peak_bytes=peak_memory(base.device),
        )
        write_cost(folder / COST, cost.as_dict())
        write_text(folder / "samples.md", steps_markdown(metrics.rows, title=self.method))
        write_rows(folder / "metrics.jsonl", metrics.rows, "jsonl")
        write_rows(folder / "completions.jsonl", samples.rows, "jsonl")
        counts = {
            "prompts": len(self.prompts),
            "refused": len(result.refused),
            "steps": result.steps,
            "episodes": sum(step["episodes"] for step in metrics.rows),
            "tokens": cost.tokens,
        }
        rows = {"metrics.jsonl": len(metrics.rows), "completions.jsonl": len(samples.rows)}
        rows |= write_refused(folder, result.refused)
        if result.refused:
            first = ": ".join(result.refused[0])
            context.progress.note(
                f"{self.config.name}: {count_of(len(result.refused), 'prompt')} left out, the first: {first}"
            )
        return Outcome(counts=counts, rows=rows)

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
        return [step_table([steps[0], *steps[1:][-1:]] if steps else [], title="first and last step")]

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        config = self.config
        episodes = config.steps * config.episodes
        return self.sampling_plan(
            {"steps": config.steps, "episodes": episodes},
            read=episodes // config.samples_per_prompt,
            completions=episodes,
            new_tokens=config.max_new_tokens,
            served=config.rollout is not None,
            at_once=config.episodes,
            together=config.samples_per_prompt,
            passes=Passes(read=2, learned=config.epochs),  # the reward and the reference, then the updates
        )

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        config = self.config
        micro = min(config.micro_batch, -(-config.episodes // config.minibatches))
        return trained_sampling(
            config,
            lengths,
            device,
            rows=min(-(-config.episodes // device.ranks), rows_side_by_side(device.kind)),
            micro=micro,
        )

    def adapters(self) -> Adapters:
        """See `Job`."""
        return Adapters((POLICY,), tuple(self.context.reward_adapters(self.config)), self.config.lora_rank)


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
