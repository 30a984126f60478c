"""What a server answers to `POST /v1/completions` with `return_token_ids`, read without trust."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.engines.api.wire import Malformed
from rlaif.errors import ModelError

__all__ = ["Drawn", "read_draws"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One completion: its tokens, the end token included, and their log-probabilities as the server has
    them."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


def read_draws(
    body: Any, *, prompt: Sequence[int], samples: int, ends: frozenset[int], vocabulary: int, longest: int
) -> tuple[Drawn, ...]:
    """The completions of one prompt, by their index.

    Args:
        ends: Tokens that end a turn.
        vocabulary: Rows of the model's embedding.
        longest: Tokens that were asked for at most.

    Raises:
        Malformed: The reply makes no sense; another try may.
        ModelError: The server does something else than was asked, and will again.
    """
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
        raise Malformed("no_choices")
    by_index = {choice.get("index"): choice for choice in choices if type(choice.get("index")) is int}
    if len(choices) != samples or set(by_index) != set(range(samples)):
        raise Malformed("missing_choices")
    drawn = tuple(_drawn(by_index[index], vocabulary) for index in range(samples))
    for index, each in enumerate(drawn):
        _check_prompt(by_index[index].get("prompt_token_ids"), prompt)
        _check_end(each, by_index[index].get("finish_reason"), ends, longest)
    return drawn


def _drawn(choice: Mapping[str, Any], vocabulary: int) -> Drawn:
    ids = choice.get("token_ids")
    if ids is None:
        raise ModelError(
            "the server sends no token ids, and text tokenised again is not what was sampled",
            remedy="use a vLLM that knows return_token_ids (0.10.2 or newer)",
        )
    if not isinstance(ids, list) or not ids or not all(type(i) is int and i >= 0 for i in ids):
        raise Malformed("token_ids")
    if max(ids) >= vocabulary:
        raise ModelError(
            f"the server drew token {max(ids)}, and the base here has a vocabulary of {vocabulary} tokens",
            remedy="serve the same base",
        )
    told = choice.get("logprobs")
    logprobs = told.get("token_logprobs") if isinstance(told, Mapping) else None
    if not isinstance(logprobs, list) or len(logprobs) != len(ids):
        raise Malformed("logprobs")
    if not all(isinstance(x, int | float) and math.isfinite(x) and x <= 1e-3 for x in logprobs):
        raise Malformed("logprobs")
    return Drawn(tuple(ids), tuple(map(float, logprobs)))


def _check_prompt(told: Any, prompt: Sequence[int]) -> None:
    if told is not None and told != list(prompt):
        raise ModelError(
            "the server read another prompt than it was sent",
            remedy="serve the base without a prompt prefix or adapter of its own",
        )


def _check_end(drawn: Drawn, finish: Any, ends: frozenset[int], longest: int) -> None:
    """Refuse a completion that ended otherwise than one sampled here would have."""
    if len(drawn.ids) > longest or finish not in ("stop", "length"):
        raise Malformed("finish_reason")
    if ends & set(drawn.ids[:-1]):
        what = "goes on after a token that ends a turn"
    elif finish == "stop" and drawn.ids[-1] not in ends:
        what = f"ends a turn at token {drawn.ids[-1]}, which ends none here"
    elif finish == "length" and len(drawn.ids) < longest and drawn.ids[-1] not in ends:
        what = f"cut a completion at {len(drawn.ids)} tokens, not at {longest}"
    else:
        return
    raise ModelError(
        f"the server {what}",
        remedy="serve the same base, with --generation-config vllm and its whole context",
    )
