"""Whether a judge may label: what an audit said of it, and the calibration that was fitted for it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from rlaif.audit.calibration import Calibration
from rlaif.audit.grade import NOT_AUDITED
from rlaif.audit.report import AuditKey, audit_line
from rlaif.config import LabelConfig
from rlaif.digest import digest
from rlaif.engines.base import EngineCard, TokenCount
from rlaif.errors import ConfigError, JudgingError
from rlaif.jobs.asked import warn_of_other_questions
from rlaif.jobs.audit_files import (
    Accuracy,
    FoundAudit,
    accuracy_of,
    find_audit,
    load_calibration,
    read_probes,
)
from rlaif.jobs.audit_task import (
    BOTH,
    AuditInputs,
    AuditTask,
    audit_inputs,
    conduct,
    pairs_digest,
    plan_questions,
    tags_of,
)
from rlaif.jobs.base import check_gaps, transient_among
from rlaif.jobs.context import RunContext
from rlaif.judging.protocols import JudgingProtocol
from rlaif.models.open import is_served
from rlaif.ranks import current
from rlaif.types import Constitution, Verdict

__all__ = ["AUDITS", "Standing", "Trust", "audit_command", "calibration_for"]

AUDITS = "audits"
"""Folder of audits, beside the run folders; `rlaif audit` writes there."""
MOST_PROBES = 60
"""Probes that a judge is asked which nobody audited: few enough to take seconds, enough that a judge which is
right on two of three is told from a coin."""
PROBES_LANGUAGE = "en"


class Standing(NamedTuple):
    """What is known of a judge when it labels.

    Attributes:
        grade: Of `rlaif.audit.grade`, or `not audited`.
        line: One line about it, to print.
        gaps: Probes' questions that got no answer for a reason that may pass.
        accuracy: On people's pairs, else on probes; `None` where nothing tells it.
    """

    grade: str
    line: str
    gaps: int = 0
    accuracy: Accuracy | None = None

    def as_dict(self) -> dict[str, str]:
        """As `statistics.json` has it."""
        return {"grade": self.grade, "line": self.line}


class ProbePlan(NamedTuple):
    """What the probes would ask: how many they are, their questions, tokens read, with shared beginnings
    read each time, or once, and tokens written at most."""

    probes: int = 0
    questions: int = 0
    read: int = 0
    read_once: float = 0.0
    write: int = 0


class Trust:
    """Whether the judge of a label stage is worth asking: by an audit that was made of it, else by the
    built-in probes.

    An audit holds for the judge, its constitution, template and protocol. Audits of this run's own `audit`
    stages count, and those in the folder `audits` beside the run. Where there is none the judge is asked up
    to 60 built-in probes that share a tag with its principles, as it will be asked to label; their answers
    are journaled. A judge behind a server is asked too, as it costs little beside the labels that it would
    waste; a dry run counts it. The grade is of the judge as it answers, before any calibration.

    Args:
        config: With one judge.
        constitution: With the principles that the protocol can ask.
    """

    def __init__(
        self, config: LabelConfig, protocol: JudgingProtocol, constitution: Constitution, context: RunContext
    ) -> None:
        self._config, self._protocol, self._context = config, protocol, context
        self._constitution = constitution
        (seat,) = config.seats(context.recipe.model)
        self._judge = seat.model

    @cached_property
    def found(self) -> FoundAudit | None:
        """The audit that was made of this very judge; all ranks know of what lies beside the run."""
        context = self._context
        card = context.engines.card(self._judge)
        template = self._protocol.digest(context.library)
        key = AuditKey(card.revision, context.constitution.digest, template, self._protocol.name)
        ours = [stage.name for stage in context.recipe.stages if stage.stage == "audit"]
        stages = [context.folders[name] for name in ours if name in context.folders]
        folders = [context.path.absolute().parent / AUDITS, *stages]
        return current().from_first(lambda: find_audit(folders, key))

    @cached_property
    def inputs(self) -> AuditInputs | None:
        """The probes that are asked where no audit was found, and under what; `None` where none are."""
        return None if self._unasked else audit_inputs(self.task, self._context.progress)

    @property
    def task(self) -> AuditTask:
        """How the probes are asked."""
        config, context = self._config, self._context
        return AuditTask(
            judge=self._judge,
            constitution=context.recipe.constitution,
            protocol=self._protocol.name,
            probes="on-topic",
            most_probes=MOST_PROBES,
            principles=config.principles,
            variants=0,
            seed=context.seed(config),
            prompts_dir=Path(context.recipe.prompts_dir) if context.recipe.prompts_dir else None,
            min_label_share=config.min_label_share,
            reasoning_tokens=config.reasoning_tokens,
            reasonings=config.reasonings,
        )

    @property
    def _unasked(self) -> str:
        """Why the probes are not asked; empty where they are."""
        if not self._config.audit:
            return "audit: false"
        if self._protocol.needs:
            return f"the built-in probes have no {self._protocol.needs}"
        if self._constitution.language.partition("-")[0] != PROBES_LANGUAGE:
            return f"the built-in probes are in English, the constitution is in {self._constitution.language}"
        known = {tag for pair in read_probes() for tag in pair.comparison.prompt.tags}
        if not known & tags_of(self._constitution):
            return f"no principle has a tag of the built-in probes ({', '.join(sorted(known))})"
        return ""

    def key(self) -> str:
        """What the labels' rows depend on: the audit that was found, else the probes that are asked."""
        if self.found is not None:
            return digest([self.found.grade, self.found.line])
        if self.inputs is None:
            return NOT_AUDITED
        return f"{len(self.inputs.probes)} probes {pairs_digest(self.inputs.probes)}"

    def standing(self) -> Standing:
        """Find out, and say so.

        Raises:
            JudgingError: The settings require an audit, and there is none or it advises against the judge; or
                the server answered too few of the probes.
        """
        self._check_required()
        context = self._context
        warn_of_other_questions(
            self._judge, self._protocol, context.constitution, context.library, context.progress
        )
        standing = self._standing()
        against = "warning: " if standing.grade == "do not use" else ""
        where = f" ({self.found.path})" if self.found else ""
        context.progress.note(f"{against}{standing.line}{where}")
        return standing

    def _standing(self) -> Standing:
        if self.found is not None:
            return Standing(self.found.grade, self.found.line, accuracy=self.found.accuracy)
        if self.inputs is None:
            command = audit_command(self._judge, self._context, self._protocol.name)
            line = f"this judge was not audited under this constitution ({self._unasked}): {command}"
            return Standing(grade=NOT_AUDITED, line=line)
        verdicts: list[Verdict] = []
        report = conduct(
            self.task,
            self.inputs,
            self._context.engines.get(self._judge),
            progress=self._context.progress,
            keep=lambda _, cases, probes: verdicts.extend(v for case in probes for v in case.verdicts),
        )
        gaps = transient_among(verdict.reason for verdict in verdicts)
        check_gaps(gaps, len(verdicts), stage=self._config.name)
        (part,) = report.protocols
        return Standing(part.judgement.grade, audit_line(part), gaps, accuracy_of(part))

    def _check_required(self) -> None:
        found = self.found
        if self._config.require_audit and (found is None or found.grade == "do not use"):
            what = "there is no audit of this judge" if found is None else f"the audit says: {found.line}"
            raise JudgingError(
                f"an audit is required, and {what}",
                where=str(found.path) if found else "",
                remedy=audit_command(self._judge, self._context, self._protocol.name),
            )

    def plan(self, counter: TokenCount) -> ProbePlan:
        """What the probes would ask; nothing where none are asked, or the run has an `audit` stage before."""
        earlier = {stage.stage for stage in self._context.before(self._config)}
        if self.inputs is None or "audit" in earlier:
            return ProbePlan()
        plan = plan_questions(self.task, self.inputs, counter)
        return ProbePlan(
            probes=plan.probes,
            questions=plan.questions,
            read=round(plan.read),
            read_once=plan.read * plan.shared,
            write=plan.write,
        )


def audit_command(judge: str, context: RunContext, protocol: str | None = None) -> str:
    """The command that audits the judge of this run, as it can be typed.

    Args:
        protocol: That it is asked by, where an audit would not ask it by that unless told to.
    """
    server = context.recipe.server_of(judge)
    words = [
        "rlaif",
        "audit",
        "--judge",
        judge,
        "--constitution",
        context.recipe.constitution,
        "--data",
        "YOUR_PAIRS.jsonl",
    ]
    if protocol and protocol not in BOTH:
        words += ["--protocol", protocol]
    for url in server.base_urls if is_served(judge) else ():
        words += ["--base-url", url]
    if is_served(judge) and server.api_key_file:
        words += ["--api-key-file", server.api_key_file]
    elif is_served(judge) and server.api_key_env:
        words += ["--api-key-env", server.api_key_env]
    if context.recipe.prompts_dir:
        words += ["--prompts-dir", context.recipe.prompts_dir]
    return shlex.join(words)


def calibration_for(
    config: LabelConfig, protocol: JudgingProtocol, card: EngineCard, context: RunContext
) -> tuple[Callable[[float], float], str]:
    """What a label's log-odds go through, and its digest part: the calibration that the settings name, else
    nothing.

    Raises:
        ConfigError: The calibration was fitted for another judge, constitution, template, protocol or mode.
        RunError: It cannot be read.
    """
    if config.calibration is None:
        return lambda logit: logit, ""
    found = load_calibration(Path(config.calibration))
    here = {
        "judge_revision": card.revision,
        "constitution_digest": context.constitution.digest,
        "template_digest": protocol.digest(context.library),
        "protocol": protocol.name,
        "principles": config.principles,
    }
    other = [name.replace("_", " ") for name, value in here.items() if getattr(found, name) != value]
    if other:
        remedy = "fit one for this judge: rlaif audit --save-calibration"
        raise ConfigError(
            f"the calibration was fitted for another {', '.join(other)}",
            where=config.calibration,
            remedy=remedy,
        )
    return found.apply, _key(found)


def _key(calibration: Calibration) -> str:
    return f"{calibration.slope!r} {calibration.intercept!r}"
