"""`rlaif constitution diff`: what swapping one constitution for another changes in the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.audit import audit_settings
from rlaif.cli.echo import tell_json
from rlaif.cli.options import common_options, examples
from rlaif.judging.table import PROTOCOLS

if TYPE_CHECKING:
    from rlaif.audit.differences import Difference

__all__ = ["diff"]

SHOWN = 10
"""Principles and comparisons in the printed tables; the files have all."""


@click.command(
    epilog=examples(
        "rlaif constitution diff default my.yaml --on pairs.jsonl",
        "rlaif constitution diff old.yaml new.yaml --on preferences.jsonl --protocol pointwise --limit 500",
        "rlaif constitution diff warmth concise --on pairs.jsonl --json | jq .flipped",
    )
)
@click.argument("a")
@click.argument("b")
@click.option(
    "--on",
    "data",
    required=True,
    metavar="SOURCE",
    help="Pairs to judge: columns chosen and rejected, or a and b.",
)
@click.option("--judge", default=None, metavar="MODEL", help="Model that judges. [default: --model]")
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
    "--protocol", type=click.Choice(list(PROTOCOLS)), default=None, help="How to ask. [default: that of A]"
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=200, show_default=True, help="Pairs of --on to draw."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@common_options
def diff(a: str, b: str, as_json: bool, **given: Any) -> None:
    """Judge the same pairs under constitutions A and B and report what changes.

    Share of flipped labels, agreement, the principles that cause the difference, the comparisons that change
    most, what leaving a principle out would do, and which principles say the same. Written as JSON and
    Markdown.
    """
    from rlaif.audit.cases import plain
    from rlaif.cli.console import ConsoleProgress, output
    from rlaif.pipeline.audit import plan_difference, run_difference

    dry = given.pop("dry_run")
    settings = audit_settings({"constitution": a, **given})
    with ConsoleProgress() as progress:
        if dry:
            progress.note(f"{plan_difference(settings, b, progress)} questions at most")
            return
        compared = run_difference(settings, b, progress)
    if as_json:
        tell_json(plain(compared.found), indent=2)
        return
    console = output()
    for part in (*_tables(compared.found), _facts(compared.found)):
        console.print(part)
    for path in compared.files:
        console.print(str(path), soft_wrap=True)


def _facts(found: Difference) -> Any:
    from rich.text import Text

    from rlaif.audit.grade import share
    from rlaif.report.audit import figure
    from rlaif.text import count_of

    return Text(
        f"{found.a} → {found.b}: {share(found.flipped)} of {found.both} labels flip, κ "
        f"{figure(found.kappa)}, "
        f"mean change of P {found.shift:z.3f}, {count_of(len(found.redundant), 'redundant pair')} of "
        "principles"
    )


def _tables(found: Difference) -> list[Any]:
    from rich.table import Table

    from rlaif.report.audit import percent

    drivers = Table(
        "principle",
        "in",
        "change",
        "own flips without it",
        "flips caused (points)",
        title="principles, by the flips they cause",
    )
    for each in found.influences[:SHOWN]:
        drivers.add_row(
            each.id, each.side, each.change, percent(each.own_flips), f"{100 * each.drives:+z.1f}"
        )
    movers = Table(
        "comparison", f"P in {found.a}", f"P in {found.b}", "by", title="comparisons that change most"
    )
    for mover in found.movers[:SHOWN]:
        movers.add_row(mover.comparison_id, f"{mover.p_a:z.2f}", f"{mover.p_b:z.2f}", mover.principle)
    return [drivers, movers]
