"""Which prompts a policy can answer: the others are refused one by one, named and counted, before any
training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rlaif.engines.chat import TemplateRefusal
from rlaif.errors import DataError, Problem
from rlaif.rl.rollout import EncodedPrompt, Sampler
from rlaif.types import Message, Prompt

__all__ = ["Asked", "ask_what_can_be_answered"]

SHOWN = 5


class Asked(NamedTuple):
    """The prompts as the first sampler reads them, and the id of each other one with the reason."""

    questions: list[EncodedPrompt]
    refused: list[tuple[str, str]]


def ask_what_can_be_answered(
    prompts: Sequence[Prompt],
    samplers: Sequence[Sampler],
    messages: Callable[[Prompt], Sequence[Message]],
    *,
    max_refused: float,
    drawn: Callable[[int], Iterable[int]] = range,
) -> Asked:
    """Leave out the prompts that one of `samplers` cannot answer.

    These are: longer than the context has room for, refused by the chat template, with a token that has no
    embedding, or such that the model's logits are NaN after reading them.

    Args:
        drawn: Of how many prompts are left, the places of those that will be sampled: the model reads these
            only.

    Raises:
        DataError: More than the share `max_refused` cannot be answered, or none can.
    """
    asked: list[EncodedPrompt] = []
    refused: list[tuple[str, str]] = []
    for prompt in prompts:
        try:
            first, *_ = [sampler.question(prompt, messages(prompt)) for sampler in samplers]
        except (DataError, TemplateRefusal) as error:
            refused.append((prompt.id, error.what))
        else:
            asked.append(first)
    read: set[int] = set()
    while unread := [question for at in drawn(len(asked)) if id(question := asked[at]) not in read]:
        read |= {id(question) for question in unread}
        bad = [unread[at] for at in sorted(samplers[0].unreadable(unread))]
        refused += [
            (question.prompt.id, "the model's logits are NaN or infinite after it") for question in bad
        ]
        asked = [question for question in asked if all(question is not other for other in bad)]
    if prompts and (not asked or len(refused) > max_refused * len(prompts)):
        raise DataError(
            f"{len(refused)} of {len(prompts)} prompts cannot be answered",
            problems=[Problem(reason, where=f"prompt {id}") for id, reason in refused[:SHOWN]],
            remedy="lower `max_new_tokens`, shorten or drop the prompts, or raise `max_refused` to go on "
            "without them",
        )
    return Asked(asked, refused)
