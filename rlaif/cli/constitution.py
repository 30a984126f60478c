"""`rlaif constitution`: show, check and import principle files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlaif.cli.constitution_diff import diff
from rlaif.cli.echo import tell, tell_json, tell_yaml
from rlaif.constitution.importers import import_cai
from rlaif.constitution.lint import lint as advice_on
from rlaif.constitution.load import load_constitution, to_yaml
from rlaif.errors import ConfigError, RlaifError
from rlaif.text import count_of
from rlaif.types import TEXT_KEYS, Constitution

__all__ = ["constitution"]


@click.group(
    epilog="""\b
Examples:
  rlaif constitution show default
  rlaif constitution lint my.yaml --strict
  rlaif constitution import RLMadisonInstructions.json --out cai.yaml
"""
)
def constitution() -> None:
    """Show, check and import principle files.

    A constitution is a YAML file of principles. A FILE is a path or the name of one that ships: default,
    default.zh, warmth, concise.
    """


@constitution.command(
    epilog="""\b
Examples:
  rlaif constitution show warmth
  rlaif constitution show constitutions/default.yaml --json | jq .digest
"""
)
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
def show(file: str, as_json: bool) -> None:
    """Show the principles of FILE: which texts each has, its weight, its tags."""
    loaded = load_constitution(file)
    if as_json:
        tell_json(_as_dict(loaded), indent=2)
    else:
        _print_table(loaded)


@constitution.command(
    epilog="""\b
Examples:
  rlaif constitution lint my.yaml
  rlaif constitution lint constitutions/*.yaml --strict
"""
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--strict", is_flag=True, help="Fail on advice too.")
@click.pass_context
def lint(ctx: click.Context, files: tuple[str, ...], strict: bool) -> None:
    """Check each FILE: errors with their lines, and advice on wording.

    Exits with 1 when a file cannot be used, and under --strict when there is advice.
    """
    failed = False
    for file in files:
        try:
            loaded = load_constitution(file)
        except RlaifError as error:
            tell(f"error: {error}", err=True)
            failed = True
            continue
        advice = advice_on(loaded, source=file)
        for problem in advice:
            tell(f"warning: {problem}")
        warnings = count_of(len(advice), "warning") if advice else "no warnings"
        tell(f"{file}: {count_of(len(loaded.principles), 'principle')}, {warnings}")
        failed = failed or (strict and bool(advice))
    ctx.exit(1 if failed else 0)


@constitution.command(
    "import",
    epilog="""\b
Examples:
  rlaif constitution import RLMadisonInstructions.json CritiqueRevisionInstructions.json --out cai.yaml
  rlaif constitution import CritiqueRevisionInstructions.json --name harmless > harmless.yaml
""",
)
@click.argument("files", metavar="FILE [FILE]", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="YAML file to write. [default: standard output]",
)
@click.option("--name", default=None, help="Name of the constitution. [default: that of the --out file]")
def import_(files: tuple[str, ...], out: Path | None, name: str | None) -> None:
    """Turn the Constitutional AI paper's two JSON files into a constitution, or llm-swarm's critics and
    revisions.

    One FILE or both kinds, in any order. Their principles stay separate: those with critique and revision,
    and those with a comparison. The files are not part of rlaif; mind their terms.
    """
    imported = import_cai(files, name=name or (out.stem if out else "imported"))
    text = to_yaml(imported)
    if out is None:
        tell_yaml(text)
        return
    _write_new(out, text)
    tell(f"{out}: {count_of(len(imported.principles), 'principle')}, digest {imported.digest}")


@constitution.command(
    epilog="""\b
Example:
  rlaif constitution schema > constitution.schema.json
"""
)
def schema() -> None:
    """Print the JSON Schema of constitution files, for editors."""
    # The models take a tenth of a second to import, which help need not pay.
    from rlaif.constitution.form import constitution_schema

    tell_json(constitution_schema(), indent=2)


def _write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet.

    Raises:
        ConfigError: It is there, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(
            f"`{path}` exists", remedy="name another file with --out, or remove this one"
        ) from error
    except OSError as error:
        what = f"`{path}` cannot be written: {error.strerror or error}"
        raise ConfigError(
            what, remedy="name a file in a folder that you may write to, with room left"
        ) from error


def _as_dict(loaded: Constitution) -> dict[str, Any]:
    return {
        "name": loaded.name,
        "description": loaded.description,
        "language": loaded.language,
        "protocol": loaded.protocol,
        "digest": loaded.digest,
        "principles": [
            principle.meaning() | {"tags": list(principle.tags)} for principle in loaded.principles
        ],
        "examples": [example.meaning() for example in loaded.examples],
    }


def _print_table(loaded: Constitution) -> None:
    # rich takes a tenth of a second to import, which help and --json need not pay.
    from rich.table import Table
    from rich.text import Text

    from rlaif.cli.console import output

    table = Table(
        "principle", *TEXT_KEYS, "answers", "weight", "tags", title=Text(loaded.description or loaded.name)
    )
    for principle in loaded.principles:
        halves = ["yes" if getattr(principle, key) else "-" for key in TEXT_KEYS]
        answers = f"{principle.answers.good} / {principle.answers.bad}" if principle.answers else "-"
        cells = [principle.id, *halves, answers, f"{principle.weight:g}", ", ".join(principle.tags)]
        table.add_row(*(Text(cell) for cell in cells))
    console = output()
    console.print(table)
    counts = f"{count_of(len(loaded.principles), 'principle')}, {count_of(len(loaded.examples), 'example')}"
    facts = f"{loaded.name}: {counts}, language {loaded.language}, "
    console.print(Text(f"{facts}protocol {loaded.protocol}, digest {loaded.digest}"), soft_wrap=True)


constitution.add_command(diff)
