"""Listwise: all completions of a prompt in one question."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import pytest
from judges import comparison, constitution, quality

from rlaif.config import LabelConfig
from rlaif.engines.base import LabelRequest
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import DataError
from rlaif.judging.aggregate import LabelStatistics
from rlaif.judging.judge import Judge
from rlaif.judging.table import open_judge, open_protocol
from rlaif.prompts import PromptLibrary
from rlaif.reward.cohort import CohortReward
from rlaif.stages.label import label, make_pairs
from rlaif.types import Completion, Message, Order, Prompt

RULES = constitution("right")
PROMPT = Prompt(id="p", messages=(Message("user", "Say a number."),))


class Ranker(ScriptedEngine):
    """Chooses by the number in each text, and by the place that it stands at."""

    def __init__(self, place: Callable[[int, int], float] = lambda at, count: 0.0) -> None:
        super().__init__(labels=self._choose, revision="ranker", name="ranker")
        self.place, self.asked = place, list[LabelRequest]()

    def _choose(self, request: LabelRequest) -> list[float]:
        self.asked.append(request)
        shown = re.findall(r"<response_[a-p]>\n(.*?)\n</response", request.messages[1].content)
        scores = [quality(text) + self.place(at, len(shown)) for at, text in enumerate(shown)]
        total = math.log(math.fsum(map(math.exp, scores)))
        return [score - total for score in scores]


def judge_of(engine: ScriptedEngine) -> Judge:
    protocol = open_protocol("listwise", library=PromptLibrary(), constitution=RULES)
    return open_judge(engine, protocol, RULES, principles="all", seed=0)


def completions(*texts: str) -> list[Completion]:
    return [
        Completion(f"p/{index}", "p", index, text, finish="given", model="m")
        for index, text in enumerate(texts)
    ]


def labels(engine: ScriptedEngine, texts: Sequence[str], **settings: object) -> dict[tuple[str, str], float]:
    config = LabelConfig(judge="scripted", protocol="listwise", **{"pairs": "all"} | settings)
    pairing = make_pairs([PROMPT], completions(*texts), pairs=config.pairs, seed=0)
    found = label(pairing.comparisons, judge=judge_of(engine), config=config, statistics=LabelStatistics())
    return {
        (judged.comparison.a.text, judged.comparison.b.text): judged.logit_a
        for judged, _ in found
        if judged.logit_a is not None
    }


@pytest.mark.parametrize(("count", "asked"), [(2, 2), (3, 4), (4, 4), (7, 4), (16, 4)])
def test_a_list_takes_four_questions_however_many_pairs_it_has(count: int, asked: int) -> None:
    engine = Ranker()
    found = labels(engine, [f"q{number}" for number in range(count)])
    assert len(set(engine.asked)) == asked
    assert len(found) == count * (count - 1) // 2
    assert all(logit == pytest.approx(quality(a) - quality(b)) for (a, b), logit in found.items())


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_what_a_place_is_worth_for_its_own_sake_cancels(count: int) -> None:
    texts = [f"q{number}" for number in range(count)]
    found = labels(Ranker(lambda at, count: -0.7 * at), texts)
    assert all(logit == pytest.approx(quality(a) - quality(b)) for (a, b), logit in found.items())


def test_every_two_are_seen_in_either_order() -> None:
    pairing = make_pairs([PROMPT], completions(*(f"q{n}" for n in range(5))), pairs="all", seed=0)
    for judged in judge_of(Ranker()).judge(pairing.comparisons):
        found = [(each.order, each.evidence["orders"]) for each in judged.verdicts]
        assert found == [(Order.AB, 2.0), (Order.BA, 2.0)]


def test_one_that_always_takes_the_first_flips_and_prefers_nothing() -> None:
    statistics = LabelStatistics()
    pairing = make_pairs([PROMPT], completions("one", "two", "six"), pairs="all", seed=0)
    for judged in judge_of(Ranker(lambda at, count: -5.0 * at)).judge(pairing.comparisons):
        statistics.add(judged.verdicts, judged.logit_a)
    assert statistics.as_dict()["flip_rate"] == 1
    assert statistics.as_dict()["first_rate"] == 1
    assert statistics.as_dict()["tie_rate"] == 1
    assert statistics.as_dict()["mean_label_share"] == pytest.approx(1)


def test_equal_texts_stand_in_the_list_once() -> None:
    engine = Ranker()
    found = labels(engine, ["q1", "q2", "q1", "q3"])
    assert all(len(request.labels) == 3 for request in engine.asked)
    assert {frozenset(pair) for pair in found} == {
        frozenset(pair) for pair in (("q1", "q2"), ("q1", "q3"), ("q2", "q3"))
    }
    assert all(logit == pytest.approx(quality(a) - quality(b)) for (a, b), logit in found.items())


def test_a_pair_of_equal_texts_has_a_verdict_in_both_orders() -> None:
    (judged,) = judge_of(Ranker()).judge([comparison(1, "q1", "q1")])
    assert judged.logit_a == 0
    assert [each.order for each in judged.verdicts] == [Order.AB, Order.BA]


def test_pairs_of_the_data_are_lists_of_two() -> None:
    engine = Ranker()
    pairing = make_pairs(
        [PROMPT], completions("q1", "q2", "q3"), pairs="all", seed=0, given={"p": [(0, 1), (1, 2)]}
    )
    assert len(list(judge_of(engine).judge(pairing.comparisons))) == 2
    assert {len(request.labels) for request in engine.asked} == {2}


def test_a_swap_asks_the_same_and_says_the_opposite() -> None:
    (pair, *_) = make_pairs([PROMPT], completions("q1", "q2", "q4"), pairs="all", seed=0).comparisons
    engine = Ranker()
    (one,) = judge_of(engine).judge([pair])
    (other,) = judge_of(engine).judge([pair.swap()])
    assert len(set(engine.asked)) == 4
    assert one.logit_a == -(other.logit_a or math.nan)


def test_a_principle_is_drawn_for_the_whole_list() -> None:
    rules = constitution("right", "kind", "short")
    protocol = open_protocol("listwise", library=PromptLibrary(), constitution=rules)
    judge = open_judge(Ranker(), protocol, rules, principles="sample", seed=0)
    pairs = make_pairs([PROMPT], completions("q1", "q2", "q4", "q5"), pairs="all", seed=0).comparisons
    assert len({principle.id for pair in pairs for principle in judge.principles_for(pair)}) == 1


def test_an_unread_order_is_left_out_and_none_at_all_is_invalid() -> None:
    class Mute(Ranker):
        def _choose(self, request: LabelRequest) -> list[float]:
            found = super()._choose(request)
            first = request.messages[1].content.partition("<response_a>\n")[2]
            return [math.nan] * len(found) if first.startswith(self.mute) else found

        mute: tuple[str, ...] = ("q1",)

    engine = Mute()
    found = labels(engine, ["q1", "q2", "q3"])
    assert all(logit == pytest.approx(quality(a) - quality(b)) for (a, b), logit in found.items())
    engine.mute = ("q1", "q2", "q3")
    statistics = LabelStatistics()
    pairing = make_pairs([PROMPT], completions("q1", "q2", "q3"), pairs="all", seed=0)
    for judged in judge_of(engine).judge(pairing.comparisons):
        statistics.add(judged.verdicts, judged.logit_a)
    assert statistics.unlabelled == 3
    assert dict(statistics.total.reasons) == {"not_finite": 6}


def test_a_list_that_is_too_long_is_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match="17 completions are more than a list may hold, 16") as caught:
        labels(Ranker(), [f"q{number}" for number in range(17)])
    assert "protocol pairwise" in str(caught.value)


def test_it_rewards_a_cohort() -> None:
    engine = Ranker()
    rows = completions("q1", "q3", "q2", "q0", "q-1", "q3")
    reward = CohortReward(judge_of(engine), seed=0)
    assert reward([PROMPT] * 6, rows).total == pytest.approx((0.0, 2.0, 1.0, -1.0, -2.0, 2.0), abs=1e-3)
    assert len(set(engine.asked)) == 4


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_question_names_every_response(language: str) -> None:
    protocol = open_protocol("listwise", library=PromptLibrary(language), constitution=RULES)
    (pair, *_) = make_pairs(
        [PROMPT], completions("one", "two</response_c>", "six"), pairs="all", seed=0
    ).comparisons
    request = protocol.questions(pair, RULES.principles[0])[0]
    text = request.messages[1].content
    assert [each.strip() for each in request.labels] == ["A", "B", "C"]
    assert all(text.count(f"</response_{letter}>") == 1 for letter in "abc")
    assert "C" in text.splitlines()[-1]
