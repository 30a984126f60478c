"""The stage `sft`: demonstrations in, a policy that imitates them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rlaif.config.finetune import SftConfig
from rlaif.digest import digest
from rlaif.jobs.adapters import policy_models, trained_adapter, write_results
from rlaif.jobs.base import Job, Outcome, read_typed, settings_digest
from rlaif.jobs.cards import write_card
from rlaif.jobs.learned_rows import read_demonstrations, skipper
from rlaif.jobs.lengths import Adapters, Device, Lengths
from rlaif.models.heap import rounded
from rlaif.models.memory import StageWork
from rlaif.report.shown import Shown
from rlaif.report.training import figures
from rlaif.rl.learner import POLICY
from rlaif.runs.manifest import Manifest
from rlaif.stages.sft import SftReport, train_sft

__all__ = ["SftJob"]


class SftJob(Job[SftConfig]):
    """Completions to imitate in, a policy out: `adapter/`. Later stages start from it: it is merged into the
    resident base."""

    method = "supervised fine-tuning"

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """What is imitated: a revise stage's rows and the files'."""
        sources = [*self._stage(), *self.config.files]
        found: list[dict[str, Any]] = []
        for source in sources:
            skipped = skipper(self.config, source, self.context)
            found += read_demonstrations(source, skipped=skipped, note=self.context.progress.note)
        return found

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(self.config, "input", "files", "model"),
            "rows": digest([repr(row) for row in self.rows]),
            "base": self.context.bases.get(self.config.model).identity,
            "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return policy_models(self.context, self.config.model)

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, base = self.context, self.context.bases.get(self.config.model)
        with trained_adapter(base, folder):
            result = train_sft(
                self.rows,
                base=base,
                config=self.config,
                seed=context.seed(self.config),
                role=POLICY,
                progress=context.progress,
                skipped=skipper(self.config, "rows", context),
            )
        write_card(
            folder / "adapter", self, base=base, parts=self.key_parts(), results=result.report.as_dict()
        )
        counts = {name: value for name, value in result.report.as_dict().items() if isinstance(value, int)}
        return Outcome(counts=counts, rows=write_results(result, folder, base, title="Fine-tuning"))

    def finished(self, folder: Path) -> None:
        """Merge the finished adapter: the policy that later stages start from, and their reference, is the
        fine-tuned one."""
        base = self.context.bases.get(self.config.model)
        base.load_adapter(POLICY, folder / "adapter")
        base.merge(POLICY)
        self.context.bases.tuned(self.config.model)

    def _stage(self) -> Iterator[str]:
        if self.config.input or not self.config.files:
            yield str(self.context.folder_of(self.config, "revise", self.config.input) / "sft.jsonl")

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        return [figures(read_typed(folder / "report.json", SftReport))]

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        config = self.config
        tokens = config.micro_batch * rounded(min(lengths.rows(config), config.max_tokens or 1 << 30))
        return StageWork(
            micro_tokens=tokens, logit_tokens=tokens, checkpointing=config.gradient_checkpointing
        )

    def adapters(self) -> Adapters:
        """See `Job`."""
        return Adapters(("policy",), tuple(self.context.reward_adapters(self.config)), self.config.lora_rank)
