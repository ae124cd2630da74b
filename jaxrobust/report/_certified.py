"""Certified accuracy by radius and method: a table in the terminal, and a chart."""

from __future__ import annotations

import dataclasses

from jaxrobust.report._tables import percent
from jaxrobust.report._terminal import Printer

ANY = "any method"
"""What the combination is called: each margin is bounded by the method that bounds it best."""


@dataclasses.dataclass(frozen=True)
class Certified:
    """Certified accuracy of one network, as fractions of the examples.

    Attributes:
        norm: Norm of the threat.
        num_examples: Examples looked at.
        clean: Accuracy without a threat.
        eps: Radii, rising.
        methods: Certified accuracy at each radius, by name of the method.
        combined: The same, with the best bound of each margin.

    >>> Certified("linf", 10, 0.9, [0.1], {"lp": [0.3], "sdp": [0.4, 0.2]}, [0.5])
    Traceback (most recent call last):
    ...
    ValueError: sdp must hold one value for each of the 1 radii of eps; got 2
    """

    norm: str
    num_examples: int
    clean: float
    eps: list[float]
    methods: dict[str, list[float]]
    combined: list[float]

    def __post_init__(self) -> None:
        for name, values in {**self.methods, "combined": self.combined}.items():
            if len(values) != len(self.eps):
                raise ValueError(
                    f"{name} must hold one value for each of the {len(self.eps)} radii of eps; "
                    f"got {len(values)}"
                )


def print_certified(found: Certified, console: Printer | None = None) -> None:
    """Print a row a radius and a column a method.

    Args:
        found: What to print.
        console: Where, a `rich.console.Console`; the standard output where None.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    columns = dict(found.methods)
    if len(columns) > 1:
        columns[ANY] = found.combined
    radii = [f"{eps:g}" for eps in found.eps]
    if len(set(radii)) < len(radii):
        radii = [repr(eps) for eps in found.eps]
    title = Text(f"Certified accuracy, {found.norm}", style="bold")
    shown = Table(
        title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )  # fmt: skip
    for name in ("eps", *columns):
        shown.add_column(Text(name, style="bold"), justify="right")
    for i, eps in enumerate(radii):
        cells = [percent(values[i], found.num_examples) for values in columns.values()]
        shown.add_row(eps, *(cell.replace("\xa0", " ") for cell in cells))
    console.print(shown)
    clean = percent(found.clean, found.num_examples).replace("\xa0", " ")
    words = f"{found.num_examples} images, clean accuracy {clean}."
    if ANY in columns:
        words += f" {ANY}: the best bound of each margin."
    console.print(Text(words, style="dim"))


def certified_figure(found: Certified) -> bytes:
    """Certified accuracy against eps, a line a method, as SVG.

    Args:
        found: What to draw. Every line starts at radius 0 with the clean accuracy; up to each
            radius it shows what is proved there, which holds at every smaller one.
    """
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from jaxrobust.report import _chart as charts

    grid = [0.0, *found.eps]
    looks = {
        name: {
            "color": charts.colour_of(i), "lw": 1.6, "ms": 4.5, "marker": charts.MARKERS[i % 8],
            "markeredgecolor": "white", "markeredgewidth": 0.6, "zorder": 3,
        }
        for i, name in enumerate(found.methods)
    }  # fmt: skip
    below = {"color": charts.FAINT, "lw": 6.0, "zorder": 2, "solid_joinstyle": "round"}
    clean = {"color": charts.INK, "lw": 0.9, "ls": (0, (1, 2)), "zorder": 1}

    def draw(axes: Axes) -> None:
        axes.axhline(found.clean, **clean)
        axes.plot(grid, [found.clean, *found.combined], **below, **charts.PROVED)
        for name, values in found.methods.items():
            axes.plot(grid, [found.clean, *values], **looks[name], **charts.PROVED)
        charts.against_eps(axes, found.norm, "certified accuracy")

    names = [(Line2D([], [], **look), name) for name, look in looks.items()]
    others = [(Line2D([], [], **below), ANY), (Line2D([], [], **clean), "clean accuracy")]
    return charts.chart([draw], [2.6], [names, others])
