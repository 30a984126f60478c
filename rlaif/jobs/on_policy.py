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
from rlaif.jobs.adapters import held_role, whole_cost
from rlaif.jobs.base import AnyJob, Job, Outcome, Passes, read_result, settings_digest, write_refused
from rlaif.jobs.cards import reward_judges, write_card
from rlaif.jobs.context import RunContext
from rlaif.jobs.directives import steered_prompts
from rlaif.jobs.inputs import load_prompts, prompts_digest
from rlaif.jobs.lengths import Adapters, Device, Lengths, trained_sampling
from rlaif.jobs.monitoring import STATISTICS, held_out, monitor_digest, open_monitor, write_monitor
from rlaif.jobs.planning import StagePlan
from rlaif.jobs.rewards import check_rewards, check_rubrics, open_reward, rewards_digest, with_curve_named
from rlaif.jobs.tracking import Trackers, check_trackers
from rlaif.models.cost import peak_memory
from rlaif.models.memory import StageWork
from rlaif.models.start import PREVIOUS, Start
from rlaif.report.monitor import monitor_markdown, monitor_shown, reading_line
from rlaif.report.shown import Shown
from rlaif.report.training import step_line, step_table, steps_markdown
from rlaif.results.monitor import READINGS, MonitorReading, MonitorReport
from rlaif.reward.functions import RewardFunction
from rlaif.rl.learner import POLICY, VALUE
from rlaif.rl.rollout import rows_side_by_side
from rlaif.rl.step import StepReport
from rlaif.runs.costs import COST, write_cost
from rlaif.runs.manifest import Manifest
from rlaif.runs.steps import StepLog
from rlaif.stages.monitor import Monitor
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
    start: Start | None
    monitor: Monitor | None


class OnPolicyJob(Job[Config]):
    """Prompts and a reward in, a policy out: `adapter/`, `metrics.jsonl`, `completions.jsonl`; with a
    monitor, `monitor.jsonl` and `statistics.json`."""

    @abstractmethod
    def train(self, reward: RewardFunction, training: Training) -> OnPolicyResult:
        """Train the adapter `policy` of the resident base."""

    def __init__(self, config: Config, context: RunContext) -> None:
        super().__init__(config, context)
        check_rewards(config.reward, config, context)
        check_trackers(config.trackers)
        context.check_start(config)
        self.prompts = load_prompts(
            config,
            own_split="rl",
            seed=context.seed(config),
            progress=context.progress,
            left_out=partial(context.leave_out, config.name),
        )
        context.claim_prompts("rl", self.prompts)
        check_rubrics(config.reward, self.prompts, config, context)
        self.held_out = held_out(config, context, self.prompts)
        self.prompts = steered_prompts(config.directives, self.prompts, config, context, asked=True)

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
                "directives",
                "trackers",
                "checkpoint_every",
                "max_refused",
                "rollout",
                "policy",
                "reference",
                "monitor",
            ),
            "prompts": prompts_digest(self.prompts),
            "base": self.context.bases.get().identity,
            "rewards": rewards_digest(self.config.reward, self.config, self.context),
            "templates": self.context.library.digest("policy"),
            "seed": str(self.context.seed(self.config)),
            # Which server samples changes nothing that is meant; that one does, and the cap, do.
            **self.context.start_parts(self.config),
            **(
                {"monitor": monitor_digest(monitor, self.held_out, self.config, self.context)}
                if (monitor := self.config.monitor)
                else {}
            ),
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
                result = self.train(reward, self._training(reward, work, metrics, samples, trackers))
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
                results=_last(metrics.rows) | _kept(result.monitor),
                judge=reward_judges(self.config.reward, self.config, context),
            )
        finally:
            for role in {POLICY, VALUE, PREVIOUS} & set(base.roles):
                base.drop_adapter(role)
        self._tell_end(result)
        return self._written(folder, result, metrics, samples)

    def _training(
        self, reward: RewardFunction, work: Path, metrics: StepLog, samples: StepLog, trackers: Trackers
    ) -> Training:
        return Training(
            on_step=lambda step: self._told(step, metrics, trackers),
            on_rollout=lambda report: _keep_samples(report, samples),
            checkpoint_folder=work,
            start=self.context.start_of(self.config),
            monitor=open_monitor(
                self.config,
                self.context,
                self.held_out,
                reward,
                lambda reading, alarm: self._watched(reading, alarm, trackers),
            ),
        )

    def _tell_end(self, result: OnPolicyResult) -> None:
        note = self.context.progress.note
        if result.stopped:
            note(f"{self.config.name}: stopped early at {result.stopped}")
        for refused, what in ((result.refused, "prompt"), (_unread(result.monitor), "held-out prompt")):
            if refused:
                told = f"{count_of(len(refused), what)} left out, the first: {': '.join(refused[0])}"
                note(f"{self.config.name}: {told}")

    def _written(self, folder: Path, result: OnPolicyResult, metrics: StepLog, samples: StepLog) -> Outcome:
        """Write all files beside the adapter."""
        cost = replace(
            with_curve_named(on_policy_cost(metrics.rows), self.config, self.context),
            peak_bytes=peak_memory(self.context.bases.get().device),
        )
        write_cost(folder / COST, whole_cost(cost, self.config, self.context).as_dict())
        counts = {
            "prompts": len(self.prompts),
            "refused": len(result.refused),
            "steps": result.steps,
            "episodes": sum(step["episodes"] for step in metrics.rows),
            "tokens": cost.tokens,
        }
        rows = {"metrics.jsonl": len(metrics.rows), "completions.jsonl": len(samples.rows)}
        said = ""
        if (report := result.monitor) is not None:
            counts["monitor_tokens"] = sum(reading.tokens for reading in report.readings)
            rows |= write_monitor(folder, report)
            said = monitor_markdown([reading.as_row() for reading in report.readings], report.words)
        write_text(folder / "samples.md", steps_markdown(metrics.rows, title=self.method) + said)
        write_rows(folder / "metrics.jsonl", metrics.rows, "jsonl")
        write_rows(folder / "completions.jsonl", samples.rows, "jsonl")
        return Outcome(counts=counts, rows=rows | write_refused(folder, result.refused))

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

    def _watched(self, reading: MonitorReading, alarm: bool, trackers: Trackers) -> None:
        row = reading.as_row()
        names = {name: f"monitor/{name}" for name in row if name != "step"}
        alarms = {"monitor/alarm": int(alarm)}
        trackers.log({"step": reading.step} | {told: row[name] for name, told in names.items()} | alarms)
        self.context.progress.note(f"{self.config.name}: {reading_line(reading)}")
        if alarm and self.config.monitor is not None:
            self.context.progress.note(
                f"{self.config.name}: WARNING: the policy over-optimises its reward: proxy up, gold down for "
                f"{self.config.monitor.patience} readings"
            )

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        steps = [row.values for row in read_table(folder / "metrics.jsonl").rows]
        shown: list[Shown] = [
            step_table([steps[0], *steps[1:][-1:]] if steps else [], title="first and last step")
        ]
        if self.config.monitor is not None and (folder / READINGS).exists():
            readings = [row.values for row in read_table(folder / READINGS).rows]
            words = read_result(folder / STATISTICS)["monitor"]["words"]
            shown += monitor_shown(readings, words)
        return shown

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        config = self.config
        episodes = config.steps * config.episodes
        readings = 1 + -(-config.steps // config.monitor.every) if config.monitor else 0
        watched = readings * len(self.held_out)
        return self.sampling_plan(
            {
                "steps": config.steps,
                "episodes": episodes,
                **({"monitor readings": readings} if config.monitor else {}),
            },
            read=episodes // config.samples_per_prompt + watched,
            completions=episodes + watched,
            new_tokens=config.max_new_tokens,
            served=config.rollout is not None,
            at_once=config.episodes,
            together=config.samples_per_prompt,
            # The reward, the reference, the policy before the updates where they are several; the updates.
            passes=Passes(
                scored=1,
                read=1 + (config.minibatches > 1),
                learned=config.epochs,
                logits=2 + (config.minibatches > 1) + 2 * config.epochs,
            ),
        )

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        config = self.config
        micro = min(config.micro_batch, -(-config.episodes // config.minibatches))
        return trained_sampling(
            config,
            lengths,
            device,
            rows=min(
                -(-max(config.episodes, len(self.held_out)) // device.ranks), rows_side_by_side(device.kind)
            ),
            micro=micro,
            watched=self.held_out,
        )

    def adapters(self) -> Adapters:
        """See `Job`."""
        read = (*self.context.reward_adapters(self.config), *held_role(self.config))
        return Adapters((POLICY,), read, self.config.lora_rank)


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


def _kept(report: MonitorReport | None) -> dict[str, Any]:
    """The step whose policy was returned to, where one was."""
    return {} if report is None or report.kept is None else {"monitor_kept_step": report.kept}


def _unread(report: MonitorReport | None) -> tuple[tuple[str, str], ...]:
    """Held-out prompts that the policy cannot answer."""
    return () if report is None else report.refused
