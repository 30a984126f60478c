"""What `rlaif serve --collect` is told: how long chats are kept, and what people are told about it."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

from rlaif.errors import ConfigError
from rlaif.files import read_small

__all__ = ["age_of", "consent_of"]

UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
LONGEST_CONSENT = 20_000
CONSENT = (
    "What you write here and what is answered will be kept to improve the model, with your votes{age}. "
    "Do not write what others must not read. You may have an exchange deleted at any time."
)


def age_of(text: str | None) -> timedelta | None:
    """`30d`, `12h` or `2w`; None for none.

    Raises:
        ConfigError: It is none of them.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text.strip())
    if match is None:
        raise ConfigError(
            f"{text!r} is no age", where="--retain", remedy="write 30d, 12h or 2w (days, hours or weeks)"
        )
    return int(match[1]) * UNITS[match[2]]


def consent_of(file: Path | None, retain: timedelta | None) -> str:
    """What people are told before they agree: the file's text, or a built-in one.

    Raises:
        ConfigError: The file is empty, too long or cannot be read.
    """
    if file is None:
        age = "" if retain is None else f", for {retain / timedelta(days=1):g} days"
        return CONSENT.format(age=age)
    try:
        text = read_small(file, error=ConfigError).strip()
    except OSError as error:
        raise ConfigError(
            f"cannot be read ({error.strerror})", where=f"--consent {file}", remedy="name a text file"
        ) from error
    if not text or len(text) > LONGEST_CONSENT:
        raise ConfigError(
            f"the text has {len(text)} characters",
            where=f"--consent {file}",
            remedy=f"1 to {LONGEST_CONSENT}",
        )
    return text
