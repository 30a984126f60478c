"""What a validation error means to the one who wrote the setting: what was read, what would be right, and
which name was near."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from rlaif.config.labelling import BaseStage
from rlaif.config.recipe import STAGE_KINDS
from rlaif.suggest import did_you_mean
from rlaif.text import one_line

__all__ = ["described", "telling"]

EXCERPT = 80
"""Characters of a wrong value that an error quotes."""
QUOTED = re.compile("'([^']*)'")


def telling(errors: Sequence[Any]) -> list[Any]:
    """The errors of pydantic without those that only say of a value of several possible forms that it is no
    text, where what is wrong with its other form is among them."""
    places = [tuple(each["loc"]) for each in errors]

    def is_said_better(place: tuple[Any, ...]) -> bool:
        rest = place[:-1]
        return place[-1:] == ("str",) and any(
            other != place and other[: len(rest)] == rest for other in places
        )

    return [each for each, place in zip(errors, places, strict=True) if not is_said_better(place)]


def described(details: Any, model: type[BaseModel]) -> tuple[str, str]:
    """What is wrong and the remedy, for one of the errors that pydantic found in settings of `model`."""
    location, read = details["loc"], _read(details.get("input"))
    match details["type"]:
        case "extra_forbidden":
            known = [name for below in _below(model, location[:-1]) for name in below.model_fields]
            asked = str(location[-1])
            return (
                f"unknown key `{one_line(asked)}`",
                f"{did_you_mean(asked, known)}known keys: {', '.join(known)}",
            )
        case "missing":
            return f"the key `{location[-1]}` is missing", ""
        case "union_tag_invalid" | "union_tag_not_found":
            return _no_kind(details["ctx"])
        case "literal_error":
            choices = QUOTED.findall(details["ctx"]["expected"])
            guess = did_you_mean(str(details["input"]), choices)
            return (
                f"{details['msg']} (read: {read})",
                f"{guess}write one of {', '.join(choices)}" if choices else "",
            )
        case "value_error":
            return one_line(str(details["msg"]).removeprefix("Value error, ")), ""
    return f"{details['msg']} (read: {read})" if details.get("input") is not None else str(details["msg"]), ""


def _no_kind(told: Mapping[str, Any]) -> tuple[str, str]:
    """The key that says the kind of a stage, of a reward part or of a controller is missing or unknown."""
    key = str(told["discriminator"]).strip("'")
    what = "kind of stage" if key == "stage" else key
    kinds = list(STAGE_KINDS) if key == "stage" else QUOTED.findall(str(told.get("expected_tags", "")))
    known = f"the kinds are {', '.join(kinds)}" if kinds else ""
    if "tag" not in told:
        return f"the key `{key}` is missing, which says the {what}", known
    asked = one_line(str(told["tag"]))[:EXCERPT]
    return f"there is no {what} `{asked}`", f"{did_you_mean(asked, kinds)}{known}"


def _read(value: object) -> str:
    text = one_line(repr(value))
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def _below(model: type[BaseModel], location: tuple[Any, ...]) -> list[type[BaseModel]]:
    """The settings that `location` leads to; it holds keys, positions in lists, and the tags of unions."""
    found = [model]
    for part in location:
        if isinstance(part, int):
            continue
        fields = [each.model_fields[part].annotation for each in found if part in each.model_fields]
        if fields:
            found = [each for field in fields for each in _models(field)]
        elif part in STAGE_KINDS and BaseStage in found:
            found = [STAGE_KINDS[part]]
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings classes inside an annotation such as `tuple[A | B, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
