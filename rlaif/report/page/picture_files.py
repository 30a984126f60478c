"""The pictures of a page as files of their own."""

from __future__ import annotations

import re
from pathlib import Path

from rlaif import plot
from rlaif.report.page.model import Page
from rlaif.runs.disk import run_errors

__all__ = ["save_pictures"]

DOTS = 144
"""Of a picture's inch."""
LONGEST = 60
"""Characters of a picture's name."""
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def save_pictures(page: Page, out: Path) -> list[Path]:
    """Write every picture of the page as a PNG file named by its title; returns where they lie.

    Raises:
        RunError: The disk refuses.
        ConfigError: matplotlib is not installed.
        DataError: The numbers of one cannot be drawn.
    """
    pictures = [each for section in page.sections for each in section.pictures]
    places: list[Path] = []
    for number, picture in enumerate(pictures, 1):
        words = UNSAFE.sub("-", picture.title.replace("√", "sqrt-")).strip("-").lower()
        places.append(out / f"{number:02}-{words[:LONGEST]}.png")
        with run_errors("write the picture", places[-1]), plot.style():
            out.mkdir(parents=True, exist_ok=True)
            picture.draw().savefig(places[-1], dpi=DOTS, metadata={"Software": None})
    return places
