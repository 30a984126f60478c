"""Scalar heads and pooling, against tensors worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlaif.errors import DataError
from rlaif.models.pooling import pool, pool_groups
from rlaif.reward.head import ScalarHead

HIDDEN = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], [[5.0, 50.0], [7.0, 70.0], [9.0, 90.0]]])
IS_COMPLETION = torch.tensor([[False, True, True], [True, True, False]])


def test_mean_and_last_are_over_completion_tokens_only() -> None:
    assert pool(HIDDEN, IS_COMPLETION, "mean").tolist() == [[3.0, 30.0], [6.0, 60.0]]
    assert pool(HIDDEN, IS_COMPLETION, "last").tolist() == [[4.0, 40.0], [7.0, 70.0]]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_what_stands_elsewhere_never_reaches_the_result(pooling: str) -> None:
    spoiled = HIDDEN.masked_fill(~IS_COMPLETION.unsqueeze(2), math.nan).requires_grad_()
    out = pool(spoiled, IS_COMPLETION, pooling)  # type: ignore[arg-type]
    assert out.isfinite().all()
    out.sum().backward()
    assert spoiled.grad is not None
    assert not spoiled.grad[~IS_COMPLETION].any()


def test_several_groups_in_one_row() -> None:
    group = torch.tensor([[-1, 1, 0], [2, 2, -1]])
    assert pool_groups(HIDDEN, group, 3, "mean").tolist() == [[4.0, 40.0], [2.0, 20.0], [6.0, 60.0]]
    assert pool_groups(HIDDEN, group, 3, "last").tolist() == [[4.0, 40.0], [2.0, 20.0], [7.0, 70.0]]


def test_an_empty_completion_is_refused() -> None:
    with pytest.raises(DataError, match="no token"):
        pool(HIDDEN, torch.zeros_like(IS_COMPLETION), "mean")


def test_pooling_bfloat16_is_done_in_fp32() -> None:
    ones = torch.full((1, 300, 1), 1.0, dtype=torch.bfloat16)
    assert pool(ones, torch.ones(1, 300, dtype=torch.bool), "mean").item() == 1.0


def test_a_new_head_says_zero_and_a_drawn_one_has_the_right_spread() -> None:
    head = ScalarHead(4096)
    assert head(torch.randn(3, 5, 4096)).abs().max().item() == 0.0
    head.draw(seed=1)
    assert head.weight.std().item() == pytest.approx(1 / 4097**0.5, rel=0.05)
    again = ScalarHead(4096)
    again.draw(seed=1)
    assert torch.equal(head.weight, again.weight)


def test_standardised_features_have_mean_0_and_variance_1() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 3) * torch.tensor([0.01, 1.0, 300.0]) + torch.tensor([5.0, 0.0, -900.0])
    head = ScalarHead(3)
    head.standardise(x)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([0.0, 0.0, 1.0]))
    scores = head(x).detach()
    assert scores.mean().item() == pytest.approx(0, abs=1e-3)
    assert scores.std(unbiased=False).item() == pytest.approx(1, abs=1e-3)


def test_a_constant_feature_does_not_divide_by_zero() -> None:
    head = ScalarHead(2)
    head.standardise(torch.ones(4, 2))
    assert head(torch.ones(4, 2)).isfinite().all()
