"""Where a label is read: found by tokenising it in its context.

A prompt and each of its labels are tokenised together. The label tokens are the first ones after the longest
common prefix of all those sequences, and that prefix is what the model is fed. It can be shorter than the
tokenised prompt, where the prompt's end merges with the label, or longer, where the labels begin with a token
in common. Labels that share even the next token cannot be told apart.

A rendered chat ends in a short tail that is the same for thousands of prompts (`<|im_start|>assistant\\n`),
tokenised apart from what is before it: the labels are tokenised with that tail only, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rlaif.engines.base import LabelRequest
from rlaif.engines.chat import TEMPLATE_REFUSED, ChatFormat, TemplateRefusal

__all__ = ["EncodedQuestion", "Tokens", "find_labels"]

Tokens = npt.NDArray[np.int32]
"""Token ids, compact: a million judge prompts are held while their batches are planned."""

CHUNK = 256
"""Prompts tokenised in one call."""

CACHED_TAIL = 2_000
"""Tails up to this many characters are remembered."""


@dataclass(frozen=True, slots=True)
class EncodedQuestion:
    """What is fed for one request, and which tokens are then read.

    Attributes:
        ids: The sequence to feed, `(T,)`.
        labels: The label tokens, in the request's order; empty when there is a reason.
        reason: `labels_alike`, `template_refused`, or empty.
    """

    ids: Tokens
    labels: tuple[int, ...]
    reason: str = ""


class _Tail(NamedTuple):
    ids: tuple[int, ...]
    labels: tuple[int, ...]


def find_labels(form: ChatFormat, requests: Sequence[LabelRequest]) -> Iterator[EncodedQuestion]:
    """The label positions of all requests, in order."""
    known: dict[tuple[str, tuple[str, ...]], _Tail] = {}
    for start in range(0, len(requests), CHUNK):
        chunk = requests[start : start + CHUNK]
        rendered = [_rendered(form, request) for request in chunk]
        texts = [text or "" for text in rendered]
        cuts = [form.cut(text) for text in texts]
        heads = form.encode([text[:cut] for text, cut in zip(texts, cuts, strict=True)])
        for request, refused, text, cut, head in zip(
            chunk, [text is None for text in rendered], texts, cuts, heads, strict=True
        ):
            if refused:
                yield EncodedQuestion(np.array([], dtype=np.int32), (), TEMPLATE_REFUSED)
                continue
            key = (text[cut:], request.labels)
            tail = known.get(key) or _read_tail(form, *key)
            if len(key[0]) <= CACHED_TAIL:
                known[key] = tail
            yield EncodedQuestion(
                np.array([*head, *tail.ids], dtype=np.int32),
                tail.labels,
                "" if tail.labels else "labels_alike",
            )


def _rendered(form: ChatFormat, request: LabelRequest) -> str | None:
    """The conversation as the model reads it; `None` when the chat template refuses it."""
    try:
        return form.render(request.messages)
    except TemplateRefusal:
        return None


def _read_tail(form: ChatFormat, tail: str, labels: tuple[str, ...]) -> _Tail:
    """Tokenise the tail with each label behind it; no labels in the result means that they cannot be told
    apart."""
    sequences = form.encode_raw([tail + label for label in labels])
    shared = next(
        (at for at, column in enumerate(zip(*sequences, strict=False)) if len(set(column)) > 1), None
    )
    shared = min(map(len, sequences), default=0) if shared is None else shared
    prefix = tuple(sequences[0][:shared]) if sequences else ()
    nexts = tuple(ids[shared] for ids in sequences if len(ids) > shared)
    distinct = len(labels) >= 2 and len(nexts) == len(labels) == len(set(nexts))
    return _Tail(prefix, nexts if distinct else ())
