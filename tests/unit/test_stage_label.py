"""Label: which pairs are compared, which is best and which is worst, and what happens to verdicts that are no
good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest

from rlaif.config import LabelConfig
from rlaif.engines.base import LabelRequest
from rlaif.engines.scripted import ScriptedEngine, pseudo_labels
from rlaif.errors import JudgingError
from rlaif.judging.aggregate import LabelStatistics
from rlaif.judging.judge import Judge, Judged
from rlaif.judging.protocols import Pairwise
from rlaif.prompts import PromptLibrary
from rlaif.stages.label import best_worst, check_invalid_rate, label, make_pairs
from rlaif.types import (
    Comparison,
    Completion,
    Constitution,
    Message,
    Order,
    Preference,
    Principle,
    Prompt,
    Verdict,
)

RULES = Constitution(name="c", principles=(Principle(id="p", comparison="Which is better?"),))


def asked(number: int) -> Prompt:
    return Prompt(id=f"q{number}", messages=(Message("user", f"Question {number}?"),))


def answers(number: int, *texts: str) -> list[Completion]:
    id = asked(number).id
    return [
        Completion(id=f"{id}/{at}", prompt_id=id, index=at, text=text, finish="stop", model="m")
        for at, text in enumerate(texts)
    ]


def sides(comparison: Comparison) -> frozenset[int]:
    return frozenset((comparison.a.index, comparison.b.index))


# Pairs ------------------------------------------------------------------------------------------------------


def test_all_pairs_in_the_order_of_the_prompts() -> None:
    prompts = [asked(1), asked(0)]
    found = make_pairs(prompts, [*answers(0, "a", "b"), *answers(1, "a", "b", "c")], pairs="all", seed=0)
    assert [(each.prompt.id, sides(each)) for each in found.comparisons] == [
        ("q1", {0, 1}),
        ("q1", {0, 2}),
        ("q1", {1, 2}),
        ("q0", {0, 1}),
    ]
    assert (found.identical, found.repeated, found.not_drawn, found.lone) == (0, 0, 0, 0)


def test_what_is_left_out_is_counted() -> None:
    completions = [*answers(0, "same", " same\n", "other"), *answers(1, "alone")]
    found = make_pairs([asked(0), asked(1), asked(2)], completions, pairs=1, seed=0)
    assert len(found.comparisons) == 1
    assert (found.identical, found.not_drawn, found.lone) == (1, 1, 1)


def test_sides_are_drawn_evenly_and_by_content() -> None:
    prompts = [asked(number) for number in range(400)]
    completions = [each for number in range(400) for each in answers(number, "a", "b")]
    found = make_pairs(prompts, completions, pairs="all", seed=0).comparisons
    first = [each.a.index == 0 for each in found]
    assert 0.42 < sum(first) / 400 < 0.58
    assert make_pairs(prompts[200:], completions[400:], pairs="all", seed=0).comparisons == found[200:]
    assert make_pairs(prompts, completions, pairs="all", seed=1).comparisons != found


def test_a_larger_number_of_pairs_adds_to_a_smaller() -> None:
    completions = answers(0, *"abcdef")
    drawn = [
        {sides(each) for each in make_pairs([asked(0)], completions, pairs=count, seed=3).comparisons}
        for count in (1, 4, 9, 15, 99)
    ]
    assert [len(each) for each in drawn] == [1, 4, 9, 15, 15]
    assert all(small < large for small, large in pairwise(drawn[:4]))


def test_given_pairs_are_the_only_ones_and_each_is_judged_once() -> None:
    given = {"q0": [(0, 1), (2, 1), (1, 0), (1, 2), (0, 1)]}
    found = make_pairs(
        [asked(0), asked(1)],
        [*answers(0, "a", "b", "c"), *answers(1, "a", "b")],
        pairs="all",
        seed=0,
        given=given,
    )
    assert [sides(each) for each in found.comparisons] == [{0, 1}, {1, 2}, {0, 1}]
    assert len({each.id for each in found.comparisons}) == 3
    assert found.repeated == 3


# Best against worst -----------------------------------------------------------------------------------------


def judged(scores: Sequence[float | None]) -> list[Judged]:
    """All pairs of completions, each judged by the difference of two scores; pairs with a `None` have no
    label."""
    completions, found = answers(0, *(f"text {at}" for at in range(len(scores)))), []
    for comparison in make_pairs([asked(0)], completions, pairs="all", seed=0).comparisons:
        a, b = scores[comparison.a.index], scores[comparison.b.index]
        found.append(Judged(comparison, (), None if a is None or b is None else a - b))
    return found


def test_the_best_meets_the_worst() -> None:
    chosen = best_worst(judged([0.5, -2.0, 1.5, 0.0]))
    assert chosen is not None
    assert sides(chosen.comparison) == {1, 2}


def test_without_labels_there_is_no_best() -> None:
    assert best_worst(judged([None, None, None])) is None
    assert best_worst([]) is None


def test_completions_without_a_label_are_neither_best_nor_worst() -> None:
    chosen = best_worst(judged([None, 1.0, 3.0, 2.0]))
    assert chosen is not None
    assert sides(chosen.comparison) == {1, 2}


def test_ties_are_settled_the_same_way_each_time() -> None:
    chosen = best_worst(judged([0.0, 0.0, 0.0]))
    assert chosen is not None
    assert chosen == best_worst(list(reversed(judged([0.0, 0.0, 0.0]))))


# Judging ----------------------------------------------------------------------------------------------------


def length(request: LabelRequest) -> list[float]:
    """A judge that likes the longer response."""
    a, b = (
        request.messages[1].content.split(f"<response_{name}>\n")[1].split("\n</response")[0] for name in "ab"
    )
    return [float(len(a)), float(len(b))]


def labelled(
    engine: ScriptedEngine, *, pairs: str, statistics: LabelStatistics
) -> list[tuple[Judged, Preference | None]]:
    completions = [each for number in range(3) for each in answers(number, "x", "xxx", "xxxxxx", "xx")]
    comparisons = make_pairs(
        [asked(number) for number in range(3)], completions, pairs="all", seed=0
    ).comparisons
    judge = Judge(engine, Pairwise(PromptLibrary(), RULES), RULES, principles="all", seed=0)
    config = LabelConfig.model_validate({"responses": "x", "pairs": pairs})
    return list(label(comparisons, judge=judge, config=config, statistics=statistics))


def test_labels_say_what_the_judge_says() -> None:
    statistics = LabelStatistics()
    for each, preference in labelled(ScriptedEngine(labels=length), pairs="all", statistics=statistics):
        assert preference is not None
        expected = len(each.comparison.a.text) - len(each.comparison.b.text)
        assert preference.logit_a == pytest.approx(expected)
        assert [verdict.order for verdict in preference.verdicts] == [Order.AB, Order.BA]
    assert (
        statistics.comparisons,
        statistics.labelled,
        statistics.total.verdicts,
        statistics.total.flips,
    ) == (18, 18, 36, 0)


def test_best_worst_counts_all_and_keeps_one_a_prompt() -> None:
    statistics = LabelStatistics()
    found = labelled(ScriptedEngine(labels=length), pairs="best-worst", statistics=statistics)
    kept = [preference for _, preference in found if preference is not None]
    assert [(each.comparison.prompt.id, sides(each.comparison)) for each in kept] == [
        (f"q{number}", {0, 2}) for number in range(3)
    ]
    assert (len(found), statistics.comparisons, statistics.labelled) == (18, 18, 18)


def test_no_label_without_a_valid_verdict() -> None:
    statistics = LabelStatistics()

    def labels(request: LabelRequest) -> list[float]:
        return [math.nan, 0.0] if "Question 1?" in request.messages[1].content else pseudo_labels(request)

    found = labelled(ScriptedEngine(labels=labels), pairs="all", statistics=statistics)
    assert [preference is None for _, preference in found] == [False] * 6 + [True] * 6 + [False] * 6
    assert (statistics.unlabelled, statistics.total.invalid, dict(statistics.total.reasons)) == (
        6,
        12,
        {"not_finite": 12},
    )


def test_too_many_invalid_verdicts_are_refused_with_their_reasons() -> None:
    statistics = LabelStatistics()
    for number in range(10):
        reason = ("labels_alike", "not_finite")[number % 2] if number < 3 else ""
        verdict = Verdict("c", "p", Order.ALONE, None if reason else 1.0, reason=reason)
        statistics.add([verdict], verdict.logit_a)
    check_invalid_rate(statistics, 0.3)
    with pytest.raises(
        JudgingError, match=r"3 of 10 verdicts are invalid \(30%, limit 29%\): labels_alike 2, not_finite 1"
    ):
        check_invalid_rate(statistics, 0.29)
    check_invalid_rate(LabelStatistics(), 0.0)
