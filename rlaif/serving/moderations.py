"""Prompts scored before they are decoded, and `POST /v1/moderations`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Request
from pydantic import Field

from rlaif.errors import DataError, ModelError
from rlaif.moderation.base import Scores, flagged
from rlaif.serving.answers import ModerationAnswer
from rlaif.serving.decoder import Decoder, NotServing, QueueFull
from rlaif.serving.description import errors
from rlaif.serving.moderating import Moderation
from rlaif.serving.refusal import Refusal
from rlaif.serving.wire import MOST_MESSAGES, ChatCompletion, ChatMessage, Form
from rlaif.serving.work import Finished, Job, emit_blocked
from rlaif.types import Message

__all__ = ["ModerationRequest", "add_moderations", "blocked_at_once", "scored", "tell"]

MOST_INPUTS = 128
"""Texts that one request asks about."""


class Exchange(Form):
    """A conversation to score: a prompt, or an exchange where the last message is the assistant's."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)


class ModerationRequest(Form):
    """The body of `POST /v1/moderations`.

    Attributes:
        input: A text, which is scored as a prompt; several; or a conversation.
        model: Ignored: the server has one moderation.
    """

    input: str | Annotated[list[str], Field(fail_fast=True)] | Exchange
    model: str | None = None

    def conversations(self) -> list[list[Message]]:
        """What is to be scored.

        Raises:
            Refusal: Nothing, or too much.
        """
        if isinstance(self.input, Exchange):
            return [[each.message() for each in self.input.messages]]
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not 0 < len(texts) <= MOST_INPUTS:
            what = f"from 1 to {MOST_INPUTS} texts are scored at a time, not {len(texts)}"
            raise Refusal(400, what, param="input")
        return [[Message("user", text)] for text in texts]


async def scored(
    moderation: Moderation, batcher: Decoder, conversations: Sequence[Sequence[Message]], *, param: str
) -> list[Scores]:
    """The moderator's scores, computed between two steps of the decoder.

    Args:
        param: The field of the request that holds the conversations.

    Raises:
        Refusal: The moderator cannot read a conversation, or fails; or the server is busy or stopping.
    """
    try:
        done = batcher.call(lambda: moderation.moderator.scores(conversations))
        return await asyncio.wrap_future(done)
    except QueueFull as full:
        raise Refusal(429, str(full), code="queue_full", retry_after=full.retry_after) from None
    except NotServing as stopping:
        raise Refusal(503, str(stopping), retry_after=5) from None
    except (DataError, ModelError) as error:
        raise Refusal(400, f"the moderator cannot read this: {error.what}", param=param) from None
    except RuntimeError as error:  # of torch: no memory, for one
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refusal(500, f"the moderator failed: {first}") from None


async def blocked_at_once(
    moderation: Moderation | None, batcher: Decoder, jobs: Sequence[Job], messages: Sequence[Message]
) -> bool:
    """Score a conversation before it is decoded; one that is flagged is answered here.

    Args:
        jobs: Those that would answer it; a fixed answer has none, and is given whatever was asked.

    Raises:
        Refusal: It cannot be scored.
    """
    if moderation is None or not jobs:
        return False
    (scores,) = await scored(moderation, batcher, [messages], param="messages")
    flag = moderation.flag_of(scores)
    if flag is None:
        return False
    for job in jobs:
        for choice in range(1 if job.best_only else job.samples):
            emit_blocked(job, choice, flag)
        job.emit(Finished(prompt_tokens=len(job.ids), completion_tokens=0))
    return True


def tell(moderation: Moderation | None, jobs: Sequence[Job], answer: ChatCompletion) -> list[str]:
    """Count what was blocked of an answer, and how long it was held; returns lines for the log, which name
    categories and scores and hold no texts."""
    if moderation is None:
        return []
    rows = [row for job in jobs for row in job.rows]
    for row in rows:
        if row.hold is not None:
            moderation.counts.held(row.hold.held)
    lines = []
    for choice, ended in sorted(answer.ended.items()):
        if ended.flag is not None:
            where = "answer" if any(job.first_token for job in jobs) else "prompt"
            moderation.counts.blocked(ended.flag.category, where)
            category, score = ended.flag
            lines.append(f"blocked {where} {category} {score:.3f} choice={choice} id={answer.head['id']}")
    return lines


def add_moderations(app: FastAPI, moderation: Moderation | None, batcher: Decoder) -> None:
    """Answer `POST /v1/moderations`."""

    @app.post("/v1/moderations", response_model=ModerationAnswer, responses=errors(404, 429, 503))
    async def moderations(request: Request, body: ModerationRequest) -> Any:
        if moderation is None:
            what = "this server does not moderate: start it with --moderation"
            raise Refusal(404, what, code="no_moderation")
        found = await scored(moderation, batcher, body.conversations(), param="input")
        return {
            "id": f"modr-{request.state.request_id}",
            "model": f"rlaif-moderation-{moderation.moderator.digest}",
            "results": [_result(each, moderation.moderator.thresholds) for each in found],
        }


def _result(scores: Scores, thresholds: Scores) -> dict[str, Any]:
    names = set(flagged(scores, thresholds))
    return {
        "flagged": bool(names),
        "categories": {name: name in names for name in scores},
        "category_scores": {name: float(score) for name, score in scores.items()},
    }
