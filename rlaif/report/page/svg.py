"""A matplotlib figure as SVG inside a page: no style attributes, which a strict policy forbids; colours that
follow the page's light or dark; text as text; ids that no other figure has."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlaif import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["inline_svg"]

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
COLORS: Mapping[str, str] = {
    plot.INK: "currentColor",
    plot.GRID: "var(--grid)",
    "#ffffff": "none",
    **{color: f"var(--series-{number})" for number, color in enumerate(plot.SERIES)},
}
SIZE = re.compile(r"([\d.]+)px")
REFERENCE = re.compile(r"url\(#([^)]*)\)")
DROPPED = ("metadata", "style")
PIXELS = 4 / 3
"""Of a browser in a point."""


def inline_svg(figure: Figure, *, id: str, title: str, about: str) -> str:
    """The figure as an `<svg>` element: the same bytes for the same figure.

    Args:
        id: Begins every id in it.
        title, about: What a screen reader says of it.
    """
    out = io.StringIO()
    with plot.style():
        figure.savefig(out, format="svg", metadata={"Date": None})
    root = ET.fromstring(out.getvalue())
    for parent in list(root.iter()):
        for child in [each for each in parent if _local(each) in DROPPED]:
            parent.remove(child)
    for element in root.iter():
        _rewrite(element, id)
    root.attrib.pop("version", None)
    for name in ("width", "height"):
        root.set(name, f"{float(root.attrib[name].removesuffix('pt')) * PIXELS:.0f}")
    root.set("role", "img")
    root.set("aria-labelledby", f"{id}-title")
    root.set("aria-describedby", f"{id}-about")
    for place, (name, text) in enumerate((("title", title), ("desc", about))):
        told = ET.Element(name, {"id": f"{id}-{'title' if name == 'title' else 'about'}"})
        told.text = text
        root.insert(place, told)
    return ET.tostring(root, encoding="unicode")


def _local(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _rewrite(element: ET.Element, id: str) -> None:
    """Without namespaces, which HTML has none of, and without style attributes."""
    element.tag = _local(element)
    given = dict(element.attrib)
    element.attrib.clear()
    for name, value in given.items():
        if name == "style":
            element.attrib.update(_presentation(value, id))
        elif name in ("href", f"{{{XLINK}}}href"):
            element.set("href", "#" + f"{id}-{value.removeprefix('#')}")
        elif name == "id":
            element.set("id", f"{id}-{value}")
        else:
            element.set(name, _value(value, id))


def _presentation(style: str, id: str) -> dict[str, str]:
    """The declarations of a style attribute as attributes of SVG."""
    found = {}
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font" and (size := SIZE.search(value)):
            found["font-size"] = size[1]
        elif name and name != "font":
            found[name] = _value(value, id)
    return found


def _value(value: str, id: str) -> str:
    return COLORS.get(value.lower(), REFERENCE.sub(rf"url(#{id}-\1)", value))
