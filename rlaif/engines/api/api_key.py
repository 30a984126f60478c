"""The key of a hosted engine: read from the environment or a file, held in one place, and kept out of
everything that is shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from rlaif.errors import ModelError
from rlaif.files import read_whole

__all__ = ["SHOWN", "ApiKey", "read_api_key"]

OWN_VARIABLE = "RLAIF_API_KEY"
VENDOR_VARIABLE, VENDOR_HOST = "OPENAI_API_KEY", "api.openai.com"
"""The vendor's own variable is read for the vendor's own host only: a key is not handed to whatever server a
recipe names."""

LARGEST = 1 << 16
"""Bytes of the largest key file."""
HIDDEN = "[key hidden]"
KEY_LIKE = re.compile(r"(?i)\bbearer\s+\S+|\b(?:sk|key|gsk|hf)[-_][\w*.-]{6,}")
SHOWN = 200
"""Characters of a server's own message that an error shows."""


class ApiKey:
    """A key, or none. Prints as hidden; `reveal` is called where the request is signed and nowhere else."""

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    def __repr__(self) -> str:
        return "ApiKey(hidden)" if self._value else "ApiKey(none)"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a key is not pickled")

    def reveal(self) -> str:
        """The key itself. A server that needs none is sent a placeholder, as the client library insists on
        one."""
        return self._value or "none"

    def redact(self, text: str, *, most: int = SHOWN) -> str:
        """`text` on one line without the key, without what looks like one, and not longer than `most`
        characters."""
        if self._value:
            text = text.replace(self._value, HIDDEN)
        text = " ".join(KEY_LIKE.sub(HIDDEN, text).split())
        return text if len(text) <= most else text[:most] + "…"


def read_api_key(
    *,
    hosts: frozenset[str],
    variable: str = "",
    file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> ApiKey:
    """The key for these `hosts`.

    Args:
        hosts: Host names of the servers that will be sent the key.
        variable: Environment variable that holds it; by default `RLAIF_API_KEY`, and for the vendor's own
            host `OPENAI_API_KEY`.
        file: File whose first line holds it; goes before the environment.

    Raises:
        ModelError: The file cannot be read, or the named variable is not set.
    """
    if file is not None:
        return _from_file(file)
    if variable:
        if not environment.get(variable, "").strip():
            raise ModelError(
                f"the environment variable {variable} contains no key", remedy=f"export {variable}=…"
            )
        return _checked(environment[variable], variable)
    names = (OWN_VARIABLE, VENDOR_VARIABLE) if hosts == {VENDOR_HOST} else (OWN_VARIABLE,)
    return next(
        (_checked(environment[name], name) for name in names if environment.get(name, "").strip()), ApiKey()
    )


def _from_file(file: Path) -> ApiKey:
    remedy = "name a file with the key on its first line"
    try:
        lines = read_whole(file, error=ModelError, limit=LARGEST).decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        remedy = "name a file with the key on its first line"
        raise ModelError(f"cannot read the key file ({reason})", where=str(file), remedy=remedy) from None
    if not lines[0].strip():
        raise ModelError(
            "the key file's first line is empty",
            where=str(file),
            remedy="write the key there, and nothing else",
        )
    return _checked(lines[0], str(file))


def _checked(value: str, where: str) -> ApiKey:
    """A key that an HTTP header can carry; the error does not show it."""
    value = value.strip()
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ModelError(
            "the key has spaces or characters that no HTTP header takes",
            where=where,
            remedy="copy the key again",
        )
    return ApiKey(value)
