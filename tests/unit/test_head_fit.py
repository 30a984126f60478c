"""The closed-form head: it is the ridge solution, finds what there is to find, and says when there is
nothing."""

from __future__ import annotations

import math

import pytest
import torch

from rlaif.errors import DataError
from rlaif.reward.fit import _ridge, fit_head, fit_scale
from rlaif.reward.loss import bradley_terry_loss, label_log_odds


def pairs(n: int, h: int, *, signal: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, h, generator=generator)
    direction = torch.randn(h, generator=generator) / h**0.5
    return x, torch.sigmoid(signal * x @ direction), [f"p{i // 3}" for i in range(n)]


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_both_gram_matrices_give_the_ridge_solution(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, t, w = (
        torch.randn(*shape).double(),
        torch.randn(shape[0]).double(),
        torch.rand(shape[0]).double() + 0.1,
    )
    for penalty, got in zip((1.0, 50.0), _ridge(x, t, w, (1.0, 50.0)), strict=True):
        normal = x.t() @ (w.unsqueeze(1) * x) + penalty * torch.eye(shape[1]).double()
        torch.testing.assert_close(got, torch.linalg.solve(normal, x.t() @ (w * t)))


def test_a_direction_is_found_and_its_size_too() -> None:
    x, p, prompts = pairs(300, 20, signal=2.0)
    fit = fit_head(x, torch.logit(p.double()), weight=torch.ones(300), prompts=prompts, seed=0)
    fresh, truth, _ = pairs(300, 20, signal=2.0)
    prediction = fresh @ fit.weight
    assert torch.corrcoef(torch.stack([prediction, torch.logit(truth)]))[0, 1] > 0.98
    floor = bradley_terry_loss(torch.logit(truth), torch.zeros(300), truth)
    assert fit.loss < floor + 0.01


def test_pure_noise_is_not_taken_for_signal() -> None:
    torch.manual_seed(3)
    x, p, prompts = torch.randn(200, 300), torch.rand(200), [str(i) for i in range(200)]
    fit = fit_head(x, torch.logit(p.double()), weight=torch.ones(200), prompts=prompts, seed=0)
    assert fit.loss == pytest.approx(math.log(2), abs=0.03)
    assert (x @ fit.weight).std() < 0.5


def test_hard_labels_give_a_finite_head() -> None:
    x, p, prompts = pairs(200, 10, signal=3.0)
    hard = (p > 0.5).float()
    fit = fit_head(
        x, label_log_odds((p - 0.5).tolist(), hard=True), weight=torch.ones(200), prompts=prompts, seed=0
    )
    assert fit.weight.isfinite().all()
    assert ((x @ fit.weight > 0) == (hard > 0.5)).float().mean() > 0.95


def test_telling_a_pair_from_the_other_side_changes_nothing() -> None:
    x, p, prompts = pairs(60, 8, signal=1.0)
    flip = torch.arange(60) % 2 == 0
    even = torch.ones(60)
    turned = fit_head(
        torch.where(flip.unsqueeze(1), -x, x),
        torch.logit(torch.where(flip, 1 - p, p).double()),
        weight=even,
        prompts=prompts,
        seed=0,
    )
    straight = fit_head(x, torch.logit(p.double()), weight=even, prompts=prompts, seed=0)
    torch.testing.assert_close(turned.weight, straight.weight, rtol=1e-4, atol=1e-5)


def test_weight_0_leaves_a_pair_out() -> None:
    x, p, prompts = pairs(90, 6, signal=2.0)
    wrong = torch.cat([p[:60], 1 - p[60:]])
    weight = torch.cat([torch.ones(60), torch.zeros(30)])
    fit = fit_head(x, torch.logit(wrong.double()), weight=weight, prompts=prompts, seed=0)
    assert torch.corrcoef(torch.stack([x @ fit.weight, torch.logit(p)]))[0, 1] > 0.95


def test_the_best_scale_has_no_slope_and_is_never_negative() -> None:
    x, p, _ = pairs(100, 1, signal=2.0)
    prediction, weight = (
        x[:, 0].double() * torch.sign((torch.logit(p) / x[:, 0])[0]),
        torch.ones(100).double(),
    )
    loss, scale = fit_scale(prediction, p.double(), weight)
    for near in (scale * 0.9, scale * 1.1):
        assert bradley_terry_loss(near * prediction, torch.zeros(100).double(), p.double()) > loss
    assert fit_scale(-prediction, p.double(), weight) == (pytest.approx(math.log(2)), 0.0)


def test_one_prompt_cannot_be_cross_validated() -> None:
    x, p, _ = pairs(10, 3, signal=1.0)
    with pytest.raises(DataError, match="cross-validated"):
        fit_head(x, torch.logit(p.double()), weight=torch.ones(10), prompts=["a"] * 10, seed=0)


def test_a_fit_with_a_centre_is_drawn_towards_it() -> None:
    generator = torch.Generator().manual_seed(3)
    known = torch.randn(8, generator=generator)
    x = torch.randn(60, 8, generator=generator)
    prompts = [str(n // 2) for n in range(60)]
    even, told = torch.ones(60), (x @ known).double()
    fit = fit_head(x, told, weight=even, prompts=prompts, seed=0, centre=known)
    torch.testing.assert_close(fit.weight, known, rtol=0.1, atol=0.02)  # all that is to learn is known
    few = fit_head(x[:6], told[:6], weight=even[:6], prompts=prompts[:6], seed=0, centre=known)
    alone = fit_head(x[:6], told[:6], weight=even[:6], prompts=prompts[:6], seed=0)
    unseen = x[6:]
    assert (unseen @ few.weight - unseen @ known).abs().mean() < 0.5 * (
        unseen @ alone.weight - unseen @ known
    ).abs().mean()


def test_the_fit_with_a_centre_solves_its_normal_equations() -> None:
    generator = torch.Generator().manual_seed(4)
    x, centre = torch.randn(40, 5, generator=generator), torch.randn(5, generator=generator)
    log_odds = torch.randn(40, generator=generator).double()
    prompts = [str(n) for n in range(40)]
    fit = fit_head(x, log_odds, weight=torch.ones(40), prompts=prompts, seed=0, centre=centre)
    wide, middle = x.double(), centre.double()
    solved = torch.linalg.solve(
        wide.t() @ wide + fit.penalty * torch.eye(5, dtype=torch.double),
        wide.t() @ log_odds + fit.penalty * middle,
    )
    torch.testing.assert_close(fit.weight.double(), solved * fit.scale, rtol=1e-5, atol=1e-6)
