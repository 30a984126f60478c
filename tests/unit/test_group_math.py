"""The formulas of GRPO against slow loops that follow the papers."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from rlaif.errors import DataError
from rlaif.rl.math import (
    GROUP_EPS,
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
