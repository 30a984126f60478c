"""The page of a run, collected from its folder: what there is, and a line for what there is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from rlaif.runs.run import RunInfo, read_run
from rlaif.stats import Estimate
from rlaif.text import count_of, one_line

__all__ = ["run_page"]

TRAINING = "Training"
"""Title of the comparison's table of costs, which stands among the costs."""
WAYS = {
    "length": "length only",
    "head": "head on frozen features",
    "lora": "head and adapter",
    "judge": "the judge's own labels",
}


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
    evaluation = _last(run, "evaluate", "evaluation.json", Evaluation.from_dict)
    comparison = _last(run, "compare", "comparison.json", lambda found: found)
    _read_samples(run, evaluation)
    sections = (
        _verdict(run, evaluation, comparison),
        _policies(evaluation, comparison),
        Section("pictures", "Pictures", pictures=_pictures(run, evaluation, comparison)),
        _judge(run),
        cost_section(run.info, run.stages, missing, _training_costs(comparison)),
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


def _last(run: _Run, kind: str, file: str, made: Any) -> Any:
    """What the last stage of a kind found; `None` where there is none."""
    stages = run.of_kind(kind)
    if not stages:
        return None
    stage = stages[-1]
    return run.missing.attempt(f"{file} of `{stage.name}`", lambda: made(read_json(stage.folder / file)))


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


def _verdict(run: _Run, evaluation: Evaluation | None, comparison: dict[str, Any] | None) -> Section:
    if comparison is not None:
        told = run.missing.attempt("the verdict", lambda: tuple(map(str, comparison["verdict"])))
        if told:
            return Section("verdict", "Verdict", lines=told)
    if evaluation is not None:
        lines = (
            "The policies were measured, and not compared: `rlaif compare` says which won.",
            *evaluation.notes,
        )
        return Section("verdict", "Verdict", lines=lines)
    line = "No policy was evaluated in this run, so there is no verdict on policies."
    return Section("verdict", "Verdict", lines=(line,))


def _policies(evaluation: Evaluation | None, comparison: dict[str, Any] | None) -> Section:
    if comparison is not None:
        tables = tuple(each for each in _tables(comparison) if each.title != TRAINING)
    else:
        tables = (evaluation_table(evaluation),) if evaluation is not None else ()
    about = ("Intervals are 95 % bootstrap intervals over prompts.",) if tables else ()
    return Section("policies", "Policies", lines=about, tables=tables)


def _tables(comparison: dict[str, Any]) -> list[Table]:
    return [Table(each["title"], each["header"], each["rows"]) for each in comparison.get("tables", ())]


def _training_costs(comparison: dict[str, Any] | None) -> tuple[Table, ...]:
    return tuple(each for each in _tables(comparison or {}) if each.title == TRAINING)


# Pictures ---------------------------------------------------------------------------------------------------


def _pictures(
    run: _Run, evaluation: Evaluation | None, comparison: dict[str, Any] | None
) -> tuple[Picture, ...]:
    attempt, found = run.missing.attempt, list[Picture | None]()
    if evaluation is not None:
        of_policies = evaluation
        found.append(
            attempt(
                "the picture of over-optimisation",
                lambda: pictures.overoptimization(of_policies, comparison or {}),
            )
        )
    steps = {
        stage.name: stage.folder / "metrics.jsonl" for kind in ("ppo", "grpo") for stage in run.of_kind(kind)
    }
    if steps:
        found.append(
            attempt(
                "the picture of training",
                lambda: pictures.training({name: list(json_rows(path)) for name, path in steps.items()}),
            )
        )
    found += [
        attempt(
            f"the calibration of `{stage.name}`",
            lambda stage=stage: pictures.calibration(stage.name, read_json(stage.folder / "report.json")),  # type: ignore[misc]
        )
        for stage in run.of_kind("reward")
    ]
    if evaluation is not None:
        found.append(pictures.win_rate(evaluation))
    found += [pictures.strength(name, counts) for name, counts in run.strengths.items()]
    found += [
        attempt(
            f"the flips of `{stage.name}`",
            lambda stage=stage: pictures.flips(stage.name, read_json(stage.folder / "statistics.json")),  # type: ignore[misc]
        )
        for stage in run.of_kind("label")
    ]
    return tuple(each for each in found if each is not None)


# The judge --------------------------------------------------------------------------------------------------


def _judge(run: _Run) -> Section:
    lines, tables = list[str](), list[Table]()
    for kind, read in (("audit", _audit), ("label", _labels), ("reward", _reward)):
        for stage in run.of_kind(kind):
            shown = run.missing.attempt(
                f"what `{stage.name}` found", lambda read=read, stage=stage: read(stage)
            )  # type: ignore[misc]
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
    """Fill the browser, and count the strengths of labels on the way through their files."""
    labels = run.of_kind("label")
    places = len(labels) + (evaluation is not None)
    left_rows, left_bytes = MOST_ROWS, MOST_BYTES
    if evaluation is not None:
        stage = run.of_kind("evaluate")[-1]
        expected = sum(len(each.rows.prompts) for each in evaluation.policies) // len(evaluation.policies)
        keeper = Keeper(expected, rows=left_rows // places, size=left_bytes // places)
        run.missing.attempt(
            f"samples of `{stage.name}`", lambda: evaluated_rows(evaluation, stage.folder, stage.name, keeper)
        )
        run.keepers.append(keeper)
        left_rows, left_bytes = left_rows - len(keeper.kept), left_bytes - keeper.size
    for place, stage in enumerate(labels):
        share_of = len(labels) - place
        keeper = Keeper(stage.manifest.rows or 0, rows=left_rows // share_of, size=left_bytes // share_of)
        run.missing.attempt(
            f"samples of `{stage.name}`", lambda stage=stage, keeper=keeper: _read_labels(run, stage, keeper)
        )  # type: ignore[misc]
        run.keepers.append(keeper)
        left_rows, left_bytes = left_rows - len(keeper.kept), left_bytes - keeper.size


def _read_labels(run: _Run, stage: Stage, keeper: Keeper) -> None:
    file = stage.folder / next(iter(stage.manifest.outputs))
    counts = run.strengths.setdefault(stage.name, pictures.no_strengths())
    for row in json_rows(file):
        pictures.count_strength(counts, row["p_chosen"])
        keeper.offer(lambda row=row: label_row(row, stage.name))  # type: ignore[misc]
