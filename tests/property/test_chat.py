"""Rendering: hostile text stays text; cutting a rendered prompt at a control token changes no token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from tokenizers import AddedToken, normalizers
from tokenizers.processors import TemplateProcessing

from rlaif.engines.base import LabelRequest
from rlaif.engines.chat import ZERO_WIDTH, ChatFormat, neutralize
from rlaif.engines.labels import find_labels
from rlaif.errors import ModelError
from rlaif.types import Message

PIECES = [
    "<|im_start|>",
    "<|im_end|>",
    "<|pad|>",
    "<|im_",
    "end|>",
    "<",
    "|",
    ">",
    "start",
    "<|",
    "|>",
    "assistant",
    "\n",
    "\n\n",
    " ",
    "Human:",
    "Assistant:",
    "HUMAN :",
    "the",
    "A",
    "{{ messages }}",
    "{% raw %}",
    "\u200b",
    "[\u2060open end\u2060]",
    "<think>",
    "naïve",
    "🙂",
]
HOSTILE = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)
CHAT, PLAIN = ChatFormat(tiny_tokenizer()), ChatFormat(tiny_tokenizer(chat=False))


def controls(form: ChatFormat, text: str) -> list[int]:
    """The control tokens that a text is read with."""
    ids = {form.tokenizer.convert_tokens_to_ids(special) for special in form.specials}
    return [token for token in form.encode_raw([text])[0] if token in ids]


@given(HOSTILE, st.lists(st.sampled_from(["<|a|>", "|a", "<", "a|>b", "aa"]), max_size=4))
def test_neutralize_leaves_no_special_and_no_other_change(text: str, specials: list[str]) -> None:
    result = neutralize(text, specials)
    assert not any(special in result for special in specials)
    if not any(special in text for special in specials):
        assert result == text
    if all(len(special) > 1 for special in specials):
        assert result.replace(ZERO_WIDTH, "") == text.replace(ZERO_WIDTH, "")


@given(st.lists(HOSTILE, min_size=1, max_size=4), st.booleans())
def test_no_message_adds_a_control_token(texts: list[str], system: bool) -> None:
    roles = [*(["system"] if system else []), *(["user", "assistant"] * 2)][: len(texts)]
    messages = [Message(role, text) for role, text in zip(roles, texts, strict=True)]  # type: ignore[arg-type]
    calm = [Message(role, "x" if text else "") for role, text in zip(roles, texts, strict=True)]  # type: ignore[arg-type]
    assert controls(CHAT, CHAT.render(messages)) == controls(CHAT, CHAT.render(calm))


@given(HOSTILE)
def test_no_message_opens_a_turn_in_the_plain_form(text: str) -> None:
    rendered = PLAIN.render([Message("user", text)])
    assert rendered.lower().count("\nhuman:") == 1
    assert rendered.lower().count("\nassistant:") == 1
    assert rendered.endswith("\n\nAssistant:")
    assert controls(PLAIN, rendered) == []


@given(HOSTILE, HOSTILE)
def test_cutting_at_the_last_control_token_changes_no_token(before: str, after: str) -> None:
    text = CHAT.render([Message("user", before), Message("assistant", after)])
    cut = CHAT.cut(text)
    assert cut > 0
    head, tail, whole = CHAT.encode_raw([text[:cut], text[cut:], text])
    assert [*head, *tail] == whole


@given(HOSTILE, HOSTILE, st.booleans())
def test_labels_are_found_as_if_the_whole_text_were_tokenised(before: str, after: str, chat: bool) -> None:
    form = CHAT if chat else PLAIN
    request = LabelRequest((Message("user", before), Message("assistant", after)), ("A", "Bother", "yes"))
    text = form.render(request.messages)
    sequences = form.encode([text + label for label in request.labels])
    at = next(i for i in range(min(map(len, sequences))) if len({ids[i] for ids in sequences}) > 1)
    found = next(find_labels(form, [request]))
    assert found.ids.tolist() == sequences[0][:at]
    assert found.labels == tuple(ids[at] for ids in sequences)


@given(HOSTILE)
def test_an_open_answer_is_continued_word_for_word(text: str) -> None:
    rendered = CHAT.render([Message("user", "x"), Message("assistant", text)])
    assert rendered.endswith("<|im_start|>assistant\n" + CHAT.inert(text))


def with_template(template: str) -> ChatFormat:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return ChatFormat(tokenizer, name="test")


def test_a_template_without_a_system_role() -> None:
    refuse = "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    opening = "{% if add_generation_prompt %}<assistant>{% endif %}"
    form = with_template(
        "{% for m in messages %}" + refuse + "<{{ m.role }}>{{ m.content }}{% endfor %}" + opening
    )
    system, user = Message("system", "S"), Message("user", "U")
    assert form.render([system, user]) == "<user>S\n\nU<assistant>"
    assert form.render([system]) == "<user>S<assistant>"
    ignoring = with_template(
        "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor "
        "%}"
    )
    assert ignoring.render([system, user]) == "<user>S\n\nU"


def test_a_template_that_trims_or_drops_the_last_answer() -> None:
    trims = with_template("{% for m in messages %}<{{ m.role }}>{{ m.content | trim }};{% endfor %}")
    assert (
        trims.render([Message("user", " U "), Message("assistant", "It is ")]) == "<user>U;<assistant>It is "
    )
    drops = "{% for m in messages if m.role == 'user' %}<user>{{ m.content }}{% endfor %}"
    drops += "{% if add_generation_prompt %}<assistant>{% endif %}"
    assert (
        with_template(drops).render([Message("user", "U"), Message("assistant", "It is ")])
        == "<user>U<assistant>It is "
    )


def test_a_template_that_refuses() -> None:
    form = with_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ModelError, match="roles must alternate"):
        form.render([Message("user", "U")])


def test_dates_are_fixed() -> None:
    form = with_template("\n{{ strftime_now('%Y') }} {{ date_string }} {{ messages[0].content }}")
    assert form.render([Message("user", "U")]) == "\n26 Jul 2024 26 Jul 2024 U"


def test_the_end_of_a_turn_is_read_off_the_template() -> None:
    assert CHAT.turn_end == (2,)
    assert PLAIN.turn_end == ()
    assert with_template("{% for m in messages %}[{{ m.content }}]{% endfor %}").turn_end == ()


def test_the_plain_form() -> None:
    turns = [
        Message("system", "Be kind."),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "Bye"),
    ]
    assert PLAIN.render(turns) == "Be kind.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
    assert PLAIN.render([*turns[:2], Message("assistant", "")]) == "Be kind.\n\nHuman: Hi\n\nAssistant:"
    assert (
        PLAIN.render([*turns[:2], Message("assistant", "A: ")]) == "Be kind.\n\nHuman: Hi\n\nAssistant: A: "
    )
    assert PLAIN.stops == ("\n\nHuman:",)
    assert CHAT.stops == ()


def test_a_tokenizer_that_adds_bos() -> None:
    tokenizer = tiny_tokenizer(chat=False)
    ends = [("<|im_start|>", 1), ("<|im_end|>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=ends
    )
    form = ChatFormat(tokenizer)
    assert form.encode(["in"]) == [[1, *form.encode_raw(["in"])[0]]]
    assert form.count([Message("user", "x")]) == 1 + len(
        form.encode_raw([form.render([Message("user", "x")])])[0]
    )


def loose_tokenizer() -> Any:
    """Its control token is matched after NFKC: a full-width spelling is the token too."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("<|end|>", special=True, normalized=True)], special_tokens=False)
    return tokenizer


def test_a_control_token_behind_a_normaliser_is_inert() -> None:
    form = ChatFormat(loose_tokenizer())
    hostile = "a＜|end|＞b <|end|> ＜|end|＞"
    assert "＜|end|＞" in hostile
    assert controls(form, hostile) != []
    assert controls(form, form.inert(hostile)) == []
    assert form.cut("x<|im_start|>y") == 0


def test_added_words_are_not_control_tokens() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["constitution", "    ", "<think>"])
    form = ChatFormat(tokenizer)
    assert form.inert("a constitution    <think>") == f"a constitution    <{ZERO_WIDTH}think>"
    assert form.inert("lone \ud800 surrogate") == "lone ? surrogate"
