"""The page of a run, collected from its folder: what there is, and a line for what there is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rlaif.audit.grade import share
from rlaif.report.audit import audit_lines
from rlaif.report.comparison import evaluation_table
from rlaif.report.jury import jury_shown
from rlaif.report.labels import statistics_line, statistics_table, warnings_about
from rlaif.report.page import pictures
from rlaif.report.page.costs import cost_section
from rlaif.report.page.model import Page, Picture, Section
from rlaif.report.page.reading import Missing, Stage, finished_stages, read_json, unfinished_stages
from rlaif.report.page.samples import MOST_BYTES, MOST_ROWS, Keeper, evaluated_rows, json_rows, label_row
from rlaif.report.shown import Table
from rlaif.results.evaluation import Evaluation
from rlaif.results.monitor import READINGS, MonitorReading
from rlaif.runs.run import RunInfo, read_run
from rlaif.stats import Estimate
from rlaif.text import count_of, one_line

__all__ = ["run_page"]

Found = TypeVar("Found")
TRAINING = "Training"
"""Title of the comparison's table of costs, which stands among the costs."""
WAYS = {
    "length": "length only",
    "head": "head on frozen features",
    "lora": "head and adapter",
    "judge": "the judge's own labels",
}


class _Comparison(NamedTuple):
    """What is shown of `comparison.json`."""

    verdict: tuple[str, ...]
    tables: tuple[Table, ...]
    values: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> _Comparison:
        """Raises `KeyError` or `TypeError` where the file is not as `compare` writes it."""
        tables = tuple(
            Table(
                str(each["title"]),
                list(map(str, each["header"])),
                [list(map(str, row)) for row in each["rows"]],
            )
            for each in values["tables"]
        )
        return cls(tuple(map(str, values["verdict"])), tables, values)


@dataclass
class _Run:
    """What is known of a run while its page is put together."""

    info: RunInfo
    missing: Missing
    stages: list[Stage]
    keepers: list[Keeper] = field(default_factory=list)
    strengths: dict[str, list[int]] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[Stage]:
        return [stage for stage in self.stages if stage.manifest.kind == kind]


def run_page(folder: Path) -> Page:
    """All that the folder of a run holds, for its page. Partial and damaged runs have a page, too.

    Raises:
        RunError: It is no run folder.
    """
    info, missing = read_run(folder), Missing()
    run = _Run(info, missing, finished_stages(info, missing))
    evaluation = _read(run, _evaluated(run), "evaluation.json", Evaluation.from_dict)
    comparison = _read(run, run.of_kind("compare"), "comparison.json", _Comparison.of)
    training = [each for each in comparison.tables if each.title == TRAINING] if comparison else []
    _read_samples(run, evaluation)
    sections = (
        _verdict(evaluation, comparison),
        _policies(run, evaluation, comparison),
        Section("pictures", "Pictures", pictures=_pictures(run, evaluation, comparison)),
        _judge(run),
        cost_section(run.info, run.stages, missing, training),
    )
    unfinished = unfinished_stages(info)
    if unfinished:
        names = ", ".join(f"`{one_line(name)}`" for name in unfinished)
        missing.lines.insert(0, f"the run is {info.status}; not finished: {names}")
    return Page(
        title=one_line(info.name),
        facts=_facts(run),
        missing=tuple(missing.lines),
        sections=tuple(section for section in sections if not section.empty),
        samples=Keeper.together(run.keepers),
    )


def _evaluated(run: _Run) -> list[Stage]:
    """The evaluations that the page may show, the one it does last: of those that the last comparison read,
    so that verdict, pictures and samples are of the same prompts; of all where nothing was compared."""
    every, compared = run.of_kind("evaluate"), run.of_kind("compare")
    if not compared:
        return every
    named = compared[-1].manifest.config.get("evaluations") or ()
    before = run.stages[: run.stages.index(compared[-1])]
    read = [each for each in every if (each.name in named if named else each in before)]
    return read or every


def _read(
    run: _Run, stages: Sequence[Stage], file: str, made: Callable[[dict[str, Any]], Found]
) -> Found | None:
    """What the last of some stages found; `None` where there is none."""
    if not stages:
        return None
    path = stages[-1].folder / file
    return run.missing.attempt(f"{file} of `{stages[-1].name}`", lambda: made(read_json(path)))


def _facts(run: _Run) -> tuple[tuple[str, str], ...]:
    models = {
        (role, label): None for stage in run.stages for role, label in stage.manifest.models.items() if label
    }
    versions = {stage.manifest.parts.get("rlaif", "") for stage in run.stages} - {""}
    seeds = {stage.manifest.parts.get("seed", "") for stage in run.stages} - {""}
    return (
        ("status", run.info.status),
        ("stages", ", ".join(one_line(stage.name) for stage in run.stages) or "none finished"),
        *((role, one_line(label)) for role, label in models if role != "policies"),
        *((("seed", ", ".join(sorted(seeds))),) if seeds else ()),
        *((("rlaif", ", ".join(sorted(versions))),) if versions else ()),
    )


# Verdict and policies ---------------------------------------------------------------------------------------


def _verdict(evaluation: Evaluation | None, comparison: _Comparison | None) -> Section:
    if comparison is not None:
        lines = comparison.verdict
    elif evaluation is not None:
        first = "The policies were measured, and not compared: `rlaif compare` says which won."
        lines = (first, *evaluation.notes)
    else:
        lines = ("No policy was evaluated in this run, so there is no verdict on policies.",)
    return Section("verdict", "Verdict", lines=lines)


def _policies(run: _Run, evaluation: Evaluation | None, comparison: _Comparison | None) -> Section:
    tables: tuple[Table, ...] = ()
    if comparison is not None:
        tables = tuple(each for each in comparison.tables if each.title != TRAINING)
    elif evaluation is not None:
        shown = run.missing.attempt("the table of policies", evaluation_table, evaluation)
        tables = (shown,) if shown is not None else ()
    about = ("Intervals are 95 % bootstrap intervals over prompts.",) if tables else ()
    return Section("policies", "Policies", lines=about, tables=tables)


# Pictures ---------------------------------------------------------------------------------------------------


def _pictures(
    run: _Run, evaluation: Evaluation | None, comparison: _Comparison | None
) -> tuple[Picture, ...]:
    attempt, found = run.missing.attempt, list[Picture | None]()
    if evaluation is not None:
        what = "the picture of over-optimisation"
        found.append(
            attempt(what, pictures.overoptimization, evaluation, comparison.values if comparison else {})
        )
    trained = [*run.of_kind("ppo"), *run.of_kind("grpo")]
    found.append(attempt("the picture of training", _training, trained))
    found += [
        attempt(f"the readings of the monitor of `{stage.name}`", _monitor, stage)
        for stage in trained
        if READINGS in stage.manifest.outputs
    ]
    found += [
        attempt(f"the calibration of `{stage.name}`", _calibration, stage) for stage in run.of_kind("reward")
    ]
    if evaluation is not None:
        found.append(attempt("the picture of win rates", pictures.win_rate, evaluation))
    found += [pictures.strength(name, counts) for name, counts in run.strengths.items()]
    found += [attempt(f"the flips of `{stage.name}`", _flips, stage) for stage in run.of_kind("label")]
    return tuple(each for each in found if each is not None)


def _training(stages: Sequence[Stage]) -> Picture | None:
    return pictures.training(
        {stage.name: list(json_rows(stage.folder / "metrics.jsonl")) for stage in stages}
    )


def _monitor(stage: Stage) -> Picture | None:
    rows = [MonitorReading.from_row(row) for row in json_rows(stage.folder / READINGS)]
    return pictures.monitor(stage.name, rows, read_json(stage.folder / "statistics.json")["monitor"])


def _calibration(stage: Stage) -> Picture | None:
    return pictures.calibration(stage.name, read_json(stage.folder / "report.json"))


def _flips(stage: Stage) -> Picture | None:
    return pictures.flips(stage.name, read_json(stage.folder / "statistics.json"))


# The judge --------------------------------------------------------------------------------------------------


def _judge(run: _Run) -> Section:
    lines, tables = list[str](), list[Table]()
    for kind, read in (("audit", _audit), ("label", _labels), ("reward", _reward)):
        for stage in run.of_kind(kind):
            shown = run.missing.attempt(f"what `{stage.name}` found", read, stage)
            for each in shown or ():
                if isinstance(each, Table):
                    tables.append(each)
                else:
                    lines.append(each)
    return Section(
        "judge", "What the judge is worth", lines=tuple(dict.fromkeys(lines)), tables=tuple(tables)
    )


def _audit(stage: Stage) -> list[Table | str]:
    return [*audit_lines(read_json(stage.folder / "audit.json"))]


def _labels(stage: Stage) -> list[Table | str]:
    found = read_json(stage.folder / "statistics.json")
    table = statistics_table(found)
    title = f"Verdicts of {one_line(stage.name)}" + (f" ({table.title})" if table.title else "")
    jury = [each for each in jury_shown(found) if isinstance(each, Table | str)]
    return [*warnings_about(found), statistics_line(found), table._replace(title=title), *jury]


def _reward(stage: Stage) -> list[Table | str]:
    """As `report.training.reward_ways`, from the file: reading it as a value would import torch."""
    found = read_json(stage.folder / "report.json")
    rows = [
        (
            WAYS.get(name, name) + (" (kept)" if name == found["kept"] else ""),
            share(Estimate(each["accuracy"], each["low"], each["high"])),
            f"{each['loss']:.4f}",
            f"{each['ece']:.3f}",
        )
        for name, each in found["held_out"].items()
    ]
    title = f"Reward model {one_line(stage.name)}, on {count_of(found['held_out_pairs'], 'held-out pair')}"
    return [Table(title, ("way of scoring", "accuracy [95 %]", "loss (nats)", "ECE"), rows)]


# Samples ----------------------------------------------------------------------------------------------------


def _read_samples(run: _Run, evaluation: Evaluation | None) -> None:
    """Fill the browser, and count the strengths of labels on the way through their files. Each file has an
    equal part of the rows and bytes that are left by those before it."""
    labels, rows, size = run.of_kind("label"), MOST_ROWS, MOST_BYTES
    parts = len(labels) + (evaluation is not None)
    if evaluation is not None:
        stage = _evaluated(run)[-1]
        expected = len(evaluation.policies[0].rows.prompts)
        keeper = Keeper(expected, rows=rows // parts, size=size // parts)
        what = f"samples of `{stage.name}`"
        run.missing.attempt(what, evaluated_rows, evaluation, stage.folder, stage.name, keeper)
        run.keepers.append(keeper)
        rows, size, parts = rows - len(keeper.kept), size - keeper.size, parts - 1
    for place, stage in enumerate(labels):
        left = parts - place
        keeper = Keeper(stage.manifest.rows or 0, rows=rows // left, size=size // left)
        run.missing.attempt(f"samples of `{stage.name}`", _read_labels, run, stage, keeper)
        run.keepers.append(keeper)
        rows, size = rows - len(keeper.kept), size - keeper.size


def _read_labels(run: _Run, stage: Stage, keeper: Keeper) -> None:
    file = stage.folder / next(iter(stage.manifest.outputs))
    counts = run.strengths.setdefault(stage.name, pictures.no_strengths())
    for row in json_rows(file):
        pictures.count_strength(counts, float(row["p_chosen"]))
        keeper.offer(partial(label_row, row, stage.name))
