"""How the charts of a report are drawn: their style, their axes, panels over one another, keys.

Only matplotlib's object interface is used, so a figure never touches pyplot's global state, and the
same document gives the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

COLOURS = (
    "#0072B2", "#D55E00", "#007E5C", "#B3589A", "#B07C00", "#3D8FC4", "#5C5C5C", "#7A4B2A",
)  # fmt: skip
"""Okabe and Ito's colours, the lighter ones darkened until a line of them reads on white."""

MARKERS = "osD^vPX*"
PROVED: dict[str, Any] = {"drawstyle": "steps-pre"}
"""Between two radii, what is proved at the larger one holds."""
MEASURED: dict[str, Any] = {"drawstyle": "steps-post"}
"""Between two radii, what broke at the smaller one is broken."""
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
WIDTH = 4.5  # inches: at the width of a phone, text keeps about the size it has here
INK, FAINT = "#2B3138", "#D5DAE0"

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "jaxrobust",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "axes.labelsize": 10.0,
    "axes.edgecolor": "#8A939E",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E6E9ED",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.9,
    "legend.labelspacing": 0.35,
}


def colour_of(index: int) -> str:
    """The colour that classifier `index` has everywhere."""
    return COLOURS[index % len(COLOURS)]


def clean_words(text: str) -> str:
    """One line of printable text, as a drawing can hold it."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def slug(text: str) -> str:
    """A part of a file name.

    >>> slug("linf 0.1")
    'linf-0.1'
    """
    return re.sub(r"[^a-zA-Z0-9.]+", "-", text).strip("-.") or "x"


def against_eps(axes: Axes, norm: str, ylabel: str) -> None:
    """The axes of accuracies against the radius."""
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(f"eps ({clean_words(norm)})")
    axes.set_ylabel(ylabel)


def chart(
    panels: list[Callable[[Axes], None]],
    heights: list[float],
    keys: list[list[tuple[Any, str]]],
    xlabel: str | None = None,
) -> bytes:
    """Panels under one another, a shared x axis below and the keys above, as SVG."""
    keys = [[(handle, _shortened(clean_words(name))) for handle, name in key] for key in keys]
    if any(len(name) > 22 for key in keys for _, name in key):  # they do not fit side by side
        keys = [[item for key in keys for item in key]]
    key_height = 0.2 * max(map(len, keys)) + 0.14
    gap, bottom, left, right = 0.17, 0.52, 0.66, 0.12
    height = key_height + sum(heights) + gap * (len(heights) - 1) + bottom
    with styled():
        figure = Figure(figsize=(WIDTH, height), facecolor="white")
        FigureCanvasSVG(figure)
        top, shared = height - key_height, None
        for i, (panel, panel_height) in enumerate(zip(panels, heights, strict=True)):
            box = (
                left / WIDTH, (top - panel_height) / height, 1 - (left + right) / WIDTH,
                panel_height / height,
            )  # fmt: skip
            axes = figure.add_axes(box, sharex=shared)
            shared = shared or axes
            panel(axes)
            axes.yaxis.set_label_coords(-0.52 / (WIDTH - left - right), 0.5)
            if i + 1 < len(panels):
                axes.tick_params(labelbottom=False)
            elif xlabel is not None:
                axes.set_xlabel(xlabel)
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            top -= panel_height + gap
        for i, key in enumerate(keys):
            legend = figure.legend(
                [handle for handle, _ in key], ["x"] * len(key), loc="upper left",
                borderaxespad=0.1, borderpad=0.2,
                bbox_to_anchor=(0.08 / WIDTH + 0.5 * i, 1.0),
            )  # fmt: skip
            # Set afterwards: matplotlib leaves out labels that start with an underscore.
            for text, (_, name) in zip(legend.get_texts(), key, strict=True):
                text.set_text(name)
        out = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    return out.getvalue()


def _shortened(text: str) -> str:
    return text if len(text) <= 46 else text[:45].rstrip() + "\u2026"


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Within it, figures have the report's style."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Names may be in scripts that the measuring font lacks; the reader's fonts draw them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
