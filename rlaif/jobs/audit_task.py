"""What an audit asks of whom: its inputs, its conduct, its files. `rlaif audit` and the stage `audit` share
it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from rlaif.audit.accuracy import SENSITIVITY_ROWS, audit_judge, in_scope, questions_of
from rlaif.audit.cases import Case, Pair, plain
from rlaif.audit.differences import Difference
from rlaif.audit.report import AuditReport
from rlaif.constitution.load import load_constitution, require
from rlaif.digest import digest, unit_from
from rlaif.engines.base import LEAST_SHARE, Engine, TokenCount
from rlaif.engines.scripted import load_scripted
from rlaif.errors import ConstitutionError, DataError
from rlaif.jobs.audit_files import Pairs, read_audit_pairs, read_probes, save_text
from rlaif.jobs.estimate import shared
from rlaif.jobs.writing import written_work
from rlaif.judging.judge import Judge, PrincipleMode
from rlaif.judging.protocols import JudgingProtocol
from rlaif.judging.reasoning import REASONING_TOKENS
from rlaif.judging.table import PROTOCOLS, open_judge, open_protocol
from rlaif.models.memory import StageWork
from rlaif.models.probe_files import protocol_of
from rlaif.progress import Progress
from rlaif.prompts import PromptLibrary
from rlaif.report.audit import audit_markdown
from rlaif.types import Constitution

__all__ = [
    "AuditInputs",
    "AuditTask",
    "AuditPlan",
    "as_json",
    "audit_inputs",
    "conduct",
    "pairs_digest",
    "plan_questions",
    "read_comparisons",
    "tags_of",
    "write_audit",
    "writing_of",
]

BOTH = ("pairwise", "pointwise")
ProbeChoice = Literal["all", "on-topic", "none"]
Keep = Callable[[str, Sequence[Case], Sequence[Case]], None]
COUNTED = 20
"""Comparisons whose questions are rendered to estimate tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTask:
    """What to ask whom.

    Attributes:
        protocol: `both` audits the protocols that the constitution has texts for; `None` is the
            constitution's own.
        limit: Comparisons of `data` to draw; `None` takes all.
        probes: The built-in comparisons to ask; `on-topic` are those that share a tag with a principle (all,
            if none does).
        most_probes: Of these, as many are drawn by hash; `None` takes all.
        variants: Comparisons on which other labels and wordings are tried.
        own: Name of the judge's own completions in `data`; the judge's when left out.
        reasoning_tokens, reasonings: As for `open_judge`.
    """

    judge: str
    constitution: str
    data: str | None = None
    prompt_column: str = "prompt"
    skip_bad_rows: bool = False
    protocol: str | None = "both"
    limit: int | None = None
    probes: ProbeChoice = "all"
    most_probes: int | None = None
    principles: PrincipleMode = "all"
    variants: int = SENSITIVITY_ROWS
    own: str = ""
    seed: int = 0
    prompts_dir: Path | None = None
    min_label_share: float = LEAST_SHARE
    reasoning_tokens: int = REASONING_TOKENS
    reasonings: int = 1


class AuditPlan(NamedTuple):
    """What an audit would ask: questions, the mean length of their prompts in tokens, the share of it
    that is read (`shared`), how many times (`times`), and the tokens that are written at most before
    labels are read."""

    protocols: tuple[str, ...]
    comparisons: int
    probes: int
    questions: int
    tokens_each: float
    shared: float
    times: int = 1
    write: int = 0

    @property
    def read(self) -> float:
        """Tokens of all prompts, shared beginnings counted each time."""
        return self.questions * self.times * self.tokens_each


class AuditInputs(NamedTuple):
    """What an audit reads.

    Attributes:
        usable: By protocol to audit, the principles that it can ask.
        labelled: Whether `pairs` carry human labels.
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


def audit_inputs(task: AuditTask, progress: Progress) -> AuditInputs:
    """Read the constitution, the pairs and the probes.

    Raises:
        RlaifError: One of them cannot be read, or there is nothing to ask.
    """
    constitution = load_constitution(task.constitution)
    usable = _usable(constitution, task, progress)
    read = read_comparisons(task, task.data, progress) if task.data else None
    pairs, probes = _askable(read.pairs if read else (), _probes(task, usable), task, usable, progress)
    if read is None and not probes:
        raise DataError(
            "there is nothing to audit on", remedy="give pairs (data), or do not leave the probes out"
        )
    return AuditInputs(
        constitution=constitution,
        usable=usable,
        library=PromptLibrary(constitution.language, task.prompts_dir),
        pairs=pairs,
        labelled=bool(read and read.labelled),
        probes=probes,
        data=Path(task.data).name if task.data else "",
        bad_rows=len(read.read.problems) if read else 0,
    )


def conduct(
    task: AuditTask, inputs: AuditInputs, engine: Engine, *, progress: Progress, keep: Keep | None = None
) -> AuditReport:
    """Ask `engine` all that `task` says.

    Args:
        keep: Told the judged pairs and probes of each protocol.
    """
    return audit_judge(
        engine,
        library=inputs.library,
        constitution=inputs.constitution,
        usable=inputs.usable,
        pairs=inputs.pairs,
        probes=inputs.probes,
        data=inputs.data,
        principles=task.principles,
        own=task.own,
        seed=task.seed,
        sensitivity_rows=task.variants,
        least_share=task.min_label_share,
        opened=partial(open_judge, reasoning_tokens=task.reasoning_tokens, reasonings=task.reasonings),
        progress=progress,
        keep=keep,
    )


def write_audit(report: AuditReport, base: Path) -> tuple[Path, Path]:
    """Write a report as `base`.json and `base`.md.

    Raises:
        RunError: The files cannot be written.
    """
    files = (base.with_name(f"{base.name}.json"), base.with_name(f"{base.name}.md"))
    save_text(files[0], as_json(report))
    save_text(files[1], audit_markdown(report))
    return files


def plan_questions(task: AuditTask, inputs: AuditInputs, counter: TokenCount) -> AuditPlan:
    """What `conduct` would ask."""
    questions = questions_of(
        inputs.usable,
        pairs=len(inputs.pairs),
        probes=len(inputs.probes),
        criteria=sum(len(pair.comparison.prompt.rubric) for pair in [*inputs.pairs, *inputs.probes]),
        mode=task.principles,
        sensitivity_rows=task.variants,
    )
    prompts = len({pair.comparison.prompt.fingerprint() for pair in [*inputs.pairs, *inputs.probes]})
    lengths, groups = [], []
    for name, constitution in inputs.usable.items():
        protocol, judge = _asker(name, constitution, task, inputs)
        for pair in [*inputs.pairs[:COUNTED], *inputs.probes[:COUNTED]]:
            requests = judge.requests(pair.comparison)
            lengths += [counter.count(request.messages) for request in requests[: protocol.asks]]
            groups.append([counter.render(request.messages) for request in requests])
    write = sum(
        questions * task.reasonings if PROTOCOLS[name].reasons else prompts * PROTOCOLS[name].commits
        for name in inputs.usable
    )
    return AuditPlan(
        protocols=tuple(inputs.usable),
        comparisons=len(inputs.pairs),
        probes=len(inputs.probes),
        questions=questions,
        tokens_each=sum(lengths) / len(lengths) if lengths else 0.0,
        shared=shared(groups),
        times=task.reasonings if any(PROTOCOLS[name].reasons for name in inputs.usable) else 1,
        write=write * task.reasoning_tokens,
    )


def writing_of(task: AuditTask, inputs: AuditInputs, counter: TokenCount, *, rows: int) -> StageWork:
    """What the judge of `conduct` samples side by side, at most `rows`, before its labels are read."""
    ((name, constitution), *_) = inputs.usable.items()
    protocol, judge = _asker(name, constitution, task, inputs)
    return written_work(
        judge,
        protocol,
        [pair.comparison for pair in [*inputs.pairs, *inputs.probes]],
        counter,
        rows=rows,
        tokens=task.reasoning_tokens,
        reasonings=task.reasonings,
    )


def _asker(
    name: str, constitution: Constitution, task: AuditTask, inputs: AuditInputs
) -> tuple[JudgingProtocol, Judge]:
    """The protocol, and a judge that says what it would be asked by it."""
    protocol = open_protocol(name, library=inputs.library, constitution=constitution)
    judge = open_judge(
        load_scripted("scripted"),
        protocol,
        constitution,
        principles=task.principles,
        seed=task.seed,
        reasoning_tokens=task.reasoning_tokens,
    )
    return protocol, judge


def pairs_digest(pairs: Sequence[Pair]) -> str:
    """Digest of what is compared and which is the better one."""
    return digest(
        [
            [
                pair.comparison.id,
                pair.comparison.prompt.fingerprint(),
                pair.comparison.a.text,
                pair.comparison.b.text,
                pair.a_wins,
            ]
            for pair in pairs
        ]
    )


def _askable(
    pairs: tuple[Pair, ...],
    probes: tuple[Pair, ...],
    task: AuditTask,
    usable: Mapping[str, Constitution],
    progress: Progress,
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """The pairs and probes whose prompts have what the protocols need; the others are counted.

    Raises:
        DataError: None has.
    """
    needed = {need for name in usable if (need := PROTOCOLS[name].needs)}
    if not needed:
        return pairs, probes
    (need,) = needed
    kept, built_in = (
        [pair for pair in each if getattr(pair.comparison.prompt, need)] for each in (pairs, probes)
    )
    if not kept and not built_in:
        raise DataError(
            f"no pair has a prompt with a {need}, which the protocol `{next(iter(usable))}` reads",
            where=task.data or "the built-in probes",
            remedy=f"give --data a file of pairs with a column `{need}`",
        )
    left = len(pairs) + len(probes) - len(kept) - len(built_in)
    if left:
        progress.note(f"{left} of {len(pairs) + len(probes)} pairs and probes have no {need}: not asked")
    return tuple(kept), tuple(built_in)


def _probes(task: AuditTask, usable: Mapping[str, Constitution]) -> tuple[Pair, ...]:
    if task.probes == "none":
        return ()
    probes: Sequence[Pair] = read_probes(seed=task.seed)
    if task.probes == "on-topic":
        probes = in_scope(probes, tags_of(*usable.values()))
    return tuple(_drawn(probes, task.most_probes, seed=task.seed))


def _drawn(probes: Sequence[Pair], count: int | None, *, seed: int) -> Sequence[Pair]:
    """`count` of the probes, the first in a hash order; all of them where there are no more."""
    if count is None or len(probes) <= count:
        return probes
    return sorted(probes, key=lambda pair: unit_from(seed, "probe", pair.comparison.prompt.id))[:count]


def tags_of(*constitutions: Constitution) -> set[str]:
    """The tags of all their principles."""
    return {tag for each in constitutions for principle in each.principles for tag in principle.tags}


def _usable(constitution: Constitution, settings: AuditTask, progress: Progress) -> dict[str, Constitution]:
    """By protocol to audit, the principles that it can ask; under `both`, a protocol without any is left
    out."""
    chosen = protocol_of(settings.judge, settings.protocol, constitution.protocol)
    asked = BOTH if chosen == "both" else (chosen,)
    usable: dict[str, Constitution] = {}
    refused: list[ConstitutionError] = []
    for name in asked:
        try:
            usable[name] = replace(
                constitution,
                principles=require(constitution, PROTOCOLS[name].half, source=settings.constitution),
            )
        except ConstitutionError as error:
            refused.append(error)
    if not usable:
        raise refused[0]
    if refused:
        progress.note(f"only {', '.join(usable)} is audited: {refused[0].what}")
    return usable


def read_comparisons(settings: AuditTask, source: str, progress: Progress) -> Pairs:
    """The comparisons of a file; what was left out is told."""
    read = read_audit_pairs(
        source,
        limit=settings.limit,
        prompt_column=settings.prompt_column,
        skip_bad_rows=settings.skip_bad_rows,
        seed=settings.seed,
    )
    for note in read.read.notes:
        progress.note(f"{source}: {note}")
    if read.read.problems:
        progress.note(
            f"{source}: {len(read.read.problems)} of {read.read.rows} rows could not be read and were skipped"
        )
    if read.ties:
        told = f"people found both completions of {read.ties} pairs equal"
        progress.note(f"{source}: {told}; they are in no figure against people")
    if read.identical:
        progress.note(f"{source}: {read.identical} pairs with equal completions were left out")
    return read


def as_json(found: AuditReport | Difference) -> str:
    return json.dumps(plain(found), ensure_ascii=False, indent=2) + "\n"
