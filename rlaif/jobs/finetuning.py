"""Fine-tuning as jobs of a run: SFT, best of K, DPO."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rlaif.config.finetune import BestOfKConfig, DpoConfig, SftConfig
from rlaif.config.reward import PreferenceFile
from rlaif.digest import digest
from rlaif.errors import ConfigError
from rlaif.io.writers import write_rows, write_text
from rlaif.jobs.base import Outcome, settings_digest, write_refused
from rlaif.jobs.cards import judges_of, reward_judges, write_card
from rlaif.jobs.context import Context
from rlaif.jobs.inputs import load_prompts, prompts_digest
from rlaif.jobs.rewards import check_rewards, open_reward, rewards_digest, with_curve_named
from rlaif.jobs.training import label_files, pairs_digest, read_demonstrations, read_pairs, renderable, skipper
from rlaif.models.cost import peak_memory
from rlaif.models.shared_base import SharedBase
from rlaif.report.training import best_of_k_markdown, figures_markdown
from rlaif.results.preferences import PreferencePair
from rlaif.rl.learner import POLICY
from rlaif.runs.costs import COST, write_cost
from rlaif.stages.best_of_k import best_of_k
from rlaif.stages.dpo import DpoResult, train_dpo
from rlaif.stages.sft import SftResult, train_sft

__all__ = ["BestOfKJob", "DpoJob", "SftJob"]


class SftJob:
    """Completions to imitate in, a policy out: `adapter/`. Later stages start from it: it is merged into the resident base."""

    def __init__(self, config: SftConfig, context: Context) -> None:
        self.config = config
        self.context = context

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """What is imitated: a revise stage's rows and the files'."""
        sources = [*self._stage(), *self.config.files]
        found: list[dict[str, Any]] = []
        for source in sources:
            skipped = skipper(self.config, source, self.context)
            found += read_demonstrations(source, skipped=skipped, note=self.context.progress.note)
        return found

    def parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(self.config, "input", "files", "model"), "rows": digest([repr(row) for row in self.rows]),
            "base": self.context.base(self.config.model).identity, "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return _policy(self.context, self.config.model)

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, base = self.context, self.context.base(self.config.model)
        with _adapter(base, folder):
            result = train_sft(
                self.rows, base=base, config=self.config, seed=context.seed(self.config), role=POLICY, progress=context.progress,
                skipped=skipper(self.config, "rows", context),
            )
        write_card(folder / "adapter", self.config, context, base=base, parts=self.parts(), results=result.report.as_dict())
        counts = {name: value for name, value in result.report.as_dict().items() if isinstance(value, int)}
        return Outcome(counts=counts, rows=_written(result, folder, base, title="Fine-tuning"))

    def merge(self, folder: Path) -> None:
        """Merge the finished adapter: the policy that later stages start from, and their reference, is the fine-tuned one."""
        base = self.context.base(self.config.model)
        base.load_adapter(POLICY, folder / "adapter")
        base.merge(POLICY)
        self.context.tuned(self.config.model)

    def _stage(self) -> Iterator[str]:
        if self.config.input or not self.config.files:
            yield str(self.context.folder_of(self.config, "revise", self.config.input) / "sft.jsonl")


class BestOfKJob:
    """Prompts and a reward in, a policy that imitates its best samples out: `adapter/`, `kept.jsonl`."""

    def __init__(self, config: BestOfKConfig, context: Context) -> None:
        self.config = config
        self.context = context
        check_rewards(config.reward, config, context)
        self.prompts = load_prompts(
            config, own_split="rl", seed=context.seed(config), progress=context.progress,
            left_out=partial(context.leave_out, config.name),
        )
        context.claim_prompts("rl", self.prompts)
        if config.student is not None and config.student == context.recipe.model:
            raise ConfigError("the student of best of K is the policy itself", remedy="leave `student` out")

    def parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(self.config, "prompts", "prompt_column", "context_column", "split", "limit", "student"),
            "prompts": prompts_digest(self.prompts), "base": self.context.base().identity,
            "student": self.context.base(self.config.student).identity if self.config.student else "",
            "rewards": rewards_digest(self.config.reward, self.config, self.context),
            "templates": self.context.library.digest("policy"), "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return _policy(self.context, self.config.student)

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, base = self.context, self.context.base()
        student = context.base(self.config.student) if self.config.student else None
        reward = open_reward(self.config.reward, self.config, context)
        try:
            result = best_of_k(
                self.prompts, base=base, reward=reward, config=self.config, seed=context.seed(self.config), role=POLICY,
                student=student, messages=context.library.policy, progress=context.progress,
            )
            (student or base).save_adapter(POLICY, folder / "adapter")
            write_card(
                folder / "adapter", self.config, context, base=student or base, parts=self.parts(), results=asdict(result.student),
                judge=reward_judges(self.config.reward, self.config, context),
            )
        finally:
            for each in (base, student):
                if each is not None and POLICY in each.roles:
                    each.drop_adapter(POLICY)
        cost = replace(with_curve_named(result.cost, self.config, context), peak_bytes=peak_memory(base.device))
        write_cost(folder / COST, cost.as_dict())
        report = result.as_dict()
        write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
        write_text(folder / "samples.md", best_of_k_markdown(report["rounds"], report["student"], result.rows))
        rows = {"kept.jsonl": write_rows(folder / "kept.jsonl", result.rows, "jsonl").rows, "report.json": 1}
        rows |= write_refused(folder, result.refused)
        return Outcome(counts=result.counts(), rows=rows)


class DpoJob:
    """Preferences in, a policy out, without a reward model: `adapter/`."""

    def __init__(self, config: DpoConfig, context: Context) -> None:
        self.config = config
        self.context = context

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        """What is learned from."""
        hard = self.config.labels == "hard"
        found: list[PreferencePair] = []
        for file in self._files():
            skipped = skipper(self.config, file.file, self.context)
            found += read_pairs(
                file.file, weight=file.weight, hard=hard, skipped=skipped, note=self.context.progress.note,
            )
        return found

    def _files(self) -> Iterator[PreferenceFile]:
        return label_files(self.config, self.config.input, self.config.files, self.context)

    def parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(self.config, "input", "files", "model"), "preferences": pairs_digest(self.pairs),
            "base": self.context.base(self.config.model).identity, "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return _policy(self.context, self.config.model)

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, base = self.context, self.context.base(self.config.model)
        pairs = renderable(self.pairs, base, self.config, context)
        with _adapter(base, folder):
            result = train_dpo(
                pairs, base=base, config=self.config, seed=context.seed(self.config), role=POLICY, progress=context.progress,
            )
        write_card(
            folder / "adapter", self.config, context, base=base, parts=self.parts(), results=result.report.as_dict(),
            judge=judges_of(file.file for file in self._files()),
        )
        counts = {"pairs": len(pairs), "steps": len(result.steps)}
        return Outcome(counts=counts, rows=_written(result, folder, base, title="DPO"))


@contextmanager
def _adapter(base: SharedBase, folder: Path) -> Iterator[None]:
    """Save the adapter that the block trains, and take it off the base again, however the block ends."""
    try:
        yield
        base.save_adapter(POLICY, folder / "adapter")
    finally:
        if POLICY in base.roles:
            base.drop_adapter(POLICY)


def _written(result: SftResult | DpoResult, folder: Path, base: SharedBase, *, title: str) -> dict[str, int]:
    """Write what training took, its steps and its report; rows by file."""
    report = result.report.as_dict()
    write_cost(folder / COST, replace(result.cost, peak_bytes=peak_memory(base.device)).as_dict())
    write_rows(folder / "metrics.jsonl", (step._asdict() for step in result.steps), "jsonl")
    write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    write_text(folder / "samples.md", figures_markdown(title, report))
    return {"report.json": 1, "metrics.jsonl": len(result.steps)}


def _policy(context: Context, named: str | None) -> dict[str, str]:
    return {"policy": f"{context.model(named)}@{context.base(named).identity}"}

