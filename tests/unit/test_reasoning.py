"""The reasoning judge: reasons first, the label behind them, clamped, and nothing read inside."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rlaif.config import parse_recipe
from rlaif.engines.base import GenerationRequest, LabelReading, LabelRequest
from rlaif.engines.journaled import JournaledEngine
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import ConfigError
from rlaif.judging.reasoning import ChainOfThought, ReasonedReading, ReasoningJudge, continued, split_reasons
from rlaif.pipeline.dry_run import plan_recipe
from rlaif.progress import NoProgress
from rlaif.prompts import PromptLibrary
from rlaif.runs.journal import Journal
from rlaif.types import Comparison, Completion, Constitution, Message, Order, Principle, Prompt

PRINCIPLE = Principle(id="kind", comparison="Which response is kinder?")
CONSTITUTION = Constitution(name="test", principles=(PRINCIPLE,))
LIBRARY = PromptLibrary()


def completion(index: int, text: str) -> Completion:
    return Completion(id=f"p/{index}", prompt_id="p", index=index, text=text, finish="stop", model="m@1")


def comparison() -> Comparison:
    prompt = Prompt(id="p", messages=(Message("user", "How are you?"),))
    return Comparison(prompt=prompt, a=completion(0, "Well, thank you."), b=completion(1, "Go away."))


def judge_with(engine: ScriptedEngine, clamp: float = 0.6) -> ReasoningJudge:
    protocol = ChainOfThought(LIBRARY, CONSTITUTION, clamp=clamp)
    return ReasoningJudge(engine, protocol, CONSTITUTION, principles="all", seed=0, max_new_tokens=64)


def sure_of_the_kind_one(request: LabelRequest) -> list[float]:
    """Nearly certain of the response that thanks, wherever it stands."""
    user = request.messages[1].content
    first = user.index("thank") < user.index("Go away")
    return [-0.001, -7.0] if first else [-7.0, -0.001]


@pytest.mark.parametrize(
    ("text", "thinking", "visible"),
    [
        ("A is kind.", "", "A is kind."),
        ("<think>\nhm\n</think>\n\nA is kind.", "hm", "A is kind."),
        ("hm</think>A is kind.", "hm", "A is kind."),
        ("<think>one</think>x<think>two</think>A is kind.", "one</think>xtwo", "A is kind."),
        ("<think>cut in the mid", "cut in the mid", ""),
        ("A is kind.\nAnswer: A\nSure.", "", "A is kind."),
        ("Answer: A", "", ""),
        ("The Answer: A is in the text.", "", "The Answer: A is in the text."),
        ("", "", ""),
    ],
)
def test_a_text_is_taken_apart(text: str, thinking: str, visible: str) -> None:
    reasons = split_reasons(text, "Answer:")
    assert (reasons.thinking, reasons.visible) == (thinking, visible)
    assert reasons.last == (visible or thinking)


def test_thinking_that_was_cut_stands_for_the_reasons_without_its_verdict() -> None:
    reasons = split_reasons("<think>A is kind.\nAnswer: A", "Answer:")
    assert reasons.last == "A is kind."
    assert "Answer: A" in reasons.thinking


def test_the_label_is_asked_behind_the_reasons() -> None:
    question = LabelRequest((Message("user", "Which?"), Message("assistant", "Answer:")), ("A", "B"))
    asked = continued(question, split_reasons("<think>hm</think>A is kind.\nAnswer: B", "Answer:"))
    assert asked.messages == (Message("user", "Which?"), Message("assistant", "A is kind.\nAnswer:"))
    assert asked.labels == ("A", "B")


def test_reasons_are_asked_greedily_bounded_and_stopped_before_the_answer() -> None:
    seen: list[GenerationRequest] = []

    def write(request: GenerationRequest) -> str:
        seen.append(request)
        return "Reasons."

    next(judge_with(ScriptedEngine(generate=write)).judge([comparison()]))
    assert len(seen) == 2
    assert {request.sampling.temperature for request in seen} == {0.0}
    assert {request.sampling.max_new_tokens for request in seen} == {64}
    assert {request.sampling.stop for request in seen} == {("\nAnswer:",)}
    assert all(request.messages[-1].role == "user" for request in seen)


def test_verdicts_are_clamped_and_keep_reasoning_and_evidence() -> None:
    engine = ScriptedEngine(
        generate=lambda _request: "<think>hm</think>A thanks. B does not.\nAnswer: B",
        labels=sure_of_the_kind_one,
    )
    judged = next(judge_with(engine).judge([comparison()]))
    assert [verdict.order for verdict in judged.verdicts] == [Order.AB, Order.BA]
    for verdict in judged.verdicts:
        assert verdict.logit_a == pytest.approx(math.log(0.6 / 0.4)), (
            "the verdict inside the reasoning (B) is not read"
        )
        assert verdict.reasoning == "<think>\nhm\n</think>\nA thanks. B does not."
        assert min(verdict.evidence.values()) == -7.0
    assert judged.logit_a == pytest.approx(math.log(0.6 / 0.4))


def test_without_a_clamp_the_log_odds_are_as_read() -> None:
    engine = ScriptedEngine(generate=lambda _request: "Reasons.", labels=sure_of_the_kind_one)
    judged = next(judge_with(engine, clamp=1.0).judge([comparison()]))
    assert judged.logit_a == pytest.approx(6.999)


def test_a_weak_verdict_is_not_changed_by_the_clamp() -> None:
    engine = ScriptedEngine(generate=lambda _request: "Reasons.", labels=lambda _request: [-1.0, -1.1])
    verdicts = next(judge_with(engine).judge([comparison()])).verdicts
    assert [verdict.logit_a for verdict in verdicts] == pytest.approx([0.1, -0.1])


@pytest.mark.parametrize("clamp", [0.5, 0.4, 1.1])
def test_a_clamp_is_a_probability_above_one_half(clamp: float) -> None:
    with pytest.raises(ConfigError, match="clamp"):
        ChainOfThought(LIBRARY, CONSTITUTION, clamp=clamp)


def test_no_reasons_make_an_invalid_verdict_and_the_others_stand() -> None:
    def write(request: GenerationRequest) -> str:
        text = request.messages[-1].content
        return "Answer: A" if text.index("thank") < text.index("Go away") else "Reasons."

    engine = ScriptedEngine(generate=write, labels=sure_of_the_kind_one)
    first, second = next(judge_with(engine).judge([comparison()])).verdicts
    assert (first.valid, first.reason) == (False, "no_reasoning")
    assert second.valid
    assert engine.read == 1


def test_a_refused_reasoning_is_invalid_for_the_engines_reason() -> None:
    judged = next(judge_with(ScriptedEngine(context=5)).judge([comparison()]))
    assert {verdict.reason for verdict in judged.verdicts} == {"prompt_too_long"}
    assert judged.logit_a is None


def test_a_reading_that_fails_behind_the_reasons_keeps_them() -> None:
    engine = ScriptedEngine(generate=lambda _request: "Reasons.", labels=lambda _request: [math.nan, 0.0])
    verdict = next(judge_with(engine).judge([comparison()])).verdicts[0]
    assert (verdict.reason, verdict.reasoning) == ("not_finite", "Reasons.")


def test_reasons_and_readings_are_asked_once(tmp_path: Path) -> None:
    engine = ScriptedEngine(generate=lambda _request: "Reasons.", labels=sure_of_the_kind_one, revision="1")
    with Journal(tmp_path / "journal.sqlite") as journal:
        found = []
        for _ in range(2):
            judge = ReasoningJudge(
                JournaledEngine(engine, journal),
                ChainOfThought(LIBRARY, CONSTITUTION),
                CONSTITUTION,
                principles="all",
                seed=0,
            )
            found.append(next(judge.judge([comparison()])))
    assert found[0] == found[1]
    assert (engine.generated, engine.read) == (2, 2)


def test_swapping_the_comparison_swaps_the_verdicts() -> None:
    engine = ScriptedEngine(generate=lambda _request: "Reasons.", labels=sure_of_the_kind_one)
    plain = next(judge_with(engine).judge([comparison()]))
    swapped = next(judge_with(engine).judge([comparison().swap()]))
    assert plain.logit_a == pytest.approx(-(swapped.logit_a or 0.0))


def test_the_templates_of_both_languages_ask_for_reasons_first() -> None:
    for language, opening in (("en", "Answer:"), ("zh", "答案：")):
        prompt = PromptLibrary(language).judge_cot(comparison(), PRINCIPLE)
        assert [message.role for message in prompt.messages] == ["system", "user", "assistant"]
        assert prompt.messages[-1].content == opening
        assert prompt.labels == ("A", "B")
        assert PRINCIPLE.comparison is not None
        assert PRINCIPLE.comparison in prompt.messages[1].content


def test_a_plain_reading_has_no_reasoning() -> None:
    protocol = ChainOfThought(LIBRARY, CONSTITUTION)
    readings = [LabelReading((-1.0, -1.2)), ReasonedReading((-1.0, -1.2), reasoning="Reasons.")]
    verdicts = protocol.verdicts(comparison(), PRINCIPLE, readings)
    assert [verdict.reasoning for verdict in verdicts] == ["", "Reasons."]


# Several reasonings ----------------------------------------------------------------------------------------


def of_two_minds(request: LabelRequest) -> list[float]:
    """Certain of A behind the reasoning of an even seed; behind an odd one, mildly for B."""
    even = "seed 0" in request.messages[-1].content or "seed 2" in request.messages[-1].content
    return [math.log(0.9), math.log(0.1)] if even else [math.log(0.2), math.log(0.6)]


def judge_of(engine: ScriptedEngine | JournaledEngine, reasonings: int, clamp: float = 1.0) -> ReasoningJudge:
    protocol = ChainOfThought(LIBRARY, CONSTITUTION, clamp=clamp)
    return ReasoningJudge(
        engine, protocol, CONSTITUTION, principles="all", seed=0, max_new_tokens=64, reasonings=reasonings
    )


def test_several_reasonings_are_averaged_in_probability() -> None:
    engine = ScriptedEngine(lambda request: f"seed {request.seed}", of_two_minds)
    (found,) = judge_of(engine, 3).judge([comparison()])
    first = (0.9 + 0.2 + 0.9) / 3
    second = (0.1 + 0.6 + 0.1) / 3
    assert found.verdicts[0].logit_a == pytest.approx(math.log(first / second))
    assert found.verdicts[1].logit_a == pytest.approx(-math.log(first / second))
    assert found.verdicts[0].reasoning == "(1 of 3)\nseed 0\n\n(2 of 3)\nseed 1\n\n(3 of 3)\nseed 2"
    (clamped,) = judge_of(engine, 3, clamp=0.6).judge([comparison()])
    assert clamped.verdicts[0].logit_a == pytest.approx(math.log(0.6 / 0.4))


def test_a_reasoning_that_says_nothing_is_left_out_of_the_mean() -> None:
    engine = ScriptedEngine(lambda request: f"seed {request.seed}" if request.seed else "", of_two_minds)
    (found,) = judge_of(engine, 2).judge([comparison()])
    assert found.verdicts[0].logit_a == pytest.approx(math.log(0.2 / 0.6))
    silent = ScriptedEngine(lambda request: "", of_two_minds)
    (none,) = judge_of(silent, 2).judge([comparison()])
    assert {verdict.reason for verdict in none.verdicts} == {"no_reasoning"}


def test_more_reasonings_reuse_those_that_there_are(tmp_path: Path) -> None:
    drawn: list[GenerationRequest] = []

    def write(request: GenerationRequest) -> str:
        drawn.append(request)
        return f"seed {request.seed}"

    with Journal(tmp_path / "journal.sqlite") as journal:
        for reasonings in (2, 4):
            engine = JournaledEngine(ScriptedEngine(write, of_two_minds), journal)
            list(judge_of(engine, reasonings).judge([comparison()]))
    assert sorted(request.seed for request in drawn) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {request.sampling.temperature for request in drawn} == {0.7}
    single = judge_of(ScriptedEngine(write, of_two_minds), 1)
    assert single.reasoning_request(single.requests(comparison())[0]).sampling.temperature == 0.0


class Counted(NoProgress):
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.told = 0

    def advance(self, count: int = 1) -> None:
        self.told += count


@pytest.mark.parametrize("silent", [0, 1, 5])
@pytest.mark.parametrize("reasonings", [1, 3])
def test_progress_counts_questions_not_reasonings(reasonings: int, silent: int) -> None:
    told = Counted()
    engine = ScriptedEngine(lambda request: "" if request.seed < silent else "a reason", of_two_minds)
    protocol = ChainOfThought(LIBRARY, CONSTITUTION)
    judge = ReasoningJudge(
        engine, protocol, CONSTITUTION, principles="all", seed=0, progress=told, reasonings=reasonings
    )
    list(judge.judge([comparison()]))
    assert told.told == judge.questions_about(comparison()) == 2


def test_a_dry_run_says_what_several_reasonings_cost(tmp_path: Path) -> None:
    def planned(more: str) -> tuple[int, int]:
        recipe = parse_recipe(
            "model: scripted\nstages:\n  - {stage: sample, limit: 2, k: 2}\n"
            f"  - {{stage: label, protocol: cot, reasoning_tokens: 50, principles: all, audit: false{more}}}\n",
            source="r.yaml",
        )
        plan = plan_recipe(recipe).stages[-1]
        return plan.read, plan.write

    read, write = planned("")
    assert planned(", reasonings: 5") == (5 * read, 5 * write)


def test_reasonings_act_with_cot_only() -> None:
    with pytest.raises(ConfigError, match="reasonings acts with `protocol: cot` only"):
        parse_recipe("stages: [{stage: sample}, {stage: label, reasonings: 3}]", source="r.yaml")
