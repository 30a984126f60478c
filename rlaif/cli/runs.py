"""`rlaif runs`: what was run, how it ended, and where its files are."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rlaif.cli.echo import tell, tell_json
from rlaif.errors import RunError
from rlaif.runs.manifest import Manifest
from rlaif.runs.run import RunInfo, list_runs, read_run
from rlaif.text import count_of

__all__ = ["runs"]

DEFAULT_FOLDER = Path("runs")


@click.group(
    epilog="""\b
Examples:
  rlaif runs list
  rlaif runs show runs/quickstart
"""
)
def runs() -> None:
    """List and show runs.

    A run is a folder with its resolved recipe and a folder with a manifest for each finished stage; runs in
    the same folder share a journal of all answers.
    """


@runs.command(
    "list",
    epilog="""\b
Examples:
  rlaif runs list
  rlaif runs list experiments/ --json
""",
)
@click.argument("folder", metavar="[DIR]", default=DEFAULT_FOLDER, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per run.")
def list_command(folder: Path, as_json: bool) -> None:
    """List the runs in DIR (runs/ when left out), the latest first."""
    found = (
        [(info, _readable(info)) for info in list_runs(folder)]
        if folder.exists() or folder != DEFAULT_FOLDER
        else []
    )
    if as_json:
        for info, manifests in found:
            tell_json(_summary(info, manifests))
    elif found:
        _print_list(found)
    else:
        tell(f"no runs in {folder}; `rlaif label` or `rlaif run RECIPE` makes one")


@runs.command(
    epilog="""\b
Examples:
  rlaif runs show runs/quickstart
  rlaif runs show runs/quickstart --json | jq '.manifests[].counts'
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, manifests included, as one JSON object.")
def show(run: Path, as_json: bool) -> None:
    """Show the run in folder RUN: command, status, and each finished stage with its models, counts and
    files."""
    info = read_run(run)
    manifests = info.manifests()
    if as_json:
        everything = _summary(info, manifests) | {"manifests": [asdict(manifest) for manifest in manifests]}
        tell_json(everything, indent=2)
        return
    tell(f"{info.name}: {info.status}")
    for name, value in _facts(info):
        tell(f"  {name:<9} {value}")
    for manifest in manifests:
        tell(f"\n{manifest.stage} ({manifest.kind}), {manifest.seconds:.1f} s, key {manifest.key}")
        for name, value in _stage_facts(manifest, run / manifest.stage):
            tell(f"  {name:<9} {value}")


def _summary(info: RunInfo, manifests: list[Manifest]) -> dict[str, Any]:
    return {
        "run": str(info.path),
        "name": info.name,
        "status": info.status,
        "command": list(info.command),
        "version": info.version,
        "stages": list(info.stages),
        "rows": _rows(manifests),
        "started": info.started,
        "finished": info.finished,
        "seconds": round(sum(manifest.seconds for manifest in manifests), 3),
    }


def _readable(info: RunInfo) -> list[Manifest]:
    """The manifests, or none where one is damaged: one bad run does not hide the others, and `show` says what
    is wrong."""
    try:
        return info.manifests()
    except RunError:
        return []


def _rows(manifests: list[Manifest]) -> int | None:
    """Rows of the last finished stage's main result."""
    return manifests[-1].rows if manifests else None


def _print_list(found: list[tuple[RunInfo, list[Manifest]]]) -> None:
    from rich.table import Table

    from rlaif.cli.console import output

    table = Table(box=None, pad_edge=False)
    for name in ("run", "status", "stages", "rows", "when (UTC)", "seconds"):
        table.add_column(name, justify="right" if name in ("rows", "seconds") else "left", overflow="fold")
    for info, manifests in found:
        rows = _rows(manifests)
        table.add_row(
            str(info.path),
            info.status,
            " ".join(info.stages) or "-",
            "-" if rows is None else f"{rows:,}",
            info.started[:19].replace("T", " ") or "-",
            f"{sum(manifest.seconds for manifest in manifests):.1f}" if manifests else "-",
        )
    output().print(table)


def _facts(info: RunInfo) -> list[tuple[str, str]]:
    when = f"{info.started} to {info.finished}" if info.finished else info.started
    places = {
        "recipe": info.path / "recipe.yaml",
        "journal": info.path.absolute().parent / "rlaif-journal.sqlite",
    }
    files = [(name, str(path)) for name, path in places.items() if path.exists()]
    return [
        ("command", shlex.join(info.command)),
        ("when", when),
        ("rlaif", info.version),
        ("stages", " ".join(info.stages) or "none yet"),
        *files,
    ]


def _stage_facts(manifest: Manifest, folder: Path) -> list[tuple[str, str]]:
    git = (
        f"{manifest.git.revision[:12]}{' with uncommitted changes' if manifest.git.dirty else ''}"
        if manifest.git
        else ""
    )
    facts = [
        *((role, label) for role, label in manifest.models.items()),
        ("counts", ", ".join(f"{name} {count:,}" for name, count in manifest.counts.items())),
        ("git", git),
        *(("file", _file(folder / name, output.rows)) for name, output in manifest.outputs.items()),
    ]
    return [(name, value) for name, value in facts if value]


def _file(path: Path, rows: int | None) -> str:
    return str(path) if rows is None else f"{path} ({count_of(rows, 'row')})"
