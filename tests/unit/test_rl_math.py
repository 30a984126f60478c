"""The formulas of PPO against numbers worked out by hand and against slow loops over plain Python numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlaif.errors import ConfigError, DataError
from rlaif.reward.loss import bradley_terry_loss
from rlaif.rl import math as rl

NAN = math.nan
# Two episodes, of three tokens and of one.
RAGGED = torch.tensor([[True, True, True], [True, False, False]])


def close(actual: Tensor, expected: object, *, atol: float = 1e-6) -> None:
    torch.testing.assert_close(
        actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=1e-5, equal_nan=True
    )


def some_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def row_logprobs(logits: list[float], temperature: float) -> list[float]:
    """The slow reference: log softmax of one position in Python floats."""
    scaled = [x / temperature for x in logits]
    top = max(scaled)
    total = top + math.log(math.fsum(math.exp(x - top) for x in scaled))
    return [x - total for x in scaled]


class TestMeans:
    values = torch.tensor([[1.0, 2.0, 6.0], [3.0, NAN, NAN]])

    def test_sum_and_mean_skip_padding(self) -> None:
        close(rl.masked_sum(self.values, RAGGED), 12.0)
        close(rl.masked_sum(self.values, RAGGED, 1), [9.0, 3.0])
        close(rl.masked_mean(self.values, RAGGED), 3.0)
        close(rl.masked_mean(self.values, RAGGED, 1), [3.0, 3.0])

    def test_count_replaces_the_divisor(self) -> None:
        close(rl.masked_mean(self.values, RAGGED, count=24), 0.5)

    def test_a_mean_of_nothing_is_nan(self) -> None:
        close(rl.masked_mean(torch.ones(2, 2), torch.tensor([[True, True], [False, False]]), 1), [1.0, NAN])

    def test_variance_divides_by_n(self) -> None:
        close(rl.masked_var(self.values, RAGGED), (4 + 1 + 9 + 0) / 4)

    def test_bf16_is_summed_in_fp32(self) -> None:
        ones = torch.ones(1, 1000, dtype=torch.bfloat16)
        total = rl.masked_sum(ones, torch.ones(1, 1000, dtype=torch.bool))
        assert total.dtype == torch.float32
        close(total, 1000.0)

    def test_a_mask_of_another_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"values \(2, 3\), is_real \(2, 1\)"):
            rl.masked_mean(torch.ones(2, 3), torch.ones(2, 1, dtype=torch.bool))


class TestWhiten:
    """Huang: advantages are whitened with the mean shifted to 0, rewards keep theirs."""

    values = torch.tensor([[1.0, 2.0, 6.0], [3.0, 0.0, -7.0]])

    def test_shifted(self) -> None:
        s = math.sqrt(3.5)
        close(rl.whiten(self.values, RAGGED), [[-2 / s, -1 / s, 3 / s], [0.0, 0.0, -7.0]])

    def test_the_mean_is_kept(self) -> None:
        white = rl.whiten(self.values, RAGGED, keep_mean=True)
        s = math.sqrt(3.5)
        close(white, [[3 - 2 / s, 3 - 1 / s, 3 + 3 / s], [3.0, 0.0, -7.0]])
        close(rl.masked_mean(white, RAGGED), 3.0)

    def test_constant_values_stay_finite(self) -> None:
        constant = torch.full((2, 3), 5.0)
        close(rl.whiten(constant, RAGGED), [[0.0, 0.0, 0.0], [0.0, 5.0, 5.0]])
        close(rl.whiten(constant, RAGGED, keep_mean=True), constant.tolist())


class TestTokenLogprobs:
    def test_by_hand(self) -> None:
        logits = torch.tensor([[[math.log(1.0), math.log(3.0)], [0.0, 0.0]]])
        close(rl.token_logprobs(logits, torch.tensor([[1, 0]])), [[math.log(0.75), math.log(0.5)]])

    def test_logits_are_divided_by_the_temperature(self) -> None:
        logits = torch.tensor([[[math.log(1.0), math.log(3.0)]]])
        # 3² / (1² + 3²).
        close(rl.token_logprobs(logits, torch.tensor([[1]]), temperature=0.5), [[math.log(0.9)]])

    @pytest.mark.parametrize("chunk", [1, 14, 1 << 20])
    def test_against_the_loop(self, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rl, "CHUNK", chunk)
        logits, tokens = (
            some_logits(3, 5, 7),
            torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(1)),
        )
        expected = [
            [row_logprobs(logits[b, t].tolist(), 0.7)[int(tokens[b, t])] for t in range(5)] for b in range(3)
        ]
        close(rl.token_logprobs(logits, tokens, temperature=0.7), expected)

    @pytest.mark.parametrize("chunk", [1, 14, 1 << 20])
    def test_gradient_is_that_of_log_softmax(self, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rl, "CHUNK", chunk)
        logits = some_logits(2, 3, 7, dtype=torch.float64).requires_grad_()
        tokens = torch.randint(7, (2, 3), generator=torch.Generator().manual_seed(1))
        assert torch.autograd.gradcheck(lambda x: rl.token_logprobs(x, tokens, temperature=0.7), (logits,))

    def test_gradient_through_a_slice_of_positions(self) -> None:
        """PPO drops the last position: the logits are a view with gaps."""
        full = some_logits(2, 4, 7).requires_grad_()
        tokens = torch.randint(7, (2, 3), generator=torch.Generator().manual_seed(1))
        rl.token_logprobs(full[:, :-1], tokens).sum().backward()
        ours, full.grad = full.grad, None
        full[:, :-1].log_softmax(-1).gather(2, tokens.unsqueeze(2)).sum().backward()
        assert ours is not None
        assert full.grad is not None
        close(ours, full.grad.tolist())

    def test_bf16_logits_are_read_in_fp32(self) -> None:
        logits = some_logits(2, 3, 1000, dtype=torch.bfloat16).requires_grad_()
        tokens = torch.randint(1000, (2, 3), generator=torch.Generator().manual_seed(1))
        ours = rl.token_logprobs(logits, tokens)
        assert ours.dtype == torch.float32
        close(
            ours, logits.detach().float().log_softmax(-1).gather(2, tokens.unsqueeze(2)).squeeze(2).tolist()
        )
        ours.sum().backward()
        assert logits.grad is not None
        assert logits.grad.dtype == torch.bfloat16

    def test_a_forbidden_token_has_no_probability_and_no_gradient(self) -> None:
        logits = torch.tensor([[[0.0, 0.0, -math.inf]]], requires_grad=True)
        chosen = rl.token_logprobs(logits, torch.tensor([[0]]))
        chosen.sum().backward()
        close(chosen.detach(), [[math.log(0.5)]])
        assert logits.grad is not None
        close(logits.grad, [[[0.5, -0.5, 0.0]]])

    def test_tokens_of_another_shape_are_refused(self) -> None:
        with pytest.raises(ValueError, match="shapes differ"):
            rl.token_logprobs(torch.zeros(2, 3, 4), torch.zeros(2, 2, dtype=torch.long))

    @pytest.mark.parametrize("temperature", [0.0, -1.0, NAN])
    def test_temperature_must_be_above_0(self, temperature: float) -> None:
        with pytest.raises(ConfigError, match="temperature"):
            rl.token_logprobs(
                torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), temperature=temperature
            )


class TestEntropyAndKL:
    def test_entropy_by_hand(self) -> None:
        logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, -math.inf, -math.inf, -math.inf]]])
        close(rl.token_entropy(logits), [[math.log(4), 0.0]])

    def test_entropy_against_the_loop(self) -> None:
        logits = some_logits(2, 3, 7)
        expected = [
            [-math.fsum(math.exp(x) * x for x in row_logprobs(logits[b, t].tolist(), 1.3)) for t in range(3)]
            for b in range(2)
        ]
        close(rl.token_entropy(logits, temperature=1.3), expected)

    def test_exact_kl_by_hand(self) -> None:
        p, q = torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[0.5, 0.5]]])
        close(rl.exact_kl(p.log(), q.log()), [[0.75 * math.log(1.5) + 0.25 * math.log(0.5)]])

    def test_exact_kl_against_the_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rl, "CHUNK", 14)
        p, q = some_logits(2, 3, 7), some_logits(2, 3, 7, seed=1)
        expected = [[0.0] * 3 for _ in range(2)]
        for b in range(2):
            for t in range(3):
                pairs = zip(
                    row_logprobs(p[b, t].tolist(), 0.8), row_logprobs(q[b, t].tolist(), 0.8), strict=True
                )
                expected[b][t] = math.fsum(math.exp(x) * (x - y) for x, y in pairs)
        close(rl.exact_kl(p, q, temperature=0.8), expected, atol=1e-5)

    def test_exact_kl_where_one_side_forbids_a_token(self) -> None:
        narrow, wide = torch.tensor([[[0.0, -math.inf]]]), torch.tensor([[[0.0, 0.0]]])
        close(rl.exact_kl(narrow, wide), [[math.log(2)]])
        close(rl.exact_kl(wide, narrow), [[math.inf]])

    def test_estimators_by_hand(self) -> None:
        p, q = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
        close(rl.kl_estimate(p, q), [[math.log(2)]])
        close(rl.kl_estimate(p, q, kind="k2"), [[math.log(2) ** 2 / 2]])
        close(rl.kl_estimate(p, q, kind="k3"), [[0.5 - 1 + math.log(2)]])

    def test_k1_and_k3_are_unbiased(self) -> None:
        """Their expectation under the policy, summed over the vocabulary, is the exact KL."""
        p, q = some_logits(1, 1, 7), some_logits(1, 1, 7, seed=1)
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        for kind in ("k1", "k3"):
            close(
                (log_p.exp() * rl.kl_estimate(log_p, log_q, kind=kind)).sum(-1),
                rl.exact_kl(p, q).tolist(),
                atol=1e-5,
            )

    def test_k3_near_zero_keeps_its_digits(self) -> None:
        close(
            rl.kl_estimate(torch.tensor([1e-3]), torch.tensor([0.0]), kind="k3"),
            [5e-7 - 1e-9 / 6],
            atol=1e-10,
        )


class TestRewards:
    def test_last_real(self) -> None:
        is_real = torch.tensor(
            [[True, True, False], [False, True, True], [True, False, False], [True, False, True]]
        )
        assert rl.last_real(is_real).tolist() == [1, 2, 0, 2]

    def test_an_empty_episode_is_refused(self) -> None:
        with pytest.raises(DataError, match="no token"):
            rl.last_real(torch.tensor([[True, False], [False, False]]))

    def test_the_score_lands_on_the_last_real_token(self) -> None:
        kl = torch.tensor([[0.1, 0.2, 0.3], [0.4, NAN, 9.0]])
        rewards = rl.token_rewards(torch.tensor([1.0, -2.0]), kl, RAGGED, beta=0.5)
        close(rewards, [[-0.05, -0.1, 0.85], [-2.2, 0.0, 0.0]])

    def test_left_padding_too(self) -> None:
        is_real = RAGGED.flip(1)
        rewards = rl.token_rewards(torch.tensor([1.0, -2.0]), torch.ones(2, 3), is_real, beta=0.5)
        close(rewards, [[-0.5, -0.5, 0.5], [0.0, 0.0, -2.5]])

    def test_bf16_scores_and_kl(self) -> None:
        rewards = rl.token_rewards(
            torch.tensor([1.0, -2.0]).bfloat16(), torch.zeros(2, 3).bfloat16(), RAGGED, beta=0.5
        )
        assert rewards.dtype == torch.float32

    def test_only_k1_teaches_the_gradient_of_the_kl(self) -> None:
        """At a single token: Σ_v p(v) charge(v) ∇log p(v) over the vocabulary, against ∇KL by autograd."""
        logits, ref = torch.tensor([1.0, 0.0, -1.0], requires_grad=True), torch.tensor([0.0, 0.5, 0.2])
        logp, logq = logits.log_softmax(0), ref.log_softmax(0)
        (wanted,) = torch.autograd.grad((logp.exp() * (logp - logq)).sum(), logits, retain_graph=True)
        p = logp.detach().exp()
        charges = {kind: rl.kl_estimate(logp.detach(), logq, kind=kind) for kind in ("k1", "k3")}
        charges["exact"] = rl.exact_kl(logits.detach()[None, None], ref[None, None]).squeeze(0).expand(3)
        found = {
            name: torch.autograd.grad((p * charge * logp).sum(), logits, retain_graph=True)[0]
            for name, charge in charges.items()
        }
        close(found["k1"], wanted.tolist())
        close(found["exact"], [0.0, 0.0, 0.0])
        assert not torch.allclose(found["k3"], wanted, atol=1e-2)

    def test_missing_eos(self) -> None:
        scores = rl.penalise_missing_eos(torch.tensor([0.5, 0.7]), torch.tensor([True, False]), penalty=1.0)
        close(scores, [0.5, -0.3])


class TestGAE:
    def test_by_hand(self) -> None:
        """γ = .9, λ = .5, so γλ = .45. Row 0 from its end: δ₂ = 4-3 = 1; δ₁ = 2+.9·3-2 = 2.7, A₁ = 2.7+.45 =
        3.15; δ₀ = 1+.9·2-1 = 1.8, A₀ = 1.8+.45·3.15 = 3.2175. Row 1: δ₀ = 5-1 = 4."""
        rewards = torch.tensor([[1.0, 2.0, 4.0], [5.0, NAN, 7.0]])
        values = torch.tensor([[1.0, 2.0, 3.0], [1.0, 8.0, NAN]])
        result = rl.gae(rewards, values, RAGGED, gamma=0.9, lam=0.5)
        close(result.advantages, [[3.2175, 3.15, 1.0], [4.0, 0.0, 0.0]])
        close(result.returns, [[4.2175, 5.15, 4.0], [5.0, 0.0, 0.0]])

    def test_lambda_1_is_the_rewards_to_come(self) -> None:
        rewards = torch.tensor([[1.0, 2.0, 4.0], [5.0, 0.0, 0.0]])
        result = rl.gae(rewards, some_logits(2, 3), RAGGED, gamma=1.0, lam=1.0)
        close(result.returns, [[7.0, 6.0, 4.0], [5.0, 0.0, 0.0]])

    def test_lambda_0_is_one_step_ahead(self) -> None:
        rewards, values = (
            torch.tensor([[1.0, 2.0, 4.0], [5.0, 0.0, 0.0]]),
            torch.tensor([[1.0, 2.0, 3.0], [1.0, 8.0, 8.0]]),
        )
        close(rl.gae(rewards, values, RAGGED, lam=0.0).advantages, [[2.0, 3.0, 1.0], [4.0, 0.0, 0.0]])

    def test_huangs_defaults(self) -> None:
        rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]])
        real = torch.ones(1, 2, dtype=torch.bool)
        close(rl.gae(rewards, values, real).advantages, [[-0.25 + 0.95 * 0.75, 0.75]])

    def test_no_gradient_flows_through(self) -> None:
        values = torch.ones(2, 3, requires_grad=True)
        assert not rl.gae(torch.ones(2, 3), values, RAGGED).returns.requires_grad


class TestPolicyLoss:
    """Four tokens with ratios 1.5, .5, 1.5, .5 and advantages 1, 1, -1, -1 at clip .2."""

    is_real = torch.tensor([[True, True, True], [True, False, False]])
    ratios = torch.tensor([[1.5, 0.5, 1.5], [0.5, 1.0, 1.0]])
    advantages = torch.tensor([[1.0, 1.0, -1.0], [-1.0, NAN, 5.0]])

    def test_by_hand(self) -> None:
        result = rl.policy_loss(self.ratios.log(), torch.zeros(2, 3), self.advantages, is_real=self.is_real)
        close(result.loss, (-1.2 - 0.5 + 1.5 + 0.8) / 4)
        close(result.clip_fraction, 0.5)  # 1.5 with A = 1, .5 with A = -1
        close(result.kl_k1, -(2 * math.log(1.5) + 2 * math.log(0.5)) / 4)
        close(result.kl_k3, (2 * (0.5 - math.log(1.5)) + 2 * (-0.5 - math.log(0.5))) / 4)

    def test_no_gradient_where_clipped_or_padded(self) -> None:
        logprobs = self.ratios.log().requires_grad_()
        old = torch.zeros(2, 3)
        old[1, 1:] = NAN
        rl.policy_loss(logprobs, old, self.advantages, is_real=self.is_real).loss.backward()
        assert logprobs.grad is not None
        close(logprobs.grad, [[0.0, -0.5 / 4, 1.5 / 4], [0.0, 0.0, 0.0]])

    def test_what_was_sampled_is_not_trained(self) -> None:
        old, advantages = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
        rl.policy_loss(
            self.ratios.log().requires_grad_(), old, advantages, is_real=self.is_real
        ).loss.backward()
        assert old.grad is None
        assert advantages.grad is None

    def test_at_the_first_step_it_is_the_policy_gradient(self) -> None:
        logprobs = torch.full((2, 3), -1.0, requires_grad=True)
        advantages = torch.tensor([[1.0, -2.0, 3.0], [4.0, 0.0, 0.0]])
        result = rl.policy_loss(logprobs, logprobs.detach(), advantages, is_real=self.is_real)
        result.loss.backward()
        assert logprobs.grad is not None
        close(logprobs.grad, (-advantages / 4).tolist())
        close(result.clip_fraction, 0.0)
        close(result.kl_k1, 0.0)

    def test_micro_batches_add_up_with_the_count_of_the_whole(self) -> None:
        whole = rl.policy_loss(self.ratios.log(), torch.zeros(2, 3), self.advantages, is_real=self.is_real)
        parts = [
            rl.policy_loss(
                self.ratios.log()[b],
                torch.zeros(2, 3)[b],
                self.advantages[b],
                is_real=self.is_real[b],
                count=4,
            )
            for b in (slice(0, 1), slice(1, 2))
        ]
        for name, value in whole._asdict().items():
            close(sum(getattr(part, name) for part in parts), value.item())


class TestValueLoss:
    def test_by_hand(self) -> None:
        """Old 0, clip .2. V = 1, R = 2: plain 1, near .2 gives 3.24. V = 1, R = 0: plain 1, near .2 gives
        .04. V = .1, R = 1: inside the clip, .81. V = -1, R = 0: 1 against .04."""
        values = torch.tensor([[1.0, 1.0, 0.1], [-1.0, NAN, 3.0]])
        returns = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, NAN]])
        result = rl.value_loss(values, torch.zeros(2, 3), returns, is_real=RAGGED)
        close(result.loss, (3.24 + 1 + 0.81 + 1) / 8)
        close(result.clip_fraction, 0.25)

    def test_nan_at_padding_reaches_no_gradient(self) -> None:
        values = torch.tensor([[1.0, 1.0, 0.1], [-1.0, NAN, 3.0]], requires_grad=True)
        rl.value_loss(values, torch.zeros(2, 3), torch.zeros(2, 3), is_real=RAGGED).loss.backward()
        assert values.grad is not None
        close(values.grad, [[0.25, 0.25, 0.025], [-0.25, 0.0, 0.0]])

    def test_the_old_values_and_the_returns_are_not_trained(self) -> None:
        values, old, returns = (some_logits(2, 3, seed=i).requires_grad_() for i in range(3))
        rl.value_loss(values, old, returns, is_real=RAGGED).loss.backward()
        assert old.grad is None
        assert returns.grad is None

    def test_an_infinite_clip_is_the_plain_squared_error(self) -> None:
        values, returns = some_logits(2, 3), some_logits(2, 3, seed=1)
        result = rl.value_loss(values, torch.zeros(2, 3), returns, is_real=RAGGED, clip=math.inf)
        close(result.loss, rl.masked_mean((values - returns) ** 2, RAGGED).item() / 2)

    def test_explained_variance(self) -> None:
        returns = torch.tensor([[1.0, 2.0, 6.0], [3.0, NAN, 0.0]])
        close(rl.explained_variance(returns, returns, RAGGED), 1.0)
        close(rl.explained_variance(torch.full((2, 3), 3.0), returns, RAGGED), 0.0)
        close(
            rl.explained_variance(torch.tensor([[2.0, 2.0, 6.0], [4.0, 0.0, 0.0]]), returns, RAGGED),
            1 - 0.25 / 3.5,
        )
        close(rl.explained_variance(returns, torch.ones(2, 3), RAGGED), NAN)


class TestBradleyTerry:
    def test_soft_target_by_hand(self) -> None:
        delta = math.log(3)  # σ = .75
        loss = bradley_terry_loss(torch.tensor([delta]), torch.tensor([0.0]), torch.tensor([0.6]))
        close(loss, -(0.6 * math.log(0.75) + 0.4 * math.log(0.25)))

    def test_a_margin_must_be_won_by(self) -> None:
        """Llama 2's loss for a hard label."""
        loss = bradley_terry_loss(
            torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([1.0]), margin=torch.tensor([1.0])
        )
        close(loss, math.log(1 + math.exp(-0.5)))

    def test_weights_are_relative(self) -> None:
        a, b, p = torch.tensor([1.0, -1.0, 0.0]), torch.zeros(3), torch.tensor([1.0, 1.0, 1.0])
        rows = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(1)), math.log(2)]
        close(bradley_terry_loss(a, b, p), sum(rows) / 3)
        close(bradley_terry_loss(a, b, p, weight=torch.tensor([3.0, 1.0, 0.0])), (3 * rows[0] + rows[1]) / 4)

    def test_the_gradient_stops_at_the_target(self) -> None:
        a = torch.tensor([math.log(3)], requires_grad=True)
        bradley_terry_loss(a, torch.tensor([0.0]), torch.tensor([0.75])).backward()
        assert a.grad is not None
        close(a.grad, [0.0])

    def test_a_large_gap_stays_finite(self) -> None:
        loss = bradley_terry_loss(
            torch.tensor([-1e4]).bfloat16(), torch.tensor([0.0]).bfloat16(), torch.tensor([1.0])
        )
        close(loss, 1e4, atol=20)

    def test_weights_of_another_shape_are_refused(self) -> None:
        with pytest.raises(ValueError, match="weight"):
            bradley_terry_loss(torch.zeros(2), torch.zeros(2), torch.ones(2), weight=torch.ones(2, 1))
