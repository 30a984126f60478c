"""How all figures look, and the one place where matplotlib is imported."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rlaif.errors import ConfigError
from rlaif.stats import Estimate
from rlaif.text import REPLACEMENT, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GRID", "INK", "SERIES", "available", "errors", "name", "new_figure", "style", "whiskers"]

INK, GRID = "#222222", "#cccccc"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#9467bd", "#b8860b", "#c44e88")
"""Colours of series, told apart by colour-blind readers too (after Okabe and Ito 2008)."""
NO_XML = re.compile("[\ufffe\uffff]")
LONGEST = 36
"""Characters of a name in a figure."""
SETTINGS: Any = {
    "axes.edgecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.prop_cycle": "cycler('color', [" + ", ".join(f"'{color}'" for color in SERIES) + "])",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "rlaif",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def available() -> bool:
    """Whether figures can be drawn here: matplotlib is an extra."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def style() -> Iterator[None]:
    """Inside, matplotlib draws as all figures here are drawn, whatever the user's own settings are.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "figures need the package matplotlib", remedy="pip install 'rlaif-toolkit[report]'"
        ) from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")  # the page's own fonts may have it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that pyplot does not know of; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def name(text: str) -> str:
    """A name from outside as matplotlib prints it: one line, no mathematics, never left out of a legend."""
    line = NO_XML.sub(REPLACEMENT, one_line(text))
    if len(line) > LONGEST:
        line = line[: LONGEST - 1] + "…"
    line = line.replace("\\", "\N{SET MINUS}").replace("$", r"\$")
    return f"\N{HAIR SPACE}{line}" if line.startswith("_") else line or "(no name)"


def whiskers(estimate: Estimate) -> tuple[float, float]:
    """How far an interval reaches below and above its value, as `errorbar` wants it."""
    return max(estimate.value - estimate.low, 0.0), max(estimate.high - estimate.value, 0.0)


def errors(estimates: list[Estimate]) -> tuple[list[float], list[float]]:
    """`whiskers` of several."""
    reach = [whiskers(each) for each in estimates]
    return [below for below, _ in reach], [above for _, above in reach]


def legend(axes: Axes, **options: Any) -> None:
    """A legend, where there is more than one thing to tell apart."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(handles, labels, **options)
