"""The judge against a slow one-at-a-time reference, and the draw of principles."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from rlaif.engines.base import LabelRequest
from rlaif.engines.scripted import ScriptedEngine, pseudo_labels
from rlaif.judging.aggregate import combine
from rlaif.judging.judge import Judge, draw_principle
from rlaif.judging.protocols import Pairwise, Pointwise, log_odds
from rlaif.judging.table import open_protocol
from rlaif.labels import sigmoid
from rlaif.prompts import PromptLibrary
from rlaif.types import Comparison, Completion, Constitution, Message, Order, Principle, Prompt

PRINCIPLES = tuple(
    Principle(
        id=f"p{index}",
        comparison=f"Which is better in way {index}?",
        question=f"Is way {index} good?",
        weight=1.0 + index,
    )
    for index in range(3)
)
CONSTITUTION = Constitution(name="c", principles=PRINCIPLES)
LIBRARY = PromptLibrary()


def comparisons(count: int) -> list[Comparison]:
    found = []
    for number in range(count):
        prompt = Prompt(id=f"q{number}", messages=(Message("user", f"Question {number}?"),))
        a, b = (
            Completion(
                id=f"{prompt.id}/{n}",
                prompt_id=prompt.id,
                index=n,
                text=f"say {n} " * (number + 1),
                finish="stop",
                model="m",
            )
            for n in range(2)
        )
        found.append(Comparison(prompt=prompt, a=a, b=b))
    return found


def slow_pairwise(comparison: Comparison, principle: Principle) -> tuple[float, float]:
    """The log-odds of `a` in both orders, one question at a time."""

    def ask(each: Comparison) -> float:
        prompt = LIBRARY.judge_pairwise(each, principle, CONSTITUTION)
        first, second = pseudo_labels(LabelRequest(prompt.messages, prompt.labels))
        return first - second

    return ask(comparison), -ask(comparison.swap())


def slow_pointwise(comparison: Comparison, principle: Principle) -> float:
    def ask(completion: Completion) -> float:
        prompt = LIBRARY.judge_pointwise(comparison.prompt, completion, principle)
        good, bad = pseudo_labels(LabelRequest(prompt.messages, prompt.labels))
        return good - bad

    return ask(comparison.a) - ask(comparison.b)


def test_both_order_labels_equal_the_slow_reference() -> None:
    judge = Judge(ScriptedEngine(), Pairwise(LIBRARY, CONSTITUTION), CONSTITUTION, principles="all", seed=0)
    for judged in judge.judge(comparisons(200)):
        logits = [slow_pairwise(judged.comparison, principle) for principle in PRINCIPLES]
        assert [verdict.logit_a for verdict in judged.verdicts] == pytest.approx(
            [each for pair in logits for each in pair]
        )
        expected = sum(p.weight * (ab + ba) / 2 for p, (ab, ba) in zip(PRINCIPLES, logits, strict=True)) / 6.0
        assert judged.logit_a == pytest.approx(expected)


def test_pointwise_labels_equal_the_slow_reference() -> None:
    judge = Judge(ScriptedEngine(), Pointwise(LIBRARY), CONSTITUTION, principles="all", seed=0)
    for judged in judge.judge(comparisons(200)):
        logits = [slow_pointwise(judged.comparison, principle) for principle in PRINCIPLES]
        assert [verdict.logit_a for verdict in judged.verdicts] == pytest.approx(logits)
        assert {verdict.order for verdict in judged.verdicts} == {Order.ALONE}
        assert judged.logit_a == pytest.approx(
            sum(p.weight * logit for p, logit in zip(PRINCIPLES, logits, strict=True)) / 6.0
        )


@pytest.mark.parametrize("protocol", ["pairwise", "pointwise"])
def test_swapping_a_comparison_turns_its_label_round(protocol: str) -> None:
    asked = open_protocol(protocol, library=LIBRARY, constitution=CONSTITUTION)
    judge = Judge(ScriptedEngine(), asked, CONSTITUTION, principles="sample", seed=3)
    straight = list(judge.judge(comparisons(20)))
    swapped = list(judge.judge([comparison.swap() for comparison in comparisons(20)]))
    for one, other in zip(straight, swapped, strict=True):
        assert one.logit_a is not None
        assert other.logit_a is not None
        assert sigmoid(one.logit_a) + sigmoid(other.logit_a) == pytest.approx(1.0)


def test_an_invalid_reading_becomes_an_invalid_verdict_with_its_reason() -> None:
    def labels(request: LabelRequest) -> list[float]:
        return [math.nan, -1.0] if "way 1" in request.messages[1].content else pseudo_labels(request)

    judge = Judge(
        ScriptedEngine(labels=labels), Pairwise(LIBRARY, CONSTITUTION), CONSTITUTION, principles="all", seed=0
    )
    for judged in judge.judge(comparisons(3)):
        bad = [verdict for verdict in judged.verdicts if not verdict.valid]
        assert [(verdict.principle_id, verdict.reason) for verdict in bad] == [("p1", "not_finite")] * 2
        good = [verdict for verdict in judged.verdicts if verdict.valid]
        assert judged.logit_a == pytest.approx(combine(good, {"p0": 1.0, "p2": 3.0}) or math.nan)


def test_sampled_principles_follow_their_weights() -> None:
    drawn = Counter(draw_principle(PRINCIPLES, "key", number).id for number in range(6000))
    assert [drawn[f"p{index}"] / 6000 for index in range(3)] == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.02)


def test_adding_a_principle_changes_only_the_draws_it_wins() -> None:
    more = (*PRINCIPLES, Principle(id="new", comparison="?", weight=2.0))
    for number in range(500):
        after = draw_principle(more, "key", number)
        assert after.id in ("new", draw_principle(PRINCIPLES, "key", number).id)


def test_log_odds_need_two_finite_log_probabilities() -> None:
    engine = ScriptedEngine(labels=lambda request: [-1.0, -3.0])
    (reading,) = engine.label_logprobs([LabelRequest((Message("user", "?"),), ("A", "B"))])
    assert log_odds(reading[0]) == pytest.approx(2.0)
