"""Messages to text to token ids, for one tokenizer.

A chat model gets its tokenizer's chat template. A base model gets the plain form of the Constitutional AI
paper (Bai et al. 2022): blocks of `\\n\\nHuman: …` and `\\n\\nAssistant: …`. In both, when the last message
is the assistant's, its text is left open and the model continues it; else the template's generation prompt
opens a new turn.

What a message says is data. A control string of the tokenizer inside it (`<|im_end|>`) gets a zero-width
space after its first character, so that it reads the same to a person and is no control token to the model;
so do turn markers in the plain form.

Templates that write the date get a fixed one, so that the same messages give the same tokens on every day.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jinja2

from rlaif.engines.chat_template import ChatTemplate
from rlaif.errors import ModelError
from rlaif.sandbox import RENDER_ERRORS
from rlaif.types import Message

__all__ = ["TEMPLATE_REFUSED", "TemplateRefusal", "ChatFormat", "end_tokens", "neutralize"]

ZERO_WIDTH = "\u200b"
REPLACEMENT = "\ufffd"
OPEN_END = "[\u2060open end\u2060]"
"""Stands for the assistant's open text while the template renders; the text goes where its last occurrence
is."""

FIXED_DATE = "26 Jul 2024"
TODAY = "strftime_now"
FIXED_TODAY = f"{{% macro {TODAY}(format) %}}{FIXED_DATE}{{% endmacro %}}{{{{ '' }}}}"
"""Goes in front of a template that asks for the date; the empty expression keeps the template's own first
newline."""

MARKUP = re.compile(r"[<>\[\]{}|｜]")
TURN_MARKER = re.compile(r"^([^\S\n]*)([HA])(?=(?:uman|ssistant)[^\S\n]*:)", re.MULTILINE | re.IGNORECASE)
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def end_tokens(model: Any, form: ChatFormat) -> frozenset[int]:
    """The tokens that end a completion of `model`, by tokenizer, generation config and chat template.

    Raises:
        ModelError: The generation config names what is no token.
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = [
        token for token in (configured if isinstance(configured, list) else [configured]) if token is not None
    ]
    if not all(isinstance(token, int) for token in several):
        raise ModelError(
            f"its generation config says `eos_token_id` is {str(configured)[:40]}, which is not a token id",
            where=form.name,
            remedy="fetch or save the model again",
        )
    return frozenset(
        int(token) for token in (form.tokenizer.eos_token_id, *several, *form.turn_end) if token is not None
    )


def neutralize(text: str, specials: Sequence[str]) -> str:
    """Make every string of `specials` inside `text` inert; the result contains none of them.

    A zero-width space goes after its first character; a special of one character becomes U+FFFD.
    """
    pattern = _any_of(tuple(specials))
    while pattern is not None and pattern.search(text) is not None:
        text = pattern.sub(_break, text)
    return text


@lru_cache(maxsize=64)
def _any_of(strings: tuple[str, ...]) -> re.Pattern[str] | None:
    """Matches the longest of the strings at the leftmost place, as a tokenizer does; `None` when there are
    none."""
    found = sorted({string for string in strings if string}, key=lambda string: (-len(string), string))
    return re.compile("|".join(map(re.escape, found))) if found else None


def _break(match: re.Match[str]) -> str:
    text = match.group()
    return text[0] + ZERO_WIDTH + text[1:] if len(text) > 1 else REPLACEMENT


class TemplateRefusal(ModelError):
    """The chat template refuses one conversation: an engine refuses that request, and goes on with the
    others."""


TEMPLATE_REFUSED = "template_refused"
"""The reason of a request that the chat template refuses."""


class ChatFormat:
    """How one tokenizer writes a conversation. It is also a `TokenCount`: it needs no weights.

    Attributes:
        chat: Whether the tokenizer has a chat template.
        specials: The control strings that messages may not contain.
        stops: Strings that end a completion besides the end tokens (the plain form's next turn).
        turn_end: Ids of the control token that the template ends an assistant's turn with, if any.
        reads_clock: Whether the template writes the date by the clock alone, so that another program's
            rendering differs from day to day.
    """

    def __init__(self, tokenizer: Any, *, name: str = "") -> None:
        self.tokenizer = tokenizer
        self.name = name or str(getattr(tokenizer, "name_or_path", ""))
        self.chat = bool(tokenizer.chat_template)
        added = tokenizer.added_tokens_decoder
        self.specials = tuple(
            sorted({*tokenizer.all_special_tokens, *(str(t) for t in added.values() if _is_control(t))})
        )
        self._ids = {tokenizer.convert_tokens_to_ids(text) for text in self.specials} - {
            tokenizer.unk_token_id
        }
        # Matched on normalised text: what looks harmless may become such a token (a full-width bracket under
        # NFKC).
        self._loose = any(token.normalized for token in added.values() if str(token) in self.specials)
        cuts_clean = (
            all(not (t.normalized or t.lstrip or t.single_word) for t in added.values()) and tokenizer.is_fast
        )
        self._hard = _any_of(tuple(str(token) for token in added.values())) if cuts_clean else None
        template = tokenizer.get_chat_template() if self.chat else ""
        dated = FIXED_TODAY + template if TODAY in template else template
        self._written = ChatTemplate(tokenizer, dated) if self.chat else None
        if self.chat:
            self._check_reads_prompts()
        self.reads_clock = TODAY in template and "date_string" not in template
        self._bos = self._leading_ids()
        self._has_system = self.chat and self._keeps_system()
        self.turn_end = self._turn_end() if self.chat else ()
        self.stops: tuple[str, ...] = () if self.chat else (HUMAN,)

    @property
    def date(self) -> str:
        """What templates are told as the date."""
        return FIXED_DATE

    @property
    def control_ids(self) -> list[int]:
        """Ids of the control strings, in the order of their text."""
        found = (self.tokenizer.convert_tokens_to_ids(text) for text in self.specials)
        return list(dict.fromkeys(each for each in found if isinstance(each, int)))

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the model will read it (a BOS token that the plain form adds is not shown).

        Raises:
            ModelError: The chat template refuses the conversation.
        """
        return self._render_chat(messages) if self.chat else self._render_plain(messages)

    def count(self, messages: Sequence[Message]) -> int:
        """Length in tokens of the rendered conversation, the generation prompt included."""
        return len(self.encode([self.render(messages)])[0])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered conversations."""
        return [[*self._bos, *ids] for ids in self.encode_raw(texts)]

    def encode_raw(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of pieces of text, nothing added."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def cut(self, text: str) -> int:
        """Where rendered text may be cut in two without changing its tokens: before its last control token.

        A tokenizer takes control tokens out of the text before anything else, so what is on either side of
        one is tokenised apart. 0 where that cannot be relied on: no control token in the text, or one that
        takes in the space around it.
        """
        last = None
        if self._hard is not None:
            for last in self._hard.finditer(text):  # noqa: B007 (the last match is wanted)
                pass
        return 0 if last is None else last.start()

    def inert(self, text: str) -> str:
        """A message's text with nothing in it that could act as a control token or, in the plain form, as a
        turn."""
        text = neutralize(_encodable(text), self.specials)
        while self._loose and (at := self._first_control(text)) is not None:
            text = text[:at] + REPLACEMENT + text[at + 1 :]
        return text if self.chat else TURN_MARKER.sub(rf"\1\2{ZERO_WIDTH}", text)

    def _render_chat(self, messages: Sequence[Message]) -> str:
        turns = self._turns(messages)
        if turns and turns[-1]["role"] == "assistant":
            opened = turns[-1]["content"]
            text = self._template([*turns[:-1], {"role": "assistant", "content": OPEN_END}], False)
            head, found, _ = text.rpartition(OPEN_END)
            # A template that rewrites or leaves out the last answer: open a turn and put the text there.
            return (head if found else self._template(turns[:-1], True)) + opened
        return self._template(turns, True)

    def _turns(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """The messages as the template takes them: inert, and the system text in front of the first user turn
        where it has no role."""
        turns = [{"role": message.role, "content": self.inert(message.content)} for message in messages]
        if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
            turns.pop()
        if self._has_system or not turns or turns[0]["role"] != "system":
            return turns
        system, rest = turns[0]["content"], turns[1:]
        if rest and rest[0]["role"] == "user":
            return [{"role": "user", "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]
        return [{"role": "user", "content": system}, *rest]

    def _template(self, turns: list[dict[str, str]], open_turn: bool) -> str:
        assert self._written is not None
        try:
            return self._written.render(turns, open_turn=open_turn, date_string=FIXED_DATE)
        except (jinja2.TemplateError, *RENDER_ERRORS) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            remedy = (
                "check the order of the turns: most templates want user and assistant in turn, the "
                "system's text first"
            )
            raise TemplateRefusal(
                f"the chat template refuses the turns {roles}: {error}", where=self.name, remedy=remedy
            ) from None

    def _render_plain(self, messages: Sequence[Message]) -> str:
        parts: list[str] = []
        for message in messages:
            text = self.inert(message.content)
            if message.role == "system":
                parts.append(f"\n\n{text}" if parts else text)
            elif message.role == "user":
                parts.append(f"{HUMAN} {text}")
            else:
                parts.append(f"{ASSISTANT} {text}" if text else ASSISTANT)
        if not messages or messages[-1].role != "assistant":
            parts.append(ASSISTANT)
        return "".join(parts)

    def _leading_ids(self) -> tuple[int, ...]:
        """What the tokenizer puts before a text by itself, such as BOS. A chat template writes that
        itself."""
        if self.chat:
            return ()
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        starts = (at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare)
        return tuple(full[: next(starts, 0)])

    def _check_reads_prompts(self) -> None:
        """Refuse a template under which every prompt is the same.

        Raises:
            ModelError: It leaves the user's text out.
        """
        try:
            text = self._template([{"role": "user", "content": OPEN_END}], True)
        except ModelError:
            return  # it wants other turns; what it refuses is refused by the request
        if OPEN_END.strip() not in text:
            raise ModelError(
                "the chat template leaves out what the user says: every prompt would look the same",
                where=self.name,
                remedy="use the chat template of the model's own repository",
            )

    def _keeps_system(self) -> bool:
        try:
            text = self._template(
                [{"role": "system", "content": OPEN_END}, {"role": "user", "content": "a"}], True
            )
        except ModelError:
            return False
        return OPEN_END in text

    def _turn_end(self) -> tuple[int, ...]:
        """The control token right behind an assistant's text, found by rendering one."""
        try:
            text = self._template(
                [{"role": "user", "content": "a"}, {"role": "assistant", "content": OPEN_END}], False
            )
        except ModelError:
            return ()
        tail = text.rpartition(OPEN_END)[2].lstrip()
        pattern = _any_of(self.specials)
        match = pattern.match(tail) if pattern is not None else None
        return () if match is None else (int(self.tokenizer.convert_tokens_to_ids(match.group())),)

    def _first_control(self, text: str) -> int | None:
        """Where the first control token of `text` begins, after the tokenizer's own normalisation."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return next(
            (start for token, (start, end) in spans if token in self._ids and text[start:end] != REPLACEMENT),
            None,
        )


def _is_control(token: Any) -> bool:
    """Special tokens, and added tokens that look like markup (`<think>`); not added words or runs of
    spaces."""
    text = str(token)
    if not text.strip():
        return False
    return bool(token.special) or (len(text) > 1 and MARKUP.search(text) is not None)


def _encodable(text: str) -> str:
    """Without lone surrogates, which no tokenizer takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
