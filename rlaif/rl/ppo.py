"""Proximal policy optimisation of a language model: `ppo_step` is the algorithm, the rest is what its lines
stand for.

Formulas are in `math`, the KL controllers in `kl`, sampling in `rollout`. Sources are named there; the
implementation details of Huang et al. 2024 ("The N+ Implementation Details of RLHF with PPO", 2403.17031,
numbered as in their 2023 list) and where each is:

 1  the reward model and the value function see prompt and completion             `episodes.response_states`
 2  padding has a token id of no meaning and is masked, so pad = eos is harmless   `Episodes.is_real`
 3  position ids count from each row's first real token                           `episodes`, `rollout`
 4  no top-k, no top-p: the whole distribution is sampled                          `PpoConfig`, `rollout`
 5  the learning rate falls linearly to 0                                          `learner.Learner.anneal`
 6  each row draws from a generator of its own                                     `rollout`
 7–9  reward at the last token, the head's start, normalisation                    the reward model's own
10  logits are divided by the sampling temperature, in training too                `math.token_logprobs`
11  the value head starts at 0                                                     `value.ValueHead`
12  prompts are whole chat turns; one that is too long is refused                  `rollout.Sampler.question`
13  no dropout: adapters have none, and the base stays in eval mode                `models.shared_base`
14  a completion that never ended its turn is penalised                            `math.penalise_missing_eos`
15  γ = 1                                                                          `PpoConfig.gamma`
16  rows are shuffled anew each epoch                                              `update`
17  the KL penalty is charged token by token                                       `math.token_rewards`
18  rewards are whitened without moving their mean, advantages with                `math.whiten`
19  the value's error is clipped                                                   `math.value_loss`
20  adaptive KL coefficient                                                        `kl.AdaptiveKL`
21  Adam's ε is 1e-5                                                               `learner.Learner`

Departures: the value function shares no weights with the policy, so it has an optimiser of its own instead of
    a coefficient (0.1
there) in a common loss. The missing-EOS penalty is subtracted instead of replacing the score.

Old log-probabilities come from the update's own first pass where there is one minibatch: the policy has not
changed since it sampled, so the ratio is 1 as theory has it, and the rounding of sampling one token at a time
in bfloat16 does not enter it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlaif.digest import seed_from
from rlaif.models.shared_base import REFERENCE, SharedBase
from rlaif.reward.functions import RewardFunction, Scores
from rlaif.rl import math as formulas
from rlaif.rl.episodes import Episodes
from rlaif.rl.learner import POLICY, Learner, RunawayError, states_of, values_of
from rlaif.rl.rollout import EncodedPrompt
from rlaif.rl.update import Targets, split_by_logits, update

__all__ = ["Metrics", "StepReport", "TokenScores", "ppo_step"]

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


def ppo_step(
    learner: Learner, questions: Sequence[EncodedPrompt], reward: RewardFunction, *, step: int
) -> StepReport:
    """One rollout and one update.

    Args:
        step: Counted from 0.

    Raises:
        RunawayError: The KL or a loss is beyond the limits; roll back.
    """
    base, config, clock = learner.base, learner.config, Clock()
    # 1. Sample completions y ~ π(· | x), the policy's states and log-probabilities with them.
    with base.role(POLICY):
        episodes = learner.sampler.sample(
            questions, samples=config.samples_per_prompt, seed=seed_from(learner.seed, "step", step)
        )
    clock.lap("rollout")
    # 2. Score them: r(x, y), less a penalty where the turn was never ended.
    scores = reward([row.prompt for row in episodes.rows], [row.completion for row in episodes.rows])
    total = torch.tensor(scores.total, device=base.device)
    total = formulas.penalise_missing_eos(total, episodes.has_eos, penalty=config.missing_eos_penalty)
    clock.lap("reward")
    # 3. One pass of the reference gives log π_ref, the exact KL, and the features of the value function.
    with torch.no_grad(), base.role(REFERENCE):
        ref_states = states_of(learner, episodes)
        tokens = score_tokens(base, episodes, ref_states, temperature=config.temperature)
    kl = _per_completion(tokens.kl)
    _check_kl(kl, learner)
    learner.keep()
    # 4. Values V(s_t); token rewards r_t = -β (log π - log π_ref) + [t = last] r(x, y); advantages and
    # returns by GAE.
    values = values_of(learner, episodes, ref_states)
    k1 = formulas.kl_estimate(tokens.logprobs, tokens.ref_logprobs)
    rewards = formulas.token_rewards(total, k1, episodes.is_real, beta=learner.kl.beta)
    if config.whiten_rewards:
        rewards = formulas.whiten(rewards, episodes.is_real, keep_mean=True)
    advantages, returns = formulas.gae(rewards, values, episodes.is_real, gamma=config.gamma, lam=config.lam)
    if config.whiten_advantages:
        advantages = formulas.whiten(advantages, episodes.is_real)
    clock.lap("score")
    # 5. Epochs of minibatches on the clipped losses.
    rate, metrics = learner.anneal(step), describe(episodes, scores, tokens, beta=learner.kl.beta)
    metrics |= update(learner, episodes, Targets(values, advantages, returns, ref_states), step=step)
    clock.lap("update")
    # 6. The next β.
    learner.kl.update(kl)
    explained = _number(formulas.explained_variance(values, returns, episodes.is_real))
    metrics = {
        "step": step,
        **metrics,
        "explained_variance": explained,
        "learning_rate": rate,
        **clock.seconds,
    }
    return StepReport(metrics=metrics, episodes=episodes, scores=scores)


# What the lines of the step stand for


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
        k: _per_completion(formulas.kl_estimate(tokens.logprobs, tokens.ref_logprobs, kind=k)) for k in kinds
    }
    return {
        "reward": float(total.mean()),
        "reward_std": float(total.std(correction=0)),
        "reward_ended": float(ended.mean()) if len(ended) else None,
        **{f"reward/{name}": sum(values) / len(values) for name, values in scores.parts.items()},
        "kl": _per_completion(tokens.kl),
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


class Clock:
    """Seconds of each part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """The part that ends now is `name`."""
        now = time.perf_counter()
        self.seconds[f"seconds/{name}"], self._last = now - self._last, now


def _per_completion(per_token: Tensor) -> float:
    return float(per_token.sum(1).mean())


def _number(x: Tensor) -> float | None:
    value = float(x)
    return value if math.isfinite(value) else None


def _check_kl(kl: float, learner: Learner) -> None:
    if not kl <= learner.config.max_kl:
        raise RunawayError(
            f"the KL to the reference is {kl:.4g} nats per completion, the limit is "
            f"{learner.config.max_kl:g}",
            remedy="use a lower learning rate, a larger beta, or a KL controller; or raise max_kl",
        )
