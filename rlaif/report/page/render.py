"""A page as one HTML file: style, script, pictures and samples are all inside, and a policy in it forbids
anything else. Texts are escaped by the template, or set as text by the script; never as HTML."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from rlaif import plot
from rlaif.errors import RlaifError
from rlaif.report.page.model import Page, Picture
from rlaif.report.page.svg import inline_svg
from rlaif.report.shown import Table
from rlaif.text import escaped_json, visible

__all__ = ["page_html", "script_json"]

HERE = Path(__file__).parent
UNDRAWABLE = (ArithmeticError, LookupError, RuntimeError, SyntaxError, TypeError, ValueError)
"""What a figure of damaged numbers may raise, here or in matplotlib."""
LONG = 40
"""Characters of a cell that is wrapped."""
IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""Inside a script element nothing may end it, begin a comment in it, or look like an entity."""


def page_html(page: Page) -> str:
    """The page: the same bytes for the same values."""
    style, script = (_own(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    text = (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            policy=policy,
            style=Markup(style),
            script=Markup(script),
            rows=Markup(script_json("[" + ",\n".join(page.samples.rows if page.samples else ()) + "]")),
            drawn=plot.available(),
        )
    )
    return f"{text}\n"


def script_json(text: str) -> str:
    """JSON that may stand inside a script element: the same value."""
    for character, escaped in IN_SCRIPT.items():
        text = text.replace(character, escaped)
    return escaped_json(text)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
    )
    environment.filters["words"] = _words
    environment.filters["svg"] = _svg
    environment.filters["wordy"] = _wordy
    return environment


def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _words(text: str) -> Markup:
    """A line in which names stand in backticks."""
    parts = visible(text).split("`")
    if len(parts) % 2 == 0:
        return escape("`".join(parts))
    marked = [
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    ]
    return Markup("").join(marked)


def _wordy(table: Table) -> list[bool]:
    """Of each column, whether its cells are words, which stand on the left."""
    columns = [[row[place] for row in table.rows if place < len(row)] for place in range(len(table.header))]
    return [
        any(len(cell) > LONG for cell in column)
        or (any(column) and all(not cell or cell[0].isalpha() for cell in column))
        for column in columns
    ]


def _svg(picture: Picture, number: int) -> Markup:
    """The figure, or why its numbers cannot be drawn: a page does not fail for one picture."""
    id = f"picture-{number}"
    try:
        return Markup(inline_svg(picture.draw(), id=id, title=picture.title, about=picture.about))
    except (*UNDRAWABLE, RlaifError) as error:
        told = '<p class="missing">This picture cannot be drawn from its numbers ({}: {}).</p>'
        return Markup(told).format(type(error).__name__, visible(str(error)))
