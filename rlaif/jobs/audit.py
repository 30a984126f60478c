"""The audit as a stage of a run: the judge is asked as the next `label` stage will ask it, and its report
lies in the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlaif.audit.cases import Case
from rlaif.audit.report import AuditReport, audit_line
from rlaif.config import AuditConfig, LabelConfig
from rlaif.digest import digest
from rlaif.errors import ConfigError
from rlaif.io.writers import write_text
from rlaif.jobs.asked import warn_of_other_questions
from rlaif.jobs.audit_files import STAGE_AUDIT
from rlaif.jobs.audit_task import (
    AuditTask,
    audit_inputs,
    conduct,
    pairs_digest,
    plan_questions,
    write_audit,
    writing_of,
)
from rlaif.jobs.base import AnyJob, Job, Outcome, check_gaps, read_result, transient_among
from rlaif.jobs.context import RunContext
from rlaif.jobs.lengths import Device, Lengths
from rlaif.jobs.planning import StagePlan, counter_of, estimated_seconds
from rlaif.judging.reasoning import REASONING_TOKENS
from rlaif.judging.table import PROTOCOLS, open_protocol
from rlaif.models.memory import StageWork
from rlaif.models.open import is_scripted, is_served
from rlaif.report.audit import audit_lines, cases_markdown
from rlaif.report.shown import Shown
from rlaif.runs.manifest import Manifest

__all__ = ["AuditJob"]


class AuditJob(Job[AuditConfig]):
    """A judge in, what it is worth out: `audit.json`, `audit.md`."""

    def __init__(self, config: AuditConfig, context: RunContext) -> None:
        super().__init__(config, context)
        label = _next_label(config, context)
        self.judge = config.judge or _only_judge(label, config, context)
        self.task = AuditTask(
            judge=self.judge,
            constitution=context.recipe.constitution,
            data=config.data,
            prompt_column=config.prompt_column,
            skip_bad_rows=config.skip_bad_rows,
            protocol=config.protocol or label.protocol,
            limit=config.limit,
            probes=config.probes,
            principles=config.principles or label.principles,
            variants=config.variants,
            seed=context.seed(config),
            prompts_dir=Path(context.recipe.prompts_dir) if context.recipe.prompts_dir else None,
            min_label_share=label.min_label_share
            if config.min_label_share is None
            else config.min_label_share,
            reasoning_tokens=label.reasoning_tokens,
            reasonings=label.reasonings,
        )
        self.inputs = audit_inputs(self.task, context.progress)
        if config.data and config.skip_bad_rows:
            context.leave_out(config.name, config.data, self.inputs.bad_rows)

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        card, library = self.context.engines.card(self.judge), self.inputs.library
        protocols = [
            open_protocol(name, library=library, constitution=each)
            for name, each in self.inputs.usable.items()
        ]
        return {
            "variants": str(self.config.variants),
            "principles": self.task.principles,
            "labels": str(self.task.min_label_share),
            "protocol": " ".join(self.inputs.usable),
            "pairs": pairs_digest(self.inputs.pairs),
            "probes": pairs_digest(self.inputs.probes),
            "judge": digest([card.name, card.identity()]),
            "constitution": self.context.constitution.digest,
            "templates": library.digest(
                *(name for each in protocols for name in (each.template, *each.also))
            ),
            "seed": str(self.task.seed),
            **self._writing(),
        }

    def _writing(self) -> dict[str, str]:
        """What the judge may write before it is asked, where the settings say so."""
        asked = (self.task.reasoning_tokens, self.task.reasonings)
        return {} if asked == (REASONING_TOKENS, 1) else {"writing": "{} tokens, {} times".format(*asked)}

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"judge": self.context.engines.card(self.judge).label}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        judged: dict[str, Sequence[Case]] = {}
        library, constitution = self.inputs.library, self.inputs.constitution
        for name in self.inputs.usable:
            warn_of_other_questions(self.judge, PROTOCOLS[name], constitution, library, self.context.progress)
        report = conduct(
            self.task,
            self.inputs,
            self.context.engines.get(self.judge),
            progress=self.context.progress,
            keep=lambda name, cases, probes: judged.update({name: [*cases, *probes]}),
        )
        verdicts = [verdict for cases in judged.values() for case in cases for verdict in case.verdicts]
        gaps = transient_among(verdict.reason for verdict in verdicts)
        check_gaps(gaps, len(verdicts), stage=self.config.name)
        write_audit(report, folder / Path(STAGE_AUDIT).stem)
        write_text(folder / "samples.md", cases_markdown(judged))
        for each in report.protocols:
            warning = "warning: " if each.judgement.grade == "do not use" else ""
            self.context.progress.note(f"{warning}{audit_line(each)}")
        return Outcome(counts=_counts(report, len(self.inputs.probes), judged), rows={}, gaps=gaps)

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        return audit_lines(read_result(folder / STAGE_AUDIT))

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        context, counter = self.context, counter_of(self.judge)
        plan = plan_questions(self.task, self.inputs, counter)
        return StagePlan(
            name=self.config.name,
            kind=self.config.stage,
            model=self.judge,
            read=round(plan.read),
            write=plan.write,
            seconds=estimated_seconds(self.judge, context, plan.read * plan.shared, plan.write),
            example={},
            counts={"comparisons": plan.comparisons, "probes": plan.probes, "questions": plan.questions},
        )

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        work = StageWork(read_tokens=device.tokens, read_logits=device.asked)
        if is_served(weights := self.context.recipe.weights_of(self.judge)) or is_scripted(weights):
            return work
        written = writing_of(self.task, self.inputs, counter_of(weights), rows=device.rows)
        return written._replace(read_tokens=device.tokens, read_logits=device.asked)


def _next_label(config: AuditConfig, context: RunContext) -> LabelConfig:
    """The label stage that the audit is for; one with its defaults where none follows."""
    names = [stage.name for stage in context.recipe.stages]
    after = context.recipe.stages[names.index(config.name) + 1 :]
    return next((stage for stage in after if isinstance(stage, LabelConfig)), LabelConfig())


def _only_judge(label: LabelConfig, config: AuditConfig, context: RunContext) -> str:
    """The judge of the label stage.

    Raises:
        ConfigError: It has several, or one that this recipe trains.
    """
    seats = label.seats(context.recipe.model)
    if len(seats) > 1:
        raise ConfigError(
            f"stage {config.name!r} audits one judge, and {label.name!r} has {len(seats)}",
            where=config.name,
            remedy="name one (judge: MODEL), with an audit stage for each",
        )
    model = seats[0].model
    if context.recipe.judge_stage(model) is not None:
        raise ConfigError(
            f"stage {config.name!r} would audit {model!r}, a judge that this recipe trains",
            where=config.name,
            remedy=f"leave the stage out, and audit it then: rlaif audit --judge {context.judge(model)}",
        )
    return model


def _counts(report: AuditReport, probes: int, judged: Mapping[str, Sequence[Case]]) -> dict[str, int]:
    verdicts = [verdict for cases in judged.values() for case in cases for verdict in case.verdicts]
    return {
        "pairs": report.pairs,
        "labelled_pairs": report.labelled,
        "probes": probes,
        "verdicts": len(verdicts),
        "invalid_verdicts": sum(verdict.logit_a is None for verdict in verdicts),
    }
