"""Run an audit, or the difference of two constitutions: open the judge, ask it behind a journal, write the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from rlaif.config.stages import ServerConfig
from rlaif.constitution import Half, load_constitution, require
from rlaif.digest import digest
from rlaif.engines.base import LEAST_SHARE, Engine, TokenCount
from rlaif.engines.journaled import JournaledEngine
from rlaif.engines.scripted import load_scripted
from rlaif.errors import ConstitutionError, DataError
from rlaif.judging.audit import SENSITIVITY_ROWS, audit, in_scope, questions_of
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
from rlaif.pipeline.estimate import shared
from rlaif.progress import Progress
from rlaif.prompts import PromptLibrary
from rlaif.report.audit import audit_markdown, difference_markdown
from rlaif.runs.spending import Spending
from rlaif.runs.store import Journal
from rlaif.types import Constitution

__all__ = [
    "AuditInputs", "AuditSettings", "AuditTask", "Audited", "Compared", "Plan", "audit_inputs", "conduct", "plan_audit",
    "plan_difference", "plan_questions", "run_audit", "run_difference", "write_audit",
]

HALVES: Mapping[str, Half] = {"pairwise": "comparison", "pointwise": "question", "cot": "comparison"}
BOTH = ("pairwise", "pointwise")
ProbeChoice = Literal["all", "on-topic", "none"]
Keep = Callable[[str, Sequence[Case], Sequence[Case]], None]
COUNTED = 20
"""Comparisons whose questions are rendered to estimate tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTask:
    """What to ask whom.

    Attributes:
        protocol: `both` audits the protocols that the constitution has texts for; `None` is the constitution's own.
        limit: Comparisons of `data` to draw; `None` takes all.
        probes: The built-in comparisons to ask; `on-topic` are those that share a tag with a principle (all, if none does).
        variants: Comparisons on which other labels and wordings are tried.
        own: Name of the judge's own completions in `data`; the judge's when left out.
    """

    judge: str
    constitution: str
    data: str | None = None
    prompt_column: str = "prompt"
    skip_bad_rows: bool = False
    protocol: Literal["both", "pairwise", "pointwise", "cot"] | None = "both"
    limit: int | None = None
    probes: ProbeChoice = "all"
    principles: PrincipleMode = "all"
    variants: int = SENSITIVITY_ROWS
    own: str = ""
    seed: int = 0
    prompts_dir: Path | None = None
    min_label_share: float = LEAST_SHARE


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


class Plan(NamedTuple):
    """What an audit would ask: questions, the mean length of their prompts in tokens, and the share of it that is read (`shared`)."""

    protocols: tuple[str, ...]
    comparisons: int
    probes: int
    questions: int
    tokens_each: float
    shared: float


class AuditInputs(NamedTuple):
    """What an audit reads.

    Attributes:
        usable: By protocol to audit, the principles that it can ask.
        labelled: Whether `pairs` carry people's choice.
        data: What `pairs` are, in words.
        bad_rows: Rows of the file that were left out.
    """

    constitution: Constitution
    usable: dict[str, Constitution]
    library: PromptLibrary
    pairs: tuple[Pair, ...]
    labelled: bool
    probes: tuple[Pair, ...]
    data: str
    bad_rows: int = 0


def run_audit(settings: AuditSettings, progress: Progress) -> Audited:
    """Audit a judge; what was asked before is read from the journal.

    Raises:
        RlaifError: An input cannot be read, the judge not be loaded, or a file not be written.
    """
    inputs = _inputs(settings, progress)
    kept: dict[str, Sequence[Case]] = {}
    with Journal(settings.journal) as journal, _account(settings) as spending:
        engine = _engine(settings, journal, spending, progress)
        report = conduct(settings, inputs, engine, progress=progress, keep=lambda name, cases, _: kept.update({name: cases}))
    files: tuple[Path, ...] = write_audit(report, settings.out / audit_file(report))
    calibration = None
    if settings.calibration:
        name = inputs.constitution.protocol if inputs.constitution.protocol in inputs.usable else next(iter(inputs.usable))
        part = report.protocol(name)
        assert part is not None, "every usable protocol was audited"
        calibration = _calibrate(kept[name], part, settings)
        save_calibration(settings.calibration, calibration)
        files = (*files, settings.calibration)
    return Audited(report=report, calibration=calibration, files=files)


def audit_inputs(task: AuditTask, progress: Progress) -> AuditInputs:
    """Read the constitution, the pairs and the probes.

    Raises:
        RlaifError: One of them cannot be read, or there is nothing to ask.
    """
    constitution = load_constitution(task.constitution)
    usable = _usable(constitution, task, progress)
    read = _read(task, task.data, progress) if task.data else None
    probes = _probes(task, usable)
    if read is None and not probes:
        raise DataError("there is nothing to audit on", remedy="give pairs (data), or do not leave the probes out")
    return AuditInputs(
        constitution=constitution, usable=usable, library=PromptLibrary(constitution.language, task.prompts_dir),
        pairs=read.pairs if read else (), labelled=bool(read and read.labelled), probes=probes,
        data=Path(task.data).name if task.data else "", bad_rows=len(read.read.problems) if read else 0,
    )


def conduct(
    task: AuditTask, inputs: AuditInputs, engine: Engine, *, progress: Progress, keep: Keep | None = None,
) -> AuditReport:
    """Ask `engine` all that `task` says.

    Args:
        keep: Told the judged pairs and probes of each protocol.
    """
    return audit(
        engine, library=inputs.library, constitution=inputs.constitution, usable=inputs.usable, pairs=inputs.pairs,
        probes=inputs.probes, data=inputs.data, principles=task.principles, own=task.own, seed=task.seed,
        sensitivity_rows=task.variants, least_share=task.min_label_share, progress=progress, keep=keep,
    )


def write_audit(report: AuditReport, base: Path) -> tuple[Path, Path]:
    """Write a report as `base`.json and `base`.md.

    Raises:
        RunError: The files cannot be written.
    """
    files = (base.with_name(f"{base.name}.json"), base.with_name(f"{base.name}.md"))
    save_text(files[0], _json(report))
    save_text(files[1], audit_markdown(report))
    return files


def plan_audit(settings: AuditSettings, progress: Progress) -> Plan:
    """What `run_audit` would ask, without a model: only its tokenizer is read."""
    return plan_questions(settings, _inputs(settings, progress), open_token_count(settings.judge))


def plan_questions(task: AuditTask, inputs: AuditInputs, counter: TokenCount) -> Plan:
    """What `conduct` would ask."""
    questions = questions_of(
        inputs.usable, pairs=len(inputs.pairs), probes=len(inputs.probes), mode=task.principles, sensitivity_rows=task.variants,
    )
    lengths, groups = [], []
    for name, constitution in inputs.usable.items():
        protocol = open_protocol(name, library=inputs.library, constitution=constitution)
        judge = open_judge(
            load_scripted("scripted"), protocol, constitution, principles=task.principles, seed=task.seed, progress=None
        )
        for pair in [*inputs.pairs[:COUNTED], *inputs.probes[:COUNTED]]:
            requests = judge.requests(pair.comparison)
            lengths += [counter.count(request.messages) for request in requests[:QUESTIONS]]
            groups.append([counter.render(request.messages) for request in requests])
    return Plan(
        protocols=tuple(inputs.usable), comparisons=len(inputs.pairs), probes=len(inputs.probes), questions=questions,
        tokens_each=sum(lengths) / len(lengths) if lengths else 0.0, shared=shared(groups),
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
    with Journal(settings.journal) as journal, _account(settings) as spending:
        engine = _engine(settings, journal, spending, progress)
        for constitution in usable:
            library = PromptLibrary(constitution.language, settings.prompts_dir)
            protocol = open_protocol(
                name, library=library, constitution=constitution, least_share=settings.min_label_share
            )
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


def _inputs(settings: AuditSettings, progress: Progress) -> AuditInputs:
    inputs = audit_inputs(settings, progress)
    if settings.calibration and not inputs.labelled:
        raise DataError("a calibration needs human labels", remedy="give --data a file with columns chosen and rejected")
    return inputs


def _probes(task: AuditTask, usable: Mapping[str, Constitution]) -> tuple[Pair, ...]:
    if task.probes == "none":
        return ()
    probes = read_probes(seed=task.seed)
    ours = {tag for constitution in usable.values() for principle in constitution.principles for tag in principle.tags}
    return probes if task.probes == "all" else tuple(in_scope(probes, ours))


def _account(settings: AuditSettings) -> Spending:
    """What this audit has spent: a file beside its report, which the same command goes on with."""
    same = (settings.judge, settings.constitution, settings.data, settings.protocol, settings.limit, settings.seed)
    return Spending(settings.out / f"spending-{digest([str(each) for each in same])[:8]}.jsonl")


def _engine(settings: AuditSettings, journal: Journal, spending: Spending, progress: Progress) -> JournaledEngine:
    pool = EnginePool(
        journal, dtype=settings.dtype, device=settings.device, server=settings.server, note=progress.note, spending=spending
    )
    return pool.get(settings.judge)


def _usable(constitution: Constitution, settings: AuditTask, progress: Progress) -> dict[str, Constitution]:
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


def _read(settings: AuditTask, source: str, progress: Progress) -> Pairs:
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
