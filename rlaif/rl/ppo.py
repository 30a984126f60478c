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
a coefficient (0.1 there) in a common loss. The missing-EOS penalty is subtracted instead of replacing the
score.

Old log-probabilities come from the update's own first pass where there is one minibatch: the policy has not
changed since it sampled, so the ratio is 1 as theory has it, and the rounding of sampling one token at a time
in bfloat16 does not enter it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rlaif.config.ppo import PtxSettings
from rlaif.digest import seed_from
from rlaif.reward.functions import RewardFunction
from rlaif.rl import math as formulas
from rlaif.rl.episodes import Episodes, micro_batches, rollout
from rlaif.rl.learner import POLICY, PpoLearner, check_kl, states_of, values_of
from rlaif.rl.rollout import EncodedPrompt
from rlaif.rl.step import (
    Clock,
    StepReport,
    TokenScores,
    compare_sampler,
    describe,
    finite,
    per_completion,
    score_tokens,
)
from rlaif.rl.update import Tally, importance, response_logprobs, trained_states, update

__all__ = ["ppo_step"]


def ppo_step(
    learner: PpoLearner, questions: Sequence[EncodedPrompt], reward: RewardFunction, *, step: int
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
        drawn = learner.sampler.sample(
            questions, samples=config.samples_per_prompt, seed=seed_from(learner.seed, "step", step)
        )
    sampled = rollout(drawn, base.ranks)
    episodes, own = sampled.episodes, sampled.own
    clock.lap("rollout")
    # 2. Score them: r(x, y), less a penalty where the turn was never ended.
    scores = reward([row.prompt for row in episodes.rows], [row.completion for row in episodes.rows])
    total = torch.tensor(scores.total, device=base.device)
    total = formulas.penalise_missing_eos(total, episodes.has_eos, penalty=config.missing_eos_penalty)
    clock.lap("reward")
    # 3. One pass of the reference gives log π_ref, the exact KL, and the features of the value function.
    with torch.no_grad(), base.role(learner.reference):
        ref_states = states_of(learner, own)
        scored = score_tokens(base, own, ref_states, temperature=config.temperature)
        tokens = TokenScores(*map(sampled.whole, scored))
    kl = per_completion(tokens.kl)
    check_kl(kl, learner)
    learner.keep(step)
    # 4. Values V(s_t); token rewards r_t = -β (log π - log π_ref) + [t = last] r(x, y); advantages and
    # returns by GAE.
    values = sampled.whole(values_of(learner, own, ref_states))
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
    metrics |= compare_sampler(episodes, config.rollout)
    own_rows = {row: at for at, row in enumerate(sampled.places)}
    targets = Targets(values, advantages, returns, ref_states, own_rows)
    metrics |= update(learner, episodes, partial(gradients, learner, episodes, targets), step=step)
    clock.lap("update")
    # 6. The next β.
    learner.kl.update(kl)
    explained = finite(formulas.explained_variance(values, returns, episodes.is_real))
    metrics = {
        "step": step,
        **metrics,
        "explained_variance": explained,
        "learning_rate": rate,
        **clock.seconds,
    }
    return StepReport(metrics=metrics, episodes=episodes, scores=scores)


# The gradients of its losses


@dataclass(frozen=True, slots=True)
class Targets:
    """What the update works towards; (B, T), fp32, where nothing else is said."""

    values: Tensor
    advantages: Tensor
    returns: Tensor
    ref_states: Tensor
    """(b, T, H), of the reference: what the value head reads."""
    own_rows: Mapping[int, int]
    """The rows of which this rank has the states, and so has to learn: where they are in `ref_states`."""


def gradients(
    learner: PpoLearner,
    episodes: Episodes,
    targets: Targets,
    rows: Sequence[int],
    old: Tensor | None,
    turn: tuple[int, int],
) -> tuple[Tally, Tensor]:
    """Accumulate the gradients of a minibatch; see `update.Gradient`."""
    config, losses = learner.config, Tally()
    fresh, count = torch.zeros_like(episodes.logprobs), int(episodes.is_real[list(rows)].sum())
    mine = [row for row in rows if row in targets.own_rows]
    for micro in micro_batches(episodes.prompt_ids, mine, config.micro_batch):
        losses.add(value_gradient(learner, episodes, targets, rows=micro, count=count))
        if turn[0] >= config.value_warmup:
            found, fresh[micro] = policy_gradient(learner, episodes, targets, old, rows=micro, count=count)
            losses.add(found)
    if turn[0] >= config.value_warmup and config.ptx is not None:
        losses.add(ptx_gradient(learner, config.ptx, seed=seed_from(learner.seed, "ptx", *turn)))
    return losses, fresh


def policy_gradient(
    learner: PpoLearner,
    episodes: Episodes,
    targets: Targets,
    old: Tensor | None,
    *,
    rows: list[int],
    count: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Add a micro-batch's part of the policy's gradient; its losses, and its log-probabilities (b, T)."""
    with learner.base.role(POLICY):
        logprobs = response_logprobs(learner, *episodes.part(rows))
        result = formulas.policy_loss(
            logprobs,
            logprobs.detach() if old is None else old[rows],
            targets.advantages[rows],
            is_real=episodes.is_real[rows],
            clip=learner.config.clip,
            count=count,
            importance=importance(learner, episodes, rows),
        )
        torch.autograd.backward(result.loss)
    losses = {
        "policy_loss": result.loss.detach(),
        "clip_fraction": result.clip_fraction,
        "update_kl": result.kl_k3,
        "update_kl_k1": result.kl_k1,
    }
    return losses, logprobs.detach()


def value_gradient(
    learner: PpoLearner, episodes: Episodes, targets: Targets, *, rows: list[int], count: int
) -> dict[str, Tensor]:
    """Add a micro-batch's part of the value function's gradient."""
    with learner.base.role(learner.value_role):
        if learner.value_role == learner.reference:
            states = targets.ref_states[[targets.own_rows[row] for row in rows]]
        else:
            states = trained_states(learner, *episodes.part(rows))
        result = formulas.value_loss(
            learner.head(states),
            targets.values[rows],
            targets.returns[rows],
            is_real=episodes.is_real[rows],
            clip=learner.config.value_clip,
            count=count,
        )
        torch.autograd.backward(result.loss)
    return {"value_loss": result.loss.detach(), "value_clip_fraction": result.clip_fraction}


def ptx_gradient(learner: PpoLearner, settings: PtxSettings, *, seed: int) -> dict[str, Tensor]:
    """Add the gradient of the language-modelling loss on rows drawn from the PPO-ptx data (Ouyang et al.
    2022, eq. 2)."""
    drawn = torch.randint(
        len(learner.ptx), (settings.rows,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    chosen = [learner.ptx[index] for index in drawn]
    count, total = sum(len(row.completion) for row in chosen), torch.zeros((), device=learner.base.device)
    chosen = [chosen[at] for at in learner.base.ranks.share(len(chosen))]
    for rows in micro_batches([row.prompt for row in chosen], range(len(chosen)), learner.config.micro_batch):
        part = [chosen[index] for index in rows]
        width = max(len(row.completion) for row in part)
        tokens = torch.tensor(
            [[*row.completion, *[0] * (width - len(row.completion))] for row in part],
            device=learner.base.device,
        )
        lengths = torch.tensor([len(row.completion) for row in part], device=learner.base.device)
        is_real = torch.arange(width, device=learner.base.device) < lengths.unsqueeze(1)
        with learner.base.role(POLICY):
            # A language model's own distribution: temperature 1.
            logprobs = response_logprobs(
                learner, [row.prompt for row in part], tokens, is_real, temperature=1.0
            )
            loss = -formulas.masked_mean(logprobs, is_real, count=count)
            torch.autograd.backward(settings.coefficient * loss)
        total += loss.detach()
    return {"ptx_loss": total}
