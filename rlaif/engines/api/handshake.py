"""What servers say of themselves, and what they turn out to do: asked once, before the first request.

Asked: `GET /models`, for the revision and the context. Tried out, where the settings leave it open: whether
log-probabilities come (else labels are read by votes), and whether an assistant's turn is continued. The
second shows in what is written: after a turn that stops in the middle of a count, a server that continues it
goes on counting, and one that closes it begins anew. Where the reply is neither, the number of prompt tokens
decides: a turn that is left open takes fewer than one that is closed and followed by the opening of the next.
(The number alone misjudges llama.cpp's server, which continues with and without the flag.) The conversations
of a server that does not continue are folded (see `fold_turns`). What was found is told; `continues` in the
settings overrides it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from rlaif.digest import digest
from rlaif.engines.api.asker import Asker
from rlaif.engines.api.calls import Rejected, Transient
from rlaif.engines.api.forms import Form
from rlaif.engines.api.label_tokens import tells_by_id
from rlaif.engines.api.settings import UNKNOWN_CONTEXT
from rlaif.engines.base import EngineCard, GenerationRequest, LabelRequest, Sampling
from rlaif.errors import ModelError
from rlaif.text import one_line
from rlaif.types import Message

__all__ = ["Handshake", "no_such_model", "shake_hands"]

FEWEST_TOP = 5
"""Most probable tokens that about every server tells that tells any."""
PROBE = LabelRequest(messages=(Message("user", "Answer with one letter, A or B."),), labels=("A", "B"))
COUNT_PROBE = GenerationRequest(
    messages=(
        Message(
            "user",
            "Write the numbers from one to eight as words, with a space between them, and nothing else.",
        ),
        Message("assistant", "one two three four"),
    ),
    sampling=Sampling(max_new_tokens=8, temperature=0.0),
    seed=0,
)
GOES_ON, BEGINS_ANEW = "five", "one"
OPEN_PROBE = LabelRequest(messages=(*PROBE.messages, Message("assistant", "Answer:")), labels=("A", "B"))


class Handshake(NamedTuple):
    """Who answers, and how to ask."""

    card: EngineCard
    form: Form


async def shake_hands(asker: Asker, model: str, log: Callable[[str], None]) -> Handshake:
    """Find out who answers and how to ask.

    Raises:
        ModelError: No server can be reached, the key is refused, the model is not there, or the servers serve
            different models.
    """
    settings = asker.settings
    entry = await _entry(asker, model, log)
    form = Form(
        model=model,
        api=settings.api,
        top=settings.top_logprobs,
        votes=settings.votes,
        continues=bool(settings.continues) or settings.api == "completions",
        extra=dict(settings.extra_body),
    )
    try:
        form = await _with_reading(asker, form)
        if await tells_by_id(asker, form, PROBE, entry):
            form = replace(form, by_id=True)
            log("the server returns log-probabilities by token id: labels are read from their own tokens")
        if settings.continues is None and settings.api == "chat":
            form = replace(form, continues=await _continues(asker, form, log))
    except Transient as error:
        reason: object = error
    except Rejected as error:
        if error.status == 404:
            raise no_such_model(asker, error) from None
        reason = f"{error.reason} {error.detail}"
    else:
        return Handshake(_card(model, entry, form), form)
    raise ModelError(
        f"the server does not answer a short question: {reason}",
        where=_where(asker),
        remedy="see the server's own log",
    )


def no_such_model(asker: Asker, error: Rejected) -> ModelError:
    """The error of a server that answers 404."""
    return ModelError(
        f"the server knows no such model or address (404): {error.detail}",
        where=_where(asker),
        remedy="check the model's name, and that the base URL ends where the server's API begins, mostly in "
        "/v1",
    )


async def _entry(asker: Asker, model: str, log: Callable[[str], None]) -> Mapping[str, Any]:
    """What the servers list under the model's name; they must agree."""
    listed = await asyncio.gather(*(_listed(asker, number) for number in range(len(asker.servers))))
    reached = [entries for entries in listed if entries is not None]
    if not reached:
        raise ModelError(
            "no server answers",
            where=_where(asker),
            remedy="start it (vllm serve MODEL), or correct --base-url",
        )
    for server, entries in zip(asker.servers, listed, strict=True):
        if entries is None:
            log(f"{server.url} does not answer; its share goes to the others until it does")
    found = [entries[model] for entries in reached if model in entries]
    if len({_revision(model, entry) for entry in found}) > 1:
        raise ModelError(
            f"the servers serve different models as {model!r}",
            where=_where(asker),
            remedy="serve the same one on all",
        )
    names = sorted({name for entries in reached for name in entries})
    if not found and names:
        listed_names = ", ".join(asker.redact(one_line(name)) for name in names[:8])
        log(f"no server lists {model!r}; listed: {listed_names}")
    return found[0] if found else {}


async def _listed(asker: Asker, number: int) -> dict[str, Mapping[str, Any]] | None:
    """The models of one server by name: empty when it has no list, `None` when it cannot be reached."""
    try:
        payload = await asker.models(asker.servers[number])
    except Transient:
        return None
    except Rejected:
        return {}
    data = payload.get("data") if isinstance(payload, dict) else None
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    return {str(entry.get("id")): entry for entry in entries}


async def _with_reading(asker: Asker, form: Form) -> Form:
    """The form with the number of log-probabilities that the server tells; 0, so that labels are read by
    votes, when it tells none."""
    if asker.settings.reads == "votes":
        return replace(form, top=0)
    for top in dict.fromkeys((form.top, min(form.top, FEWEST_TOP))):
        for limit in ("max_tokens", "max_completion_tokens"):
            tried = replace(form, top=top, limit=limit)
            try:
                reply = await asker.complete(tried.label(PROBE), home=0)
            except Rejected as error:
                if error.status == 404:
                    raise
                if "max_completion_tokens" not in error.detail:
                    break
                form = replace(form, limit="max_completion_tokens")
            else:
                if reply.choices[0].top:
                    return tried
                break
    if asker.settings.reads == "logprobs":
        raise ModelError(
            "the server returns no log-probabilities",
            where=_where(asker),
            remedy="read labels by votes (reads: votes)",
        )
    return replace(form, top=0)


async def _continues(asker: Asker, form: Form, log: Callable[[str], None]) -> bool:
    """Whether an assistant's turn is continued, by what the server writes; where that is not clear, by the
    tokens it counts."""
    try:
        reply = await asker.complete(replace(form, continues=True).generation(COUNT_PROBE), home=0)
    except Rejected:
        log(
            "the server refuses to continue an assistant's turn; the beginning of an answer is moved to the"
            " user's turn (continues: false)"
        )
        return False
    written = reply.choices[0].text.strip().lower()
    if written.startswith((GOES_ON, BEGINS_ANEW)):
        found, why = written.startswith(GOES_ON), "from what it wrote"
    else:
        found, why = (
            await _counts_fewer(asker, form),
            "from the tokens it counts, which is less sure: see `continues`",
        )
    how = "continues an assistant's turn" if found else "does not continue an assistant's turn"
    log(f"the server {how} ({why})")
    return found


async def _counts_fewer(asker: Asker, form: Form) -> bool:
    """Whether an open turn takes fewer prompt tokens than a closed one."""
    opened = replace(form, continues=True).label(OPEN_PROBE)
    closed = {
        name: value
        for name, value in opened.items()
        if name not in ("add_generation_prompt", "continue_final_message")
    }
    for body in (opened, closed):
        if not form.top:
            body.pop("logprobs", None)
            body.pop("top_logprobs", None)
    try:
        counts = [(await asker.complete(body, home=0)).counts.get("prompt", 0) for body in (opened, closed)]
    except Rejected:
        return False
    return 0 < counts[0] < counts[1]


def _card(model: str, entry: Mapping[str, Any], form: Form) -> EngineCard:
    meta = entry.get("meta") if isinstance(entry.get("meta"), dict) else {}
    told = [entry.get("max_model_len"), entry.get("context_length"), (meta or {}).get("n_ctx")]
    context = next((value for value in told if isinstance(value, int) and value > 0), UNKNOWN_CONTEXT)
    return EngineCard(
        name=model,
        revision=_revision(model, entry),
        kind="openai",
        dtype="server",
        context=context,
        chat=form.api == "chat",
        reads=form.describe(),
    )


def _revision(model: str, entry: Mapping[str, Any]) -> str:
    """A digest of what the server says of the weights (vLLM's `root`, llama.cpp's `meta`); else the model's
    name."""
    said = {
        name: entry[name] for name in ("root", "meta", "revision") if entry.get(name) not in (None, "", model)
    }
    return digest([model, said]) if said else model


def _where(asker: Asker) -> str:
    return ", ".join(server.url for server in asker.servers)
