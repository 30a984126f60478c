"""`rlaif label` with several judges: their label by hand, what they disagree on, recusal, weights of audits,
servers, and all that a run does with one judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judges import comparison, constitution
from misbehaving import MisbehavingServer
from spine import call, rows

from rlaif.collect.pairs import read_pairs
from rlaif.config import LabelConfig, load_recipe
from rlaif.constitution.load import to_yaml
from rlaif.engines.journaled import NullMemo
from rlaif.errors import ConfigError, JudgingError
from rlaif.jobs.bench import Bench
from rlaif.jobs.context import RunContext
from rlaif.labels import sigmoid
from rlaif.pipeline.dry_run import plan_recipe
from rlaif.pipeline.run import run_recipe
from rlaif.progress import NoProgress

KEEN, CONTRARY, BLIND = (f"scripted:judges:{name}" for name in ("keen", "contrary", "half_blind"))
TEXTS = [("q1", "q3"), ("q2", "q1"), ("q4", "q1"), ("q0", "q5")]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(to_yaml(constitution("kind")))
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for number, (a, b) in enumerate(TEXTS):
            policies = {"policy": "org/own@1"} if number == 0 else {}
            file.write(json.dumps({"prompt": f"Question {number}?", "responses": [a, b], **policies}) + "\n")
    return tmp_path


def recipe(work: Path, *judges: Any, **label: Any) -> Path:
    stage = {
        "stage": "label",
        "responses": str(work / "pairs.jsonl"),
        "protocol": "pairwise",
        "principles": "all",
        "judge": list(judges),
        "max_invalid": 1.0,
        **label,
    }
    values = {"name": "jury", "model": KEEN, "constitution": str(work / "rules.yaml"), "stages": [stage]}
    path = work / "jury.json.yaml"
    path.write_text(json.dumps(values))
    return path


def labels(work: Path, *judges: Any, out: str = "run", **label: Any) -> dict[str, float]:
    """By prompt, the log-odds that the second text is better."""
    result = run_recipe(load_recipe(recipe(work, *judges, **label)), out=work / out)
    found = rows(result.folder / "label" / "preferences.jsonl")
    return {
        row["prompt"][-1]["content"][-2]: row["log_odds"]
        if row["chosen_id"].endswith("1")
        else -row["log_odds"]
        for row in found
    }


def test_the_label_is_the_weighted_mean_and_disagreements_are_put_aside(work: Path) -> None:
    found = labels(work, KEEN, {"model": CONTRARY, "weight": 2})
    assert found == pytest.approx({"0": 10 / 3, "1": (-3 + 2) / 3, "2": -15 / 3, "3": 25 / 3}, abs=1e-5)
    folder = work / "run" / "label"
    verdicts = rows(folder / "verdicts.jsonl")
    assert [each["judge"] for each in verdicts[:4]] == [KEEN, KEEN, CONTRARY, CONTRARY]
    (contested,) = rows(folder / "contested.jsonl")
    assert contested["prompt"][-1]["content"] == "Question 1?"
    assert 0 < contested["value"] < 0.7
    assert {each["judge"] for each in contested["verdicts"]} == {KEEN, CONTRARY}
    told = json.loads((folder / "statistics.json").read_text())["jury"]
    assert told["disagreed"] == 1
    assert told["judges"][CONTRARY]["weight"] == 2
    assert told["pairs"][0]["agreement"] == 0.75
    assert len(read_pairs(folder / "contested.jsonl").pairs) == 1


def test_one_judge_in_a_list_leaves_what_one_judge_leaves(work: Path) -> None:
    labels(work, KEEN)
    alone = load_recipe(recipe(work), ["stages.label.judge=" + KEEN])
    run_recipe(alone, out=work / "alone")
    for name in ("preferences.jsonl", "verdicts.jsonl", "unlabelled.jsonl", "statistics.json"):
        assert (work / "run" / "label" / name).read_bytes() == (work / "alone" / "label" / name).read_bytes()
    assert not (work / "run" / "label" / "contested.jsonl").exists()
    assert "judge" not in rows(work / "run" / "label" / "verdicts.jsonl")[0]


def test_a_comparison_that_too_few_judges_can_label_goes_unlabelled(work: Path) -> None:
    assert set(labels(work, KEEN, BLIND)) == {"0", "1", "2", "3"}
    strict = labels(work, KEEN, BLIND, quorum=1.0, out="strict")
    assert set(strict) == {"0", "1", "2"}
    (left,) = rows(work / "strict" / "label" / "unlabelled.jsonl")
    assert left["reasons"] == ["not_finite"]


def test_a_judge_is_recused_from_policies_that_it_is_told(work: Path) -> None:
    found = labels(work, KEEN, {"model": CONTRARY, "recuse": ["org/own"]})
    assert found["0"] == pytest.approx(6)
    assert found["2"] == pytest.approx(-6)
    told = json.loads((work / "run" / "label" / "statistics.json").read_text())["jury"]
    assert told["judges"][CONTRARY]["recused"] == 1


def test_a_judge_is_recused_from_its_own_base(work: Path) -> None:
    text = (work / "pairs.jsonl").read_text().replace("org/own@1", f"{CONTRARY}@contrary")
    (work / "pairs.jsonl").write_text(text)
    assert labels(work, KEEN, CONTRARY, recuse="base")["0"] == pytest.approx(6)
    assert labels(work, KEEN, CONTRARY, out="all")["0"] == pytest.approx(4)


def test_one_judge_by_two_names_is_refused(work: Path) -> None:
    """It would be heard twice, and the agreement of two judges would be told of one."""
    (work / "model").mkdir()
    names = [str(work / "model"), str(work / "other" / ".." / "model")]
    (work / "other").mkdir()
    for judges in (names, [names[0], {"model": names[0], "protocol": "pairwise"}]):
        with pytest.raises(ConfigError, match="are one judge, asked by the same protocol"):
            run_recipe(load_recipe(recipe(work, *judges)), out=work / "run")


def test_a_jury_of_which_all_are_recused_is_told(work: Path) -> None:
    (work / "pairs.jsonl").write_text((work / "pairs.jsonl").read_text().splitlines()[0])
    seats = [{"model": each, "recuse": ["org/*"]} for each in (KEEN, CONTRARY)]
    with pytest.raises(JudgingError, match="every judge is recused from 1 comparison"):
        labels(work, *seats, max_invalid=0.5)


def test_a_judge_alone_is_not_recused(work: Path) -> None:
    with pytest.raises(ConfigError, match="`judge: "):
        labels(work, {"model": KEEN, "recuse": ["org/*"]})


def test_a_folder_is_its_own_base_by_whatever_path_it_is_named(work: Path) -> None:
    (work / "model").mkdir()
    loaded = load_recipe(recipe(work, str(work / "model"), KEEN, recuse="base"))
    context = RunContext(loaded, memo=NullMemo(), progress=NoProgress())
    (stage,) = loaded.stages
    assert isinstance(stage, LabelConfig)
    own, other = Bench(stage, context).seats
    by_it = comparison(1, "x", "y", models=("org/a@1", f"{work}/./model@1"))
    assert (own.may_judge(by_it), other.may_judge(by_it)) == (False, True)
    assert own.may_judge(comparison(1, "x", "y", models=("org/a@1", "org/b@1")))


def test_a_wrong_weight_is_told_by_its_place(work: Path) -> None:
    said = call("label", "--judge", "a=-1", "--judge", "b", "--responses", work / "pairs.jsonl")
    assert "  judge.0.weight: Input should be greater than or equal to 0 (read: -1.0)\n" in said.err
    assert "valid string" not in said.err
    with pytest.raises(ConfigError) as raised:
        load_recipe(recipe(work, {"model": "a", "weight": "much"}))
    (problem,) = raised.value.problems
    assert problem.what.startswith("stages.0.judge.0.weight: Input should be a valid number")


def test_a_home_that_is_nobodys_is_told(work: Path) -> None:
    for options in (
        ("--judge", "~nobody-here/judge"),
        ("--judge", KEEN, "--responses", "~nobody-here/x.jsonl"),
    ):
        said = call("label", "--responses", work / "pairs.jsonl", *options, "--out", work / "run")
        assert (said.status, "no such file" in said.err) == (1, True)


def test_nothing_is_asked_twice_and_other_weights_ask_nothing(work: Path) -> None:
    first = run_recipe(load_recipe(recipe(work, KEEN, CONTRARY)), out=work / "run")
    again = run_recipe(load_recipe(recipe(work, KEEN, CONTRARY)), out=work / "run")
    assert first.asked == 16
    assert [stage.skipped for stage in again.stages] == [True]
    other = run_recipe(load_recipe(recipe(work, KEEN, {"model": CONTRARY, "weight": 3})), out=work / "run")
    assert (other.asked, [stage.skipped for stage in other.stages]) == (0, [False])


def test_a_dry_run_counts_the_questions_of_all_judges(work: Path) -> None:
    (plan,) = plan_recipe(load_recipe(recipe(work, KEEN, CONTRARY))).stages
    assert plan.counts["questions"] == 16
    assert plan.counts["judges"] == 2


def test_weights_come_from_audits(work: Path) -> None:
    """The keen judge is right on all pairs of people, the contrary one on half of them."""
    with (work / "people.jsonl").open("w") as file:
        for number in range(20):
            better, worse = ("q3", "q1") if number % 2 else ("q2", "q1")
            file.write(json.dumps({"prompt": f"P {number}?", "chosen": better, "rejected": worse}) + "\n")
    for judge in (KEEN, CONTRARY):
        found = call(
            *("audit", "--judge", judge, "--constitution", work / "rules.yaml", "--protocol", "pairwise"),
            *("--data", work / "people.jsonl", "--out", work / "audits", "--no-probes", "--variants", 0),
        )
        assert found.status == 0, found.err
    found = labels(work, KEEN, CONTRARY, weights="audit")
    assert found["1"] == pytest.approx(-3)
    told = json.loads((work / "run" / "label" / "statistics.json").read_text())
    assert told["jury"]["judges"][KEEN]["weight"] > 2
    assert told["jury"]["judges"][CONTRARY]["weight"] == 0
    assert told["audit"]["grade"] == "do not use"
    assert {row["audit"] for row in rows(work / "run" / "label" / "preferences.jsonl")} == {"do not use"}


def test_weights_of_audits_want_audits(work: Path) -> None:
    path = recipe(work, KEEN, CONTRARY, weights="audit")
    found = call("run", path, "--out", work / "run")
    assert found.status == 1
    assert "none tells the accuracy of" in found.err
    assert "rlaif audit" in found.err


def test_an_audit_stage_wants_to_know_which_judge(work: Path) -> None:
    values = json.loads(recipe(work, KEEN, CONTRARY).read_text())
    values["stages"].insert(0, {"stage": "audit"})
    (work / "both.yaml").write_text(json.dumps(values))
    found = call("run", work / "both.yaml", "--out", work / "run")
    assert found.status == 1
    assert "name one (judge: MODEL)" in found.err


def test_judges_are_named_on_the_command_line(work: Path) -> None:
    found = call(
        *("label", "--responses", work / "pairs.jsonl", "--constitution", work / "rules.yaml"),
        *("--protocol", "pairwise", "--judge", KEEN, "--judge", f"{CONTRARY}=2", "--out", work / "run"),
    )
    assert found.status == 0, found.err
    assert "the judges disagree on 1 of 4 comparisons" in found.out
    assert "Cohen's κ" in found.out
    row = rows(work / "run" / "label" / "preferences.jsonl")[0]
    assert row["judge"] == "keen@keen, contrary@contrary"
    assert row["p_chosen"] == pytest.approx(sigmoid(row["log_odds"]), abs=1e-5)


def test_each_model_is_asked_where_it_is_served_and_has_a_limit_of_its_own(work: Path) -> None:
    with MisbehavingServer() as one, MisbehavingServer() as other:
        values = json.loads(recipe(work, "openai:a", "openai:b", audit=False).read_text())
        common = {"reads": "logprobs", "continues": False, "price_input": 10, "price_output": 10}
        values["server"] = {**common, "base_urls": [one.url]}
        values["servers"] = {"openai:b": {**common, "base_urls": [other.url], "max_cost": 1e-6}}
        (work / "served.yaml").write_text(json.dumps(values))
        stopped = call("run", work / "served.yaml", "--out", work / "run")
        assert stopped.status == 1
        assert "could cost more than is left" in stopped.err
        values["servers"]["openai:b"]["max_cost"] = 10
        (work / "served.yaml").write_text(json.dumps(values))
        found = call("run", work / "served.yaml", "--out", work / "run")
        assert found.status == 0, found.err
        assert {each["model"] for each in one.asked} == {"a"}
        assert {each["model"] for each in other.asked} == {"b"}
        (plan,) = plan_recipe(load_recipe(work / "served.yaml")).stages
        assert plan.cost == pytest.approx(sum(part.cost or 0 for part in plan.parts))
        assert all(part.cost for part in plan.parts)


def test_a_server_of_no_served_model_is_refused(work: Path) -> None:
    values = json.loads(recipe(work, KEEN, CONTRARY).read_text())
    (work / "odd.yaml").write_text(json.dumps({**values, "servers": {"smollm2-135m": {}}}))
    with pytest.raises(ConfigError, match="1 problem"):
        load_recipe(work / "odd.yaml")
