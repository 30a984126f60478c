"""What best of K chooses, and its report: how the reward grows with K, what was kept, and what the policy
that learned it is like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from rlaif.config.finetune import BestOfKConfig
from rlaif.models.finetune import FinetuneStep
from rlaif.results.costs import TrainingCost
from rlaif.results.overoptimization import expected_best
from rlaif.rl.episodes import EpisodeRow
from rlaif.rl.kl import best_of_n_kl_bound, best_of_n_kl_estimate

__all__ = [
    "BestOfKReport",
    "BestOfKResult",
    "Candidate",
    "GrowthPoint",
    "Kept",
    "RoundReport",
    "StudentReport",
    "growth",
    "mean_and_error",
    "round_report",
    "select",
    "tied",
]

NEGLIGIBLE = 1e-3
"""A completion whose weight is a smaller share of its prompt's is left out: it would cost as much as the
others."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A completion and what it is worth.

    Attributes:
        tokens: As sampled, the end token included.
        reward: As the reward gave it.
        score: The reward less the penalty for a completion that was cut; the choice goes by it.
        logprob: Of the whole completion under the policy that sampled it (nats).
    """

    row: EpisodeRow
    tokens: tuple[int, ...]
    reward: float
    score: float
    logprob: float


class Kept(NamedTuple):
    """A completion to learn, with its weight; the weights of one prompt have sum 1."""

    candidate: Candidate
    weight: float


class GrowthPoint(NamedTuple):
    """The best of k as k grows."""

    k: int
    reward: float
    """Expected reward of the best of k draws, averaged over the prompts."""
    error: float
    """Its standard error over the prompts."""
    kl_bound: float
    """Upper bound (nats) on the KL of that choice to the policy that sampled; not of a student."""


@dataclass(frozen=True)
class RoundReport:
    """One round: what was sampled, what was kept, and what learning it did.

    Attributes:
        tokens: Sampled.
        cut: Completions that never ended their turn.
        tied: Prompts whose completions all score the same, so that the choice says nothing.
        growth: For k = 1, 2, 4, … K.
        kl_estimate: Beirami's estimate (2401.01879, §4) of what `kl_bound` of K bounds, from the completions
            chosen.
        kept_reward: Mean reward of what was kept, by weight.
        learned: Completions that were fine-tuned on.
        loss_before, loss_after: Their weighted negative log-likelihood (nats per token) under who learned
        them.
    """

    round: int
    prompts: int
    completions: int
    tokens: int
    cut: int
    tied: int
    growth: tuple[GrowthPoint, ...]
    kl_estimate: float
    kept_reward: float
    learned: int
    overlong: int
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class StudentReport:
    """The policy that was made, on one sample of each of some of the prompts that it learned from.

    Attributes:
        reward, reward_error: Mean, and its standard error over the prompts.
        start_reward: Mean reward of one draw of the policy that the first round sampled from, on all prompts.
        kl, kl_error: Exact KL to its own reference (its base, adapters off), summed over a completion (nats).
        kl_token: The same a token.
        length: Tokens per completion.
        ended: Share that ended their turn.
    """

    prompts: int
    reward: float
    reward_error: float
    start_reward: float
    kl: float
    kl_error: float
    kl_token: float
    length: float
    ended: float


@dataclass(frozen=True)
class BestOfKReport:
    """What the stage says of itself: its rounds, the policy that was made, and notes for the reader."""

    rounds: tuple[RoundReport, ...]
    student: StudentReport
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        rounds = [
            {**asdict(each), "growth": [point._asdict() for point in each.growth]} for each in self.rounds
        ]
        found = {"rounds": rounds, "student": asdict(self.student), "counts": dict(self.counts)}
        return {**found, "notes": list(self.notes)} if self.notes else found


@dataclass(frozen=True)
class BestOfKResult:
    """What the stage made. The policy is the adapter `role` of the base that learned: the student if one was
    given.

    Attributes:
        rows: What the last round kept, as rows for SFT with `reward` and `weight`.
        cost: Of sampling, scoring and learning. A student that learns in the policy's place has no curve: it
            begins at the end.
        refused: `(prompt id, reason)` of the prompts that could not be sampled.
        duplicates: Prompts left out because the same is asked by an earlier one.
        notes: What the reader should know.
    """

    role: str
    rounds: tuple[RoundReport, ...]
    student: StudentReport
    steps: list[FinetuneStep]
    rows: list[dict[str, Any]]
    cost: TrainingCost = field(compare=False)
    refused: list[tuple[str, str]] = field(default_factory=list)
    duplicates: int = 0
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """Counts for the manifest, over all rounds."""
        return {
            "prompts": self.rounds[0].prompts,
            "refused": len(self.refused),
            "duplicates": self.duplicates,
            "completions": sum(r.completions for r in self.rounds),
            "cut_at_limit": sum(r.cut for r in self.rounds),
            "tokens": sum(r.tokens for r in self.rounds),
            "tied": sum(r.tied for r in self.rounds),
            "learned": sum(r.learned for r in self.rounds),
            "overlong": sum(r.overlong for r in self.rounds),
        }

    @property
    def report(self) -> BestOfKReport:
        """The result without its rows."""
        return BestOfKReport(rounds=self.rounds, student=self.student, counts=self.counts(), notes=self.notes)


# Formulas


def growth(groups: Sequence[Sequence[Candidate]]) -> tuple[GrowthPoint, ...]:
    """The best of k = 1, 2, 4, … up to K, which is there even if it is no power of two."""
    most = len(groups[0])
    points = []
    for k in sorted({*(1 << bit for bit in range(most.bit_length())), most}):
        each = [expected_best([c.reward for c in group], [c.score for c in group], k) for group in groups]
        mean, error = mean_and_error(each)
        points.append(GrowthPoint(k=k, reward=mean, error=error, kl_bound=best_of_n_kl_bound(k)))
    return tuple(points)


def select(group: Sequence[Candidate], config: BestOfKConfig) -> list[Kept]:
    """What is learned of one prompt's completions, best first; the weights have sum 1.

    `weighted` is the reward-tilted policy π exp(score / T) / Z, its samples reweighted (advantage-weighted
    regression).
    """
    ranked = sorted(group, key=lambda candidate: -candidate.score)  # stable: ties stay in the order drawn
    match config.keep:
        case "best":
            weights = [1.0]
        case "weighted":
            raw = [
                math.exp((candidate.score - ranked[0].score) / config.weight_temperature)
                for candidate in ranked
            ]
            weights = [weight for weight in raw if weight >= NEGLIGIBLE * sum(raw)]
        case int(count):
            weights = [1.0] * count
    total = sum(weights)
    return [Kept(candidate, weight / total) for candidate, weight in zip(ranked, weights, strict=False)]


def round_report(
    number: int, groups: Sequence[Sequence[Candidate]], kept: Sequence[Kept], **learned: Any
) -> RoundReport:
    """The report of a round; `learned` are its figures about the fine-tuning."""
    every = [candidate for group in groups for candidate in group]
    chosen = [max(group, key=lambda candidate: candidate.score) for group in groups]
    k = len(groups[0])
    return RoundReport(
        round=number,
        prompts=len(groups),
        completions=len(every),
        tokens=sum(len(c.tokens) for c in every),
        cut=sum(c.row.completion.finish == "length" for c in every),
        tied=sum(tied(group) for group in groups),
        growth=growth(groups),
        kl_estimate=mean_and_error([best_of_n_kl_estimate(k, min(c.logprob, 0.0)) for c in chosen])[0],
        kept_reward=sum(weight * c.reward for c, weight in kept) / sum(weight for _, weight in kept),
        **learned,
    )


def tied(group: Sequence[Candidate]) -> bool:
    """Whether all of a prompt's completions score the same."""
    return len({candidate.score for candidate in group}) == 1


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of one value is not a number."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
