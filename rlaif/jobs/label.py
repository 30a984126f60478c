"""The stage `label`: completions in, preferences out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from rlaif.config import LabelConfig
from rlaif.errors import DataError
from rlaif.io.writers import RowWriter, write_text
from rlaif.jobs.base import TO_READ, AnyJob, Job, Outcome, read_result, settings_digest, transient_among
from rlaif.jobs.bench import CONTESTED, Bench, Contested, Panel, why_unlabelled
from rlaif.jobs.context import RunContext
from rlaif.jobs.inputs import Completions, load_completions, load_responses
from rlaif.jobs.lengths import Device, Lengths
from rlaif.jobs.planning import StagePlan
from rlaif.jobs.sample import SampleJob
from rlaif.jobs.trust import Standing
from rlaif.jobs.way_out import closing_lines
from rlaif.judging.aggregate import LabelStatistics
from rlaif.judging.informative import doubts
from rlaif.models.memory import StageWork
from rlaif.report.jury import jury_shown
from rlaif.report.labels import (
    facts_of,
    labelled,
    labelled_pairs,
    statistics_line,
    statistics_table,
    warnings_about,
)
from rlaif.report.samples import preferences_markdown, read_spread
from rlaif.report.shown import Shown
from rlaif.results.rows import columns_for_judges, preference_row, verdict_row
from rlaif.runs.manifest import Manifest
from rlaif.stages.label import Pairing, askable, check_invalid_rate, label, lacks, make_pairs
from rlaif.text import answer_of
from rlaif.types import Comparison, Completion, Preference, Prompt

__all__ = ["LabelJob", "WEAK"]

EXAMPLES = 5
"""Labelled pairs shown at the end."""
WEAK = "weak.jsonl"
"""Labels that are weaker than `min_strength` asks for."""


class LabelJob(Job[LabelConfig]):
    """Completions in, preferences out: `preferences.jsonl` (or `.parquet`), `verdicts.jsonl`,
    `statistics.json`."""

    def __init__(self, config: LabelConfig, context: RunContext) -> None:
        super().__init__(config, context)
        self.bench = Bench(config, context)
        if config.responses:
            self.source = load_responses(config, context.progress)
            context.claim_prompts("label", self.source.prompts)
            self._askable(self.source.prompts)
        else:
            self._askable(context.sampled[context.earlier(config, "sample", config.input)])

    @cached_property
    def source(self) -> Completions:
        """The completions of the stage that is read from; it has finished by the time they are needed."""
        return load_completions(self.context.folder_of(self.config, "sample", self.config.input))

    @cached_property
    def pairing(self) -> Pairing:
        """What is compared, and what is not."""
        asked = self._askable(self.source.prompts)
        if left := len(self.source.prompts) - len(asked):
            told = f"{left} of {len(self.source.prompts)} prompts have no {' or '.join(self.bench.needs)}"
            self.context.progress.note(f"{self.config.name}: {told}, and are not judged (lacking: skip)")
        return make_pairs(
            asked,
            self._as_judged(),
            pairs=self.config.pairs,
            seed=self.context.seed(self.config),
            given=self.source.given,
        )

    def _askable(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts that have what the judges read of them, or may go without it."""
        where = self.config.responses or self.config.name
        for need in self.bench.needs:
            prompts = askable(prompts, need, lacking=self.config.lacking, where=where)
        return list(prompts)

    def _as_judged(self) -> list[Completion]:
        """The completions as the judge reads them."""
        if self.config.reasoning == "judge":
            return list(self.source.completions)
        return [replace(each, text=answer_of(each.text)) for each in self.source.completions]

    def _as_written(self, preference: Preference) -> Preference:
        """The preference with the completions as the preferences keep them."""
        if self.config.reasoning != "keep":
            return preference
        a, b = (
            replace(each, text=self._texts[each.id])
            for each in (preference.comparison.a, preference.comparison.b)
        )
        return replace(preference, comparison=replace(preference.comparison, a=a, b=b))

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {each.id: each.text for each in self.source.completions}

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(
                self.config,
                "judge",
                "responses",
                "input",
                "prompt_column",
                "context_column",
                "limit",
                "shard",
                "protocol",
                "audit",
                "require_audit",
                "calibration",
                *(() if self.bench.several else ("weights", "quorum", "recuse")),
            ),
            **self.bench.key_parts(),
            "completions": self.source.digest(),
            "constitution": self.context.constitution.digest,
            "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"judge": self.bench.label}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, statistics = self.context, LabelStatistics()
        standing = self.bench.standing()
        panel = self.bench.panel()
        file = f"preferences.{self.config.format}"
        with ExitStack() as stack:
            verdicts = stack.enter_context(RowWriter(folder / "verdicts.jsonl", "jsonl"))
            preferences = stack.enter_context(RowWriter(folder / file, self.config.format))
            unlabelled = stack.enter_context(RowWriter(folder / "unlabelled.jsonl", "jsonl"))
            weak = (
                stack.enter_context(RowWriter(folder / WEAK, "jsonl")) if self.config.min_strength else None
            )
            expected = (
                len(self.source.prompts)
                if self.config.pairs == "best-worst"
                else len(self.pairing.comparisons)
            )
            to_read = _Spread(expected, TO_READ)
            contested = stack.enter_context(Contested(folder)) if panel.statistics else None
            for row in self._judged(
                panel,
                statistics,
                standing=standing,
                verdicts=verdicts,
                unlabelled=unlabelled,
                contested=contested,
            ):
                if weak is not None and row["p_chosen"] - 0.5 < self.config.min_strength:
                    weak.write(row)
                    continue
                preferences.write(row)
                to_read.add(row)
        check_invalid_rate(statistics, self.config.max_invalid)
        if not statistics.comparisons and not context.recipe.shard:
            raise DataError(
                "there is nothing to compare: no prompt has two different completions",
                where=self.config.responses or "",
                remedy="sample more completions per prompt (k), or at a higher temperature",
            )
        self._tell_weak(weak, preferences)
        self._write_statistics(folder, statistics, standing, panel)
        write_text(folder / "samples.md", preferences_markdown(to_read.rows))
        written = {
            file: preferences.rows,
            "verdicts.jsonl": verdicts.rows,
            "unlabelled.jsonl": unlabelled.rows,
        }
        if weak is not None:
            written[WEAK] = weak.rows
        if contested is not None:
            written[CONTESTED] = contested.rows
        gaps = standing.gaps + transient_among(statistics.total.reasons.elements())
        counts = self._counts(statistics, preferences.rows, weak=written.get(WEAK, 0)) | panel.counts()
        return Outcome(counts=counts, rows=written, gaps=gaps)

    def _write_statistics(
        self, folder: Path, statistics: LabelStatistics, standing: Standing, panel: Panel
    ) -> None:
        """Write what the summary is made of, and say what is doubtful of the labels."""
        told = statistics.as_dict() | {"audit": standing.as_dict()}
        if panel.statistics is not None:
            told["jury"] = panel.statistics.as_dict()
        write_text(folder / "statistics.json", json.dumps(told, indent=2) + "\n")
        for doubt in doubts(facts_of(told)):
            self.context.progress.note(f"{self.config.name}: warning: {doubt.words}")

    def _tell_weak(self, weak: RowWriter | None, preferences: RowWriter) -> None:
        """Say how many labels are too weak for the preferences; it is an error when none is strong enough,
        but for a shard, which may have few."""
        if weak is None or not weak.rows:
            return
        least = self.config.min_strength
        if not preferences.rows and not self.context.recipe.shard:
            raise DataError(
                f"all {weak.rows} labels are weaker than min_strength ({least:g})",
                where=self.config.name,
                remedy="lower it, or learn from soft labels: rlaif reward or dpo",
            )
        told = f"{weak.rows} of {weak.rows + preferences.rows} labels are weaker than {least:g} (|p - 0.5|)"
        self.context.progress.note(f"{self.config.name}: {told}; they are in {WEAK}")

    def _judged(
        self,
        panel: Panel,
        statistics: LabelStatistics,
        *,
        standing: Standing,
        verdicts: RowWriter,
        unlabelled: RowWriter,
        contested: Contested | None,
    ) -> Iterator[dict[str, Any]]:
        common, columns = self._common(standing), columns_for_judges(self.source.prompts)
        for judged, preference in label(
            self.pairing.comparisons,
            judge=panel.judge,
            config=self.config,
            statistics=statistics,
            calibrate=panel.calibrate,
            progress=self.context.progress,
        ):
            for verdict in judged.verdicts:
                verdicts.write(verdict_row(verdict))
            if judged.logit_a is None:
                unlabelled.write({"comparison_id": judged.comparison.id, "reasons": why_unlabelled(judged)})
            disagreed = panel.count(judged)
            if preference is None:
                continue
            row = preference_row(self._as_written(preference), self.context.library, common, columns)
            if contested is not None and disagreed:
                contested.add(row, panel.contention(judged))
            yield row

    def _common(self, standing: Standing) -> Mapping[str, Any]:
        context = self.context
        return {
            "protocol": self.bench.protocols,
            "judge": self.bench.label,
            "audit": standing.grade,
            "constitution": context.constitution.name,
            "constitution_digest": context.constitution.digest,
            "template_digest": self.bench.templates,
            "seed": context.seed(self.config),
        }

    def _counts(self, statistics: LabelStatistics, preferences: int, *, weak: int) -> dict[str, int]:
        pairing = self.pairing
        return {
            "prompts": len(self.source.prompts),
            "completions": len(self.source.completions),
            "bad_rows": self.source.bad_rows,
            "with_reasoning": sum(answer_of(each.text) != each.text for each in self.source.completions),
            "comparisons": statistics.comparisons,
            "identical_pairs": pairing.identical,
            "repeated_pairs": pairing.repeated,
            "pairs_not_drawn": pairing.not_drawn,
            "lone_completions": pairing.lone,
            **self._lacking(),
            "verdicts": statistics.total.verdicts,
            "invalid_verdicts": statistics.total.invalid,
            "preferences": preferences,
            "weak": weak,
            "unlabelled": statistics.unlabelled,
            "not_best_worst": statistics.labelled - preferences - weak,
        }

    def _lacking(self) -> dict[str, int]:
        prompts = self.source.prompts
        return {f"without_{need}": sum(lacks(each, need) for each in prompts) for need in self.bench.needs}

    def headline(self, manifest: Manifest) -> str:
        """See `Job`."""
        return f"judge {manifest.models['judge']}, {manifest.parts['protocol']}"

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        statistics = read_result(folder / "statistics.json")
        pairs = read_spread(folder / next(iter(manifest.outputs)), EXAMPLES)
        return [
            statistics_table(statistics),
            *jury_shown(statistics),
            labelled(manifest.counts),
            statistics_line(statistics),
            *warnings_about(statistics),
            *labelled_pairs(pairs),
        ]

    def closing(self, folder: Path, manifest: Manifest) -> Sequence[str]:
        """See `Job`."""
        file = folder / next(iter(manifest.outputs))
        return closing_lines(self.config, self.context, read_result(folder / "statistics.json"), file)

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        source = self._to_judge(earlier)
        comparisons = self._expected(source)
        counts = {"completions": len(source.completions), "comparisons": len(comparisons)}
        return self.bench.plan(comparisons, counts)

    def planned(self, earlier: Mapping[str, AnyJob]) -> Sequence[Comparison]:
        """What will be compared, of completions that may not exist yet."""
        return self._expected(self._to_judge(earlier))

    def _expected(self, source: Completions) -> list[Comparison]:
        """What would be compared, before the completions are there."""
        return make_pairs(
            self._askable(source.prompts),
            source.completions,
            pairs=self.config.pairs,
            seed=self.context.seed(self.config),
            given=source.given,
        ).comparisons

    def _to_judge(self, earlier: Mapping[str, AnyJob]) -> Completions:
        return self.source if self.config.responses else self._imagined(earlier)

    def _imagined(self, earlier: Mapping[str, AnyJob]) -> Completions:
        """What the stage that is read from will have sampled, as long as it may get."""
        return cast(
            SampleJob, earlier[self.context.earlier(self.config, "sample", self.config.input)]
        ).imagined()

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        if not self.bench.writes:
            return StageWork(read_tokens=device.tokens, read_logits=device.asked)
        earlier = cast(Mapping[str, AnyJob], lengths.jobs)
        source = self.source if self.config.responses else self._imagined(earlier)
        work = self.bench.writing(self._expected(source), device.rows)
        return work._replace(read_tokens=device.tokens, read_logits=device.asked)


class _Spread:
    """Keeps at most `count` rows of a stream of known length, evenly spread."""

    def __init__(self, length: int, count: int) -> None:
        self._step = max(1, -(-length // count))
        self._count = count
        self._seen = 0
        self.rows: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        if self._seen % self._step == 0 and len(self.rows) < self._count:
            self.rows.append(row)
        self._seen += 1
