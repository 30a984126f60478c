"""What a step of PPO and a step of GRPO have in common: the pass over policy and reference, and what is told
of a rollout."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlaif.config.rollout import RolloutSettings
from rlaif.errors import ModelError
from rlaif.models.shared_base import SharedBase
from rlaif.reward.functions import Scores
from rlaif.rl import math as formulas
from rlaif.rl.episodes import Episodes
from rlaif.rl.update import split_by_logits

__all__ = [
    "Agreement",
    "Clock",
    "Metrics",
    "StepReport",
    "TokenScores",
    "compare_sampler",
    "describe",
    "finite",
    "per_completion",
    "score_tokens",
]

Metrics = dict[str, float | int | None]
"""One step's numbers; `None` where there was nothing to take a mean of."""


class TokenScores(NamedTuple):
    """What policy and reference think of a rollout's tokens. All (B, T), fp32, 0 at padding."""

    logprobs: Tensor
    """Of the policy that sampled."""
    ref_logprobs: Tensor
    kl: Tensor
    """Exact KL(policy ‖ reference) of the next-token distributions."""
    entropy: Tensor


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step: its numbers, and what was sampled and how it scored."""

    metrics: Metrics
    episodes: Episodes
    scores: Scores


def score_tokens(
    base: SharedBase, episodes: Episodes, ref_states: Tensor, *, temperature: float
) -> TokenScores:
    """Log-probabilities, exact KL and entropy from the states of policy and reference, some positions at a
    time."""
    real = episodes.is_real
    columns = []
    for mine, theirs, token in zip(
        *(split_by_logits(base, x[real]) for x in (episodes.states, ref_states, episodes.tokens)), strict=True
    ):
        # (1, n, V).
        logits, ref_logits = base.logits_at(mine).unsqueeze(0), base.logits_at(theirs).unsqueeze(0)
        columns.append(
            torch.cat(
                [
                    formulas.token_logprobs(ref_logits, token.unsqueeze(0), temperature=temperature),
                    formulas.exact_kl(logits, ref_logits, temperature=temperature),
                    formulas.token_entropy(logits, temperature=temperature),
                ]
            )
        )
    found = torch.zeros(3, *real.shape, dtype=columns[0].dtype, device=real.device)
    found[:, real] = torch.cat(columns, dim=1)
    return TokenScores(logprobs=episodes.logprobs, ref_logprobs=found[0], kl=found[1], entropy=found[2])


def describe(episodes: Episodes, scores: Scores, tokens: TokenScores, *, beta: float) -> Metrics:
    """What the rollout was like, as plain numbers; `None` where there is nothing to take a mean of."""
    real, total = episodes.is_real, torch.tensor(scores.total, device=episodes.tokens.device)
    ended = total[episodes.has_eos]
    kinds: tuple[Literal["k1", "k3"], ...] = ("k1", "k3")
    estimates = {
        k: per_completion(formulas.kl_estimate(tokens.logprobs, tokens.ref_logprobs, kind=k)) for k in kinds
    }
    return {
        "reward": float(total.mean()),
        "reward_std": float(total.std(correction=0)),
        "reward_ended": float(ended.mean()) if len(ended) else None,
        **{f"reward/{name}": sum(values) / len(values) for name, values in scores.parts.items()},
        "kl": per_completion(tokens.kl),
        "kl_k1": estimates["k1"],
        "kl_k3": estimates["k3"],
        "kl_token": float(formulas.masked_mean(tokens.kl, real)),
        "beta": beta,
        "entropy": float(formulas.masked_mean(tokens.entropy, real)),
        "length": float(real.sum(1).float().mean()),
        "ended": float(episodes.has_eos.float().mean()),
        "tokens": int(real.sum()),
        "episodes": len(episodes),
    }


def compare_sampler(episodes: Episodes, settings: RolloutSettings | None) -> Metrics:
    """How far the server that sampled is from the policy here, before the cap; nothing where no server did.

    Raises:
        ModelError: The two do not hold the same policy. Rounding moves single tokens, not their mean.
    """
    if settings is None or episodes.sampler_logprobs is None:
        return {}
    return _compared(episodes.logprobs, episodes.sampler_logprobs, episodes.is_real, settings)


class Agreement:
    """`compare_sampler` over several draws of one policy together, of which none is kept."""

    def __init__(self, settings: RolloutSettings | None) -> None:
        self._settings = settings
        self._ours: list[Tensor] = []
        self._theirs: list[Tensor] = []

    def add(self, episodes: Episodes) -> None:
        """One draw more."""
        if episodes.sampler_logprobs is not None:
            self._ours.append(episodes.logprobs[episodes.is_real].cpu())
            self._theirs.append(episodes.sampler_logprobs[episodes.is_real].cpu())

    def metrics(self) -> Metrics:
        """As of `compare_sampler`, which see for the errors."""
        if self._settings is None or not self._ours:
            return {}
        ours, theirs = torch.cat(self._ours), torch.cat(self._theirs)
        return _compared(ours, theirs, torch.ones_like(ours, dtype=torch.bool), self._settings)


def _compared(ours: Tensor, theirs: Tensor, is_real: Tensor, settings: RolloutSettings) -> Metrics:
    found = formulas.mismatch(ours, theirs, is_real, cap=settings.cap)
    ratio, difference = float(found.ratio), float(found.difference)
    why = ""
    if not settings.min_ratio <= ratio <= settings.max_ratio:
        why = (
            f"the mean probability ratio is {ratio:.4g}, not within {settings.min_ratio:g} to "
            f"{settings.max_ratio:g}"
        )
    elif not difference <= settings.max_difference:
        why = (
            f"their log-probabilities differ by {difference:.4g} nats a token, more than "
            f"{settings.max_difference:g}"
        )
    if why:
        raise ModelError(
            f"server and trainer do not hold the same policy: {why}",
            remedy="look for a stale adapter or another base on a server (start it anew), sampling settings "
            "of the server's own (--generation-config vllm --logprobs-mode processed_logprobs), or another "
            "number format (--dtype, quantisation)",
        )
    return {f"rollout/{name}": float(value) for name, value in found._asdict().items()}


class Clock:
    """Seconds of each part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """The part that ends now is `name`."""
        now = time.perf_counter()
        key = f"seconds/{name}"
        self.seconds[key], self._last = self.seconds.get(key, 0.0) + now - self._last, now


def per_completion(per_token: Tensor) -> float:
    """The mean over completions of the sum over tokens, (B, T)."""
    return float(per_token.sum(1).mean())


def finite(x: Tensor) -> float | None:
    """The number, or nothing where it is NaN or infinite."""
    value = float(x)
    return value if math.isfinite(value) else None
