"""`rlaif collect`: labels of people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.options import examples

if TYPE_CHECKING:
    from rlaif.collect.labels_file import LabelsFile
    from rlaif.collect.pairs import Shown, ShownPairs
    from rlaif.collect.session import Session

__all__ = ["collect"]


@click.group(
    epilog=examples(
        "rlaif collect labels runs/first/label/preferences.jsonl --limit 100",
        "rlaif collect export runs/first/label/preferences.jsonl --out tasks.json",
        "rlaif collect import export.json --out labels.jsonl",
        "rlaif collect export chats.sqlite --since 2026-11-01 --holdout 0.1",
        "rlaif collect stats chats.sqlite",
    )
)
def collect() -> None:
    """Collect people's labels, and what comes back from a served policy."""


@collect.command(
    epilog=examples(
        "rlaif collect labels runs/first/label/preferences.jsonl --limit 100 --order spread",
        "rlaif collect labels runs/jury/label/contested.jsonl --order contested",
        "rlaif collect labels pairs.jsonl --out human.jsonl --annotator ada",
        "rlaif audit --data human.jsonl",
        "rlaif judge train --data human.jsonl --out runs/judge",
    )
)
@click.argument("pairs", metavar="PAIRS")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("labels.jsonl"),
    show_default=True,
    metavar="FILE",
    help="Labels, a row of preferences each; a file with labels is continued.",
)
@click.option("--annotator", default=None, metavar="NAME", help="Who labels. [default: the login name]")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Pairs to show. [default: all]")
@click.option(
    "--order",
    type=click.Choice(["random", "contested", "spread"]),
    default="random",
    show_default=True,
    help="Which pairs come first: any, those whose label would tell most, or weak and strong labels of short "
    "and long pairs in turn.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order, and of the sides.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port on this machine. [default: any free]"
)
@click.option("--no-browser", is_flag=True, help="Print the address without opening it.")
@click.option("--dry-run", is_flag=True, help="Say what would be shown; write and serve nothing.")
def labels(**options: Any) -> None:
    """Label pairs by hand, on a page that this machine shows to you alone.

    PAIRS is any file of comparisons, such as a run's preferences.jsonl. A pair is shown with its two
    completions on sides drawn at random: 1 is left, 2 is right, 0 is equal, s skips, u takes the last click
    back. Each click is on the disk before the next pair comes. Ctrl-C ends it, and the same command
    goes on. At the end it says how far you agree with the judge, and the annotators of the file with each
    other. What it writes is read by `rlaif audit`, `rlaif judge train` and `rlaif reward`.
    """
    from rlaif.cli.echo import tell
    from rlaif.collect.labels_file import LabelsFile
    from rlaif.collect.pairs import in_order, read_pairs
    from rlaif.collect.session import Session

    annotator = _annotator(options["annotator"])
    _check_out(options["pairs"], options["out"])
    found = read_pairs(options["pairs"])
    shown = in_order(found.pairs, options["order"], seed=options["seed"], limit=options["limit"])
    _tell_pairs(found, shown)
    if options["dry_run"]:
        tell(f"{annotator} would label them into {options['out']}; nothing was written")
        return
    with LabelsFile(options["out"]) as file:
        session = Session(shown, file, annotator=annotator, seed=options["seed"])
        _tell_resumed(session, file)
        _serve(session, port=options["port"], browser=not options["no_browser"])


def _serve(session: Session, *, port: int, browser: bool) -> None:
    """Show the page until the annotator has finished, or Ctrl-C; then say what it came to."""
    import webbrowser

    from rlaif.cli.echo import tell
    from rlaif.collect.server import CollectServer
    from rlaif.collect.summary import summary

    with CollectServer(session, port=port) as server:
        tell(f"label at {server.url} (Ctrl-C ends)")
        if browser and not webbrowser.open(server.url):
            tell("no browser could be opened: open the address yourself", err=True)
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt as ended:
            if type(ended) is not KeyboardInterrupt:  # a signal, whose status main gives
                raise
        finally:
            with server.guard:
                lines = summary(session)
            for line in lines:
                tell(line)
            tell(f"labels: {session.labels.out}")


def _annotator(given: str | None) -> str:
    import getpass

    from rlaif.errors import ConfigError
    from rlaif.text import well_formed

    try:
        name = (getpass.getuser() if given is None else given).strip()
    except (OSError, KeyError):  # a user without a name, as in containers
        name = ""
    if not name or len(name) > 100:
        raise ConfigError(
            "no name of an annotator" if not name else "the name has more than 100 characters",
            where="--annotator",
            remedy="say who labels: --annotator NAME",
        )
    return well_formed(name)


def _check_out(pairs: str, out: Path) -> None:
    from rlaif.errors import ConfigError

    if Path(os.path.expanduser(pairs)).resolve() == out.resolve():
        raise ConfigError(
            "a file that is read would be written over", where=f"--out {out}", remedy="name another file"
        )


def _tell_pairs(found: ShownPairs, shown: list[Shown]) -> None:
    from rlaif.cli.echo import tell
    from rlaif.text import count_of

    judged = sum(pair.p_first is not None for pair in shown)
    left_out = (
        f"; left out: {found.identical} with equal completions, {found.repeated} repeated"
        if found.identical or found.repeated
        else ""
    )
    tell(
        f"{len(shown):,} of {count_of(len(found.pairs), 'pair')}, {judged:,} with a label of the judge's"
        + left_out
    )
    for note in found.notes:
        tell(f"note: {note}")


def _tell_resumed(session: Session, file: LabelsFile) -> None:
    from rlaif.cli.echo import tell

    if done := len(session.clicks):
        tell(f"{session.annotator} has done {done} of them before: {file.out} is continued")


@collect.command(
    "export",
    epilog=examples(
        "rlaif collect export pairs.jsonl --labels labels.jsonl --out tasks.json",
        "rlaif collect export chats.sqlite --since 2026-11-01 --holdout 0.1 --out collected",
    ),
)
@click.argument("pairs", metavar="PAIRS|CHATS")
@click.option(
    "--labels",
    "labelled",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="Labels that were collected, exported as annotations.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE|DIR",
    help="Tasks, with the labelling configuration beside them as .xml [default: tasks.json]; of chats, the "
    "folder of the data [default: collected].",
)
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Pairs to export. [default: all]")
@click.option("--seed", type=int, default=None, help="Of the order, and of the sides. [default: 0]")
@click.option(
    "--since", type=click.DateTime(["%Y-%m-%d"]), default=None, help="Of chats: first day to take, UTC."
)
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), default=None, help="Of chats: last day to take.")
@click.option(
    "--holdout",
    type=click.FloatRange(0, 1, max_open=True),
    default=None,
    help="Of chats: share of users whose data are written into files of their own. [default: 0]",
)
def export(pairs: str, **options: Any) -> None:
    """Write pairs as tasks for Label Studio, or chats as data to train on.

    PAIRS is a file of comparisons; its tasks hold the labels there are. CHATS is what `rlaif serve --collect`
    wrote: its prompts, preferences and thumbs are written as JSONL, with personal data masked and near
    duplicates apart. What becomes of every row is counted and printed.
    """
    from rlaif.cli import collect_chats

    of_chats = collect_chats.is_database(pairs)
    collect_chats.check_options(options, of_chats=of_chats)
    if of_chats:
        collect_chats.export(Path(pairs), options)
        return
    out, seed = options["out"] or Path("tasks.json"), options["seed"] or 0
    _export_tasks(pairs, out, labelled=options["labelled"], limit=options["limit"], seed=seed)


def _export_tasks(pairs: str, out: Path, *, labelled: Path | None, limit: int | None, seed: int) -> None:
    """Tasks for Label Studio."""
    import json

    from rlaif.cli.echo import tell
    from rlaif.collect.label_studio import CONFIG, export_tasks
    from rlaif.collect.labels_file import LabelsFile
    from rlaif.collect.pairs import in_order, read_pairs
    from rlaif.errors import ConfigError, DataError
    from rlaif.runs.disk import write_whole
    from rlaif.text import count_of

    for written in (out, out.with_suffix(".xml")):
        for read in (pairs, *([str(labelled)] if labelled else [])):
            _check_out(read, written)
    if out.suffix == ".xml":
        raise ConfigError(
            "the labelling configuration is written there",
            where=f"--out {out}",
            remedy="end the name in .json",
        )
    shown = in_order(read_pairs(pairs).pairs, "random", seed=seed, limit=limit)
    clicks = []
    if labelled is not None:
        if not labelled.is_file():
            raise DataError("there are no labels", where=str(labelled), remedy="name a file of labels")
        with LabelsFile(labelled) as file:
            clicks = file.clicks
    tasks = export_tasks(shown, clicks, seed=seed)
    write_whole(out, json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
    write_whole(out.with_suffix(".xml"), CONFIG)
    told = sum(len(task.get("annotations", ())) for task in tasks)
    tell(f"{count_of(len(tasks), 'task')} with {count_of(told, 'annotation')} in {out}")
    tell(f"labelling configuration: {out.with_suffix('.xml')}")


@collect.command("import", epilog=examples("rlaif collect import export.json --out labels.jsonl"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), metavar="EXPORT.json")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("labels.jsonl"),
    show_default=True,
    metavar="FILE",
    help="Labels, a row of preferences each; a file with labels is continued.",
)
def import_labels(file: Path, out: Path) -> None:
    """Take labels over from Label Studio's JSON export of a project with a `Pairwise` tag."""
    from rlaif.cli.echo import tell
    from rlaif.collect.label_studio import import_annotations
    from rlaif.collect.labels_file import LabelsFile
    from rlaif.text import count_of

    with LabelsFile(out) as labels_file:
        found = import_annotations(file, labels_file)
    tell(
        f"{count_of(sum(found), 'annotation')}: {count_of(found.labels, 'label')}, "
        f"{count_of(found.ties, 'tie')}, {found.skipped:,} skipped, {found.repeated:,} known before; in {out}"
    )


@collect.command("stats", epilog=examples("rlaif collect stats chats.sqlite"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), metavar="CHATS")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def stats(file: Path, as_json: bool) -> None:
    """Say what a file of chats holds: use cases, languages, votes by policy, users per day."""
    from rlaif.chats.store import ChatsFile
    from rlaif.chats.summary import chat_stats
    from rlaif.cli.echo import tell, tell_json

    with ChatsFile(file, create=False) as chats:
        found = chat_stats(chats)
    if as_json:
        tell_json(found.as_dict(), indent=1)
        return
    for line in found.lines:
        tell(line)
