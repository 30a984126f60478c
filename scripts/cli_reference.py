"""Print docs/reference/cli.md: the help of every command, as the program prints it.

python scripts/cli_reference.py > docs/reference/cli.md
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from rlaif.cli.main import cli

WIDTH = 110


def pages(command: click.Command, context: click.Context) -> Iterator[str]:
    """The help of `command` and, below it, of its subcommands."""
    yield f"## `{context.command_path}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from pages(
                below, click.Context(below, info_name=name, parent=context, terminal_width=WIDTH)
            )


def reference() -> str:
    """The whole page."""
    root = click.Context(cli, info_name="rlaif", terminal_width=WIDTH, **cli.context_settings)
    head = (
        "# Command line\n\nWritten by `python scripts/cli_reference.py`; a test holds it equal to the "
        "program's own help.\n"
    )
    return "\n".join([head, *pages(cli, root)])


if __name__ == "__main__":
    click.echo(reference(), nl=False)
