"""The stage `label`: completions in, preferences out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

from rlaif.config import LabelConfig
from rlaif.digest import digest
from rlaif.engines.base import Engine, TokenCount
from rlaif.engines.scripted import load_scripted
from rlaif.errors import DataError
from rlaif.io.writers import RowWriter, write_text
from rlaif.jobs.base import (
    TO_READ,
    AnyJob,
    Job,
    Outcome,
    read_result,
    settings_digest,
    transient_among,
    usable,
)
from rlaif.jobs.context import RunContext
from rlaif.jobs.estimate import shared
from rlaif.jobs.inputs import Completions, load_completions, load_responses
from rlaif.jobs.lengths import Device, Lengths
from rlaif.jobs.planning import COUNTED, StagePlan, counter_of, estimated_seconds, tokens_of
from rlaif.jobs.sample import SampleJob
from rlaif.jobs.trust import Standing, Trust, calibration_for
from rlaif.jobs.way_out import closing_lines
from rlaif.judging.aggregate import LabelStatistics
from rlaif.judging.informative import doubts
from rlaif.judging.judge import Judge
from rlaif.judging.protocols import JudgingProtocol, Ways
from rlaif.judging.reasoning import REASONING_TOKENS
from rlaif.judging.table import open_judge, open_protocol
from rlaif.models.memory import StageWork
from rlaif.models.probe_files import protocol_of
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
        self.judge = context.model(config.judge)
        self.protocol: JudgingProtocol = open_protocol(
            protocol_of(self.judge, config.protocol, context.constitution.protocol),
            library=context.library,
            constitution=context.constitution,
            clamp=config.clamp,
            least_share=config.min_label_share,
            ways=Ways(
                aggregate=config.rubric_aggregate,
                constitution_weight=config.constitution_weight,
                plain=config.lacking == "plain",
            ),
        )
        self.constitution = usable(context, self.protocol.half)
        self.templates = self.protocol.digest(context.library)
        """Digest of the judge's templates; read now, so that a broken one is found before anything is
        sampled."""
        self.trust = Trust(config, self.protocol, self.constitution, context)
        if config.responses:
            self.source = load_responses(config, context.progress)
            context.claim_prompts("label", self.source.prompts)
            self._askable(self.source.prompts)

    @cached_property
    def source(self) -> Completions:
        """The completions of the stage that is read from; it has finished by the time they are needed."""
        return load_completions(self.context.folder_of(self.config, "sample", self.config.input))

    @cached_property
    def pairing(self) -> Pairing:
        """What is compared, and what is not."""
        asked = self._askable(self.source.prompts)
        if left := len(self.source.prompts) - len(asked):
            told = f"{left} of {len(self.source.prompts)} prompts have no {self.protocol.needs}"
            self.context.progress.note(f"{self.config.name}: {told}, and are not judged (lacking: skip)")
        return make_pairs(
            asked,
            self._as_judged(),
            pairs=self.config.pairs,
            seed=self.context.seed(self.config),
            given=self.source.given,
        )

    def _askable(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts that have what the protocol reads of them, or may go without it."""
        where = self.config.responses or self.config.name
        return askable(prompts, self.protocol.needs, lacking=self.config.lacking, where=where)

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
        card = self.context.engines.card(self.judge)
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
            ),
            "audit": self.trust.key(),
            "calibration": calibration_for(self.config, self.protocol, card, self.context)[1],
            "completions": self.source.digest(),
            "judge": digest([card.name, card.identity()]),
            "protocol": self.protocol.name,
            "constitution": self.context.constitution.digest,
            "templates": self.templates,
            "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"judge": self.context.engines.card(self.judge).label}

    def open_judge(self, engine: Engine) -> Judge:
        """The judge of this stage, which asks `engine`."""
        return open_judge(
            engine,
            self.protocol,
            self.constitution,
            principles=self.config.principles,
            seed=self.context.seed(self.config),
            progress=self.context.progress,
            reasoning_tokens=self.config.reasoning_tokens,
            reasonings=self.config.reasonings,
        )

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, statistics = self.context, LabelStatistics()
        standing = self.trust.standing()
        judge = self.open_judge(context.engines.get(self.judge))
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
            for row in self._judged(
                judge, statistics, standing=standing, verdicts=verdicts, unlabelled=unlabelled
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
        self._write_statistics(folder, statistics, standing)
        write_text(folder / "samples.md", preferences_markdown(to_read.rows))
        written = {
            file: preferences.rows,
            "verdicts.jsonl": verdicts.rows,
            "unlabelled.jsonl": unlabelled.rows,
        }
        if weak is not None:
            written[WEAK] = weak.rows
        gaps = standing.gaps + transient_among(statistics.total.reasons.elements())
        counts = self._counts(statistics, preferences.rows, weak=written.get(WEAK, 0))
        return Outcome(counts=counts, rows=written, gaps=gaps)

    def _write_statistics(self, folder: Path, statistics: LabelStatistics, standing: Standing) -> None:
        """Write what the summary is made of, and say what is doubtful of the labels."""
        told = statistics.as_dict() | {"audit": standing.as_dict()}
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
        judge: Judge,
        statistics: LabelStatistics,
        *,
        standing: Standing,
        verdicts: RowWriter,
        unlabelled: RowWriter,
    ) -> Iterator[dict[str, Any]]:
        common, columns = self._common(standing), columns_for_judges(self.source.prompts)
        calibrate, _ = calibration_for(
            self.config, self.protocol, self.context.engines.card(self.judge), self.context
        )
        for judged, preference in label(
            self.pairing.comparisons,
            judge=judge,
            config=self.config,
            statistics=statistics,
            calibrate=calibrate,
            progress=self.context.progress,
        ):
            for verdict in judged.verdicts:
                verdicts.write(verdict_row(verdict))
            if judged.logit_a is None:
                reasons = sorted({verdict.reason for verdict in judged.verdicts if verdict.reason})
                unlabelled.write({"comparison_id": judged.comparison.id, "reasons": reasons})
            if preference is not None:
                yield preference_row(self._as_written(preference), self.context.library, common, columns)

    def _common(self, standing: Standing) -> Mapping[str, Any]:
        context = self.context
        return {
            "protocol": self.protocol.name,
            "judge": context.engines.card(self.judge).label,
            "audit": standing.grade,
            "constitution": context.constitution.name,
            "constitution_digest": context.constitution.digest,
            "template_digest": self.templates,
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
        need = self.protocol.needs
        return {f"without_{need}": sum(lacks(each, need) for each in self.source.prompts)} if need else {}

    def headline(self, manifest: Manifest) -> str:
        """See `Job`."""
        return f"judge {manifest.models['judge']}, {manifest.parts['protocol']}"

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        statistics = read_result(folder / "statistics.json")
        pairs = read_spread(folder / next(iter(manifest.outputs)), EXAMPLES)
        return [
            statistics_table(statistics),
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
        config, context, counter = self.config, self.context, counter_of(self.judge)
        source = self.source if config.responses else self._imagined(earlier)
        seed = context.seed(config)
        comparisons = make_pairs(
            self._askable(source.prompts),
            source.completions,
            pairs=config.pairs,
            seed=seed,
            given=source.given,
        ).comparisons
        judge = self.open_judge(load_scripted("scripted"))
        looked_at = comparisons[:COUNTED]
        groups = [judge.requests(comparison) for comparison in looked_at]
        asked = list(dict.fromkeys(request for group in groups for request in group))
        once = shared([counter.render(request.messages) for request in group] for group in groups)
        # Pairs of one prompt share pointwise questions.
        share = len(asked) / max(1, sum(map(judge.questions_about, looked_at)))
        questions = round(sum(map(judge.questions_about, comparisons)) * share)
        read = round(
            tokens_of(counter, [request.messages for request in asked]) / max(1, len(asked)) * questions
        )
        probes = self.trust.plan(counter)
        write = 0
        if self.protocol.reasons:
            read, write = read * config.reasonings, questions * config.reasonings * config.reasoning_tokens
            write += probes.questions * REASONING_TOKENS  # as an audit asks: one reasoning each
        own = self._own(comparisons, counter, probes=probes.probes)
        read, write = read + own.read, write + own.write
        counts = {
            "completions": len(source.completions),
            "comparisons": len(comparisons),
            "principles": len(self.constitution.principles),
            **own.counts,
            **({"probes": probes.probes} if probes.probes else {}),
            "questions": questions + probes.questions,
        }
        return StagePlan(
            name=config.name,
            kind=config.stage,
            model=self.judge,
            read=read + probes.read,
            write=write,
            seconds=estimated_seconds(self.judge, context, read * once + probes.read_once, write),
            counts=counts,
            example={self.protocol.template: counter.render(asked[0].messages)} if asked else {},
        )

    def _own(self, comparisons: Sequence[Comparison], counter: TokenCount, *, probes: int) -> _Own:
        """What is particular to each prompt: the criteria of its rubric, the judge's own answer to it, and to
        each of the probes."""
        prompts = {each.prompt.fingerprint(): each.prompt for each in comparisons}.values()
        criteria = sum(len(self.protocol.criteria(prompt)) for prompt in prompts)
        counts = {"criteria": criteria} if criteria else {}
        if not self.protocol.commits:
            return _Own(counts, read=0, write=0)
        tasks = [self.protocol.own_task(prompt) for prompt in prompts]
        return _Own(
            counts | {"own_answers": len(tasks) + probes},
            read=tokens_of(counter, tasks),
            write=len(tasks) * self.config.reasoning_tokens + probes * REASONING_TOKENS,
        )

    def _imagined(self, earlier: Mapping[str, AnyJob]) -> Completions:
        """What the stage that is read from will have sampled, as long as it may get."""
        return cast(
            SampleJob, earlier[self.context.earlier(self.config, "sample", self.config.input)]
        ).imagined()

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        return StageWork(read_tokens=device.tokens, read_logits=device.asked)


class _Own(NamedTuple):
    """Counts for a dry run, and tokens that are read and written before any question."""

    counts: dict[str, int]
    read: int
    write: int


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
