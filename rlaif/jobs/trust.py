"""Whether a judge may label: what an audit said of it, and the calibration that was fitted for it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from rlaif.audit.calibration import Calibration
from rlaif.audit.report import AuditKey
from rlaif.config import LabelConfig
from rlaif.engines.base import EngineCard
from rlaif.errors import ConfigError, JudgingError
from rlaif.jobs.audit_files import find_audit, load_calibration
from rlaif.jobs.context import RunContext
from rlaif.judging.protocols import JudgingProtocol
from rlaif.models.open import is_served

__all__ = ["AUDITS", "calibration_for", "check_audit"]

AUDITS = "audits"
"""Folder of audits, beside the run folders; `rlaif audit` writes there."""


def check_audit(
    config: LabelConfig, protocol: JudgingProtocol, card: EngineCard, context: RunContext
) -> None:
    """Say what an audit of this very judge found; the audit holds for a judge, its constitution, template and
    protocol.

    Audits of this run's own `audit` stages count, and those in the folder `audits` beside the run.

    Raises:
        JudgingError: The settings require an audit, and there is none or it advises against the judge.
    """
    key = AuditKey(
        card.revision, context.constitution.digest, protocol.digest(context.library), protocol.name
    )
    ours = [stage.name for stage in context.recipe.stages if stage.stage == "audit"]
    stages = [context.folders[name] for name in ours if name in context.folders]
    found = find_audit([context.path.absolute().parent / AUDITS, *stages], key)
    command = audit_command(context.model(config.judge), context)
    if found is None:
        context.progress.note(f"this judge was not audited under this constitution: {command}")
    else:
        context.progress.note(
            f"{'warning: ' if found.grade == 'do not use' else ''}{found.line} ({found.path})"
        )
    if config.require_audit and (found is None or found.grade == "do not use"):
        what = "there is no audit of this judge" if found is None else f"the audit says: {found.line}"
        raise JudgingError(
            f"an audit is required, and {what}", where=str(found.path) if found else "", remedy=command
        )


def audit_command(judge: str, context: RunContext) -> str:
    """The command that audits the judge of this run, as it can be typed."""
    server = context.recipe.server
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
