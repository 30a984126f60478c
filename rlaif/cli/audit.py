"""`rlaif audit`: what is a judge worth, before anyone trusts its labels?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.options import common_options, constitution_option, examples
from rlaif.judging.table import PROTOCOLS
from rlaif.runs.journal import JOURNAL

if TYPE_CHECKING:
    from rlaif.audit.report import AuditReport, ProtocolAudit
    from rlaif.jobs.audit_task import AuditPlan
    from rlaif.pipeline.audit import Audited, AuditSettings
    from rlaif.progress import Progress

__all__ = ["audit", "audit_settings"]

SENSITIVITY_ROWS = 100
FOLDER = Path("runs/audits")


@click.command(
    epilog=examples(
        "rlaif audit",
        "rlaif audit --constitution warmth --protocol pointwise",
        "rlaif audit --judge Qwen/Qwen2.5-0.5B-Instruct --data pairs.jsonl --limit 500",
        "rlaif audit --data pairs.jsonl --protocol pairwise --save-calibration calibration.json",
    )
)
@click.option("--judge", default=None, metavar="MODEL", help="Model that judges. [default: --model]")
@constitution_option
@click.option(
    "--data",
    default=None,
    metavar="SOURCE",
    help="Pairs to judge: columns chosen and rejected (a human label), or a and b (no choice). A file or a "
    "hub dataset.",
)
@click.option(
    "--prompt-column",
    default="prompt",
    show_default=True,
    help="Column with the prompt: text or chat messages.",
)
@click.option(
    "--skip-bad-rows", is_flag=True, help="Go on without rows that cannot be read; they are counted."
)
@click.option(
    "--protocol",
    type=click.Choice(["both", *PROTOCOLS]),
    default="both",
    show_default=True,
    help="How the judge is asked; both compares pairwise and pointwise; cot reasons first.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=200, show_default=True, help="Pairs of --data to draw."
)
@click.option(
    "--probes/--no-probes",
    default=True,
    show_default=True,
    help="Ask the built-in comparisons with an obvious answer too.",
)
@click.option(
    "--principles",
    type=click.Choice(["all", "sample"]),
    default="all",
    show_default=True,
    help="Ask all principles about each comparison, or draw one (quicker, as `rlaif label` does; says "
    "little about each).",
)
@click.option(
    "--variants",
    type=click.IntRange(min=0),
    default=SENSITIVITY_ROWS,
    show_default=True,
    help="Comparisons on which other label letters and wordings are tried, one principle each; 0 skips this.",
)
@click.option(
    "--min-label-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=None,
    help="A verdict is invalid where its labels hold less of the probability together. [default: 0.005]",
)
@click.option(
    "--own",
    default="",
    metavar="NAME",
    help="Name, in the column model of --data, of the judge's own completions.",
)
@click.option(
    "--save-calibration",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="Fit a temperature to human labels and write it here, for `rlaif label --calibration`.",
)
@common_options
def audit(**given: Any) -> None:
    """Audit a judge before its labels are trusted.

    With pairs that people have judged: accuracy with 95 % intervals, calibration and agreement, by principle
    and together, next to always-longer, always-shorter and always-first. With or without them: flips between
    the two orders, preference for the first or the longer, agreement between principles, sensitivity to label
    letters and wording, and accuracy on built-in comparisons with an obvious right answer. It ends in a
    verdict and in a suggestion, and writes JSON and Markdown.
    """
    from rlaif.cli.console import ConsoleProgress
    from rlaif.pipeline.audit import plan_audit, run_audit

    dry = given.pop("dry_run")
    settings = audit_settings(given)
    with ConsoleProgress() as progress:
        if dry:
            _print_plan(plan_audit(settings, progress), settings, progress)
            return
        audited = run_audit(settings, progress)
    _print_audit(audited)


def audit_settings(given: dict[str, Any]) -> AuditSettings:
    """The settings that the options of a command say."""
    from rlaif.cli.settings import make_recipe, pick
    from rlaif.config import SampleConfig
    from rlaif.pipeline.audit import AuditSettings

    recipe = make_recipe("audit", [SampleConfig()], given)
    out = given["out"] or FOLDER
    return AuditSettings(
        judge=given["judge"] or recipe.model,
        constitution=given["constitution"],
        server=recipe.server,
        dtype=recipe.dtype,
        device=recipe.device,
        prompts_dir=given["prompts_dir"],
        seed=recipe.seed,
        out=out,
        journal=given["journal"] or out.parent / JOURNAL,
        calibration=given.get("save_calibration"),
        probes="all" if given.get("probes", True) else "none",
        **pick(
            given,
            "data",
            "prompt_column",
            "skip_bad_rows",
            "protocol",
            "limit",
            "principles",
            "variants",
            "own",
            "min_label_share",
        ),
    )


def _print_plan(plan: AuditPlan, settings: AuditSettings, progress: Progress) -> None:
    from rlaif.cli.dry_run import duration
    from rlaif.jobs.estimate import seconds

    tokens = plan.read
    time = seconds(
        settings.judge,
        dtype=settings.dtype,
        device=settings.device,
        read=tokens * plan.shared,
        write=plan.write,
    )
    progress.note(
        f"{plan.questions} questions at most: {plan.comparisons} comparisons and {plan.probes} probes by "
        f"{' and '.join(plan.protocols)}, about {plan.tokens_each:.0f} tokens each "
        f"({tokens / 1e6:.1f} million tokens, {tokens * plan.shared / 1e6:.1f} million without shared "
        "beginnings)" + (f"; about {duration(time)} as busy as this machine is now" if time else "")
    )


def _print_audit(audited: Audited) -> None:
    from rlaif.audit.report import audit_line
    from rlaif.cli.console import output

    report = audited.report
    console = output()
    console.print(_summary(report))
    if len(report.protocols[0].principles) > 1:
        console.print(_principles(report))
    for each in report.protocols:
        console.print(audit_line(each), soft_wrap=True)
    if report.suggestion:
        console.print(f"suggestion ({report.suggestion.pairs}): {report.suggestion.words}", soft_wrap=True)
    if found := audited.calibration:
        told = (
            f"calibration: temperature {found.temperature:.2f}, held-out NLL {found.nll_before:.3f} → "
            f"{found.nll_after:.3f}"
        )
        console.print(told, soft_wrap=True)
    for path in audited.files:
        console.print(str(path), soft_wrap=True)


def _summary(report: AuditReport) -> Any:
    """Figures down, protocols across."""
    from rich.table import Table

    table = Table(
        "", *(each.protocol for each in report.protocols), title=f"{report.judge} under {report.constitution}"
    )
    columns = [_figures(each) for each in report.protocols]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "–") for column in columns))
    if report.rules:
        table.add_section()
        for name, value in report.rules._asdict().items():
            table.add_row(f"always-{name}", *[_share(value)] * len(columns))
    return table


def _figures(found: ProtocolAudit) -> dict[str, str]:
    from rlaif.report.audit import bias_rows, figure, percent

    rows: dict[str, str] = {"grade": found.judgement.grade}
    if found.ensemble:
        rows |= {
            f"accuracy on {found.ensemble.rows} pairs": _share(found.ensemble.accuracy),
            "one principle alone": percent(found.one_principle),
            "one order alone": percent(found.one_order),
            "Cohen's κ": figure(found.ensemble.kappa),
            "calibration error": figure(found.ensemble.ece),
        }
    if found.probes and found.probes.in_scope:
        rows[f"{found.probes.in_scope.rows} probes on topic"] = _share(found.probes.in_scope.accuracy)
    rows |= dict(bias_rows(found.bias))
    rows |= {
        f"same label, {each.name}": _share(each.same_label) for each in found.sensitivity if each.same_label
    }
    return rows


def _principles(report: AuditReport) -> Any:
    """Accuracy by principle on people's pairs, or on the probes where there are none."""
    from rich.table import Table

    table = Table("principle", *(each.protocol for each in report.protocols), title="accuracy by principle")
    found = [
        {
            each.id: _share(each.accuracy.accuracy if each.accuracy else each.probes)
            for each in part.principles
        }
        for part in report.protocols
    ]
    for id in dict.fromkeys(id for column in found for id in column):
        table.add_row(id, *(column.get(id, "–") for column in found))
    return table


def _share(value: Any) -> str:
    from rlaif.audit.grade import share

    return share(value) if value else "–"
