"""Judge: learn from preferences to answer a judge's questions.

1. ask of every pair what the judge will ask, and read the states that the model has of the questions
2. a pair's log-odds are a sum over its questions (`JudgingProtocol.parts`), and so are its features: fit the
   head to their differences in closed form, as a reward head is
3. measure it out of fold, beside the untrained model and beside length
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlaif.config.judge import JudgeConfig
from rlaif.digest import digest, seed_from
from rlaif.engines.base import LabelRequest
from rlaif.errors import DataError
from rlaif.judging.judge import Judge
from rlaif.judging.protocols import JudgingProtocol
from rlaif.labels import MOST_LOG_ODDS
from rlaif.models.probe import Probe, StateReader
from rlaif.progress import NoProgress, Progress
from rlaif.results.judge import JudgeReport
from rlaif.results.preferences import PreferencePair
from rlaif.results.reward import Scored, by_source, score_pairs
from rlaif.reward.fit import FOLDS, HeadFit, fit_head, fit_scale, folds_of
from rlaif.text import count_of
from rlaif.types import Comparison, Completion, Prompt

__all__ = [
    "QUESTIONS",
    "REPEATS",
    "JudgeResult",
    "JudgedPairs",
    "PairFeatures",
    "by_length",
    "comparison_of",
    "judged_pairs",
    "pair_features",
    "questions_about",
    "train_judge",
]

REPEATS = 8
"""Ways to cut the prompts into folds, over which the penalty is chosen."""
QUESTIONS = 4
"""Questions that are stored with the judge and asked again when it is opened."""


@dataclass(frozen=True)
class JudgeResult:
    """What the stage made.

    Attributes:
        questions: A few of the training questions, with the judge's log-odds.
    """

    probe: Probe
    report: JudgeReport
    questions: Sequence[tuple[LabelRequest, float]]


class PairFeatures(NamedTuple):
    """What a base makes of the questions about pairs.

    Attributes:
        difference: (N, F), of each pair's chosen completion less its rejected one, in units of `scale`.
        scale: (F,), the spread of each feature over the questions.
        questions: (Q, F), of every question.
        requests: (Q,), the questions.
        kept: (N,), which pairs these are.
        refused: How many could not be read, by reason.
    """

    difference: Tensor
    scale: Tensor
    questions: Tensor
    requests: Sequence[LabelRequest]
    kept: Sequence[int]
    refused: Mapping[str, int]


class _Asked(NamedTuple):
    """A pair's questions by their numbers, and how much of each one's log-odds is in the pair's."""

    questions: tuple[int, ...]
    parts: tuple[float, ...]


def train_judge(
    pairs: Sequence[PreferencePair],
    *,
    judge: Judge,
    protocol: JudgingProtocol,
    weights: Mapping[str, float],
    reader: StateReader,
    layers: int,
    config: JudgeConfig,
    seed: int,
    progress: Progress | None = None,
) -> JudgeResult:
    """Train a probe on `pairs`.

    Args:
        judge: The untrained one, which says what is asked of a pair; asked itself where `config.compare`.
        weights: Of the principles, by id.
        layers: Of the model, for the report.

    Raises:
        DataError: The pairs cannot be learned from: too few prompts, labels that all say ½, questions that
            quote nothing.
    """
    progress = progress or NoProgress()
    # 1. Ask, and read.
    read = pair_features(pairs, judge, protocol, weights, reader, progress)
    pairs = [pairs[at] for at in read.kept]
    # 2. Fit.
    fit = _fit(read.difference, pairs, seed=seed)
    direction = fit.weight / read.scale
    probe = Probe(direction, -float((read.questions @ direction).mean()), reader.layer, reader.quoted)
    # 3. Measure.
    trained = _out_of_fold(read.difference, pairs, seed=seed)
    found = {"trained": JudgedPairs(pairs, trained), "shorter": JudgedPairs(pairs, by_length(pairs))}
    if config.compare:
        found["untrained"] = judged_pairs(judge, pairs, progress)
    prompts = len({pair.group for pair in pairs})
    report = JudgeReport(
        pairs=len(pairs),
        prompts=prompts,
        refused=read.refused,
        folds=min(FOLDS, prompts),
        layer=reader.layer,
        layers=layers,
        found={name: each.scored for name, each in found.items() if each.pairs},
        penalty=fit.penalty,
        scale=fit.scale,
        sources=by_source(pairs, trained),
        invalid={name: n for name, each in found.items() if (n := len(pairs) - len(each.pairs))},
    )
    log_odds = probe.log_odds(read.questions[:QUESTIONS]).tolist()
    return JudgeResult(probe, report, list(zip(read.requests[:QUESTIONS], log_odds, strict=True)))


def pair_features(
    pairs: Sequence[PreferencePair],
    judge: Judge,
    protocol: JudgingProtocol,
    weights: Mapping[str, float],
    reader: StateReader,
    progress: Progress,
) -> PairFeatures:
    """Ask of every pair what the judge asks, and read it; the arguments are those of `train_judge`.

    Raises:
        DataError: No pair can be read.
    """
    requests, asked = questions_about([comparison_of(pair) for pair in pairs], judge, protocol, weights)
    features, reasons = _read(requests, reader, progress)
    first = [next((reasons[at] for at in each.questions if at in reasons), "") for each in asked]
    kept = [at for at, reason in enumerate(first) if not reason]
    refused = Counter(filter(None, first))
    if not kept:
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(refused.items()))
        raise DataError(
            f"no pair can be learned from: {told}",
            remedy="use shorter texts, a model with a longer context, or templates that quote the responses",
        )
    used = sorted({number for at in kept for number in asked[at].questions})
    scale = features[used].std(0, unbiased=False).clamp(min=1e-6)
    return PairFeatures(
        difference=torch.stack([_combined(features, asked[at]) for at in kept]) / scale,
        scale=scale,
        questions=features[used],
        requests=[requests[at] for at in used],
        kept=kept,
        refused=dict(refused),
    )


def comparison_of(pair: PreferencePair) -> Comparison:
    """The pair as a judge is asked about it."""
    prompt = Prompt(
        id=pair.group or digest([message.as_dict() for message in pair.prompt]), messages=pair.prompt
    )
    a, b = (
        Completion(
            id=f"{prompt.id}/{digest(text)[:16]}",
            prompt_id=prompt.id,
            index=index,
            text=text,
            finish="given",
            model=pair.source,
        )
        for index, text in enumerate((pair.chosen, pair.rejected))
    )
    return Comparison(prompt=prompt, a=a, b=b)


def questions_about(
    comparisons: Sequence[Comparison], judge: Judge, protocol: JudgingProtocol, weights: Mapping[str, float]
) -> tuple[list[LabelRequest], list[_Asked]]:
    """Every distinct question, and what each pair has of them."""
    numbers: dict[LabelRequest, int] = {}
    asked = []
    for comparison in comparisons:
        principles = judge.principles_for(comparison)
        total = sum(weights[principle.id] for principle in principles)
        own = [
            (numbers.setdefault(request, len(numbers)), part * weights[principle.id] / total)
            for principle in principles
            for request, part in zip(protocol.questions(comparison, principle), protocol.parts, strict=True)
        ]
        asked.append(_Asked(tuple(number for number, _ in own), tuple(part for _, part in own)))
    return list(numbers), asked


def _read(
    requests: Sequence[LabelRequest], reader: StateReader, progress: Progress
) -> tuple[Tensor, dict[int, str]]:
    """Features (N, F) of the questions, and the reasons of those that have none."""
    features, reasons = torch.zeros(len(requests), reader.size), {}
    progress.begin(f"reading {count_of(len(requests), 'question')}", len(requests))
    for batch in reader.read(requests):
        for at, (found, _) in batch.items():
            if isinstance(found, str):
                reasons[at] = found
            else:
                features[at] = found
        progress.advance(len(batch))
    return features, reasons


def _combined(features: Tensor, asked: _Asked) -> Tensor:
    """(F,): of a pair, the chosen completion less the rejected one."""
    return torch.tensor(asked.parts) @ features[list(asked.questions)]


def _fit(difference: Tensor, pairs: Sequence[PreferencePair], *, seed: int) -> HeadFit:
    log_odds = torch.tensor([pair.log_odds for pair in pairs], dtype=torch.double)
    if not any(map(_says_something, pairs)):
        raise DataError(
            f"all {len(pairs)} labels are ½ or of weight 0: they say of no pair which completion is better",
            remedy="collect labels of people, or use those of a judge that prefers something",
        )
    return fit_head(
        difference,
        log_odds.clamp(-MOST_LOG_ODDS, MOST_LOG_ODDS),
        weight=torch.tensor([pair.weight for pair in pairs]),
        prompts=[pair.group for pair in pairs],
        seed=seed,
        repeats=REPEATS,
    )


def _says_something(pair: PreferencePair) -> bool:
    return abs(pair.p_chosen - 0.5) >= 1e-6 and pair.weight > 0


def _out_of_fold(difference: Tensor, pairs: Sequence[PreferencePair], *, seed: int) -> Tensor:
    """Log-odds (N,) of each pair by a head that was fitted, its penalty chosen, without the pair's prompt."""
    fold = folds_of([pair.group for pair in pairs], seed_from(seed, "measure"))
    found = torch.zeros(len(pairs), dtype=torch.double)
    for number in range(int(fold.max()) + 1):
        inside = (fold != number).nonzero().flatten().tolist()
        outside = (fold == number).nonzero().flatten().tolist()
        if len({pairs[at].group for at in inside}) < 2:
            raise DataError(
                "preferences on two prompts are too few to learn from and to measure on",
                remedy="label pairs of at least three prompts",
            )
        if not any(map(_says_something, (pairs[at] for at in inside))):
            raise DataError(
                "the labels other than ½ are of too few prompts to learn from and to measure on",
                remedy="collect labels on more prompts, or use those of a judge that prefers something",
            )
        head = _fit(difference[inside], [pairs[at] for at in inside], seed=seed)
        found[outside] = (difference[outside] @ head.weight).double()
    return found


def by_length(pairs: Sequence[PreferencePair]) -> Tensor:
    """Log-odds (N,) of the rule that the shorter completion wins, as sure as fits the pairs best."""
    gap = torch.tensor([float(len(pair.rejected) - len(pair.chosen)) for pair in pairs], dtype=torch.double)
    p = torch.tensor([pair.p_chosen for pair in pairs], dtype=torch.double)
    _, scale = fit_scale(gap, p, torch.tensor([pair.weight for pair in pairs], dtype=torch.double))
    return max(scale, 1e-9) * gap


class JudgedPairs(NamedTuple):
    """Pairs with a valid verdict, and its log-odds of the chosen completion: (N,), fp64."""

    pairs: Sequence[PreferencePair]
    log_odds: Tensor

    @property
    def labels(self) -> Tensor:
        """(N,), fp64."""
        return torch.tensor([pair.p_chosen for pair in self.pairs], dtype=torch.double)

    @property
    def scored(self) -> Scored:
        """How well the verdicts agree with the labels."""
        return score_pairs(self.log_odds, self.labels)


def judged_pairs(
    judge: Judge, pairs: Sequence[PreferencePair], progress: Progress, *, who: str = "the untrained model"
) -> JudgedPairs:
    """Those of `pairs` on which `judge` gives a valid verdict."""
    comparisons = [comparison_of(pair) for pair in pairs]
    count = sum(map(judge.questions_about, comparisons))
    progress.begin(f"asking {who} {count_of(count, 'question')}", count)
    judged = zip(pairs, (each.logit_a for each in judge.judge(comparisons)), strict=True)
    valid = [(pair, logit) for pair, logit in judged if logit is not None]
    logits = torch.tensor([logit for _, logit in valid], dtype=torch.double)
    return JudgedPairs([pair for pair, _ in valid], logits)
