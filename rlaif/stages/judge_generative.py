"""Judge, the kind `generative`: an adapter that reasons as the model itself did where it came to the label
given.

1. hold prompts out; of all other pairs, sample reasonings for the question in both orders
2. keep those behind which the model answers with the label, one for each order, and only where there is one
   in each: else "say what was shown first" would be learned, which agrees in one order of every pair
3. fine-tune on reasons and label; measure on the pairs that were held out, and fit a temperature there

Rejection sampling of rationales, as in STaR (Zelikman et al. 2022, arXiv 2203.14465) without its hints; for
judges Wang et al. 2024, arXiv 2408.02666.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from rlaif.config.judge import JudgeConfig
from rlaif.digest import digest, seed_from
from rlaif.engines.base import Engine, LabelReading, LabelRequest
from rlaif.engines.hf import HFEngine
from rlaif.engines.labels import find_labels
from rlaif.errors import DataError
from rlaif.judging.judge import Judge
from rlaif.judging.protocols import JudgingProtocol
from rlaif.judging.reasoning import Reasoned, ReasoningJudge
from rlaif.models.lora_judge import LoraJudge
from rlaif.models.shared_base import SharedBase
from rlaif.progress import NoProgress, Progress
from rlaif.results.judge import JudgeReport
from rlaif.results.preferences import PreferencePair, split_by_prompt
from rlaif.results.reward import by_source
from rlaif.reward.fit import fit_scale
from rlaif.stages.finetuning import fitting, lora_of
from rlaif.stages.judge import QUESTIONS, JudgedPairs, by_length, comparison_of, judged_pairs
from rlaif.stages.judge_lora import LoraJudgeResult
from rlaif.stages.sft import SftExample, fit_examples
from rlaif.text import count_of

__all__ = ["Lesson", "lessons_from", "train_generative_judge"]

ASKED = 64
"""Pairs whose reasonings are sampled at a time."""


class Lesson(NamedTuple):
    """A question with reasons that led to the label given.

    Attributes:
        label: Which of the question's labels that is.
    """

    pair: PreferencePair
    question: LabelRequest
    label: int


def train_generative_judge(
    pairs: Sequence[PreferencePair],
    *,
    reasoner: ReasoningJudge,
    asker: Callable[[Engine | None], Judge],
    protocol: JudgingProtocol,
    engine: HFEngine,
    base: SharedBase,
    config: JudgeConfig,
    seed: int,
    role: str,
    progress: Progress | None = None,
) -> LoraJudgeResult:
    """Train the adapter `role` of `base` on reasonings of the untrained model; it is added, and nothing else
    of the base changes.

    Args:
        reasoner: The untrained judge, which samples several reasonings.
        asker: A judge as it will be asked, that asks the engine given, or the untrained model.
        engine: Runs `base`.

    Raises:
        DataError: No reasoning agrees with the labels, or there are too few prompts.
        ModelError: Training ran away.
    """
    progress = progress or NoProgress()
    own, others = split_by_prompt(pairs, config.held_out, seed=seed)
    lessons, counts = lessons_from(own, reasoner, protocol, progress)
    examples, refused = _examples(lessons, engine)
    rows, overlong = fitting(examples, [each.length for each in examples], base, config, noun="reasonings")
    if overlong:
        refused["prompt_too_long"] += overlong
    rows = _in_both_orders(rows, refused)
    base.add_adapter(role, lora_of(config), seed=seed_from(seed, "adapter", role) % (1 << 31))
    fit_examples(base, role, rows, config, seed=seed_from(seed, "judge"), progress=progress)

    def trained(scale: float) -> LoraJudge:
        return LoraJudge(engine, base, role, scale=scale, card=engine.card, writes=True)

    held_out = {
        "trained": judged_pairs(asker(trained(1.0)), others, progress, who="the trained judge"),
        "untrained": judged_pairs(asker(None), others, progress, who="the untrained model"),
        "shorter": JudgedPairs(others, by_length(others)),
    }
    scale = _temperature(held_out["trained"], of=len(others))
    report = JudgeReport(
        kind="generative",
        pairs=len(pairs),
        prompts=len({pair.group for pair in pairs}),
        held_out=len(others),
        refused=dict(refused),
        folds=0,
        layer=0,
        layers=0,
        found={name: each.scored for name, each in held_out.items() if each.pairs},
        penalty=0.0,
        scale=scale,
        sources=by_source(held_out["trained"].pairs, held_out["trained"].log_odds),
        reasonings=counts,
        invalid={name: n for name, each in held_out.items() if (n := len(others) - len(each.pairs))},
    )
    remembered = [lesson.question for lesson in lessons[:QUESTIONS]]
    values = _read(trained(scale), remembered)
    return LoraJudgeResult(role, scale, report, list(zip(remembered, values, strict=True)))


def lessons_from(
    pairs: Sequence[PreferencePair], reasoner: ReasoningJudge, protocol: JudgingProtocol, progress: Progress
) -> tuple[list[Lesson], dict[str, int]]:
    """What is learned from: of each pair and principle two reasonings, one an order.

    Args:
        protocol: Asks in both orders.

    Returns:
        The lessons, and the counts that `JudgeReport.reasonings` names.

    Raises:
        DataError: There are none.
    """
    decided = [pair for pair in pairs if pair.p_chosen != 0.5 and pair.weight]
    counts = Counter(sampled=0, agreed=0, kept=0, left_out=0, undecided=len(pairs) - len(decided))
    lessons = list[Lesson]()
    total = sum(reasoner.questions_about(comparison_of(pair)) for pair in decided)
    progress.begin(f"reasoning about {count_of(total, 'question')}", total)
    for start in range(0, len(decided), ASKED):
        part = decided[start : start + ASKED]
        asked = [(pair, *each) for pair in part for each in _questions(pair, reasoner, protocol)]
        answered = iter(reasoner.reasoned([request for _, *both in asked for request in both]))
        for pair, *_ in asked:
            kept = [
                _agreeing(next(answered), label if pair.p_chosen > 0.5 else 1 - label, counts)
                for label in (0, 1)
            ]
            if None in kept:
                counts["left_out"] += 1
                continue
            lessons += [
                Lesson(pair, question, label if pair.p_chosen > 0.5 else 1 - label)
                for label, question in enumerate(kept)
                if question is not None
            ]
    counts["kept"] = len(lessons)
    if not lessons:
        raise DataError(
            f"of {counts['sampled']} reasonings {counts['agreed']} ended with the label given, and of no "
            "pair one in each order: there is nothing to learn from",
            remedy="sample more (reasonings), take a larger model, or train another kind of judge (kind: "
            "probe)",
        )
    return lessons, dict(counts)


def _questions(
    pair: PreferencePair, judge: Judge, protocol: JudgingProtocol
) -> list[tuple[LabelRequest, LabelRequest]]:
    """Of each principle the question with the chosen completion first, and with the rejected one."""
    comparison = comparison_of(pair)
    found = []
    for principle in judge.principles_for(comparison):
        chosen_first, rejected_first = protocol.questions(comparison, principle)
        found.append((chosen_first, rejected_first))
    return found


def _agreeing(found: Sequence[Reasoned], label: int, counts: Counter[str]) -> LabelRequest | None:
    """The first reasoning behind which `label` is the likelier one."""
    agreed = [each.question for each in found if each.question is not None and _prefers(each.reading, label)]
    counts["sampled"] += len(found)
    counts["agreed"] += len(agreed)
    return agreed[0] if agreed else None


def _prefers(reading: LabelReading, label: int) -> bool:
    if reading.reason or len(reading.logprobs) != 2:
        return False
    return reading.logprobs[label] > reading.logprobs[1 - label]


def _examples(lessons: Sequence[Lesson], engine: HFEngine) -> tuple[list[SftExample], Counter[str]]:
    """The lessons in tokens, read as the judge will read them: the question, and as the completion the
    reasons and the label's token; how many cannot be, by reason."""
    questions = find_labels(engine.form, [lesson.question for lesson in lessons])
    starts = engine.form.encode([engine.form.render(lesson.question.messages[:-1]) for lesson in lessons])
    found, refused = [], Counter[str]()
    for number, (lesson, question, start) in enumerate(zip(lessons, questions, starts, strict=True)):
        ids = question.ids.tolist()
        if reason := question.reason or ("" if ids[: len(start)] == start else "not_aligned"):
            refused[reason] += 1
            continue
        found.append(
            SftExample(
                id=f"{lesson.pair.id}/{number}",
                prompt=tuple(start),
                completion=(*ids[len(start) :], question.labels[lesson.label]),
                weight=lesson.pair.weight,
                group=lesson.pair.group or digest([turn.as_dict() for turn in lesson.pair.prompt]),
            )
        )
    if not found:
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(refused.items()))
        raise DataError(f"no reasoning can be put into tokens as the judge reads it: {told}")
    return found, refused


def _in_both_orders(rows: Sequence[SftExample], refused: Counter[str]) -> list[SftExample]:
    """Those of `_examples` whose question is still there in its other order; the others are counted.

    Raises:
        DataError: There are none.
    """
    numbers = {int(row.id.rpartition("/")[2]) for row in rows}
    kept = [row for row in rows if int(row.id.rpartition("/")[2]) ^ 1 in numbers]
    if alone := len(rows) - len(kept):
        refused["other_order_left_out"] += alone
    if not kept:
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(refused.items()))
        raise DataError(
            f"of no question are the reasonings left in both orders: {told}",
            remedy="raise max_tokens, or let it reason more shortly (reasoning_tokens)",
        )
    return kept


def _temperature(judged: JudgedPairs, *, of: int) -> float:
    """The factor on the log-odds that fits the labels best.

    Raises:
        DataError: No verdict is valid.
    """
    if not judged.pairs:
        raise DataError(
            f"the trained judge gave no valid verdict on any of {count_of(of, 'held-out pair')}",
            remedy="give it more room (reasoning_tokens), train less (epochs), or take kind: probe",
        )
    weight = torch.tensor([pair.weight for pair in judged.pairs], dtype=torch.double)
    return max(fit_scale(judged.log_odds, judged.labels, weight)[1], 1e-3)


def _read(judge: LoraJudge, requests: Sequence[LabelRequest]) -> list[float]:
    found: dict[int, LabelReading] = {}
    for batch in judge.label_logprobs(requests):
        found.update(batch)
    return [found[at].logprobs[0] - found[at].logprobs[1] for at in range(len(requests))]
