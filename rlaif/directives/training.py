"""Prompts under the priors of directives, to train a policy that follows them, and the reward for it.

A prompt's draw depends on the seed, the prompt and the directives' ids alone: the same on every machine, and
in every order of the prompts. Conditions and days play no part: what is learned is to follow a prior,
whichever prompt it stands before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rlaif.digest import digest, unit_from
from rlaif.directives.plan import with_prior
from rlaif.directives.trial import question
from rlaif.directives.values import Directive, Directives
from rlaif.engines.base import LEAST_SHARE, Engine, LabelReading
from rlaif.errors import ConfigError, DataError
from rlaif.judging.protocols import log_odds
from rlaif.labels import sigmoid
from rlaif.prompts import PromptLibrary
from rlaif.reward.functions import Scores
from rlaif.types import Completion, Prompt

__all__ = ["DirectiveReward", "Steered", "steer"]


@dataclass(frozen=True)
class Steered:
    """Prompts, some of them under a prior.

    Attributes:
        prompts: In the order in which they came.
        under: The directive whose prior a prompt is under, and the prompt as it was, by the fingerprint of
            the prompt under the prior.
        digest: Of the directives and of the share that was drawn.
    """

    prompts: tuple[Prompt, ...]
    under: Mapping[str, tuple[Directive, Prompt]]
    digest: str


def steer(
    prompts: Sequence[Prompt], directives: Directives, *, share: float, seed: int, asked: bool, where: str
) -> Steered:
    """Put a share of the prompts under the prior of one directive each.

    Args:
        share: Probability of each prompt to be drawn.
        asked: Take those directives only that have a question a judge can reward.
        where: The file, for messages.

    Raises:
        ConfigError: There is no such directive.
        DataError: No prompt was drawn.
    """
    usable = [each for each in directives.directives if each.prior and (each.question or not asked)]
    if not usable:
        wanted = "`prior` and `question`" if asked else "`prior`"
        raise ConfigError(
            f"there is no directive with {wanted} to train on",
            where=where,
            remedy="write one: `prior: Answer in one short sentence.`, `question: Is the response ...?`",
        )
    under: dict[str, tuple[Directive, Prompt]] = {}
    found = []
    for prompt in prompts:
        if unit_from(seed, "directives", prompt.fingerprint()) >= share:
            found.append(prompt)
            continue
        drawn = min(usable, key=lambda each: unit_from(seed, "directive", prompt.fingerprint(), each.id))
        found.append(replace(prompt, messages=with_prior(prompt.messages, drawn.prior)))
        under[found[-1].fingerprint()] = (drawn, prompt)
    if not under:
        what = f"a share of {share:g} of {len(prompts)} prompts has drawn none"
        raise DataError(what, where=where, remedy="raise `share`, or give more prompts")
    return Steered(tuple(found), under, digest([directives.digest, share]))


class DirectiveReward:
    """How surely a judge says that a completion follows the directive whose prior its prompt is under; 0 for
    prompts under none. The judge reads the prompt without the prior.

    Args:
        scale: `log-odds` of the good answer, or its `probability` less a half, so that it is 0 where the
            judge cannot say.
        least_share: Least probability that the two answers must hold together to be valid.
    """

    def __init__(
        self,
        engine: Engine,
        library: PromptLibrary,
        under: Mapping[str, tuple[Directive, Prompt]],
        *,
        scale: Literal["log-odds", "probability"] = "log-odds",
        name: str = "directives",
        least_share: float = LEAST_SHARE,
    ) -> None:
        self.name = name
        self._engine, self._library, self._under = engine, library, under
        self._scale, self._least_share = scale, least_share

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        """One score each.

        Raises:
            DataError: The judge has no valid answer about a completion.
        """
        found = [self._under.get(prompt.fingerprint()) for prompt in prompts]
        asked = [(at, *each) for at, each in enumerate(found) if each is not None]
        requests = [question(self._library, rule, prompt, completions[at].text) for at, rule, prompt in asked]
        readings: dict[int, LabelReading] = {}
        for batch in self._engine.label_logprobs(requests):
            readings.update(batch)
        scores = [0.0] * len(completions)
        for number, (at, rule, _) in enumerate(asked):
            scores[at] = self._score(readings[number], rule, completions[at])
        return Scores(total=tuple(scores), parts={self.name: tuple(scores)})

    def _score(self, reading: LabelReading, rule: Directive, completion: Completion) -> float:
        odds = log_odds(reading, self._least_share)
        if odds is None:
            why = reading.reason or "its answers are unlikely"
            raise DataError(
                f"the judge has no valid answer to the question of directive `{rule.id}` ({why})",
                where=f"completion {completion.id}",
                remedy="word the question so that it names its answers, or lower `min_label_share`",
            )
        return odds if self._scale == "log-odds" else sigmoid(odds) - 0.5
