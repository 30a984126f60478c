"""A tokenizer's chat template, rendered as transformers renders it, byte for byte, but within bounds.

transformers' sandbox keeps a template from Python's insides, not from printing for ever; a model's folder is
not to be trusted with either. The environment here has what transformers gives to templates
(`transformers.utils.chat_template_utils`): blocks trimmed, loop controls, `tojson` without HTML, `dict`,
`namespace`, `raise_exception`, `strftime_now` and the tag `generation`; undefined names print nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from rlaif.sandbox import BUILD_ERRORS, BoundedEnvironment

__all__ = ["ChatTemplate"]

CACHED = 64
"""Templates that are kept compiled."""


class ChatTemplate:
    """The chat template of one tokenizer.

    Args:
        tokenizer: With a chat template.
        source: In place of the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, source: str | None = None) -> None:
        from transformers import PreTrainedTokenizerBase  # late: what only names this module stays light

        self._tokenizer = tokenizer
        self._source = tokenizer.get_chat_template() if source is None else source
        # A class that writes chats in its own way (Mistral's) is asked: it runs no template of the folder.
        self._own = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template

    def render(self, turns: Sequence[Mapping[str, str]], *, open_turn: bool, **variables: Any) -> str:
        """The conversation as text.

        Args:
            turns: Messages as `{"role": …, "content": …}`, at least one.
            open_turn: Whether a turn of the assistant is opened behind them.
            variables: What else the template may read.

        Raises:
            jinja2.TemplateError: The template refuses the conversation, is no template, or does not end.
        """
        if self._own:
            found = self._tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=open_turn, **variables
            )
            return str(found)
        template = _compiled(self._source)
        environment = template.environment
        assert isinstance(environment, BoundedEnvironment)
        environment.begin()
        return template.render(
            **{**self._tokenizer.special_tokens_map, **variables},
            messages=[dict(turn) for turn in turns],
            tools=None,
            documents=None,
            add_generation_prompt=open_turn,
        )


@lru_cache(maxsize=CACHED)
def _compiled(source: str) -> jinja2.Template:
    """The template, in an environment of its own: what is left of an allowance is the environment's."""
    environment = BoundedEnvironment(
        text_of=str,
        undefined=jinja2.Undefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
    )
    environment.add_filter("tojson", _tojson)
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
    )
    environment.begin()
    try:
        return environment.from_string(source)
    except BUILD_ERRORS as error:
        raise jinja2.TemplateError(f"the chat template is not a jinja2 template: {error}") from error


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for trainers that mask; here its body is printed."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Dict:
    """`dict(…)` without the class's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """jinja2's, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=…)` works
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace holds no name like {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
