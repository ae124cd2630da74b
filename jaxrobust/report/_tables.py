"""The main table and the wording of its numbers, shared by the page and the terminal."""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxrobust.evaluation import Report
from jaxrobust.report._document import Document
from jaxrobust.types import Finding

CLEAN, ATTACKED, CERTIFIED = "Clean", "Under attack", "Certified"
SMOOTHED = "Certified with high probability, for the smoothed classifier"


class Cell(NamedTuple):
    """An accuracy in words: "81.1 %" and its interval "76.9\u201384.8 %", or "" without one."""

    value: str
    interval: str


class Row(NamedTuple):
    """One measure over the classifiers; None where it was not taken."""

    group: str
    label: str
    cells: list[Cell | None]


class Table(NamedTuple):
    """All accuracies under one threat; `columns` are indices into `document.entries`."""

    threat: str
    num_examples: list[int]
    columns: list[int]
    rows: list[Row]


class Doubt(NamedTuple):
    """A finding, and whose it is."""

    column: int
    threat: str
    finding: Finding


def percent(fraction: float, num_examples: int = 0) -> str:
    r"""A fraction in words, with as many digits as the examples resolve.

    "100" and "0" are kept for exactly all and exactly none.

    >>> percent(0.81), percent(0.8123, 10_000), percent(0.9999), percent(0.0001)
    ('81.0\xa0%', '81.23\xa0%', '99.9\xa0%', '0.1\xa0%')
    """
    return f"{_digits(fraction, num_examples)}\xa0%" if math.isfinite(fraction) else "unknown"


def interval_words(interval: tuple[float, float], num_examples: int = 0) -> str:
    r"""An interval in words.

    >>> interval_words((0.769, 0.848))
    '76.9–84.8\xa0%'
    """
    low, high = (_digits(bound, num_examples) for bound in interval)
    return f"{low}\u2013{high}\xa0%"


def _digits(fraction: float, num_examples: int) -> str:
    places = 2 if num_examples > 1000 else 1
    step = 10.0**-places
    shown = 100 * fraction
    if 0 < fraction < 1:
        shown = min(max(shown, step), 100 - step)
    return f"{shown:.{places}f}"


def measures(report: Report) -> dict[tuple[str, str], Cell]:
    """Every accuracy of a report, by group and label, in the order to show them."""

    def cell(value: float, interval: str) -> Cell:
        found = report.intervals.get(interval)
        words = "" if found is None else interval_words(found, report.num_examples)
        return Cell(percent(value, report.num_examples), words)

    rows = {(CLEAN, "no attack"): cell(report.clean_accuracy, "clean")}
    # Where each attack met all rows, its own number says more than the cumulative one.
    kind, values = (
        ("under", report.accuracy_under)
        if report.accuracy_under
        else ("after", report.accuracy_after)
    )
    for name, value in values.items():
        rows[ATTACKED, f"{kind} {name}"] = cell(value, f"{kind} {name}")
    if report.attacks:
        rows[ATTACKED, "worst case"] = cell(report.robust_accuracy, "robust")
    for name, value in report.certified_accuracy.items():
        rows[CERTIFIED, f"by {name}"] = cell(value, f"certified {name}")
    for name, value in report.smoothed_accuracy.items():
        alpha = report.certificates[name].alpha
        rows[SMOOTHED, f"by {name}, alpha {alpha:g}"] = cell(value, f"smoothed {name}")
    return rows


def main_tables(document: Document) -> list[Table]:
    """One table a threat: a row a measure, a column a classifier."""
    tables = []
    for threat in dict.fromkeys(t for entry in document.entries for t in entry.reports):
        columns = [i for i, entry in enumerate(document.entries) if threat in entry.reports]
        reports = [document.entries[i].reports[threat] for i in columns]
        found = [measures(report) for report in reports]
        labels = dict.fromkeys(label for rows in found for label in rows)
        groups = {group: i for i, group in enumerate((CLEAN, ATTACKED, CERTIFIED, SMOOTHED))}
        # Classifiers may have met different attacks: worst case still closes its group.
        order = sorted(labels, key=lambda label: (groups[label[0]], label[1] == "worst case"))
        rows = [Row(*label, [each.get(label) for each in found]) for label in order]
        tables.append(Table(threat, [r.num_examples for r in reports], columns, rows))
    return tables


def doubts(document: Document) -> list[Doubt]:
    """All findings of all reports."""
    return [
        Doubt(i, threat, finding)
        for i, entry in enumerate(document.entries)
        for threat, report in entry.reports.items()
        for finding in report.findings
    ]
