"""Which completions of a cohort meet, and the strengths that fit their labels."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judges import constitution, half_blind, reader
from pydantic import ValidationError

from rlaif.config import LabelConfig
from rlaif.config.finetune import BestOfKConfig
from rlaif.config.grpo import GrpoConfig
from rlaif.config.ppo import PpoConfig
from rlaif.config.rewards import JudgePart
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import DataError
from rlaif.judging.aggregate import LabelStatistics
from rlaif.judging.cohort import Meeting, bradley_terry, connected, meetings
from rlaif.judging.judge import Judge, Judged
from rlaif.judging.protocols import Pairwise
from rlaif.prompts import PromptLibrary
from rlaif.reward.cohort import CohortReward
from rlaif.stages.label import label, make_pairs
from rlaif.types import Completion, Message, Prompt

strengths = st.lists(st.floats(-4, 4), min_size=2, max_size=20)


@pytest.mark.parametrize(
    ("count", "met"), [(1, 0), (2, 1), (3, 3), (4, 6), (5, 10), (8, 16), (16, 32), (64, 192)]
)
def test_a_cohort_needs_so_many_comparisons(count: int, met: int) -> None:
    assert len(meetings(count, "k")) == met


@given(st.integers(2, 80))
def test_all_of_a_cohort_are_connected_and_meet_nobody_twice(count: int) -> None:
    pairs = meetings(count, "key")
    assert len(set(pairs)) == len(pairs)
    assert all(0 <= i < j < count for i, j in pairs)
    assert len(connected([Meeting(i, j, 0.0) for i, j in pairs], count)) == 1
    assert pairs == meetings(count, "key")


@given(strengths)
def test_labels_of_exact_strengths_give_them_back(true: list[float]) -> None:
    mean = math.fsum(true) / len(true)
    met = [Meeting(i, j, true[i] - true[j]) for i, j in meetings(len(true), 0)]
    assert bradley_terry(met, len(true)) == pytest.approx([x - mean for x in true], abs=1e-2)


def test_the_fit_does_not_depend_on_order_or_sides() -> None:
    rng = random.Random(0)
    met = [Meeting(i, j, rng.gauss(0, 2)) for i, j in itertools.combinations(range(6), 2)]
    turned = [Meeting(b, a, -logit) for a, b, logit in reversed(met)]
    assert bradley_terry(turned, 6) == pytest.approx(bradley_terry(met, 6), abs=1e-6)


def test_the_fit_has_the_largest_likelihood() -> None:
    rng = random.Random(1)
    met = [Meeting(i, j, rng.gauss(0, 3)) for i, j in itertools.combinations(range(4), 2)]

    def likelihood(s: list[float]) -> float:
        total = 0.0
        for a, b, logit in met:
            p, q = 1 / (1 + math.exp(-logit)), 1 / (1 + math.exp(-(s[a] - s[b])))
            total += p * math.log(q) + (1 - p) * math.log(1 - q)
        return total

    best = bradley_terry(met, 4)
    for i in range(4):
        for delta in (-0.05, 0.05):
            assert likelihood(best) > likelihood([x + delta * (i == j) for j, x in enumerate(best)])


def test_sides_that_won_everything_have_finite_strengths() -> None:
    found = bradley_terry([Meeting(0, 1, math.inf), Meeting(1, 2, 1e9), Meeting(0, 2, 40.0)], 3)
    assert all(map(math.isfinite, found))
    assert found[0] > found[1] > found[2]


def test_those_that_never_met_are_each_centred() -> None:
    found = bradley_terry([Meeting(0, 1, 2.0), Meeting(2, 3, 4.0)], 5)
    assert found == pytest.approx([1, -1, 2, -2, 0], abs=1e-3)


# Labels -----------------------------------------------------------------------------------------------------

RULES = constitution("kind")


def judge(engine: ScriptedEngine) -> Judge:
    return Judge(engine, Pairwise(PromptLibrary(), RULES), RULES, principles="all", seed=0)


def answers(number: int, *texts: str) -> tuple[Prompt, list[Completion]]:
    prompt = Prompt(id=f"q{number}", messages=(Message("user", f"Question {number}?"),))
    return prompt, [
        Completion(id=f"q{number}/{at}", prompt_id=prompt.id, index=at, text=text, finish="stop", model="m")
        for at, text in enumerate(texts)
    ]


def labelled(engine: ScriptedEngine, *texts: str) -> tuple[list[Judged], LabelStatistics]:
    prompt, completions = answers(0, *texts)
    pairing = make_pairs([prompt], completions, pairs="cohort", seed=0)
    statistics = LabelStatistics()
    config = LabelConfig(pairs="cohort", principles="all")
    found = label(pairing.comparisons, judge=judge(engine), config=config, statistics=statistics)
    return [judged for judged, _ in found], statistics


def test_a_cohort_of_eight_is_judged_by_sixteen_pairs_whose_labels_fit_together() -> None:
    found, statistics = labelled(reader(strength=0.5), *(f"q{n}" for n in range(8)))
    assert len(found) == statistics.labelled == 16
    for each in found:
        expected = 0.5 * (each.comparison.a.index - each.comparison.b.index)
        assert each.logit_a == pytest.approx(expected, abs=1e-2)


def test_labels_that_contradict_each_other_are_reconciled() -> None:
    """A judge in whose eyes a beats b, b beats c and c beats a has no favourite."""
    beats = {("q1", "q2"), ("q2", "q3"), ("q3", "q1")}

    def around(request: object) -> list[float]:
        text = request.messages[-2].content  # type: ignore[attr-defined]
        shown = sorted((text.find(f"q{n}"), f"q{n}") for n in (1, 2, 3) if f"q{n}" in text)
        first, second = (name for _, name in shown)
        return [-0.1, -2.4] if (first, second) in beats else [-2.4, -0.1]

    found, statistics = labelled(ScriptedEngine(labels=around, revision="around"), "q1", "q2", "q3")
    assert [each.logit_a for each in found] == pytest.approx([0, 0, 0], abs=1e-6)
    assert statistics.ties == 3


def test_a_pair_without_a_label_stays_without() -> None:
    found, statistics = labelled(half_blind(), "q0", "q1", "q2", "q3")
    assert statistics.unlabelled == 3
    assert sum(each.logit_a is None for each in found) == 3


# Rewards ----------------------------------------------------------------------------------------------------


def strengths_of(engine: ScriptedEngine, *groups: Sequence[str]) -> list[float]:
    prompts, completions = [], []
    for number, texts in enumerate(groups):
        prompt, own = answers(number, *texts)
        prompts += [prompt] * len(own)
        completions += own
    return list(CohortReward(judge(engine), seed=0)(prompts, completions).total)


def test_a_completion_is_scored_among_those_of_its_prompt() -> None:
    found = strengths_of(reader(strength=0.5), ["q1", "q3"], ["q5", "q1", "q3"])
    assert found == pytest.approx([-0.5, 0.5, 1, -1, 0], abs=1e-3)


def test_equal_texts_share_a_strength_and_a_single_text_has_none() -> None:
    found = strengths_of(reader(strength=0.5), ["q1", "q3", "q1"], ["q7", "q7"])
    assert found == pytest.approx([-0.5, 0.5, -0.5, 0, 0], abs=1e-3)


def test_a_completion_that_cannot_be_ranked_is_an_error() -> None:
    with pytest.raises(DataError, match=r"do not connect all completions \(not_finite\)"):
        strengths_of(half_blind(), ["q0", "q1", "q2"])


def test_a_cohort_needs_company() -> None:
    part = {"judge": JudgePart(mode="cohort")}
    with pytest.raises(ValidationError, match="a rollout has one of each"):
        PpoConfig(reward=part)
    assert PpoConfig(reward=part, samples_per_prompt=4, episodes=8).samples_per_prompt == 4
    assert GrpoConfig(reward=part).reward == part
    with pytest.raises(ValidationError, match="use mode: alone"):
        BestOfKConfig(reward=part)
    with pytest.raises(ValidationError, match="scale acts with"):
        JudgePart(mode="cohort", scale="log-odds")
    with pytest.raises(ValidationError, match="protocol acts with"):
        JudgePart(protocol="pairwise")
