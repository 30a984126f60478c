"""What must hold of the formulas of PPO, and of the statistics beside them, for any input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlaif.reward.loss import bradley_terry_loss
from rlaif.rl import math as rl
from rlaif.rl.kl import best_of_n_kl_bound, best_of_n_kl_estimate
from rlaif.stats import calibration, cohen_kappa, krippendorff_alpha, length_controlled_win_rate, wilson

torch.set_num_threads(1)


def tensor(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def masks(draw: st.DrawFn, *, gaps: bool = False) -> Tensor:
    """(B, T) with at least one True a row: a prefix of each row, or any set of its positions."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    if not gaps:
        lengths = draw(st.lists(st.integers(1, columns), min_size=rows, max_size=rows))
        return torch.arange(columns).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)
    row = st.lists(st.booleans(), min_size=columns, max_size=columns).filter(any)
    return torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows)))


seeds = st.integers(0, 2**31)
unit = st.floats(0, 1)


def slow_gae(rewards: list[float], values: list[float], *, gamma: float, lam: float) -> list[float]:
    """The sum of Schulman 2016, eq. 16, term by term."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * after_v - v for r, v, after_v in zip(rewards, values, after, strict=True)]
    return [
        math.fsum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


@given(masks(gaps=True), seeds, unit, unit)
def test_gae_is_the_sum_over_real_tokens(is_real: Tensor, seed: int, gamma: float, lam: float) -> None:
    rewards, values = tensor(*is_real.shape, seed=seed), tensor(*is_real.shape, seed=seed + 1)
    result = rl.gae(rewards, values, is_real, gamma=gamma, lam=lam)
    for b, real in enumerate(is_real):
        expected = slow_gae(rewards[b, real].tolist(), values[b, real].tolist(), gamma=gamma, lam=lam)
        assert result.advantages[b, real].tolist() == pytest.approx(expected, abs=1e-9)
        assert result.returns[b, real].tolist() == pytest.approx(
            (result.advantages + values)[b, real].tolist()
        )
        assert not result.advantages[b, ~real].any()
        assert not result.returns[b, ~real].any()


@given(masks(gaps=True), seeds, st.booleans())
def test_whitening_moves_real_entries_only(is_real: Tensor, seed: int, keep_mean: bool) -> None:
    values = tensor(*is_real.shape, seed=seed, scale=5) + 3
    white = rl.whiten(values, is_real, keep_mean=keep_mean)
    assert torch.equal(white[~is_real], values[~is_real])
    mean = float(rl.masked_mean(values, is_real)) if keep_mean else 0.0
    assert float(rl.masked_mean(white, is_real)) == pytest.approx(mean, abs=1e-6)
    if is_real.sum() > 1:
        assert float(rl.masked_var(white, is_real)) == pytest.approx(1, abs=1e-2)


@given(masks(), seeds, st.floats(0.0, 2.0))
def test_rewards_of_an_episode_add_up_to_its_score_less_its_kl(
    is_real: Tensor, seed: int, beta: float
) -> None:
    kl, scores = tensor(*is_real.shape, seed=seed), tensor(is_real.shape[0], seed=seed + 1)
    rewards = rl.token_rewards(scores, kl, is_real, beta=beta)
    expected = scores - beta * rl.masked_sum(kl, is_real, 1)
    assert rewards.sum(1).tolist() == pytest.approx(expected.tolist(), abs=1e-9)


@given(masks(), seeds)
def test_nothing_at_padding_matters(is_real: Tensor, seed: int) -> None:
    x = [tensor(*is_real.shape, seed=seed + i) for i in range(3)]
    y = [clean.masked_fill(~is_real, math.nan) for clean in x]
    scores = tensor(is_real.shape[0], seed=seed)
    assert rl.policy_loss(*x, is_real=is_real) == rl.policy_loss(*y, is_real=is_real)
    assert rl.value_loss(*x, is_real=is_real) == rl.value_loss(*y, is_real=is_real)
    assert torch.equal(rl.gae(x[0], x[1], is_real).returns, rl.gae(y[0], y[1], is_real).returns)
    assert torch.equal(
        rl.token_rewards(scores, x[0], is_real, beta=1), rl.token_rewards(scores, y[0], is_real, beta=1)
    )


def slow_policy_loss(new: list[float], old: list[float], advantages: list[float], clip: float) -> float:
    """Schulman 2017, eq. 7, token by token."""
    terms = []
    for n, o, a in zip(new, old, advantages, strict=True):
        ratio = math.exp(n - o)
        terms.append(min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a))
    return -math.fsum(terms) / len(terms)


def slow_value_loss(values: list[float], old: list[float], returns: list[float], clip: float) -> float:
    terms = [
        max((v - r) ** 2, (o + min(max(v - o, -clip), clip) - r) ** 2)
        for v, o, r in zip(values, old, returns, strict=True)
    ]
    return math.fsum(terms) / len(terms) / 2


@given(masks(gaps=True), seeds, st.floats(0.01, 0.9))
def test_losses_equal_their_loops(is_real: Tensor, seed: int, clip: float) -> None:
    x, y, z = (tensor(*is_real.shape, seed=seed + i) for i in range(3))
    rows = [t[is_real].tolist() for t in (x, y, z)]
    assert float(rl.policy_loss(x, y, z, is_real=is_real, clip=clip).loss) == pytest.approx(
        slow_policy_loss(*rows, clip)
    )
    assert float(rl.value_loss(x, y, z, is_real=is_real, clip=clip).loss) == pytest.approx(
        slow_value_loss(*rows, clip)
    )


@given(masks(), seeds)
def test_losses_of_micro_batches_add_up(is_real: Tensor, seed: int) -> None:
    x, y, z = (tensor(*is_real.shape, seed=seed + i) for i in range(3))
    count = float(is_real.sum())
    for loss in (rl.policy_loss, rl.value_loss):
        whole = loss(x, y, z, is_real=is_real)
        parts = [
            loss(x[b : b + 1], y[b : b + 1], z[b : b + 1], is_real=is_real[b : b + 1], count=count)
            for b in range(len(x))
        ]
        for i, value in enumerate(whole):
            assert sum(float(part[i]) for part in parts) == pytest.approx(float(value), abs=1e-6)


@given(seeds, st.floats(0.2, 3.0), st.integers(1, 40))
def test_formulas_over_the_vocabulary_do_not_depend_on_the_chunk(
    seed: int, temperature: float, chunk: int
) -> None:
    logits, other = tensor(2, 3, 8, seed=seed, scale=4), tensor(2, 3, 8, seed=seed + 1, scale=4)
    tokens = torch.randint(8, (2, 3), generator=torch.Generator().manual_seed(seed))

    def run() -> list[Tensor]:
        return [
            rl.token_logprobs(logits, tokens, temperature=temperature),
            rl.token_entropy(logits, temperature=temperature),
            rl.exact_kl(logits, other, temperature=temperature),
        ]

    whole = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl, "CHUNK", chunk)
        for x, y in zip(whole, run(), strict=True):
            torch.testing.assert_close(x, y)
    assert (whole[0] <= 0).all()
    assert ((whole[1] >= 0) & (whole[1] <= math.log(8) + 1e-9)).all()
    assert (whole[2] >= -1e-9).all()


@given(seeds)
def test_k2_and_k3_are_never_negative(seed: int) -> None:
    p, q = tensor(4, 4, seed=seed), tensor(4, 4, seed=seed + 1)
    assert (rl.kl_estimate(p, q, kind="k2") >= 0).all()
    assert (rl.kl_estimate(p, q, kind="k3") >= 0).all()
    assert torch.equal(rl.kl_estimate(p, q), -rl.kl_estimate(q, p))


@given(seeds, st.booleans(), st.booleans())
def test_bradley_terry_does_not_care_which_is_a(seed: int, with_margin: bool, with_weight: bool) -> None:
    a, b, p = tensor(5, seed=seed), tensor(5, seed=seed + 1), tensor(5, seed=seed + 2).sigmoid()
    margin = tensor(5, seed=seed + 3).abs() if with_margin else None
    weight = tensor(5, seed=seed + 4).abs() if with_weight else None
    one = bradley_terry_loss(a, b, p, margin=margin, weight=weight)
    two = bradley_terry_loss(b, a, 1 - p, margin=margin, weight=weight)
    torch.testing.assert_close(one, two)


@given(st.integers(1, 2000), st.floats(-60, 0))
def test_the_best_of_n_estimate_lies_between_0_and_the_bound(n: int, logprob: float) -> None:
    estimate = best_of_n_kl_estimate(n, logprob)
    assert -1e-9 <= estimate <= best_of_n_kl_bound(n) + 1e-9


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_symmetric_and_holds_the_share(counts: tuple[int, int]) -> None:
    wins, n = counts
    ours, theirs = wilson(wins, n), wilson(n - wins, n)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1
    assert ours.low == pytest.approx(1 - theirs.high, abs=1e-12)


@given(
    st.lists(st.tuples(unit, st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30), st.integers(1, 20)
)
def test_calibration_does_not_care_which_is_a(rows: list[tuple[float, float]], bins: int) -> None:
    p, won = (np.array(column) for column in zip(*rows, strict=True))
    result = calibration(p, won, bins=bins)
    assert 0 <= result.ece <= 1
    assert sum(b.rows for b in result.bins) == len(p)
    swapped = calibration(np.maximum(p, 1 - p), np.where(p >= 0.5, won, 1 - won), bins=bins)
    assert swapped.ece == pytest.approx(result.ece)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=20),
    st.permutations(range(3)),
)
def test_agreement_depends_on_neither_names_nor_order(pairs: list[tuple[int, int]], names: list[int]) -> None:
    renamed = [(names[y], names[x]) for x, y in reversed(pairs)]
    kappa, alpha = cohen_kappa(*zip(*pairs, strict=True)), krippendorff_alpha(pairs)
    assert cohen_kappa(*zip(*renamed, strict=True)) == pytest.approx(kappa, nan_ok=True)
    assert krippendorff_alpha(renamed) == pytest.approx(alpha, nan_ok=True)
    assert not kappa > 1
    assert not alpha > 1


@settings(max_examples=30)
@given(st.lists(st.tuples(unit, st.integers(0, 50), st.integers(0, 50)), min_size=3, max_size=30))
def test_a_length_controlled_win_rate_and_its_mirror_add_up_to_1(rows: list[tuple[float, int, int]]) -> None:
    wins, ours, base = (np.array(column) for column in zip(*rows, strict=True))
    here = length_controlled_win_rate(wins, ours, base, range(len(wins)), resamples=2)
    there = length_controlled_win_rate(1 - wins, base, ours, range(len(wins)), resamples=2)
    assert here.win_rate.value + there.win_rate.value == pytest.approx(1, abs=1e-6)
    assert here.length_effect == pytest.approx(there.length_effect, abs=1e-5)
