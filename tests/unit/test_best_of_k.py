"""What best of K chooses, and how its reward grows with K: against slow references and by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from pydantic import ValidationError

from rlaif.config.finetune import BestOfKConfig, DpoConfig, SftConfig
from rlaif.results.best_of_k import Candidate, growth, mean_and_error, round_report, select, tied
from rlaif.rl.episodes import EpisodeRow
from rlaif.rl.kl import best_of_n_kl_bound
from rlaif.types import Completion, Message, Prompt

PROMPT = Prompt(id="p", messages=(Message("user", "hi"),))


def candidate(
    score: float, *, reward: float | None = None, index: int = 0, finish: Any = "stop", logprob: float = -20.0
) -> Candidate:
    completion = Completion(
        id=f"p/{index}", prompt_id="p", index=index, text="x", finish=finish, model="toy", tokens=2
    )
    row = EpisodeRow(prompt=PROMPT, prompt_ids=(1,), completion=completion)
    return Candidate(
        row=row, tokens=(2, 3), reward=score if reward is None else reward, score=score, logprob=logprob
    )


def config(**settings: Any) -> BestOfKConfig:
    return BestOfKConfig(**{"k": 4} | settings)


def scores_of(kept: Any) -> list[tuple[float, float]]:
    return [(choice.candidate.score, choice.weight) for choice in kept]


def test_growth_does_not_depend_on_the_order_of_tied_completions() -> None:
    """A penalty for being cut makes scores equal whose rewards are not."""
    group = [candidate(1.0, reward=reward, index=at) for at, reward in enumerate((4.0, 1.0, 3.0, 0.0))]
    assert [point.reward for point in growth([group])] == [2.0, 2.0, 2.0]
    assert growth([group]) == growth([group[::-1]])


def test_growth_has_the_powers_of_two_and_k_itself_and_never_falls() -> None:
    groups = [[candidate(math.sin(7 * at + row)) for at in range(12)] for row in range(5)]
    points = growth(groups)
    assert [point.k for point in points] == [1, 2, 4, 8, 12]
    assert all(later.reward > sooner.reward for sooner, later in itertools.pairwise(points))
    assert points[0].kl_bound == 0
    assert points[-1].kl_bound == best_of_n_kl_bound(12)
    assert points[-1].reward == pytest.approx(sum(max(c.reward for c in group) for group in groups) / 5)


def test_growth_reports_the_reward_of_what_the_penalised_score_chooses() -> None:
    group = [candidate(-1.0, reward=9.0), candidate(2.0), candidate(1.0), candidate(0.0)]
    assert growth([group])[-1].reward == 2.0


def test_the_best_is_the_first_drawn_among_equals() -> None:
    group = [
        candidate(1.0, index=0),
        candidate(2.0, index=1),
        candidate(2.0, index=2),
        candidate(0.0, index=3),
    ]
    (kept,) = select(group, config())
    assert (kept.candidate.row.completion.index, kept.weight) == (1, 1.0)


def test_the_top_m_weigh_the_same() -> None:
    group = [candidate(score) for score in (1.0, 3.0, 2.0, 0.0)]
    assert scores_of(select(group, config(keep=2))) == [(3.0, 0.5), (2.0, 0.5)]


def test_weights_are_a_softmax_of_the_scores() -> None:
    group = [candidate(score) for score in (0.0, 1.0, 0.5, -1.0)]
    kept = scores_of(select(group, config(keep="weighted", weight_temperature=0.5)))
    total = sum(math.exp(score / 0.5) for score in (0.0, 1.0, 0.5, -1.0))
    assert [score for score, _ in kept] == [1.0, 0.5, 0.0, -1.0]
    assert [weight for _, weight in kept] == pytest.approx(
        [math.exp(score / 0.5) / total for score, _ in kept]
    )


def test_completions_of_negligible_weight_are_left_out() -> None:
    group = [candidate(score) for score in (0.0, 10.0, 9.9, -400.0)]
    kept = scores_of(select(group, config(keep="weighted", weight_temperature=0.1)))
    assert [score for score, _ in kept] == [10.0, 9.9]
    assert sum(weight for _, weight in kept) == pytest.approx(1)


def test_a_round_is_counted() -> None:
    groups = [
        [candidate(1.0, finish="length"), candidate(3.0), candidate(0.0), candidate(0.0)],
        [candidate(0.5), candidate(0.5), candidate(0.5), candidate(0.5, finish="length")],
    ]
    kept = [choice for group in groups for choice in select(group, config(keep=2))]
    report = round_report(0, groups, kept, learned=4, overlong=0, loss_before=2.0, loss_after=1.0)
    assert (report.prompts, report.completions, report.tokens, report.cut, report.tied) == (2, 8, 16, 2, 1)
    assert report.kept_reward == pytest.approx((3 + 1 + 0.5 + 0.5) / 4)
    assert 0 < report.kl_estimate <= best_of_n_kl_bound(4)
    assert tied(groups[1])
    assert not tied(groups[0])


def test_where_one_completion_is_nearly_sure_the_estimate_is_far_below_the_bound() -> None:
    groups = [[candidate(float(at), logprob=-0.01) for at in range(4)]]
    report = round_report(
        0, groups, select(groups[0], config()), learned=1, overlong=0, loss_before=1.0, loss_after=1.0
    )
    assert report.kl_estimate < 0.1 * best_of_n_kl_bound(4)


def test_mean_and_standard_error() -> None:
    assert mean_and_error([1.0, 3.0]) == pytest.approx((2.0, 1.0))
    assert math.isnan(mean_and_error([1.0])[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 1}, "greater than or equal to 2"),
        ({"k": 4, "keep": 4}, "leaves out none"),
        ({"keep": 0}, "greater than or equal to 1"),
        ({"temperature": 0}, "greater than 0"),
        ({"batch_size": 12, "micro_batch": 8}, "cannot be cut into micro-batches of 8"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BestOfKConfig(**settings)


@pytest.mark.parametrize("kind", [BestOfKConfig, DpoConfig, SftConfig])
def test_every_field_has_a_line_of_documentation_and_a_default(kind: Any) -> None:
    assert kind()
    undocumented = [
        name for name, field in kind.model_fields.items() if name != "stage" and not field.description
    ]
    assert undocumented == []
    assert kind.model_validate_json(kind().model_dump_json()) == kind()


def test_stages_are_named_after_their_kind() -> None:
    assert [kind().name for kind in (BestOfKConfig, DpoConfig, SftConfig)] == ["best-of-k", "dpo", "sft"]
