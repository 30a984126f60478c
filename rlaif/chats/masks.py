"""Personal data and secrets in a text, put behind masks like `[e-mail]` before the text is trained on.

Rules, not a model: what has a form is found (addresses, numbers with a checksum, keys with a prefix), and
names and street addresses are not. Where a form is shared with harmless text, the rule asks for more: a card
has its issuer's digits and length and passes Luhn's sum, an IBAN its country's length and ISO 7064's sum,
four numbers behind "version" are no IP address, and digits alone are a telephone number only in the forms in
which people write one.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

__all__ = ["KINDS", "Masked", "mask"]

KINDS = ("secret", "e-mail", "iban", "card", "ip-address", "phone")
"""What is masked, in the order in which it is looked for."""

BEFORE = r"(?<![A-Za-z0-9_.@/+:-])"
AFTER = r"(?![A-Za-z0-9_@]|[.:/-][0-9])"
"""A number is not part of a longer one, of a word, a path or an address. Letters are ASCII: in Chinese a
number may stand right beside them."""

SECRET = re.compile(
    r"""
    -----BEGIN\ (?:[A-Z]+\ )*PRIVATE\ KEY-----
        (?:(?:(?!-----BEGIN)[\s\S])*?-----END\ (?:[A-Z]+\ )*PRIVATE\ KEY-----|[A-Za-z0-9+/=\s]*)
    | (?<![A-Za-z0-9_-])(?:
        eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*
        | sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}
        | [sr]k_(?:live|test)_[A-Za-z0-9]{16,}
        | A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])
        | gh[pousr]_[A-Za-z0-9]{36,} | github_pat_[A-Za-z0-9_]{22,} | glpat-[A-Za-z0-9_-]{20,}
        | xox[abeoprs]-[A-Za-z0-9-]{10,} | AIza[A-Za-z0-9_-]{35} | hf_[A-Za-z0-9]{30,} | npm_[A-Za-z0-9]{36,}
    )
    """,
    re.VERBOSE,
)
BEARER = re.compile(r"(?<=Bearer )[A-Za-z0-9._~+/-]{20,}=*", re.IGNORECASE)
LETTER = "A-Za-z0-9\u00c0-\u024f"
EMAIL = re.compile(
    rf"(?<![{LETTER}._%+'-])(?!git@)[{LETTER}._%+'-]{{1,64}}@"
    rf"(?:[{LETTER}](?:[{LETTER}-]{{0,61}}[{LETTER}])?\.){{1,8}}[A-Za-z\u00c0-\u024f]{{2,24}}(?![A-Za-z0-9@])"
)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,30}")
IBAN_LENGTHS = {
    length: countries.split()
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS",
        23: "AE GI IL IQ TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
}
LENGTH_OF = {country: length for length, countries in IBAN_LENGTHS.items() for country in countries}
CARD = re.compile(rf"{BEFORE}(?:[0-9][ -]?){{12,18}}[0-9]{AFTER}")
ISSUERS = re.compile(
    r"4(?:.{12}|.{15}|.{18})|5[1-5].{14}|2(?:22[1-9]|2[3-9].|[3-6]..|7[01].|720).{12}|3[47].{13}"
    r"|3(?:0[0-5]|[68].).{11}|35(?:2[89]|[3-8].).{12}|6(?:011|4[4-9].|5..|2..).{12,15}"
)
"""Visa, Mastercard, American Express, Diners, JCB, Discover and UnionPay: first digits and lengths."""
IPV4 = re.compile(
    rf"{BEFORE.replace('/', '').replace(':', '')}[0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}(?![A-Za-z0-9_]|\.[0-9])"
)
IPV6 = re.compile(r"(?<![A-Za-z0-9:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f.]{0,15}(?![A-Za-z0-9:])")
VERSION = re.compile(
    r"(?:\bv|\b(?:versions?|release|build|firmware|kernel|chrome|firefox|windows|python|section|chapter)"
    r"|版本号?|版)[\s:：=]*$",
    re.IGNORECASE,
)
NO_PERSON = ("127.", "0.0.0.0", "255.255.")
"""This machine, no address, and net masks."""
PHONE = re.compile(
    BEFORE.replace("+", "").replace(":", "")
    + r"""(?:
        \+[1-9](?:[\ .()/-]{0,2}[0-9]){7,14}
        | (?:\+?1[\ .-]?)?(?:\([2-9][0-9]{2}\)\ ?|[2-9][0-9]{2}[\ .-])[2-9][0-9]{2}[\ .-][0-9]{4}
        | 1[3-9][0-9][\ -]?[0-9]{4}[\ -]?(?!0000)[0-9]{4}
        | 00[1-9](?:[\ .()/-]{0,2}[0-9]){8,13}
        | 0[1-9](?:[\ .-][0-9]{2}){4}(?![\ .-][0-9]{2}(?![0-9]))
        | \(?0[1-9][0-9]{1,4}\)?[\ /-]{1,3}[0-9]{3,4}[\ -]?[0-9]{3,5}
        | 0[1-9][0-9]{8,9}
    )"""
    + AFTER,
    re.VERBOSE,
)
"""International, North American, Chinese mobile, and national numbers with their leading 0, which do not
follow other digits."""


class Masked(NamedTuple):
    """A text with masks, and how many there are of each kind."""

    text: str
    counts: Mapping[str, int]


def mask(text: str) -> Masked:
    """`text` with every piece of personal data that is found replaced; masking again changes nothing."""
    counts: Counter[str] = Counter()
    while True:
        before = text
        for kind, pattern, holds in RULES:
            text = pattern.sub(_replacing(kind, holds, counts), text)
        if text == before:
            return Masked(text, dict(counts))


Check = Callable[["re.Match[str]", int], str]
"""The part of a match, from its beginning, that is what was looked for; empty where it is not. It is told
where the last one ended."""


def _replacing(kind: str, holds: Check, counts: Counter[str]) -> Callable[[re.Match[str]], str]:
    ended = -1

    def replace(match: re.Match[str]) -> str:
        nonlocal ended
        found = holds(match, ended)
        if not found:
            return match.group()
        counts[kind] += 1
        ended = match.start() + len(found)
        return f"[{kind}]" + match.group()[len(found) :]

    return replace


def _all(match: re.Match[str], _: int) -> str:
    return match.group()


def _iban(match: re.Match[str], _: int) -> str:
    """The country's number of letters and digits from the beginning, if ISO 7064's sum (mod 97) is 1."""
    text = match.group()
    length = LENGTH_OF.get(text[:2].upper(), 0)
    taken, at = "", 0
    while at < len(text) and len(taken) < length:
        taken += text[at] if text[at].isalnum() else ""
        at += 1
    follows = text[at : at + 1] or match.string[match.end() : match.end() + 1]
    if not length or len(taken) < length or (follows.isascii() and follows.isalnum()):
        return ""
    number = int("".join(str(int(sign, 36)) for sign in taken[4:] + taken[:4]))
    return text[:at] if number % 97 == 1 else ""


def _card(match: re.Match[str], _: int) -> str:
    """All of it, if an issuer gives out such numbers and Luhn's sum is a multiple of ten."""
    digits = re.sub("[ -]", "", match.group())
    doubled = [int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits))]
    luhn = sum(each - 9 if each > 9 else each for each in doubled) % 10 == 0
    return match.group() if luhn and ISSUERS.fullmatch(digits) else ""


def _ipv4(match: re.Match[str], _: int) -> str:
    text = match.group()
    parts = text.split(".")
    wrong = any(int(part) > 255 or (part[0] == "0" and part != "0") for part in parts)
    is_version = VERSION.search(match.string[max(0, match.start() - 20) : match.start()])
    return "" if wrong or is_version or text.startswith(NO_PERSON) else text


def _ipv6(match: re.Match[str], _: int) -> str:
    """An address, and no `std::a` of a program: with a digit, and three colons or a first group of four."""
    text = match.group()
    first = text.partition(":")[0]
    if not any(each.isdigit() for each in text) or (text.count(":") < 3 and len(first) < 4):
        return ""
    try:
        found = ipaddress.IPv6Address(text.rstrip("."))
    except ValueError:
        return ""
    return "" if found.is_loopback or found.is_unspecified else text.rstrip(".")


def _phone(match: re.Match[str], ended: int) -> str:
    """All of it, unless it begins with 0 and goes on with the digits of something else."""
    text, start = match.group(), match.start()
    before = match.string[max(0, start - 2) : start]
    goes_on = len(before) == 2 and before[0] in "0123456789" and before[1] in " .-" and ended != start - 1
    return "" if goes_on and text.startswith(("0", "(")) else text


RULES: tuple[tuple[str, re.Pattern[str], Check], ...] = (
    ("secret", SECRET, _all),
    ("secret", BEARER, _all),
    ("e-mail", EMAIL, _all),
    ("iban", IBAN, _iban),
    ("card", CARD, _card),
    ("ip-address", IPV4, _ipv4),
    ("ip-address", IPV6, _ipv6),
    ("phone", PHONE, _phone),
)
