"""Text from outside, made safe once: well-formed where it enters, visible where it is shown.

*Well-formed*: a Python string may hold half a character (a lone surrogate, from JSON escapes or from
undecodable bytes of a path) that no file can be written with, and a NUL that other tools stop at.
`well_formed` replaces both by U+FFFD. It is called where a text enters (a server's answer, a file's cell, a
model's decoding, a path, a name), so that nothing behind it needs to think of it.

*Visible*: a terminal obeys control characters, and Markdown obeys line breaks. `visible` escapes them where a
text from outside is shown to a person; files keep the text as it was.
"""

from __future__ import annotations

import re

__all__ = [
    "REPLACEMENT",
    "answer_of",
    "count_of",
    "escaped_json",
    "is_well_formed",
    "one_line",
    "visible",
    "well_formed",
]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MALFORMED = re.compile("[\x00\ud800-\udfff]")
SUSPECT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal may act on: C0 (but tab and line feed), DEL, C1, line and paragraph separators,
bidirectional controls."""


def well_formed(text: str) -> str:
    """`text` with U+FFFD for every lone surrogate and every NUL; the same object when there is none.

    Two halves of one character that stand side by side, as some JSON writers leave them, are joined into that
    character.
    """
    if not MALFORMED.search(text):
        return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined.replace("\x00", REPLACEMENT)


def is_well_formed(text: str) -> bool:
    """Whether `well_formed` would change nothing."""
    return MALFORMED.search(text) is None


def visible(text: str) -> str:
    r"""`text` with control characters written as `\x1b`, `\u202e`, …; tabs and line breaks stay."""
    return SUSPECT.sub(_escaped, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    r"""As `visible`, with line breaks and tabs escaped too: for ids, names and reasons, which stand inside a
    line."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def count_of(count: int, noun: str) -> str:
    """`1 principle`, `12 principles`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def counted(count: int, plural: str) -> str:
    """`1 bad row`, `12 bad rows`, of a name as `bad_rows`."""
    words = plural.replace("_", " ")
    return count_of(count, words[:-1]) if words.endswith("s") else f"{count:,} {words}"


def escaped_json(text: str) -> str:
    r"""JSON with control characters written as `\u009b`: the same value, and nothing that a terminal acts
    on."""
    return SUSPECT.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def answer_of(text: str) -> str:
    """What a reasoning model answered: what follows its reasoning, `<think>…</think>` at the beginning of the
    text.

    All of the text where it does not reason; nothing where its reasoning was cut. The opening tag may be
    missing: many chat templates write it themselves.
    """
    reasoning, closed, answer = text.partition("</think>")
    begins = text.lstrip().startswith("<think>")
    if closed and (begins or "<think>" not in reasoning):
        return answer.lstrip()
    return "" if begins else text
