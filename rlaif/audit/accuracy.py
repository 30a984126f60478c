"""Audit a judge before its labels are trusted: against people where they have judged, and by its habits in
any case.

`audit_judge` asks the judge about labelled pairs, about comparisons without labels, or about none, and about
the probes it is given; it returns one frozen `AuditReport` that turns into JSON (`plain`) and ends in words
(`ProtocolAudit.judgement`, `Suggestion`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from rlaif import __version__, stats
from rlaif.audit.agreement import (
    Agreement,
    Baselines,
    agreement,
    baselines,
    one_order_accuracy,
    one_principle_accuracy,
)
from rlaif.audit.biases import habits
from rlaif.audit.cases import Case, Pair, judge_pairs
from rlaif.audit.grade import Basis, judgement
from rlaif.audit.report import AuditKey, AuditReport, PrincipleAudit, ProbeAudit, ProtocolAudit
from rlaif.audit.selection import FEWEST, Suggestion, mean_logit, suggest
from rlaif.audit.sensitivity import Sensitivity, Variant, measure_variant, variant_count, variants
from rlaif.engines.base import LEAST_SHARE, Engine
from rlaif.judging.aggregate import PrincipleStatistics
from rlaif.judging.judge import PrincipleMode
from rlaif.judging.table import PROTOCOLS, OpenJudge, open_judge, open_protocol
from rlaif.progress import NoProgress, Progress
from rlaif.prompts import PromptLibrary
from rlaif.types import Constitution

__all__ = ["audit_judge", "audit_key", "in_scope", "questions_of"]

SENSITIVITY_ROWS = 100
"""Comparisons that each change of labels or wording is tried on, one principle each."""


@dataclass(frozen=True)
class _Judged:
    """One protocol's answers."""

    cases: list[Case]
    probes: list[Case]
    sensitivity: list[Sensitivity]
    key: AuditKey


def audit_judge(
    engine: Engine,
    *,
    library: PromptLibrary,
    constitution: Constitution,
    usable: Mapping[str, Constitution],
    pairs: Sequence[Pair],
    probes: Sequence[Pair],
    data: str = "",
    principles: PrincipleMode = "all",
    own: str = "",
    seed: int = 0,
    sensitivity_rows: int = SENSITIVITY_ROWS,
    least_share: float = LEAST_SHARE,
    opened: OpenJudge = open_judge,
    progress: Progress | None = None,
    keep: Callable[[str, Sequence[Case], Sequence[Case]], None] | None = None,
) -> AuditReport:
    """Audit `engine` as a judge.

    Args:
        constitution: As it was read; audits are keyed by its digest.
        usable: By protocol to audit, the constitution with the principles that this protocol can ask.
        pairs: Comparisons, with or without human labels; may be empty. Turn half of them first
            (`turn_half`).
        probes: Comparisons with an obvious right answer, tagged through their prompts; may be empty.
        data: What `pairs` are, in words.
        own: Name of the policy that is the judge's own model; the engine's name when left out.
        sensitivity_rows: Comparisons to try changes of labels and wording on; 0 leaves that out.
        least_share: Least probability that the labels of a verdict must hold together to be valid.
        opened: Opens the judge: `open_judge`, or it with settings of its own.
        keep: Told the judged pairs and probes of each protocol, to calibrate on them or to write them out.
    """
    progress = progress or NoProgress()
    gathered: dict[str, _Judged] = {}
    for name, principles_of in usable.items():
        gathered[name] = _gather(
            engine,
            name,
            library=library,
            constitution=principles_of,
            digest_of=constitution.digest,
            pairs=pairs,
            probes=probes,
            mode=principles,
            seed=seed,
            sensitivity_rows=sensitivity_rows,
            least_share=least_share,
            opened=opened,
            progress=progress,
        )
        if keep:
            keep(name, gathered[name].cases, gathered[name].probes)
    labelled = [pair for pair in pairs if pair.a_wins is not None]
    rules = baselines(labelled) if labelled else None
    own = own or engine.card.name
    return AuditReport(
        version=__version__,
        judge=engine.card.label,
        constitution=constitution.name,
        data=data,
        pairs=len(pairs),
        labelled=len(labelled),
        rules=rules,
        principles=principles,
        seed=seed,
        protocols=tuple(
            _protocol_audit(found, constitution=usable[name], rules=rules, own=own)
            for name, found in gathered.items()
        ),
        suggestion=_suggestion(gathered, constitution, seed=seed) if principles == "all" else None,
    )


def audit_key(engine: Engine, library: PromptLibrary, constitution: Constitution, protocol: str) -> AuditKey:
    """The key of an audit of `engine` under `protocol`."""
    return AuditKey(
        judge_revision=engine.card.revision,
        constitution_digest=constitution.digest,
        template_digest=PROTOCOLS[protocol].digest(library),
        protocol=protocol,
    )


def questions_of(
    usable: Mapping[str, Constitution],
    *,
    pairs: int,
    probes: int,
    mode: PrincipleMode,
    sensitivity_rows: int,
    criteria: int = 0,
) -> int:
    """About how many questions `audit_judge` asks.

    Args:
        criteria: In the rubrics of all pairs and probes.
    """
    total = 0
    for name, constitution in usable.items():
        each = 0 if PROTOCOLS[name].half is None else len(constitution.principles) if mode == "all" else 1
        own = criteria if PROTOCOLS[name].needs == "rubric" else 0
        tried = variant_count(name) * min(sensitivity_rows, pairs or probes)
        total += PROTOCOLS[name].asks * ((pairs + probes) * each + own + tried)
    return total


def _gather(
    engine: Engine,
    name: str,
    *,
    library: PromptLibrary,
    constitution: Constitution,
    digest_of: str,
    pairs: Sequence[Pair],
    probes: Sequence[Pair],
    mode: PrincipleMode,
    seed: int,
    sensitivity_rows: int,
    least_share: float,
    opened: OpenJudge,
    progress: Progress,
) -> _Judged:
    """Ask everything about one protocol."""
    protocol = open_protocol(name, library=library, constitution=constitution, least_share=least_share)
    judge = opened(engine, protocol, constitution, principles=mode, seed=seed, progress=progress)
    total = sum(judge.questions_about(pair.comparison) for pair in [*pairs, *probes])
    progress.begin(f"{name}: judging {len(pairs)} comparisons and {len(probes)} probes", total)
    cases, answered = list(judge_pairs(judge, pairs)), list(judge_pairs(judge, probes))
    tried = (cases or answered)[:sensitivity_rows]
    sensitivity: list[Sensitivity] = []
    if tried:
        found = list(
            variants(
                name,
                library=library,
                constitution=constitution,
                sample=tried[0].pair.comparison,
                least_share=least_share,
            )
        )
        asked = sum(isinstance(each, Variant) for each in found) * len(tried) * PROTOCOLS[name].asks
        progress.begin(f"{name}: other labels and wordings on {len(tried)} comparisons", asked)
        sensitivity = [
            measure_variant(each, tried, engine=engine, seed=seed, opened=opened, progress=progress)
            if isinstance(each, Variant)
            else each
            for each in found
        ]
    key = replace(audit_key(engine, library, constitution, name), constitution_digest=digest_of)
    return _Judged(cases=cases, probes=answered, sensitivity=sensitivity, key=key)


def _protocol_audit(
    found: _Judged, *, constitution: Constitution, rules: Baselines | None, own: str
) -> ProtocolAudit:
    ensemble = _against_people(found.cases)
    probes = _probe_audit(found.probes, constitution) if found.probes else None
    bias = habits(found.cases or found.probes, own=own)
    basis = None
    if ensemble and rules:
        basis = Basis(kind="pairs", found=ensemble, rules=rules)
    elif probes and probes.in_scope:
        basis = Basis(kind="probes", found=probes.in_scope, rules=probes.rules)
    labelled = [case for case in found.cases if case.pair.a_wins is not None]
    return ProtocolAudit(
        key=found.key,
        ensemble=ensemble,
        one_principle=one_principle_accuracy(labelled),
        one_order=one_order_accuracy(labelled) if PROTOCOLS[found.key.protocol].orders else None,
        bias=bias,
        principles=tuple(_principle_audit(each.id, each.tags, found) for each in constitution.principles),
        sensitivity=tuple(found.sensitivity),
        probes=probes,
        judgement=judgement(basis, bias, found.sensitivity, protocol=found.key.protocol),
    )


def _against_people(cases: Sequence[Case]) -> Agreement | None:
    rows = [(case.logit_a, case.pair.a_wins) for case in cases if case.pair.a_wins is not None]
    return agreement([logit for logit, _ in rows], [won for _, won in rows])


def _principle_audit(id: str, tags: Sequence[str], found: _Judged) -> PrincipleAudit:
    counted = PrincipleStatistics()
    for case in found.cases or found.probes:
        if own := [verdict for verdict in case.verdicts if verdict.principle_id == id]:
            counted.add(own)
    figures = counted.as_dict()
    on_topic = _in_scope(found.probes, set(tags))
    probes = _alone(on_topic, id)
    return PrincipleAudit(
        id=id,
        verdicts=counted.verdicts,
        invalid=counted.invalid,
        flip_rate=figures["flip_rate"],
        first_rate=figures["first_rate"],
        strength=figures["mean_strength"],
        accuracy=_alone(found.cases, id),
        probes=probes.accuracy if probes else None,
    )


def _alone(cases: Sequence[Case], principle: str) -> Agreement | None:
    """One principle's log-odds against people, on the cases that it judged."""
    rows = [
        (case.by_principle[principle], case.pair.a_wins)
        for case in cases
        if case.pair.a_wins is not None and principle in case.by_principle
    ]
    return agreement([logit for logit, _ in rows], [won for _, won in rows])


def _probe_audit(cases: Sequence[Case], constitution: Constitution) -> ProbeAudit:
    tags = sorted({tag for case in cases for tag in case.pair.comparison.prompt.tags})
    ours = {tag for principle in constitution.principles for tag in principle.tags}
    scope = tuple(tag for tag in tags if tag in ours)
    in_scope = _in_scope(cases, ours)
    weights = {principle.id: principle.weight for principle in constitution.principles}
    by_tag: dict[str, stats.Estimate] = {}
    own: dict[str, stats.Estimate] = {}
    for tag in tags:
        tagged = [case for case in cases if tag in case.pair.comparison.prompt.tags]
        names = [principle.id for principle in constitution.principles if tag in principle.tags]
        if whole := _against_people(tagged):
            by_tag[tag] = whole.accuracy
        if alone := _against_people(
            [replace(case, logit_a=mean_logit(case, names, weights)) for case in tagged]
        ):
            own[tag] = alone.accuracy
    return ProbeAudit(
        rows=len(cases),
        scope=scope,
        in_scope=_against_people(in_scope),
        rules=baselines([case.pair for case in in_scope]),
        by_tag=by_tag,
        own_principles=own,
    )


def _suggestion(
    gathered: Mapping[str, _Judged], constitution: Constitution, *, seed: int
) -> Suggestion | None:
    if any(PROTOCOLS[name].half is None for name in gathered):
        return None  # the criteria of a prompt are no choice of principles
    weights = {principle.id: principle.weight for principle in constitution.principles}
    labelled = {
        name: [case for case in found.cases if case.pair.a_wins is not None]
        for name, found in gathered.items()
    }
    if any(len(cases) >= FEWEST for cases in labelled.values()):
        return suggest(labelled, weights=weights, pairs="human pairs", seed=seed)
    ours = {tag for principle in constitution.principles for tag in principle.tags}
    probes = {name: _in_scope(found.probes, ours) for name, found in gathered.items()}
    return suggest(probes, weights=weights, pairs="built-in probes", seed=seed)


def in_scope(pairs: Sequence[Pair], tags: Set[str]) -> list[Pair]:
    """The pairs whose prompt has one of `tags`; all of them when none has."""
    return [pair for pair in pairs if tags & set(pair.comparison.prompt.tags)] or list(pairs)


def _in_scope(cases: Sequence[Case], tags: Set[str]) -> list[Case]:
    """`in_scope` for pairs that were judged."""
    kept = set(map(id, in_scope([case.pair for case in cases], tags)))
    return [case for case in cases if id(case.pair) in kept]
