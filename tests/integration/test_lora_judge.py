"""A judge that is an adapter: trained, saved, opened on the base that others use, and gone without a trace."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from kind_words import KIND, RUDE, Place, text, write_pairs
from spine import call, rows

from rlaif.config import LabelConfig, load_recipe
from rlaif.config.labelling import ServerConfig
from rlaif.constitution.load import load_constitution
from rlaif.engines.base import LabelReading, LabelRequest
from rlaif.engines.hf import HFEngine
from rlaif.engines.journaled import NullMemo
from rlaif.engines.labels import find_labels
from rlaif.errors import ModelError
from rlaif.jobs.base import read_typed
from rlaif.jobs.context import RunContext
from rlaif.jobs.engines import Engines
from rlaif.jobs.way_out import closing_lines
from rlaif.judging.aggregate import LabelStatistics
from rlaif.judging.table import open_protocol
from rlaif.models.load import load_engine
from rlaif.models.open import open_engine
from rlaif.models.probe_files import judge_about
from rlaif.models.role_engine import resident_base
from rlaif.models.shared_base import REFERENCE
from rlaif.progress import NoProgress
from rlaif.prompts import PromptLibrary
from rlaif.report.judge import judge_shown
from rlaif.report.shown import Table
from rlaif.results.judge import JudgeReport
from rlaif.results.preferences import PreferencePair
from rlaif.runs.spending import Spending
from rlaif.stages.judge import comparison_of
from rlaif.stages.judge_lora import _Asked, _log_odds
from rlaif.types import Message

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = (
    "epochs=6",
    "learning_rate=1e-2",
    "batch_size=8",
    "micro_batch=8",
    "lora_rank=4",
    "principles=sample",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def trained(place: Place) -> Path:
    return place.train("trained", "--kind", "lora", *(part for each in SETTINGS for part in ("--set", each)))


def questions(place: Place) -> list[LabelRequest]:
    constitution = load_constitution(str(place.constitution))
    protocol = open_protocol("pointwise", library=PromptLibrary(), constitution=constitution)
    pair = PreferencePair(
        "p", (Message("user", "Say thing 3."),), text(KIND, "k3"), text(RUDE, "r3"), group="p"
    )
    return [
        request
        for principle in constitution.principles
        for request in protocol.questions(comparison_of(pair), principle)
    ]


def answers(engine: object, requests: list[LabelRequest]) -> list[float]:
    found: dict[int, LabelReading] = {}
    for batch in engine.label_logprobs(requests):  # type: ignore[attr-defined]
        found.update(batch)
    return [found[at].logprobs[0] - found[at].logprobs[1] for at in range(len(requests))]


def test_an_adapter_learns_what_people_prefer(place: Place, trained: Path) -> None:
    report = json.loads((trained / "judge/report.json").read_text("utf-8"))
    assert report["kind"] == "lora"
    assert report["held_out"] == 8
    (table, *_) = judge_shown(read_typed(trained / "judge/report.json", JudgeReport))
    assert isinstance(table, Table)
    assert table.title == "on 8 of 40 pairs, whose prompts were held out"
    assert report["found"]["trained"]["accuracy"] > 0.85 > report["found"]["untrained"]["accuracy"]
    others = write_pairs(place.path / "others.jsonl", 12, first=100)
    said = call(
        *("label", "--responses", others, "--judge", trained, "--constitution", place.constitution),
        *("--model", place.model, "--dtype", "float32", "--out", place.path / "labels"),
    )
    assert said.status == 0, said.err
    labels = rows(place.path / "labels/label/preferences.jsonl")
    right = [row["chosen"][0]["content"] == text(KIND, f"k{100 + at}") for at, row in enumerate(labels)]
    assert sum(right) >= 10


def test_two_judges_and_the_base_share_one_model(place: Place, trained: Path) -> None:
    """Whoever asks, in whatever order, gets the answers that it would get alone."""
    base = load_engine(str(place.model), dtype="float32")
    asked = questions(place)
    plain = answers(base, asked)
    judge = open_engine(str(trained), resident=lambda name: base)
    own = answers(judge, asked)
    assert own != pytest.approx(plain, abs=0.05)
    assert answers(base, asked) == pytest.approx(plain, abs=1e-5)
    between = [answers(base, asked) for _ in judge.label_logprobs(asked)]
    assert all(each == pytest.approx(plain, abs=1e-5) for each in between)
    assert resident_base(base).active == REFERENCE
    again = open_engine(str(trained), resident=lambda name: base)
    assert answers(again, asked) == pytest.approx(own, abs=1e-5)
    assert len(resident_base(base).roles) == 1


def test_what_it_answers_is_what_was_trained_times_its_temperature(place: Place, trained: Path) -> None:
    base = load_engine(str(place.model), dtype="float32")
    judge, about = open_engine(str(trained), resident=lambda name: base), judge_about(trained / "judge/model")
    for (request, then), now in zip(
        about.questions, answers(judge, [request for request, _ in about.questions]), strict=True
    ):
        assert now == pytest.approx(then, abs=1e-2)
        assert request.labels


def test_log_odds_are_the_differences_of_the_engines_label_probabilities(place: Place) -> None:
    """The trained sum against the untrained engine, question by question."""
    engine: HFEngine = load_engine(str(place.model), dtype="float32")
    asked = questions(place)
    encoded = list(find_labels(engine.form, asked))
    pair = PreferencePair("p", (Message("user", "x"),), "a", "b", group="p")
    row = _Asked(pair, tuple(asked), tuple(encoded), (0.25, -0.25, 0.75, -0.75))
    with torch.no_grad():
        found = float(_log_odds(resident_base(engine), [row, row])[1])
    slow = sum(part * value for part, value in zip(row.parts, answers(engine, asked), strict=True))
    assert found == pytest.approx(slow, abs=1e-4)


def test_bfloat16_does_not_round_log_odds_to_steps(place: Place) -> None:
    """Label logits are computed in fp32, as the engine computes them."""
    engine: HFEngine = load_engine(str(place.model), dtype="bfloat16")
    asked = questions(place)
    pair = PreferencePair("p", (Message("user", "x"),), "a", "b", group="p")
    rows_ = [
        _Asked(pair, (request,), (each,), (1.0,))
        for request, each in zip(asked, find_labels(engine.form, asked), strict=True)
    ]
    with torch.no_grad():
        found = torch.cat([_log_odds(resident_base(engine), [row]) for row in rows_]).tolist()
    assert found == pytest.approx(answers(engine, asked), abs=0.03)


def test_a_changed_adapter_is_another_judge_and_a_damaged_one_none(place: Place, trained: Path) -> None:
    copy = place.path / "copy"
    shutil.copytree(trained / "judge/model", copy)
    about = json.loads((copy / "judge.json").read_text())
    about["scale"] = 7 * about["scale"]
    (copy / "judge.json").write_text(json.dumps(about))
    assert judge_about(copy).revision != judge_about(trained / "judge/model").revision
    with pytest.raises(ModelError, match="answers otherwise"):
        open_engine(str(copy), dtype="float32")
    about["kind"] = "oracle"
    (copy / "judge.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="oracle"):
        open_engine(str(copy), dtype="float32")


def test_settings_of_the_other_kind_are_refused(place: Place) -> None:
    said = call("judge", "train", "--data", place.pairs, "--set", "epochs=3", "--dry-run")
    assert said.status == 1
    assert "kind: lora" in said.err
    said = call("judge", "train", "--data", place.pairs, "--kind", "lora", "--set", "layer=3", "--dry-run")
    assert "kind: probe" in said.err


RECIPE = """
name: taught
model: {model}
dtype: float32
constitution: {constitution}
stages:
  - stage: judge
    name: learner
    files: [{{file: {pairs}}}]
  - stage: label
    responses: {others}
    judge: {judge}
    principles: all
    max_invalid: 1
"""


def test_a_judge_is_trained_and_asked_in_one_run(place: Place) -> None:
    others = write_pairs(place.path / "unlabelled.jsonl", 12, first=400)
    values = {
        "model": place.model,
        "constitution": place.constitution,
        "pairs": place.pairs,
        "others": others,
    }
    recipe = place.path / "taught.yaml"
    recipe.write_text(RECIPE.format(**values, judge="learner"))
    dry = call("run", recipe, "--dry-run")
    assert dry.status == 0, dry.err
    assert "learner" in dry.out
    said = call("run", recipe, "--out", place.path / "taught")
    assert said.status == 0, said.err
    labels = rows(place.path / "taught/label/preferences.jsonl")
    right = [row["chosen"][0]["content"] == text(KIND, f"k{400 + at}") for at, row in enumerate(labels)]
    assert sum(right) >= 10
    again = call("run", recipe, "--out", place.path / "taught")
    assert again.err.count("finished before") == 2
    recipe.write_text(RECIPE.format(**values, judge=f"[learner, {place.model}]"))
    jury = call("run", recipe, "--out", place.path / "taught")
    assert jury.status == 0, jury.err
    verdicts = rows(place.path / "taught/label/verdicts.jsonl")
    assert {row["judge"] for row in verdicts} == {"learner", str(place.model)}


def test_a_judge_that_is_trained_too_late_is_refused(place: Place) -> None:
    values = {"model": "m", "constitution": "default", "pairs": "p", "others": "o", "judge": "learner"}
    first, _, rest = RECIPE.format(**values).partition("  - stage: judge")
    judge, _, label = rest.partition("  - stage: label")
    recipe = place.path / "late.yaml"
    recipe.write_text(f"{first}  - stage: label{label}  - stage: judge{judge}")
    said = call("run", recipe, "--dry-run")
    assert said.status == 1
    assert "trained after it" in said.err


def test_what_would_do_instead_is_told_of_a_judge_that_the_run_trains(place: Place, trained: Path) -> None:
    recipe = place.path / "instead.yaml"
    values = {"model": place.model, "constitution": place.constitution, "pairs": place.pairs, "others": "o"}
    text_ = RECIPE.format(**values, judge=f"[judge, {place.model}]").replace("name: learner", "name: judge")
    recipe.write_text(text_)
    loaded = load_recipe(recipe)
    context = RunContext(loaded, memo=NullMemo(), progress=NoProgress(), path=trained)
    statistics = LabelStatistics().as_dict() | {"audit": {"grade": "do not use", "line": "a coin"}}
    config = loaded.stages[-1]
    assert isinstance(config, LabelConfig)
    larger, *_, last = closing_lines(config, context, statistics, place.path)
    assert larger.startswith("a larger judge")
    assert last.startswith(f"do not train on the labels of judge, {place.model}: a coin")


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("{stage: audit, judge: learner}", "only a `label` stage can be"),
        ("{stage: ppo, reward: {own: {kind: judge, judge: learner}}}", "only a `label` stage can be"),
        ("{stage: evaluate, judge: learner}", "only a `label` stage can be"),
        ("{stage: audit}", "would audit 'learner', a judge that this recipe trains"),
    ],
)
def test_only_labels_are_judged_by_a_stage(place: Place, stage: str, said: str) -> None:
    values = {"model": place.model, "constitution": place.constitution, "pairs": place.pairs, "others": "o"}
    text_ = RECIPE.format(**values, judge="learner")
    recipe = place.path / "elsewhere.yaml"
    recipe.write_text(text_.replace("  - stage: label", f"  - {stage}\n  - stage: label"))
    found = call("run", recipe, "--out", place.path / "elsewhere")
    assert found.status == 1
    assert said in found.err


def test_a_base_is_held_and_planned_once_by_whatever_path(
    place: Place, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge knows its base by an absolute path, the recipe by another."""
    monkeypatch.chdir(place.path)
    engines = Engines(
        NullMemo(),
        dtype="float32",
        device="cpu",
        server=ServerConfig(),
        note=lambda line: None,
        spending=Spending(None),
        model="./model",
    )
    engines.get(str(trained))
    engine = engines.in_process("./model")
    assert engine is not None
    assert [role for role in resident_base(engine).roles if role.startswith("judge-")]
    recipe = place.path / "rewarded.yaml"
    recipe.write_text(
        f"model: ./model\nconstitution: {place.constitution}\nstages:\n"
        f"  - {{stage: ppo, reward: {{own: {{kind: judge, judge: {trained}}}}}}}\n"
    )
    said = call("memory", recipe)
    assert said.status == 0, said.err
    assert "answers and judges" not in said.out


def test_the_plan_counts_whole_questions(place: Place) -> None:
    """Of 40 pairs the longest question, padded, times the questions of a micro-batch."""
    recipe = place.path / "plan.yaml"
    values = {"model": place.model, "constitution": place.constitution, "pairs": place.pairs, "others": "o"}
    text_ = RECIPE.format(**values, judge="learner").partition("  - stage: label")[0]
    recipe.write_text(text_ + "    kind: lora\n    principles: sample\n")
    said = call("memory", recipe)
    assert said.status == 0, said.err
    planned = int(re.search(r"([\d,]+) tokens per pass", said.out)[1].replace(",", ""))  # type: ignore[index]
    engine = load_engine(str(place.model), dtype="float32")
    longest = max(len(each.ids) for each in find_labels(engine.form, questions(place)))
    assert 2 * 2 * longest <= planned <= 2 * 2 * (longest + 128)
