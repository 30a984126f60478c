"""Which directives apply to a conversation: patterns are searched, moderators and the judge are asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from rlaif.directives.patterns import compiled
from rlaif.directives.values import CATEGORIES, Condition, Directive
from rlaif.engines.base import LEAST_SHARE, Engine, LabelReading, LabelRequest
from rlaif.errors import Problem
from rlaif.judging.protocols import log_odds
from rlaif.labels import sigmoid
from rlaif.moderation.base import Moderator
from rlaif.prompts import PromptLibrary
from rlaif.types import Message, Prompt

__all__ = ["TEMPLATE", "Conditions", "Held", "condition_request"]

TEMPLATE = "judge_conversation"
"""By which a judge is asked whether a condition holds."""
EVEN = 0.5
"""Threshold of the judge's yes, where a directive names none."""

Conversation = Sequence[Message]


class Held(NamedTuple):
    """What holds of a conversation.

    Attributes:
        ids: Directives whose condition holds.
        scores: What a moderator or the judge said, by the id of the directive that asked.
        unread: Directives whose judge gave no valid answer; they do not hold.
    """

    ids: frozenset[str]
    scores: Mapping[str, float]
    unread: tuple[str, ...] = ()


class Conditions:
    """Decides conditions with the moderators and the judge that there are.

    Args:
        templates: A folder whose templates replace the shipped ones of the same name.
    """

    def __init__(
        self,
        *,
        moderators: Sequence[Moderator] = (),
        judge: Engine | None = None,
        templates: Path | None = None,
    ) -> None:
        self.judge = judge
        self.library = lru_cache(maxsize=8)(lambda language: PromptLibrary(language, templates))
        self._moderators = {
            category: moderator for moderator in reversed(moderators) for category in moderator.categories
        }

    def undecidable(self, directives: Iterable[Directive]) -> list[tuple[Directive, Problem]]:
        """The directives that ask a moderator or a judge that is not there."""
        found = []
        for each in directives:
            where, when = f"directive `{each.id}`", each.when
            if when.kind in CATEGORIES and when.text not in self._moderators:
                known = ", ".join(self._moderators) or "none"
                what = f"no moderator has the category `{when.text}`; there are: {known}"
                found.append((each, Problem(what, where=where, remedy="give the moderator that has it")))
            if when.kind == "judge" and self.judge is None:
                remedy = "name a model with --judge"
                found.append(
                    (each, Problem("there is no judge to ask its question", where=where, remedy=remedy))
                )
        return found

    def held(
        self, directives: Sequence[Directive], conversations: Sequence[Conversation], *, language: str
    ) -> list[Held]:
        """What holds of each of `conversations`. A judge is asked only what can make a difference: nothing
        more once a fixed answer is certain.

        Args:
            directives: In the order of their file, all of them decidable.
            language: Of the templates by which the judge is asked.

        Raises:
            ModelError: A conversation is longer than a moderator reads.
        """
        scores: list[dict[str, float]] = [{} for _ in conversations]
        ids = [{each.id for each in directives if _plain(each.when, talk)} for talk in conversations]
        for each, values in self._moderated(directives, conversations):
            for at, value in enumerate(values):
                scores[at][each.id] = value
                if value >= self._threshold(each.when):
                    ids[at].add(each.id)
        asked = [(at, each) for at, found in enumerate(ids) for each in _worth_asking(directives, found)]
        unread: list[list[str]] = [[] for _ in conversations]
        for (at, each), reading in zip(asked, self._answers(asked, conversations, language), strict=True):
            odds = log_odds(reading, LEAST_SHARE)
            if odds is None:
                unread[at].append(each.id)
                continue
            scores[at][each.id] = sigmoid(odds)
            if scores[at][each.id] >= (EVEN if each.when.threshold is None else each.when.threshold):
                ids[at].add(each.id)
        return [
            Held(frozenset(found), values, tuple(missed))
            for found, values, missed in zip(ids, scores, unread, strict=True)
        ]

    def _threshold(self, when: Condition) -> float:
        own = self._moderators[when.text].thresholds[when.text]
        return own if when.threshold is None else when.threshold

    def _moderated(
        self, directives: Sequence[Directive], conversations: Sequence[Conversation]
    ) -> Iterator[tuple[Directive, list[float]]]:
        """The scores of all conversations, for each directive that asks a moderator; each is asked once."""
        asking = [each for each in directives if each.when.kind in CATEGORIES]
        moderators = {id(found): found for each in asking for found in [self._moderators[each.when.text]]}
        told = {name: found.scores(conversations) for name, found in moderators.items()}
        for each in asking:
            scores = told[id(self._moderators[each.when.text])]
            yield each, [float(score[each.when.text]) for score in scores]

    def _answers(
        self, asked: Sequence[tuple[int, Directive]], conversations: Sequence[Conversation], language: str
    ) -> list[LabelReading]:
        if not asked:
            return []
        assert self.judge is not None, "an undecidable directive was asked"
        found: dict[int, LabelReading] = {}
        library = self.library(language)
        requests = [condition_request(library, each, conversations[at]) for at, each in asked]
        for batch in self.judge.label_logprobs(requests):
            found.update(batch)
        return [found[at] for at in range(len(requests))]


def condition_request(library: PromptLibrary, directive: Directive, talk: Conversation) -> LabelRequest:
    """What a judge is asked about a conversation."""
    prompt = Prompt(directive.id, tuple(talk))
    question = library.label_prompt(TEMPLATE, prompt, question=directive.when.text)
    return LabelRequest(messages=question.messages, labels=question.labels)


def _plain(when: Condition, talk: Conversation) -> bool:
    """Whether a condition holds that nobody needs to be asked about."""
    if when.kind == "always":
        return True
    last = next((message.content for message in reversed(talk) if message.role == "user"), None)
    return when.kind == "regex" and last is not None and compiled(when.text).found(last)


def _worth_asking(directives: Sequence[Directive], found: set[str]) -> list[Directive]:
    """Those to ask a judge about: all, or where a fixed answer is found, other ones that stand before it."""
    certain = next((at for at, each in enumerate(directives) if each.answer and each.id in found), None)
    judged = [(at, each) for at, each in enumerate(directives) if each.when.kind == "judge"]
    return [each for at, each in judged if certain is None or (each.answer and at < certain)]
