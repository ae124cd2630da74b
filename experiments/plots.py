"""How the experiments' figures look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

plt.rcParams["svg.hashsalt"] = "jaxrobust"  # equal numbers, equal files


def panels(num: int) -> tuple[Any, Any]:
    """A figure with so many axes, four in a row."""
    columns = min(num, 4)
    rows = -(-num // columns)
    size = (3.6 * columns, 3.2 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[num:]:
        axis.axis("off")
    return figure, axes.flat[:num]


def finish(axis: Any, title: str, xlabel: str, ylabel: str) -> None:
    """Words, and axes from 0."""
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.02))
    axis.set_xlim(left=0)
    axis.grid(color="0.92")


def save(figure: Any, axes: Any, path: Path) -> None:
    """Write the figure; a legend wherever it would differ from those before."""
    shown = set()
    for axis in axes:
        labels = tuple(axis.get_legend_handles_labels()[1])
        if labels and labels not in shown:
            axis.legend(fontsize=7, handlelength=3)  # so that dashes show
            shown.add(labels)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
