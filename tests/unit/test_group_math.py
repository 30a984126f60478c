"""The formulas of GRPO against slow loops that follow the papers."""

from __future__ import annotations

import math
import statistics
from typing import get_args

import pytest
import torch
from torch import Tensor

from rlaif.errors import DataError
from rlaif.rl.math import (
    GROUP_EPS,
    GroupAdvantage,
    cancelling_groups,
    completion_weights,
    decoupled_advantages,
    equal_groups,
    group_advantages,
    masked_mean,
    policy_loss,
)

SCORES = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.5, 0.5], [-3.0, 0.0, 9.0]])


def slow(scores: list[float], kind: str) -> list[float]:
    """One group, from the definitions."""
    mean = sum(scores) / len(scores)
    found = []
    for place, score in enumerate(scores):
        others = [other for at, other in enumerate(scores) if at != place]
        match kind:
            case "grpo":
                found.append((score - mean) / (statistics.stdev(scores) + GROUP_EPS))
            case "dr_grpo":
                found.append(score - mean)
            case "rloo":
                found.append(score - sum(others) / len(others))
    return found


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_advantages_are_those_of_the_definitions(kind: str) -> None:
    found = group_advantages(SCORES, kind=kind)  # type: ignore[arg-type]
    expected = torch.tensor([slow(group, kind) for group in SCORES.tolist()])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.zeros(3), atol=1e-5, rtol=0)
    assert not found[1].any(), "a group of equals says nothing"
    moved = group_advantages(SCORES + torch.tensor([[5.0], [-1.0], [2.0]]), kind=kind)  # type: ignore[arg-type]
    torch.testing.assert_close(moved, found, atol=1e-5, rtol=1e-4)


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to be compared with"):
        group_advantages(torch.ones(3, 1))


def test_equal_groups_are_found() -> None:
    assert equal_groups(SCORES).tolist() == [False, True, False]


@pytest.mark.parametrize("score", [0.1, 97.3, 1012.7, -12345.678, 1e6])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_equals_are_worth_nothing_however_large_they_are(score: float, size: int) -> None:
    """Their mean is rounded, and so is not any of them."""
    scores = torch.full((1, size), score)
    for kind in get_args(GroupAdvantage):
        assert not group_advantages(scores, kind=kind).any()


def test_equals_are_worth_what_they_are_charged() -> None:
    """Divided by their own spread, charges would be the same for every β."""
    kl = torch.tensor([[0.1, 0.5, 0.9], [0.3, 0.2, 0.1]])
    scores = torch.tensor([[2.0, 2.0, 2.0], [1.0, 0.0, 1.0]])
    for beta in (0.04, 0.4):
        found = group_advantages(scores, charges=beta * kl)
        torch.testing.assert_close(found[0], beta * torch.tensor([0.4, 0.0, -0.4]))
        net = [r - beta * k for r, k in zip(scores[1].tolist(), kl[1].tolist(), strict=True)]
        torch.testing.assert_close(found[1], torch.tensor(slow(net, "grpo")))


@pytest.mark.parametrize("kind", ["dr_grpo", "rloo"])
def test_without_a_division_charges_are_part_of_the_scores(kind: GroupAdvantage) -> None:
    kl = torch.rand(3, 3)
    torch.testing.assert_close(
        group_advantages(SCORES, kind=kind, charges=kl), group_advantages(SCORES - kl, kind=kind)
    )


def test_groups_whose_scaled_parts_cancel_are_found() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [2.0, 0.0]])
    second = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    found = cancelling_groups(torch.stack([first, second]), torch.ones(2))
    assert found.tolist() == [True, False, True, True], "the last one differs in its sums"
    # 1 + 0.5 · 0 and 0 + 0.5 · 2 are the same, and yet one is better once each part is scaled.
    assert equal_groups(first[:1] + 0.5 * 2 * second[:1]).all()
    assert not cancelling_groups(torch.stack([first[:1], 2 * second[:1]]), torch.tensor([1.0, 0.5])).any()


def test_no_part_drowns_another() -> None:
    torch.manual_seed(0)
    small, large = torch.randn(4, 5), 1000 * torch.randn(4, 5)
    weights = torch.tensor([1.0, 0.5])
    found = decoupled_advantages(torch.stack([small, large]), weights)
    rows = []
    for g in range(4):
        one, two = slow(small[g].tolist(), "grpo"), slow(large[g].tolist(), "grpo")
        rows += [1.0 * a + 0.5 * b for a, b in zip(one, two, strict=True)]
    mean, std = sum(rows) / len(rows), statistics.stdev(rows)
    expected = torch.tensor([(row - mean) / (std + GROUP_EPS) for row in rows]).view(4, 5)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    scaled = decoupled_advantages(torch.stack([small, large / 1000]), weights)
    torch.testing.assert_close(found, scaled, atol=2e-3, rtol=2e-3)


def ragged(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)


def test_each_completion_or_each_token_counts_the_same() -> None:
    is_real = ragged(1, 4, 2)
    per_completion = completion_weights(is_real, per="completion", longest=8)
    torch.testing.assert_close(per_completion.sum(1), torch.full((3,), 1 / 3))
    assert per_completion[1, 0] == pytest.approx(1 / 12)
    per_token = completion_weights(is_real, per="token", longest=8)
    torch.testing.assert_close(per_token, is_real / 24)
    assert not per_completion[~is_real].any()


@pytest.mark.parametrize("clip_high", [None, 0.28])
def test_the_loss_is_that_of_a_loop_over_tokens(clip_high: float | None) -> None:
    torch.manual_seed(1)
    is_real = ragged(3, 5)
    new, old = torch.randn(2, 5), torch.randn(2, 5)
    advantages = torch.tensor([0.7, -1.3])
    weight = completion_weights(is_real, per="completion", longest=5)
    found = policy_loss(
        new,
        old,
        advantages.unsqueeze(1).expand(2, 5),
        is_real=is_real,
        clip=0.2,
        clip_high=clip_high,
        weight=weight,
    )
    total = 0.0
    for row, length in enumerate((3, 5)):
        for t in range(length):
            ratio = math.exp(float(new[row, t] - old[row, t]))
            clipped = min(max(ratio, 0.8), 1.2 if clip_high is None else 1.28)
            a = float(advantages[row])
            total -= min(ratio * a, clipped * a) / length / 2
    assert float(found.loss) == pytest.approx(total, rel=1e-5)
    assert float(found.kl_k1) == pytest.approx(float(masked_mean(old - new, is_real)), rel=1e-5)


def test_micro_batches_add_up_to_the_minibatch() -> None:
    torch.manual_seed(2)
    is_real = ragged(2, 6, 1, 4)
    new, old, advantages = torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 1).expand(4, 6)
    weight = completion_weights(is_real, per="completion", longest=6)

    def loss(rows: slice) -> Tensor:
        return policy_loss(
            new[rows], old[rows], advantages[rows], is_real=is_real[rows], weight=weight[rows]
        ).loss

    torch.testing.assert_close(loss(slice(0, 1)) + loss(slice(1, 4)), loss(slice(None)))
