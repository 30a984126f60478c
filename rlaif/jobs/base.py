"""The stages as jobs of a run: what each depends on (its key), and how its inputs are read and its files written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rlaif.config import LabelConfig, ReviseConfig, SampleConfig, StageConfig
from rlaif.config.labelling import BaseStage
from rlaif.constitution.load import Half, require
from rlaif.digest import digest
from rlaif.engines.journaled import TRANSIENT
from rlaif.errors import DataError, JudgingError
from rlaif.io.writers import RowWriter, write_rows, write_text
from rlaif.jobs.context import Context
from rlaif.jobs.inputs import Completions, load_completions, load_prompts, load_responses, prompts_digest
from rlaif.jobs.trust import calibration_for, check_audit
from rlaif.judging.aggregate import LabelStatistics
from rlaif.judging.judge import Judge
from rlaif.judging.opening import open_judge, open_protocol
from rlaif.judging.protocols import JudgingProtocol
from rlaif.report.samples import completions_markdown, preferences_markdown, revisions_markdown, spread
from rlaif.results.revisions import Revision
from rlaif.results.rows import completion_row, preference_row, revision_row, sft_rows, verdict_row
from rlaif.stages.label import Pairing, check_invalid_rate, label, make_pairs
from rlaif.stages.revise import revise
from rlaif.stages.sample import check_refused_rate, sample
from rlaif.text import answer_of
from rlaif.types import Completion, Constitution, Preference, Prompt

__all__ = [
    "BUILTIN_LIMIT", "Job", "LabelJob", "Outcome", "ReviseJob", "SampleJob", "check_gaps", "settings_digest", "transient_among",
    "usable", "write_refused",
]

BUILTIN_LIMIT = 24
"""Built-in prompts that a stage draws when no limit is set: a first look, not a study."""
WEAK = "weak.jsonl"
"""Labels that are weaker than `min_strength` asks for."""
TO_READ = 12
"""Items written out in `samples.md`."""


class Outcome(NamedTuple):
    """What a finished stage has to tell.

    Attributes:
        counts: Whole numbers for the manifest; they add up.
        rows: Rows by output file.
        gaps: Questions that got no answer for a reason that may pass (a server that was down): asked again by the same command.
    """

    counts: dict[str, int]
    rows: dict[str, int]
    gaps: int = 0


class Job(Protocol):
    """One stage of a run."""

    @property
    def config(self) -> StageConfig:
        """The stage's settings."""
        ...

    def parts(self) -> dict[str, str]:
        """What the result depends on, a digest or a short value each, under names that a reader understands."""
        ...

    def models(self) -> dict[str, str]:
        """Who plays which role, as `name@revision`."""
        ...

    def execute(self, folder: Path) -> Outcome:
        """Do the work and write the stage's files into `folder`."""
        ...


MOST_GAPS = 0.1
"""Share of an audit's or an evaluation's questions that may go without an answer before the stage fails."""


def check_gaps(gaps: int, asked: int, *, stage: str) -> None:
    """Refuse a result that would rest on too few answers.

    Raises:
        JudgingError: More than a tenth of the questions got no answer, for a reason that may pass.
    """
    if gaps > MOST_GAPS * asked:
        raise JudgingError(
            f"{gaps} of {asked} verdicts got no answer from the server", where=stage,
            remedy="see to the server and run the same command again: what was answered is kept",
        )


def transient_among(reasons: Iterable[str]) -> int:
    """How many of the reasons may pass."""
    return sum(reason.startswith(TRANSIENT) for reason in reasons)


def write_refused(folder: Path, refused: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Write `refused.jsonl`: the id and the reason of each prompt that could not be answered, if there are any; rows by file."""
    if not refused:
        return {}
    rows = [{"prompt_id": id, "reason": reason} for id, reason in refused]
    return {"refused.jsonl": write_rows(folder / "refused.jsonl", rows, "jsonl").rows}


def settings_digest(config: BaseStage, *leave_out: str) -> str:
    """Digest of the settings that may change the result; names, sources and models are covered by parts of their own."""
    values = config.model_dump(mode="json")
    return digest({key: value for key, value in values.items() if key not in ("stage", "name", "seed", "skip_bad_rows", *leave_out)})


class SampleJob:
    """Prompts in, K completions each out: `completions.jsonl`."""

    def __init__(self, config: SampleConfig, context: Context) -> None:
        self.config = config
        self.context = context
        self.prompts: tuple[Prompt, ...] = load_prompts(
            config, own_split="label", own_limit=BUILTIN_LIMIT, seed=context.seed(config), progress=context.progress,
            left_out=partial(context.leave_out, config.name),
        )
        self.policy = context.model(config.policy)
        context.claim_prompts("label", self.prompts)

    def parts(self) -> dict[str, str]:
        """See `Job`."""
        card = self.context.policy(self.config.policy).card
        return {
            "settings": settings_digest(self.config, "policy", "prompts", "prompt_column", "context_column", "split", "limit"),
            "prompts": prompts_digest(self.prompts), "policy": digest([card.name, card.identity()]),
            "templates": self.context.library.digest("policy"), "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"policy": self.context.policy(self.config.policy).card.label}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        samples = sample(
            self.prompts, policy=self.context.policy(self.config.policy), library=self.context.library, config=self.config,
            seed=self.context.seed(self.config), progress=self.context.progress,
        )
        reasons = [reason for _, reason in samples.refused]
        check_refused_rate(reasons, len(self.prompts) * self.config.k, self.config.max_refused)
        by_id = {prompt.id: prompt for prompt in self.prompts}
        rows = [completion_row(completion, by_id[completion.prompt_id]) for completion in samples.completions]
        written = {"completions.jsonl": write_rows(folder / "completions.jsonl", rows, "jsonl").rows}
        written |= write_refused(folder, samples.refused)
        write_text(folder / "samples.md", completions_markdown(spread(rows, TO_READ)))
        return Outcome(counts={"prompts": len(self.prompts), **samples.counts()}, rows=written, gaps=transient_among(reasons))


class ReviseJob:
    """Prompts in, chains of critique and revision out: `revisions.jsonl`, and `sft.jsonl` to fine-tune on."""

    def __init__(self, config: ReviseConfig, context: Context) -> None:
        self.config = config
        self.context = context
        self.prompts = load_prompts(
            config, own_split="sft", own_limit=BUILTIN_LIMIT, seed=context.seed(config), progress=context.progress,
            left_out=partial(context.leave_out, config.name),
        )
        self.policy = context.model(config.policy)
        self.constitution = usable(context, "critique_revision")
        context.claim_prompts("sft", self.prompts)

    def parts(self) -> dict[str, str]:
        """See `Job`."""
        card = self.context.policy(self.config.policy).card
        return {
            "settings": settings_digest(self.config, "policy", "prompts", "prompt_column", "context_column", "split", "limit"),
            "prompts": prompts_digest(self.prompts), "policy": digest([card.name, card.identity()]),
            "constitution": self.context.constitution.digest,
            "templates": self.context.library.digest("policy", "critique", "revise"), "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"policy": self.context.policy(self.config.policy).card.label}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, seed = self.context, self.context.seed(self.config)
        revisions = revise(
            self.prompts, policy=context.policy(self.config.policy), library=context.library, constitution=self.constitution,
            config=self.config, seed=seed, progress=context.progress,
        )
        reasons = [revision.failed for revision in revisions if revision.failed]
        check_refused_rate(reasons, len(revisions), self.config.max_refused, what="chains")
        common = {
            "policy": context.policy(self.config.policy).card.label, "constitution": context.constitution.name,
            "constitution_digest": context.constitution.digest, "seed": seed,
        }
        rows = [revision_row(revision) for revision in revisions]
        sft = [row for revision in revisions for row in sft_rows(revision, context.library, common)]
        written = {
            "revisions.jsonl": write_rows(folder / "revisions.jsonl", rows, "jsonl").rows,
            "sft.jsonl": write_rows(folder / "sft.jsonl", sft, "jsonl").rows,
        }
        write_text(folder / "samples.md", revisions_markdown(spread(rows, TO_READ)))
        return Outcome(counts=self._counts(revisions, len(sft)), rows=written, gaps=transient_among(reasons))

    def _counts(self, revisions: list[Revision], sft: int) -> dict[str, int]:
        texts = [step.revision for revision in revisions for step in revision.rounds]
        return {
            "prompts": len(self.prompts), "revisions": len(texts), "empty": texts.count(""), "sft_rows": sft,
            "repeated": len([text for text in texts if text]) - sft, "failed_chains": sum(bool(each.failed) for each in revisions),
        }


class LabelJob:
    """Completions in, preferences out: `preferences.jsonl` (or `.parquet`), `verdicts.jsonl`, `statistics.json`."""

    def __init__(self, config: LabelConfig, context: Context) -> None:
        self.config = config
        self.context = context
        self.judge = context.model(config.judge)
        self.protocol: JudgingProtocol = open_protocol(
            config.protocol or context.constitution.protocol, library=context.library, constitution=context.constitution,
            clamp=config.clamp, least_share=config.min_label_share,
        )
        half: Half = "comparison" if self.protocol.half == "comparison" else "question"
        self.constitution = usable(context, half)
        self.templates = context.library.digest(self.protocol.template)
        """Digest of the judge's templates; read now, so that a broken one is found before anything is sampled."""
        if config.responses:
            self.source = load_responses(config, context.progress)
            context.claim_prompts("label", self.source.prompts)

    @cached_property
    def source(self) -> Completions:
        """The completions of the stage that is read from; it has finished by the time they are needed."""
        return load_completions(self.context.folder_of(self.config, "sample", self.config.input))

    @cached_property
    def pairing(self) -> Pairing:
        """What is compared, and what is not."""
        return make_pairs(
            self.source.prompts, self._as_judged(), pairs=self.config.pairs, seed=self.context.seed(self.config),
            given=self.source.given,
        )

    def _as_judged(self) -> list[Completion]:
        """The completions as the judge reads them."""
        if self.config.reasoning == "judge":
            return list(self.source.completions)
        return [replace(each, text=answer_of(each.text)) for each in self.source.completions]

    def _as_written(self, preference: Preference) -> Preference:
        """The preference with the completions as the preferences keep them."""
        if self.config.reasoning != "keep":
            return preference
        a, b = (replace(each, text=self._texts[each.id]) for each in (preference.comparison.a, preference.comparison.b))
        return replace(preference, comparison=replace(preference.comparison, a=a, b=b))

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {each.id: each.text for each in self.source.completions}

    def parts(self) -> dict[str, str]:
        """See `Job`."""
        card = self.context.engines.card(self.judge)
        return {
            "settings": settings_digest(
                self.config, "judge", "responses", "input", "prompt_column", "context_column", "limit", "protocol", "require_audit",
                "calibration",
            ),
            "calibration": calibration_for(self.config, self.protocol, card, self.context)[1],
            "completions": self.source.digest(), "judge": digest([card.name, card.identity()]), "protocol": self.protocol.name,
            "constitution": self.context.constitution.digest, "templates": self.templates, "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"judge": self.context.engines.card(self.judge).label}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, statistics = self.context, LabelStatistics()
        check_audit(self.config, self.protocol, context.engines.card(self.judge), context)
        judge = open_judge(
            context.engines.get(self.judge), self.protocol, self.constitution, principles=self.config.principles,
            seed=context.seed(self.config), progress=context.progress, reasoning_tokens=self.config.reasoning_tokens,
        )
        file = f"preferences.{self.config.format}"
        with ExitStack() as stack:
            verdicts = stack.enter_context(RowWriter(folder / "verdicts.jsonl", "jsonl"))
            preferences = stack.enter_context(RowWriter(folder / file, self.config.format))
            unlabelled = stack.enter_context(RowWriter(folder / "unlabelled.jsonl", "jsonl"))
            weak = stack.enter_context(RowWriter(folder / WEAK, "jsonl")) if self.config.min_strength else None
            expected = len(self.source.prompts) if self.config.pairs == "best-worst" else len(self.pairing.comparisons)
            to_read = _Spread(expected, TO_READ)
            for row in self._judged(judge, statistics, verdicts=verdicts, unlabelled=unlabelled):
                if weak is not None and row["p_chosen"] - 0.5 < self.config.min_strength:
                    weak.write(row)
                    continue
                preferences.write(row)
                to_read.add(row)
        check_invalid_rate(statistics, self.config.max_invalid)
        if not statistics.comparisons:
            raise DataError(
                "there is nothing to compare: no prompt has two different completions", where=self.config.responses or "",
                remedy="sample more completions a prompt (k), or at a higher temperature",
            )
        self._tell_weak(weak, preferences)
        write_text(folder / "statistics.json", json.dumps(statistics.as_dict(), indent=2) + "\n")
        write_text(folder / "samples.md", preferences_markdown(to_read.rows))
        written = {file: preferences.rows, "verdicts.jsonl": verdicts.rows, "unlabelled.jsonl": unlabelled.rows}
        if weak is not None:
            written[WEAK] = weak.rows
        gaps = transient_among(statistics.total.reasons.elements())
        counts = self._counts(statistics, preferences.rows, weak=written.get(WEAK, 0))
        return Outcome(counts=counts, rows=written, gaps=gaps)

    def _tell_weak(self, weak: RowWriter | None, preferences: RowWriter) -> None:
        """Say how many labels are too weak for the preferences; it is an error when none is strong enough."""
        if weak is None or not weak.rows:
            return
        least = self.config.min_strength
        if not preferences.rows:
            raise DataError(
                f"all {weak.rows} labels are weaker than min_strength ({least:g})", where=self.config.name,
                remedy="lower it, or learn from soft labels: rlaif reward or dpo",
            )
        told = f"{weak.rows} of {weak.rows + preferences.rows} labels are weaker than {least:g} (|p - 0.5|)"
        self.context.progress.note(f"{self.config.name}: {told}; they are in {WEAK}")

    def _judged(
        self, judge: Judge, statistics: LabelStatistics, *, verdicts: RowWriter, unlabelled: RowWriter
    ) -> Iterator[dict[str, Any]]:
        common = self._common()
        calibrate, _ = calibration_for(self.config, self.protocol, self.context.engines.card(self.judge), self.context)
        for judged, preference in label(
            self.pairing.comparisons, judge=judge, config=self.config, statistics=statistics, calibrate=calibrate,
            progress=self.context.progress,
        ):
            for verdict in judged.verdicts:
                verdicts.write(verdict_row(verdict))
            if judged.logit_a is None:
                reasons = sorted({verdict.reason for verdict in judged.verdicts if verdict.reason})
                unlabelled.write({"comparison_id": judged.comparison.id, "reasons": reasons})
            if preference is not None:
                yield preference_row(self._as_written(preference), self.context.library, common)

    def _common(self) -> Mapping[str, Any]:
        context = self.context
        return {
            "protocol": self.protocol.name, "judge": context.engines.card(self.judge).label,
            "constitution": context.constitution.name, "constitution_digest": context.constitution.digest,
            "template_digest": self.templates, "seed": context.seed(self.config),
        }

    def _counts(self, statistics: LabelStatistics, preferences: int, *, weak: int) -> dict[str, int]:
        pairing = self.pairing
        return {
            "prompts": len(self.source.prompts), "completions": len(self.source.completions), "bad_rows": self.source.bad_rows,
            "with_reasoning": sum(answer_of(each.text) != each.text for each in self.source.completions),
            "comparisons": statistics.comparisons, "identical_pairs": pairing.identical, "repeated_pairs": pairing.repeated,
            "pairs_not_drawn": pairing.not_drawn, "lone_completions": pairing.lone, "verdicts": statistics.total.verdicts,
            "invalid_verdicts": statistics.total.invalid,
            "preferences": preferences, "weak": weak, "unlabelled": statistics.unlabelled,
            "not_best_worst": statistics.labelled - preferences - weak,
        }


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


def usable(context: Context, half: Half) -> Constitution:
    """The constitution, with the principles that the stage can use."""
    constitution = context.constitution
    return replace(constitution, principles=require(constitution, half, source=context.recipe.constitution))
