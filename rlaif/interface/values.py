"""Prompts and completions as people write them in Python: a text, chat messages, or our own values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlaif.errors import DataError
from rlaif.io.fields import conversation_of, messages_of, prompt_of
from rlaif.io.rubrics import with_columns
from rlaif.types import Comparison, Completion, Message, Prompt

__all__ = ["Chat", "as_comparison", "as_completions", "as_prompt", "as_prompts", "text_of_completion"]

Chat = str | Sequence[Mapping[str, Any]]
"""A text, or chat messages as `{"role": …, "content": …}`."""


def as_prompt(value: Chat | Prompt | Mapping[str, Any]) -> Prompt:
    """A prompt: a text is one user turn; chat messages end with the user's. A row, `{"prompt": …, "rubric":
    …, "reference": …}`, has what a judge reads beside it.

    Raises:
        DataError: It is none of these, or does not end with the user's turn.
    """
    if isinstance(value, Prompt):
        return value
    if isinstance(value, Mapping) and "prompt" in value:
        return with_columns(as_prompt(value["prompt"]), value)
    messages = conversation_of(value if isinstance(value, str) else _turns(value, "prompt"), "prompt")
    return prompt_of(messages, {}, "context")


def as_prompts(values: Iterable[Chat | Prompt | Mapping[str, Any]]) -> list[Prompt]:
    """Prompts, in their order."""
    return [as_prompt(value) for value in values]


def text_of_completion(value: Chat | Completion) -> str:
    """A completion's text: a text, chat messages of the assistant, or our own value.

    Raises:
        DataError: Another one than the assistant speaks.
    """
    if isinstance(value, Completion):
        return value.text
    if isinstance(value, str):
        return value
    turns: tuple[Message, ...] = messages_of(_turns(value, "completion"), "completion")
    if [turn.role for turn in turns] != ["assistant"]:
        spoken = ", ".join(turn.role for turn in turns)
        raise DataError(
            f"a completion is one turn of the assistant; this has the turns {spoken}",
            remedy="give the conversation before it as the prompt",
        )
    return turns[0].content


def _turns(value: object, what: str) -> list[dict[str, Any]]:
    """The messages of a chat as plain dictionaries."""
    if not isinstance(value, Sequence) or not all(isinstance(each, Mapping) for each in value):
        raise DataError(
            f"{type(value).__name__} is no {what}",
            remedy='give a text, or a list of messages: [{"role": …, "content": …}]',
        )
    return [dict(each) for each in value]


def as_completions(prompts: Sequence[Prompt], values: Sequence[Chat | Completion]) -> list[Completion]:
    """One completion for each prompt, in their order.

    Raises:
        DataError: There are not as many as prompts.
    """
    if len(prompts) != len(values):
        raise DataError(
            f"there are {len(prompts)} prompts and {len(values)} completions",
            remedy="give one for each prompt",
        )
    return [
        _completion(prompt, place, text_of_completion(value))
        for place, (prompt, value) in enumerate(zip(prompts, values, strict=True))
    ]


def as_comparison(
    prompt: Chat | Prompt | Mapping[str, Any], a: Chat | Completion, b: Chat | Completion
) -> Comparison:
    """A prompt with two completions."""
    asked = as_prompt(prompt)
    first, second = (_completion(asked, place, text_of_completion(each)) for place, each in enumerate((a, b)))
    return Comparison(prompt=asked, a=first, b=second)


def _completion(prompt: Prompt, index: int, text: str) -> Completion:
    return Completion(
        id=f"{prompt.id}/{index}", prompt_id=prompt.id, index=index, text=text, finish="given", model="given"
    )
