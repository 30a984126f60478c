"""Evaluate policies on held-out prompts: what they say, how it scores, how far they moved, and what sampling
it cost.

All policies answer the same prompts with the same random numbers (`Sampler`: a draw depends on seed, prompt
and number only), so that luck is shared and cancels in differences. Intervals are bootstrapped over prompts.
Whether the prompts were held out is for the caller to check, who knows the training prompts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from rlaif import metrics as shipped
from rlaif.config.evaluation import EvaluateConfig
from rlaif.errors import ConfigError, DataError
from rlaif.metrics import Metric, distinct_share, load_metric, measure
from rlaif.models.cost import forward_flops, peak_memory
from rlaif.models.shared_base import REFERENCE, LoraSettings, SharedBase
from rlaif.progress import NoProgress, Progress
from rlaif.results.evaluation import (
    OWN_MEASURES,
    REWARD,
    RUBRIC,
    WIN,
    CompletionRows,
    Cost,
    Evaluation,
    PolicyResult,
    WinRate,
    estimates,
)
from rlaif.reward.functions import RewardFunction
from rlaif.rl.episodes import Episodes, micro_batches, response_states, rollout
from rlaif.rl.math import exact_kl
from rlaif.rl.rollout import Sampler
from rlaif.rl.step import Agreement
from rlaif.rl.update import split_by_logits
from rlaif.stages.questions import ask_what_can_be_answered
from rlaif.stages.rollouts import served_note, served_sampler, try_adapters
from rlaif.stages.win_rate import Judging, PolicyPair, judge_duels, judge_note, win_rate
from rlaif.types import Completion, Message, Prompt

__all__ = ["Judging", "Metrics", "PolicySource", "configured_metrics", "evaluate", "kl_to_reference"]

MICRO_BATCH = 16
"""Completions in one forward pass of the KL."""

PER_TEXT: Mapping[str, Metric] = {
    "words": shipped.length_words,
    "repetition": shipped.repetition,
    "refusal": shipped.refusal,
    "boilerplate": shipped.boilerplate,
}


class PolicySource(NamedTuple):
    """A policy: a role of a resident base."""

    base: SharedBase
    role: str = REFERENCE


class Metrics(NamedTuple):
    """Metrics by name, and which of them is the gold one."""

    functions: Mapping[str, Metric]
    gold: str | None = None


@dataclass(frozen=True)
class _Work:
    """What is the same for every policy; a sampler by the `id` of its base."""

    prompts: Sequence[Prompt]
    config: EvaluateConfig
    reference: PolicySource
    _: KW_ONLY
    seed: int
    messages: Callable[[Prompt], Sequence[Message]]
    progress: Progress
    samplers: Mapping[int, Sampler]


@dataclass(frozen=True)
class _Sampled:
    """One policy's completions, prompt by prompt, and what was measured while it ran."""

    prompts: list[Prompt]
    completions: list[Completion]
    kl: list[float] | None
    cost: Cost
    notes: tuple[str, ...] = ()


def configured_metrics(config: EvaluateConfig) -> Metrics:
    """The metrics that the settings name, by the name of their function.

    Raises:
        ConfigError: One cannot be imported.
    """
    paths = [*([config.gold] if config.gold else []), *config.metrics]
    functions = {path.partition(":")[2]: load_metric(path) for path in paths}
    return Metrics(functions=functions, gold=config.gold.partition(":")[2] if config.gold else None)


def evaluate(
    prompts: Sequence[Prompt],
    policies: Mapping[str, PolicySource],
    *,
    start: str,
    config: EvaluateConfig,
    seed: int,
    metrics: Metrics | None = None,
    reward: RewardFunction | None = None,
    rubric: RewardFunction | None = None,
    judge: Judging | None = None,
    reference: PolicySource | None = None,
    messages: Callable[[Prompt], Sequence[Message]] = lambda prompt: prompt.messages,
    resamples: int = 2000,
    progress: Progress | None = None,
    left_out: Callable[[Sequence[tuple[str, str]]], None] = lambda refused: None,
    folder: Path | None = None,
) -> Evaluation:
    """Sample `config.samples` completions per prompt of every policy and measure them.

    Args:
        start: Which of `policies` the others came from; they are judged against it.
        metrics: Those that the settings name, when left out.
        reward: Scores completions: the reward model.
        rubric: Scores completions by the rubric of their prompt.
        judge: Says which of two completions is better.
        reference: What the KL is measured to; the start policy, when left out.
        messages: What a policy reads of a prompt.
        left_out: Told the id of each prompt that one of the policies cannot answer, with the reason; they are
            left out for all.
        folder: Of the run; adapters are written there for the servers of `config.rollout`.

    Raises:
        ConfigError: `start` is none of the policies, or a metric has a taken name.
        DataError: There are fewer than two prompts, one is there twice, too many cannot be answered, or a
            metric gave no number.
        ModelError: A server cannot be used, or holds another policy.
    """
    found = metrics if metrics is not None else configured_metrics(config)
    if start not in policies:
        raise ConfigError(
            f"the start policy {start!r} is not among {', '.join(policies)}",
            remedy="name one of the policies",
        )
    _check(prompts, found)
    scorers = {REWARD: reward, RUBRIC: rubric}
    with _samplers(policies, reference or policies[start], config, start=start, folder=folder) as samplers:
        _, refused = ask_what_can_be_answered(
            prompts, list(samplers.values()), messages, max_refused=config.max_refused
        )
        left_out(refused)
        lost = {id for id, _ in refused}
        work = _Work(
            [prompt for prompt in prompts if prompt.id not in lost],
            config,
            reference or policies[start],
            seed=seed,
            messages=messages,
            progress=progress or NoProgress(),
            samplers=samplers,
        )
        results, notes = _measured(
            work, policies, start=start, metrics=found, scorers=scorers, judge=judge, resamples=resamples
        )
    if lost:
        notes = [f"{len(lost)} prompts cannot be answered by every policy and are left out for all", *notes]
    return Evaluation(
        start=start,
        gold=found.gold,
        prompts=len(work.prompts),
        samples=config.samples,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=seed,
        policies=tuple(results),
        notes=tuple(notes),
    )


def _measured(
    work: _Work,
    policies: Mapping[str, PolicySource],
    *,
    start: str,
    metrics: Metrics,
    scorers: Mapping[str, RewardFunction | None],
    judge: Judging | None,
    resamples: int,
) -> tuple[list[PolicyResult], list[str]]:
    """What was found of each policy, the start policy first, and notes."""
    results, first, notes = list[PolicyResult](), None, list[str]()
    for name in sorted(policies, key=lambda name: name != start):
        source = policies[name]
        # 1. Sample, and measure the KL to the reference on the same tokens.
        sampled = _sample(work, source, name)
        notes += [f"{name}: {note}" for note in sampled.notes]
        if sampled.kl is None:
            notes.append(
                f"{name} has another tokenizer than the reference, so its KL has no meaning and is left out"
            )
        # 2. Measure every completion.
        rows = _rows(sampled, metrics.functions, scorers)
        # 3. Judge against the start policy's completions.
        win, first = None, first or sampled
        if judge is not None:
            rows, win = _judged(work, rows, sampled, first, judge, resamples=resamples)
            notes += judge_note(name, win) if win else []
        results.append(
            PolicyResult(
                name=name,
                model=f"{source.base.name} ({source.role})",
                rows=rows,
                win=win,
                cost=sampled.cost,
                estimates=estimates(rows, resamples=resamples, seed=work.seed),
            )
        )
    return results, notes


def _judged(
    work: _Work, rows: CompletionRows, sampled: _Sampled, first: _Sampled, judge: Judging, *, resamples: int
) -> tuple[CompletionRows, WinRate | None]:
    """The rows with the judge's measure, and the win rate against `first`, which has none against itself."""
    duels = [
        PolicyPair(*row) for row in zip(sampled.prompts, sampled.completions, first.completions, strict=True)
    ]
    outcomes = judge_duels(duels, judge, limit=work.config.judged)
    rows = replace(rows, measures={**rows.measures, WIN: outcomes.values})
    if sampled is first:
        return rows, None
    return rows, win_rate(duels, outcomes, resamples=resamples, seed=work.seed)


# 1. Sampling


@contextmanager
def _samplers(
    policies: Mapping[str, PolicySource],
    reference: PolicySource,
    config: EvaluateConfig,
    *,
    start: str,
    folder: Path | None,
) -> Iterator[dict[int, Sampler]]:
    """A sampler of each base; that of the start policy's on servers, where the settings name some."""
    served, settings = policies[start].base, config.rollout
    found = {
        id(base): Sampler(
            base, max_new_tokens=config.max_new_tokens, temperature=config.temperature, rows=config.rows
        )
        for base, _ in (*policies.values(), reference)
    }
    if settings is None:
        yield found
        return
    roles = {name: role for name, (base, role) in policies.items() if base is served}
    with served_sampler(
        served,
        settings,
        folder,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        lora=LoraSettings(rank=max(map(served.rank, roles.values())) or 1),
    ) as sampler:
        try_adapters(sampler, roles)
        yield {**found, id(served): sampler}


def _sample(work: _Work, source: PolicySource, name: str) -> _Sampled:
    config, prompts = work.config, work.prompts
    sampler, agreement = work.samplers[id(source.base)], Agreement(config.rollout)
    questions = [sampler.question(prompt, work.messages(prompt)) for prompt in prompts]
    measurable = _one_vocabulary(source, work.reference)
    work.progress.begin(f"sampling {config.samples} × {len(prompts)} completions from {name}", len(prompts))
    found: list[Completion] = []
    kl: list[float] = []
    seconds, step = 0.0, max(1, sampler.at_once // config.samples)
    for at in range(0, len(questions), step):  # in parts, since a rollout holds the states of all its tokens
        before = time.perf_counter()
        with source.base.role(source.role):
            drawn = sampler.sample(questions[at : at + step], samples=config.samples, seed=work.seed)
        sampled = rollout(drawn, source.base.ranks)
        seconds += time.perf_counter() - before
        agreement.add(sampled.episodes)
        found += [replace(row.completion, model=name) for row in sampled.episodes.rows]
        if measurable:
            own = kl_to_reference(source, work.reference, sampled.own, temperature=config.temperature)
            kl += sampled.whole(torch.tensor(own, dtype=torch.float64)).tolist()
        work.progress.advance(len(questions[at : at + step]))
    generated = sum(completion.tokens or 0 for completion in found)
    read = sum(len(question.ids) for question in questions) * math.ceil(config.samples / config.rows)
    cost = Cost(
        tokens=generated,
        prompt_tokens=read,
        seconds=seconds,
        flops=forward_flops(source.base, source.role, tokens=read + generated, logits=generated),
        peak_bytes=peak_memory(source.base.device),
    )
    asked = [prompt for prompt in prompts for _ in range(config.samples)]
    notes = _served_notes(config, sampler, agreement)
    return _Sampled(prompts=asked, completions=found, kl=kl if measurable else None, cost=cost, notes=notes)


def _served_notes(config: EvaluateConfig, sampler: Sampler, agreement: Agreement) -> tuple[str, ...]:
    """Where the policy was sampled, if servers are named.

    Raises:
        ModelError: The servers hold another policy.
    """
    if config.rollout is None:
        return ()
    compared = agreement.metrics()
    if not compared:
        return ("sampled in this process, since it has another base than the servers",)
    cost = "seconds are those of the servers and of the pass that checks them, memory is of this process"
    return (f"{served_note(config.rollout, compared)}; {cost}",)


@torch.no_grad()
def kl_to_reference(
    source: PolicySource, reference: PolicySource, episodes: Episodes, *, temperature: float
) -> list[float]:
    """KL(policy ‖ reference) of each completion in nats: the exact KL of the next-token distributions,
    softmax(logits / temperature), summed over the completion's tokens. Its mean over completions estimates
    the KL of the whole distributions.

    Both sides' states come from the same kind of pass, so that rounding does not look like distance.
    """
    if source == reference:
        return [0.0] * len(episodes)
    per_token = torch.zeros(episodes.is_real.shape, device=episodes.tokens.device)
    for rows in micro_batches(episodes.prompt_ids, range(len(episodes)), MICRO_BATCH):
        part = episodes.part(rows)
        real = part[2]
        sides = []
        for base, role in (source, reference):
            with base.role(role):
                sides.append(split_by_logits(base, response_states(base, *part)[real]))
        pieces = [
            exact_kl(_logits(source, mine), _logits(reference, theirs), temperature=temperature).squeeze(0)
            for mine, theirs in zip(*sides, strict=True)
        ]
        per_token[rows] = torch.zeros(real.shape, device=real.device).masked_scatter(
            real, torch.cat(pieces).float()
        )
    return [float(x) for x in per_token.double().sum(1).tolist()]


def _logits(source: PolicySource, states: torch.Tensor) -> torch.Tensor:
    """(n, H) -> (1, n, V)."""
    with source.base.role(source.role):
        return source.base.logits_at(states).unsqueeze(0)


# 2. Measures of one completion


def _rows(
    sampled: _Sampled, metrics: Mapping[str, Metric], scorers: Mapping[str, RewardFunction | None]
) -> CompletionRows:
    pairs = list(zip(sampled.prompts, sampled.completions, strict=True))
    columns: dict[str, tuple[float | None, ...]] = {
        name: tuple(measure(name, metric, prompt, completion) for prompt, completion in pairs)
        for name, metric in metrics.items()
    }
    for name, scorer in scorers.items():
        if scorer is not None:
            columns[name] = scorer(sampled.prompts, sampled.completions).total
    if sampled.kl is not None:
        columns["kl"] = tuple(sampled.kl)
    columns["tokens"] = tuple(float(completion.tokens or 0) for completion in sampled.completions)
    columns["ended"] = tuple(float(completion.finish == "stop") for completion in sampled.completions)
    columns |= {
        name: tuple(metric(prompt, completion) for prompt, completion in pairs)
        for name, metric in PER_TEXT.items()
    }
    columns |= {f"distinct_{n}": _distinct(sampled, n) for n in (1, 2)}
    return CompletionRows(
        prompts=tuple(prompt.id for prompt in sampled.prompts),
        texts=tuple(completion.text for completion in sampled.completions),
        measures=columns,
    )


def _distinct(sampled: _Sampled, n: int) -> tuple[float, ...]:
    """Different n-grams over all, of a prompt's completions together: it falls when they all come to say the
    same."""
    texts: dict[str, list[str]] = {}
    for completion in sampled.completions:
        texts.setdefault(completion.prompt_id, []).append(completion.text)
    shares = {prompt: distinct_share(each, n) for prompt, each in texts.items()}
    return tuple(shares[completion.prompt_id] for completion in sampled.completions)


# Checks


def _check(prompts: Sequence[Prompt], metrics: Metrics) -> None:
    if len(prompts) < 2:
        raise DataError(
            f"{len(prompts)} prompts cannot say how sure a figure is",
            remedy="evaluate on at least two, better on fifty",
        )
    for values, what in (
        ([prompt.id for prompt in prompts], "id"),
        ([prompt.fingerprint() for prompt in prompts], "text"),
    ):
        if len(set(values)) < len(values):
            twice = next(
                prompt.id for prompt, value in zip(prompts, values, strict=True) if values.count(value) > 1
            )
            raise DataError(
                f"two prompts have the same {what}", where=f"prompt {twice}", remedy="give each prompt once"
            )
    if taken := sorted(set(metrics.functions) & set(OWN_MEASURES)):
        raise ConfigError(
            f"{taken[0]} is a measure of every evaluation, so no metric can have this name",
            remedy="leave it out, or rename it",
        )
    if metrics.gold is not None and metrics.gold not in metrics.functions:
        raise ConfigError(
            f"the gold metric {metrics.gold!r} is not given",
            remedy=f"name one of {', '.join(metrics.functions)}",
        )
    empty = Completion(
        id=f"{prompts[0].id}/empty", prompt_id=prompts[0].id, index=0, text="", finish="given", model="none"
    )
    for name, metric in metrics.functions.items():  # before hours of sampling, not after
        measure(name, metric, prompts[0], empty)


def _one_vocabulary(source: PolicySource, reference: PolicySource) -> bool:
    """Whether token ids mean the same to both."""
    return (
        source.base is reference.base
        or source.base.tokenizer.get_vocab() == reference.base.tokenizer.get_vocab()
    )
