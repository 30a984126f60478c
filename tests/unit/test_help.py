"""Help: of every command, quick, with an example, and without torch."""

from __future__ import annotations

import importlib
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import click
import pytest

from rlaif.cli.main import COMMANDS, cli
from rlaif.config import STAGE_KINDS, Recipe

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "pyarrow",
    "pandas",
    "numpy",
    "rich.progress",
)
TIMES_ITS_LIBRARIES = 4.0
"""Processor time of a command's help, as a multiple of importing the libraries that every command needs:
click, pydantic and YAML. A machine's speed cancels out, and changes between two seconds: the least of a few
tries is taken."""

IMPORT = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
HELP = (
    "import sys\nfrom rlaif.cli.main import main\ntry: main([*sys.argv[1:], '--help'])\nexcept "
    "SystemExit: pass\n"
)
TELL = "print('\\0' + ' '.join(sys.modules))"


def commands() -> Iterator[tuple[str, ...]]:
    """The path of every command, groups included, the root first."""
    yield ()
    for name in COMMANDS:
        yield (name,)
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            yield from ((name, below) for below in command.commands)


class Ran(NamedTuple):
    """What a fresh Python printed, the modules that it had loaded at the end, and the CPU seconds that it
    took: unlike the clock, they do not depend on who else is busy."""

    text: str
    modules: frozenset[str]
    seconds: float


def python(code: str, *arguments: str) -> Ran:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code + TELL, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    text, _, modules = done.stdout.partition("\0")
    return Ran(
        text, frozenset(modules.split()), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    )


def heavy(modules: frozenset[str]) -> list[str]:
    return [name for name in HEAVY if name in modules]


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    command: click.Command = cli
    context = click.Context(cli, info_name="rlaif", **cli.context_settings)
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(context, name)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    text = command.get_help(context)
    assert f"Usage: rlaif {' '.join(path)}".rstrip() in text
    assert "Example" in text
    assert f"  rlaif {' '.join(path)}".rstrip() in text.partition("Example")[2]
    silent = {str(each.name) for each in command.params if isinstance(each, click.Option) and not each.help}
    assert silent <= SELF_EVIDENT, "options without a line of help"


SELF_EVIDENT = {"dtype"}
"""Options whose choices say it all."""


@pytest.fixture(scope="module")
def libraries() -> float:
    """Processor seconds of importing what every command needs."""
    return max(
        python(IMPORT, "click", "pydantic._internal._generate_schema", "yaml").seconds for _ in range(3)
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick_and_loads_nothing_heavy(name: str, libraries: float) -> None:
    ran = python(HELP, name)
    assert ran.text.startswith(f"Usage: rlaif {name}")
    assert COMMANDS[name][0].partition(":")[0] in ran.modules
    assert heavy(ran.modules) == []
    tries = [ran.seconds]
    # The first time may have compiled the modules.
    while tries[-1] >= TIMES_ITS_LIBRARIES * libraries and len(tries) < 4:
        tries.append(python(HELP, name).seconds)
    assert min(tries) < TIMES_ITS_LIBRARIES * libraries


def test_the_light_parts_stay_light() -> None:
    """These never import torch: a person can check a constitution, read a run or plan a recipe on a small
    machine."""
    names = (
        "errors",
        "types",
        "digest",
        "constitution.load",
        "constitution.importers",
        "constitution.lint",
        "prompts",
        "config",
        "resources",
        "progress",
        "stats",
        "runs.run",
        "runs.journal",
        "io.readers",
        "io.writers",
        "io.splits",
        "judging.judge",
        "judging.aggregate",
        "judging.protocols",
        "engines.base",
        "engines.scripted",
        "engines.journaled",
        "stages.label",
        "stages.sample",
        "stages.revise",
        "results.rows",
        "plot",
        "report.page",
        "pipeline.report",
    )
    loaded = python(IMPORT, *(f"rlaif.{name}" for name in names)).modules
    assert [name for name in heavy(loaded) if name != "numpy"] == []
    assert "rlaif.stages.label" in loaded


def test_the_root_lists_every_command() -> None:
    text = python(HELP).text
    for name, (_, line) in COMMANDS.items():
        assert f"  {name} " in text
        assert line.split()[0] in text


def examples() -> list[str]:
    """Every example line of every command's help."""
    found = []
    for path in commands():
        command = command_at(path)
        epilog = (command.epilog or "").partition("Examples:")[2]
        found += [line.strip() for line in epilog.splitlines() if line.strip().startswith("rlaif ")]
    return found


def command_at(path: tuple[str, ...]) -> click.Command:
    """The command at `path` below `rlaif`."""
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(cli), name)
        assert found is not None
        command = found
    return command


def documented() -> list[str]:
    """Every `rlaif …` line of README and of the how-to pages that is written out in full."""
    pages = [ROOT / "README.md", ROOT / "docs" / "architecture.md", *(ROOT / "docs" / "how-to").glob("*.md")]
    found = []
    for page in pages:
        text = page.read_text("utf-8").replace("\\\n", " ")
        lines = (line.strip() for line in text.splitlines() if line.startswith(("rlaif ", "    rlaif ")))
        found += [line.partition("  #")[0].strip() for line in lines if "…" not in line]
    return sorted(set(found))


def test_the_docs_have_commands() -> None:
    assert len(documented()) > 25


@pytest.mark.parametrize("line", [*examples(), *documented()])
def test_every_example_can_be_typed(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Options, values and `--set` are read; what a command then does is not done."""
    made: list[Recipe] = []
    for folder in ("mine/ppo/adapter", "mine/reward", "mine/label", "p/ppo"):
        (tmp_path / "runs" / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in STAGE_KINDS:
        module = importlib.import_module(f"rlaif.cli.{name}")
        if hasattr(module, "execute"):
            monkeypatch.setattr(module, "execute", lambda recipe, **_: made.append(recipe))
    _, *words = shlex.split(line.partition(" | ")[0].partition(" > ")[0])
    command, context = cast(click.Command, cli), click.Context(cli)
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, name
        command, context = found, click.Context(found, info_name=name, parent=context)
    parsed = command.make_context(command.name, words)
    if command.callback is not None and command.callback.__module__ in {
        f"rlaif.cli.{name}" for name in STAGE_KINDS
    } - {"rlaif.cli.audit"}:
        command.invoke(parsed)
        assert made
