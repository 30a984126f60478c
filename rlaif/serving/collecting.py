"""What is kept of what is asked and answered, with consent, and what people say about it.

A request with `store: true` is kept when its response is complete, and the response says whether it was. The
file is written by a thread of its own (`rlaif.chats.keeper`); an answer waits for it a few seconds at most,
and goes out as well where the file cannot be written.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI
from pydantic import Field

from rlaif.chats.keeper import ChatKeeper, KeeperBusy
from rlaif.chats.records import Answer, Exchange
from rlaif.chats.store import ChatsFile, RefusedVote, UnknownChat
from rlaif.serving.answers import DeletedAnswer, FeedbackAnswer, PreferenceAnswer
from rlaif.serving.description import errors
from rlaif.serving.metrics import Metrics
from rlaif.serving.refusal import Refusal
from rlaif.serving.wire import ChatRequest, Form, event
from rlaif.text import well_formed

__all__ = ["Collecting", "add_routes", "kept", "kept_stream"]

PATIENCE = 5.0
"""Seconds that an answer waits for its place on the disk."""
DONE = b"data: [DONE]"
LONGEST_FLAG = 2_000
LONGEST_ID = 200
MOST_CHOICES = 128
OF_CHOICES = ("moderation", "label", "reward")
"""What is kept of a choice beside its text and finish."""
Id = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
Result = TypeVar("Result")


class FeedbackRequest(Form):
    """The body of `POST /v1/feedback`.

    Attributes:
        vote: null takes an earlier vote back; beside a flag it says nothing about the vote.
        flag: What is wrong with the answer.
    """

    id: Id
    vote: Literal["up", "down"] | None = None
    flag: Annotated[str, Field(min_length=1, max_length=LONGEST_FLAG)] | None = None
    choice: Annotated[int, Field(ge=0, lt=MOST_CHOICES)] = 0


class PreferenceRequest(Form):
    """The body of `POST /v1/preferences`."""

    chosen: Id
    rejected: Id
    tie: bool = False


@dataclass(frozen=True)
class Collecting:
    """A server's file of chats.

    Attributes:
        policies: Digest of what answers under each model name.
        consent: What people are told before they agree.
    """

    keeper: ChatKeeper
    policies: Mapping[str, str]
    consent: str
    metrics: Metrics = field(default_factory=Metrics)
    log: Callable[[str], None] = lambda line: None

    @classmethod
    def of(
        cls,
        keeper: ChatKeeper | None,
        policies: Mapping[str, str],
        consent: str,
        metrics: Metrics,
        log: Callable[[str], None],
    ) -> Collecting | None:
        """Of a keeper, if there is one."""
        return None if keeper is None else cls(keeper, policies, consent, metrics, log)

    @property
    def info(self) -> dict[str, Any]:
        """For `GET /v1/info`: `{"consent": text, "retain_days": days or null}`."""
        age = self.keeper.retain
        return {"consent": self.consent, "retain_days": None if age is None else age.total_seconds() / 86_400}

    async def keep(self, asked: ChatRequest, body: Mapping[str, Any]) -> bool:
        """Keep an exchange; whether it is on the disk."""

        def add(file: ChatsFile) -> None:
            user = None if asked.user is None else file.hashed(asked.user)
            file.add(self._exchange(asked, body, user))

        try:
            await self.done(add)
        except (sqlite3.Error, KeeperBusy, TimeoutError) as error:
            self.metrics.count("rlaif_chats_failed_total")
            self.log(f"chats: {body['id']} could not be stored ({error})")
            return False
        self.metrics.count("rlaif_chats_stored_total")
        return True

    async def done(self, work: Callable[[ChatsFile], Result]) -> Result:
        """What `work` makes of the file.

        Raises:
            TimeoutError: It had not begun in time, and will not.
        """
        promised = self.keeper.do(work)
        waiting = asyncio.wrap_future(promised)
        await asyncio.wait((waiting,), timeout=PATIENCE)
        if not waiting.done() and promised.cancel():
            raise TimeoutError("the disk took too long")
        return await waiting  # it is being written: soon done, or given up by the database's own timeout

    def _exchange(self, asked: ChatRequest, body: Mapping[str, Any], user: str | None) -> Exchange:
        directives = body.get("directives") or {}
        return Exchange(
            id=body["id"],
            time=self.keeper.clock(),
            user=user,
            model=asked.model,
            policy=self.policies.get(asked.model, ""),
            directives=directives.get("digest"),
            messages=tuple(message.message() for message in asked.messages),
            answers=tuple(_answer(choice) for choice in body["choices"]),
            usage=body.get("usage"),
            metadata=asked.metadata or {},
        )


async def kept(chats: Collecting | None, asked: ChatRequest, body: dict[str, Any]) -> dict[str, Any]:
    """A whole response, kept if the request agrees to it; it then says whether it was."""
    if not asked.store:
        return body
    return body | {"stored": chats is not None and await chats.keep(asked, body)}


async def kept_stream(
    chats: Collecting | None,
    asked: ChatRequest,
    events: AsyncIterator[bytes],
    usage: Callable[[], Mapping[str, Any] | None] = lambda: None,
) -> AsyncIterator[bytes]:
    """A streamed response, kept if the request agrees to it; its last chunk then says whether it was.

    A chunk that may be the last is held until the next event: what a client reads before is not delayed.

    Args:
        usage: What the response used, where its chunks do not say it.
    """
    gathered, held = _Gathered(), None
    async with aclosing(events) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            chunk = _chunk(piece) if asked.store else None
            if held is not None and piece.startswith(DONE):
                held["stored"] = chats is not None and await chats.keep(asked, gathered.body(usage()))
            if held is not None:
                yield event(held)
                held = None
            if chunk is not None and gathered.add(chunk):
                held = chunk
            else:
                yield piece


class _Gathered:
    """A response put together from its chunks, as a client would."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: dict[str, Any]) -> bool:
        """Take in a chunk; whether it may be the last: it ends a choice, or has the usage."""
        self._head |= {name: value for name, value in chunk.items() if name != "choices"}
        for told in chunk.get("choices", ()):
            choice = self._choices.setdefault(told["index"], {"index": told["index"], "content": ""})
            choice["content"] += told.get("delta", {}).get("content") or ""
            choice |= {
                name: told[name] for name in (*OF_CHOICES, "finish_reason") if told.get(name) is not None
            }
        return bool(chunk.get("usage")) or any(told.get("finish_reason") for told in chunk.get("choices", ()))

    def body(self, usage: Mapping[str, Any] | None) -> dict[str, Any]:
        """The whole response."""
        choices = [
            {**choice, "message": {"content": choice["content"]}}
            for _, choice in sorted(self._choices.items())
        ]
        return {**self._head, "usage": self._head.get("usage") or usage, "choices": choices}


def _chunk(piece: bytes) -> dict[str, Any] | None:
    """The object of a server-sent event; None where it has none, as `[DONE]`, or is an error."""
    _, data, text = piece.partition(b"data: ")
    if not data or not text.startswith(b"{"):
        return None
    found: dict[str, Any] = json.loads(text)
    return None if "error" in found else found


def _answer(choice: Mapping[str, Any]) -> Answer:
    extra = {name: choice[name] for name in OF_CHOICES if choice.get(name) is not None}
    text, finish = choice["message"].get("content") or "", choice.get("finish_reason") or ""
    return Answer(choice["index"], text, finish, extra)


def add_routes(app: FastAPI, chats: Collecting | None) -> None:
    """Votes, preferences and deletion; without a file of chats they say that there is none."""

    @app.post("/v1/feedback", response_model=FeedbackAnswer, responses=errors(404, 503))
    async def feedback(body: FeedbackRequest) -> Any:
        if body.flag is None and "vote" not in body.model_fields_set:
            raise Refusal(400, "send a vote (up, down, or null to take it back) or a flag", param="vote")
        votes = body.vote is not None or body.flag is None

        def write(file: ChatsFile, collecting: Collecting) -> None:
            time = collecting.keeper.clock()
            if votes:
                file.vote(body.id, body.choice, body.vote, time)
            if body.flag is not None:
                file.flag(body.id, body.choice, well_formed(body.flag), time)

        await _written(chats, write, "id")
        return {"id": body.id, "object": "chat.feedback", "vote": body.vote, "flag": body.flag} | (
            {"choice": body.choice}
        )

    @app.post("/v1/preferences", response_model=PreferenceAnswer, responses=errors(404, 503))
    async def preferences(body: PreferenceRequest) -> Any:
        def write(file: ChatsFile, collecting: Collecting) -> None:
            file.prefer(body.chosen, body.rejected, collecting.keeper.clock(), tie=body.tie)

        await _written(chats, write, "chosen")
        return {"object": "chat.preference", **body.model_dump()}

    @app.delete("/v1/chats/{id}", response_model=DeletedAnswer, responses=errors(404, 503))
    async def delete(id: str) -> Any:
        await _written(chats, lambda file, _: file.remove(id), "id")
        return {"id": id, "object": "chat.deleted", "deleted": True}


async def _written(
    chats: Collecting | None, write: Callable[[ChatsFile, Collecting], None], param: str
) -> None:
    """Have something written that a client asked for.

    Raises:
        Refusal: There is no file of chats or no such exchange, or it cannot be written.
    """
    if chats is None:
        what = "this server keeps no chats: start it with --collect FILE"
        raise Refusal(404, what, code="not_collecting")
    try:
        await chats.done(lambda file: write(file, chats))
    except UnknownChat as unknown:
        raise Refusal(404, str(unknown), param=param, code="chat_not_found") from None
    except RefusedVote as refused:
        raise Refusal(400, str(refused), param=refused.param) from None
    except (sqlite3.Error, KeeperBusy, TimeoutError) as error:
        chats.metrics.count("rlaif_chats_failed_total")
        chats.log(f"chats: what was sent about an exchange could not be stored ({error})")
        raise Refusal(503, "the file of chats cannot be written now", retry_after=5) from None
