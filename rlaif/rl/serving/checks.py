"""What servers are asked before they are handed an adapter: do they serve this base, with its tokens?

Each question is answered as far as a server tells; log-probabilities, which tell all but the ends of a turn,
are compared afterwards (`probe`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.engines.api.calls import Rejected
from rlaif.engines.chat import ChatFormat
from rlaif.errors import ModelError
from rlaif.models.alias import ALIASES
from rlaif.models.load import HUB_NAME, resolve, weights_digest
from rlaif.rl.serving.requests import forced_request
from rlaif.rl.serving.servers import Connection
from rlaif.types import Message

__all__ = ["Expected", "check_servers"]

TEXT = "The 7 wise owls said: «naïve café» — 你好, then 3.14159 & <b>left</b>.\n\n  End"
"""What tokenizers are likely to cut differently."""
BEYOND = 1 << 24
"""A token that no vocabulary has."""
VOCABULARY = re.compile(r"Vocabulary size: ([0-9]{1,9})\b")
COMMIT = re.compile(r"[0-9a-f]{40}")
CONTROLS = 64
"""Control tokens that are tried as ends, at most: some tokenizers keep hundreds in reserve."""
SAME_BASE = "serve the same base, of the same revision, with its own tokenizer and chat template"


@dataclass(frozen=True, slots=True)
class Expected:
    """The base as this process has it.

    Attributes:
        name: As the user named it.
        revision: Of its files; empty where its weights are not those of files (an adapter was merged).
        form: Its tokenizer and chat template.
        vocabulary: Rows of its embedding.
        ends: Tokens that end a turn.
    """

    name: str
    revision: str
    form: ChatFormat
    vocabulary: int
    ends: frozenset[int]


async def check_servers(servers: Connection, base: str, expected: Expected) -> None:
    """Ask every server, under the base's name `base`.

    Raises:
        ModelError: One serves another base, cuts or renders text into other tokens, or ends turns elsewhere.
    """
    for at, url in enumerate(servers.urls):
        if why := other_base(servers.root(at, base), expected):
            raise ModelError(f"the server serves another base: {why}", where=url, remedy=SAME_BASE)
        await _check_vocabulary(servers, at, base, expected)
        await _check_tokens(servers, at, base, expected)
        await _check_ends(servers, at, base, expected)


def other_base(root: str, expected: Expected) -> str:
    """Why what a server loaded from `root` is not the base; empty where it may be.

    A hub's name is held against a name, a commit in a cache's path against a commit, and a folder that this
    process sees, too, against a folder by its weights.
    """
    name, revision = expected.name, expected.revision
    if not root or not revision:
        return ""
    if Path(root).is_dir():
        return _other_folder(Path(root), name)
    commits = [part for part in Path(root).parts if COMMIT.fullmatch(part)]
    if commits and COMMIT.fullmatch(revision) and commits[-1] != revision:
        return f"commit {commits[-1][:12]}, and here it is {revision[:12]}"
    own, theirs = HUB_NAME.fullmatch(name), HUB_NAME.fullmatch(root)
    if own and theirs and "/" in own["repo"] and "/" in theirs["repo"] and not Path(name).exists():
        return f"{root}, and here it is {name}" if own["repo"].lower() != theirs["repo"].lower() else ""
    return ""


def _other_folder(root: Path, name: str) -> str:
    if name not in ALIASES and not Path(name).is_dir():
        return ""
    own = resolve(name, weights=False).path
    if own.resolve() == root.resolve() or not any(root.glob("*.safetensors")):
        return ""
    same = weights_digest(root, config=False) == weights_digest(own, config=False)
    return "" if same else f"the weights in {root} are not those in {own}"


async def _check_vocabulary(servers: Connection, at: int, base: str, expected: Expected) -> None:
    body = forced_request(base, (0,), 0, ends=()) | {"logit_bias": {str(BEYOND): 0.0}, "max_tokens": 1}
    del body["allowed_token_ids"]
    try:
        await servers.ask(at, body)
    except Rejected as refused:
        told = VOCABULARY.search(refused.said)
        if told and int(told[1]) != expected.vocabulary:
            raise ModelError(
                f"the server's base has a vocabulary of {told[1]} tokens, the base here one of "
                f"{expected.vocabulary}",
                where=servers.urls[at],
                remedy=SAME_BASE,
            ) from None


async def _check_tokens(servers: Connection, at: int, base: str, expected: Expected) -> None:
    """Refuse a server that cuts text into other tokens, or renders other turns."""
    form = expected.form
    text: dict[str, Any] = {"model": base, "prompt": TEXT, "add_special_tokens": False}
    asked = [("tokenizer cuts a text into other tokens than", text, form.encode_raw([TEXT])[0])]
    if form.chat and not form.reads_clock:
        turns = {
            "model": base,
            "messages": [{"role": "user", "content": TEXT}],
            "add_generation_prompt": True,
            "add_special_tokens": False,
            "chat_template_kwargs": {"date_string": form.date},
        }
        rendered = form.encode([form.render([Message("user", TEXT)])])[0]
        asked.append(("chat template renders a turn otherwise than", turns, rendered))
    for what, body, own in asked:
        told = await servers.tokenize(at, body)
        if told is not None and told != own:
            raise ModelError(
                f"the server's {what} the base's: {_difference(form, told, own)}",
                where=servers.urls[at],
                remedy=SAME_BASE,
            )


def _difference(form: ChatFormat, told: Sequence[int], own: Sequence[int]) -> str:
    """The first token that differs, in words."""
    at = next(
        (at for at, (x, y) in enumerate(zip(told, own, strict=False)) if x != y), min(len(told), len(own))
    )

    def seen(ids: Sequence[int]) -> str:
        return f"{ids[at]} ({form.tokenizer.decode([ids[at]])!r})" if at < len(ids) else "the end"

    return f"token {at} is {seen(told)} there and {seen(own)} here"


async def _check_ends(servers: Connection, at: int, base: str, expected: Expected) -> None:
    """Refuse a server that goes on after a token that ends a turn here, or ends one at another."""
    controls = [each for each in expected.form.control_ids if each < expected.vocabulary]
    tried = [*sorted(expected.ends), *[each for each in controls if each not in expected.ends][:CONTROLS]]
    prompt = expected.form.encode([expected.form.render([Message("user", "abc")])])[0]

    async def ends_at(token: int) -> bool | None:
        body = forced_request(base, prompt, token, ends=expected.ends)
        try:
            return _ended(await servers.ask(at, body), token)
        except Rejected:
            return None

    found = await asyncio.gather(*map(ends_at, tried))
    for token, ended in zip(tried, found, strict=True):
        if ended is not None and ended != (token in expected.ends):
            text = expected.form.tokenizer.decode([token])
            does = "ends" if ended else "does not end"
            raise ModelError(
                f"the server {does} a turn at token {token} ({text!r}), and the base here "
                f"{'does not' if ended else 'does'}",
                where=servers.urls[at],
                remedy="start it with --generation-config vllm, and " + SAME_BASE,
            )


def _ended(reply: Any, token: int) -> bool | None:
    """Whether a forced answer ended at its first token; `None` where it is not the one that was forced."""
    try:
        choice = reply["choices"][0]
        ids, finish = choice["token_ids"], choice["finish_reason"]
    except (TypeError, KeyError, IndexError):
        return None
    if not isinstance(ids, list) or set(ids) != {token}:
        return None
    return bool(finish == "stop" and len(ids) == 1)
