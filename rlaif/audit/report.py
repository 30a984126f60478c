"""What an audit found, as frozen values: by judge, by protocol, by principle. `rlaif.audit.cases.plain` turns
them into JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlaif import stats
from rlaif.audit.agreement import Agreement, Baselines
from rlaif.audit.biases import Bias
from rlaif.audit.grade import Judgement
from rlaif.audit.selection import Suggestion
from rlaif.audit.sensitivity import Sensitivity
from rlaif.digest import digest
from rlaif.judging.judge import PrincipleMode

__all__ = ["AuditKey", "AuditReport", "PrincipleAudit", "ProbeAudit", "ProtocolAudit", "audit_line"]


@dataclass(frozen=True, slots=True)
class AuditKey:
    """What an audit holds for: change any of these and the judge is another one."""

    judge_revision: str
    constitution_digest: str
    template_digest: str
    protocol: str

    @property
    def id(self) -> str:
        """The key as one digest."""
        return digest([self.judge_revision, self.constitution_digest, self.template_digest, self.protocol])


@dataclass(frozen=True, slots=True)
class PrincipleAudit:
    """One principle alone. `accuracy` is on people's pairs, `probes` on the built-in ones that share a tag
    with it, or all."""

    id: str
    verdicts: int
    invalid: int
    flip_rate: float | None
    first_rate: float | None
    strength: float | None
    accuracy: Agreement | None
    probes: stats.Estimate | None


@dataclass(frozen=True, slots=True)
class ProbeAudit:
    """Accuracy on comparisons with an obvious right answer.

    Attributes:
        scope: Tags that the principles and the probes share; the graded figure is on these probes. Empty: on
            all.
        by_tag: Accuracy by tag, all principles together.
        own_principles: Accuracy by tag, of those principles alone that carry the tag.
    """

    rows: int
    scope: tuple[str, ...]
    in_scope: Agreement | None
    rules: Baselines
    by_tag: Mapping[str, stats.Estimate]
    own_principles: Mapping[str, stats.Estimate]


@dataclass(frozen=True, slots=True)
class ProtocolAudit:
    """A judge under one protocol.

    Attributes:
        ensemble: All principles together, against people.
        one_principle: Accuracy to expect of one principle alone (`principles: sample`).
        one_order: Accuracy of single verdicts, without the swap (pairwise).
        bias: Habits, on the pairs given, or on the probes where none were.
    """

    key: AuditKey
    ensemble: Agreement | None
    one_principle: float | None
    one_order: float | None
    bias: Bias
    principles: tuple[PrincipleAudit, ...]
    sensitivity: tuple[Sensitivity, ...]
    probes: ProbeAudit | None
    judgement: Judgement

    @property
    def protocol(self) -> str:
        """The protocol's name."""
        return self.key.protocol


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All that was found about one judge under one constitution.

    Attributes:
        judge: `name@revision`.
        data: What was judged besides the probes, in words; empty without.
        pairs: How many comparisons that were, `labelled` of them with a human label.
        rules: Accuracy of rules that read nothing, on those.
        principles: `all` were asked, or one drawn a comparison (`sample`).
    """

    version: str
    judge: str
    constitution: str
    data: str
    pairs: int
    labelled: int
    rules: Baselines | None
    principles: PrincipleMode
    seed: int
    protocols: tuple[ProtocolAudit, ...]
    suggestion: Suggestion | None

    def protocol(self, name: str) -> ProtocolAudit | None:
        """The part about protocol `name`."""
        return next((each for each in self.protocols if each.protocol == name), None)


def audit_line(report: ProtocolAudit) -> str:
    """One line about a judge, for whoever labels with it: `audit (pairwise): use with care: …`."""
    return f"audit ({report.protocol}): {report.judgement.words}"
