"""Text from outside: well-formed where it enters, visible where it is shown."""

from __future__ import annotations

import pytest

from rlaif.text import is_well_formed, one_line, visible, well_formed


def test_well_formed_text_is_the_same_object() -> None:
    text = "plain, ünïcode, 你好, 😀\n\t"
    assert well_formed(text) is text
    assert is_well_formed(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\ud800b", "a\ufffdb"),
        ("\udc80", "\ufffd"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("a\x00b", "a\ufffdb"),
        ("\ud83d\ude00", "😀"),
        ("x\ud83d\ude00\ud83d", "x😀\ufffd"),
    ],
)
def test_halves_of_characters_and_nul_are_replaced_and_pairs_are_joined(text: str, expected: str) -> None:
    assert not is_well_formed(text)
    assert well_formed(text) == expected
    assert well_formed(text).encode()
    assert is_well_formed(well_formed(text))


def test_what_a_terminal_obeys_is_shown_escaped() -> None:
    assert visible("\x1b]0;title\x07 and \x1b[2J, \u202eevil, \x9b1m") == (
        "\\x1b]0;title\\x07 and \\x1b[2J, \\u202eevil, \\x9b1m"
    )
    assert visible("two\nlines\tand a tab\r\nthird\rfourth") == "two\nlines\tand a tab\nthird\\x0dfourth"
    assert visible("\ud800") == "\\ud800"


def test_a_name_stays_in_its_line() -> None:
    assert one_line("id\n# heading\t![](x)") == "id\\n# heading\\t![](x)"
