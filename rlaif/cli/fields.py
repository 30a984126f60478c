"""Options of commands from the fields of settings: name, type, range, default and help stand in one place."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["is_simple", "option_of", "setting_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


def setting_options(settings: type[BaseModel], *names: str, **metavars: str) -> Callable[[Command], Command]:
    """An option for each of the fields `names` and of those that `metavars` names a value for.

    `setting_options(SampleConfig, "k", policy="MODEL")` gives `--k INTEGER` and `--policy MODEL`.
    """

    def decorate(command: Command) -> Command:
        for name in reversed([*names, *metavars]):
            command = option_of(settings, name, metavar=metavars.get(name))(command)
        return command

    return decorate


def option_of(
    settings: type[BaseModel], name: str, *, metavar: str | None = None, flag: str | None = None
) -> Callable[[Command], Command]:
    """The option that sets the field `name`; what is not given stays as the settings have it.

    Args:
        metavar: What stands for the value in the help.
        flag: How the option is spelled, if not as the field.
    """
    field = settings.model_fields[name]
    spelled = flag or "--" + name.replace("_", "-")
    kind, limits = _unwrapped(field.annotation, field.metadata)
    shown: dict[str, Any] = {"default": None, "help": _help(field)}
    if kind is bool:
        return click.option(
            f"{spelled}/--no-{spelled[2:]}" if field.default else spelled, name, is_flag=True, **shown
        )
    if get_origin(kind) is tuple:
        return click.option(spelled, name, multiple=True, metavar=metavar, help=_help(field))
    return click.option(spelled, name, type=_type(kind, limits), metavar=metavar, **shown)


def is_simple(field: FieldInfo) -> bool:
    """Whether one word on a command line can say the field: no mapping, no settings inside settings."""
    kind, _ = _unwrapped(field.annotation, field.metadata)
    inner = get_args(kind)[0] if get_origin(kind) is tuple else kind
    return isinstance(inner, _Choice) or get_origin(inner) is Literal or inner in (bool, int, float, str)


def _help(field: FieldInfo) -> str:
    """The field's own words, and its default where it has one."""
    text = " ".join((field.description or "").split())
    if field.default is None or field.is_required() or field.default in ("", ()) or field.default is False:
        return text
    default = "on" if field.default is True else field.default
    if isinstance(default, tuple):
        default = ", ".join(map(str, default))
    return f"{text} [default: {default}]"


def _unwrapped(annotation: Any, metadata: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The type inside `Annotated` and `| None`, and all that is said of it."""
    limits = list(metadata)
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            limits += more
        elif get_origin(annotation) in (Union, types.UnionType):
            some = [each for each in get_args(annotation) if each is not type(None)]
            if len(some) > 1:
                return _Choice(some), limits
            annotation = some[0]
        else:
            return annotation, limits


def _type(kind: Any, limits: Sequence[Any]) -> Any:
    if isinstance(kind, click.ParamType):
        return kind
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    names = next((each.names for each in limits if hasattr(each, "names")), None)
    if names is not None:
        return click.Choice(names)
    if kind not in (int, float):
        return str
    bounds = [part for each in limits for part in (getattr(each, "metadata", None) or [each])]
    low = next((each for each in bounds if isinstance(each, Ge | Gt)), None)
    high = next((each for each in bounds if isinstance(each, Le | Lt)), None)
    if low is None and high is None:
        return kind
    span = click.IntRange if kind is int else click.FloatRange
    return span(
        min=None if low is None else getattr(low, "ge", getattr(low, "gt", None)),
        max=None if high is None else getattr(high, "le", getattr(high, "lt", None)),
        min_open=isinstance(low, Gt),
        max_open=isinstance(high, Lt),
    )


class _Choice(click.ParamType[Any]):
    """One of some words, or a number: `all`, `best-worst` or 3."""

    name = "value"

    def __init__(self, kinds: Sequence[Any]) -> None:
        self._words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        inner = (_unwrapped(kind, ()) for kind in kinds if get_origin(kind) is not Literal)
        (number, limits), *_ = inner
        self._number = _type(number, limits)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """`all|best-worst|N`."""
        return "|".join([*self._words, "N"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word, or the number."""
        if value in self._words:
            return value
        try:
            return click.types.convert_type(self._number).convert(value, param, ctx)
        except click.BadParameter:
            words = ", ".join(f"`{word}`" for word in self._words)
            self.fail(f"{value!r} is neither {words} nor a number from 1", param, ctx)
