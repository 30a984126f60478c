"""Run an audit, or the difference of two constitutions: open the judge, ask it behind a journal, write the files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from rlaif.config.stages import ServerConfig
from rlaif.constitution import Half, load_constitution, require
from rlaif.engines.journaled import JournaledEngine
from rlaif.errors import ConstitutionError, DataError
from rlaif.judging.audit import SENSITIVITY_ROWS, audit, questions_of
from rlaif.judging.audit_report import AuditReport, ProtocolAudit
from rlaif.judging.calibration import Calibration, fit_calibration
from rlaif.judging.cases import Case, Pair, judge_pairs, plain
from rlaif.judging.difference import Difference, Side, difference
from rlaif.judging.judge import PrincipleMode
from rlaif.judging.opening import open_judge, open_protocol
from rlaif.judging.protocols import QUESTIONS
from rlaif.models.engines import open_token_count
from rlaif.pipeline.audits import Pairs, audit_file, read_pairs, read_probes, save_calibration, save_text
from rlaif.pipeline.context import EnginePool
from rlaif.progress import Progress
from rlaif.prompts import PromptLibrary
from rlaif.report.audit import audit_markdown, difference_markdown
from rlaif.runs.store import Journal
from rlaif.types import Constitution

__all__ = ["AuditSettings", "Audited", "Compared", "Plan", "plan_audit", "plan_difference", "run_audit", "run_difference"]

HALVES: Mapping[str, Half] = {"pairwise": "comparison", "pointwise": "question", "cot": "comparison"}
BOTH = ("pairwise", "pointwise")
COUNTED = 20
"""Comparisons whose questions are rendered to estimate tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """What to audit, and where to write.

    Attributes:
        protocol: `both` audits the protocols that the constitution has texts for; `None` is the constitution's own.
        limit: Comparisons of `data` to draw; `None` takes all.
        variants: Comparisons on which other labels and wordings are tried.
    """

    judge: str
    constitution: str
    data: str | None = None
    prompt_column: str = "prompt"
    skip_bad_rows: bool = False
    protocol: Literal["both", "pairwise", "pointwise", "cot"] | None = "both"
    limit: int | None = None
    probes: bool = True
    principles: PrincipleMode = "all"
    variants: int = SENSITIVITY_ROWS
    own: str = ""
    seed: int = 0
    server: ServerConfig = field(default_factory=ServerConfig)
    dtype: str = "auto"
    device: str = "auto"
    prompts_dir: Path | None = None
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


class Plan(NamedTuple):
    """What an audit would ask: questions, and the mean length of their prompts in tokens."""

    protocols: tuple[str, ...]
    comparisons: int
    probes: int
    questions: int
    tokens_each: float


class _Inputs(NamedTuple):
    constitution: Constitution
    usable: dict[str, Constitution]
    library: PromptLibrary
    pairs: tuple[Pair, ...]
    probes: tuple[Pair, ...]
    data: str


def run_audit(settings: AuditSettings, progress: Progress) -> Audited:
    """Audit a judge; what was asked before is read from the journal.

    Raises:
        RlaifError: An input cannot be read, the judge not be loaded, or a file not be written.
    """
    inputs = _inputs(settings, progress)
    kept: dict[str, Sequence[Case]] = {}
    with Journal(settings.journal) as journal:
        engine = _engine(settings, journal, progress)
        report = audit(
            engine, library=inputs.library, constitution=inputs.constitution, usable=inputs.usable, pairs=inputs.pairs,
            probes=inputs.probes, data=inputs.data, principles=settings.principles, own=settings.own, seed=settings.seed,
            sensitivity_rows=settings.variants, progress=progress, keep=kept.__setitem__,
        )
    base = settings.out / audit_file(report)
    files = [base.with_suffix(".json"), base.with_suffix(".md")]
    save_text(files[0], _json(report))
    save_text(files[1], audit_markdown(report))
    calibration = None
    if settings.calibration:
        name = inputs.constitution.protocol if inputs.constitution.protocol in inputs.usable else next(iter(inputs.usable))
        part = report.protocol(name)
        assert part is not None, "every usable protocol was audited"
        calibration = _calibrate(kept[name], part, settings)
        save_calibration(settings.calibration, calibration)
        files.append(settings.calibration)
    return Audited(report=report, calibration=calibration, files=tuple(files))


def plan_audit(settings: AuditSettings, progress: Progress) -> Plan:
    """What `run_audit` would ask, without a model: only its tokenizer is read."""
    inputs = _inputs(settings, progress)
    questions = questions_of(
        inputs.usable, pairs=len(inputs.pairs), probes=len(inputs.probes), mode=settings.principles,
        sensitivity_rows=settings.variants,
    )
    counter = open_token_count(settings.judge)
    lengths = []
    for name, constitution in inputs.usable.items():
        protocol = open_protocol(name, library=inputs.library, constitution=constitution)
        for pair in [*inputs.pairs[:COUNTED], *inputs.probes[:COUNTED]]:
            requests = protocol.questions(pair.comparison, constitution.principles[0])
            lengths += [counter.count(request.messages) for request in requests]
    return Plan(
        protocols=tuple(inputs.usable), comparisons=len(inputs.pairs), probes=len(inputs.probes), questions=questions,
        tokens_each=sum(lengths) / len(lengths) if lengths else 0.0,
    )


def run_difference(settings: AuditSettings, other: str, progress: Progress) -> Compared:
    """Judge the comparisons of `settings.data` under two constitutions and compare; writes JSON and Markdown into `settings.out`.

    Args:
        settings: `constitution` is side A, `protocol` one protocol or `None` for that of A.
        other: Side B.

    Raises:
        RlaifError: As `run_audit`.
    """
    name, usable, read = _both_sides(settings, other, progress)
    sides = []
    with Journal(settings.journal) as journal:
        engine = _engine(settings, journal, progress)
        for constitution in usable:
            library = PromptLibrary(constitution.language, settings.prompts_dir)
            protocol = open_protocol(name, library=library, constitution=constitution)
            judge = open_judge(engine, protocol, constitution, principles="all", seed=settings.seed, progress=progress)
            progress.begin(f"judging under {constitution.name}", len(read.pairs) * judge.questions_each)
            sides.append(Side(constitution=constitution, cases=list(judge_pairs(judge, read.pairs))))
    found = difference(*sides, judge=engine.card.label, protocol=name)
    base = settings.out / f"difference-{usable[0].digest[:8]}-{usable[1].digest[:8]}"
    files = (base.with_suffix(".json"), base.with_suffix(".md"))
    save_text(files[0], _json(found))
    save_text(files[1], difference_markdown(found))
    return Compared(found=found, files=files)


def plan_difference(settings: AuditSettings, other: str, progress: Progress) -> int:
    """How many questions `run_difference` would ask."""
    _, usable, read = _both_sides(settings, other, progress)
    return QUESTIONS * len(read.pairs) * sum(len(constitution.principles) for constitution in usable)


def _both_sides(settings: AuditSettings, other: str, progress: Progress) -> tuple[str, list[Constitution], Pairs]:
    """The protocol, the two constitutions with the principles that it can ask, and the comparisons."""
    if settings.data is None:
        raise DataError("there is nothing to compare the constitutions on", remedy="give pairs with --on")
    loaded = [(load_constitution(source), source) for source in (settings.constitution, other)]
    name = loaded[0][0].protocol if settings.protocol in (None, "both") else settings.protocol
    usable = [replace(each, principles=require(each, HALVES[str(name)], source=source)) for each, source in loaded]
    return str(name), usable, _read(settings, settings.data, progress)


def _inputs(settings: AuditSettings, progress: Progress) -> _Inputs:
    constitution = load_constitution(settings.constitution)
    usable = _usable(constitution, settings, progress)
    read = _read(settings, settings.data, progress) if settings.data else None
    probes = read_probes(seed=settings.seed) if settings.probes else ()
    if read is None and not probes:
        raise DataError("there is nothing to audit on", remedy="give --data, or leave --no-probes out")
    if settings.calibration and not (read and read.labelled):
        raise DataError("a calibration needs human labels", remedy="give --data a file with columns chosen and rejected")
    return _Inputs(
        constitution=constitution, usable=usable, library=PromptLibrary(constitution.language, settings.prompts_dir),
        pairs=read.pairs if read else (), probes=probes, data=Path(settings.data).name if settings.data else "",
    )


def _engine(settings: AuditSettings, journal: Journal, progress: Progress) -> JournaledEngine:
    pool = EnginePool(journal, dtype=settings.dtype, device=settings.device, server=settings.server, note=progress.note)
    return pool.get(settings.judge)


def _usable(constitution: Constitution, settings: AuditSettings, progress: Progress) -> dict[str, Constitution]:
    """By protocol to audit, the principles that it can ask; under `both`, a protocol without any is left out."""
    asked = BOTH if settings.protocol == "both" else (settings.protocol or constitution.protocol,)
    usable: dict[str, Constitution] = {}
    refused: list[ConstitutionError] = []
    for name in asked:
        try:
            usable[name] = replace(constitution, principles=require(constitution, HALVES[name], source=settings.constitution))
        except ConstitutionError as error:
            refused.append(error)
    if not usable:
        raise refused[0]
    if refused:
        progress.note(f"only {', '.join(usable)} is audited: {refused[0].what}")
    return usable


def _read(settings: AuditSettings, source: str, progress: Progress) -> Pairs:
    """The comparisons of a file; what was left out is told."""
    read = read_pairs(
        source, limit=settings.limit, prompt_column=settings.prompt_column, skip_bad_rows=settings.skip_bad_rows, seed=settings.seed,
    )
    for note in read.read.notes:
        progress.note(f"{source}: {note}")
    if read.read.problems:
        progress.note(f"{source}: {len(read.read.problems)} of {read.read.rows} rows could not be read and were skipped")
    if read.identical:
        progress.note(f"{source}: {read.identical} pairs with equal completions were left out")
    return read


def _calibrate(cases: Sequence[Case], part: ProtocolAudit, settings: AuditSettings) -> Calibration:
    rows = [(case.logit_a, case.pair.a_wins, case.pair.comparison.prompt.fingerprint()) for case in cases]
    known = [(logit, won, prompt) for logit, won, prompt in rows if logit is not None and won is not None]
    return fit_calibration(
        [logit for logit, _, _ in known], [won for _, won, _ in known], [prompt for _, _, prompt in known], seed=settings.seed,
        judge_revision=part.key.judge_revision, constitution_digest=part.key.constitution_digest,
        template_digest=part.key.template_digest, protocol=part.protocol, principles=settings.principles,
    )


def _json(found: AuditReport | Difference) -> str:
    return json.dumps(plain(found), ensure_ascii=False, indent=2) + "\n"
