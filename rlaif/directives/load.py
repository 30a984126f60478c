"""Read files of directives.

    name: museum
    directives:
      - id: short
        when: {always: true}
        prior: Answer in one short sentence.
        question: Is the response one short sentence?
      - id: hours
        when: {regex: "(?i)opening hours"}
        answer: We are open from 9 to 17, every day but Monday.
        until: 2026-12-31
      - id: nuclear
        when: {judge: Does the user ask whether nuclear power is good or bad?}
        both_sides:
          a: {label: For, prior: Argue for nuclear power.}
          b: {label: Against, prior: Argue against nuclear power.}

The reader reports every problem of a file at once, each with its line and a remedy.
"""

from __future__ import annotations

import os
from pathlib import Path

from rlaif.directives.values import Directives
from rlaif.errors import PROBLEMS_LISTED, ConfigError
from rlaif.files import read_whole
from rlaif.text import count_of
from rlaif.yaml_text import Fault, problems_of, read_tree

__all__ = ["MAX_BYTES", "load_directives", "parse_directives"]

MAX_BYTES = 4 * 1024 * 1024
"""Largest file read."""
EMPTY = Fault(1, "the file is empty", "write `directives:` with at least one directive")


def load_directives(path: str | Path) -> Directives:
    """Read a file.

    Raises:
        ConfigError: It is not there, or cannot be read as directives; every problem is listed.
    """
    where = Path(os.path.expanduser(path))
    return parse_directives(read_bytes(where), source=str(path))


def read_bytes(path: Path) -> bytes:
    """What a file holds.

    Raises:
        ConfigError: It cannot be read, or is too large.
    """
    if not path.exists():
        raise ConfigError(f"there is no file `{path}`", remedy="name a YAML file of directives")
    try:
        return read_whole(path, error=ConfigError, limit=MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"`{path}` cannot be read: {error.strerror or error}") from error


def parse_directives(data: str | bytes, *, source: str) -> Directives:
    """Read directives from YAML; `source` names it in messages, and in `name` where the text gives none.

    Raises:
        ConfigError: It cannot be read as directives; every problem is listed.
    """
    # The models and pydantic take a tenth of a second to import, which help need not pay.
    from pydantic import ValidationError

    from rlaif.directives.form import DirectivesForm
    from rlaif.directives.problems import described, problems_between_keys

    tree, faults = read_tree(_decoded(data, source))
    if tree is None:
        raise _refusal(faults or [EMPTY], source)
    faults += problems_between_keys(tree)
    try:
        form = DirectivesForm.model_validate(tree)
    except ValidationError as error:
        count = len(faults) + error.error_count()
        faults += [described(details, tree) for details in error.errors(include_url=False)[:PROBLEMS_LISTED]]
        raise _refusal(faults, source, count) from None
    if faults:
        raise _refusal(faults, source)
    return form.value(source)


def _decoded(data: str | bytes, source: str) -> str:
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "save it as UTF-8"
        raise ConfigError(f"`{source}` is not UTF-8 (byte {error.start})", remedy=remedy) from None


def _refusal(faults: list[Fault], source: str, count: int = 0) -> ConfigError:
    count = count or len(faults)
    what = f"{source} cannot be used: {count_of(count, 'problem')}"
    return ConfigError(what, problems=problems_of(faults, source, count))
