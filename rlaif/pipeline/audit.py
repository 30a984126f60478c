"""Run an audit, or the difference of two constitutions: open the judge, ask it behind a journal, write the
files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from rlaif.audit.calibration import Calibration, fit_calibration
from rlaif.audit.cases import Case, judge_pairs
from rlaif.audit.differences import Difference, Side, difference
from rlaif.audit.report import AuditReport, ProtocolAudit
from rlaif.config.labelling import ServerConfig
from rlaif.constitution.load import load_constitution, require
from rlaif.digest import digest
from rlaif.engines.base import Engine
from rlaif.errors import ConfigError, DataError
from rlaif.jobs.asked import warn_of_other_questions
from rlaif.jobs.audit_files import Pairs, audit_file, save_calibration, save_text
from rlaif.jobs.audit_task import (
    AuditInputs,
    AuditPlan,
    AuditTask,
    as_json,
    audit_inputs,
    conduct,
    plan_questions,
    read_comparisons,
    write_audit,
)
from rlaif.jobs.engines import Engines
from rlaif.judging.table import PROTOCOLS, open_judge, open_protocol
from rlaif.models.open import open_token_count
from rlaif.models.probe_files import protocol_of
from rlaif.progress import Progress
from rlaif.prompts import PromptLibrary
from rlaif.report.audit import difference_markdown
from rlaif.runs.journal import Journal
from rlaif.runs.spending import Spending
from rlaif.types import Constitution

__all__ = [
    "AuditSettings",
    "Audited",
    "Compared",
    "plan_audit",
    "plan_difference",
    "run_audit",
    "run_difference",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings(AuditTask):
    """An audit by itself: what to ask, how the judge is run, and where to write."""

    server: ServerConfig = field(default_factory=ServerConfig)
    dtype: str = "auto"
    device: str = "auto"
    journal: Path
    out: Path
    calibration: Path | None = None


class Audited(NamedTuple):
    """An audit and the files it left."""

    report: AuditReport
    calibration: Calibration | None
    files: tuple[Path, ...]


class Compared(NamedTuple):
    """A difference and the files it left."""

    found: Difference
    files: tuple[Path, ...]


def run_audit(settings: AuditSettings, progress: Progress) -> Audited:
    """Audit a judge; what was asked before is read from the journal.

    Raises:
        RlaifError: An input cannot be read, the judge not be loaded, or a file not be written.
    """
    inputs = _inputs(settings, progress)
    kept: dict[str, Sequence[Case]] = {}
    with Journal(settings.journal) as journal, _account(settings) as spending:
        engine = _engine(settings, journal, spending, progress)
        for name in inputs.usable:
            warn_of_other_questions(
                settings.judge, PROTOCOLS[name], inputs.constitution, inputs.library, progress
            )
        report = conduct(
            settings,
            inputs,
            engine,
            progress=progress,
            keep=lambda name, cases, _: kept.update({name: cases}),
        )
    files: tuple[Path, ...] = write_audit(report, settings.out / audit_file(report))
    calibration = None
    if settings.calibration:
        name = (
            inputs.constitution.protocol
            if inputs.constitution.protocol in inputs.usable
            else next(iter(inputs.usable))
        )
        part = report.protocol(name)
        assert part is not None, "every usable protocol was audited"
        calibration = _calibrate(kept[name], part, settings)
        save_calibration(settings.calibration, calibration)
        files = (*files, settings.calibration)
    return Audited(report=report, calibration=calibration, files=files)


def plan_audit(settings: AuditSettings, progress: Progress) -> AuditPlan:
    """What `run_audit` would ask, without a model: only its tokenizer is read."""
    return plan_questions(settings, _inputs(settings, progress), open_token_count(settings.judge))


def run_difference(settings: AuditSettings, other: str, progress: Progress) -> Compared:
    """Judge the comparisons of `settings.data` under two constitutions and compare; writes JSON and Markdown
    into `settings.out`.

    Args:
        settings: `constitution` is side A, `protocol` one protocol or `None` for that of A.
        other: Side B.

    Raises:
        RlaifError: As `run_audit`.
    """
    name, usable, read = _both_sides(settings, other, progress)
    sides = []
    with Journal(settings.journal) as journal, _account(settings) as spending:
        engine = _engine(settings, journal, spending, progress)
        for constitution in usable:
            library = PromptLibrary(constitution.language, settings.prompts_dir)
            protocol = open_protocol(
                name, library=library, constitution=constitution, least_share=settings.min_label_share
            )
            judge = open_judge(
                engine, protocol, constitution, principles="all", seed=settings.seed, progress=progress
            )
            asked = sum(judge.questions_about(pair.comparison) for pair in read.pairs)
            progress.begin(f"judging under {constitution.name}", asked)
            sides.append(Side(constitution=constitution, cases=list(judge_pairs(judge, read.pairs))))
    found = difference(*sides, judge=engine.card.label, protocol=name)
    base = settings.out / f"difference-{usable[0].digest[:8]}-{usable[1].digest[:8]}"
    files = (base.with_suffix(".json"), base.with_suffix(".md"))
    save_text(files[0], as_json(found))
    save_text(files[1], difference_markdown(found))
    return Compared(found=found, files=files)


def plan_difference(settings: AuditSettings, other: str, progress: Progress) -> int:
    """How many questions `run_difference` would ask."""
    name, usable, read = _both_sides(settings, other, progress)
    return (
        PROTOCOLS[name].asks * len(read.pairs) * sum(len(constitution.principles) for constitution in usable)
    )


def _both_sides(
    settings: AuditSettings, other: str, progress: Progress
) -> tuple[str, list[Constitution], Pairs]:
    """The protocol, the two constitutions with the principles that it can ask, and the comparisons."""
    if settings.data is None:
        raise DataError("there is nothing to compare the constitutions on", remedy="give pairs with --on")
    loaded = [(load_constitution(source), source) for source in (settings.constitution, other)]
    asked = None if settings.protocol == "both" else settings.protocol
    name = protocol_of(settings.judge, asked, loaded[0][0].protocol)
    half = PROTOCOLS[name].half
    if half is None:
        raise ConfigError(
            f"the protocol `{name}` asks nothing of a constitution: both sides would be judged alike",
            remedy="compare them under pairwise or pointwise",
        )
    usable = [replace(each, principles=require(each, half, source=source)) for each, source in loaded]
    return name, usable, read_comparisons(settings, settings.data, progress)


def _inputs(settings: AuditSettings, progress: Progress) -> AuditInputs:
    inputs = audit_inputs(settings, progress)
    if settings.calibration and not inputs.labelled:
        raise DataError(
            "a calibration needs human labels", remedy="give --data a file with columns chosen and rejected"
        )
    return inputs


def _account(settings: AuditSettings) -> Spending:
    """What this audit has spent: a file beside its report, which the same command goes on with."""
    same = (
        settings.judge,
        settings.constitution,
        settings.data,
        settings.protocol,
        settings.limit,
        settings.seed,
    )
    return Spending(settings.out / f"spending-{digest([str(each) for each in same])[:8]}.jsonl")


def _engine(settings: AuditSettings, journal: Journal, spending: Spending, progress: Progress) -> Engine:
    pool = Engines(
        journal,
        dtype=settings.dtype,
        device=settings.device,
        server=settings.server,
        note=progress.note,
        spending=spending,
    )
    return pool.get(settings.judge)


def _calibrate(cases: Sequence[Case], part: ProtocolAudit, settings: AuditSettings) -> Calibration:
    rows = [(case.logit_a, case.pair.a_wins, case.pair.comparison.prompt.fingerprint()) for case in cases]
    known = [(logit, won, prompt) for logit, won, prompt in rows if logit is not None and won is not None]
    return fit_calibration(
        [logit for logit, _, _ in known],
        [won for _, won, _ in known],
        [prompt for _, _, prompt in known],
        seed=settings.seed,
        judge_revision=part.key.judge_revision,
        constitution_digest=part.key.constitution_digest,
        template_digest=part.key.template_digest,
        protocol=part.protocol,
        principles=settings.principles,
    )
