"""A judge that reasons as the model itself did where it agreed with people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from judges import constitution, logprobs
from kind_words import KIND, RUDE, Place, text
from spine import call, rows

from rlaif.engines.base import GenerationRequest, LabelRequest
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import DataError
from rlaif.judging.reasoning import ReasoningJudge
from rlaif.judging.table import open_judge, open_protocol
from rlaif.progress import NoProgress
from rlaif.prompts import PromptLibrary
from rlaif.results.preferences import PreferencePair
from rlaif.stages import judge_generative
from rlaif.stages.judge import judged_pairs
from rlaif.stages.judge_generative import Lesson, lessons_from
from rlaif.stages.sft import SftExample
from rlaif.types import Message

RULES = constitution("right")
PAIRS = [
    PreferencePair(
        f"p{at}", (Message("user", f"Say {at}."),), text(KIND, f"k{at}"), text(RUDE, f"r{at}"), group=f"p{at}"
    )
    for at in range(4)
]


class Thinker(ScriptedEngine):
    """Its reasons name a seed and what stands first; `sees` says what it answers behind them."""

    def __init__(self, sees: Sequence[float], *, first: float = 0.0) -> None:
        super().__init__(self._write, labels=self._label, revision="thinker", name="thinker")
        self.sees, self.first = sees, first

    def _write(self, request: GenerationRequest) -> str:
        return f"reasons {request.seed}"

    def _label(self, request: LabelRequest) -> list[float]:
        shown = request.messages[1].content.partition("<response_a>\n")[2]
        kind_first = sum(map(shown.partition("</response_a>")[0].count, KIND)) > 2
        number = int(request.messages[-1].content.split()[1])
        return logprobs(self.first + self.sees[number] * (1 if kind_first else -1))


def lessons(
    engine: ScriptedEngine, pairs: Sequence[PreferencePair] = PAIRS, *, reasonings: int = 3
) -> tuple[list[Lesson], dict[str, int]]:
    protocol = open_protocol("cot", library=PromptLibrary(), constitution=RULES, clamp=1.0)
    judge = open_judge(engine, protocol, RULES, principles="all", seed=0, reasonings=reasonings)
    assert isinstance(judge, ReasoningJudge)
    return lessons_from(pairs, judge, protocol, NoProgress())


def test_what_agrees_is_learned_from_once_an_order() -> None:
    found, counts = lessons(Thinker([-1.0, 2.0, 2.0]))
    assert counts == {"sampled": 24, "agreed": 16, "kept": 8, "left_out": 0, "undecided": 0}
    assert [lesson.label for lesson in found] == [0, 1] * 4
    assert all(lesson.question.messages[-1].content.startswith("reasons 1\n") for lesson in found)


def test_what_agrees_in_one_order_only_would_teach_the_position() -> None:
    with pytest.raises(DataError, match="of no pair one in each order"):
        lessons(Thinker([0.1, 0.1, 0.1], first=3.0))


def test_what_has_no_valid_verdict_is_in_no_figure() -> None:
    judge = open_judge(
        ScriptedEngine(
            labels=lambda request: logprobs(2.0) if "Say 0" in str(request) else [-50.0, -50.0], name="some"
        ),
        open_protocol("pairwise", library=PromptLibrary(), constitution=RULES),
        RULES,
        principles="all",
        seed=0,
    )
    found = judged_pairs(judge, PAIRS, NoProgress())
    assert [pair.id for pair in found.pairs] == ["p0"]
    assert found.scored.pairs == 1
    none = found._replace(pairs=[], log_odds=found.log_odds[:0])
    with pytest.raises(DataError, match="no valid verdict on any of 4 held-out pairs"):
        judge_generative._temperature(none, of=4)


def test_a_reasoning_whose_other_order_is_too_long_is_not_learned_from() -> None:
    rows = [SftExample(f"p{at // 2}/{at}", (1,), (2,)) for at in range(6)]
    refused = Counter(prompt_too_long=1)
    kept = judge_generative._in_both_orders([row for row in rows if row.id != "p1/3"], refused)
    assert [row.id for row in kept] == ["p0/0", "p0/1", "p2/4", "p2/5"]
    assert refused == {"prompt_too_long": 1, "other_order_left_out": 1}
    with pytest.raises(DataError, match="of no question are the reasonings left in both orders"):
        judge_generative._in_both_orders(rows[1:2], refused)


def test_the_other_label_is_learned_where_people_chose_otherwise_and_ties_are_not() -> None:
    row = PAIRS[0]
    against = PreferencePair(row.id, row.prompt, row.chosen, row.rejected, log_odds=-2.0, group="p0")
    tie = PreferencePair(row.id, row.prompt, row.chosen, row.rejected, log_odds=0.0, group="p0")
    found, counts = lessons(Thinker([-1.0, 2.0, 2.0]), [against, tie])
    assert counts["sampled"] == 6
    assert counts["undecided"] == 1
    assert [lesson.label for lesson in found] == [1, 0]
    assert all(lesson.question.messages[-1].content.startswith("reasons 0\n") for lesson in found)


@pytest.mark.usefixtures("one_thread")
def test_it_is_trained_saved_and_asked_by_cot(tmp_path: Path) -> None:
    place = Place(tmp_path)
    settings = ("reasonings=6", "reasoning_tokens=8", "epochs=4", "learning_rate=1e-2", "principles=sample")
    run = place.train(
        "trained", "--kind", "generative", *(part for each in settings for part in ("--set", each))
    )
    report = json.loads((run / "judge/report.json").read_text("utf-8"))
    found = report["reasonings"]
    assert report["kind"] == "generative"
    assert report["held_out"] == 8
    assert found["sampled"] == 32 * 2 * 6
    assert 0 < found["kept"] <= found["agreed"] < found["sampled"]
    assert found["kept"] // 2 + found["left_out"] == 32
    said = call(
        *("label", "--responses", place.pairs, "--judge", run, "--constitution", place.constitution),
        *("--model", place.model, "--dtype", "float32", "--out", place.path / "labels", "--limit", 4),
        *("--no-audit", "--protocol", "cot", "--set", "reasoning_tokens=8"),
    )
    assert said.status == 0, said.err
    assert {row["protocol"] for row in rows(place.path / "labels/label/preferences.jsonl")} == {"cot"}
    assert all(row["reasoning"] for row in rows(place.path / "labels/label/verdicts.jsonl"))


def test_its_settings_are_of_its_kind(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for arguments, message in (
        (("--set", "reasonings=2"), "kind: generative"),
        (("--kind", "generative", "--protocol", "pairwise"), "name one of cot"),
    ):
        said = call(
            *("judge", "train", "--data", place.pairs, "--constitution", place.constitution),
            *("--model", place.model, "--out", place.path / "no", *arguments),
        )
        assert said.status == 1, said.err
        assert message in said.err
