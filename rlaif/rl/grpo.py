"""Group relative policy optimisation of a language model: `grpo_step` is the algorithm, the rest is what its
lines stand for.

Read it beside `ppo.ppo_step`: the rollout, the rewards, the pass of the reference, the clipped loss and the
epochs are the same. Instead of a value function, what a completion is worth is told by the others of its
prompt; the KL is charged in the loss unless the settings say otherwise; there are no returns, no GAE and no
whitening.

Shao et al. 2024 (DeepSeekMath, 2402.03300) for `advantage: grpo`, Liu et al. 2025 (2503.20783) for `dr_grpo`,
Ahmadian et al. 2024 (2402.14740) for `rloo`, Liu et al. 2026 (GDPO, 2601.05242) for `normalise_parts`, Yu et
al. 2025 (DAPO, 2503.14476) for `clip_high` and `keep_drawing`. Details 1 to 14 and 16 of PPO's list hold
here, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlaif.config.grpo import GrpoConfig
from rlaif.digest import seed_from
from rlaif.errors import ConfigError
from rlaif.reward.functions import RewardFunction, Scores
from rlaif.rl import math as formulas
from rlaif.rl.episodes import Episodes, Rollout, micro_batches, rollout, together
from rlaif.rl.learner import POLICY, GrpoLearner, check_kl, states_of
from rlaif.rl.rollout import EncodedPrompt
from rlaif.rl.step import (
    Clock,
    Metrics,
    StepReport,
    TokenScores,
    compare_sampler,
    describe,
    per_completion,
    score_tokens,
)
from rlaif.rl.update import Tally, importance, own_share, response_logprobs, update

__all__ = ["grpo_step"]

LOSS_PER: Mapping[formulas.GroupAdvantage, Literal["completion", "token"]] = {
    "grpo": "completion",
    "dr_grpo": "token",
    "rloo": "token",
}
"""What counts the same in the loss under each kind of advantage."""


def grpo_step(
    learner: GrpoLearner, questions: Iterable[EncodedPrompt], reward: RewardFunction, *, step: int
) -> StepReport:
    """One rollout and one update.

    Args:
        questions: As many as the step has groups, and further ones for `keep_drawing`, taken as they are
            needed.
        step: Counted from 0.

    Raises:
        RunawayError: The KL or a loss is beyond the limits; roll back.
    """
    base, config, clock = learner.base, learner.config, Clock()
    # 1., 2. Sample K completions y ~ π(· | x) of each prompt, and score them: r(x, y), less a penalty where
    # the turn was never ended. With `keep_drawing` again, until enough groups are not all equal.
    sampled, scores, total = sample_groups(learner, questions, reward, clock, step=step)
    episodes, own = sampled.episodes, sampled.own
    groups = total.view(-1, config.samples_per_prompt)
    parts = parts_of(config, scores, episodes)
    silent = silent_groups(groups, parts)
    # 3. One pass of the reference gives log π_ref and the exact KL.
    with torch.no_grad(), base.role(learner.reference):
        scored = score_tokens(base, own, states_of(learner, own), temperature=config.temperature)
        tokens = TokenScores(*map(sampled.whole, scored))
    kl = per_completion(tokens.kl)
    check_kl(kl, learner)
    learner.keep(step)
    # 4. What each completion is worth among those of its prompt.
    charges = None
    if config.kl_in == "reward":
        k1 = formulas.kl_estimate(tokens.logprobs, tokens.ref_logprobs)
        charges = learner.kl.beta * k1.sum(1).view_as(groups)
    rows = rows_to_learn(config, silent)
    advantages = advantages_of(config, groups, charges, parts, rows)
    clock.lap("score")
    # 5. Epochs of minibatches on the clipped loss, and β times the KL to the reference.
    rate, metrics = learner.anneal(step), describe(episodes, scores, tokens, beta=learner.kl.beta)
    metrics |= compare_sampler(episodes, config.rollout)
    metrics |= describe_groups(groups, silent, learned=len(rows))
    if rows:
        learned = episodes.take(rows).without_states()
        targets = Targets(advantages, tokens.ref_logprobs[rows])
        metrics |= update(learner, learned, partial(gradients, learner, learned, targets), step=step)
    clock.lap("update")
    # 6. The next β.
    learner.kl.update(kl)
    metrics = {"step": step, **metrics, "learning_rate": rate, **clock.seconds}
    return StepReport(metrics=metrics, episodes=episodes, scores=scores)


# What the lines of the step stand for


class Targets(NamedTuple):
    """What the update works towards."""

    advantages: Tensor
    """(B,), fp32."""
    ref_logprobs: Tensor
    """(B, T), fp32, 0 at padding."""


def sample_groups(
    learner: GrpoLearner,
    questions: Iterable[EncodedPrompt],
    reward: RewardFunction,
    clock: Clock,
    *,
    step: int,
) -> tuple[Rollout, Scores, Tensor]:
    """A rollout with its scores, and those (B,) less the missing-EOS penalty; the K completions of a prompt
    stand together.

    With `keep_drawing`, groups that are all equal are made up for by further prompts, `max_draws` times at
    most.
    """
    config, queue, device = learner.config, iter(questions), learner.base.device
    wanted = config.episodes // config.samples_per_prompt
    draws: list[Rollout] = []
    scored: list[Scores] = []
    totals: list[Tensor] = []
    for draw in range(config.max_draws if config.keep_drawing else 1):
        asked = list(islice(queue, wanted))
        if not asked:
            break
        with learner.base.role(POLICY):
            seed = seed_from(learner.seed, "step", step, *([draw] if draw else []))
            own = learner.sampler.sample(asked, samples=config.samples_per_prompt, seed=seed)
        draws.append(rollout(own, learner.base.ranks))
        episodes = draws[-1].episodes
        clock.lap("rollout")
        scores = reward([row.prompt for row in episodes.rows], [row.completion for row in episodes.rows])
        total = formulas.penalise_missing_eos(
            torch.tensor(scores.total, device=device), episodes.has_eos, penalty=config.missing_eos_penalty
        )
        scored.append(scores)
        totals.append(total)
        clock.lap("reward")
        groups = total.view(-1, config.samples_per_prompt)
        wanted -= int((~silent_groups(groups, parts_of(config, scores, episodes))).sum())
        if wanted <= 0:
            break
    return together(draws), _added(scored), torch.cat(totals)


class Parts(NamedTuple):
    """A reward in the parts that it was added up from."""

    scores: Tensor
    """(P, G, K), fp32."""
    weights: Tensor
    """(P,)."""


def parts_of(config: GrpoConfig, scores: Scores, episodes: Episodes) -> Parts | None:
    """The parts that are scaled apart, the missing-EOS penalty among them; nothing where the sum is.

    Raises:
        ConfigError: The reward has one part only.
    """
    if not config.normalise_parts:
        return None
    trained = {name: values for name, values in scores.parts.items() if scores.weights.get(name, 1.0)}
    if len(trained) < 2:
        raise ConfigError(
            "normalise_parts does nothing for a reward of one part", remedy="leave it out, or name the parts"
        )
    cut, device = (~episodes.has_eos).float().neg().tolist(), episodes.tokens.device
    columns = torch.tensor([*trained.values(), cut], dtype=torch.float32, device=device)
    weights = [*(scores.weights.get(name, 1.0) for name in trained), config.missing_eos_penalty]
    groups = columns.view(len(columns), -1, config.samples_per_prompt)
    return Parts(scores=groups, weights=torch.tensor(weights, device=device))


def silent_groups(groups: Tensor, parts: Parts | None) -> Tensor:
    """Which of the groups (G, K) say nothing, so that `keep_drawing` replaces them: (G,), bool."""
    return formulas.equal_groups(groups) if parts is None else formulas.cancelling_groups(*parts)


def rows_to_learn(config: GrpoConfig, silent: Tensor) -> list[int]:
    """The rows that the update learns: all, or with `keep_drawing` those of the first groups that are not
    `silent` (G,)."""
    size = config.samples_per_prompt
    kept = [at for at, same in enumerate(silent.tolist()) if not (same and config.keep_drawing)]
    return [at * size + index for at in kept[: config.episodes // size] for index in range(size)]


def advantages_of(
    config: GrpoConfig, groups: Tensor, charges: Tensor | None, parts: Parts | None, rows: Sequence[int]
) -> Tensor:
    """The advantages (b,) of `rows`, which are whole groups of (G, K).

    Args:
        charges: (G, K), what a KL in the reward costs.
    """
    if not rows:
        return groups.new_zeros(0)
    if parts is None:
        scaled = formulas.group_advantages(groups, kind=config.advantage, charges=charges)
        return scaled.flatten()[list(rows)]
    size = groups.shape[1]
    learned = [row // size for row in rows[::size]]
    return formulas.decoupled_advantages(parts.scores[:, learned], parts.weights).flatten()


def describe_groups(groups: Tensor, silent: Tensor, *, learned: int) -> Metrics:
    """How many groups (G, K) there were, and how many of them said nothing."""
    return {
        "groups": len(groups),
        "equal_groups": int(silent.sum()),
        "group_std": float(groups.std(1).mean()),
        "learned_episodes": learned,
    }


def _added(parts: Sequence[Scores]) -> Scores:
    """The scores of several draws as those of one."""
    return Scores(
        total=tuple(value for part in parts for value in part.total),
        parts={name: tuple(value for part in parts for value in part.parts[name]) for name in parts[0].parts},
        weights=parts[0].weights,
    )


# The gradients of its loss


def gradients(
    learner: GrpoLearner,
    episodes: Episodes,
    targets: Targets,
    rows: Sequence[int],
    old: Tensor | None,
    turn: tuple[int, int],
) -> tuple[Tally, Tensor]:
    """Accumulate the gradients of a minibatch; see `update.Gradient`."""
    config, losses = learner.config, Tally()
    fresh, index = torch.zeros_like(episodes.logprobs), list(rows)
    count, weight = int(episodes.is_real[index].sum()), torch.zeros_like(episodes.logprobs)
    weight[index] = formulas.completion_weights(
        episodes.is_real[index], per=LOSS_PER[config.advantage], longest=config.max_new_tokens
    )
    mine = own_share(learner, episodes.prompt_ids, rows)
    for micro in micro_batches(episodes.prompt_ids, mine, config.micro_batch):
        found, fresh[micro] = policy_gradient(
            learner, episodes, targets, old, rows=micro, weight=weight[micro], count=count
        )
        losses.add(found)
    return losses, fresh


def policy_gradient(
    learner: GrpoLearner,
    episodes: Episodes,
    targets: Targets,
    old: Tensor | None,
    *,
    rows: list[int],
    weight: Tensor,
    count: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Add a micro-batch's part of the policy's gradient; its losses, and its log-probabilities (b, T)."""
    config, is_real = learner.config, episodes.is_real[rows]
    with learner.base.role(POLICY):
        logprobs = response_logprobs(learner, *episodes.part(rows))
        result = formulas.policy_loss(
            logprobs,
            logprobs.detach() if old is None else old[rows],
            targets.advantages[rows].unsqueeze(1).expand_as(logprobs),
            is_real=is_real,
            clip=config.clip,
            clip_high=config.clip_high,
            count=count,
            weight=weight,
            importance=importance(learner, episodes, rows),
        )
        k3 = formulas.kl_estimate(logprobs, targets.ref_logprobs[rows], kind="k3")
        kl_loss = formulas.masked_sum(weight * k3, is_real)
        beta = learner.kl.beta if config.kl_in == "loss" else 0.0
        torch.autograd.backward(result.loss + beta * kl_loss)
    losses = {
        "policy_loss": result.loss.detach(),
        "kl_loss": kl_loss.detach(),
        "clip_fraction": result.clip_fraction,
        "update_kl": result.kl_k3,
        "update_kl_k1": result.kl_k1,
    }
    return losses, logprobs.detach()
