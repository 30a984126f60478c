"""Try directives out: the same prompts answered with and without them, and how often a judge says that the
answers comply.

Both answers to a prompt are drawn with the same random numbers, so that what a prior does not change stays
the same. The judge reads neither prior: it is asked a directive's question about each answer to the prompt as
the user wrote it (pointwise), and an answer complies where the good answer is the likelier one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlaif.digest import seed_from
from rlaif.directives.plan import Plan, SidePlan
from rlaif.directives.values import Directive, Directives
from rlaif.engines.base import LEAST_SHARE, Engine, Generation, GenerationRequest, LabelRequest, Sampling
from rlaif.judging.protocols import log_odds
from rlaif.labels import sigmoid
from rlaif.progress import NoProgress, Progress
from rlaif.prompts import PromptLibrary
from rlaif.stats import Estimate, bootstrap_difference
from rlaif.types import Completion, Message, Prompt

__all__ = ["Answer", "Case", "Compliance", "Spent", "Trial", "after_requests", "before_requests", "try_out"]

SAME = 0.95
"""Share of answers with one verdict from which on a judge is said to tell nothing."""
COMPLIES = 0.5
"""Probability of the good answer from which on an answer complies."""


class Answer(NamedTuple):
    """One answer.

    Attributes:
        label: Of its side, where both are shown.
        complies: P(good answer) to the question of each directive that asks one, by id; None where the judge
            gave no valid answer.
        refused: Why there is none; else empty.
    """

    text: str
    tokens: int
    label: str = ""
    complies: dict[str, float | None] = {}  # noqa: RUF012 - never changed
    refused: str = ""


@dataclass(frozen=True)
class Case:
    """A prompt to which directives apply, answered without and with them: K answers each, or K of each
    side."""

    prompt: Prompt
    plan: Plan
    before: tuple[Answer, ...]
    after: tuple[Answer, ...]


class Compliance(NamedTuple):
    """How often the answers that a directive acts on comply.

    Attributes:
        prompts: To which it applied, with a valid answer of the judge before and after.
        before, after: Share of the answers.
        change: after − before, paired by prompt, 95 %; None for fewer than two prompts.
        mean_before, mean_after: Mean P(good answer).
        mean_change: Their difference, as `change`.
        invalid: Questions without a valid answer.
    """

    id: str
    prompts: int
    before: float
    after: float
    change: Estimate | None
    mean_before: float
    mean_after: float
    mean_change: Estimate | None
    invalid: int

    @property
    def undecided(self) -> bool:
        """Whether the judge says the same of nearly all answers, before and after: it cannot tell them apart,
        or there is nothing to tell."""
        return min(self.before, self.after) >= SAME or max(self.before, self.after) <= 1 - SAME


class Spent(NamedTuple):
    """What answering took: tokens sampled, and seconds, those of answers that were remembered left out."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class Trial:
    """What came of a trial.

    Attributes:
        untouched: Prompts to which no directive applies; they were not answered.
        unread: Conditions that a judge gave no valid answer to.
    """

    directives: Directives
    cases: tuple[Case, ...]
    untouched: tuple[Prompt, ...]
    compliance: tuple[Compliance, ...]
    before: Spent
    after: Spent
    unread: int

    def applied(self) -> dict[str, int]:
        """To how many prompts each directive applied."""
        ids = [id for case in self.cases for id in case.plan.applied]
        return {each.id: ids.count(each.id) for each in self.directives.directives}

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "directives": {"name": self.directives.name, "digest": self.directives.digest},
            "applied": self.applied(),
            "compliance": [_compliance(each) for each in self.compliance],
            "before": self.before._asdict(),
            "after": self.after._asdict(),
            "unread_conditions": self.unread,
            "untouched": [prompt.id for prompt in self.untouched],
            "prompts": [_case(case) for case in self.cases],
        }


def _compliance(found: Compliance) -> dict[str, Any]:
    estimates = {"change": found.change, "mean_change": found.mean_change}
    plain = {name: None if each is None else each._asdict() for name, each in estimates.items()}
    return found._asdict() | plain | {"undecided": found.undecided}


def _case(case: Case) -> dict[str, Any]:
    return {
        "id": case.prompt.id,
        "prompt": [message.as_dict() for message in case.prompt.messages],
        "applied": list(case.plan.applied),
        "passed_over": list(case.plan.passed_over),
        "scores": dict(case.plan.held.scores),
        "before": [answer._asdict() for answer in case.before],
        "after": [answer._asdict() for answer in case.after],
    }


def try_out(
    directives: Directives,
    prompts: Sequence[Prompt],
    planned: Sequence[Plan],
    *,
    policy: Engine,
    judge: Engine,
    library: PromptLibrary,
    sampling: Sampling,
    k: int,
    seed: int,
    progress: Progress | None = None,
) -> Trial:
    """Answer the prompts to which directives apply without and with them, and ask the judge about both.

    Args:
        planned: What the directives make of each prompt.
        library: Templates of the policy's and the judge's prompts.
        k: Answers to each prompt.
    """
    progress = progress or NoProgress()
    touched = [(prompt, plan) for prompt, plan in zip(prompts, planned, strict=True) if plan.applied]
    asks = before_requests(touched, library, sampling, k=k, seed=seed)
    steered = after_requests(touched, library, sampling, k=k, seed=seed)
    progress.begin("answers without and with the directives", len(asks) + len(steered))
    before, spent_before = _sampled(policy, asks, progress)
    after, spent_after = _sampled(policy, steered, progress)
    cases = _cases(touched, before, after, k=k)
    judged = _judged(directives, cases, judge, library, progress)
    return Trial(
        directives=directives,
        cases=tuple(judged),
        untouched=tuple(prompt for prompt, plan in zip(prompts, planned, strict=True) if not plan.applied),
        compliance=tuple(
            _complied(each, judged, seed) for each in directives.directives if _is_asked(each, judged)
        ),
        before=spent_before,
        after=spent_after,
        unread=sum(len(plan.held.unread) for plan in planned),
    )


def before_requests(
    touched: Sequence[tuple[Prompt, Plan]], library: PromptLibrary, sampling: Sampling, *, k: int, seed: int
) -> list[GenerationRequest]:
    """K requests a prompt without directives, with the seeds that `rlaif sample` draws by."""
    return [
        GenerationRequest(library.policy(prompt), sampling, _seed(seed, prompt, index))
        for prompt, _ in touched
        for index in range(k)
    ]


def after_requests(
    touched: Sequence[tuple[Prompt, Plan]], library: PromptLibrary, sampling: Sampling, *, k: int, seed: int
) -> list[GenerationRequest]:
    """K requests a prompt and side, but for fixed answers."""
    return [
        GenerationRequest(_read(prompt, side.messages, library), sampling, _seed(seed, prompt, index))
        for prompt, plan in touched
        for side in _sides(plan)
        for index in range(k)
    ]


def _seed(seed: int, prompt: Prompt, index: int) -> int:
    return seed_from(seed, "sample", prompt.fingerprint(), index)


def _sides(plan: Plan) -> tuple[SidePlan, ...]:
    """What the policy is asked; nothing for a fixed answer."""
    return () if plan.answer else plan.sides or (SidePlan("", plan.messages),)


def _read(prompt: Prompt, steered: Sequence[Message], library: PromptLibrary) -> tuple[Message, ...]:
    """What the policy reads: the steered conversation, with the documents of the prompt in its last turn."""
    return (*steered[:-1], *library.policy(prompt)[len(prompt.messages) - 1 :])


def _sampled(
    policy: Engine, requests: Sequence[GenerationRequest], progress: Progress
) -> tuple[list[Generation], Spent]:
    started = time.monotonic()
    found: dict[int, Generation] = {}
    for batch in policy.generate(requests):
        found.update(batch)
        progress.advance(len(batch))
    made = [found[at] for at in range(len(requests))]
    return made, Spent(sum(each.tokens for each in made), time.monotonic() - started)


def _cases(
    touched: Sequence[tuple[Prompt, Plan]],
    before: Sequence[Generation],
    after: Sequence[Generation],
    *,
    k: int,
) -> list[Case]:
    plain, steered = iter(before), iter(after)
    cases = []
    for prompt, plan in touched:
        own = [_answer(next(plain)) for _ in range(k)]
        made = [_answer(next(steered), side.label) for side in _sides(plan) for _ in range(k)]
        cases.append(Case(prompt, plan, tuple(own), tuple(made or [Answer(plan.answer, 0)])))
    return cases


def _answer(made: Generation, label: str = "") -> Answer:
    refused = made.reason if made.finish == "refused" else ""
    return Answer(made.text, made.tokens, label, refused=refused)


def _asked(directives: Directives, case: Case) -> list[Directive]:
    """The directives whose question is asked about the answers of a case."""
    known = directives.by_id()
    return [known[id] for id in case.plan.applied if known[id].question]


def _is_asked(directive: Directive, cases: Sequence[Case]) -> bool:
    return bool(directive.question) and any(directive.id in case.plan.applied for case in cases)


def _judged(
    directives: Directives, cases: Sequence[Case], judge: Engine, library: PromptLibrary, progress: Progress
) -> list[Case]:
    """The cases with what the judge says of every answer."""
    asked = [
        (case, answer, rule)
        for case in cases
        for answer in (*case.before, *case.after)
        for rule in _asked(directives, case)
        if not answer.refused
    ]
    progress.begin("questions whether answers comply", len(asked))
    requests = [question(library, rule, case.prompt, answer.text) for case, answer, rule in asked]
    said: dict[int, float | None] = {}
    for batch in judge.label_logprobs(requests):
        progress.advance(len(batch))
        for at, reading in batch.items():
            odds = log_odds(reading, LEAST_SHARE)
            said[at] = None if odds is None else sigmoid(odds)
    answers = iter(said[at] for at in range(len(requests)))

    def judged(case: Case, answer: Answer) -> Answer:
        rules = [] if answer.refused else _asked(directives, case)
        return answer._replace(complies={rule.id: next(answers) for rule in rules})

    return [
        Case(
            case.prompt,
            case.plan,
            before=tuple([judged(case, answer) for answer in case.before]),
            after=tuple([judged(case, answer) for answer in case.after]),
        )
        for case in cases
    ]


def question(library: PromptLibrary, directive: Directive, prompt: Prompt, text: str) -> LabelRequest:
    """What a judge is asked about an answer to `prompt`: does it comply?"""
    given = Completion(f"{prompt.id}/0", prompt.id, 0, text, "given", "given")
    asked = library.judge_pointwise(prompt, given, directive.principle())
    return LabelRequest(messages=asked.messages, labels=asked.labels)


def _complied(directive: Directive, cases: Sequence[Case], seed: int) -> Compliance:
    sides, prompts, invalid = _said(directive, cases)
    shares = [[float(value >= COMPLIES) for _, value in side] for side in sides]
    names = [[name for name, _ in side] for side in sides]
    values = [[value for _, value in side] for side in sides]
    changes = [
        bootstrap_difference(each[1], names[1], each[0], names[0], seed=seed) if prompts > 1 else None
        for each in (shares, values)
    ]
    return Compliance(
        id=directive.id,
        prompts=prompts,
        before=_mean(shares[0]),
        after=_mean(shares[1]),
        change=changes[0],
        mean_before=_mean(values[0]),
        mean_after=_mean(values[1]),
        mean_change=changes[1],
        invalid=invalid,
    )


def _said(directive: Directive, cases: Sequence[Case]) -> tuple[list[list[tuple[str, float]]], int, int]:
    """P(good answer) of the answers before and after, each with its prompt's id, where both are known; of how
    many prompts; and how many questions have no valid answer."""
    sides: list[list[tuple[str, float]]] = [[], []]
    prompts = invalid = 0
    for case in cases:
        said = [
            [answer.complies[directive.id] for answer in answers if directive.id in answer.complies]
            for answers in (case.before, case.after)
        ]
        invalid += sum(value is None for values in said for value in values)
        valid = [[value for value in values if value is not None] for values in said]
        if all(valid):
            prompts += 1
            for side, values in zip(sides, valid, strict=True):
                side += [(case.prompt.id, value) for value in values]
    return sides, prompts, invalid


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
