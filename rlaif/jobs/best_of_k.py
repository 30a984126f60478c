"""The stage `best_of_k`: prompts and a reward in, a policy that imitates its best samples out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rlaif.config.finetune import BestOfKConfig
from rlaif.errors import ConfigError
from rlaif.io.writers import write_rows, write_text
from rlaif.jobs.adapters import held_role, policy_models, whole_cost
from rlaif.jobs.base import AnyJob, Job, Outcome, Passes, read_typed, settings_digest, write_refused
from rlaif.jobs.cards import reward_judges, write_card
from rlaif.jobs.context import RunContext
from rlaif.jobs.inputs import load_prompts, prompts_digest
from rlaif.jobs.lengths import Adapters, Device, Lengths, trained_sampling
from rlaif.jobs.planning import StagePlan
from rlaif.jobs.rewards import check_rewards, check_rubrics, open_reward, rewards_digest, with_curve_named
from rlaif.models.cost import peak_memory
from rlaif.models.memory import StageWork
from rlaif.models.start import PREVIOUS
from rlaif.report.shown import Shown
from rlaif.report.training import best_of_k_markdown, figures, growth_table
from rlaif.results.best_of_k import BestOfKReport
from rlaif.rl.learner import POLICY
from rlaif.rl.rollout import rows_side_by_side
from rlaif.runs.costs import COST, write_cost
from rlaif.runs.manifest import Manifest
from rlaif.stages.best_of_k import best_of_k

__all__ = ["BestOfKJob"]


class BestOfKJob(Job[BestOfKConfig]):
    """Prompts and a reward in, a policy that imitates its best samples out: `adapter/`, `kept.jsonl`."""

    method = "rejection sampling (best of K)"

    def __init__(self, config: BestOfKConfig, context: RunContext) -> None:
        super().__init__(config, context)
        check_rewards(config.reward, config, context)
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
        if config.student is not None and config.student == context.recipe.model:
            raise ConfigError("the student of best of K is the policy itself", remedy="leave `student` out")

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
                "student",
                "rollout",
                "policy",
                "reference",
            ),
            "prompts": prompts_digest(self.prompts),
            "base": self.context.bases.get().identity,
            "student": self.context.bases.get(self.config.student).identity if self.config.student else "",
            "rewards": rewards_digest(self.config.reward, self.config, self.context),
            "templates": self.context.library.digest("policy"),
            "seed": str(self.context.seed(self.config)),
            **self.context.start_parts(self.config),
            **({"rollout": "served"} if self.config.rollout else {}),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return policy_models(self.context, self.config.student)

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, base = self.context, self.context.bases.get()
        student = context.bases.get(self.config.student) if self.config.student else None
        reward = open_reward(self.config.reward, self.config, context)
        try:
            result = best_of_k(
                self.prompts,
                base=base,
                reward=reward,
                config=self.config,
                seed=context.seed(self.config),
                role=POLICY,
                student=student,
                start=context.start_of(self.config),
                messages=context.library.policy,
                progress=context.progress,
                folder=context.work_folder(self.config.name) if self.config.rollout else None,
            )
            (student or base).save_adapter(POLICY, folder / "adapter")
            write_card(
                folder / "adapter",
                self,
                base=student or base,
                parts=self.key_parts(),
                results=asdict(result.student),
                judge=reward_judges(self.config.reward, self.config, context),
            )
        finally:
            for each in filter(None, (base, student)):
                for role in {POLICY, PREVIOUS} & set(each.roles):
                    each.drop_adapter(role)
        cost = replace(
            with_curve_named(result.cost, self.config, context), peak_bytes=peak_memory(base.device)
        )
        write_cost(folder / COST, whole_cost(cost, self.config, context).as_dict())
        report = result.report
        write_text(folder / "report.json", json.dumps(report.as_dict(), indent=2) + "\n")
        write_text(folder / "samples.md", best_of_k_markdown(report, result.rows))
        rows = {"kept.jsonl": write_rows(folder / "kept.jsonl", result.rows, "jsonl").rows, "report.json": 1}
        rows |= write_refused(folder, result.refused)
        return Outcome(counts=result.counts(), rows=rows)

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        report = read_typed(folder / "report.json", BestOfKReport)
        rounds = [growth_table(each, title=f"round {each.round}") for each in report.rounds]
        return [*rounds, figures(report.student, title="the policy that was made")]

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        config, prompts = self.config, len(self.prompts)
        completions, measured = config.rounds * config.k * prompts, min(config.measure_prompts, prompts)
        each = {"best": 1, "weighted": config.k}.get(str(config.keep)) or int(config.keep)
        kept = config.rounds * each * prompts
        return self.sampling_plan(
            {"rounds": config.rounds, "prompts": prompts, "completions": completions},
            read=config.rounds * prompts,
            completions=completions + measured,
            new_tokens=config.max_new_tokens,
            served=config.rollout is not None,
            together=config.k,
            # The reward of all, the loss on those kept before and after, and the KL of what was made.
            passes=Passes(
                scored=1,
                read=(2 * kept + measured) / (completions + measured),
                learned=config.epochs * kept / (completions + measured),
                logits=2 * (kept + measured + config.epochs * kept) / (completions + measured),
            ),
        )

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        return trained_sampling(
            self.config, lengths, device, rows=rows_side_by_side(device.kind), micro=self.config.micro_batch
        )

    def adapters(self) -> Adapters:
        """See `Job`."""
        read = (*self.context.reward_adapters(self.config), *held_role(self.config))
        return Adapters((POLICY,), read, self.config.lora_rank)
