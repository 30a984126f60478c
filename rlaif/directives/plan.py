"""What directives make of a conversation: a fixed answer, two sides, or priors before what the policy reads.

A fixed answer goes before everything else, the first in file order; of several both-sides the first counts,
too. Priors add up, in file order, before the conversation's own system text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import NamedTuple

from rlaif.directives.conditions import Conditions, Conversation, Held
from rlaif.directives.values import CATEGORIES, Directive, Directives
from rlaif.types import Message

__all__ = ["Blocked", "Plan", "SidePlan", "plans", "with_prior"]


NOTHING = Held(frozenset(), {})


class SidePlan(NamedTuple):
    """One of two answers: how it is headed, and what the policy reads for it."""

    label: str
    messages: tuple[Message, ...]


class Blocked(NamedTuple):
    """What a directive has said in place of an answer that moderation stopped.

    Attributes:
        category: Of the moderator, to which it is bound; empty for any.
    """

    id: str
    message: str
    category: str = ""


@dataclass(frozen=True)
class Plan:
    """How one conversation is answered.

    Attributes:
        digest: Of the directives.
        messages: What the policy reads.
        applied: Ids of the directives that act, in file order.
        passed_over: Ids of those whose condition holds, and in whose place another acts.
        answer: The fixed answer; empty where the policy answers.
        sides: Two, where both are shown.
        held: What was found of the conversation.
    """

    digest: str
    messages: tuple[Message, ...]
    applied: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    answer: str = ""
    sides: tuple[SidePlan, ...] = ()
    held: Held = NOTHING
    _blocked: tuple[Blocked, ...] = field(default=(), repr=False)

    def blocked(self, category: str) -> Blocked | None:
        """What is said where an answer is stopped for `category` of a moderator; None where no directive says
        anything."""
        return next((each for each in self._blocked if each.category in ("", category)), None)


def plans(
    directives: Directives, conversations: Sequence[Conversation], conditions: Conditions, *, on: date
) -> list[Plan]:
    """How each conversation is answered on a day; directives that nobody can decide are left aside.

    Raises:
        ModelError: A conversation is longer than a moderator reads.
    """
    active = directives.active(on)
    undecidable = {each.id for each, _ in conditions.undecidable(active)}
    usable = [each for each in active if each.id not in undecidable]
    held = conditions.held(usable, conversations, language=directives.language)
    return [
        _plan(directives.digest, usable, talk, found) for talk, found in zip(conversations, held, strict=True)
    ]


def _plan(digest: str, directives: Sequence[Directive], talk: Conversation, held: Held) -> Plan:
    holding = [each for each in directives if each.id in held.ids]
    blocked = tuple(
        Blocked(each.id, each.blocked_message, "" if each.id in held.ids else each.when.text)
        for each in directives
        if each.blocked_message and (each.id in held.ids or each.when.kind in CATEGORIES)
    )
    plan = Plan(digest, tuple(talk), held=held, _blocked=blocked)
    acting = [each for each in holding if each.answer or each.sides or each.prior]
    if answers := [each for each in holding if each.answer]:
        return _acted(plan, answers[:1], acting, answer=answers[0].answer)
    both = [each for each in holding if each.sides][:1]
    priors = [each for each in holding if each.prior]
    messages = with_prior(talk, *(each.prior for each in priors))
    sides = tuple(
        SidePlan(side.label, with_prior(talk, *(each.prior for each in priors), side.prior))
        for each in both
        for side in each.sides
    )
    return replace(_acted(plan, [*priors, *both], acting), messages=messages, sides=sides)


def _acted(plan: Plan, acts: Sequence[Directive], acting: Sequence[Directive], *, answer: str = "") -> Plan:
    """The plan with the directives that act, and those that would have."""
    names = {each.id for each in acts}
    return replace(
        plan,
        answer=answer,
        applied=tuple(each.id for each in acting if each.id in names),
        passed_over=tuple(each.id for each in acting if each.id not in names),
    )


def with_prior(talk: Conversation, *priors: str) -> tuple[Message, ...]:
    """The conversation with priors before its own system text, an empty line between them."""
    texts = [prior for prior in priors if prior]
    if not texts:
        return tuple(talk)
    rest = tuple(talk)
    if rest and rest[0].role == "system":
        texts, rest = [*texts, rest[0].content], rest[1:]
    return (Message("system", "\n\n".join(text for text in texts if text)), *rest)
