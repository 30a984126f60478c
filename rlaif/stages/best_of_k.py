"""Best of K: sample K completions per prompt, keep those that score best, and fine-tune on them (rejection
sampling; with rounds, RAFT, Dong et al. 2023, 2304.06767).

The bound log K - (K - 1) / K is on the KL of the *selection*. Fine-tuning on what was selected makes another
policy, so its KL to the reference is measured on its own samples, exactly, token by token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch

from rlaif.config.finetune import BestOfKConfig
from rlaif.digest import seed_from, unit_from
from rlaif.errors import DataError
from rlaif.models.cost import Meter
from rlaif.models.finetune import FinetuneStep
from rlaif.models.shared_base import REFERENCE, SharedBase
from rlaif.progress import NoProgress, Progress
from rlaif.results.best_of_k import (
    BestOfKResult,
    Candidate,
    Kept,
    RoundReport,
    StudentReport,
    mean_and_error,
    round_report,
    select,
    tied,
)
from rlaif.results.costs import CurvePoint, TrainingCost, curve_of
from rlaif.results.rows import completion_row
from rlaif.reward.functions import RewardFunction
from rlaif.reward.model import RewardModel, TurnFormat
from rlaif.rl.episodes import EpisodeRow, Episodes, micro_batches, response_states
from rlaif.rl.ppo import score_tokens
from rlaif.rl.rollout import EncodedPrompt, Sampler
from rlaif.stages.finetuning import Log
from rlaif.stages.questions import ask_what_can_be_answered
from rlaif.stages.sft import SftExample, fit_examples, imitation_loss, without_overlong
from rlaif.types import Message, Prompt

__all__ = ["BestOfKResult", "best_of_k"]

ROWS = 64
"""Completions sampled side by side."""

MEASURED = 256
"""Completions that a loss is measured on at most."""

Reward = RewardFunction | RewardModel
Reader = Callable[[Prompt], Sequence[Message]]


def best_of_k(
    prompts: Sequence[Prompt],
    *,
    base: SharedBase,
    reward: Reward,
    config: BestOfKConfig,
    seed: int,
    role: str = "policy",
    student: SharedBase | None = None,
    messages: Reader = lambda prompt: prompt.messages,
    progress: Progress | None = None,
    log: Log = lambda step: None,
) -> BestOfKResult:
    """Make the adapter `role` of `base` imitate the best of its own samples; it is added if the base has
    none.

    Args:
        student: Another base, whose adapter `role` learns from the last round's choice instead.
        messages: What the policy reads of a prompt (its retrieved documents, for one).
        log: Told of every optimiser step.

    Raises:
        DataError: There are no two prompts, too many are too long, or the reward tells no two completions of
            a prompt apart.
        ModelError: Training ran away.
    """
    progress = progress or NoProgress()
    samplers = [_sampler(one, config) for one in (base, student) if one is not None]
    asked, refused, duplicates = _questions(prompts, samplers, messages, config)
    rounds: list[RoundReport] = []
    steps: list[FinetuneStep] = []
    kept: list[Kept] = []
    meter, seconds = Meter(), [0.0]
    bases = [base, *([reward.base] if isinstance(reward, RewardModel) else [])]
    for number in range(config.rounds):
        own = seed_from(seed, "round", number)
        # 1. Sample K completions of each prompt from the policy as it is now, and score them.
        with meter.on(*bases):
            groups = _sampled(
                base, role, samplers[0], asked, reward, config, messages, seed=own, progress=progress
            )
        _check_spread(groups)
        # 2. Keep the best, and learn them.
        kept = [choice for group in groups for choice in select(group, config)]
        learner = student if student is not None and number + 1 == config.rounds else base
        examples, overlong = without_overlong(_examples(kept, learner, base, messages), learner, config)
        measured = sorted(examples, key=lambda example: unit_from(own, "measured", example.id))[:MEASURED]
        before = imitation_loss(
            learner, role if role in learner.roles else REFERENCE, measured, rows=config.micro_batch
        )
        with meter.on(learner):
            steps += fit_examples(
                learner, role, examples, config, seed=seed_from(own, "sft"), progress=progress, log=log
            )
        seconds.append(meter.seconds)
        after = imitation_loss(learner, role, measured, rows=config.micro_batch)
        rounds.append(
            round_report(
                number,
                groups,
                kept,
                learned=len(examples),
                overlong=overlong,
                loss_before=before,
                loss_after=after,
            )
        )
    # 3. Measure what was made.
    made = _measured(
        student or base,
        role,
        [question.prompt for question in asked],
        reward,
        config,
        messages,
        seed=seed,
        start=rounds[0].growth[0].reward,
    )
    tokens = list(accumulate((r.tokens for r in rounds), initial=0))
    cost = TrainingCost(
        tokens=tokens[-1],
        seconds=meter.seconds,
        flops=meter.flops,
        curve=() if student is not None else _curve(tokens, seconds, rounds, made),
    )
    return BestOfKResult(
        role=role,
        rounds=tuple(rounds),
        student=made,
        steps=steps,
        rows=[_row(choice, messages) for choice in kept],
        cost=cost,
        refused=refused,
        duplicates=duplicates,
    )


# Sampling and scoring


def _questions(
    prompts: Sequence[Prompt], samplers: Sequence[Sampler], messages: Reader, config: BestOfKConfig
) -> tuple[list[EncodedPrompt], list[tuple[str, str]], int]:
    """The distinct prompts that all of `samplers` can sample, as the first reads them; the others with the
    reason; and how many ask the same as an earlier one.

    Raises:
        DataError: Too many cannot be, or fewer than two can.
    """
    distinct = list({prompt.fingerprint(): prompt for prompt in reversed(prompts)}.values())[::-1]
    asked, refused = ask_what_can_be_answered(distinct, samplers, messages, max_refused=config.max_refused)
    if len(asked) < 2:
        count = "one prompt is" if asked else "no prompts are"
        raise DataError(
            f"{count} there to sample: the policy would learn nothing that holds for others",
            remedy="give more prompts; look at `prompts`, `split` and `limit`",
        )
    return asked, refused, len(prompts) - len(distinct)


def _sampler(base: SharedBase, config: BestOfKConfig) -> Sampler:
    return Sampler(base, max_new_tokens=config.max_new_tokens, temperature=config.temperature, rows=ROWS)


def _sampled(
    base: SharedBase,
    role: str,
    sampler: Sampler,
    asked: Sequence[EncodedPrompt],
    reward: Reward,
    config: BestOfKConfig,
    messages: Reader,
    *,
    seed: int,
    progress: Progress,
) -> list[list[Candidate]]:
    """K scored completions of each prompt, from the role if it is there, else from the reference."""
    progress.begin(f"sampling {config.k} × {len(asked)} completions", len(asked) * config.k)
    groups: list[list[Candidate]] = []
    for questions in _pieces(asked, max(1, ROWS // config.k)):
        with base.role(role if role in base.roles else REFERENCE):
            episodes = sampler.sample(questions, samples=config.k, seed=seed)
        found = _candidates(episodes, reward, base, messages, penalty=config.missing_eos_penalty)
        groups += [found[at : at + config.k] for at in range(0, len(found), config.k)]
        progress.advance(len(found))
    return groups


def _candidates(
    episodes: Episodes, reward: Reward, base: SharedBase, messages: Reader, *, penalty: float
) -> list[Candidate]:
    lengths, tokens = episodes.is_real.sum(1).tolist(), episodes.tokens.tolist()
    ids = [tuple(row[:length]) for row, length in zip(tokens, lengths, strict=True)]
    rewards = _rewards(reward, episodes.rows, ids, base, messages)
    return [
        Candidate(row=row, tokens=own, reward=value, score=value - penalty * (not ended), logprob=logprob)
        for row, own, value, ended, logprob in zip(
            episodes.rows,
            ids,
            rewards,
            episodes.has_eos.tolist(),
            episodes.logprobs.sum(1).tolist(),
            strict=True,
        )
    ]


def _rewards(
    reward: Reward,
    rows: Sequence[EpisodeRow],
    ids: Sequence[tuple[int, ...]],
    base: SharedBase,
    messages: Reader,
) -> Sequence[float]:
    """One finite number a completion. A reward model on this base reads the tokens as sampled, one on another
    base the text."""
    if not isinstance(reward, RewardModel):
        values: Sequence[float] = reward([row.prompt for row in rows], [row.completion for row in rows]).total
    elif reward.base is base:
        values = reward.score_tokens(
            [(row.prompt_ids, own) for row, own in zip(rows, ids, strict=True)]
        ).tolist()
    else:
        values = reward.score(
            [(*messages(row.prompt), Message("assistant", row.completion.text)) for row in rows]
        )
    for value, row in zip(values, rows, strict=True):
        if not math.isfinite(value):
            remedy = "it must be finite for every text, the empty one too"
            raise DataError(f"the reward is {value}", where=f"completion {row.completion.id}", remedy=remedy)
    return values


def _check_spread(groups: Sequence[Sequence[Candidate]]) -> None:
    """Refuse a reward that prefers none of a prompt's completions, at every prompt."""
    if all(tied(group) for group in groups):
        raise DataError(
            f"the completions of each of the {len(groups)} prompts all score the same: there is nothing to "
            "choose",
            remedy="look at the reward and at the completions; at a low temperature they may also all be one "
            "text",
        )


# Learning


def _examples(
    kept: Sequence[Kept], learner: SharedBase, base: SharedBase, messages: Reader
) -> list[SftExample]:
    """What was kept, in the learner's tokens: those that were sampled if it sampled, else the text's. A
    completion that was cut is not closed: the learner would be taught to stop there."""
    if learner is base:
        return [
            SftExample(
                id=c.row.completion.id,
                prompt=c.row.prompt_ids,
                completion=c.tokens,
                weight=weight,
                group=c.row.prompt.fingerprint(),
            )
            for c, weight in kept
        ]
    form = TurnFormat(learner)
    encoded = form.encode(
        [(*messages(c.row.prompt), Message("assistant", c.row.completion.text)) for c, _ in kept]
    )
    examples = [
        SftExample(
            id=c.row.completion.id,
            prompt=tuple(prompt),
            weight=weight,
            group=c.row.prompt.fingerprint(),
            completion=tuple(ids)
            if c.row.completion.finish == "stop"
            else tuple(ids)[: len(ids) - len(form.close)],
        )
        for (c, weight), (prompt, ids) in zip(kept, encoded, strict=True)
    ]
    return [example for example in examples if example.completion]


def _row(choice: Kept, messages: Reader) -> dict[str, Any]:
    row = choice.candidate.row
    prompt = [message.as_dict() for message in messages(row.prompt)]
    return {
        **completion_row(row.completion, row.prompt),
        "prompt": prompt,
        "reward": choice.candidate.reward,
        "weight": choice.weight,
    }


# Reports


def _curve(
    tokens: Sequence[float], seconds: Sequence[float], rounds: Sequence[RoundReport], made: StudentReport
) -> tuple[CurvePoint, ...]:
    """The mean reward of the start policy and of what each round made, after so many tokens and seconds: over
    the K samples that the next round draws, after the last over the policy's own samples."""
    rewards = [*(r.growth[0].reward for r in rounds), made.reward]
    return curve_of(CurvePoint(*point) for point in zip(tokens, seconds, rewards, strict=True))


@torch.no_grad()
def _measured(
    base: SharedBase,
    role: str,
    prompts: Sequence[Prompt],
    reward: Reward,
    config: BestOfKConfig,
    messages: Reader,
    *,
    seed: int,
    start: float,
) -> StudentReport:
    """Sample the new policy once for some prompts: its reward, and its KL to its reference from the logits of
    both."""
    sampler = _sampler(base, config)
    drawn = sorted(prompts, key=lambda prompt: unit_from(seed, "student", prompt.fingerprint()))[
        : config.measure_prompts
    ]
    questions = [sampler.question(prompt, messages(prompt)) for prompt in drawn]
    rewards: list[float] = []
    kl: list[float] = []
    lengths: list[int] = []
    ended = 0
    for piece in _pieces(questions, ROWS):
        with base.role(role):
            episodes = sampler.sample(piece, samples=1, seed=seed_from(seed, "student"))
        kl += _kl(base, episodes, config)
        lengths += episodes.is_real.sum(1).tolist()
        ended += int(episodes.has_eos.sum())
        rewards += [c.reward for c in _candidates(episodes, reward, base, messages, penalty=0.0)]
    (mean, reward_error), (mean_kl, kl_error) = mean_and_error(rewards), mean_and_error(kl)
    return StudentReport(
        prompts=len(questions),
        reward=mean,
        reward_error=reward_error,
        start_reward=start,
        kl=mean_kl,
        kl_error=kl_error,
        kl_token=sum(kl) / sum(lengths),
        length=sum(lengths) / len(lengths),
        ended=ended / len(lengths),
    )


def _kl(base: SharedBase, episodes: Episodes, config: BestOfKConfig) -> list[float]:
    """Exact KL to the reference, summed over each completion."""
    states = torch.zeros_like(episodes.states)
    with base.role(REFERENCE):
        for rows in micro_batches(episodes.prompt_ids, range(len(episodes)), config.micro_batch):
            states[rows] = response_states(base, *episodes.part(rows))
        scored = score_tokens(base, episodes, states, temperature=config.temperature)
    found: list[float] = scored.kl.sum(1).tolist()
    return found


def _pieces(questions: Sequence[EncodedPrompt], size: int) -> Iterator[Sequence[EncodedPrompt]]:
    return (questions[at : at + size] for at in range(0, len(questions), size))
