"""The stage `dpo`: preferences in, a policy out, without a reward model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from rlaif.config.finetune import DpoConfig
from rlaif.config.reward import PreferenceFile
from rlaif.jobs.adapters import held_role, policy_models, trained_adapter, whole_cost, write_results
from rlaif.jobs.base import Job, Outcome, read_typed, settings_digest
from rlaif.jobs.cards import judges_of, write_card
from rlaif.jobs.context import RunContext
from rlaif.jobs.learned_rows import label_files, pairs_digest, read_preferences, renderable, skipper
from rlaif.jobs.lengths import Adapters, Device, Lengths
from rlaif.models.heap import rounded
from rlaif.models.memory import StageWork
from rlaif.report.shown import Shown
from rlaif.report.training import figures
from rlaif.results.preferences import PreferencePair
from rlaif.rl.learner import POLICY
from rlaif.runs.manifest import Manifest
from rlaif.stages.dpo import DpoReport, train_dpo

__all__ = ["DpoJob"]


class DpoJob(Job[DpoConfig]):
    """Preferences in, a policy out, without a reward model: `adapter/`."""

    method = "DPO"

    def __init__(self, config: DpoConfig, context: RunContext) -> None:
        super().__init__(config, context)
        context.check_start(config)

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        """What is learned from."""
        hard = self.config.labels == "hard"
        found: list[PreferencePair] = []
        for file in self._files():
            skipped = skipper(self.config, file.file, self.context)
            found += read_preferences(
                file.file, weight=file.weight, hard=hard, skipped=skipped, note=self.context.progress.note
            )
        return found

    def _files(self) -> Iterator[PreferenceFile]:
        return label_files(self.config, self.config.input, self.config.files, self.context)

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(
                self.config, "input", "files", "model", "uninformative", "policy", "reference"
            ),
            "preferences": pairs_digest(self.pairs),
            "base": self.context.bases.get(self.config.model).identity,
            "seed": str(self.context.seed(self.config)),
            **self.context.start_parts(self.config),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return policy_models(self.context, self.config.model)

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, base = self.context, self.context.bases.get(self.config.model)
        pairs = renderable(self.pairs, base, self.config, context)
        with trained_adapter(base, folder):
            result = train_dpo(
                pairs,
                base=base,
                config=self.config,
                seed=context.seed(self.config),
                role=POLICY,
                start=context.start_of(self.config),
                progress=context.progress,
            )
        write_card(
            folder / "adapter",
            self,
            base=base,
            parts=self.key_parts(),
            results=result.report.as_dict(),
            judge=judges_of(file.file for file in self._files()),
        )
        result = replace(result, cost=whole_cost(result.cost, self.config, context))
        counts = {"pairs": len(pairs), "steps": len(result.steps)}
        return Outcome(counts=counts, rows=write_results(result, folder, base, title="DPO"))

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        return [figures(read_typed(folder / "report.json", DpoReport))]

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        config = self.config
        tokens = 2 * config.micro_batch * rounded(min(lengths.rows(config), config.max_tokens or 1 << 30))
        return StageWork(
            micro_tokens=tokens, logit_tokens=tokens, checkpointing=config.gradient_checkpointing
        )

    def adapters(self) -> Adapters:
        """See `Job`."""
        read = (*self.context.reward_adapters(self.config), *held_role(self.config))
        return Adapters((POLICY,), read, self.config.lora_rank)
