"""What a contributor writes for a new kind of stage, and for new judging protocols: all of it is in this
file.

A stage is its settings, a function, a job and a row in `JOBS` (its settings are a row in `STAGE_KINDS`); a
protocol is a class, a template and a row in `PROTOCOLS`. Nothing else names it: a run, a dry run, the memory
plan, a resumed run, the model card and the summary come with the job.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from judges import comparison
from rich.console import Console
from spine import call, rows
from tiny import save_tiny

from rlaif.cli.show import show
from rlaif.config import STAGE_KINDS, Recipe, parse_recipe
from rlaif.config.labelling import BaseStage
from rlaif.constitution.load import load_constitution
from rlaif.engines.base import LabelReading, LabelRequest
from rlaif.errors import ConfigError
from rlaif.io.writers import write_rows
from rlaif.jobs.base import AnyJob, Job, Outcome, settings_digest
from rlaif.jobs.cards import write_card
from rlaif.jobs.inputs import load_completions
from rlaif.jobs.lengths import Adapters, Device, Lengths
from rlaif.jobs.planning import StagePlan
from rlaif.jobs.table import JOBS
from rlaif.judging.protocols import JudgingProtocol, log_odds
from rlaif.judging.table import PROTOCOLS
from rlaif.models.memory import StageWork
from rlaif.pipeline.dry_run import plan_recipe
from rlaif.pipeline.memory import recipe_memory
from rlaif.pipeline.run import run_recipe
from rlaif.prompts import PromptLibrary
from rlaif.report.shown import Shown, Table
from rlaif.runs.manifest import Manifest
from rlaif.types import Comparison, Completion, Constitution, Order, Principle, Verdict

# A stage: how long completions are -------------------------------------------------------------------------


class CensusConfig(BaseStage):
    """Count the completions of a sample stage by their first letter."""

    stage: Literal["census"] = "census"

    trains_policy: ClassVar[bool] = True
    holds_base: ClassVar[bool] = True

    ignore_case: bool = True
    """Count `a` and `A` as one letter."""


def census(completions: Sequence[Completion], config: CensusConfig) -> Counter[str]:
    """Completions by their first letter."""
    first = (each.text[:1] for each in completions)
    return Counter(letter.lower() if config.ignore_case else letter for letter in first)


class CensusJob(Job[CensusConfig]):
    """Completions in, a count per letter out; it leaves an adapter that changes nothing, for the card's
    sake."""

    method = "a census"

    def key_parts(self) -> dict[str, str]:
        source = load_completions(self.context.folder_of(self.config, "sample", None))
        return {"settings": settings_digest(self.config), "completions": source.digest()}

    def models(self) -> dict[str, str]:
        return {}

    def execute(self, folder: Path) -> Outcome:
        source = load_completions(self.context.folder_of(self.config, "sample", None))
        counted = census(source.completions, self.config)
        base = self.context.bases.get()
        base.add_adapter("policy")
        base.save_adapter("policy", folder / "adapter")
        base.drop_adapter("policy")
        found = [{"letter": letter, "completions": count} for letter, count in sorted(counted.items())]
        written = write_rows(folder / "census.jsonl", found, "jsonl").rows
        write_card(
            folder / "adapter", self, base=base, parts=self.key_parts(), results={"letters": len(counted)}
        )
        return Outcome(counts={"completions": counted.total()}, rows={"census.jsonl": written})

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        found = rows(folder / "census.jsonl")
        return [
            Table(
                "census", ("letter", "completions"), [[str(cell) for cell in each.values()] for each in found]
            )
        ]

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        plan = earlier[self.context.earlier(self.config, "sample", None)].dry_run(earlier)
        return replace(super().dry_run(earlier), counts={"completions": plan.counts["completions"]})

    def adapters(self) -> Adapters:
        return Adapters(("policy",), ())

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork:
        return StageWork(read_tokens=device.tokens)


RECIPE = """
model: {model}
dtype: float32
stages:
  - {{stage: sample, limit: 3, k: 2, max_new_tokens: 4}}
  - {{stage: census, ignore_case: false}}
"""


@pytest.fixture
def census_stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two rows."""
    monkeypatch.setitem(STAGE_KINDS, "census", CensusConfig)
    monkeypatch.setitem(JOBS, "census", CensusJob)
    Recipe.model_rebuild(force=True)
    yield
    monkeypatch.undo()
    Recipe.model_rebuild(force=True)


@pytest.mark.usefixtures("census_stage")
def test_a_stage_is_run_resumed_carded_and_summarised(tmp_path: Path) -> None:
    text = RECIPE.format(model=save_tiny(tmp_path / "model"))
    recipe = parse_recipe(text, source="r.yaml")
    first = run_recipe(recipe, out=tmp_path / "run", command=["rlaif", "run"])
    folder = first.stages[-1].folder
    assert folder.name == "census"
    assert sum(row["completions"] for row in rows(folder / "census.jsonl")) == 6
    assert "trained by a census" in (folder / "adapter" / "README.md").read_text(encoding="utf-8")
    assert not first.stages[-1].skipped
    assert first.stages[-1].manifest.planned_bytes > 0

    again = run_recipe(recipe, out=tmp_path / "run", command=["rlaif", "run"])
    assert [stage.skipped for stage in again.stages] == [True, True]
    changed = parse_recipe(text, source="r.yaml", overrides=["stages.census.ignore_case=true"])
    assert [stage.skipped for stage in run_recipe(changed, out=tmp_path / "run").stages] == [True, False]

    console = Console(width=100, record=True)
    done = first.stages[-1]
    assert done.job.headline(done.manifest).startswith("6 completions")
    show(done.job.summary(done.folder, done.manifest), console)
    assert "letter" in console.export_text()


@pytest.mark.usefixtures("census_stage")
def test_a_stage_is_planned(tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE.format(model=save_tiny(tmp_path / "model")), source="r.yaml")
    assert plan_recipe(recipe).stages[-1].counts == {"completions": 6}
    planned = {stage.kind: stage.plan for stage in recipe_memory(recipe)}
    assert "adapter policy" in " ".join(item.name for item in planned["census"].items)


@pytest.mark.usefixtures("census_stage")
def test_its_settings_are_checked_with_their_line() -> None:
    with pytest.raises(ConfigError, match=r"r.yaml:2.*ignore_cas(.|\n)*did you mean `ignore_case`"):
        parse_recipe("stages:\n  - {stage: census, ignore_cas: true}", source="r.yaml")
    with pytest.raises(ConfigError, match="did you mean `census`"):
        parse_recipe("stages: [{stage: censsus}]", source="r.yaml")


@pytest.mark.usefixtures("census_stage")
def test_a_stage_without_a_command_of_its_own_is_a_command_all_the_same() -> None:
    said = call("census", "--help")
    assert said.status == 0
    assert "--no-ignore-case" in said.out
    assert "Count `a` and `A` as one letter. [default: on]" in " ".join(said.out.split())
    assert "put a stage of kind `sample` before it" in call("census", "--model", "scripted").err


# A protocol: which of two completions is shorter, asked once ----------------------------------------------

TEMPLATE = """{% block user %}
Two texts: {{ a }} / {{ b }}. {{ question }} Which is shorter?
{% endblock %}
{% block labels %}
first
second
{% endblock %}
"""


class Shorter(JudgingProtocol):
    """One question, in one order."""

    name = "shorter"
    half = "comparison"
    template = "judge_shorter"
    asks = 1

    def __init__(self, library: PromptLibrary, constitution: Constitution, *, least_share: float) -> None:
        self._library = library
        self._least_share = least_share

    def questions(self, comparison: Comparison, principle: Principle) -> tuple[LabelRequest, ...]:
        asked = self._library.label_prompt(
            self.template,
            comparison.prompt,
            a=comparison.a.text,
            b=comparison.b.text,
            question=principle.comparison,
        )
        return (LabelRequest(messages=asked.messages, labels=asked.labels),)

    def verdicts(
        self, comparison: Comparison, principle: Principle, readings: Sequence[LabelReading]
    ) -> tuple[Verdict, ...]:
        logit = log_odds(readings[0], self._least_share)
        return (Verdict(comparison.id, principle.id, Order.AB, logit, reason=readings[0].reason),)


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The row; returns the folder of the template."""
    monkeypatch.setitem(PROTOCOLS, "shorter", Shorter)
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "judge_shorter.j2").write_text(TEMPLATE, encoding="utf-8")
    return folder


def test_a_protocol_is_asked_planned_and_audited(shorter: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(
        f"""
model: scripted
prompts_dir: {shorter}
stages:
  - {{stage: sample, limit: 2, k: 2}}
  - {{stage: audit, protocol: shorter, limit: 4}}
  - {{stage: label, protocol: shorter, principles: all}}
""",
        source="r.yaml",
    )
    planned = plan_recipe(recipe).stages[-1]
    assert planned.counts["questions"] == 2 * planned.counts["principles"]
    assert "Which is shorter?" in planned.example["judge_shorter"]
    done = run_recipe(recipe, out=tmp_path / "run").stages
    assert {row["protocol"] for row in rows(done[-1].folder / "preferences.jsonl")} == {"shorter"}
    assert done[-1].manifest.counts["verdicts"] == planned.counts["questions"]
    assert '"protocol": "shorter"' in (done[1].folder / "audit.json").read_text(encoding="utf-8")


def test_an_unknown_protocol_names_those_there_are(shorter: Path) -> None:
    with pytest.raises(ConfigError, match=r"pairwise, pointwise, cot, .*, shorter"):
        parse_recipe("stages: [{stage: sample}, {stage: label, protocol: shortr}]", source="r.yaml")


def test_the_choices_of_the_command_line_are_the_table(tmp_path: Path) -> None:
    for command in ("label", "audit"):
        said = call(command, "--protocol", "nosuch")
        assert said.status == 2
        assert all(name in said.err for name in PROTOCOLS)


# A protocol with more than two labels: a rating from 1 to 5 -------------------------------------------------

RATING = """{% block user %}
{{ quote(response, "response") }}
{{ question }} Rate from 1 to 5.
{% endblock %}
{% block labels %}
1
2
3
4
5
{% endblock %}
"""


class Rating(JudgingProtocol):
    """Each completion alone; the difference of the mean ratings is the log-odds."""

    name = "rating"
    half = "question"
    template = "judge_rating"

    def __init__(self, library: PromptLibrary, constitution: Constitution, *, least_share: float) -> None:
        self._library = library

    def questions(self, comparison: Comparison, principle: Principle) -> tuple[LabelRequest, ...]:
        asked = [
            self._library.label_prompt(
                self.template, comparison.prompt, choices=5, response=side.text, question=principle.question
            )
            for side in (comparison.a, comparison.b)
        ]
        return tuple(LabelRequest(messages=each.messages, labels=each.labels) for each in asked)

    def verdicts(
        self, comparison: Comparison, principle: Principle, readings: Sequence[LabelReading]
    ) -> tuple[Verdict, ...]:
        reason = next((each.reason for each in readings if each.reason), "")
        logit = None if reason else mean_rating(readings[0]) - mean_rating(readings[1])
        return (Verdict(comparison.id, principle.id, Order.ALONE, logit, reason=reason),)


def mean_rating(reading: LabelReading) -> float:
    weights = [math.exp(each) for each in reading.logprobs]
    return sum(step * weight for step, weight in enumerate(weights, start=1)) / sum(weights)


@pytest.fixture
def rating(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The row; returns the folder of the template."""
    monkeypatch.setitem(PROTOCOLS, "rating", Rating)
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "judge_rating.j2").write_text(RATING, encoding="utf-8")
    return folder


@pytest.mark.parametrize("model", ["scripted", None])
def test_a_rating_is_asked_for_and_read(model: str | None, rating: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(
        f"""
model: {model or save_tiny(tmp_path / "model")}
dtype: float32
constitution: warmth
prompts_dir: {rating}
stages:
  - {{stage: sample, limit: 2, k: 2, max_new_tokens: 4}}
  - {{stage: label, protocol: rating, principles: all}}
""",
        source="r.yaml",
    )
    done = run_recipe(recipe, out=tmp_path / "run").stages[-1]
    assert done.manifest.counts["invalid_verdicts"] == 0
    assert {row["protocol"] for row in rows(done.folder / "preferences.jsonl")} == {"rating"}


def test_a_rating_with_too_few_labels_is_refused(rating: Path) -> None:
    (rating / "judge_rating.j2").write_text(RATING.replace("\n5\n", "\n"), encoding="utf-8")
    protocol = PROTOCOLS["rating"].open(
        PromptLibrary(folder=rating), load_constitution("warmth"), clamp=0.6, least_share=0.0
    )
    principle = load_constitution("warmth").principles[0]
    with pytest.raises(ConfigError, match=r"judge_rating\.j2.*5 different lines"):
        protocol.questions(comparison(0, "Hi.", "What?"), principle)
