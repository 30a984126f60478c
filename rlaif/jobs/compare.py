"""The stage `compare`: evaluations in, who won out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rlaif.config.evaluation import CompareConfig
from rlaif.digest import digest
from rlaif.errors import RunError
from rlaif.files import file_digest
from rlaif.io.writers import write_text
from rlaif.jobs.base import Job, Outcome, read_result, settings_digest
from rlaif.jobs.evaluate import COMPARISON, EVALUATION, MONITORS, read_evaluation
from rlaif.jobs.people import read_people
from rlaif.report.comparison import POLICIES, comparison_markdown, comparison_tables, main_rows
from rlaif.report.shown import Shown, Table
from rlaif.results.costs import TrainingCost
from rlaif.results.monitor import MonitoredTraining
from rlaif.runs.costs import TRAINING, read_cost
from rlaif.runs.manifest import Manifest
from rlaif.stages.compare import compare

__all__ = ["CompareJob"]


class CompareJob(Job[CompareConfig]):
    """Evaluations in, who won out: `comparison.json` and `comparison.md`."""

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        noted = [path.parent / name for path in self._files() for name in (TRAINING, MONITORS)]
        files = [file_digest(path) for path in (*self._files(), *(path for path in noted if path.exists()))]
        return {
            "settings": settings_digest(self.config, "evaluations", "human"),
            **({"human labels": file_digest(Path(self.config.human))} if self.config.human else {}),
            "evaluations": digest(files),
            "seed": str(self._seed),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        evaluations = [read_evaluation(path) for path in self._files()]
        names = {policy.name for each in evaluations for policy in each.policies}
        found = compare(
            evaluations,
            self._costs(),
            people=read_people(self.config.human) if self.config.human else None,
            monitors=self._monitors(),
            budgets=self.config.budgets,
            resamples=self.config.resamples,
            seed=self._seed,
        )
        values = {
            **found.as_dict(),
            "tables": [
                {"title": table.title, "header": table.header, "rows": table.rows}
                for table in comparison_tables(found)
            ],
        }
        write_text(folder / COMPARISON, json.dumps(values, ensure_ascii=False, indent=1) + "\n")
        markdown = comparison_markdown(found)
        write_text(folder / "comparison.md", markdown)
        write_text(folder / "samples.md", markdown)
        return Outcome(
            counts={"evaluations": len(evaluations), "policies": len(names)},
            rows={COMPARISON: 1, "comparison.md": 0},
        )

    @property
    def _seed(self) -> int:
        return self.context.seed(self.config)

    def _files(self) -> list[Path]:
        named = self.config.evaluations or (self.context.earlier(self.config, "evaluate", None),)
        return [
            self.context.folders[name] / EVALUATION if name in self.context.folders else Path(name)
            for name in named
        ]

    def _costs(self) -> dict[str, TrainingCost]:
        """What training the policies took, as their evaluations noted it."""
        noted = [path.parent / TRAINING for path in self._files()]
        return {
            name: TrainingCost.from_dict(cost, where=str(path))
            for path in noted
            for name, cost in (read_cost(path) or {}).items()
        }

    def _monitors(self) -> dict[str, MonitoredTraining]:
        """What was read along the policies' trainings, as their evaluations noted it.

        Raises:
            RunError: A note is damaged.
        """
        found = {}
        for path in (each.parent / MONITORS for each in self._files()):
            for name, noted in (read_result(path) if path.is_file() else {}).items():
                try:
                    found[name] = MonitoredTraining.from_files(noted["readings"], noted["statistics"])
                except (KeyError, TypeError, ValueError) as error:
                    raise RunError(
                        f"what the monitor of {name!r} read is damaged ({error!r})",
                        where=str(path),
                        remedy="evaluate again (remove the evaluation's folder and run the same command)",
                    ) from error
        return {name: each for name, each in found.items() if each is not None}

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        found = read_result(folder / COMPARISON)
        tables = [Table(each["title"], each["header"], each["rows"]) for each in found["tables"]]
        if any(stage.stage == "evaluate" for stage in self.context.recipe.stages):
            # The policies' own figures were shown by the evaluation.
            tables = [each for each in tables if each.title != POLICIES]
        tables = [main_rows(each) if each.title == POLICIES else each for each in tables]
        return [*tables, *(f"• {sentence}" for sentence in found["verdict"])]
