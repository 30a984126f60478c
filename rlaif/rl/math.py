"""The formulas of PPO and GRPO for language models, as pure tensor functions.

A row is an episode: one completion. Tensors of shape (B, T) hold one entry a token, T counted over completion
positions only; `is_real` (B, T) is True at the tokens that the policy sampled, its end-of-turn token
included, and False at padding. What stands at padding never reaches a result, not even NaN. Sums are done in
fp32 (fp64 where the input is), whatever the input.

A loss takes `count`, the number of real tokens that its mean divides by. Left out, it is that of the tensors
given. With the count of a whole minibatch, the results over its micro-batches add up to those over the
minibatch, however ragged they are.

Sources: Schulman et al. 2016 (GAE, arXiv 1506.02438); Schulman et al. 2017 (PPO, 1707.06347); Ziegler et al.
2019 (1909.08593); Stiennon et al. 2020 (2009.01325); Huang et al. 2024, "The N+ Implementation Details of
RLHF with PPO" (2403.17031) and their "The N Implementation Details" (iclr-blogposts.github.io/2024); Schulman
2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html); Shao et al. 2024 (DeepSeekMath: GRPO,
2402.03300); Ahmadian et al. 2024 (RLOO, 2402.14740); Liu et al. 2025 (Dr. GRPO, 2503.20783); Yu et al. 2025
(DAPO, 2503.14476); Liu et al. 2026 (GDPO, 2601.05242); Ionides 2008 (truncated importance sampling, JCGS 17);
Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (the same, for
rollouts of a server: fengyao.notion.site/off-policy-rl).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlaif.errors import ConfigError, DataError
from rlaif.models.shapes import same_shape, wide

__all__ = [
    "Advantages",
    "GroupAdvantage",
    "Mismatch",
    "PolicyLoss",
    "ValueLoss",
    "cancelling_groups",
    "completion_weights",
    "decoupled_advantages",
    "equal_groups",
    "exact_kl",
    "explained_variance",
    "gae",
    "group_advantages",
    "kl_estimate",
    "last_real",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "mismatch",
    "penalise_missing_eos",
    "policy_loss",
    "token_entropy",
    "token_logprobs",
    "token_rewards",
    "truncated_importance",
    "value_loss",
    "whiten",
]

CHUNK = 1 << 20
"""Logits worked on at once in fp32 (4 MiB): what a formula over the vocabulary needs beyond its input and
output."""

GROUP_EPS = 1e-4
"""Added to a group's standard deviation, as TRL does: rewards that are nearly equal are not blown up."""


# Means over real entries


def masked_sum(values: Tensor, is_real: Tensor, dim: int | None = None) -> Tensor:
    """The sum of `values` where `is_real`, over `dim` or over everything."""
    kept = _real(values, is_real)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(
    values: Tensor, is_real: Tensor, dim: int | None = None, *, count: float | None = None
) -> Tensor:
    """The mean of `values` where `is_real`, over `dim` or over everything; NaN where nothing is real.

    Args:
        count: What to divide by instead of the number of real entries.
    """
    same_shape(values=values, is_real=is_real)
    if count is not None:
        return masked_sum(values, is_real, dim) / count
    return masked_sum(values, is_real, dim) / (is_real.sum() if dim is None else is_real.sum(dim))


def masked_var(values: Tensor, is_real: Tensor) -> Tensor:
    """The variance of `values` where `is_real`: the mean squared distance from the mean (divided by n, not by
    n - 1, as in Ziegler's code and Huang's)."""
    return masked_mean((wide(values) - masked_mean(values, is_real)).square(), is_real)


def whiten(values: Tensor, is_real: Tensor, *, keep_mean: bool = False, eps: float = 1e-8) -> Tensor:
    """Scale the real entries to variance 1 and, unless `keep_mean`, shift them to mean 0. The others stay as
    they are.

    (v - mean) / sqrt(var + eps) [+ mean]. Advantages are shifted, rewards keep their mean (Huang).
    """
    mean = masked_mean(values, is_real)
    white = (wide(values) - mean) * torch.rsqrt(masked_var(values, is_real) + eps)
    return torch.where(is_real, white + mean if keep_mean else white, wide(values))


# From logits to one number a token


def token_logprobs(logits: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probability (nats, fp32) of each token under softmax(logits / temperature), the distribution it was
    sampled from (Huang: logits are divided by the sampling temperature).

    No tensor of the size of `logits` is made on the way forward, and one (the gradient, in their own dtype)
    in the backward pass.

    Args:
        logits: (B, T, V); those at position t predict `tokens[:, t]`.
        tokens: (B, T); a token id at padding too, any valid one.
    """
    _check_temperature(temperature)
    same_shape(logits=logits[..., 0], tokens=tokens)
    return cast(Tensor, _TokenLogprobs.apply(logits, tokens, temperature))  # type: ignore[no-untyped-call]


class _TokenLogprobs(torch.autograd.Function):
    """log p = x/τ at the token - logsumexp(x/τ), with d log p / dx = (onehot - p) / τ computed again on the
    way back."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        tokens = tokens.unsqueeze(2)
        total = _by_chunks(lambda x: torch.logsumexp(wide(x) / temperature, dim=1), logits).unsqueeze(2)
        ctx.save_for_backward(logits, tokens, total)
        ctx.temperature = temperature
        return (wide(logits.gather(2, tokens)) / temperature - total).squeeze(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, total = ctx.saved_tensors
        scale = (grad / ctx.temperature).unsqueeze(2)
        out = torch.empty_like(logits)
        for part, x, token, z, g in zip(
            *(_chunks(y, logits.shape[2]) for y in (out, logits, tokens, total, scale)), strict=True
        ):
            softmax = (wide(x) / ctx.temperature).sub_(z).exp_()
            part.copy_(softmax.mul_(-g).scatter_add_(1, token, g))
        return out, None, None


def token_entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy (nats, fp32) of softmax(logits / temperature): logits (B, T, V) -> (B, T).

    -Σ p log p. Meant for measuring: under `torch.no_grad` a chunk at a time is all that is held beside the
    logits.
    """
    _check_temperature(temperature)

    def entropy(x: Tensor) -> Tensor:
        p = (wide(x) / temperature).softmax(dim=1)
        return -torch.xlogy(p, p).sum(dim=1)

    return _by_chunks(entropy, logits)


def exact_kl(logits: Tensor, ref_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(policy ‖ reference) (nats, fp32) of the next-token distributions: both logits (B, T, V) -> (B, T).

    Σ_v p(v) (log p(v) - log q(v)): the expectation that `kl_estimate` samples, given the same prefix. A token
    that only the reference allows adds nothing; one that only the policy allows makes it infinite.
    """
    _check_temperature(temperature)
    same_shape(logits=logits, ref_logits=ref_logits)

    def divergence(x: Tensor, y: Tensor) -> Tensor:
        log_p, log_q = (wide(x) / temperature).log_softmax(dim=1), (wide(y) / temperature).log_softmax(dim=1)
        p = log_p.exp()
        return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=1)

    return _by_chunks(divergence, logits, ref_logits)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, *, kind: Literal["k1", "k2", "k3"] = "k1") -> Tensor:
    """Per-token estimate of KL(policy ‖ reference) from the log-probabilities of tokens that the policy
    sampled.

    With d = log q - log p: k1 = -d (unbiased, of either sign; what PPO's rewards charge), k2 = d²/2 (biased,
    low variance), k3 = exp(d) - 1 - d (unbiased, never negative). Schulman 2020.
    """
    d = wide(ref_logprobs) - wide(logprobs)
    match kind:
        case "k1":
            return -d
        case "k2":
            return d.square() / 2
        case "k3":
            return torch.expm1(d) - d


# Rewards and advantages


def last_real(is_real: Tensor) -> Tensor:
    """The position of each row's last real token: (B, T) -> (B,).

    Raises:
        DataError: A row has none.
    """
    if not bool(is_real.any(dim=1).all()):
        raise DataError(
            "an episode has no token, so its score has no place to go",
            remedy="drop empty completions before PPO",
        )
    return is_real.shape[1] - 1 - is_real.flip(1).int().argmax(dim=1)


def penalise_missing_eos(scores: Tensor, has_eos: Tensor, *, penalty: float = 1.0) -> Tensor:
    """Scores (B,), less `penalty` for the completions that never ended their turn (`has_eos` (B,) False).

    Ziegler and Huang give those the fixed score -1. Subtracting, as TRL does, keeps the order among them,
    which is all that there is to learn from early on, when most completions are cut.
    """
    same_shape(scores=scores, has_eos=has_eos)
    return wide(scores) - penalty * (~has_eos).to(wide(scores).dtype)


def token_rewards(scores: Tensor, kl: Tensor, is_real: Tensor, *, beta: float) -> Tensor:
    """What each token earned: -beta · kl, plus the score of the whole completion at its last real token; 0 at
    padding.

    r_t = -β KL_t + [t = last] · score (Ziegler 2019, eq. 2; Stiennon 2020, §3.4).

    Args:
        scores: (B,).
        kl: (B, T), `kl_estimate` of kind k1, which depends on the token drawn. Not `exact_kl`: it is the same
            whichever token was drawn there, so as a charge it would teach nothing about that token (with one
            token a completion, nothing at all). Not k3: as a charge its gradient is not that of the KL.

    Raises:
        DataError: A row has no real token.
    """
    same_shape(kl=kl, is_real=is_real)
    rewards = -beta * _real(kl, is_real)
    return rewards.scatter_add(
        1, last_real(is_real).unsqueeze(1), wide(scores).to(rewards.dtype).unsqueeze(1)
    )


class Advantages(NamedTuple):
    """Both (B, T), fp32, 0 at padding."""

    advantages: Tensor
    returns: Tensor
    """advantages + values: what the value function should have said."""


def gae(
    rewards: Tensor, values: Tensor, is_real: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> Advantages:
    """Generalised advantage estimates, along each row from its last real token back to its first.

    δ_t = r_t + γ V_{t+1} - V_t and A_t = δ_t + γλ A_{t+1}, with V = A = 0 past the end (Schulman 2016, eq.
    16). A completion cut at the token limit counts as ended there (Huang: no bootstrap). Steps are real
    tokens: padding on either side, or between, is passed over. All (B, T); gradients do not flow through.
    """
    same_shape(rewards=rewards, values=values, is_real=is_real)
    rewards, values = wide(rewards.detach()), wide(values.detach())
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        real = is_real[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(real, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(real, values[:, t], next_value)
        advantages[:, t] = torch.where(real, next_advantage, 0.0)
    return Advantages(advantages=advantages, returns=torch.where(is_real, advantages + values, 0.0))


# Advantages within a group


GroupAdvantage = Literal["grpo", "dr_grpo", "rloo"]


def group_advantages(
    scores: Tensor, *, kind: GroupAdvantage = "grpo", charges: Tensor | None = None
) -> Tensor:
    """What each completion is worth among those of its prompt: scores (G, K) -> (G, K), fp32.

    grpo:     (r_i - mean r) / (std r + 1e-4), std with K - 1 (Shao 2024, §4.1.2; the 1e-4 and K - 1 are
        TRL's).
    dr_grpo:  r_i - mean r (Liu 2025, §3.2).
    rloo:     r_i - mean of the other r_j = K / (K - 1) · (r_i - mean r) (Ahmadian 2024, eq. 8).

    Args:
        charges: (G, K), taken from the scores first: what a KL in the reward costs. Where the scores of a
            group are equal, kind grpo does not divide charges by their own spread: it would make them as
            large as rewards, whatever β they were multiplied by.

    Raises:
        DataError: A group has one completion: there is nothing to hold it against.
    """
    size = _group_size(scores)
    net = wide(scores) if charges is None else wide(scores) - wide(charges)
    centred = _centred(net)
    match kind:
        case "grpo":
            scaled = centred / (centred.std(1, keepdim=True) + GROUP_EPS)
            return scaled if charges is None else torch.where(equal_groups(scores)[:, None], centred, scaled)
        case "dr_grpo":
            return centred
        case "rloo":
            return centred * size / (size - 1)


def decoupled_advantages(parts: Tensor, weights: Tensor) -> Tensor:
    """Advantages of a reward of several parts, none of which drowns the others: parts (P, G, K) -> (G, K),
    fp32.

    Each part is scaled within its group as `group_advantages` of kind grpo does, the weighted sum is shifted
    and scaled over the whole rollout: A = (S - mean S) / (std S + 1e-4), S = Σ_p w_p A_p (GDPO, Liu 2026,
        eqs. 4 to 6).

    Args:
        weights: (P,).
    """
    total = _scaled_sum(parts, weights)
    return (total - total.mean()) / (total.std() + GROUP_EPS)


def cancelling_groups(parts: Tensor, weights: Tensor) -> Tensor:
    """What `equal_groups` is for `decoupled_advantages`: groups in which no completion is better once every
    part is scaled: (P, G, K) -> (G,), bool. Equal sums of parts are neither needed for it nor enough."""
    total = _scaled_sum(parts, weights)
    return ((total - total[:, :1]).abs() < GROUP_EPS).all(1)


def equal_groups(scores: Tensor) -> Tensor:
    """Groups whose scores are all the same, so that no completion is better than another: (G, K) -> (G,),
    bool."""
    return (scores == scores[:, :1]).all(1)


def completion_weights(is_real: Tensor, *, per: Literal["completion", "token"], longest: int) -> Tensor:
    """What each token's loss is multiplied by before all are added: (B, T), 0 at padding.

    completion: 1 / (B · tokens of its completion), so that each completion counts the same (Shao 2024, eq.
        3).
    token:      1 / (B · longest), so that each token counts the same, in this rollout and in the next (Liu
                2025, §3.2; the constant is the longest completion that the settings allow, as in TRL).
    """
    real = is_real.to(torch.float32)
    each = real.sum(1, keepdim=True).clamp(min=1) if per == "completion" else float(longest)
    return real / (len(real) * each)


# Tokens that a server sampled


def truncated_importance(
    logprobs: Tensor, sampler_logprobs: Tensor, is_real: Tensor, *, cap: float = 2.0
) -> Tensor:
    """What the loss of a token counts that another program sampled: (B, T), 0 at padding, without gradient.

    w = min(π_old / π_sampler, C) (Ionides 2008, eq. 5; Yao 2025), token by token: products over a completion
    grow with its length, and would leave nothing of a long one.

    Args:
        logprobs: (B, T), of the policy before the update, by the program that trains it.
        sampler_logprobs: (B, T), of the same tokens, by the program that drew them.
    """
    ratio = _log_ratio(logprobs, sampler_logprobs, is_real).exp()
    return torch.where(is_real, ratio.clamp(max=cap), 0.0)


class Mismatch(NamedTuple):
    """How far a sampler is from the policy that is trained, before any cap. Scalars over real tokens."""

    ratio: Tensor
    """Mean of π_old / π_sampler: 1 in expectation where the sampler drew from all of the distribution that it
    tells, even where that is another policy's."""
    ratio_p99: Tensor
    above_cap: Tensor
    """Share of tokens whose ratio is above the cap."""
    kl_k3: Tensor
    """KL(sampler ‖ policy) by k3."""
    difference: Tensor
    """Mean of |log π_old - log π_sampler|."""


def mismatch(logprobs: Tensor, sampler_logprobs: Tensor, is_real: Tensor, *, cap: float = 2.0) -> Mismatch:
    """Compare the log-probabilities (B, T) that trainer and sampler give the same tokens."""
    log_ratio = _log_ratio(logprobs, sampler_logprobs, is_real)[is_real]
    ratio = log_ratio.exp()
    return Mismatch(
        ratio=ratio.mean(),
        ratio_p99=ratio.sort().values[int(0.99 * (len(ratio) - 1))],
        above_cap=(ratio > cap).to(ratio.dtype).mean(),
        kl_k3=(torch.expm1(log_ratio) - log_ratio).mean(),
        difference=log_ratio.abs().mean(),
    )


@torch.no_grad()
def _log_ratio(logprobs: Tensor, sampler_logprobs: Tensor, is_real: Tensor) -> Tensor:
    same_shape(logprobs=logprobs, sampler_logprobs=sampler_logprobs, is_real=is_real)
    return _real(logprobs, is_real) - _real(sampler_logprobs, is_real)


# Losses


class PolicyLoss(NamedTuple):
    """Scalars, each a mean over real tokens."""

    loss: Tensor
    clip_fraction: Tensor
    """Share of tokens where the clip took the gradient away."""
    kl_k1: Tensor
    """KL(old ‖ new) of this update by k1: mean of log old - log new."""
    kl_k3: Tensor
    """The same by k3."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    is_real: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
    count: float | None = None,
    weight: Tensor | None = None,
    importance: Tensor | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate, to be minimised: E[max(-ρA, -clamp(ρ, 1-ε, 1+ε) A)], ρ = exp(new - old)
    (Schulman 2017, eq. 7).

    Args:
        logprobs: (B, T), with gradient.
        old_logprobs: (B, T), of the policy that sampled, at the same temperature.
        advantages: (B, T), whitened.
        clip_high: The distance above 1, where it is not `clip` (DAPO, Yu 2025, eq. 10).
        weight: (B, T), what each token's loss is multiplied by before all are added, instead of 1 / `count`.
        importance: (B, T), `truncated_importance` of tokens that another program sampled.
    """
    same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, is_real=is_real)
    log_ratio = _real(logprobs, is_real) - _real(old_logprobs, is_real).detach()
    advantages = _real(advantages, is_real).detach()
    ratio, most = log_ratio.exp(), clip if clip_high is None else clip_high
    plain, clipped = -ratio * advantages, -ratio.clamp(1 - clip, 1 + most) * advantages

    def mean(x: Tensor) -> Tensor:
        return masked_mean(x, is_real, count=count)

    with torch.no_grad():
        fraction, k1, k3 = mean(clipped > plain), mean(-log_ratio), mean(torch.expm1(log_ratio) - log_ratio)
    each = torch.maximum(plain, clipped)
    if importance is not None:
        each = each * importance.detach()
    loss = mean(each) if weight is None else masked_sum(weight * each, is_real)
    return PolicyLoss(loss=loss, clip_fraction=fraction, kl_k1=k1, kl_k3=k3)


class ValueLoss(NamedTuple):
    """Scalars, each a mean over real tokens."""

    loss: Tensor
    clip_fraction: Tensor
    """Share of tokens where the clipped error is the larger one."""


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    *,
    is_real: Tensor,
    clip: float = 0.2,
    count: float | None = None,
) -> ValueLoss:
    """Clipped squared error of the value function (Huang): ½ E[max((V - R)², (V_old + clamp(V - V_old, ±ε) -
    R)²)].

    All (B, T); `clip` is in units of reward, infinity switches it off.
    """
    same_shape(values=values, old_values=old_values, returns=returns, is_real=is_real)
    values = _real(values, is_real)
    old_values, returns = _real(old_values, is_real).detach(), _real(returns, is_real).detach()
    near = old_values + (values - old_values).clamp(-clip, clip)
    plain, clipped = (values - returns).square(), (near - returns).square()
    loss = masked_mean(torch.maximum(plain, clipped), is_real, count=count) / 2
    return ValueLoss(loss=loss, clip_fraction=masked_mean(clipped > plain, is_real, count=count).detach())


def explained_variance(values: Tensor, returns: Tensor, is_real: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) over real tokens: 1 is perfect, 0 no better than a constant, NaN when the
    returns are constant."""
    same_shape(values=values, returns=returns, is_real=is_real)
    spread = masked_var(returns, is_real)
    return torch.where(spread > 0, 1 - masked_var(wide(returns) - wide(values), is_real) / spread, torch.nan)


# Shared by the above


def _scaled_sum(parts: Tensor, weights: Tensor) -> Tensor:
    """S = Σ_p w_p A_p: (P, G, K) -> (G, K)."""
    scaled = torch.stack([group_advantages(part) for part in parts])
    return (wide(weights).view(-1, 1, 1) * scaled).sum(0)


def _centred(scores: Tensor) -> Tensor:
    """(G, K) less each group's mean. The first of a group is taken away before: the mean of equal numbers is
    theirs up to rounding only, which a division by their spread would make as large as a reward."""
    moved = scores - scores[:, :1]
    return moved - moved.mean(1, keepdim=True)


def _group_size(scores: Tensor) -> int:
    if scores.shape[1] < 2:
        raise DataError(
            "a group of one completion has nothing to be compared with", remedy="sample at least 2 per prompt"
        )
    return scores.shape[1]


def _real(x: Tensor, is_real: Tensor) -> Tensor:
    """`x`, wide, with 0 at padding: neither a value nor a gradient passes there."""
    return torch.where(is_real, wide(x), 0.0)


def _chunks(x: Tensor, vocabulary: int) -> Iterator[Tensor]:
    """Views (t, ...) of (B, T, ...) in order, each of as many tokens as have `CHUNK` logits, or one."""
    return (part for row in x.unbind() for part in torch.split(row, max(1, CHUNK // vocabulary)))


def _by_chunks(formula: Callable[..., Tensor], *logits: Tensor) -> Tensor:
    """`formula`, (t, V) -> (t,), of all the tokens of (B, T, V) tensors, some at a time: -> (B, T)."""
    parts = [formula(*chunk) for chunk in zip(*(_chunks(x, x.shape[2]) for x in logits), strict=True)]
    return torch.cat(parts).view(logits[0].shape[:2])


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ConfigError(
            f"temperature is {temperature}: a log-probability has no meaning there",
            remedy="sample at a temperature above 0 (1.0 is the usual one for PPO)",
        )
