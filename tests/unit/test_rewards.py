"""Rewards: each kind by hand, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from rlaif.engines.base import LabelReading, LabelRequest
from rlaif.errors import ConfigError, DataError
from rlaif.prompts import PromptLibrary
from rlaif.reward.functions import (
    FormatReward,
    FunctionReward,
    JudgeReward,
    LengthReward,
    PatternReward,
    RewardFunction,
    RewardSum,
    ScoredReward,
)
from rlaif.types import Completion, Constitution, Message, Principle, Prompt

PROMPT = Prompt(id="p", messages=(Message("user", "Hello"),))


def completions(*texts: str) -> list[Completion]:
    return [
        Completion(id=f"p/{index}", prompt_id="p", index=index, text=text, finish="stop", model="m")
        for index, text in enumerate(texts)
    ]


def scored(reward: RewardFunction, *texts: str) -> tuple[float, ...]:
    return reward([PROMPT] * len(texts), completions(*texts)).total


def length_of(prompt: Prompt, completion: Completion) -> float:
    return float(len(completion.text))


def test_a_function_given_or_imported() -> None:
    assert scored(FunctionReward(length_of), "abc", "") == (3.0, 0.0)
    assert scored(FunctionReward(lambda prompt, given: float(prompt == PROMPT)), "") == (1.0,)
    assert scored(FunctionReward("operator:contains", name="never"), *[]) == ()
    assert scored(FunctionReward(f"{__name__}:length_of"), "ab") == (2.0,)


@pytest.mark.parametrize("path", ["no.such.module:f", "math:no_such", "math:pi", ":x"])
def test_what_cannot_be_imported_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=path.replace(".", r"\.")):
        FunctionReward(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(DataError, match=r"completion p/1: the reward mine gave"):
        scored(FunctionReward(lambda p, c: value if c.text else 0.0, name="mine"), "", "x")


@pytest.mark.parametrize("value", [1e30, -1e308])
def test_a_score_too_large_to_train_on_is_refused_where_it_is_given(value: float) -> None:
    """PPO's losses would be infinite a step later, and the reward would not be named."""
    with pytest.raises(DataError, match=r"completion p/0: the reward 'mine' gave .* scores end at 1e\+15"):
        scored(FunctionReward(lambda p, c: value, name="mine"), "x")
    assert scored(FunctionReward(lambda p, c: math.copysign(1e15, value)), "x") == (
        math.copysign(1e15, value),
    )


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="the weight of the reward 'length' is"):
        RewardSum({"length": (weight, FunctionReward(length_of))})


def test_a_sum_too_large_to_train_on_is_refused() -> None:
    large = RewardSum({name: (1e308, FunctionReward(length_of)) for name in ("one", "two")})
    with pytest.raises(DataError, match=r"completion p/1: the weighted sum of the rewards is inf"):
        scored(large, "", "x")


def test_a_batch_score_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match="gave 1 scores for 2 completions"):
        scored(ScoredReward("model", lambda p, c: [0.0]), "a", "b")


def test_rules() -> None:
    assert scored(LengthReward(min_words=1, max_words=2), "", "a", "a b", "a b c") == (-1.0, 0.0, 0.0, -1.0)
    assert scored(PatternReward(r"(?i)as an ai"), "As an AI, I", "no") == (-1.0, 0.0)
    assert scored(FormatReward(r"\d+ dogs"), "12 dogs", "12 dogs!", "dogs") == (0.0, -1.0, -1.0)


def test_a_sum_is_weighted_and_keeps_its_parts() -> None:
    reward = RewardSum({"length": (0.5, FunctionReward(length_of)), "banned": (2.0, PatternReward("x"))})
    found = reward([PROMPT, PROMPT], completions("abcd", "x"))
    assert found.total == (2.0, -1.5)
    assert found.parts == {"length": (4.0, 1.0), "banned": (0.0, -1.0)}
    with pytest.raises(ConfigError, match="nothing to reward"):
        RewardSum({})


class Judge:
    """Answers from a table: text to the log-probabilities of both labels, or a reason."""

    def __init__(self, table: Mapping[str, tuple[float, ...] | str]) -> None:
        self.table = table
        self.asked: list[LabelRequest] = []

    def label_logprobs(
        self, requests: Sequence[LabelRequest], *, done: Any = ()
    ) -> Iterator[dict[int, LabelReading]]:
        self.asked += requests
        for index, request in enumerate(requests):
            said = " ".join(message.content for message in request.messages)
            answer = next(value for text, value in self.table.items() if text in said)
            yield {
                index: LabelReading(logprobs=(), reason=answer)
                if isinstance(answer, str)
                else LabelReading(logprobs=answer)
            }


def constitution(*principles: Principle) -> Constitution:
    return Constitution(name="c", principles=principles)


def test_the_judge_gives_the_expected_score_by_weight() -> None:
    table = {"warm?": (math.log(0.6), math.log(0.2)), "short?": (math.log(0.1), math.log(0.3))}
    asked = constitution(
        Principle(id="w", question="Is it warm?", weight=3.0), Principle(id="s", question="Is it short?")
    )
    judge: Any = Judge(table)
    reward = JudgeReward(judge, PromptLibrary(), asked)
    assert scored(reward, "one") == pytest.approx(((3 * 0.75 + 0.25) / 4,))
    odds = JudgeReward(judge, PromptLibrary(), asked, scale="log-odds")
    assert scored(odds, "one") == pytest.approx(((3 * math.log(3) - math.log(3)) / 4,))
    assert len(judge.asked) == 4


def test_an_invalid_answer_leaves_its_principle_out_and_none_at_all_is_refused() -> None:
    judge: Any = Judge({"warm?": "prompt_too_long", "short?": (math.log(0.3), math.log(0.1))})
    both = constitution(Principle(id="w", question="Is it warm?"), Principle(id="s", question="Is it short?"))
    assert scored(JudgeReward(judge, PromptLibrary(), both), "one") == pytest.approx((0.75,))
    with pytest.raises(DataError, match=r"completion p/0: the judge has no valid answer \(prompt_too_long\)"):
        scored(JudgeReward(judge, PromptLibrary(), constitution(both.principles[0])), "one")


def test_a_principle_without_a_question_is_refused() -> None:
    judge: Any = Judge({})
    with pytest.raises(ConfigError, match="principle 'c' has no `question`"):
        JudgeReward(judge, PromptLibrary(), constitution(Principle(id="c", comparison="Which is kinder?")))
