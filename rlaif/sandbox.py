"""A jinja2 environment for templates that nobody vouches for: what a template does is bounded, not only what
it may reach.

jinja2's sandbox keeps a template from Python's insides (`__class__`, `mro`). It does not keep one from
looping for ever, from `'a' * 10 ** 10`, or from doubling a text forty times. Here every rendering has an
allowance of steps (turns of loops, calls, filters, included files) and of characters (printed or put
together), and no number that sets a length is large. Three things make it hold:

1. the parsed template is changed: what a loop goes over passes through the filter `counted`, and `a ~ b`
    becomes the filter `joined`;
2. calls, filters and the operators that can grow a value look at their arguments first;
3. what is printed is weighed before it becomes text.

The bounds are far above any prompt, so that nobody meets them by accident.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined, Template, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = [
    "BUILD_ERRORS",
    "LARGEST_NUMBER",
    "MOST_CHARACTERS",
    "MOST_STEPS",
    "RENDER_ERRORS",
    "BoundedEnvironment",
]

MOST_STEPS = 100_000
"""Turns of loops, calls, filters and included files of one rendering."""
MOST_CHARACTERS = 64 << 20
"""Characters of one rendering: as much as the longest line of data that is read."""
LARGEST_NUMBER = 100_000
"""Largest number given to a call or a filter: most set a width, a count or a depth."""
MOST_BITS = 4096
"""Of the result of a multiplication or a power."""
ITEM = 64
"""Characters that an item of a list counts for."""
WIDTH = re.compile(r"\d{6}")
"""A width in a format (`%1000000d`, `{:>1000000}`) above `LARGEST_NUMBER`."""
GROWING = frozenset({"join", "replace", "translate"})
"""Calls and filters whose result may be as long as the product of what they are given."""
FORMATS = frozenset({"format", "format_map"})

RENDER_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What an expression in a template may raise besides jinja2's own (`{{ 1 / 0 }}`, a file that includes
itself)."""
BUILD_ERRORS = (MemoryError, OverflowError, RecursionError, SyntaxError, ValueError)
"""What the compiler may raise: thousands of brackets, more nested loops than Python has blocks, numbers of
thousands of digits."""


@dataclass
class _Allowance:
    """What is left of one rendering."""

    steps: int = MOST_STEPS
    characters: int = MOST_CHARACTERS

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise SecurityError(f"it takes more than {MOST_STEPS:,} steps; look at its loops")

    def spend(self, characters: int) -> None:
        self.characters -= characters
        if self.characters < 0:
            raise SecurityError(
                f"it puts together more than {MOST_CHARACTERS:,} characters; look at its loops"
            )


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A strict, sandboxed environment in which no template runs or grows without end.

    Args:
        text_of: What is printed for a value; the text is data by then, and is not read as a template.
        undefined: What a name without a value is; an error when left out.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(
        self, *, text_of: Callable[[Any], str], undefined: type[Undefined] = StrictUndefined, **options: Any
    ) -> None:
        self._left = _Allowance()
        self._text_of = text_of
        super().__init__(undefined=undefined, finalize=self._printed, **options)
        self.globals.pop("lipsum")
        self.filters = {name: self._guarded(name, function) for name, function in self.filters.items()}
        self.filters["counted"], self.filters["joined"] = self._counted, self._joined

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """A filter of the user's, within the same bounds."""
        self.filters[name] = self._guarded(name, function)

    def begin(self) -> None:
        """A new rendering: its allowance is whole."""
        self._left = _Allowance()

    # 1. The parsed template ---------------------------------------------------------------------------------

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        for loop in list(parsed.find_all(nodes.For)):
            literal = sum(len(data.data) for data in loop.find_all(nodes.TemplateData))
            loop.iter = _filtered(loop.iter, "counted", nodes.Const(literal))
        return _without_concatenations(parsed)

    def _counted(self, items: Iterable[Any], literal: int) -> Iterator[Any]:
        for item in items:
            self._left.step()
            self._left.spend(literal)
            yield item

    def _joined(self, items: list[Any]) -> str:
        self._left.spend(self._weight(items))
        return "".join(map(str, items))

    # 2. Calls, filters and operators ------------------------------------------------------------------------

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        bound = getattr(obj, "__wrapped__", obj)  # jinja2 wraps `str.format`
        name, owner = getattr(bound, "__name__", ""), getattr(bound, "__self__", None)
        text = owner if isinstance(owner, str) else ""
        self._check(name, (text, *args, *kwargs.values()))
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self._left.step()
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator in ("*", "**") and numbers:
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MOST_BITS:
                raise SecurityError(f"a number of {operator} is too large")
        elif operator == "*":
            times = next((value for value in (left, right) if isinstance(value, int)), 1)
            self._left.spend(max(times, 0) * max(self._weight(left), self._weight(right)))
        elif operator == "%" and isinstance(left, str):
            self._check("format", (left, *(right if isinstance(right, tuple) else (right,))))
        elif operator == "+" and not numbers:
            self._left.spend(self._weight(left) + self._weight(right))
        return super().call_binop(context, operator, left, right)

    def get_template(self, *args: Any, **kwargs: Any) -> Template:
        self._left.step()
        return super().get_template(*args, **kwargs)

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._check(name, (*args, *kwargs.values()))
            return function(*args, **kwargs)

        return guarded

    def _check(self, name: str, values: tuple[Any, ...]) -> None:
        self._left.step()
        if any(isinstance(value, int) and abs(value) > LARGEST_NUMBER for value in values):
            raise SecurityError(f"a number given to `{name}` is above {LARGEST_NUMBER:,}")
        if name in FORMATS and any(isinstance(value, str) and WIDTH.search(value) for value in values):
            raise SecurityError("a width in a format is too large")
        weights = [self._weight(value) for value in values]
        if name in GROWING:
            ordered = sorted((weight + 1 for weight in weights), reverse=True)
            self._left.spend(ordered[0] * (ordered[1] if len(ordered) > 1 else 1))
        elif any(
            isinstance(value, int) for value in values
        ):  # a width, a count: of each of the lines of a text
            largest = max((abs(value) for value in values if isinstance(value, int)), default=0)
            lines = max((value.count("\n") + 1 for value in values if isinstance(value, str)), default=0)
            self._left.spend(largest * lines)

    # 3. What is printed -------------------------------------------------------------------------------------

    def _printed(self, value: Any) -> str:
        weight = self._weight(value)
        text = self._text_of(value)
        self._left.spend(max(weight, len(text)))
        return text

    def _weight(self, value: Any) -> int:
        """Characters of a value, of all that is in it; it stops when that is more than is left."""
        if isinstance(value, str):
            return len(value)
        weight, waiting = 0, [value]
        while waiting:
            here = waiting.pop()
            weight += len(here) if isinstance(here, str | bytes) else ITEM
            if weight > self._left.characters:
                raise SecurityError(f"it puts together more than {MOST_CHARACTERS:,} characters")
            if isinstance(here, list | tuple | set | frozenset):
                waiting += here
            elif isinstance(here, dict):
                waiting += [*here, *here.values()]
        return weight


def _without_concatenations(parsed: nodes.Template) -> nodes.Template:
    """The template with `a ~ b` replaced by a filter over `[a, b]`, wherever it stands."""
    waiting: list[Any] = [parsed]
    while waiting:
        here = waiting.pop()
        for field, value in here.iter_fields():
            if isinstance(value, list):
                setattr(here, field, value := [_unconcatenated(each) for each in value])
                waiting += [each for each in value if isinstance(each, nodes.Node)]
            elif isinstance(value, nodes.Node):
                setattr(here, field, value := _unconcatenated(value))
                waiting.append(value)
    return parsed


def _unconcatenated(node: Any) -> Any:
    if not isinstance(node, nodes.Concat):
        return node
    return _filtered(nodes.List(node.nodes, lineno=node.lineno), "joined")


def _filtered(node: Any, name: str, *arguments: Any) -> nodes.Filter:
    made = nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)
    made.set_environment(node.environment)
    return made
