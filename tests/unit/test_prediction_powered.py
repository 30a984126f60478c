"""Means from a few labels of people and many of a judge: their coverage, their limits, and their use in a
comparison."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from spine import call

from rlaif.errors import DataError
from rlaif.jobs.people import pair_rows, read_people
from rlaif.prediction_powered import Labelled, powered_mean
from rlaif.prompts import PromptLibrary
from rlaif.results.evaluation import WIN, CompletionRows, Cost, Evaluation, PolicyResult, WinRate, pair_id
from rlaif.stages.compare import compare
from rlaif.stages.people import PeopleLabel, people_rates
from rlaif.stats import Estimate
from rlaif.types import Message, Prompt


def drawn(rng: np.random.Generator, *, people: int, items: int, right: float) -> list[Labelled]:
    """Pairs that people like with probability 0.6, and a judge that says the same with probability `right`, and
    else that the policy won."""
    truth = rng.random(items) < 0.6
    said = np.where(rng.random(items) < right, truth, True)
    return [
        Labelled(float(f), float(y) if i < people else None, i)
        for i, (f, y) in enumerate(zip(said, truth, strict=True))
    ]


@pytest.mark.parametrize("right", [0.95, 0.5, 0.0])
def test_the_interval_holds_the_truth_whatever_the_judge_is_worth(right: float) -> None:
    rng = np.random.default_rng(0)
    found = [powered_mean(drawn(rng, people=60, items=400, right=right)) for _ in range(300)]
    held = sum(each.both.low <= 0.6 <= each.both.high for each in found) / 300
    assert 0.925 <= held <= 0.995
    mean = sum(each.effective for each in found) / 300
    assert mean > 120 if right == 0.95 else 55 <= mean <= 90


def test_a_biased_judge_alone_is_wrong_and_both_are_not() -> None:
    found = powered_mean(drawn(np.random.default_rng(1), people=80, items=2000, right=0.7))
    assert found.judge.low > 0.65
    assert found.both.low < 0.6 < found.both.high
    assert found.both.high - found.both.low < found.people.high - found.people.low


def test_without_further_items_people_stand_alone() -> None:
    items = drawn(np.random.default_rng(2), people=50, items=50, right=0.9)
    found = powered_mean(items)
    assert found.weight == 0
    assert found.both == found.people
    assert found.effective == 50


def test_the_formula_by_hand() -> None:
    f, y, rest = [1.0, 0.0, 1.0, 0.8], [1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    items = [Labelled(a, b, i) for i, (a, b) in enumerate(zip(f, y, strict=True))]
    items += [Labelled(a, None, 10 + i) for i, a in enumerate(rest)]
    found = powered_mean(items)
    more_f, more_y = np.array([*f, 0.0, 1.0]), np.array([*y, 1.0, 0.0])
    covariance = np.cov(more_f, more_y)[0, 1]
    weight = max(0, covariance / ((1 + 6 / 6) * np.var([*more_f, *rest], ddof=1)))
    assert found.weight == pytest.approx(weight)
    error = np.array(y) - weight * np.array(f)
    assert found.both.value == pytest.approx(weight * np.mean(rest) + error.mean())
    variance = weight**2 * np.var(rest, ddof=1) / 6 + np.var(more_y - weight * more_f, ddof=1) / 4
    assert found.effective == pytest.approx(4 * (np.var(more_y, ddof=1) / 4) / variance)


def test_items_of_one_prompt_count_as_a_cluster() -> None:
    """Each item four times over is no more to know."""
    once = drawn(np.random.default_rng(3), people=40, items=200, right=0.8)
    found, fourfold = powered_mean(once), powered_mean([item for item in once for _ in range(4)])
    assert fourfold.both.value == pytest.approx(found.both.value, rel=0.01)
    width = found.both.high - found.both.low
    assert fourfold.both.high - fourfold.both.low == pytest.approx(width, rel=0.02)


def test_a_prompt_that_people_saw_in_part_is_one_prompt() -> None:
    """Its items that people labelled and those that they did not vary together: so do the two means."""
    f, y = [1.0, 0.0, 1.0, 0.0] * 2, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    rest = [1.0, 0.0] * 4

    def variance(apart: int) -> tuple[float, float]:
        items = [Labelled(a, b, i) for i, (a, b) in enumerate(zip(f, y, strict=True))]
        found = powered_mean([*items, *(Labelled(a, None, apart + i) for i, a in enumerate(rest))])
        return found.weight, found.labels / found.effective

    (weight, whole), (same_weight, parts) = variance(0), variance(10)
    assert weight == same_weight > 0
    error = np.array(y) - weight * np.array(f)
    cross = float((error - error.mean()) @ (np.array(rest) - 0.5)) / 64
    alone = float(np.var([*y, 1.0, 0.0], ddof=1)) / 8
    assert abs(cross) > 0.001
    assert (whole - parts) * alone == pytest.approx(2 * weight * cross)


def test_further_items_of_one_prompt_add_nothing() -> None:
    items = drawn(np.random.default_rng(4), people=30, items=30, right=0.9)
    found = powered_mean([*items, Labelled(1.0, None, 99), Labelled(0.0, None, 99)])
    assert (found.weight, found.both) == (0, found.people)


def test_labels_that_all_agree_are_not_certain() -> None:
    items = [Labelled(1.0, 1.0 if i < 10 else None, i) for i in range(50)]
    found = powered_mean(items)
    assert found.both.value == 1
    assert found.both.low < 0.85


def test_one_prompt_tells_nothing() -> None:
    with pytest.raises(DataError, match="labelled pairs of 1 prompts"):
        powered_mean([Labelled(1.0, 1.0, "a"), Labelled(0.0, 1.0, "a"), Labelled(0.0, None, "b")])
    with pytest.raises(DataError, match="not from 0 to 1"):
        powered_mean([Labelled(math.nan, 1.0, "a"), Labelled(0.0, 1.0, "b")])


# In a comparison --------------------------------------------------------------------------------------------

PROMPTS = [Prompt(id=f"p{i}", messages=(Message("user", f"Question {i}?"),)) for i in range(30)]


def evaluation() -> Evaluation:
    ids = tuple(prompt.id for prompt in PROMPTS)
    cost = Cost(tokens=1, prompt_tokens=1, flops=1.0, seconds=1.0, peak_bytes=1)
    wins = tuple(None if i == 1 else float(i % 3 > 0) for i in range(30))
    start = CompletionRows(ids, tuple(f"plain {i}" for i in range(30)), {"gold": (0.0,) * 30})
    ours = CompletionRows(
        ids,
        tuple("plain 2" if i == 2 else f"warm {i}" for i in range(30)),
        {"gold": tuple(i / 30 for i in range(30)), WIN: wins},
    )
    estimates = {"gold": Estimate(0, 0, 0)}
    rate = WinRate(28, 19, 10, 0, 1, 1, {}, None, None, None, None)
    return Evaluation(
        start="start",
        gold="gold",
        prompts=30,
        samples=1,
        max_new_tokens=8,
        temperature=1.0,
        seed=0,
        policies=(
            PolicyResult("start", "m", estimates, None, cost, start),
            PolicyResult("ppo", "m", estimates, rate, cost, ours),
        ),
    )


def test_people_correct_the_judges_win_rate() -> None:
    labels = {
        pair_id("ppo", f"p{i}", 0): PeopleLabel({f"warm {i}": float(i % 2), f"plain {i}": 1 - float(i % 2)})
        for i in range(3, 15)
    }
    found = compare([evaluation()], people=labels, resamples=100)
    (rate,) = found.people
    assert (rate.rate.labels, rate.rate.items) == (12, 28)
    assert rate.rate.people.value == 0.5
    assert any(line.startswith("By 12 labels of people and 28 of the judge's") for line in found.verdict)


def test_labels_of_something_else_are_refused() -> None:
    with pytest.raises(DataError, match="no label is of a pair"):
        people_rates(evaluation(), {"dpo/p1/0": PeopleLabel({"a": 1, "b": 0})})
    with pytest.raises(DataError, match="other completions"):
        people_rates(evaluation(), {"ppo/p5/0": PeopleLabel({"warm 5": 1, "cold 5": 0})})


def test_labels_that_are_in_no_figure_are_told() -> None:
    def told(*pairs: str) -> tuple[int, list[str]]:
        labels = {
            f"ppo/{name}/0": PeopleLabel({f"warm {name[1:]}": 1.0, f"plain {name[1:]}": 0.0})
            for name in pairs
        }
        found = compare([evaluation()], people=labels, resamples=10)
        return len(found.people), [note for note in found.notes if "with labels of people" in note]

    assert told("p3", "p4") == (1, [])
    rates, (line,) = told("p3", "p4", "q9")
    assert (rates, line.partition(" with")[0]) == (1, "1 of 3 pairs")
    rates, (line,) = told("p3")
    assert (rates, line.partition(" with")[0]) == (0, "1 of 1 pair")


def test_what_people_are_shown_is_what_their_labels_are_of(tmp_path: Path) -> None:
    rows = list(pair_rows(evaluation(), PROMPTS, PromptLibrary(), "judge@1"))
    assert len(rows) == 28
    assert rows[0]["id"] == "ppo/p0/0"
    assert rows[0]["chosen"][0]["content"] == "plain 0"
    collected = [
        {**rows[i], "source_id": rows[i]["id"], "annotator": who, "p_chosen": p}
        for i, who, p in ((0, "ada", 1.0), (0, "bob", 0.5), (5, "ada", 1.0))
    ]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in collected))
    found = read_people(str(path))
    assert found["ppo/p0/0"].texts == {"plain 0": 0.75, "warm 0": 0.25}
    del collected[0]["source_id"]
    path.write_text("".join(json.dumps(row) + "\n" for row in collected))
    with pytest.raises(DataError) as raised:
        read_people(str(path))
    assert raised.value.remedy == "correct it"


def test_the_command_line_takes_them(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation().as_dict()))
    rows = list(pair_rows(evaluation(), PROMPTS, PromptLibrary(), "judge@1"))[:10]
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps({**row, "source_id": row["id"]}) + "\n" for row in rows))
    out = tmp_path / "run"
    found = call("compare", tmp_path / "evaluation.json", "--human", labels, "--out", out)
    assert found.status == 0, found.err
    assert "prediction-powered" in found.out
    assert json.loads((out / "compare" / "comparison.json").read_text())["people"][0]["policy"] == "ppo"
