"""`rlaif directives`: show, check and try files of directives."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.echo import tell, tell_json
from rlaif.cli.options import common_options, examples
from rlaif.cli.stage_options import generation_options, prompt_options
from rlaif.config.labelling import SampleConfig
from rlaif.directives.load import load_directives
from rlaif.directives.values import Directive, Directives, today
from rlaif.errors import RlaifError
from rlaif.runs.journal import JOURNAL
from rlaif.text import count_of

if TYPE_CHECKING:
    from rlaif.directives.trial import Trial
    from rlaif.pipeline.directives import TrialSettings

__all__ = ["directives"]

FOLDER = Path("runs/directives")


on_option = click.option(
    "--on",
    type=click.DateTime(["%Y-%m-%d"]),
    callback=lambda ctx, param, value: value.date() if value else today(),
    default=None,
    metavar="DAY",
    help="As of this day. [default: today, UTC]",
)


@click.group(
    epilog=examples(
        "rlaif directives show docs/how-to/directives.yaml",
        "rlaif directives lint docs/how-to/directives.yaml",
        "rlaif directives test docs/how-to/directives.yaml --limit 8",
        "rlaif serve --model smollm2-135m --directives docs/how-to/directives.yaml",
    )
)
def directives() -> None:
    """Show, check and try files of directives.

    A file of directives says what an operator wants of answers: system texts that the policy must follow,
    fixed answers, and prompts to which both sides are shown.
    """


@directives.command(epilog=examples("rlaif directives show directives.yaml --json | jq .digest"))
@click.argument("file")
@on_option
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
def show(file: str, on: date, as_json: bool) -> None:
    """Show the directives of FILE: when each applies, what it does, whether it holds today."""
    loaded = load_directives(file)
    if as_json:
        rows = [each.meaning() | {"active": each.active(on)} for each in loaded.directives]
        facts = {"name": loaded.name, "language": loaded.language, "digest": loaded.digest}
        tell_json(facts | {"on": str(on), "directives": rows}, indent=2)
    else:
        _print_table(loaded, on)


@directives.command(epilog=examples("rlaif directives lint directives.yaml --strict"))
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@on_option
@click.option("--strict", is_flag=True, help="Fail on advice too.")
@click.pass_context
def lint(ctx: click.Context, files: tuple[str, ...], on: date, strict: bool) -> None:
    """Check each FILE: errors with their lines, directives that never act, and advice on wording.

    Exits with 1 when a file cannot be used, and under --strict when there is advice.
    """
    failed = False
    for file in files:
        try:
            loaded = load_directives(file)
        except RlaifError as error:
            tell(f"error: {error}", err=True)
            failed = True
            continue
        advised = _advise(loaded, file, on)
        failed = failed or (strict and advised > 0)
    ctx.exit(1 if failed else 0)


@directives.command(
    epilog=examples(
        "rlaif directives test docs/how-to/directives.yaml --prompts builtin:everyday --limit 8",
        "rlaif directives test directives.yaml --prompts my_prompts.csv --policy runs/first/ppo --judge "
        "Qwen/Qwen2.5-0.5B-Instruct",
    )
)
@click.argument("file")
@prompt_options
@click.option(
    "--k", type=click.IntRange(1, 1024), default=1, show_default=True, help="Answers to a prompt, each way."
)
@generation_options
@click.option("--judge", default=None, metavar="MODEL", help="Model that judges. [default: --model]")
@on_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@common_options
def test(file: str, as_json: bool, **given: Any) -> None:
    """Answer prompts without and with the directives of FILE, and say how often answers comply.

    Which directive applies to which prompt, the answers before and after with their difference, and the share
    that complies by the judge, with an interval of the change. Written as JSON and Markdown; an interrupted
    test goes on where it stopped.
    """
    from rlaif.cli.console import ConsoleProgress, output
    from rlaif.pipeline.directives import plan_trial, run_trial
    from rlaif.report.directives import undecided

    dry = given.pop("dry_run")
    settings = _trial_settings(file, given)
    with ConsoleProgress() as progress:
        if dry:
            plan = plan_trial(settings, progress)
            told = (
                f"{plan.conditions} questions about {plan.prompts} prompts, {plan.completions} completions "
            )
            progress.note(f"{told}({plan.write} tokens) and {plan.questions} questions about them at most")
            return
        tried = run_trial(settings, progress)
    if as_json:
        tell_json(tried.trial.as_dict(), indent=2)
        return
    console = output()
    for part in _trial_parts(tried.trial):
        console.print(part, soft_wrap=True)
    for note in undecided(tried.trial):
        tell(f"warning: {note}")
    for path in tried.files:
        console.print(str(path), soft_wrap=True)


def _trial_settings(file: str, given: dict[str, Any]) -> TrialSettings:
    """The settings that the options of `test` say."""
    from rlaif.cli.settings import make_recipe, make_stage
    from rlaif.pipeline.directives import TrialSettings

    stage = make_stage(
        SampleConfig, {"k": 1, **{name: each for name, each in given.items() if each is not None}}
    )
    recipe = make_recipe("directives", [stage], given)
    out = given["out"] or FOLDER
    return TrialSettings(
        source=file,
        sample=stage,
        model=recipe.model,
        judge=given["judge"] or recipe.model,
        out=out,
        journal=given["journal"] or out.parent / JOURNAL,
        seed=recipe.seed,
        on=given["on"],
        dtype=recipe.dtype,
        device=recipe.device,
        server=recipe.server,
        prompts_dir=given["prompts_dir"],
    )


def _trial_parts(trial: Trial) -> list[Any]:
    from rich.table import Table
    from rich.text import Text

    from rlaif.report.directives import COMPLIANCE, compliance_rows

    table = Table(*COMPLIANCE, title="answers that comply, by the judge")
    for row in compliance_rows(trial.compliance):
        table.add_row(*(Text(cell) for cell in row))
    prompts = len(trial.cases) + len(trial.untouched)
    applied = ", ".join(f"{id} {count}" for id, count in trial.applied().items() if count)
    before, after = trial.before, trial.after
    facts = [
        f"a directive applied to {len(trial.cases)} of {prompts} prompts ({applied})",
        f"tokens: {before.tokens} before, {after.tokens} after; seconds: {before.seconds:.1f} before, "
        f"{after.seconds:.1f} after",
    ]
    return [*([table] if trial.compliance else []), *map(Text, facts)]


def _advise(loaded: Directives, file: str, day: date) -> int:
    """Print what there is to say of a file that can be used; how many warnings there were."""
    # The templates, which the advice imports, take a moment that help need not pay.
    from rlaif.directives.lint import lint as advice_on
    from rlaif.directives.lint import precedence

    advice = advice_on(loaded, on=day, source=file)
    for problem in advice:
        tell(f"warning: {problem}")
    for line in precedence(loaded, on=day):
        tell(f"note: {file}: {line}")
    active, all = len(loaded.active(day)), len(loaded.directives)
    warnings = count_of(len(advice), "warning") if advice else "no warnings"
    tell(f"{file}: {count_of(all, 'directive')}, {active} of them in force on {day}, {warnings}")
    return len(advice)


def _print_table(loaded: Directives, day: date) -> None:
    # rich takes a tenth of a second to import, which help and --json need not pay.
    from rich.table import Table
    from rich.text import Text

    from rlaif.cli.console import output

    table = Table(
        "directive", "when", "does", "says", "question", "days", "in force", title=Text(loaded.name)
    )
    for each in loaded.directives:
        says = each.prior or each.answer or " | ".join(side.label for side in each.sides)
        cells = [each.id, str(each.when), each.does, says or each.blocked_message]
        cells += ["yes" if each.question else "-", _days(each), "yes" if each.active(day) else "no"]
        table.add_row(*(Text(cell) for cell in cells))
    console = output()
    console.print(table)
    facts = f"{loaded.name}: {count_of(len(loaded.directives), 'directive')}, digest {loaded.digest}"
    console.print(Text(facts), soft_wrap=True)


def _days(directive: Directive) -> str:
    if directive.since is None and directive.until is None:
        return "always"
    return f"{directive.since or '…'} to {directive.until or '…'}"
