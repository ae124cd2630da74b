"""Charts of a report as SVG: accuracy against the radius, certificates, training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from jaxrobust.evaluation import Report
from jaxrobust.report._chart import (
    DASHES,
    INK,
    MARKERS,
    MEASURED,
    PROVED,
    against_eps,
    chart,
    colour_of,
)
from jaxrobust.report._document import Document, Entry


def accuracy_figure(document: Document, norm: str) -> bytes:
    """Accuracy against eps for every classifier with a curve in this norm, as SVG."""
    shown = [(i, e) for i, e in enumerate(document.entries) if norm in e.curves]
    names: list[tuple[Any, str]] = [(_key(i), entry.name) for i, entry in shown]
    kinds: list[tuple[Any, str]] = [(Line2D([], [], color=INK, lw=1.8), "attacked (at most)")]
    if any(entry.curves[norm].certified for _, entry in shown):
        dashed = Line2D([], [], color=INK, lw=1.5, ls=(0, (3.5, 2)))
        kinds.append((dashed, "certified (at least)"))
        kinds.append((Patch(color=INK, alpha=0.13, lw=0), "not known to these"))

    num_bands = sum(bool(entry.curves[norm].certified) for _, entry in shown)

    def draw(axes: Axes) -> None:
        marked = set()
        for i, entry in shown:
            curve, colour = entry.curves[norm], colour_of(i)
            axes.plot(curve.eps, curve.accuracy, color=colour, lw=1.8, zorder=3, **MEASURED)
            lower = curve.best_certified()
            if lower:
                dashed = {"color": colour, "lw": 1.5, "ls": (0, (3.5, 2)), "zorder": 3}
                axes.plot(curve.eps, lower, **dashed, **PROVED)
                ends, floor, ceiling = between(curve.eps, lower, curve.accuracy)
                axes.fill_between(
                    ends,
                    floor,
                    ceiling,
                    color=colour,
                    alpha=0.11 if num_bands <= 3 else 0.05,
                    lw=0,
                    zorder=1,
                )
            for report in entry.reports.values():
                if report.norm == norm and report.attacks:
                    marked.add(report.eps)
                    _point(axes, report, i)
        for eps in sorted(marked):
            axes.axvline(eps, color="#8A939E", lw=0.8, ls=(0, (1, 2)), zorder=0)
        against_eps(axes, norm, "accuracy")

    return chart([draw], [2.6], [names, kinds])


def between(eps: list[float], lower: list[float], upper: list[float]) -> list[np.ndarray]:
    """What is not known between the radii: both ends of each interval, its floor, its ceiling.

    >>> [side.tolist() for side in between([0.0, 0.1, 0.2], [0.9, 0.5, 0.1], [0.9, 0.8, 0.4])]
    [[0.0, 0.1, 0.1, 0.2], [0.5, 0.5, 0.1, 0.1], [0.9, 0.9, 0.8, 0.8]]
    """
    ends, floor, ceiling = (np.repeat(values, 2) for values in (eps, lower, upper))
    return [ends[1:-1], floor[2:], ceiling[:-2]]


def smoothed_figure(report: Report) -> bytes:
    """Certified accuracy of smoothed classifiers against the radius, by certificate and bound.

    The attacks' curve stands above them as far as the attacks went. As SVG.
    """
    series = {
        (name, bound): report.examples[f"{bound}_radius/{name}"]
        for name in report.smoothed_accuracy
        for bound in smoothed_bounds(report, name)
    }
    finite = [radius[np.isfinite(radius)].max(initial=0) for radius in series.values()]
    grid = np.linspace(0, 1.05 * max(report.eps, *finite), 400)
    names = list(report.smoothed_accuracy)
    looks = {
        (name, bound): {
            "color": colour_of(names.index(name)), "lw": 1.6,
            "ls": DASHES[smoothed_bounds(report, name).index(bound) % len(DASHES)],
        }
        for name, bound in series
    }  # fmt: skip
    attacked = {"color": INK, "lw": 1.8}
    mark = {"color": "#8A939E", "lw": 0.8, "ls": (0, (1, 2))}

    def draw(axes: Axes) -> None:
        for (name, bound), look in looks.items():
            axes.plot(grid, report.smoothed_at(name, grid, bound), **look, **PROVED)
        if report.attacks:
            within = np.append(grid[grid < report.eps], report.eps)
            axes.plot(within, report.accuracy_at(within), **attacked, **MEASURED)
        axes.axvline(report.eps, zorder=0, **mark)
        against_eps(axes, report.norm, "accuracy")

    keys = [(Line2D([], [], **look), f"{name}, {bound}") for (name, bound), look in looks.items()]
    others: list[tuple[Any, str]] = [(Line2D([], [], **mark), "eps of the attacks")]
    if report.attacks:
        others.insert(0, (Line2D([], [], **attacked), "attacked (at most)"))
    return chart([draw], [2.6], [keys, others])


def smoothed_bounds(report: Report, name: str) -> list[str]:
    """The bounds that a probabilistic certificate has radii of."""
    end = f"_radius/{name}"
    return [column.removesuffix(end) for column in report.examples if column.endswith(end)]


def training_figure(entry: Entry, index: int) -> bytes | None:
    """Loss and accuracies against the step, as SVG; None where the history holds neither.

    Metrics are told apart by their names: those with "loss" or "accuracy" in them are drawn.
    """
    series = training_series(entry)
    groups = [
        {key: points for key, points in series.items() if drawn_as(key[1]) == word}
        for word in ("loss", "accuracy")
    ]
    groups = [group for group in groups if group]
    if not groups:
        return None
    looks: dict[tuple[str, str], dict[str, Any]] = {}
    for group in groups:
        metrics = list(dict.fromkeys(name for _, name in group))
        for phase, name in group:
            k = metrics.index(name)
            look: dict[str, Any] = {"color": colour_of(index), "ls": DASHES[k % len(DASHES)]}
            if phase == "training":
                look |= {"alpha": 0.5, "lw": 1.3}
            else:
                look |= {"lw": 1.6, "marker": MARKERS[k % len(MARKERS)], "ms": 3.8}
            looks[phase, name] = look
    keys = [
        (Line2D([], [], **look), f"{phase} {name.replace('_', ' ')}")
        for (phase, name), look in looks.items()
    ]

    def draw(group: dict[tuple[str, str], np.ndarray]) -> Callable[[Axes], None]:
        def panel(axes: Axes) -> None:
            for key, points in group.items():
                axes.plot(points[:, 0], points[:, 1], **looks[key])
            values = np.concatenate([points[:, 1] for points in group.values()])
            if "accuracy" in next(iter(group))[1]:
                axes.set_ylim(0, 1.02)
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
                axes.set_ylabel("accuracy")
            elif values.min() > 0 and values.max() > 50 * values.min():
                axes.set_yscale("log")
                axes.set_ylabel("loss (log scale)")
            else:
                axes.set_ylim(bottom=min(0.0, float(values.min())))
                axes.set_ylabel("loss")

        return panel

    panels = [draw(group) for group in groups]
    return chart(panels, [1.55] * len(panels), [keys], xlabel="training step")


def training_series(entry: Entry) -> dict[tuple[str, str], np.ndarray]:
    """Finite points `(step, value)` of each metric, by ("training" or "validation", name)."""
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for line in entry.history:
        phases = {"training": line, "validation": line.get("validation") or {}}
        for phase, metrics in phases.items():
            for name, value in metrics.items():
                numeric = isinstance(value, (int, float)) and math.isfinite(value)
                if numeric and name not in ("step", "epoch"):
                    series.setdefault((phase, name), []).append((line["step"], value))
    return {key: np.asarray(points, float) for key, points in series.items()}


def drawn_as(name: str) -> str:
    """The panel of training figures that a metric belongs in: "loss", "accuracy" or none.

    >>> drawn_as("adversarial_accuracy"), drawn_as("validation_loss"), drawn_as("eps")
    ('accuracy', 'loss', '')
    """
    return next((word for word in ("accuracy", "loss") if word in name), "")


def _key(index: int) -> Line2D:
    return Line2D(
        [], [], color=colour_of(index), lw=3.2, marker=MARKERS[index % 8], ms=5.5,
        markeredgecolor="white", markeredgewidth=0.8,
    )  # fmt: skip


def _point(axes: Axes, report: Report, index: int) -> None:
    """The accuracy that was measured, with its interval."""
    low, high = report.intervals.get("robust", (report.robust_accuracy,) * 2)
    axes.vlines(report.eps, low, high, color=colour_of(index), lw=1.2, zorder=4)
    axes.plot(
        [report.eps], [report.robust_accuracy], color=colour_of(index), zorder=5, clip_on=False,
        marker=MARKERS[index % 8], ms=5.5, markeredgecolor="white", markeredgewidth=0.8,
    )  # fmt: skip
