"""Masks, whatever stands around what they hide."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlaif.chats.masks import mask

WORDS = st.lists(
    st.sampled_from(["the", "sea", "is", "salty", "Why?", "海水", "为什么", "咸。", "\n", "—"]), max_size=12
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def luhn(digits: str) -> str:
    """The last digit that makes Luhn's sum whole."""
    doubled = [int(digit) * (2 - at % 2) for at, digit in enumerate(reversed(digits))]
    return str(-sum(each - 9 if each > 9 else each for each in doubled) % 10)


@st.composite
def ibans(draw: st.DrawFn) -> str:
    account = draw(st.text("0123456789", min_size=18, max_size=18))
    check = 98 - int(account + "131400") % 97
    return f"DE{check:02}{account}"


CARDS = st.text("0123456789", min_size=14, max_size=14).map(lambda rest: "4" + rest + luhn("4" + rest))
EMAILS = st.builds("{}@{}.{}".format, *(st.text(LETTERS, min_size=low, max_size=12) for low in (1, 1, 2)))
ADDRESSES = (
    st.ip_addresses(v=4)
    .filter(lambda each: not str(each).startswith(("127.", "0.0.0.0", "255.255.")))
    .map(str)
)
PHONES = st.text("0123456789", min_size=7, max_size=11).map(lambda rest: f"+4{rest}")
KEYS = st.text(LETTERS + "0123456789", min_size=36, max_size=40).map(lambda rest: f"ghp_{rest}")


@given(WORDS, st.sampled_from(["card", "e-mail", "ip-address", "phone", "secret", "iban"]), WORDS, st.data())
def test_what_has_a_form_is_hidden_between_any_words(
    before: list[str], kind: str, after: list[str], data: st.DataObject
) -> None:
    forms = {
        "card": CARDS,
        "e-mail": EMAILS,
        "ip-address": ADDRESSES,
        "phone": PHONES,
        "secret": KEYS,
        "iban": ibans(),
    }
    hidden = data.draw(forms[kind])
    found = mask(" ".join([*before, hidden, *after]))
    assert hidden not in found.text
    assert found.text == " ".join([*before, f"[{kind}]", *after])
    assert found.counts == {kind: 1}


@given(WORDS)
def test_words_are_left(words: list[str]) -> None:
    assert mask(" ".join(words)) == (" ".join(words), {})


@given(st.text() | st.text("0123456789 .-+:/@()abAKIA[]", max_size=80))
def test_masking_again_changes_nothing(text: str) -> None:
    once = mask(text)
    assert mask(once.text) == (once.text, {})
    if not once.counts:
        assert once.text == text
