"""Detectors: rows of a table for page and terminal, and the curves of detection."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxrobust.evaluation import Report
from jaxrobust.report._document import Document
from jaxrobust.report._tables import percent

HEADINGS = ("Attack", "Broken", "Detected", "AUC", "Right or rejected")


@runtime_checkable
class Printer(Protocol):
    """What is asked of a `rich.console.Console`."""

    def print(self, *objects: Any) -> None:
        """Print texts and tables."""
        ...


class Detected(NamedTuple):
    """What one detector did in one report, in words.

    Attributes:
        column: Index into `document.entries`.
        threat: Label of the threat.
        name: The detector.
        report: Where it comes from.
        false_positive_rate: Share of clean images that are rejected though the model is right.
        clean: Share of all images that are right and accepted.
        robust: Share that is safe under every attack, or "" without attacks.
        rows: By attack: its name, how many images it breaks that were right, the share of these
            detected, AUC, and the share of all images that are right or rejected.
    """

    column: int
    threat: str
    name: str
    report: Report
    false_positive_rate: str
    clean: str
    robust: str
    rows: list[tuple[str, str, str, str, str]]


def detections(document: Document) -> list[Detected]:
    """Every detector of every report."""
    found = []
    for i, entry in enumerate(document.entries):
        for threat, report in entry.reports.items():
            n, right = report.num_examples, report.examples["clean_correct"]
            for name, record in report.detectors.items():
                rows = [
                    (
                        attack,
                        f"{int(np.sum(right & report.examples[f'success/{attack}'])):,}",
                        _words(record.detection_rate[attack]),
                        "\u2013" if (area := record.auc[attack]) is None else f"{area:.4f}",
                        percent(record.accuracy[attack], n),
                    )
                    for attack in report.attacks
                ]
                found.append(
                    Detected(
                        i, threat, name, report, _words(record.false_positive_rate),
                        percent(record.clean_accuracy, n),
                        percent(record.robust_accuracy, n) if report.attacks else "", rows,
                    )
                )  # fmt: skip
    return found


def print_detections(document: Document, console: Printer) -> None:
    """Print a table a detector; nothing where there are none."""
    from rich.table import Table
    from rich.text import Text

    for shown in detections(document):
        title = f"Detector {shown.name}, {document.entries[shown.column].name}, {shown.threat}"
        table = Table(
            title=Text(title, style="bold"), title_justify="left", box=None, pad_edge=False,
            padding=(0, 2, 0, 0),
        )  # fmt: skip
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading == "Attack" else "right")
        for row in shown.rows:
            table.add_row(*(Text(cell.replace("\xa0", " ")) for cell in row))
        if shown.rows:
            console.print(table)
        else:
            console.print(Text(title, style="bold"))
        words = f"False positives {shown.false_positive_rate}; right and accepted {shown.clean}"
        if shown.robust:
            words += f", and right or rejected under every attack {shown.robust}"
        console.print(Text(f"{words}.".replace("\xa0", " ")))
        console.print()


def detection_figure(shown: Detected) -> bytes | None:
    """Detection against false positives, a line an attack, as SVG; None where none succeeded."""
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter

    from jaxrobust.report import _chart as charts

    curves = {
        attack: curve
        for attack in shown.report.attacks
        if (curve := shown.report.roc(shown.name, attack)) is not None
    }
    if not curves:
        return None
    looks = {name: _look(list(shown.report.attacks).index(name)) for name in curves}
    chance: dict[str, Any] = {"color": "#8A939E", "lw": 0.8, "ls": (0, (1, 2))}

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], zorder=0, **chance)
        for name, curve in curves.items():
            axes.plot(curve.false_positive, curve.detected, **looks[name])
        axes.set_xlim(-0.01, 1.05)  # room for the last label
        axes.set_ylim(-0.01, 1.02)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("clean images rejected")
        axes.set_ylabel("attacked images rejected")

    keys: list[tuple[Any, str]] = [(Line2D([], [], **look), name) for name, look in looks.items()]
    return charts.chart([draw], [2.9], [keys, [(Line2D([], [], **chance), "by chance")]])


def _look(index: int) -> dict[str, Any]:
    from jaxrobust.report import _chart as charts

    dashes: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1, 1.2)))
    several = index // len(charts.COLOURS)
    return {"color": charts.colour_of(index), "lw": 1.6, "ls": dashes[several % len(dashes)]}


def _words(share: float | None) -> str:
    return "\u2013" if share is None else percent(share)
