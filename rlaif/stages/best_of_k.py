"""Best of K: sample K completions per prompt, keep those that score best, and fine-tune on them (rejection
sampling; with rounds, RAFT, Dong et al. 2023, 2304.06767).

The bound log K - (K - 1) / K is on the KL of the *selection*. Fine-tuning on what was selected makes another
policy, so its KL to the reference is measured on its own samples, exactly, token by token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlaif.config.finetune import BestOfKConfig
from rlaif.digest import seed_from, unit_from
from rlaif.errors import DataError
from rlaif.models.cost import Meter
from rlaif.models.finetune import FinetuneStep
from rlaif.models.shared_base import REFERENCE, LoraSettings, SharedBase
from rlaif.models.start import Start, begin_adapter
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
from rlaif.results.rows import columns_for_judges, completion_row
from rlaif.reward.functions import RewardFunction
from rlaif.reward.model import RewardModel, TurnFormat
from rlaif.rl.episodes import EpisodeRow, Episodes, micro_batches, response_states, rollout
from rlaif.rl.rollout import EncodedPrompt, Sampler
from rlaif.rl.step import Agreement, Metrics, score_tokens
from rlaif.stages.finetuning import Log, lora_of
from rlaif.stages.questions import ask_what_can_be_answered
from rlaif.stages.rollouts import served_note, served_sampler
from rlaif.stages.sft import SftExample, fit_examples, imitation_loss, without_overlong
from rlaif.types import Message, Prompt

__all__ = ["BestOfKResult", "best_of_k"]

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
    start: Start | None = None,
    messages: Reader = lambda prompt: prompt.messages,
    progress: Progress | None = None,
    log: Log = lambda step: None,
    folder: Path | None = None,
) -> BestOfKResult:
    """Make the adapter `role` of `base` imitate the best of its own samples; it is added if the base has
    none.

    Args:
        student: Another base, whose adapter `role` learns from the last round's choice instead.
        start: The adapter that samples and learns; the base samples, and a new one learns, when left out.
        messages: What the policy reads of a prompt (its retrieved documents, for one).
        log: Told of every optimiser step.
        folder: Of the run; adapters are written there for the servers of `config.rollout`.

    Raises:
        DataError: There are no two prompts, too many are too long, or the reward tells no two completions of
            a prompt apart.
        ModelError: Training ran away; or a server cannot be used, or holds another policy.
    """
    reference = REFERENCE
    if start is not None:
        reference = begin_adapter(base, role, lora_of(config), seed=seed, start=start)
    with _served(base, config, folder) as served:
        work = _Work(base, role, reward, config, messages, progress or NoProgress(), log, served, reference)
        return _best_of_k(prompts, work, student, seed=seed)


def _best_of_k(
    prompts: Sequence[Prompt], work: _Work, student: SharedBase | None, *, seed: int
) -> BestOfKResult:
    base, config = work.base, work.config
    samplers = [work.sampler(one) for one in (base, student) if one is not None]
    asked, refused, duplicates = _questions(prompts, samplers, work)
    rounds: list[RoundReport] = []
    steps: list[FinetuneStep] = []
    kept: list[Kept] = []
    meter, seconds = Meter(), [0.0]
    compared: list[Metrics] = []
    for number in range(config.rounds):
        own = seed_from(seed, "round", number)
        # 1. Sample K completions of each prompt from the policy as it is now, and score them.
        with meter.on(base, *work.scorers()):
            groups = _sampled(work, samplers[0], asked, compared, seed=own)
        _check_spread(groups)
        # 2. Keep the best, and learn them.
        kept = [choice for group in groups for choice in select(group, config)]
        learner = student if student is not None and number + 1 == config.rounds else base
        learned = _learn(work, learner, kept, meter, seed=own)
        steps += learned.steps
        seconds.append(meter.seconds)
        rounds.append(
            round_report(
                number,
                groups,
                kept,
                learned=learned.examples,
                overlong=learned.overlong,
                loss_before=learned.loss_before,
                loss_after=learned.loss_after,
            )
        )
    # 3. Measure what was made.
    made = _measured(
        work,
        student or base,
        [question.prompt for question in asked],
        compared,
        seed=seed,
        start=rounds[0].growth[0].reward,
    )
    tokens = list(accumulate((r.tokens for r in rounds), initial=0))
    cost = TrainingCost(
        tokens=tokens[-1],
        seconds=meter.seconds,
        flops=meter.flops_of_all(),
        curve=() if student is not None else _curve(tokens, seconds, rounds, made),
    )
    return BestOfKResult(
        role=work.role,
        rounds=tuple(rounds),
        student=made,
        steps=steps,
        rows=[_row(choice, work.messages, columns_for_judges(prompts)) for choice in kept],
        cost=cost,
        refused=refused,
        duplicates=duplicates,
        notes=_notes(config, compared),
    )


@dataclass(frozen=True)
class _Work:
    """What stays the same in all rounds; the attributes are those of `best_of_k`, and the sampler of `base`
    on servers, where there are some."""

    base: SharedBase
    role: str
    reward: Reward
    config: BestOfKConfig
    messages: Reader
    progress: Progress
    log: Log
    served: Sampler | None = None
    reference: str = REFERENCE

    def sampler(self, base: SharedBase) -> Sampler:
        """Samples from a base as the settings say."""
        config = self.config
        if self.served is not None and base is self.base:
            return self.served
        return Sampler(base, max_new_tokens=config.max_new_tokens, temperature=config.temperature)

    def scorers(self) -> list[SharedBase]:
        """The bases that the reward reads with."""
        return [self.reward.base] if isinstance(self.reward, RewardModel) else []

    def conversation(self, row: EpisodeRow) -> tuple[Message, ...]:
        """What the policy read, and its completion."""
        return (*self.messages(row.prompt), Message("assistant", row.completion.text))


# Sampling and scoring


@contextmanager
def _served(base: SharedBase, config: BestOfKConfig, folder: Path | None) -> Iterator[Sampler | None]:
    """The sampler on the servers that the settings name, for as long as the block."""
    if config.rollout is None:
        yield None
        return
    with served_sampler(
        base,
        config.rollout,
        folder,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        lora=LoraSettings(rank=config.lora_rank, alpha=config.lora_alpha),
    ) as sampler:
        yield sampler


def _questions(
    prompts: Sequence[Prompt], samplers: Sequence[Sampler], work: _Work
) -> tuple[list[EncodedPrompt], list[tuple[str, str]], int]:
    """The distinct prompts that all of `samplers` can sample, as the first reads them; the others with the
    reason; and how many ask the same as an earlier one.

    Raises:
        DataError: Too many cannot be, or fewer than two can.
    """
    distinct = list({prompt.fingerprint(): prompt for prompt in reversed(prompts)}.values())[::-1]
    asked, refused = ask_what_can_be_answered(
        distinct, samplers, work.messages, max_refused=work.config.max_refused
    )
    if len(asked) < 2:
        count = "one prompt is" if asked else "no prompts are"
        raise DataError(
            f"{count} there to sample: the policy would learn nothing that generalises",
            remedy="give more prompts; look at `prompts`, `split` and `limit`",
        )
    return asked, refused, len(prompts) - len(distinct)


def _sampled(
    work: _Work, sampler: Sampler, asked: Sequence[EncodedPrompt], compared: list[Metrics], *, seed: int
) -> list[list[Candidate]]:
    """K scored completions of each prompt, from the role if it is there, else from the reference.

    Args:
        compared: What is found of the servers that sampled is added to it.
    """
    base, config, agreement = work.base, work.config, Agreement(work.config.rollout)
    work.progress.begin(f"sampling {config.k} × {len(asked)} completions", len(asked) * config.k)
    groups: list[list[Candidate]] = []
    for questions in _pieces(asked, max(1, sampler.at_once // config.k)):
        with base.role(work.role if work.role in base.roles else REFERENCE):
            drawn = sampler.sample(questions, samples=config.k, seed=seed)
        episodes = rollout(drawn, base.ranks).episodes
        agreement.add(episodes)
        found = _candidates(work, base, episodes, penalty=config.missing_eos_penalty)
        groups += [found[at : at + config.k] for at in range(0, len(found), config.k)]
        work.progress.advance(len(found))
    compared.append(agreement.metrics())
    return groups


def _candidates(work: _Work, base: SharedBase, episodes: Episodes, *, penalty: float) -> list[Candidate]:
    """The completions that `base` sampled, with their rewards; one that did not end scores `penalty` less."""
    lengths, tokens = episodes.is_real.sum(1).tolist(), episodes.tokens.tolist()
    ids = [tuple(row[:length]) for row, length in zip(tokens, lengths, strict=True)]
    rewards = _rewards(work, base, episodes.rows, ids)
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
    work: _Work, base: SharedBase, rows: Sequence[EpisodeRow], ids: Sequence[tuple[int, ...]]
) -> Sequence[float]:
    """One finite number per completion. A reward model on `base` reads the tokens as sampled, one on another
    base the text."""
    reward = work.reward
    if not isinstance(reward, RewardModel):
        values: Sequence[float] = reward([row.prompt for row in rows], [row.completion for row in rows]).total
    elif reward.base is base:
        sampled = [(row.prompt_ids, own) for row, own in zip(rows, ids, strict=True)]
        values = reward.score_tokens(sampled).tolist()
    else:
        values = reward.score([work.conversation(row) for row in rows])
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


class _Learned(NamedTuple):
    """What a round learned from how many examples, and the loss on some of them before and after."""

    steps: Sequence[FinetuneStep]
    examples: int
    overlong: int
    loss_before: float
    loss_after: float


def _learn(work: _Work, learner: SharedBase, kept: Sequence[Kept], meter: Meter, *, seed: int) -> _Learned:
    """Fine-tune the learner's role on what was kept; only the fine-tuning itself counts as cost."""
    role, config = work.role, work.config
    examples, overlong = without_overlong(_examples(work, learner, kept), learner, config)
    measured = sorted(examples, key=lambda example: unit_from(seed, "measured", example.id))[:MEASURED]
    start = role if role in learner.roles else REFERENCE
    before = imitation_loss(learner, start, measured, rows=config.micro_batch)
    with meter.on(learner):
        steps = fit_examples(
            learner, role, examples, config, seed=seed_from(seed, "sft"), progress=work.progress, log=work.log
        )
    after = imitation_loss(learner, role, measured, rows=config.micro_batch)
    return _Learned(steps, len(examples), overlong, loss_before=before, loss_after=after)


def _examples(work: _Work, learner: SharedBase, kept: Sequence[Kept]) -> list[SftExample]:
    """What was kept, in the learner's tokens: those that were sampled if it sampled, else the text's. A
    completion that was cut is not closed: the learner would be taught to stop there."""
    if learner is work.base:
        tokens = [(choice.candidate.row.prompt_ids, choice.candidate.tokens) for choice in kept]
    else:
        form = TurnFormat(learner)
        encoded = form.encode([work.conversation(choice.candidate.row) for choice in kept])
        finished = [choice.candidate.row.completion.finish == "stop" for choice in kept]
        tokens = [
            (tuple(prompt), tuple(ids) if done else tuple(ids)[: len(ids) - len(form.close)])
            for (prompt, ids), done in zip(encoded, finished, strict=True)
        ]
    return [
        SftExample(
            id=choice.candidate.row.completion.id,
            prompt=prompt,
            completion=completion,
            weight=choice.weight,
            group=choice.candidate.row.prompt.fingerprint(),
        )
        for choice, (prompt, completion) in zip(kept, tokens, strict=True)
        if completion or learner is work.base
    ]


def _row(choice: Kept, messages: Reader, columns: Set[str]) -> dict[str, Any]:
    row = choice.candidate.row
    prompt = [message.as_dict() for message in messages(row.prompt)]
    return {
        **completion_row(row.completion, row.prompt, columns),
        "prompt": prompt,
        "reward": choice.candidate.reward,
        "weight": choice.weight,
    }


# Reports


def _notes(config: BestOfKConfig, compared: Sequence[Metrics]) -> tuple[str, ...]:
    """What the reader of the report should know: of servers, with the largest difference that was found."""
    if config.rollout is None:
        return ()
    worst = max(compared, key=lambda found: float(found.get("rollout/difference") or 0.0))
    return (served_note(config.rollout, worst),)


def _curve(
    tokens: Sequence[float], seconds: Sequence[float], rounds: Sequence[RoundReport], made: StudentReport
) -> tuple[CurvePoint, ...]:
    """The mean reward of the start policy and of what each round made, after so many tokens and seconds: over
    the K samples that the next round draws, after the last over the policy's own samples."""
    rewards = [*(r.growth[0].reward for r in rounds), made.reward]
    return curve_of(CurvePoint(*point) for point in zip(tokens, seconds, rewards, strict=True))


@torch.no_grad()
def _measured(
    work: _Work,
    base: SharedBase,
    prompts: Sequence[Prompt],
    compared: list[Metrics],
    *,
    seed: int,
    start: float,
) -> StudentReport:
    """Sample the new policy once for some prompts: its reward, and its KL to its reference from the logits of
    both. What is found of the servers that sampled is added to `compared`."""
    role, config = work.role, work.config
    sampler, agreement = work.sampler(base), Agreement(config.rollout)
    drawn = sorted(prompts, key=lambda prompt: unit_from(seed, "student", prompt.fingerprint()))[
        : config.measure_prompts
    ]
    questions = [sampler.question(prompt, work.messages(prompt)) for prompt in drawn]
    rewards: list[float] = []
    kl: list[float] = []
    lengths: list[int] = []
    ended = 0
    for piece in _pieces(questions, sampler.at_once):
        with base.role(role):
            own = sampler.sample(piece, samples=1, seed=seed_from(seed, "student"))
        sampled = rollout(own, base.ranks)
        episodes = sampled.episodes
        agreement.add(episodes)
        kl += sampled.whole(_kl(work, base, sampled.own)).tolist()
        lengths += episodes.is_real.sum(1).tolist()
        ended += int(episodes.has_eos.sum())
        rewards += [c.reward for c in _candidates(work, base, episodes, penalty=0.0)]
    compared.append(agreement.metrics())
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


def _kl(work: _Work, base: SharedBase, episodes: Episodes) -> Tensor:
    """Exact KL to the reference, summed over each completion: (B,)."""
    states, config = torch.zeros_like(episodes.states), work.config
    with base.role(work.reference):
        for rows in micro_batches(episodes.prompt_ids, range(len(episodes)), config.micro_batch):
            states[rows] = response_states(base, *episodes.part(rows))
        scored = score_tokens(base, episodes, states, temperature=config.temperature)
    return scored.kl.sum(1)


def _pieces(questions: Sequence[EncodedPrompt], size: int) -> Iterator[Sequence[EncodedPrompt]]:
    return (questions[at : at + size] for at in range(0, len(questions), size))
