"""The stage `merge`: a policy's adapter in, a full model out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rlaif.config.merge import MergeConfig
from rlaif.errors import ConfigError
from rlaif.files import folder_digest
from rlaif.jobs.base import AnyJob, Job, Outcome
from rlaif.jobs.context import RunContext
from rlaif.jobs.merging import Origin, adapter_of, origin_of, stage_base, tuned_before, write_merged
from rlaif.jobs.planning import StagePlan
from rlaif.models.load import resolve

__all__ = ["MergeJob"]


class MergeJob(Job[MergeConfig]):
    """A policy's adapter in, a full model out: `model/`. A copy of the base is loaded for it, beside the one
    that the run holds."""

    def __init__(self, config: MergeConfig, context: RunContext) -> None:
        super().__init__(config, context)
        stage = context.recipe.policy_stage(config.input)
        if stage is None:
            adapter_of(Path(config.input))
        elif stage not in context.before(config):
            raise ConfigError(
                f"stage {config.name!r} merges {config.input!r}, which does not come before it",
                remedy="put it before, or name an earlier one",
            )

    @property
    def _adapter(self) -> Path:
        return adapter_of(Path(self.context.policy(self.config.input)))

    def _origin(self) -> Origin:
        """Where the adapter comes from: this run, or what lies beside its files."""
        context, recipe = self.context, self.context.recipe
        stage = recipe.policy_stage(self.config.input)
        if stage is None:
            return origin_of(self._adapter)
        first = tuple(context.path / name / "adapter" for name in tuned_before(stage, recipe))
        return Origin(base=stage_base(stage, recipe), first=first, dtype=recipe.dtype, device=recipe.device)

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        origin = self._origin()
        return {
            "base": resolve(origin.base).revision,
            "adapters": ", ".join(map(folder_digest, (*origin.first, self._adapter))),
            "dtype": self.context.recipe.dtype,
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        base = self._origin().base
        return {"base": f"{base}@{resolve(base).revision}"}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        recipe, origin = self.context.recipe, self._origin()
        write_merged(
            self._adapter,
            folder / "model",
            origin=origin._replace(dtype=recipe.dtype, device=recipe.device),
            log=self.context.progress.note,
        )
        return Outcome(counts={"adapters": 1 + len(origin.first)}, rows={})

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        stage = self.context.recipe.policy_stage(self.config.input)
        base = self._origin().base if stage is None else stage_base(stage, self.context.recipe)
        return replace(super().dry_run(earlier), model=base, counts={"adapters": 1})
